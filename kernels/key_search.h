// Index of the first of n ascending key positions that is not before `position`, at least `low`. A
// search that starts from the answer for the query before takes a few steps.
#ifndef HALKA_KERNELS_KEY_SEARCH_H
#define HALKA_KERNELS_KEY_SEARCH_H

#include <stdint.h>

static inline int64_t key_search(const int64_t *key_position, int64_t n, int64_t position,
                                 int64_t low) {
    int64_t step = 1, high = low;
    while (high < n && key_position[high] < position) {
        low = high + 1;
        high += step;
        step *= 2;
    }
    if (high > n) high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (key_position[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#endif
