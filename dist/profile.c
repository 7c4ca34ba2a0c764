#include "dist/profile.h"

#include "dist/cluster.h"

const char *const phase_name[N_PHASE] = {
    [PHASE_LOAD] = "load",
    [PHASE_TOKENIZE] = "tokenize",
    [PHASE_MATMUL] = "matmul",
    [PHASE_ATTENTION] = "attention",
    [PHASE_RING_WAIT] = "ring_wait",
    [PHASE_MERGE] = "merge",
    [PHASE_GATHER_WAIT] = "gather_wait",
    [PHASE_INDEX] = "index",
    [PHASE_OTHER] = "other",
    [PHASE_DECODE] = "decode",
    [PHASE_SAMPLING] = "sampling",
    [PHASE_IO] = "io",
};

// Phases in which the host itself works, after what it queued has ended.
static bool is_host_phase(enum phase phase) {
    return phase == PHASE_LOAD || phase == PHASE_TOKENIZE || phase == PHASE_SAMPLING ||
           phase == PHASE_IO;
}

double profile_begin(struct profile *profile, enum phase phase) {
    struct backend *device = profile->device;
    if (!device || is_host_phase(phase)) {
        double now = cluster_seconds();
        beacon_phase(profile->beacon, (int)phase, now);
        return now;
    }
    beacon_phase(profile->beacon, (int)phase, 0);
    device->ops->phase(device, (int)phase);
    return 0;
}

void profile_end(struct profile *profile, enum phase phase, double begun) {
    double now = profile->device && !is_host_phase(phase) ? 0 : cluster_seconds();
    beacon_phase(profile->beacon, NO_PHASE, now);
    if (now > 0) profile->seconds[phase] += now - begun;
}

enum status profile_sync(struct profile *profile, struct backend *backend) {
    struct beacon *beacon = profile->device ? profile->beacon : NULL;
    if (beacon) beacon_phase(beacon, DEVICE_PHASE, cluster_seconds());
    TRY(backend->ops->sync(backend));
    if (beacon) beacon_phase(beacon, NO_PHASE, cluster_seconds());
    return OK;
}

void profile_attach(struct profile *profile, struct backend *backend) {
    if (!backend->ops->phase) return;
    profile->device = backend;
    backend->phase_seconds = profile->seconds;
}

void profile_detach(struct profile *profile) {
    if (!profile || !profile->device) return;
    profile->device->phase_seconds = NULL;
    profile->device = NULL;
}

void profile_sample_memory(struct profile *profile) {
    int64_t bytes = cluster_pss_bytes();
    if (bytes > profile->peak_pss_bytes) profile->peak_pss_bytes = bytes;
}
