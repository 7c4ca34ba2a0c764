// The lightning indexer on every backend: the best k keys of each query against the definition, on
// scores built from small integers, exact in fp32 and often equal; and on random ones the same
// candidates, bit for bit, however the keys, the queries and the threads are divided.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/cpu/cpu.h"
#include "kernels/fp8.h"
#include "tests/common/backends.h"
#include "tests/common/cases.h"

enum content { EXACT, ALL_EQUAL, ALL_ZERO, NEGATIVE, MINUS_INFINITY, FP8_CODES, NORMAL };
enum { QUERY_SEED = 1, KEY_SEED, WEIGHT_SEED, SCALE_SEED };
struct index_case {
    const char *name;
    int64_t n_query, n_key;
    int n_head, head_dim, k;
    enum dtype dtype;
    enum content content;
    int64_t first_query; // position of query 0
    int64_t key_stride;  // keys are at 0, key_stride, ...; 0: at 0, 1, ..., the scales are NULL
};

static const struct index_case exact_cases[] = {
    {"one key", 1, 1, 4, 64, 8, DTYPE_F32, EXACT, 0, 1},
    {"no key", 3, 0, 4, 64, 8, DTYPE_F32, EXACT, 0, 1},
    {"no query", 0, 30, 4, 64, 8, DTYPE_BF16, EXACT, 0, 1},
    {"no visible key", 2, 3, 2, 64, 2, DTYPE_F32, EXACT, -9, 1},
    {"fewer keys than k", 3, 40, 4, 64, 64, DTYPE_F32, EXACT, 37, 1},
    {"k = 1", 5, 300, 4, 64, 1, DTYPE_F32, EXACT, 200, 1},
    {"all equal", 4, 500, 4, 64, 100, DTYPE_F32, ALL_EQUAL, 480, 1},
    {"all zero", 4, 500, 4, 64, 100, DTYPE_F32, ALL_ZERO, 480, 1},
    {"all zero, many", 1, 5000, 3, 64, 700, DTYPE_F8_E4M3, ALL_ZERO, 4999, 1},
    {"negative weights", 7, 401, 3, 64, 50, DTYPE_F32, NEGATIVE, 397, 1},
    {"all -inf", 2, 90, 2, 64, 7, DTYPE_F32, MINUS_INFINITY, 88, 1},
    {"bf16", 9, 613, 8, 128, 64, DTYPE_BF16, EXACT, 601, 1},
    {"fp8", 9, 613, 8, 128, 64, DTYPE_F8_E4M3, EXACT, 601, 1},
    {"positions with gaps", 60, 500, 5, 64, 31, DTYPE_F8_E4M3, EXACT, 1300, 3},
    {"without scales", 5, 333, 6, 64, 40, DTYPE_BF16, EXACT, 300, 0},
    {"ragged heads, fp32", 3, 207, 13, 20, 30, DTYPE_F32, EXACT, 200, 1},
    {"ragged heads, bf16", 3, 207, 13, 20, 30, DTYPE_BF16, EXACT, 200, 1},
    {"one head of one element", 3, 207, 1, 1, 30, DTYPE_F8_E4M3, EXACT, 200, 1},
    {"64 heads", 17, 151, 64, 128, 20, DTYPE_BF16, EXACT, 130, 1},
    {"32 heads", 17, 151, 32, 64, 20, DTYPE_F8_E4M3, EXACT, 130, 1},
    {"64 heads of 64, bf16", 5, 151, 64, 64, 20, DTYPE_BF16, EXACT, 145, 1},
    {"64 heads of 64, fp8", 5, 151, 64, 64, 20, DTYPE_F8_E4M3, EXACT, 145, 1},
    {"32 heads of 128, bf16", 5, 151, 32, 128, 20, DTYPE_BF16, EXACT, 145, 1},
    {"32 heads of 128, fp8", 5, 151, 32, 128, 20, DTYPE_F8_E4M3, EXACT, 145, 1},
    {"32 heads of 64, bf16", 5, 151, 32, 64, 20, DTYPE_BF16, EXACT, 145, 1},
    {"8 heads of 32, bf16", 35, 300, 8, 32, 20, DTYPE_BF16, EXACT, 280, 1},
    {"8 heads of 32, fp8", 35, 300, 8, 32, 20, DTYPE_F8_E4M3, EXACT, 280, 1},
    {"8 heads of 64, bf16", 35, 300, 8, 64, 20, DTYPE_BF16, EXACT, 280, 1},
    {"8 heads of 64, fp8", 35, 300, 8, 64, 20, DTYPE_F8_E4M3, EXACT, 280, 1},
    {"16 heads of 96, bf16", 35, 300, 16, 96, 20, DTYPE_BF16, EXACT, 280, 1},
    {"16 heads of 96, fp8", 35, 300, 16, 96, 20, DTYPE_F8_E4M3, EXACT, 280, 1},
    {"1 head of 32, bf16", 261, 300, 1, 32, 20, DTYPE_BF16, EXACT, 50, 1},
    {"1 head of 128, all zero", 70, 300, 1, 128, 64, DTYPE_BF16, ALL_ZERO, 240, 1},
    {"2 heads of 64, negative", 70, 300, 2, 64, 20, DTYPE_BF16, NEGATIVE, 240, 0},
    {"3 heads of 96", 50, 300, 3, 96, 20, DTYPE_BF16, EXACT, 800, 3},
    {"4 heads of 64, all equal", 67, 300, 4, 64, 20, DTYPE_F8_E4M3, ALL_EQUAL, 240, 1},
    {"7 heads of 32", 30, 300, 7, 32, 150, DTYPE_F8_E4M3, EXACT, 270, 1},
    {"12 heads of 64", 19, 300, 12, 64, 20, DTYPE_F8_E4M3, EXACT, 270, 1},
    {"72 heads of 32", 5, 300, 72, 32, 20, DTYPE_BF16, EXACT, 290, 1},
    {"4 heads of 64, decode", 1, 9000, 4, 64, 2048, DTYPE_BF16, EXACT, 8999, 1},
    {"many long rows", 40, 9000, 1, 32, 50, DTYPE_BF16, EXACT, 8960, 1},
    {"many long rows, all equal", 40, 9000, 1, 32, 700, DTYPE_BF16, ALL_EQUAL, 8960, 1},
    {"rows of two long blocks, all equal", 25, 17200, 1, 32, 300, DTYPE_BF16, ALL_EQUAL, 17170, 1},
    {"k = 2048", 3, 5000, 2, 32, 2048, DTYPE_F8_E4M3, EXACT, 4998, 1},
    {"k = 3000", 2, 7000, 1, 16, 3000, DTYPE_F32, EXACT, 6998, 1},
    {"decode", 1, 5000, 64, 128, 2048, DTYPE_F8_E4M3, EXACT, 4999, 1},
    {"a long row", 1, 9001, 1, 16, 700, DTYPE_F32, EXACT, 9000, 1},
    {"long rows, uneven", 2, 9200, 3, 16, 2048, DTYPE_BF16, EXACT, 8600, 1},
    {"long rows, few seen", 3, 8200, 1, 16, 300, DTYPE_F32, EXACT, 250, 1},
    {"a long row, all equal", 1, 8300, 1, 16, 30, DTYPE_F32, ALL_EQUAL, 8299, 1},
    {"a long row, all -inf", 1, 8300, 1, 16, 8200, DTYPE_F32, MINUS_INFINITY, 8299, 1},
    {"a long row, fewer than k", 1, 8200, 1, 16, 9000, DTYPE_F32, EXACT, 8150, 1},
    {"all codes of fp8", 2, 256, 1, 40, 200, DTYPE_F8_E4M3, FP8_CODES, 255, 1},
};
#define N_EXACT_CASE (int)(sizeof exact_cases / sizeof *exact_cases)

