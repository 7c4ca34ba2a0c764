// Lists of candidates on every backend: merging, filtering by threshold, and the rows of a block
// that candidates name, against their definitions.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/sparse.h"
#include "tests/common/backends.h"
#include "tests/common/cases.h"

static int best_first(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

enum order { RANDOM, RISING, FALLING, EQUAL_SCORES };
struct list_case {
    int64_t n_query;
    int k;
    int32_t n_own, n_other; // of each query, less its index modulo 3 where there are so many
    enum order order;
};
static const struct list_case list_cases[] = {
    {0, 8, 0, 0, RANDOM},           {1, 1, 0, 0, RANDOM},
    {1, 1, 1, 1, RANDOM},           {3, 8, 0, 8, RANDOM},
    {3, 8, 8, 0, RANDOM},           {5, 8, 4, 4, RANDOM},
    {5, 8, 3, 3, EQUAL_SCORES},     {700, 33, 33, 33, RANDOM},
    {700, 33, 20, 17, RANDOM},      {3, 2048, 2048, 2048, RANDOM},
    {2, 2048, 2048, 2048, RISING},  {2, 2048, 2048, 2048, FALLING},
    {17, 2048, 2047, 2048, RANDOM}, {2, 2048, 2048, 2048, EQUAL_SCORES},
    {2, 5000, 4990, 4000, RANDOM},
};
#define N_LIST_CASE (int)(sizeof list_cases / sizeof *list_cases)

static int32_t list_length(int32_t n, int64_t t) {
    int32_t less = (int32_t)(t % 3);
    return n > less ? n - less : n;
}

// The i-th candidate of a query; positions are distinct, scores of either sign and often equal.
static uint64_t list_candidate(const struct list_case *c, int64_t t, int64_t i) {
    float score = (float)(random_bits((uint64_t)t, (uint64_t)i) % 200) - 100;
    if (c->order == RISING) score = (float)i;
    if (c->order == FALLING) score = -(float)i;
    if (c->order == EQUAL_SCORES) score = i % 2 ? 0.0f : -0.0f;
    return candidate_make(score, 1000000 - i * 7 % 65536); // 7 and 65536 have no common divisor
}

struct lists {
    uint64_t *own, *other, *threshold;
    int32_t *n_own, *n_other;
};

static struct lists lists_open(const struct list_case *c) {
    int64_t n = c->n_query * c->k;
    struct lists l = {test_alloc(n * 8), test_alloc(n * 8), test_alloc(c->n_query * 8),
                      test_alloc(c->n_query * 4), test_alloc(c->n_query * 4)};
    poison(l.own, n * 8);
    poison(l.other, n * 8);
    poison(l.threshold, c->n_query * 8);
    for (int64_t t = 0; t < c->n_query; t++) {
        l.n_own[t] = list_length(c->n_own, t);
        l.n_other[t] = list_length(c->n_other, t + 1);
        for (int64_t i = 0; i < l.n_own[t]; i++) l.own[t * c->k + i] = list_candidate(c, t, i);
        for (int64_t i = 0; i < l.n_other[t]; i++)
            l.other[t * c->k + i] = list_candidate(c, t, i + c->k);
    }
    return l;
}

static void lists_close(struct lists *l) {
    free(l->own), free(l->other), free(l->threshold), free(l->n_own), free(l->n_other);
}

// Both lists of a query sorted, best first; returns how many the merge keeps.
static int32_t merged(const struct list_case *c, const struct lists *l, int64_t t, bool with_other,
                      uint64_t *out) {
    int32_t n = l->n_own[t];
    memcpy(out, l->own + t * c->k, (size_t)n * sizeof *out);
    for (int32_t i = 0; with_other && i < l->n_other[t]; i++) out[n++] = l->other[t * c->k + i];
    qsort(out, (size_t)n, sizeof *out, best_first);
    return n < c->k ? n : c->k;
}

static void assert_same_set(uint64_t *got, const uint64_t *expected, int32_t n) {
    qsort(got, (size_t)n, sizeof *got, best_first);
    for (int32_t i = 0; i < n; i++) assert_true(got[i] == expected[i]);
}

static void check_merge(struct backend *backend, const struct list_case *c, bool with_other,
                        bool with_threshold) {
    struct lists l = lists_open(c), before = lists_open(c);
    struct index_merge_args args = {.n_query = c->n_query,
                                    .k = c->k,
                                    .merge = true,
                                    .candidate = l.own,
                                    .n_candidate = l.n_own,
                                    .n_list = with_other,
                                    .other = with_other ? l.other : NULL,
                                    .n_other = with_other ? l.n_other : NULL,
                                    .threshold = with_threshold ? l.threshold : NULL};
    assert_int_equal(backend->ops->index_merge(backend, &args), OK);
    uint64_t *expected = test_alloc(2 * (int64_t)c->k * 8);
    for (int64_t t = 0; t < c->n_query; t++) {
        int32_t n = merged(c, &before, t, with_other, expected);
        assert_int_equal(l.n_own[t], n);
        assert_same_set(l.own + t * c->k, expected, n);
        if (with_threshold) assert_true(l.threshold[t] == (n == c->k ? expected[n - 1] : 0));
    }
    assert_memory_equal(l.other, before.other, (size_t)(c->n_query * c->k) * 8);
    free(expected);
    lists_close(&before);
    lists_close(&l);
}

static void test_merge(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKEND; b++)
        for (int i = 0; i < N_LIST_CASE; i++)
            for (int form = 0; form < 4; form++)
                check_merge(&backends[b], &list_cases[i], form & 1, form & 2);
}

