// What a rank owns of one extent: at most two arithmetic progressions of positions. Internal to
// partition/; counts and causal pairs are closed forms over them, never loops over tokens.
#ifndef HALKA_PARTITION_RUN_H
#define HALKA_PARTITION_RUN_H

#include "partition/partition.h"

struct run {
    int64_t start, stride, count; // start, start + stride, ...; stride is 1 or the rank count
};

enum { RUNS_PER_EXTENT = 2 };

// The rank's runs of an extent, clipped to the positions kept and to [begin, end), ascending.
// A run may be empty.
void run_of_extent(const struct extent *extent, int size, int rank, int64_t begin, int64_t end,
                   struct run runs[RUNS_PER_EXTENT]);

// What of a run lies in [begin, end).
struct run run_clip(struct run run, int64_t begin, int64_t end);

// Rank that owns a position of the extent.
int run_owner(const struct extent *extent, int size, int64_t position);

// Pairs (query, key) with key <= query.
int64_t run_causal_pairs(const struct run *query, const struct run *key);

#endif
