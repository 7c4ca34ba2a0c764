// Merging one piece of text: symbols in a linked list, candidates (adjacent pairs that merge) in a
// binary heap by (rank, position). Each merge makes at most two candidates; stale ones are known by
// their ids. O(n log n) time and 68 bytes per symbol, whatever the text.
#include <stdlib.h>
#include <string.h>

#include "model/bpe.h"
#include "model/unicode.h"

struct bpe_candidate {
    uint64_t key; // rank << 32 | position of the left symbol
    int32_t left, right, merged;
};

void bpe_work_close(struct bpe_work *work) {
    free(work->symbol);
    free(work->heap);
    *work = (struct bpe_work){0};
}

enum status bpe_work_reserve(struct bpe_work *work, size_t n) {
    if (n <= (size_t)work->capacity) return OK;
    if (n >= INT32_MAX / 2) FAIL(ERR_INPUT, "a run of %zu bytes without a break is too long", n);
    n = n < 256 ? 256 : n;
    struct bpe_symbol *symbol = realloc(work->symbol, n * sizeof(*symbol));
    if (symbol) work->symbol = symbol;
    // Every pair at the start, and two more for each of the n - 1 merges that empty one.
    struct bpe_candidate *heap = realloc(work->heap, 2 * n * sizeof(*heap));
    if (heap) work->heap = heap;
    if (!symbol || !heap) FAIL(ERR_MEMORY, "no memory to tokenise a run of %zu bytes", n);
    work->capacity = (int32_t)n;
    work->heap_capacity = 2 * (int64_t)n;
    return OK;
}

void bpe_work_add(struct bpe_work *work, int32_t id, size_t begin, size_t end) {
    int32_t i = work->n++;
    work->symbol[i] = (struct bpe_symbol){
        .id = id, .previous = i - 1, .next = i + 1, .begin = (uint32_t)begin, .end = (uint32_t)end};
}

static void add_unknown(const struct bpe *bpe, struct bpe_work *work, size_t begin, size_t end) {
    if (bpe->unknown < 0) return;
    if (bpe->fuse_unknown && work->n > 0) {
        struct bpe_symbol *last = &work->symbol[work->n - 1];
        if (last->id == bpe->unknown && last->end == begin) {
            last->end = (uint32_t)end;
            return;
        }
    }
    bpe_work_add(work, bpe->unknown, begin, end);
}

static bool add_bytes(const struct bpe *bpe, struct bpe_work *work, const char *data, size_t begin,
                      size_t end) {
    if (!bpe->byte_fallback) return false;
    for (size_t i = begin; i < end; i++)
        if (bpe->byte_token[(unsigned char)data[i]] < 0) return false;
    for (size_t i = begin; i < end; i++)
        bpe_work_add(work, bpe->byte_token[(unsigned char)data[i]], i, i + 1);
    return true;
}

static void split_symbols(const struct bpe *bpe, const char *data, size_t bytes,
                          struct bpe_work *work) {
    work->n = 0;
    for (size_t i = 0, n; i < bytes; i += n) {
        n = bpe->by_bytes ? 1 : unicode_length(data[i]);
        int32_t id = n == 1 ? bpe->single[(unsigned char)data[i]] : bpe_find(bpe, data + i, n);
        if (id >= 0)
            bpe_work_add(work, id, i, i + n);
        else if (!add_bytes(bpe, work, data, i, i + n))
            add_unknown(bpe, work, i, i + n);
    }
    if (work->n > 0) work->symbol[work->n - 1].next = -1;
}

static void sift_down(struct bpe_work *work, int64_t i) {
    struct bpe_candidate moving = work->heap[i];
    for (int64_t child; (child = 2 * i + 1) < work->n_heap; i = child) {
        if (child + 1 < work->n_heap && work->heap[child + 1].key < work->heap[child].key) child++;
        if (moving.key <= work->heap[child].key) break;
        work->heap[i] = work->heap[child];
    }
    work->heap[i] = moving;
}

static void sift_up(struct bpe_work *work, int64_t i) {
    struct bpe_candidate moving = work->heap[i];
    for (int64_t parent; i > 0 && moving.key < work->heap[parent = (i - 1) / 2].key; i = parent)
        work->heap[i] = work->heap[parent];
    work->heap[i] = moving;
}

static bool add_candidate(const struct bpe *bpe, struct bpe_work *work, int32_t position) {
    const struct bpe_symbol *left = &work->symbol[position];
    if (left->next < 0) return false;
    const struct bpe_merge *merge = bpe_find_merge(bpe, left->id, work->symbol[left->next].id);
    if (!merge) return false;
    work->heap[work->n_heap++] =
        (struct bpe_candidate){.key = (uint64_t)merge->rank << 32 | (uint32_t)position,
                               .left = merge->left,
                               .right = merge->right,
                               .merged = merge->merged};
    return true;
}

static void merge_symbols(const struct bpe *bpe, struct bpe_work *work) {
    work->n_heap = 0;
    for (int32_t i = 0; i + 1 < work->n; i++) add_candidate(bpe, work, i);
    for (int64_t i = work->n_heap / 2; i-- > 0;) sift_down(work, i);
    while (work->n_heap > 0) {
        struct bpe_candidate best = work->heap[0];
        work->heap[0] = work->heap[--work->n_heap];
        if (work->n_heap > 0) sift_down(work, 0);

        int32_t position = (int32_t)(uint32_t)best.key;
        struct bpe_symbol *left = &work->symbol[position];
        if (left->id != best.left || left->next < 0) continue;
        struct bpe_symbol *right = &work->symbol[left->next];
        if (right->id != best.right) continue;
        left->id = best.merged;
        left->end = right->end;
        left->next = right->next;
        right->id = -1; // gone: no candidate names it
        if (left->next >= 0) work->symbol[left->next].previous = position;

        if (add_candidate(bpe, work, position)) sift_up(work, work->n_heap - 1);
        if (left->previous >= 0 && add_candidate(bpe, work, left->previous))
            sift_up(work, work->n_heap - 1);
    }
}

static void close_ranks(struct bpe_work *work) {
    int32_t n = 0;
    for (int32_t i = work->n > 0 ? 0 : -1, next; i >= 0; i = next) {
        next = work->symbol[i].next;
        work->symbol[n++] = work->symbol[i];
    }
    work->n = n;
}

enum status bpe_encode(const struct bpe *bpe, const char *data, size_t bytes,
                       struct bpe_work *work) {
    TRY(bpe_work_reserve(work, bytes));
    int32_t whole = bpe->whole_pieces ? bpe_find(bpe, data, bytes) : -1;
    if (whole >= 0) {
        work->n = 0;
        bpe_work_add(work, whole, 0, bytes);
        return OK;
    }
    split_symbols(bpe, data, bytes, work);
    merge_symbols(bpe, work);
    close_ranks(work);
    return OK;
}
