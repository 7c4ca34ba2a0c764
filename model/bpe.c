// Vocabulary and merge tables: open addressing with linear probing, keyed by XXH3.
#include "model/bpe.h"

#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

// Longer pieces of a SentencePiece vocabulary cannot be real, and would cost their square to cut.
enum { MAX_SCORED_PIECE = 1024 };

enum status bpe_open(struct bpe *bpe, int64_t n_token) {
    *bpe = (struct bpe){.n_token = n_token, .unknown = -1};
    memset(bpe->single, -1, sizeof(bpe->single));
    memset(bpe->byte_token, -1, sizeof(bpe->byte_token));
    bpe->piece = calloc((size_t)n_token + 1, sizeof(*bpe->piece));
    if (!bpe->piece) FAIL(ERR_MEMORY, "no memory for a vocabulary of %lld", (long long)n_token);
    return OK;
}

void bpe_close(struct bpe *bpe) {
    free(bpe->piece);
    free(bpe->text);
    free(bpe->slot);
    free(bpe->merge);
    *bpe = (struct bpe){0};
}

enum status bpe_set_piece(struct bpe *bpe, int64_t id, const char *data, size_t bytes,
                          bool findable) {
    if (id < 0 || id >= bpe->n_token)
        FAIL(ERR_INPUT, "token id %lld is outside the vocabulary of %lld", (long long)id,
             (long long)bpe->n_token);
    if (bytes > UINT16_MAX) FAIL(ERR_INPUT, "token %lld has %zu bytes", (long long)id, bytes);
    if (!bpe->text || bpe->text_bytes + bytes > bpe->text_capacity) {
        uint64_t capacity = 2 * bpe->text_capacity + bytes + 4096;
        char *text = realloc(bpe->text, capacity);
        if (!text) FAIL(ERR_MEMORY, "no memory for the vocabulary's text");
        bpe->text = text;
        bpe->text_capacity = capacity;
    }
    memcpy(bpe->text + bpe->text_bytes, data, bytes);
    bpe->piece[id] = (struct bpe_piece){
        .begin = bpe->text_bytes, .bytes = (uint32_t)bytes, .defined = true, .findable = findable};
    bpe->text_bytes += bytes;
    return OK;
}

const char *bpe_piece_data(const struct bpe *bpe, int64_t id, size_t *bytes) {
    if (id < 0 || id >= bpe->n_token || !bpe->piece[id].defined) return NULL;
    *bytes = bpe->piece[id].bytes;
    return bpe->text + bpe->piece[id].begin;
}

