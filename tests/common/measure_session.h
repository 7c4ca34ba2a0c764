// Timing of a random network's session, for benchmarks: its tokens, appending them, and where the
// time went. Those over one device and over ranks share it.
#ifndef HALKA_TESTS_COMMON_MEASURE_SESSION_H
#define HALKA_TESTS_COMMON_MEASURE_SESSION_H

#include "model/session.h"
#include "tests/common/random_network.h"

struct measured_session {
    struct random_network network;
    struct session *session;
    int32_t *token; // [capacity] random ids
    float *logits;  // [n_vocab] after the last append
};

// A network, with room for tokens; the session is the caller's to open and close.
enum status measure_session_open(const struct network_shape *shape, int64_t divisor,
                                 int64_t capacity, struct measured_session *out);
void measure_session_close(struct measured_session *m); // accepts a zeroed struct
// Appends tokens [first, first + n). ERR_INTERNAL where a logit of the last is no number.
enum status measure_session_append(struct measured_session *m, int64_t first, int64_t n,
                                   double *seconds);

void measure_clear_profile(struct profile *profile);
// Seconds over n_call, and shares of all, by phase since the profile was cleared.
void measure_print_phases(const struct profile *profile, int n_call);
void measure_print_plan(const struct memory_plan *plan); // without an end of line

#endif