// Several lists at once, written or joined to another: the best of all. The first are the own list
// and the other, the rest are drawn alike.
static void check_many(struct backend *backend, const struct list_case *c, bool merge) {
    enum { N_LIST = 5 };
    struct lists l = lists_open(c);
    int64_t n = c->n_query * c->k;
    uint64_t *list = test_alloc(N_LIST * n * 8), *all = test_alloc(N_LIST * (int64_t)c->k * 8);
    uint64_t *got = test_alloc(n * 8);
    int32_t *n_list = test_alloc(N_LIST * c->n_query * 4), *n_got = test_alloc(c->n_query * 4);
    poison(list, N_LIST * n * 8);
    poison(got, n * 8);
    poison(n_got, c->n_query * 4);
    for (int i = 0; i < N_LIST; i++)
        for (int64_t t = 0; t < c->n_query; t++) {
            int32_t length = n_list[i * c->n_query + t] = list_length(c->n_own, t + i);
            for (int32_t j = 0; j < length; j++)
                list[i * n + t * c->k + j] = list_candidate(c, t, j + i * c->k);
        }
    if (merge) memcpy(got, list, (size_t)n * 8);
    if (merge) memcpy(n_got, n_list, (size_t)c->n_query * 4);
    struct index_merge_args args = {.n_query = c->n_query,
                                    .k = c->k,
                                    .merge = merge,
                                    .candidate = got,
                                    .n_candidate = n_got,
                                    .n_list = N_LIST - merge,
                                    .other = list + merge * n,
                                    .n_other = n_list + merge * c->n_query,
                                    .threshold = l.threshold};
    assert_int_equal(backend->ops->index_merge(backend, &args), OK);
    for (int64_t t = 0; t < c->n_query; t++) {
        int32_t n_all = 0;
        for (int i = 0; i < N_LIST; i++)
            for (int32_t j = 0; j < n_list[i * c->n_query + t]; j++)
                all[n_all++] = list[i * n + t * c->k + j];
        qsort(all, (size_t)n_all, sizeof *all, best_first);
        if (n_all > c->k) n_all = c->k;
        assert_int_equal(n_got[t], n_all);
        assert_same_set(got + t * c->k, all, n_all);
        assert_true(l.threshold[t] == (n_all == c->k ? all[n_all - 1] : 0));
    }
    free(list), free(all), free(got), free(n_list), free(n_got);
    lists_close(&l);
}

static void test_merge_many(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKEND; b++)
        for (int i = 0; i < 2 * N_LIST_CASE; i++)
            check_many(&backends[b], &list_cases[i / 2], i % 2);
}

// Two ranks' lists, merged and filtered by the merge's threshold, hold the merged set between them.
static void test_filter(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKEND; b++)
        for (int i = 0; i < N_LIST_CASE; i++) {
            const struct list_case *c = &list_cases[i];
            struct lists l = lists_open(c), all = lists_open(c);
            struct index_merge_args merge = {
                .n_query = c->n_query,
                .k = c->k,
                .merge = true,
                .candidate = all.own,
                .n_candidate = all.n_own,
                .n_list = 1,
                .other = all.other,
                .n_other = all.n_other,
                .threshold = all.threshold,
            };
            assert_int_equal(backends[b].ops->index_merge(&backends[b], &merge), OK);
            struct index_filter_args own = {c->n_query, c->k, l.own, l.n_own, all.threshold};
            struct index_filter_args other = {c->n_query, c->k, l.other, l.n_other, all.threshold};
            assert_int_equal(backends[b].ops->index_filter(&backends[b], &own), OK);
            assert_int_equal(backends[b].ops->index_filter(&backends[b], &other), OK);
            uint64_t *both = test_alloc(2 * (int64_t)c->k * 8);
            for (int64_t t = 0; t < c->n_query; t++) {
                qsort(all.own + t * c->k, (size_t)all.n_own[t], sizeof *all.own, best_first);
                assert_int_equal(l.n_own[t] + l.n_other[t], all.n_own[t]);
                merged(c, &l, t, true, both);
                assert_memory_equal(both, all.own + t * c->k, (size_t)all.n_own[t] * 8);
            }
            free(both);
            lists_close(&all);
            lists_close(&l);
        }
}

