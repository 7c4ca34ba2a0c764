// The operations of sparse attention on every backend: against the definition, and the selection
// against itself under any split of the keys. Scores are built from small integers, so that they
// are exact in fp32 and equal scores are plentiful.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/fp8.h"
#include "kernels/sparse.h"
#include "tests/common/cases.h"

static const struct backend_options candidates[] = {
    {BACKEND_REFERENCE, ISA_AUTO, 1}, {BACKEND_CPU, ISA_AUTO, 2},  {BACKEND_CPU, ISA_AVX512, 2},
    {BACKEND_CPU, ISA_AVX2, 2},       {BACKEND_CPU, ISA_PLAIN, 2},
};
#define N_BACKEND (int)(sizeof candidates / sizeof *candidates)
static struct backend backends[N_BACKEND];

static int open_backends(void **state) {
    (void)state;
    for (int i = 0; i < N_BACKEND; i++)
        if (backend_open(&candidates[i], &backends[i]) != OK) return -1;
    return 0;
}

static int close_backends(void **state) {
    (void)state;
    for (int i = 0; i < N_BACKEND; i++) backend_close(&backends[i]);
    return 0;
}

static void test_hadamard(void **state) {
    (void)state;
    const int sizes[] = {1, 2, 64, 128, 256};
    for (int b = 0; b < N_BACKEND; b++)
        for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
            int n = sizes[c];
            float x[2 * 256], y[2 * 256];
            for (int i = 0; i < 2 * n; i++) y[i] = x[i] = random_normal(7, (uint64_t)i);
            struct hadamard_args args = {.x = y, .n_row = 2, .n_col = n};
            assert_int_equal(backends[b].ops->hadamard(&backends[b], &args), OK);
            for (int row = 0; row < 2; row++)
                for (int i = 0; i < n; i++) {
                    double sum = 0;
                    for (int j = 0; j < n; j++)
                        sum += (__builtin_parity((unsigned)(i & j)) ? -1.0 : 1.0) * x[row * n + j];
                    assert_true(fabs(y[row * n + i] - sum / sqrt(n)) < 1e-5);
                }
        }
}

static void test_quantize(void **state) {
    (void)state;
    enum { N_ROW = 5, N_COL = 256, BLOCK = 128, N = N_ROW * N_COL };
    float x[N], scale[N_ROW * 2];
    uint8_t out[N];
    for (int i = 0; i < N; i++) x[i] = random_normal(3, (uint64_t)i) * (i / BLOCK == 3 ? 0 : 20);
    for (int b = 0; b < N_BACKEND; b++)
        for (int power = 0; power < 2; power++) {
            poison(scale, sizeof scale);
            memset(out, 0xff, sizeof out);
            struct quantize_args args = {.x = x,
                                         .n_row = N_ROW,
                                         .n_col = N_COL,
                                         .block = BLOCK,
                                         .power_of_two = power,
                                         .out = out,
                                         .scale = scale};
            assert_int_equal(backends[b].ops->quantize(&backends[b], &args), OK);
            for (int block = 0; block < N / BLOCK; block++) {
                uint8_t expected[BLOCK];
                float s = fp8_quantize_block(x + block * BLOCK, BLOCK, power, expected);
                assert_true(scale[block] == s);
                assert_memory_equal(out + block * BLOCK, expected, BLOCK);
            }
        }
}

// Index queries, keys and weights whose scores are exact: elements -1, 0, 1; weights k/4.
struct index_case {
    const char *name;
    int64_t n_query, n_key;
    int n_head, head_dim, k;
    enum dtype dtype;
    int kind; // 0 random, 1 all keys equal, 2 all scores zero, 3 negative weights, 4 weights -inf
    int64_t first_query; // position of query 0; keys are at 0, 1, ...
};

