// What queries see, and what ranks need of each other, against counting every pair.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/visibility.h"

enum { MAX_LENGTH = 200, MAX_SPANS = 64 };
static const enum layout layouts[] = {LAYOUT_ZIGZAG, LAYOUT_CONTIGUOUS, LAYOUT_ROUND_ROBIN};

static const int64_t documents[] = {1, 2, 30, 31, 77};
static const struct visibility cases[] = {
    {.back = VISIBLE_ALL},
    {.back = VISIBLE_ALL, .ahead = VISIBLE_ALL},
    {.back = 0},
    {.back = 6},
    {.back = 40},
    {.back = 1000},
    {.back = 5, .ahead = 5},
    {.back = 40, .ahead = 3},
    {.back = 12, .ahead = VISIBLE_ALL},
    {.back = VISIBLE_ALL, .ahead = -9},
    {.back = 30, .ahead = -9},
    {.back = 30, .ahead = -9, .sinks = 12},
    {.back = 6, .sinks = 1},
    {.back = 12, .sinks = 40},
    {.back = VISIBLE_ALL, .sinks = 4},
    {.back = 20, .ahead = -21, .sinks = 6},
    {.block = 24},
    {.block = 24, .back = 1, .ahead = -1},
    {.block = 24, .back = VISIBLE_ALL, .ahead = -2},
    {.block = 7, .back = 2, .ahead = 0},
    {.block = 1, .back = 3, .ahead = -1},
    {.back = VISIBLE_ALL, .n_document = 5, .document_end = documents},
    {.back = VISIBLE_ALL, .ahead = VISIBLE_ALL, .n_document = 5, .document_end = documents},
    {.back = 7, .n_document = 5, .document_end = documents},
    {.back = 4, .ahead = 4, .n_document = 5, .document_end = documents},
    {.back = 4, .ahead = 4, .n_document = 1, .document_end = documents + 3},
};
enum { N_CASE = sizeof cases / sizeof *cases };

static int document_of(const struct visibility *v, int64_t position) {
    int d = 0;
    while (d < v->n_document && v->document_end[d] <= position) d++;
    return d;
}

static bool sees(const struct visibility *v, int64_t query, int64_t key) {
    if (v->block) {
        int64_t behind = query / v->block - key / v->block;
        return key <= query && behind <= v->back && behind >= -v->ahead;
    }
    if (v->n_document && document_of(v, query) != document_of(v, key)) return false;
    if (v->ahead != VISIBLE_ALL && key > query + v->ahead) return false;
    if (v->back == VISIBLE_ALL || key >= query - v->back) return true;
    return v->n_document == 0 && key < v->sinks;
}

static void bounds_follow_the_definition(void **state) {
    (void)state;
    for (int c = 0; c < N_CASE; c++) {
        const struct visibility *v = &cases[c];
        int64_t sinks = v->n_document ? 0 : v->sinks, position[MAX_LENGTH];
        int64_t begin[MAX_LENGTH], end[MAX_LENGTH];
        for (int64_t q = 0; q < MAX_LENGTH; q++) position[q] = q;
        visibility_bounds(v, position, MAX_LENGTH, begin, NULL);
        visibility_bounds(v, position, MAX_LENGTH, NULL, end);
        for (int64_t q = 0; q < MAX_LENGTH; q++) {
            struct span keys = visibility_keys(v, q);
            if (q) assert_true(begin[q] >= begin[q - 1] && end[q] >= end[q - 1]);
            for (int64_t k = 0; k < MAX_LENGTH; k++) {
                bool bounded = (k >= begin[q] || k < sinks) && k < end[q];
                assert_int_equal(bounded, sees(v, q, k));
                bool window = k >= keys.start && k - keys.start < keys.length;
                assert_int_equal(window || (k < sinks && k < end[q]), sees(v, q, k));
            }
        }
        bool unbounded = begin[MAX_LENGTH - 1] == 0 && v->back > MAX_LENGTH;
        assert_true(visibility_bounds_begin(v) || unbounded);
        assert_true(visibility_bounds_end(v) || end[0] == VISIBLE_ALL);
    }
}

// Chunks, decode appends, truncations: the mixture that a session goes through.
static void build_mixture(struct sequence *s, int size, unsigned seed) {
    sequence_open(s, size);
    for (int step = 0; step < 5; step++) {
        seed = seed * 1103515245u + 12345u;
        enum layout layout = layouts[(seed >> 16) % 3];
        assert_true(sequence_append(s, layout, (seed >> 20) % 40));
        if ((seed >> 8) % 3 == 0) sequence_truncate(s, s->length - (seed >> 12) % 23);
    }
}

static bool in_spans(const struct span *spans, int n, int64_t position) {
    for (int i = 0; i < n; i++)
        if (position >= spans[i].start && position - spans[i].start < spans[i].length) return true;
    return false;
}