static const struct index_case random_cases[] = {
    {"fp32", 23, 700, 4, 64, 100, DTYPE_F32, NORMAL, 650, 1},
    {"bf16", 23, 700, 4, 64, 100, DTYPE_BF16, NORMAL, 650, 1},
    {"fp8", 23, 700, 4, 64, 100, DTYPE_F8_E4M3, NORMAL, 650, 1},
    {"1 head of 128, fp8", 70, 331, 1, 128, 64, DTYPE_F8_E4M3, NORMAL, 270, 1},
    {"2 heads of 32, bf16", 70, 331, 2, 32, 64, DTYPE_BF16, NORMAL, 270, 1},
    {"8 heads of 64, fp8", 40, 331, 8, 64, 64, DTYPE_F8_E4M3, NORMAL, 300, 1},
    {"12 heads of 64, bf16", 20, 331, 12, 64, 64, DTYPE_BF16, NORMAL, 315, 1},
    {"many long rows", 40, 12000, 1, 32, 300, DTYPE_BF16, NORMAL, 11960, 1},
    {"64 heads of 128, fp8", 40, 331, 64, 128, 64, DTYPE_F8_E4M3, NORMAL, 300, 1},
    {"64 heads of 128, bf16", 9, 331, 64, 128, 64, DTYPE_BF16, NORMAL, 320, 1},
    {"32 heads of 64, fp8", 9, 331, 32, 64, 64, DTYPE_F8_E4M3, NORMAL, 320, 1},
    {"decode, fp8", 1, 5000, 64, 128, 2048, DTYPE_F8_E4M3, NORMAL, 4999, 1},
    {"decode, bf16", 1, 5000, 64, 128, 2048, DTYPE_BF16, NORMAL, 4999, 1},
    {"long rows", 2, 9500, 2, 32, 1000, DTYPE_F32, NORMAL, 9498, 1},
};
#define N_RANDOM_CASE (int)(sizeof random_cases / sizeof *random_cases)