static const struct index_case index_cases[] = {
    {"one key", 1, 1, 4, 64, 8, DTYPE_F32, 0, 0},
    {"no visible key", 2, 3, 2, 64, 2, DTYPE_F32, 0, -9},
    {"fewer keys than k", 3, 40, 4, 64, 64, DTYPE_F32, 0, 37},
    {"k = 1", 5, 300, 4, 64, 1, DTYPE_F32, 0, 200},
    {"all equal", 4, 500, 4, 64, 100, DTYPE_F32, 1, 480},
    {"all zero", 4, 500, 4, 64, 100, DTYPE_F32, 2, 480},
    {"negative weights", 7, 401, 3, 64, 50, DTYPE_F32, 3, 397},
    {"all -inf", 2, 90, 2, 64, 7, DTYPE_F32, 4, 88},
    {"bf16", 9, 613, 8, 128, 64, DTYPE_BF16, 0, 601},
    {"fp8", 9, 613, 8, 128, 64, DTYPE_F8_E4M3, 0, 601},
    {"k = 2048", 3, 5000, 2, 32, 2048, DTYPE_F8_E4M3, 0, 4998},
};
#define N_INDEX_CASE (int)(sizeof index_cases / sizeof *index_cases)

struct index_data {
    float *query, *key, *weight, *scale; // as fp32
    void *typed_query, *typed_key;
    int64_t *query_position, *key_position;
};

static void *typed(enum dtype dtype, const float *x, int64_t n) {
    void *out = test_alloc(dtype_bytes(dtype, n));
    dtype_from_float(dtype, x, n, out);
    return out;
}

static struct index_data index_data_open(const struct index_case *c) {
    int64_t n_query = c->n_query * c->n_head * c->head_dim, n_key = c->n_key * c->head_dim;
    struct index_data d = {.query = test_alloc(n_query * 4),
                           .key = test_alloc(n_key * 4),
                           .weight = test_alloc(c->n_query * c->n_head * 4),
                           .scale = test_alloc(c->n_key * 4),
                           .query_position = test_alloc(c->n_query * 8),
                           .key_position = test_alloc(c->n_key * 8)};
    for (int64_t i = 0; i < n_query; i++)
        d.query[i] = c->kind == 2 ? -1 : (float)(random_bits(1, (uint64_t)i) % 3) - 1;
    for (int64_t i = 0; i < n_key; i++) {
        int64_t j = c->kind == 1 ? i % c->head_dim : i;
        d.key[i] = c->kind == 2 ? 1 : (float)(random_bits(2, (uint64_t)j) % 3) - 1;
    }
    for (int64_t i = 0; i < c->n_query * c->n_head; i++) {
        float weight = (float)(random_bits(3, (uint64_t)i) % 9) / 4 - 1; // -1 .. 1
        d.weight[i] = c->kind == 3 ? -fabsf(weight) : c->kind == 4 ? -INFINITY : weight;
        if (c->kind == 4) d.query[i * c->head_dim] = 99; // keeps every product positive below
    }
    if (c->kind == 4)
        for (int64_t i = 0; i < c->n_key; i++) d.key[i * c->head_dim] = 99;
    for (int64_t i = 0; i < c->n_key; i++) {
        d.scale[i] = c->kind == 1 ? 1 : (float)(1 + random_bits(4, (uint64_t)i) % 2);
        d.key_position[i] = i;
    }
    for (int64_t i = 0; i < c->n_query; i++) d.query_position[i] = c->first_query + i;
    d.typed_query = typed(c->dtype, d.query, n_query);
    d.typed_key = typed(c->dtype, d.key, n_key);
    return d;
}

