#include "partition/run.h"

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t floor_div(int64_t a, int64_t b) {
    return a / b - (a % b < 0);
}

struct run run_clip(struct run run, int64_t begin, int64_t end) {
    int64_t first = max64(0, ceil_div(begin - run.start, run.stride));
    int64_t last = min64(run.count, ceil_div(end - run.start, run.stride));
    return (struct run){run.start + first * run.stride, run.stride, max64(0, last - first)};
}

static struct run piece_run(const struct extent *extent, int n_piece, int index) {
    struct span piece = partition_piece(extent->length, n_piece, index);
    return (struct run){extent->start + piece.start, 1, piece.length};
}

void run_of_extent(const struct extent *extent, int size, int rank, int64_t begin, int64_t end,
                   struct run runs[RUNS_PER_EXTENT]) {
    runs[0] = runs[1] = (struct run){extent->start, 1, 0};
    switch (extent->layout) {
    case LAYOUT_ZIGZAG:
        runs[0] = piece_run(extent, 2 * size, rank);
        runs[1] = piece_run(extent, 2 * size, 2 * size - 1 - rank);
        break;
    case LAYOUT_CONTIGUOUS:
        runs[0] = piece_run(extent, size, rank);
        break;
    case LAYOUT_ROUND_ROBIN: {
        int64_t skip = (rank - extent->start % size + size) % size;
        int64_t count = max64(0, ceil_div(extent->length - skip, size));
        runs[0] = (struct run){extent->start + skip, size, count};
        break;
    }
    }
    end = min64(end, extent->start + extent->kept);
    for (int i = 0; i < RUNS_PER_EXTENT; i++) runs[i] = run_clip(runs[i], begin, end);
}

static int piece_index(int64_t length, int n_piece, int64_t offset) {
    int64_t quotient = length / n_piece, longer = length % n_piece;
    int64_t in_longer = longer * (quotient + 1);
    if (offset < in_longer) return (int)(offset / (quotient + 1));
    return (int)(longer + (offset - in_longer) / quotient);
}

int run_owner(const struct extent *extent, int size, int64_t position) {
    int64_t offset = position - extent->start;
    if (extent->layout == LAYOUT_ROUND_ROBIN) return (int)(position % size);
    if (extent->layout == LAYOUT_CONTIGUOUS) return piece_index(extent->length, size, offset);
    int piece = piece_index(extent->length, 2 * size, offset);
    return piece < size ? piece : 2 * size - 1 - piece;
}

// Sum over i in [0, n) of min(max(first + i * step, 0), limit), step > 0.
static int64_t clamped_sum(int64_t first, int64_t step, int64_t n, int64_t limit) {
    int64_t rise = min64(n, max64(0, ceil_div(-first, step)));           // zero before here
    int64_t flat = min64(n, max64(rise, ceil_div(limit - first, step))); // limit from here on
    int64_t n_rising = flat - rise;
    int64_t rising = n_rising * (first + rise * step) + step * (n_rising * (n_rising - 1) / 2);
    return rising + (n - flat) * limit;
}

int64_t run_causal_pairs(const struct run *query, const struct run *key) {
    if (query->count == 0 || key->count == 0) return 0;
    if (key->stride == 1) // each query sees the keys up to itself
        return clamped_sum(query->start - key->start + 1, query->stride, query->count, key->count);
    if (query->stride == 1) { // each key, from the last, is seen by the queries from itself on
        int64_t last_key = key->start + (key->count - 1) * key->stride;
        return clamped_sum(query->start + query->count - last_key, key->stride, key->count,
                           query->count);
    }
    int64_t first = floor_div(query->start - key->start, key->stride) + 1; // equal strides
    return clamped_sum(first, 1, query->count, key->count);
}