struct index_data {
    float *query, *key, *weight, *scale; // as fp32, rounded to the case's format
    void *typed_query, *typed_key;
    int64_t *query_position, *key_position;
    double *score; // [n_query, n_key] by the definition; of keys that are not visible: not set
};

// Rounds x to the format, in place as well.
static void *typed(enum dtype dtype, float *x, int64_t n) {
    void *out = test_alloc(dtype_bytes(dtype, n));
    dtype_from_float(dtype, x, n, out);
    dtype_to_float(dtype, out, n, x);
    return out;
}

static float content_element(const struct index_case *c, uint64_t seed, int64_t i) {
    if (c->content == FP8_CODES) { // query 0 sees the positive keys, query 1 the negative ones
        int64_t row = i / c->head_dim;
        if (i % c->head_dim != row * 7 % c->head_dim && seed == KEY_SEED) return 0;
        if (seed == QUERY_SEED) return row % 2 ? -1 : 1;
        return (row & 0x7f) == 0x7f ? 0 : fp8_to_float((uint8_t)row); // not NaN
    }
    if (c->content == NORMAL) return random_normal(seed, (uint64_t)i) / sqrtf((float)c->head_dim);
    return (float)(random_bits(seed, (uint64_t)i) % 3) - 1;
}

static float content_weight(const struct index_case *c, int64_t i) {
    if (c->content == NORMAL)
        return random_normal(WEIGHT_SEED, (uint64_t)i) / sqrtf((float)c->n_head);
    if (c->content == MINUS_INFINITY) return -INFINITY;
    if (c->content == FP8_CODES) return 1;
    float weight = (float)(random_bits(WEIGHT_SEED, (uint64_t)i) % 9) / 4 - 1; // -1 .. 1
    return c->content == NEGATIVE ? -fabsf(weight) : weight;
}

