#include "model/unigram.h"

#include <stdlib.h>
#include <string.h>

#include "model/unicode.h"

enum { UNKNOWN_PENALTY = 10 }; // below the worst score: SentencePiece's kUnkPenalty

// Of equal pieces the last named comes first.
static int compare_pieces(const void *a, const void *b, void *user) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    size_t n_x, n_y;
    const char *text_x = bpe_piece_data(user, x, &n_x), *text_y = bpe_piece_data(user, y, &n_y);
    int order = memcmp(text_x, text_y, n_x < n_y ? n_x : n_y);
    if (order == 0) order = (n_x > n_y) - (n_x < n_y);
    return order ? order : (x < y) - (x > y);
}

enum status unigram_open(struct unigram *unigram, const struct bpe *vocabulary, double *score,
                         int64_t n) {
    *unigram = (struct unigram){.score = score, .n = n, .unknown_score = score[0]};
    unigram->order = malloc((size_t)n * sizeof(*unigram->order));
    if (!unigram->order) FAIL(ERR_MEMORY, "no memory for a vocabulary of %lld", (long long)n);
    for (int64_t id = 0; id < n; id++) {
        unigram->order[id] = (int32_t)id;
        if (score[id] < unigram->unknown_score) unigram->unknown_score = score[id];
    }
    unigram->unknown_score -= UNKNOWN_PENALTY;
    qsort_r(unigram->order, (size_t)n, sizeof(*unigram->order), compare_pieces, (void *)vocabulary);
    return OK;
}

void unigram_close(struct unigram *unigram) {
    free(unigram->score);
    free(unigram->order);
    *unigram = (struct unigram){0};
}

// The best way to cut the text up to some byte.
struct node {
    double score;
    int64_t from; // where its last piece begins; -1: no way yet
    int32_t id;
};

static void reach(struct node *nodes, size_t from, size_t to, int32_t id, double score) {
    double candidate = nodes[from].score + score;
    if (nodes[to].from >= 0 && candidate <= nodes[to].score) return;
    nodes[to] = (struct node){.score = candidate, .from = (int64_t)from, .id = id};
}

// Of the pieces order[lo, hi), which share `depth` bytes, those that go on with `c`.
static void narrow(const struct bpe *vocabulary, const struct unigram *u, int64_t *lo, int64_t *hi,
                   size_t depth, unsigned char c) {
    int64_t bound[2];
    for (int upper = 0; upper < 2; upper++) {
        int64_t a = *lo, b = *hi;
        while (a < b) {
            int64_t middle = a + (b - a) / 2;
            size_t n;
            const char *piece = bpe_piece_data(vocabulary, u->order[middle], &n);
            int at = n > depth ? (unsigned char)piece[depth] : -1;
            if (at < c || (upper && at == c))
                a = middle + 1;
            else
                b = middle;
        }
        bound[upper] = a;
    }
    *lo = bound[0];
    *hi = bound[1];
}

// Tries every piece that begins at `begin`, and the unknown one where no piece is its character.
static void extend(const struct bpe *vocabulary, const struct unigram *u, const char *data,
                   size_t bytes, size_t begin, struct node *nodes) {
    size_t character = unicode_length(data[begin]);
    int64_t lo = 0, hi = u->n;
    bool single = false;
    for (size_t depth = 0; begin + depth < bytes; depth++) {
        size_t n;
        narrow(vocabulary, u, &lo, &hi, depth, (unsigned char)data[begin + depth]);
        if (lo == hi) break;
        bpe_piece_data(vocabulary, u->order[lo], &n); // the shortest comes first
        if (n != depth + 1) continue;
        reach(nodes, begin, begin + n, u->order[lo], u->score[u->order[lo]]);
        single |= n == character;
    }
    if (!single) reach(nodes, begin, begin + character, vocabulary->unknown, u->unknown_score);
}

static void add_unknown(const struct bpe *vocabulary, const char *data, size_t begin, size_t end,
                        struct bpe_work *work) {
    int32_t id = bpe_find(vocabulary, data + begin, end - begin);
    bool fallback = id < 0 && vocabulary->byte_fallback;
    for (size_t i = begin; fallback && i < end; i++)
        fallback = vocabulary->byte_token[(unsigned char)data[i]] >= 0;
    if (!fallback) bpe_work_add(work, id >= 0 ? id : vocabulary->unknown, begin, end);
    for (size_t i = begin; fallback && i < end; i++)
        bpe_work_add(work, vocabulary->byte_token[(unsigned char)data[i]], i, i + 1);
}

// The best way, from the front: turns `from` around into where the next piece begins.
static void list_pieces(const struct bpe *vocabulary, const char *data, size_t bytes,
                        struct node *nodes, struct bpe_work *work) {
    size_t next = bytes, at = bytes;
    while (at > 0) {
        size_t before = (size_t)nodes[at].from;
        nodes[at].from = (int64_t)next;
        next = at;
        at = before;
    }
    work->n = 0;
    for (size_t begin = 0, end = next; begin < bytes;) {
        size_t after = (size_t)nodes[end].from;
        bool unknown = nodes[end].id == vocabulary->unknown;
        if (unknown && end < bytes && nodes[after].id == vocabulary->unknown) {
            end = after; // one with what follows
            continue;
        }
        if (unknown)
            add_unknown(vocabulary, data, begin, end, work);
        else
            bpe_work_add(work, nodes[end].id, begin, end);
        begin = end;
        end = after;
    }
}

enum status unigram_encode(const struct bpe *vocabulary, const struct unigram *unigram,
                           const char *data, size_t bytes, struct bpe_work *work) {
    TRY(bpe_work_reserve(work, bytes));
    struct node *nodes = malloc((bytes + 1) * sizeof(*nodes));
    if (!nodes) FAIL(ERR_MEMORY, "no memory to tokenise a run of %zu bytes", bytes);
    for (size_t i = 0; i <= bytes; i++) nodes[i] = (struct node){.from = i ? -1 : 0};
    for (size_t i = 0; i < bytes; i += unicode_length(data[i]))
        extend(vocabulary, unigram, data, bytes, i, nodes);
    list_pieces(vocabulary, data, bytes, nodes, work);
    free(nodes);
    return OK;
}
