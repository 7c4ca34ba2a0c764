// The running k best candidates of one query: a buffer that is cut back to k when it is full, and a
// threshold that candidates must exceed.
#ifndef HALKA_KERNELS_CPU_INDEX_LIST_H
#define HALKA_KERNELS_CPU_INDEX_LIST_H

#include "kernels/candidate.h"
#include "kernels/cpu/index_select.h"

struct index_list {
    uint64_t *candidate; // [index_list_room(k)]
    int64_t n, k;
    uint64_t threshold; // k known candidates are at or above it; 0 when there are fewer
    float score;        // the threshold's, -inf when there is none
};

// Room for two full lists at least, and for so many more that a list is cut back rarely.
static inline int64_t index_list_room(int64_t k) {
    return k + (k > 512 ? k : 512);
}

static inline void index_list_raise(struct index_list *list, uint64_t threshold) {
    list->threshold = threshold;
    list->score = candidate_score(threshold);
}

static inline void index_list_cut(struct index_list *list) {
    if (list->n <= list->k) return;
    index_list_raise(list, index_select(list->candidate, list->n, list->k));
    list->n = list->k;
}

static inline void index_list_add(struct index_list *list, uint64_t candidate) {
    if (candidate <= list->threshold) return;
    list->candidate[list->n++] = candidate;
    if (list->n == index_list_room(list->k)) index_list_cut(list);
}

// Both lists have been cut.
static inline void index_list_absorb(struct index_list *list, const struct index_list *other) {
    memcpy(list->candidate + list->n, other->candidate, (size_t)other->n * sizeof(uint64_t));
    list->n += other->n;
    index_list_cut(list);
}

#endif