static double definition(const struct index_case *c, const struct index_data *d, int64_t t,
                         int64_t s) {
    double score = 0;
    for (int h = 0; h < c->n_head; h++) {
        const float *query = d->query + (t * c->n_head + h) * c->head_dim;
        const float *key = d->key + s * c->head_dim;
        double dot = 0;
        for (int i = 0; i < c->head_dim; i++) dot += (double)query[i] * (double)key[i];
        if (dot > 0) score += (double)d->weight[t * c->n_head + h] * dot;
    }
    return score * (double)d->scale[s];
}

static int64_t count_visible(const struct index_case *c, const struct index_data *d, int64_t t) {
    int64_t n = 0;
    while (n < c->n_key && d->key_position[n] <= d->query_position[t]) n++;
    return n;
}

static struct index_data index_data_open(const struct index_case *c) {
    int64_t n_query = c->n_query * c->n_head * c->head_dim, n_key = c->n_key * c->head_dim;
    struct index_data d = {.query = test_alloc(n_query * 4),
                           .key = test_alloc(n_key * 4),
                           .weight = test_alloc(c->n_query * c->n_head * 4),
                           .scale = test_alloc(c->n_key * 4),
                           .query_position = test_alloc(c->n_query * 8),
                           .key_position = test_alloc(c->n_key * 8),
                           .score = test_alloc(c->n_query * c->n_key * 8)};
    for (int64_t i = 0; i < n_query; i++)
        d.query[i] = c->content == ALL_ZERO ? -1 : content_element(c, QUERY_SEED, i);
    for (int64_t i = 0; i < n_key; i++) {
        int64_t j = c->content == ALL_EQUAL ? i % c->head_dim : i;
        d.key[i] = c->content == ALL_ZERO ? 1 : content_element(c, KEY_SEED, j);
    }
    if (c->content == MINUS_INFINITY) { // every product positive: 0 * -inf would be NaN
        for (int64_t i = 0; i < c->n_query * c->n_head; i++) d.query[i * c->head_dim] = 99;
        for (int64_t i = 0; i < c->n_key; i++) d.key[i * c->head_dim] = 99;
    }
    for (int64_t i = 0; i < c->n_query * c->n_head; i++) d.weight[i] = content_weight(c, i);
    for (int64_t i = 0; i < c->n_key; i++) {
        bool one = c->content == ALL_EQUAL || c->key_stride == 0;
        d.scale[i] = one ? 1 : (float)(1 + random_bits(SCALE_SEED, (uint64_t)i) % 2);
        d.key_position[i] = i * (c->key_stride ? c->key_stride : 1);
    }
    for (int64_t i = 0; i < c->n_query; i++) d.query_position[i] = c->first_query + i;
    d.typed_query = typed(c->dtype, d.query, n_query);
    d.typed_key = typed(c->dtype, d.key, n_key);
    for (int64_t t = 0; t < c->n_query; t++)
        for (int64_t i = 0; i < count_visible(c, &d, t); i++)
            d.score[t * c->n_key + i] = definition(c, &d, t, i);
    return d;
}

