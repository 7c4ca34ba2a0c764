// Attention rates of every instruction set, one thread unless a count is given: GFLOP/s of causal,
// full and windowed prefill beside those of a large matrix product of the same type, and how the
// time of a window grows with the length (bench_decode has few queries). oneDNN keeps the best
// instruction set of the processor, whatever limit attention is given. One visible (query, key)
// pair of a head counts 2 * (head_dim + value_dim) operations.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/common/cases.h"
#include "tests/common/measure.h"

enum { N_REPEAT = 3, MATMUL_SIZE = 1024 };

enum { EVERY = 1 << 30 };
struct shape {
    const char *name;
    int64_t n_query, n_key;
    int n_head, n_kv_head, dim;
    int64_t back, ahead; // how far a query sees
};
static const struct shape prefill[] = {
    {"causal", 8192, 8192, 9, 3, 64, EVERY, 0},
    {"causal", 4096, 4096, 32, 8, 128, EVERY, 0},
    {"full", 8192, 8192, 12, 12, 64, EVERY, EVERY},
    {"symmetric 64", 8192, 8192, 12, 12, 64, 64, 64},
    {"window 512", 8192, 8192, 9, 3, 64, 511, 0},
    {"window 1024", 8192, 8192, 32, 8, 128, 1023, 0},
};
static const struct shape linear[][2] = {
    {{"symmetric 64", 32768, 32768, 4, 4, 64, 64, 64},
     {"symmetric 64", 262144, 262144, 4, 4, 64, 64, 64}},
    {{"window 512", 32768, 32768, 3, 1, 64, 511, 0},
     {"window 512", 262144, 262144, 3, 1, 64, 511, 0}},
};
static double matmul_rate(struct backend *backend, enum dtype dtype) {
    int64_t n = MATMUL_SIZE;
    struct weight weight = random_weight(dtype, n, n, 0, 1);
    void *x = random_vector(dtype, n * n, 1, 2);
    float *out = test_alloc(n * n * 4);
    struct matmul_args args = {.x = x,
                               .x_dtype = dtype,
                               .x_stride = n,
                               .n_token = n,
                               .weight = weight,
                               .out = out,
                               .out_stride = n};
    double best = INFINITY;
    for (int i = 0; i < 2 * N_REPEAT; i++) {
        double start = measure_now();
        measure_require(backend->ops->matmul(backend, &args));
        best = fmin(best, measure_now() - start);
    }
    free((void *)weight.data);
    free(x);
    free(out);
    return 2.0 * (double)(n * n * n) / best;
}

static double attention_seconds(struct backend *backend, const struct shape *s, enum dtype query,
                                enum dtype kv) {
    int64_t query_col = (int64_t)s->n_head * s->dim, kv_col = (int64_t)s->n_kv_head * s->dim;
    struct attention_args a = {.n_query = s->n_query,
                               .n_key = s->n_key,
                               .n_head = s->n_head,
                               .n_kv_head = s->n_kv_head,
                               .head_dim = s->dim,
                               .value_dim = s->dim,
                               .scale = 1 / sqrtf((float)s->dim),
                               .query_dtype = query,
                               .kv_dtype = kv,
                               .query_stride = query_col,
                               .key_stride = kv_col,
                               .value_stride = kv_col};
    void *q = random_vector(query, s->n_query * query_col, 1, 1);
    void *k = random_vector(kv, s->n_key * kv_col, 1, 2),
         *v = random_vector(kv, s->n_key * kv_col, 1, 3);
    int64_t *position = test_alloc(s->n_key * 8);
    int64_t *first = test_alloc(s->n_query * 8), *end = test_alloc(s->n_query * 8);
    for (int64_t i = 0; i < s->n_key; i++) position[i] = i;
    for (int64_t i = 0; i < s->n_query; i++) {
        first[i] = s->n_key - s->n_query + i - s->back;
        end[i] = s->n_key - s->n_query + i + s->ahead + 1;
    }
    a.query = q;
    a.key = k;
    a.value = v;
    a.key_position = position;
    a.first_visible = s->back == EVERY ? NULL : first;
    a.end_visible = s->ahead == EVERY ? NULL : end;
    a.out = test_alloc(s->n_query * query_col * 4);
    a.lse = test_alloc(s->n_query * s->n_head * 4);
    double best = INFINITY, begun = measure_now(); // short runs are repeated for a second
    int n_repeat = s->n_query > 1 && s->back == EVERY ? 2 : 2 * N_REPEAT;
    for (int i = 0; i < n_repeat || (n_repeat > 2 && measure_now() - begun < 1); i++) {
        double start = measure_now();
        measure_require(backend->ops->attention(backend, &a));
        best = fmin(best, measure_now() - start);
    }
    free(q);
    free(k);
    free(v);
    free(position);
    free(first);
    free(end);
    free(a.out);
    free(a.lse);
    return best;
}