static void index_data_close(struct index_data *d) {
    void *all[] = {d->query,       d->key,       d->weight,         d->scale,
                   d->typed_query, d->typed_key, d->query_position, d->key_position};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static int best_first(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

// The definition in fp64 and a full sort: the best k visible keys of one query, best first.
static int64_t oracle(const struct index_case *c, const struct index_data *d, int64_t t,
                      uint64_t *out) {
    int64_t n = 0;
    for (int64_t s = 0; s < c->n_key && d->key_position[s] <= d->query_position[t]; s++) {
        double score = 0;
        for (int h = 0; h < c->n_head; h++) {
            double dot = 0;
            for (int i = 0; i < c->head_dim; i++)
                dot += (double)d->query[(t * c->n_head + h) * c->head_dim + i] *
                       (double)d->key[s * c->head_dim + i];
            if (dot > 0) score += (double)d->weight[t * c->n_head + h] * dot;
        }
        out[n++] = candidate_make((float)(score * (double)d->scale[s]), d->key_position[s]);
    }
    qsort(out, (size_t)n, sizeof *out, best_first);
    return n < c->k ? n : c->k;
}

// Runs the selection over the keys in blocks of the given size, in falling order when asked.
static void select_in_blocks(struct backend *backend, const struct index_case *c,
                             const struct index_data *d, int64_t block, bool backwards,
                             uint64_t *candidate, int32_t *n_candidate) {
    int64_t n_block = (c->n_key + block - 1) / block;
    memset(n_candidate, 0, (size_t)c->n_query * sizeof *n_candidate);
    for (int64_t i = 0; i < n_block; i++) {
        int64_t begin = (backwards ? n_block - 1 - i : i) * block;
        int64_t n = c->n_key - begin < block ? c->n_key - begin : block;
        struct index_args args = {
            .n_query = c->n_query,
            .n_key = n,
            .n_head = c->n_head,
            .head_dim = c->head_dim,
            .dtype = c->dtype,
            .query = d->typed_query,
            .weight = d->weight,
            .key = (const char *)d->typed_key + dtype_bytes(c->dtype, begin * c->head_dim),
            .key_scale = d->scale + begin,
            .query_position = d->query_position,
            .key_position = d->key_position + begin,
            .k = c->k,
            .candidate = candidate,
            .n_candidate = n_candidate,
        };
        assert_int_equal(backend->ops->index_top_k(backend, &args), OK);
    }
}

static void test_index_top_k(void **state) {
    (void)state;
    for (int i = 0; i < N_INDEX_CASE; i++) {
        const struct index_case *c = &index_cases[i];
        struct index_data d = index_data_open(c);
        uint64_t *expected = test_alloc(c->n_key * 8);
        uint64_t *candidate = test_alloc(c->n_query * c->k * 8);
        int32_t *n_candidate = test_alloc(c->n_query * 4);
        const int64_t blocks[] = {c->n_key, 64, 37};
        for (int b = 0; b < N_BACKEND; b++)
            for (int split = 0; split < 6; split++) {
                select_in_blocks(&backends[b], c, &d, blocks[split / 2], split % 2, candidate,
                                 n_candidate);
                for (int64_t t = 0; t < c->n_query; t++) {
                    int64_t n = oracle(c, &d, t, expected);
                    uint64_t *got = candidate + t * c->k;
                    assert_int_equal(n_candidate[t], n);
                    qsort(got, (size_t)n, sizeof *got, best_first);
                    if (memcmp(got, expected, (size_t)n * sizeof *got))
                        fail_msg("%s: query %d, backend %d, split %d", c->name, (int)t, b, split);
                }
            }
        free(n_candidate);
        free(candidate);
        free(expected);
        index_data_close(&d);
    }
}

static void test_nan_score(void **state) {
    (void)state;
    struct index_case c = {"nan", 2, 20, 2, 64, 4, DTYPE_F32, 0, 18};
    struct index_data d = index_data_open(&c);
    ((float *)d.typed_key)[7 * 64] = NAN;
    for (int b = 0; b < N_BACKEND; b++) {
        uint64_t candidate[8];
        int32_t n_candidate[2] = {0};
        struct index_args args = {.n_query = 2,
                                  .n_key = 20,
                                  .n_head = 2,
                                  .head_dim = 64,
                                  .dtype = DTYPE_F32,
                                  .query = d.typed_query,
                                  .weight = d.weight,
                                  .key = d.typed_key,
                                  .query_position = d.query_position,
                                  .key_position = d.key_position,
                                  .k = 4,
                                  .candidate = candidate,
                                  .n_candidate = n_candidate};
        assert_int_equal(backends[b].ops->index_top_k(&backends[b], &args), ERR_INPUT);
        assert_non_null(strstr(status_message(), "query 18"));
        assert_non_null(strstr(status_message(), "token 7"));
    }
    index_data_close(&d);
}

// Selecting every visible key is causal attention; selecting none gives 0 and -inf.
static void test_sparse_attention(void **state) {
    (void)state;
    enum { N_QUERY = 9, N_KEY = 33, N_HEAD = 6, N_KV_HEAD = 2, DIM = 32, K = 40 };
    const enum dtype kv_dtypes[] = {DTYPE_F32, DTYPE_BF16};
    int64_t position[N_KEY];
    int32_t row[N_QUERY * K], n_selected[N_QUERY];
    float expected[N_QUERY * N_HEAD * DIM], expected_lse[N_QUERY * N_HEAD];
    float out[N_QUERY * N_HEAD * DIM], lse[N_QUERY * N_HEAD];
    for (int i = 0; i < N_KEY; i++) position[i] = i;
    for (int t = 0; t < N_QUERY; t++) {
        n_selected[t] = N_KEY - N_QUERY + t + 1;
        for (int i = 0; i < n_selected[t]; i++) row[t * K + i] = i;
    }
    for (int b = 0; b < N_BACKEND; b++)
        for (int kv = 0; kv < 2; kv++) {
            enum dtype kv_dtype = kv_dtypes[kv];
            float *query = random_vector(DTYPE_F32, N_QUERY * N_HEAD * DIM, 1, 5);
            void *key = random_vector(kv_dtype, N_KEY * N_KV_HEAD * DIM, 1, 6);
            void *value = random_vector(kv_dtype, N_KEY * N_KV_HEAD * DIM, 1, 7);
            struct sparse_attention_args args = {
                .attention = {.n_query = N_QUERY,
                              .n_key = N_KEY,
                              .n_head = N_HEAD,
                              .n_kv_head = N_KV_HEAD,
                              .head_dim = DIM,
                              .value_dim = DIM,
                              .scale = 0.2f,
                              .causal = true,
                              .query = query,
                              .query_dtype = DTYPE_F32,
                              .query_stride = N_HEAD * DIM,
                              .key = key,
                              .value = value,
                              .kv_dtype = kv_dtype,
                              .key_stride = N_KV_HEAD * DIM,
                              .value_stride = N_KV_HEAD * DIM,
                              .query_position = position + N_KEY - N_QUERY,
                              .key_position = position,
                              .out = expected,
                              .lse = expected_lse},
                .row = row,
                .n_selected = n_selected,
                .k = K};
            assert_int_equal(backends[0].ops->attention(&backends[0], &args.attention), OK);
            args.attention.out = out;
            args.attention.lse = lse;
            poison(out, sizeof out);
            poison(lse, sizeof lse);
            assert_int_equal(backends[b].ops->sparse_attention(&backends[b], &args), OK);
            char message[200];
            if (!is_close(DTYPE_F32, out, expected, N_QUERY * N_HEAD * DIM, TOLERANCE_F32, message,
                          sizeof message) ||
                !is_close(DTYPE_F32, lse, expected_lse, N_QUERY * N_HEAD, TOLERANCE_F32, message,
                          sizeof message))
                fail_msg("backend %d: %s", b, message);
            const int32_t none[N_QUERY] = {0};
            args.n_selected = none;
            poison(out, sizeof out);
            assert_int_equal(backends[b].ops->sparse_attention(&backends[b], &args), OK);
            for (int i = 0; i < N_QUERY * N_HEAD * DIM; i++) assert_true(out[i] == 0);
            for (int i = 0; i < N_QUERY * N_HEAD; i++) assert_true(lse[i] == -INFINITY);
            free(value);
            free(key);
            free(query);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hadamard),         cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_index_top_k),      cmocka_unit_test(test_nan_score),
        cmocka_unit_test(test_sparse_attention),
    };
    return cmocka_run_group_tests_name("sparse", tests, open_backends, close_backends);
}
