#include "dist/profile.h"

#include "dist/cluster.h"

const char *const phase_name[N_PHASE] = {
    [PHASE_LOAD] = "load",           [PHASE_TOKENIZE] = "tokenize",
    [PHASE_MATMUL] = "matmul",       [PHASE_ATTENTION] = "attention",
    [PHASE_RING_WAIT] = "ring_wait", [PHASE_MERGE] = "merge",
    [PHASE_INDEX] = "index",         [PHASE_OTHER] = "other",
    [PHASE_SAMPLING] = "sampling",   [PHASE_IO] = "io",
};

double profile_begin(void) {
    return cluster_seconds();
}

double profile_end(struct profile *profile, enum phase phase, double begun) {
    double now = cluster_seconds();
    profile->seconds[phase] += now - begun;
    return now;
}

void profile_sample_memory(struct profile *profile) {
    int64_t bytes = cluster_pss_bytes();
    if (bytes > profile->peak_pss_bytes) profile->peak_pss_bytes = bytes;
}
