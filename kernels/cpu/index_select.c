// Quickselect (Hoare 1961, algorithm 65) with random pivots, so that no order of the input is bad,
// and a partition without branches on the data.
#include "kernels/cpu/index_select.h"

// Knuth's MMIX generator: the same pivots in every run.
static int64_t random_below(uint64_t *state, int64_t n) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((*state >> 32) % (uint64_t)n);
}

static uint64_t median(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

// Brings those of [begin, end) that exceed the pivot to the front; returns where the others begin.
static int64_t gather_above(uint64_t *x, int64_t begin, int64_t end, uint64_t pivot) {
    for (int64_t i = begin; i < end; i++) {
        uint64_t value = x[i];
        x[i] = x[begin];
        x[begin] = value;
        begin += value > pivot;
    }
    return begin;
}

uint64_t index_select(uint64_t *x, int64_t n, int64_t k) {
    int64_t begin = 0, end = n; // the k-th largest lies in [begin, end)
    uint64_t state = 0;
    while (end - begin > 1) {
        uint64_t pivot = median(x[begin + random_below(&state, end - begin)],
                                x[begin + random_below(&state, end - begin)],
                                x[begin + random_below(&state, end - begin)]);
        int64_t middle = gather_above(x, begin, end, pivot);
        if (k <= middle) {
            end = middle;
            continue;
        }
        if (middle == begin) { // the pivot is the largest: equal ones must leave the range
            middle = pivot == 0 ? end : gather_above(x, begin, end, pivot - 1);
            if (k <= middle) return pivot;
        }
        begin = middle;
    }
    return x[begin];
}

uint64_t index_smallest(const uint64_t *x, int64_t n) {
    uint64_t smallest = x[0];
    for (int64_t i = 1; i < n; i++) smallest = x[i] < smallest ? x[i] : smallest;
    return smallest;
}
