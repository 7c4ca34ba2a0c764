// What the queries of attention_args see of its block, as indices of keys instead of positions: of
// the keys before a query's end, the first so many (sinks) and all from its begin on. Positions
// ascend, and so do begin and end; a search from the answer for the query before takes few steps.
#ifndef HALKA_KERNELS_VISIBLE_KEYS_H
#define HALKA_KERNELS_VISIBLE_KEYS_H

#include "kernels/attention.h"

// Index of the first key that is not before `position`, at least `low`.
static inline int64_t key_search(const struct attention_args *a, int64_t position, int64_t low) {
    int64_t step = 1, high = low;
    while (high < a->n_key && a->key_position[high] < position) {
        low = high + 1;
        high += step;
        step *= 2;
    }
    if (high > a->n_key) high = a->n_key;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (a->key_position[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static inline int64_t visible_sinks(const struct attention_args *a) {
    return a->first_visible ? key_search(a, a->sinks, 0) : 0;
}

// low: visible_sinks, or the begin of a query before.
static inline int64_t visible_begin(const struct attention_args *a, int64_t query, int64_t low) {
    return a->first_visible ? key_search(a, a->first_visible[query], low) : 0;
}

// low: 0, or the end of a query before.
static inline int64_t visible_end(const struct attention_args *a, int64_t query, int64_t low) {
    return a->end_visible ? key_search(a, a->end_visible[query], low) : a->n_key;
}

// The most keys from begin to end that a tile of so many rows sees; a row is one (query, head) pair
// of a kv head.
static inline int64_t visible_longest(const struct attention_args *a, int64_t row_tile) {
    int64_t group = a->n_head / a->n_kv_head, n_row = a->n_query * group, longest = 0;
    int64_t begin = visible_sinks(a), end = 0;
    if (!a->first_visible && !a->end_visible) return a->n_key;
    for (int64_t row = 0; row < n_row; row += row_tile) {
        int64_t last = row + row_tile < n_row ? row + row_tile - 1 : n_row - 1;
        begin = visible_begin(a, row / group, begin);
        end = visible_end(a, last / group, end);
        if (end - begin > longest) longest = end - begin;
    }
    return longest;
}

#endif
