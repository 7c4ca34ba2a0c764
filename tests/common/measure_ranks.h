// Timing over ranks of a device each, for benchmarks: the job, its transport (NCCL where devices
// are distinct, mpi_staged where ranks share one), and the median time of the slowest rank.
#ifndef HALKA_TESTS_COMMON_MEASURE_RANKS_H
#define HALKA_TESTS_COMMON_MEASURE_RANKS_H

#include "dist/cluster.h"
#include "dist/comm.h"
#include "dist/profile.h"
#include "partition/partition.h"

enum { RANKS_HELD = 16 };
struct ranks {
    struct cluster cluster;
    struct comm host, device, *comm; // comm: the one that reaches the backend's memory
    struct backend backend;
    struct profile profile;
    int64_t divisor, longest; // of all sizes; tokens of the longest case
    void *held[RANKS_HELD];   // backend memory of the current case
    int n_held;
};

// `program [LONGEST [DIVISOR]]`. Rank 0 prints who computes; false, after a line that says so:
// there is no device, and no divisor. Close it in either case.
bool ranks_open(int *argc, char ***argv, const char *program, struct ranks *out);
void ranks_close(struct ranks *b);
void ranks_require(struct ranks *b, enum status status); // ends the job, unless OK
int64_t ranks_scaled(const struct ranks *b, int64_t n);  // n / divisor, at least 1

// As measure_random and measure_poisoned, until ranks_release; n may be 0.
void *ranks_hold(struct ranks *b, void *p);
void *ranks_random(struct ranks *b, enum dtype dtype, int64_t n);
void *ranks_poisoned(struct ranks *b, int64_t bytes);
void ranks_release(struct ranks *b);
void ranks_append(struct ranks *b, struct sequence *sequence, enum layout layout, int64_t length);

struct ranks_timing {
    double seconds;     // of a call on the slowest rank, median
    double wait, merge; // shares of all calls' time: exposed transfers, merging
};
typedef enum status (*ranks_call)(struct ranks *, void *user);
double ranks_slowest(struct ranks *b, double x);
// n_call are queued together. A batch beyond a second is measured once, without a warm-up.
struct ranks_timing ranks_measure(struct ranks *b, ranks_call function, void *user, int n_call);

#endif
