// Attention of one token, and of a few, over long contexts on every instruction set: GB/s of the
// keys and values that it sees, beside the rate at which the same threads only read memory. Calls
// go round blocks that no cache holds together, as the layers of a network do. Sparse: each query's
// list is every eighth row, shared by all heads. `bench_decode [threads [instruction set
// [shape]]]`.
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sparse.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"

enum { BLOCKS_BYTES = 192 << 20, SPARSE_STEP = 8, MAX_CALL = 20000 };
static const double seconds_each = 0.4;

struct shape {
    const char *name;
    int64_t n_query, n_key;
    int n_head, n_kv_head, head_dim, value_dim;
    bool value_in_key, is_sparse;
};
static const struct shape shapes[] = {
    {"SmolLM2 135M", 1, 4096, 9, 3, 64, 64, false, false},
    {"SmolLM2 135M", 1, 8192, 9, 3, 64, 64, false, false},
    {"SmolLM2 135M", 1, 32768, 9, 3, 64, 64, false, false},
    {"SmolLM2, 4 queries", 4, 8192, 9, 3, 64, 64, false, false},
    {"one head a group", 1, 8192, 12, 12, 64, 64, false, false},
    {"32:8 of 128", 1, 4096, 32, 8, 128, 128, false, false},
    {"32:8 of 128", 1, 8192, 32, 8, 128, 128, false, false},
    {"32:8 of 128", 1, 32768, 32, 8, 128, 128, false, false},
    {"32:8, 2 queries", 2, 8192, 32, 8, 128, 128, false, false},
    {"32:8, 4 queries", 4, 8192, 32, 8, 128, 128, false, false},
    {"group of 16", 1, 8192, 32, 2, 128, 128, false, false},
    {"group of 24", 1, 8192, 24, 1, 128, 128, false, false},
    {"2 latent heads", 1, 8192, 2, 1, 576, 512, true, false},
    {"4 latent heads", 1, 8192, 4, 1, 576, 512, true, false},
    {"8 latent heads", 1, 8192, 8, 1, 576, 512, true, false},
    {"16 latent heads", 1, 8192, 16, 1, 576, 512, true, false},
    {"128 latent heads", 1, 4096, 128, 1, 576, 512, true, false},
    {"sparse SmolLM2", 1, 32768, 9, 3, 64, 64, false, true},
    {"sparse 32:8", 1, 32768, 32, 8, 128, 128, false, true},
    {"sparse 16 latent heads", 1, 32768, 16, 1, 576, 512, true, true},
};

static double read_rate(int n_thread) {
    int64_t n = BLOCKS_BYTES / 8;
    uint64_t *x = test_alloc(n * 8), sum = 0;
    memset(x, 1, (size_t)n * 8);
    double best = INFINITY;
    for (int i = 0; i < 8; i++) {
        double start = measure_now();
#pragma omp parallel for num_threads(n_thread) reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) sum += x[j];
        best = fmin(best, measure_now() - start);
    }
    free(x);
    return sum ? BLOCKS_BYTES / best : 0;
}

static struct attention_args arguments(const struct shape *s, enum dtype query, enum dtype kv) {
    struct attention_args a = {.n_query = s->n_query,
                               .n_key = s->n_key,
                               .n_head = s->n_head,
                               .n_kv_head = s->n_kv_head,
                               .head_dim = s->head_dim,
                               .value_dim = s->value_dim,
                               .scale = 1 / sqrtf((float)s->head_dim),
                               .query_dtype = query,
                               .kv_dtype = kv,
                               .query_stride = (int64_t)s->n_head * s->head_dim,
                               .key_stride = (int64_t)s->n_kv_head * s->head_dim,
                               .value_stride = (int64_t)s->n_kv_head * s->value_dim};
    a.query = random_vector(query, s->n_query * a.query_stride, 1, 1);
    a.out = test_alloc(s->n_query * s->n_head * s->value_dim * 4);
    a.lse = test_alloc(s->n_query * s->n_head * 4);
    return a;
}