// Visible (query, key) pairs of one head.
static double visible_pairs(const struct shape *s) {
    double pairs = 0;
    for (int64_t i = s->n_key - s->n_query; i < s->n_key; i++) {
        int64_t begin = i < s->back ? 0 : i - s->back;
        int64_t end = i + s->ahead + 1 < s->n_key ? i + s->ahead + 1 : s->n_key;
        pairs += (double)(end - begin);
    }
    return pairs;
}

static void bench(enum isa isa, const char *name, int n_thread, enum dtype query, enum dtype kv) {
    struct backend_options options = {.kind = BACKEND_CPU, .isa = isa, .n_thread = n_thread};
    struct backend backend;
    measure_require(backend_open(&options, &backend));
    char title[64];
    snprintf(title, sizeof title, "%-10s query %-4s K/V %-4s", name, dtype_info[query].name,
             dtype_info[kv].name);
    for (size_t i = 0; i < sizeof prefill / sizeof *prefill; i++) {
        const struct shape *s = &prefill[i];
        double rate =
            visible_pairs(s) * s->n_head * 4 * s->dim / attention_seconds(&backend, s, query, kv);
        double matmul = matmul_rate(&backend, query);
        printf("%-12s %s %2d:%-2d heads of %3d, %5lld tokens: %6.1f GFLOP/s, "
               "matmul %6.1f, ratio %.2f\n",
               s->name, title, s->n_head, s->n_kv_head, s->dim, (long long)s->n_query, rate / 1e9,
               matmul / 1e9, rate / matmul);
    }
    for (size_t i = 0; i < sizeof linear / sizeof *linear; i++) {
        const struct shape *few = &linear[i][0], *many = &linear[i][1];
        double before = attention_seconds(&backend, few, query, kv);
        double after = attention_seconds(&backend, many, query, kv);
        printf("%-12s %s %2d:%-2d heads of %3d, %lld and %lld tokens: %.1f and %.1f ms, %lldx "
               "the tokens take %.2fx the time\n",
               few->name, title, few->n_head, few->n_kv_head, few->dim, (long long)few->n_query,
               (long long)many->n_query, before * 1e3, after * 1e3,
               (long long)(many->n_query / few->n_query), after / before);
    }
    backend_close(&backend);
}

int main(int argc, char **argv) {
    int n_thread = argc > 1 ? atoi(argv[1]) : 1;
    bool bf16_products = measure_multiplies_bf16();
    // A limit above what the processor has means its best.
    bench(ISA_AVX2, "avx2", n_thread, DTYPE_F32, DTYPE_F32);
    bench(ISA_AVX2, "avx2", n_thread, DTYPE_F32, DTYPE_BF16);
    bench(ISA_AVX512, "avx512", n_thread, DTYPE_F32, DTYPE_F32);
    bench(ISA_AVX512, "avx512", n_thread, DTYPE_F32, DTYPE_BF16);
    if (bf16_products) bench(ISA_AVX512_BF16, "avx512bf16", n_thread, DTYPE_BF16, DTYPE_BF16);
    return 0;
}
