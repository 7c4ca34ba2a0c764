#include <stdlib.h>

#include "partition/run.h"

void sequence_open(struct sequence *sequence, int size) {
    *sequence = (struct sequence){.size = size};
}

void sequence_close(struct sequence *sequence) {
    free(sequence->owned_before);
    free(sequence->extents);
    *sequence = (struct sequence){0};
}

// The extents with room for one more; NULL: no memory.
static struct extent *make_room(struct sequence *sequence) {
    if (sequence->n_extent < sequence->capacity) return sequence->extents;
    int capacity = sequence->capacity ? 2 * sequence->capacity : 8;
    size_t n = (size_t)capacity * sizeof *sequence->extents;
    struct extent *extents = realloc(sequence->extents, n);
    if (extents) sequence->extents = extents;
    n = (size_t)capacity * (size_t)sequence->size * sizeof *sequence->owned_before;
    int64_t *before = realloc(sequence->owned_before, n);
    if (before) sequence->owned_before = before;
    if (!extents || !before) return NULL;
    sequence->capacity = capacity;
    return extents;
}

bool sequence_append(struct sequence *sequence, enum layout layout, int64_t length) {
    if (length <= 0) return true;
    struct extent *last = sequence->n_extent ? &sequence->extents[sequence->n_extent - 1] : NULL;
    if (last && layout == LAYOUT_ROUND_ROBIN && last->layout == layout) {
        last->kept += length;
        last->length = last->kept;
        sequence->length += length;
        return true;
    }
    struct extent *extents = make_room(sequence);
    if (!extents) return false;
    int64_t *before = sequence->owned_before + (int64_t)sequence->n_extent * sequence->size;
    for (int rank = 0; rank < sequence->size; rank++)
        before[rank] = sequence_count(sequence, rank, 0, sequence->length);
    extents[sequence->n_extent++] = (struct extent){layout, sequence->length, length, length};
    sequence->length += length;
    return true;
}

void sequence_truncate(struct sequence *sequence, int64_t length) {
    if (length < 0) length = 0;
    if (length >= sequence->length) return;
    while (sequence->n_extent && sequence->extents[sequence->n_extent - 1].start >= length)
        sequence->n_extent--;
    if (sequence->n_extent) {
        struct extent *last = &sequence->extents[sequence->n_extent - 1];
        last->kept = length - last->start;
    }
    sequence->length = length;
}

// The last extent that starts at or before a position.
static int extent_of(const struct sequence *sequence, int64_t position) {
    int low = 0, high = sequence->n_extent - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (sequence->extents[middle].start <= position)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static int64_t count_in(const struct sequence *sequence, int extent, int rank, int64_t begin,
                        int64_t end) {
    struct run runs[RUNS_PER_EXTENT];
    int64_t count = 0;
    run_of_extent(&sequence->extents[extent], sequence->size, rank, begin, end, runs);
    for (int i = 0; i < RUNS_PER_EXTENT; i++) count += runs[i].count;
    return count;
}

int64_t sequence_count(const struct sequence *sequence, int rank, int64_t begin, int64_t end) {
    int64_t count = 0;
    if (begin < 0) begin = 0;
    if (sequence->n_extent == 0 || begin >= end) return 0;
    int first = extent_of(sequence, begin), last = extent_of(sequence, end - 1);
    if (sequence->owned_before && last > first + 1) { // those between need not be visited
        const int64_t *before = sequence->owned_before + rank;
        int64_t size = sequence->size;
        count = before[last * size] - before[(first + 1) * size];
        return count + count_in(sequence, first, rank, begin, end) +
               count_in(sequence, last, rank, begin, end);
    }
    for (int e = first; e <= last; e++) count += count_in(sequence, e, rank, begin, end);
    return count;
}

void sequence_positions(const struct sequence *sequence, int rank, int64_t begin, int64_t end,
                        int64_t *out) {
    if (sequence->n_extent == 0) return;
    for (int e = extent_of(sequence, begin);
         e < sequence->n_extent && sequence->extents[e].start < end; e++) {
        struct run runs[RUNS_PER_EXTENT];
        run_of_extent(&sequence->extents[e], sequence->size, rank, begin, end, runs);
        for (int i = 0; i < RUNS_PER_EXTENT; i++)
            for (int64_t k = 0; k < runs[i].count; k++) *out++ = runs[i].start + k * runs[i].stride;
    }
}

int sequence_max_runs(const struct sequence *sequence) {
    return RUNS_PER_EXTENT * sequence->n_extent;
}

int sequence_runs(const struct sequence *sequence, int rank, int64_t begin, int64_t end,
                  struct position_run *out) {
    int n = 0;
    int64_t row = 0;
    for (int e = 0; e < sequence->n_extent && sequence->extents[e].start < end; e++) {
        struct run runs[RUNS_PER_EXTENT];
        run_of_extent(&sequence->extents[e], sequence->size, rank, begin, end, runs);
        for (int i = 0; i < RUNS_PER_EXTENT; i++) {
            if (runs[i].count == 0) continue;
            out[n++] = (struct position_run){runs[i].start, runs[i].stride, runs[i].count, row};
            row += runs[i].count;
        }
    }
    return n;
}

int sequence_owner(const struct sequence *sequence, int64_t position, int64_t *offset) {
    int low = extent_of(sequence, position);
    int rank = run_owner(&sequence->extents[low], sequence->size, position);
    if (offset) *offset = sequence_count(sequence, rank, 0, position);
    return rank;
}