static int32_t *every_eighth(const struct shape *s, int k, int32_t *n_selected) {
    int32_t *row = test_alloc(s->n_query * k * 4);
    for (int64_t i = 0; i < s->n_query * k; i++) row[i] = (int32_t)(i % k * SPARSE_STEP);
    for (int64_t i = 0; i < s->n_query; i++) n_selected[i] = k;
    return row;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// GB/s of the keys and values that one call sees, median of calls.
static double decode_rate(struct backend *backend, const struct shape *s, enum dtype query,
                          enum dtype kv) {
    struct attention_args a = arguments(s, query, kv);
    int64_t key_bytes = dtype_bytes(kv, s->n_key * a.key_stride);
    int64_t value_bytes = s->value_in_key ? 0 : dtype_bytes(kv, s->n_key * a.value_stride);
    int64_t n_block = BLOCKS_BYTES / (key_bytes + value_bytes) + 1;
    char *key = measure_random(backend, kv, n_block * s->n_key * a.key_stride);
    char *value =
        s->value_in_key ? NULL : measure_random(backend, kv, n_block * s->n_key * a.value_stride);
    if (s->value_in_key) a.value_stride = a.key_stride;
    int k = (int)(s->n_key / SPARSE_STEP);
    int32_t n_selected[8], *row = every_eighth(s, k, n_selected);
    double begun = measure_now(), seconds[MAX_CALL];
    int n_call = 0;
    for (; n_call < MAX_CALL && measure_now() - begun < seconds_each; n_call++) {
        int64_t i = n_call % n_block;
        a.key = key + i * key_bytes;
        a.value = value ? (const void *)(value + i * value_bytes) : a.key;
        const struct sparse_attention_args sparse = {a, row, n_selected, k};
        double start = measure_now();
        measure_require(s->is_sparse ? backend->ops->sparse_attention(backend, &sparse)
                                     : backend->ops->attention(backend, &a));
        seconds[n_call] = measure_now() - start;
    }
    qsort(seconds, (size_t)n_call, sizeof *seconds, by_size);
    backend->ops->free(backend, key);
    backend->ops->free(backend, value);
    void *all[] = {(void *)a.query, a.out, a.lse, row};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    return (double)(key_bytes + value_bytes) / (s->is_sparse ? SPARSE_STEP : 1) /
           seconds[n_call / 2];
}

static void bench(enum isa isa, int n_thread, enum dtype query, enum dtype kv, const char *only) {
    static const char *const name[] = {[ISA_PLAIN] = "plain",
                                       [ISA_AVX2] = "avx2",
                                       [ISA_AVX512] = "avx512",
                                       [ISA_AVX512_BF16] = "avx512bf16"};
    struct backend_options options = {.kind = BACKEND_CPU, .isa = isa, .n_thread = n_thread};
    struct backend backend;
    measure_require(backend_open(&options, &backend));
    double ceiling = read_rate(n_thread);
    printf("%s, query %s, K/V %s: memory alone is read at %.1f GB/s by %d threads\n", name[isa],
           dtype_info[query].name, dtype_info[kv].name, ceiling / 1e9, n_thread);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct shape *s = &shapes[i];
        if (only && !strstr(s->name, only)) continue;
        double rate = decode_rate(&backend, s, query, kv);
        printf(
            "  %-22s %3d:%-2d heads of %3d/%-3d, %lld queries, %5lld keys: %6.1f GB/s, %3.0f %%\n",
            s->name, s->n_head, s->n_kv_head, s->head_dim, s->value_dim, (long long)s->n_query,
            (long long)s->n_key, rate / 1e9, 100 * rate / ceiling);
        fflush(stdout);
    }
    backend_close(&backend);
}

int main(int argc, char **argv) {
    int n_thread = argc > 1 ? atoi(argv[1]) : 1;
    bool bf16_products = measure_multiplies_bf16();
    // A limit above what the processor has means its best.
    const char *only = argc > 2 ? argv[2] : NULL, *shape = argc > 3 ? argv[3] : NULL;
    if (!only || !strcmp(only, "plain")) bench(ISA_PLAIN, n_thread, DTYPE_F32, DTYPE_BF16, shape);
    if (!only || !strcmp(only, "avx2")) bench(ISA_AVX2, n_thread, DTYPE_F32, DTYPE_BF16, shape);
    if (!only || !strcmp(only, "avx512")) bench(ISA_AVX512, n_thread, DTYPE_F32, DTYPE_BF16, shape);
    if (!only || !strcmp(only, "fp32")) bench(ISA_AVX512, n_thread, DTYPE_F32, DTYPE_F32, shape);
    if (bf16_products && (!only || !strcmp(only, "avx512bf16")))
        bench(ISA_AVX512_BF16, n_thread, DTYPE_BF16, DTYPE_BF16, shape);
    return 0;
}