static bool is_held(const struct visible_range *r, int64_t position) {
    const struct visibility *v = &r->visibility;
    bool sink = v->n_document == 0 && v->back != VISIBLE_ALL && position < v->sinks;
    return position < visible_key_end(r) && (sink || position >= r->key_begin);
}

// Whether every query of the range has an own run: then what a rank needs is exact.
static bool is_contiguous(const struct sequence *s) {
    for (int e = 0; e < s->n_extent; e++)
        if (s->extents[e].layout == LAYOUT_ROUND_ROBIN) return s->size == 1;
    return true;
}

static void check_rank(const struct visible_range *r, const int *owner, int rank) {
    const struct visibility *v = &r->visibility;
    struct span spans[MAX_SPANS];
    assert_true(visible_max_spans(r) <= MAX_SPANS);
    int n_span = visible_spans(r, rank, spans);
    for (int i = 1; i < n_span; i++)
        assert_true(spans[i].start > spans[i - 1].start + spans[i - 1].length);
    bool exact = v->ahead >= 0 && is_contiguous(r->sequence);
    bool needed[MAX_LENGTH];
    for (int64_t k = 0; k < visible_key_end(r); k++) {
        needed[k] = false;
        for (int64_t q = r->query_begin; q < r->query_end; q++)
            needed[k] |= owner[q] == rank && sees(v, q, k);
        if (needed[k]) assert_true(in_spans(spans, n_span, k) && is_held(r, k));
        if (exact) assert_int_equal(in_spans(spans, n_span, k), needed[k]);
    }
    for (int holder = 0; holder < r->sequence->size; holder++) {
        int64_t pairs = 0, held = 0, wanted = 0;
        for (int64_t k = 0; k < visible_key_end(r); k++) {
            if (owner[k] != holder) continue;
            assert_int_equal(visible_held_before(r, holder, k), held);
            held += is_held(r, k);
            wanted += in_spans(spans, n_span, k) && is_held(r, k);
            for (int64_t q = r->query_begin; q < r->query_end; q++)
                pairs += owner[q] == rank && sees(v, q, k);
        }
        assert_int_equal(visible_pairs(r, rank, holder), pairs);
        assert_int_equal(visible_held(r, holder), held);
        assert_int_equal(visible_in_spans(r, holder, spans, n_span), wanted);
    }
}

static void pairs_and_needs_match_counting(void **state) {
    (void)state;
    for (int size = 1; size <= 5; size++)
        for (unsigned seed = 0; seed < 8; seed++) {
            struct sequence s;
            build_mixture(&s, size, seed * 7919u + 13u);
            int owner[MAX_LENGTH];
            for (int64_t p = 0; p < s.length; p++) owner[p] = sequence_owner(&s, p, NULL);
            int64_t n = s.length, ranges[][2] = {{0, n}, {n / 3, n}, {n / 4, n - n / 3}, {n, n}};
            for (int i = 0; i < 4 * N_CASE; i++) {
                struct visible_range r = {.sequence = &s,
                                          .visibility = cases[i / 4],
                                          .query_begin = ranges[i % 4][0],
                                          .query_end = ranges[i % 4][1]};
                for (int rank = 0; rank < size; rank++) check_rank(&r, owner, rank);
                r.key_begin = visibility_begin(&r.visibility, r.query_begin);
                assert_true(visible_is_held(&r));
                for (int rank = 0; rank < size; rank++) check_rank(&r, owner, rank);
                r.key_end = n;
                for (int rank = 0; rank < size; rank++) check_rank(&r, owner, rank);
                r.key_begin++;
                assert_true(!visible_is_held(&r) || r.query_begin == r.query_end);
            }
            sequence_close(&s);
        }
}

// A million tokens on eight ranks: a causal window of 4096 needs so many rows before each piece.
static void needs_are_halos(void **state) {
    (void)state;
    struct sequence s;
    sequence_open(&s, 8);
    assert_true(sequence_append(&s, LAYOUT_CONTIGUOUS, 1 << 20));
    struct visible_range r = {.sequence = &s, .visibility = {.back = 4095}, .query_end = 1 << 20};
    for (int rank = 0; rank < 8; rank++) {
        struct span spans[MAX_SPANS];
        int n = visible_spans(&r, rank, spans);
        for (int holder = 0; holder < 8; holder++) {
            int64_t rows = holder == rank ? 1 << 17 : holder == rank - 1 ? 4095 : 0;
            assert_int_equal(visible_in_spans(&r, holder, spans, n), rows);
        }
    }
    sequence_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounds_follow_the_definition),
        cmocka_unit_test(pairs_and_needs_match_counting),
        cmocka_unit_test(needs_are_halos),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
