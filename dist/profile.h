// Where the time goes, by phase and rank: the rows of the final report.
#ifndef HALKA_DIST_PROFILE_H
#define HALKA_DIST_PROFILE_H

#include <stdint.h>

#include "dist/beacon.h"
#include "kernels/kernels.h"

enum phase {
    PHASE_LOAD,
    PHASE_TOKENIZE,
    PHASE_MATMUL,
    PHASE_ATTENTION,
    PHASE_INDEX,       // sparse attention: scores, top-k and the lists of selected rows
    PHASE_RING_WAIT,   // exposed: time in waits for K/V, queries or partials
    PHASE_GATHER_WAIT, // likewise, for sharded weights
    PHASE_MERGE,
    PHASE_OTHER,  // norms, rope, activations, embedding
    PHASE_DECODE, // a token's layers launched as one step: all of the above
    PHASE_SAMPLING,
    PHASE_IO,
    N_PHASE,
};
extern const char *const phase_name[N_PHASE]; // "load", ..., as in report.json

struct profile {
    double seconds[N_PHASE];
    // Counts the phases of queued work itself; NULL: the host's time is that of the work.
    struct backend *device;
    struct beacon *beacon;  // hears of each phase, as queued; NULL: nobody keeps one
    int64_t attention_flop; // 2 * visible pairs * heads * (head_dim + value_dim)
    int64_t peak_pss_bytes; // largest sample; profile_sample_memory takes one
};

// What follows is the phase's work; returns now. A device's work may follow later than its
// queueing.
double profile_begin(struct profile *profile, enum phase phase);
void profile_end(struct profile *profile, enum phase phase, double begun);
// Waits for all queued work, which the beacon tells of: where a device works, the host's phases are
// those of queueing.
enum status profile_sync(struct profile *profile, struct backend *backend);
// Lets the backend count its phases into the profile, where it queues work, and ends that.
void profile_attach(struct profile *profile, struct backend *backend);
void profile_detach(struct profile *profile);
void profile_sample_memory(struct profile *profile);

#endif
