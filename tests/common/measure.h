// Timing of operations on a backend, a device or not, for benchmarks: random arguments in the
// backend's memory, poisoned outputs, and the median time of calls queued back to back.
#ifndef HALKA_TESTS_COMMON_MEASURE_H
#define HALKA_TESTS_COMMON_MEASURE_H

#include "kernels/kernels.h"

double measure_now(void); // seconds
// Prints the message of a failure and exits with its code.
void measure_require(enum status status);
// The cuda backend; with a divisor the best of this machine, for a rehearsal with sizes divided by
// it. False, after a line that says so: there is no device and no divisor.
bool measure_open(int argc, char **argv, const char *program, struct backend *out,
                  int64_t *divisor);

bool measure_multiplies_bf16(void); // the cpu backend, on this machine

// Backend memory. Two million normal values, over and over, in F32, BF16 or F8_E4M3.
void *measure_random(struct backend *backend, enum dtype dtype, int64_t n);
void *measure_poisoned(struct backend *backend, int64_t bytes);
void *measure_upload(struct backend *backend, const void *host, int64_t bytes);
// A random matrix of any format, its scales with it, ready for products; for unload_weight.
struct weight measure_weight(struct backend *backend, enum dtype dtype, int64_t n_row,
                             int64_t n_col);
// Exits unless the first and the last of n elements have been written: none is NaN. F32 or BF16.
void measure_check(struct backend *backend, enum dtype dtype, const void *out, int64_t n);

// Seconds of a call: some are queued and waited for together, so that launching hides behind the
// work before; the median of several such batches, after a warm-up.
double measure_seconds(struct backend *backend, enum status (*call)(struct backend *, void *),
                       void *user);

// Ceilings: operations per second of a bf16 product of 8192^3, its sizes divided by `divisor`, and
// bytes per second read and written by a copy of 4 GiB, likewise. `seconds` of one of them.
double measure_product_ceiling(struct backend *backend, int64_t divisor, double *seconds);
double measure_copy_ceiling(struct backend *backend, int64_t divisor, double *seconds);

#endif
