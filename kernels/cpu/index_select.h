// Selection of candidates (kernels/candidate.h) without sorting them.
#ifndef HALKA_KERNELS_CPU_INDEX_SELECT_H
#define HALKA_KERNELS_CPU_INDEX_SELECT_H

#include <stdint.h>

// Moves the k largest of n to the front, in any order, and returns the smallest of them;
// 1 <= k <= n. Needs a few passes over x on average, whatever its order.
uint64_t index_select(uint64_t *x, int64_t n, int64_t k);

// The smallest of n >= 1.
uint64_t index_smallest(const uint64_t *x, int64_t n);

#endif