static uint64_t table_size(uint64_t n) {
    uint64_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

enum status bpe_index(struct bpe *bpe) {
    bpe->n_slot = table_size((uint64_t)bpe->n_token);
    bpe->slot = malloc(bpe->n_slot * sizeof(*bpe->slot));
    if (!bpe->slot) FAIL(ERR_MEMORY, "no memory to index the vocabulary");
    memset(bpe->slot, -1, bpe->n_slot * sizeof(*bpe->slot));
    bpe->cuts_before_mark = true;
    for (int64_t id = 0; id < bpe->n_token; id++) {
        size_t bytes = bpe->piece[id].bytes;
        if (!bpe->piece[id].findable || bytes == 0) continue;
        const char *data = bpe->text + bpe->piece[id].begin;
        if (bpe_find(bpe, data, bytes) >= 0) continue; // the lowest id of equal pieces
        uint64_t i = XXH3_64bits(data, bytes) & (bpe->n_slot - 1);
        while (bpe->slot[i] >= 0) i = (i + 1) & (bpe->n_slot - 1);
        bpe->slot[i] = (int32_t)id;
        if (bytes == 1) bpe->single[(unsigned char)data[0]] = (int32_t)id;
        for (size_t k = 1; k + 3 <= bytes; k++)
            if (memcmp(data + k, "▁", 3) == 0 && (k < 3 || memcmp(data + k - 3, "▁", 3) != 0))
                bpe->cuts_before_mark = false;
    }
    bpe->cuts_before_mark &= !bpe->by_bytes && bpe_find(bpe, "▁", 3) >= 0;
    return OK;
}

int32_t bpe_find(const struct bpe *bpe, const char *data, size_t bytes) {
    uint64_t i = XXH3_64bits(data, bytes) & (bpe->n_slot - 1);
    for (int32_t id; (id = bpe->slot[i]) >= 0; i = (i + 1) & (bpe->n_slot - 1)) {
        const struct bpe_piece *piece = &bpe->piece[id];
        if (piece->bytes == bytes && memcmp(bpe->text + piece->begin, data, bytes) == 0) return id;
    }
    return -1;
}

static uint64_t pair_slot(const struct bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (key * UINT64_C(0x9E3779B97F4A7C15) >> 29) & (bpe->n_merge_slot - 1);
}

static struct bpe_merge *find_merge(const struct bpe *bpe, int32_t left, int32_t right) {
    uint64_t i = pair_slot(bpe, left, right);
    while (bpe->merge[i].rank != UINT32_MAX &&
           (bpe->merge[i].left != left || bpe->merge[i].right != right))
        i = (i + 1) & (bpe->n_merge_slot - 1);
    return &bpe->merge[i];
}

enum status bpe_reserve_merges(struct bpe *bpe, uint64_t n) {
    if (n >= UINT32_MAX) FAIL(ERR_INPUT, "%llu merges are too many", (unsigned long long)n);
    bpe->n_merge_slot = table_size(n);
    bpe->merge = malloc(bpe->n_merge_slot * sizeof(*bpe->merge));
    if (!bpe->merge) FAIL(ERR_MEMORY, "no memory for %llu merges", (unsigned long long)n);
    memset(bpe->merge, 0xFF, bpe->n_merge_slot * sizeof(*bpe->merge));
    return OK;
}

void bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t merged) {
    struct bpe_merge *merge = find_merge(bpe, left, right);
    if (merge->rank == UINT32_MAX) bpe->n_merge++;
    *merge = (struct bpe_merge){.left = left, .right = right, .merged = merged, .rank = rank};
}

const struct bpe_merge *bpe_find_merge(const struct bpe *bpe, int32_t left, int32_t right) {
    if (bpe->n_merge == 0) return NULL;
    const struct bpe_merge *merge = find_merge(bpe, left, right);
    return merge->rank == UINT32_MAX ? NULL : merge;
}

struct scored {
    float score;
    int32_t id;
};

static int by_score(const void *a, const void *b) {
    const struct scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

// Calls bpe_add_merge for each way to cut piece `id` in two pieces; counts only when rank is
// UINT32_MAX.
static uint64_t add_cuts(struct bpe *bpe, int32_t id, uint32_t rank) {
    uint64_t n = 0;
    const char *data = bpe->text + bpe->piece[id].begin;
    for (size_t cut = 1; cut < bpe->piece[id].bytes; cut++) {
        if (((unsigned char)data[cut] & 0xC0) == 0x80) continue; // between characters only
        int32_t left = bpe_find(bpe, data, cut);
        int32_t right = left < 0 ? -1 : bpe_find(bpe, data + cut, bpe->piece[id].bytes - cut);
        if (right < 0) continue;
        n++;
        if (rank != UINT32_MAX) bpe_add_merge(bpe, left, right, rank, id);
    }
    return n;
}

enum status bpe_merges_from_scores(struct bpe *bpe, const float *score) {
    struct scored *order = malloc(((size_t)bpe->n_token + 1) * sizeof(*order));
    if (!order) FAIL(ERR_MEMORY, "no memory to order %lld pieces", (long long)bpe->n_token);
    uint64_t n_merge = 0, n = 0;
    for (int64_t id = 0; id < bpe->n_token; id++) {
        size_t bytes = bpe->piece[id].bytes;
        if (!bpe->piece[id].findable || bytes == 0 || bytes > MAX_SCORED_PIECE) continue;
        order[n++] = (struct scored){.score = score[id], .id = (int32_t)id};
        n_merge += add_cuts(bpe, (int32_t)id, UINT32_MAX);
    }
    qsort(order, n, sizeof(*order), by_score);
    enum status status = bpe_reserve_merges(bpe, n_merge);
    uint32_t rank = 0;
    for (uint64_t i = 0; status == OK && i < n; i++) {
        if (i > 0 && order[i].score != order[i - 1].score) rank = (uint32_t)i;
        add_cuts(bpe, order[i].id, rank);
    }
    free(order);
    return status;
}