static void index_data_close(struct index_data *d) {
    void *all[] = {d->query,          d->key,          d->weight,
                   d->scale,          d->typed_query,  d->typed_key,
                   d->query_position, d->key_position, d->score};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static int best_first(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

// A full sort: the best k visible keys of one query, best first.
static int64_t oracle(const struct index_case *c, const struct index_data *d, int64_t t,
                      uint64_t *out) {
    int64_t n = count_visible(c, d, t);
    for (int64_t s = 0; s < n; s++)
        out[s] = candidate_make((float)d->score[t * c->n_key + s], d->key_position[s]);
    qsort(out, (size_t)n, sizeof *out, best_first);
    return n < c->k ? n : c->k;
}

struct split {
    int64_t key_block, query_batch; // 0: all at once
    bool backwards;                 // the last keys first
};

struct selection {
    uint64_t *candidate;  // [n_query, k] best first
    int32_t *n_candidate; // [n_query]
};

// The positions of keys [keys[0], keys[1]), in runs that end at any place.
enum { MOST_RUNS = 3 };
static int list_runs(const struct index_case *c, const int64_t keys[2],
                     struct key_run run[MOST_RUNS]) {
    int64_t n = keys[1] - keys[0], stride = c->key_stride ? c->key_stride : 1;
    int n_run = n > MOST_RUNS ? MOST_RUNS : n > 0;
    for (int i = 0; i < n_run; i++) {
        int64_t first = i * n / n_run;
        run[i] = (struct key_run){.start = (keys[0] + first) * stride,
                                  .stride = stride,
                                  .count = (i + 1) * n / n_run - first,
                                  .first_row = first};
    }
    return n_run;
}

static enum status run_batch(struct backend *backend, const struct index_case *c,
                             const struct index_data *d, const int64_t keys[2],
                             const int64_t queries[2], struct selection *out) {
    int64_t first = queries[0];
    struct key_run run[MOST_RUNS];
    struct index_args args = {
        .n_query = queries[1] - first,
        .n_key = keys[1] - keys[0],
        .n_head = c->n_head,
        .head_dim = c->head_dim,
        .dtype = c->dtype,
        .query =
            (const char *)d->typed_query + dtype_bytes(c->dtype, first * c->n_head * c->head_dim),
        .weight = d->weight + first * c->n_head,
        .key = (const char *)d->typed_key + dtype_bytes(c->dtype, keys[0] * c->head_dim),
        .key_scale = c->key_stride ? d->scale + keys[0] : NULL,
        .query_position = d->query_position + first,
        .run = run,
        .n_run = list_runs(c, keys, run),
        .k = c->k,
        .candidate = out->candidate + first * c->k,
        .n_candidate = out->n_candidate + first,
    };
    return backend->ops->index_top_k(backend, &args);
}

static struct selection selection_open(const struct index_case *c) {
    struct selection s = {test_alloc(c->n_query * c->k * 8), test_alloc(c->n_query * 4)};
    poison(s.candidate, c->n_query * c->k * 8);
    memset(s.n_candidate, 0, (size_t)c->n_query * sizeof *s.n_candidate);
    return s;
}

static void selection_close(struct selection *s) {
    free(s->candidate);
    free(s->n_candidate);
}

static struct selection select_split(struct backend *backend, const struct index_case *c,
                                     const struct index_data *d, struct split split) {
    struct selection out = selection_open(c);
    int64_t block = split.key_block ? split.key_block : c->n_key + 1;
    int64_t batch = split.query_batch ? split.query_batch : c->n_query + 1;
    int64_t n_block = c->n_key / block + 1;
    for (int64_t i = 0; i < n_block; i++) {
        int64_t begin = (split.backwards ? n_block - 1 - i : i) * block;
        int64_t keys[2] = {begin, begin + block < c->n_key ? begin + block : c->n_key};
        for (int64_t t = 0; t < c->n_query; t += batch) {
            int64_t queries[2] = {t, t + batch < c->n_query ? t + batch : c->n_query};
            assert_int_equal(run_batch(backend, c, d, keys, queries, &out), OK);
        }
    }
    for (int64_t t = 0; t < c->n_query; t++)
        qsort(out.candidate + t * c->k, (size_t)out.n_candidate[t], 8, best_first);
    return out;
}

static bool is_wanted(const struct index_case *c) {
    return case_is_wanted(c->n_query * c->n_key * c->n_head * c->head_dim,
                          c->dtype != DTYPE_F32 && c->head_dim % 32 == 0);
}

// The reference takes a tenth of a second for so many products: once is enough.
static bool is_slow(int backend, const struct index_case *c) {
    return backend == 0 && c->n_query * c->n_key * c->n_head * c->head_dim > 20000000;
}

// Many small calls are as slow for a tool that watches the device as few large ones.
static bool split_is_wanted(const struct index_case *c, struct split split) {
    int64_t n_block = split.key_block ? c->n_key / split.key_block + 1 : 1;
    int64_t n_batch = split.query_batch ? c->n_query / split.query_batch + 1 : 1;
    return !tests_are_light() || n_block * n_batch <= 6;
}

static void check_exact(const struct index_case *c, int b, const struct index_data *d,
                        struct split split) {
    if (!split_is_wanted(c, split)) return;
    struct selection got = select_split(&backends[b], c, d, split);
    uint64_t *expected = test_alloc(c->n_key * 8);
    for (int64_t t = 0; t < c->n_query; t++) {
        int64_t n = oracle(c, d, t, expected);
        assert_int_equal(got.n_candidate[t], n);
        if (memcmp(got.candidate + t * c->k, expected, (size_t)n * sizeof *expected) != 0)
            fail_msg("%s: query %d, backend %d, blocks of %d keys", c->name, (int)t, b,
                     (int)split.key_block);
    }
    free(expected);
    selection_close(&got);
}

static void test_exact_scores(void **state) {
    (void)state;
    for (int i = 0; i < N_EXACT_CASE; i++) {
        const struct index_case *c = &exact_cases[i];
        if (!is_wanted(c)) continue;
        struct index_data d = index_data_open(c);
        for (int b = 0; b < N_BACKEND; b++) {
            if (!backend_is_wanted(b)) continue;
            check_exact(c, b, &d, (struct split){0});
            if (is_slow(b, c)) continue;
            check_exact(c, b, &d, (struct split){64, 0, true});
            check_exact(c, b, &d, (struct split){370, 2, false});
            check_exact(c, b, &d, (struct split){600, 1, true});
            if (c->n_key > 8192) check_exact(c, b, &d, (struct split){8192, 0, true});
            if (c->n_key > 16384) check_exact(c, b, &d, (struct split){8600, 0, true});
        }
        index_data_close(&d);
    }
}

// Scores are close to the definition's, and no key that was left out is better than the worst kept.
static void check_close(const struct index_case *c, const struct index_data *d, int b,
                        const struct selection *got) {
    bool *kept = test_alloc(c->n_key * (int64_t)sizeof *kept);
    for (int64_t t = 0; t < c->n_query; t++) {
        const double *score = d->score + t * c->n_key;
        int64_t n_visible = count_visible(c, d, t);
        memset(kept, 0, (size_t)c->n_key * sizeof *kept);
        int32_t n = got->n_candidate[t];
        assert_int_equal(n, n_visible < c->k ? n_visible : c->k);
        float worst = n ? candidate_score(got->candidate[t * c->k + n - 1]) : -INFINITY;
        for (int32_t i = 0; i < n; i++) {
            uint64_t candidate = got->candidate[t * c->k + i];
            int64_t key = candidate_position(candidate); // keys are at 0, 1, ..
            double error = fabs((double)candidate_score(candidate) - score[key]);
            if (!(error <= TOLERANCE_F32.absolute + TOLERANCE_F32.relative * fabs(score[key])))
                fail_msg("%s: backend %d, query %d: score %g, expected %g", c->name, b, (int)t,
                         (double)candidate_score(candidate), score[key]);
            kept[key] = true;
        }
        for (int64_t s = 0; s < n_visible; s++)
            if (!kept[s] && score[s] > (double)worst + 2 * TOLERANCE_F32.absolute)
                fail_msg("%s: backend %d, query %d misses key %d", c->name, b, (int)t, (int)s);
    }
    free(kept);
}

// Few heads, whose scores are zero half of the time, in every form that tensor cores take.
static void test_head_counts(void **state) {
    (void)state;
    static const int n_heads[] = {1, 2, 4, 8}, head_dims[] = {32, 64, 96, 128};
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F8_E4M3};
    const struct split splits[] = {{0}, {100, 31, true}};
    for (int i = 0; i < 32; i++) {
        int n_head = n_heads[i / 8];
        int64_t n_query = (tests_are_light() ? 16 : 200) / n_head;
        struct index_case c = {"few heads", n_query,       270,   n_head, head_dims[i / 2 % 4],
                               50,          dtypes[i % 2], EXACT, 100,    1};
        struct index_data d = index_data_open(&c);
        for (int b = 0; b < N_BACKEND; b++)
            for (int s = 0; backend_is_wanted(b) && s < (b == 0 ? 1 : 2); s++)
                check_exact(&c, b, &d, splits[s]);
        index_data_close(&d);
    }
}

static void test_random_scores(void **state) {
    (void)state;
    const struct split splits[] = {{64, 0, false}, {100, 0, true},  {8300, 1, true}, {0, 1, false},
                                   {0, 7, false},  {100, 7, false}, {64, 1, true}};
    for (int i = 0; i < N_RANDOM_CASE; i++) {
        const struct index_case *c = &random_cases[i];
        if (!is_wanted(c)) continue;
        struct index_data d = index_data_open(c);
        struct selection avx2 = {0};
        for (int b = 0; b < N_BACKEND; b++) {
            if (!backend_is_wanted(b)) continue;
            struct selection whole = select_split(&backends[b], c, &d, (struct split){0});
            check_close(c, &d, b, &whole);
            for (size_t s = 0; s < sizeof splits / sizeof *splits && !is_slow(b, c); s++) {
                if (!split_is_wanted(c, splits[s])) continue;
                struct selection got = select_split(&backends[b], c, &d, splits[s]);
                assert_memory_equal(got.n_candidate, whole.n_candidate, (size_t)c->n_query * 4);
                assert_memory_equal(got.candidate, whole.candidate,
                                    (size_t)(c->n_query * c->k) * 8);
                selection_close(&got);
            }
            if (b == BACKEND_AVX2_5_THREADS)
                assert_memory_equal(whole.candidate, avx2.candidate,
                                    (size_t)(c->n_query * c->k) * 8);
            if (b == BACKEND_AVX2)
                avx2 = whole;
            else
                selection_close(&whole);
        }
        selection_close(&avx2);
        index_data_close(&d);
    }
}

// Runs all queries, or the first ones; returns the message, "" when all went well.
static const char *nan_message(int b, const struct index_case *c, const struct index_data *d,
                               int64_t n_query) {
    const int64_t keys[2] = {0, c->n_key}, queries[2] = {0, n_query};
    struct selection s = selection_open(c);
    enum status status = run_batch(&backends[b], c, d, keys, queries, &s);
    selection_close(&s);
    assert_true(status == OK || status == ERR_INPUT);
    return status == OK ? "" : status_message();
}

// The first query with such a score, and its first token, wherever the threads find others.
static void test_nan_score(void **state) {
    (void)state;
    const char *const form = "the indexer's score of query %d on token %d is not a number";
    struct index_case c = {"nan", 40, 2000, 2, 64, 4, DTYPE_F32, EXACT, 1500, 1};
    for (int b = 0; b < N_BACKEND; b++) {
        struct index_data d = index_data_open(&c);
        float *key = (float *)d.typed_key, *query = (float *)d.typed_query;
        char expected[100];
        key[1950 * 64] = NAN; // nobody sees it
        assert_string_equal(nan_message(b, &c, &d, 40), "");
        key[1510 * 64] = NAN;
        key[1505 * 64 + 63] = -NAN;
        query[30 * 2 * 64] = NAN;
        snprintf(expected, sizeof expected, form, 1505, 1505);
        assert_string_equal(nan_message(b, &c, &d, 40), expected);
        assert_string_equal(nan_message(b, &c, &d, 1), "");
        for (int i = 0; i < 2; i++) query[i] = 1;
        key[700 * 64] = INFINITY;
        key[700 * 64 + 1] = -INFINITY;
        key[1400 * 64] = key[300 * 64 + 5] = NAN;
        snprintf(expected, sizeof expected, form, 1500, 300);
        assert_string_equal(nan_message(b, &c, &d, 1), expected);
        assert_string_equal(nan_message(b, &c, &d, 40), expected);
        key[300 * 64 + 5] = 0;
        snprintf(expected, sizeof expected, form, 1500, 700);
        assert_string_equal(nan_message(b, &c, &d, 1), expected);
        index_data_close(&d);
    }
}

static void test_nan_formats(void **state) {
    (void)state;
    const enum dtype dtypes[] = {DTYPE_F8_E4M3, DTYPE_BF16};
    for (int b = 0; b < N_BACKEND; b++)
        for (int i = 0; i < 4; i++) {
            struct index_case c = {"nan", 3, 70, 2, 64, 4, dtypes[i / 2], EXACT, 67, 1};
            struct index_data d = index_data_open(&c);
            float value = i % 2 ? -NAN : NAN;
            dtype_from_float(c.dtype, &value, 1,
                             (char *)d.typed_key + dtype_bytes(c.dtype, 68 * 64 + 33));
            assert_string_equal(nan_message(b, &c, &d, 1), "");
            assert_non_null(strstr(nan_message(b, &c, &d, 3), "query 68 on token 68 "));
            index_data_close(&d);
        }
}

// An infinite key is no reason for a score that is not a number: no head meets it with a zero.
static void test_infinite_key(void **state) {
    (void)state;
    for (int n_head = 1; n_head < 8; n_head++) {
        struct index_case c = {"infinite", 5, 70, n_head, 32, 4, DTYPE_BF16, EXACT, 67, 1};
        struct index_data d = index_data_open(&c);
        float infinity = INFINITY, one = 1;
        dtype_from_float(c.dtype, &infinity, 1, (char *)d.typed_key + 11 * 32 * 2);
        for (int i = 0; i < 5 * n_head; i++) {
            dtype_from_float(c.dtype, &one, 1, (char *)d.typed_query + i * 32 * 2);
            d.weight[i] = 1;
        }
        for (int b = 0; b < N_BACKEND; b++) assert_string_equal(nan_message(b, &c, &d, 5), "");
        index_data_close(&d);
    }
}

// What `plan` counts on is what the operation takes.
static void test_scratch(void **state) {
    (void)state;
    const enum isa isas[] = {ISA_AUTO, ISA_AVX512, ISA_AVX2, ISA_PLAIN};
    const struct index_case shapes[] = {
        {"prefill", 100, 500, 64, 128, 2048, DTYPE_F8_E4M3, EXACT, 400, 1},
        {"decode", 1, 3000, 32, 64, 100, DTYPE_F32, EXACT, 2999, 1},
        {"small", 3, 30, 3, 20, 1, DTYPE_BF16, EXACT, 30, 1},
    };
    for (int i = 0; i < 12; i++) {
        const struct index_case *c = &shapes[i / 4];
        const struct backend_options options = {
            .kind = BACKEND_CPU, .isa = isas[i % 4], .n_thread = 3};
        struct backend backend;
        assert_int_equal(backend_open(&options, &backend), OK);
        struct index_data d = index_data_open(c);
        struct selection got = select_split(&backend, c, &d, (struct split){0});
        const struct scratch_shape shape = {
            .index_k = c->k, .n_index_head = c->n_head, .index_dim = c->head_dim};
        const struct cpu_state *cpu = cpu_state(&backend);
        assert_true(cpu->scratch_bytes <= cpu_index_scratch_bytes(cpu, &shape));
        selection_close(&got);
        index_data_close(&d);
        backend_close(&backend);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_scores),  cmocka_unit_test(test_head_counts),
        cmocka_unit_test(test_random_scores), cmocka_unit_test(test_nan_score),
        cmocka_unit_test(test_nan_formats),   cmocka_unit_test(test_infinite_key),
        cmocka_unit_test(test_scratch),
    };
    return cmocka_run_group_tests_name("index", tests, open_backends, close_backends);
}
