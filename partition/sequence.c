#include <stdlib.h>

#include "partition/run.h"

void sequence_open(struct sequence *sequence, int size) {
    *sequence = (struct sequence){.size = size};
}

void sequence_close(struct sequence *sequence) {
    free(sequence->extents);
    *sequence = (struct sequence){0};
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
    if (!sequence->extents || sequence->n_extent == sequence->capacity) {
        int capacity = sequence->capacity ? 2 * sequence->capacity : 8;
        struct extent *grown =
            realloc(sequence->extents, (size_t)capacity * sizeof *sequence->extents);
        if (!grown) return false;
        sequence->extents = grown;
        sequence->capacity = capacity;
    }
    sequence->extents[sequence->n_extent++] =
        (struct extent){layout, sequence->length, length, length};
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

int64_t sequence_count(const struct sequence *sequence, int rank, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int e = 0; e < sequence->n_extent && sequence->extents[e].start < end; e++) {
        struct run runs[RUNS_PER_EXTENT];
        run_of_extent(&sequence->extents[e], sequence->size, rank, begin, end, runs);
        for (int i = 0; i < RUNS_PER_EXTENT; i++) count += runs[i].count;
    }
    return count;
}

void sequence_positions(const struct sequence *sequence, int rank, int64_t begin, int64_t end,
                        int64_t *out) {
    for (int e = 0; e < sequence->n_extent && sequence->extents[e].start < end; e++) {
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
    int low = 0, high = sequence->n_extent - 1; // the last extent that starts at or before it
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (sequence->extents[middle].start <= position)
            low = middle;
        else
            high = middle - 1;
    }
    int rank = run_owner(&sequence->extents[low], sequence->size, position);
    if (offset) *offset = sequence_count(sequence, rank, 0, position);
    return rank;
}
