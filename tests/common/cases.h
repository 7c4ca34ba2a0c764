// Data for kernel tests and benchmarks: random numbers that are the same on every machine, random
// weights in any format, poisoned buffers, and the comparison of a result with the reference.
#ifndef HALKA_TESTS_CASES_H
#define HALKA_TESTS_CASES_H

#include "kernels/kernels.h"
#include "tests/common/tolerance.h"

// Whether a case of so many multiply-adds runs: always, but with HALKA_TEST_LIGHT=N only up to N
// million (on tensor cores 8 N), for tools that watch a device and slow it down a thousandfold.
bool case_is_wanted(int64_t n_product, bool on_tensor_cores);
bool tests_are_light(void);

// Standard normal values, a pure function of (seed, index).
float random_normal(uint64_t seed, uint64_t index);
uint64_t random_bits(uint64_t seed, uint64_t index);

// Aborts when memory is short; free with free().
void *test_alloc(int64_t bytes);
// Every fp32 and bf16 element becomes a NaN.
void poison(void *p, int64_t bytes);

// `n` standard normal elements, times `scale`, in F32 or BF16.
void *random_vector(enum dtype dtype, int64_t n, float scale, uint64_t seed);
// Elements of size about n_col^-0.5, rows `extra_bytes` apart from each other; free w.data.
struct weight random_weight(enum dtype dtype, int64_t n_row, int64_t n_col, int64_t extra_bytes,
                            uint64_t seed);

// Compares `n` elements of F32 or BF16. Bit patterns that agree, poison included, are equal.
// Returns false and describes the worst element in `message` when the tolerance is exceeded.
bool is_close(enum dtype dtype, const void *got, const void *expected, int64_t n,
              struct tolerance tolerance, char *message, size_t message_bytes);

#endif