// A threshold that is nobody's: the candidates above it stay, an equal one too.
static void test_filter_threshold(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKEND; b++) {
        uint64_t candidate[] = {candidate_make(1, 5), candidate_make(2, 9), candidate_make(-1, 2),
                                candidate_make(1, 4), candidate_make(3, 1), candidate_make(1, 6)};
        int32_t n_candidate[] = {3, 3};
        const uint64_t threshold[] = {candidate_make(1, 5), UINT64_MAX};
        struct index_filter_args args = {2, 3, candidate, n_candidate, threshold};
        assert_int_equal(backends[b].ops->index_filter(&backends[b], &args), OK);
        assert_int_equal(n_candidate[0], 2);
        assert_int_equal(n_candidate[1], 0);
        const uint64_t expected[] = {candidate_make(2, 9), candidate_make(1, 5)};
        assert_same_set(candidate, expected, 2);
    }
}

struct rows_case {
    const char *name;
    struct key_run run[4];
    int n_run;
    int64_t n_row;
};
static const struct rows_case rows_cases[] = {
    {"no runs", {{0}}, 0, 0},
    {"one row", {{40, 1, 1, 0}}, 1, 1},
    {"whole", {{0, 1, 400, 0}}, 1, 400},
    {"a part", {{100, 1, 65, 3}}, 1, 70},
    {"every third", {{7, 3, 100, 0}}, 1, 100},
    {"zigzag and decode", {{32, 1, 40, 0}, {150, 1, 41, 40}, {300, 4, 20, 81}}, 3, 101},
    {"rows in another order",
     {{0, 1, 10, 90}, {10, 5, 10, 40}, {60, 1, 30, 0}, {399, 1, 1, 35}},
     4,
     100},
};
#define N_ROWS_CASE (int)(sizeof rows_cases / sizeof *rows_cases)

static void check_select_rows(struct backend *backend, const struct rows_case *c, int64_t n_query) {
    enum { N_POSITION = 420, K = 200 };
    int64_t row_of[N_POSITION];
    for (int i = 0; i < N_POSITION; i++) row_of[i] = -1;
    for (int i = 0; i < c->n_run; i++)
        for (int64_t j = 0; j < c->run[i].count; j++)
            row_of[c->run[i].start + j * c->run[i].stride] = c->run[i].first_row + j;
    uint64_t *candidate = test_alloc(n_query * K * 8);
    int32_t *n_candidate = test_alloc(n_query * 4), *n_selected = test_alloc(n_query * 4);
    int32_t *row = test_alloc(n_query * K * 4);
    poison(n_selected, n_query * 4);
    poison(row, n_query * K * 4);
    for (int64_t t = 0; t < n_query; t++) { // 0, 1, K - 1, K, K - 1, ..
        n_candidate[t] = (int32_t)(t < 2 ? t : K - 1 + t % 2);
        for (int64_t i = 0; i < n_candidate[t]; i++)
            candidate[t * K + i] = candidate_make((float)(i % 3), (t * 13 + i * 19) % N_POSITION);
    }
    struct select_rows_args args = {n_query,  K,        candidate, n_candidate, c->run,
                                    c->n_run, c->n_row, row,       n_selected};
    assert_int_equal(backend->ops->select_rows(backend, &args), OK);
    for (int64_t t = 0; t < n_query; t++) {
        bool selected[N_POSITION] = {false};
        int32_t n = 0;
        for (int64_t i = 0; i < n_candidate[t]; i++) {
            int64_t at = row_of[candidate_position(candidate[t * K + i])];
            if (at >= 0) selected[at] = true;
        }
        for (int i = 0; i < N_POSITION; i++)
            if (selected[i] && (n >= n_selected[t] || row[t * K + n++] != i))
                fail_msg("%s: query %d misses row %d", c->name, (int)t, i);
        assert_int_equal(n_selected[t], n);
    }
    free(row), free(n_selected), free(n_candidate), free(candidate);
}

static void test_select_rows(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKEND; b++)
        for (int i = 0; i < N_ROWS_CASE; i++) {
            check_select_rows(&backends[b], &rows_cases[i], 0);
            check_select_rows(&backends[b], &rows_cases[i], 4);
            check_select_rows(&backends[b], &rows_cases[i], 150);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge),       cmocka_unit_test(test_merge_many),
        cmocka_unit_test(test_filter),      cmocka_unit_test(test_filter_threshold),
        cmocka_unit_test(test_select_rows),
    };
    return cmocka_run_group_tests_name("candidates", tests, open_backends, close_backends);
}
