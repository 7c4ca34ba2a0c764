// Rates of the lightning indexer in DeepSeek V3.2's shape (64 heads of 128, the best 2048 kept) for
// every instruction set: prefill in GFLOP/s beside those of a large matrix product of the same
// type, decode also in GB/s of keys read. A (query, key) pair counts 2 * heads * dim operations.
// oneDNN keeps the best instruction set of the processor, whatever limit the indexer is given.
// `bench_index [threads]`.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/sparse.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"

enum { N_HEAD = 64, HEAD_DIM = 128, K = 2048, N_PREFILL = 128, MATMUL_SIZE = 2048, N_REPEAT = 3 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void require(enum status status) {
    if (status == OK) return;
    fprintf(stderr, "bench_index: %s\n", status_message());
    exit((int)status);
}

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
        double start = now();
        require(backend->ops->matmul(backend, &args));
        best = fmin(best, now() - start);
    }
    free((void *)weight.data);
    free(x);
    free(out);
    return 2.0 * (double)(n * n * n) / best;
}

// Seconds for the last n_query positions of n_key.
static double index_seconds(struct backend *backend, enum dtype dtype, int64_t n_query,
                            int64_t n_key) {
    struct index_args args = {.n_query = n_query,
                              .n_key = n_key,
                              .n_head = N_HEAD,
                              .head_dim = HEAD_DIM,
                              .dtype = dtype,
                              .k = K};
    void *query = random_vector(dtype, n_query * N_HEAD * HEAD_DIM, 1, 1);
    void *key = random_vector(dtype, n_key * HEAD_DIM, 1, 2);
    float *weight = random_vector(DTYPE_F32, n_query * N_HEAD, 1, 3);
    float *key_scale = test_alloc(n_key * 4);
    int64_t *position = test_alloc(n_key * 8);
    const struct key_run run = {0, 1, n_key, 0};
    for (int64_t i = 0; i < n_key; i++) {
        position[i] = i;
        key_scale[i] = (float)(1 + i % 3);
    }
    args.query = query;
    args.key = key;
    args.weight = weight;
    args.key_scale = key_scale;
    args.run = &run;
    args.n_run = 1;
    args.query_position = position + n_key - n_query;
    args.candidate = test_alloc(n_query * K * 8);
    args.n_candidate = test_alloc(n_query * 4);
    double best = INFINITY;
    for (int i = 0; i < (n_query > 1 ? N_REPEAT : 5 * N_REPEAT); i++) {
        memset(args.n_candidate, 0, (size_t)n_query * 4);
        double start = now();
        require(backend->ops->index_top_k(backend, &args));
        best = fmin(best, now() - start);
    }
    free(query);
    free(key);
    free(weight);
    free(key_scale);
    free(position);
    free(args.candidate);
    free(args.n_candidate);
    return best;
}

static void bench(enum isa isa, const char *name, int n_thread, enum dtype dtype, bool bf16) {
    const struct backend_options options = {.kind = BACKEND_CPU, .isa = isa, .n_thread = n_thread};
    struct backend backend;
    require(backend_open(&options, &backend));
    double matmul = matmul_rate(&backend, bf16 ? DTYPE_BF16 : DTYPE_F32);
    printf("%s, keys in %s; matrix product %.0f GFLOP/s in %s\n", name, dtype_info[dtype].name,
           matmul / 1e9, bf16 ? "BF16" : "F32");
    for (int64_t n_key = 8192; n_key <= 131072; n_key *= 4) {
        double prefill = index_seconds(&backend, dtype, N_PREFILL, n_key);
        double decode = index_seconds(&backend, dtype, 1, n_key);
        double flop = 2.0 * N_HEAD * HEAD_DIM * (double)n_key;
        double rate = flop * N_PREFILL / prefill;
        printf("%7lld keys: prefill %6.1f GFLOP/s, ratio %.2f;  decode %7.2f ms, %6.1f GFLOP/s, "
               "ratio %.2f, %5.2f GB/s\n",
               (long long)n_key, rate / 1e9, rate / matmul, 1e3 * decode, flop / decode / 1e9,
               flop / decode / matmul,
               (double)(n_key * (dtype_bytes(dtype, HEAD_DIM) + 4)) / decode / 1e9);
    }
    backend_close(&backend);
}

// Seconds of the fastest of N_REPEAT calls; `reset` undoes what a call did.
#define BEST_SECONDS(best, reset, call)                                                            \
    do {                                                                                           \
        best = INFINITY;                                                                           \
        for (int i_ = 0; i_ < N_REPEAT; i_++) {                                                    \
            reset;                                                                                 \
            double start_ = now();                                                                 \
            require(call);                                                                         \
            best = fmin(best, now() - start_);                                                     \
        }                                                                                          \
    } while (0)

// Lists of candidates among N_ROW keys, and the quantisation of as many index keys.
static void bench_lists(int n_thread) {
    enum { N_QUERY = 256, N_ROW = 131072 };
    const struct backend_options options = {
        .kind = BACKEND_CPU, .isa = ISA_AUTO, .n_thread = n_thread};
    struct backend backend;
    require(backend_open(&options, &backend));
    int64_t n = (int64_t)N_QUERY * K;
    uint64_t *fresh = test_alloc(n * 8), *other = test_alloc(n * 8), *candidate = test_alloc(n * 8);
    uint64_t *threshold = test_alloc(N_QUERY * 8);
    int32_t *row = test_alloc(n * 4), *n_candidate = test_alloc(N_QUERY * 4);
    int32_t *n_selected = test_alloc(N_QUERY * 4);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i % K * 32;
        fresh[i] = candidate_make(random_normal(1, (uint64_t)i), 2 * at);
        other[i] = candidate_make(random_normal(2, (uint64_t)i), 2 * at + 1);
    }
    for (int t = 0; t < N_QUERY; t++) n_candidate[t] = K;
    const struct index_merge_args merge = {N_QUERY, K,     true,        candidate, n_candidate,
                                           1,       other, n_candidate, threshold};
    const struct key_run run = {0, 1, N_ROW, 0};
    const struct select_rows_args rows = {N_QUERY, K,     candidate, n_candidate, &run,
                                          1,       N_ROW, row,       n_selected};
    double seconds;
    BEST_SECONDS(seconds, memcpy(candidate, fresh, (size_t)n * 8),
                 backend.ops->index_merge(&backend, &merge));
    printf("merge of 2 x %d candidates: %.1f us a query\n", K, 1e6 * seconds / N_QUERY);
    BEST_SECONDS(seconds, (void)0, backend.ops->select_rows(&backend, &rows));
    printf("rows of %d candidates among %d: %.1f us a query\n", K, N_ROW, 1e6 * seconds / N_QUERY);
    float *x = random_vector(DTYPE_F32, (int64_t)N_ROW * HEAD_DIM, 1, 3);
    const struct quantize_args quantize = {.x = x,
                                           .n_row = N_ROW,
                                           .n_col = HEAD_DIM,
                                           .block = HEAD_DIM,
                                           .power_of_two = true,
                                           .out = test_alloc((int64_t)N_ROW * HEAD_DIM),
                                           .scale = test_alloc(N_ROW * 4)};
    BEST_SECONDS(seconds, (void)0, backend.ops->quantize(&backend, &quantize));
    printf("quantisation: %.1f GB/s of fp32 read\n", 1e-9 * 4 * N_ROW * HEAD_DIM / seconds);
    free(quantize.out), free(quantize.scale), free(x);
    free(fresh), free(other), free(candidate), free(threshold);
    free(row), free(n_candidate), free(n_selected);
    backend_close(&backend);
}

int main(int argc, char **argv) {
    int n_thread = argc > 1 ? atoi(argv[1]) : 2;
    printf("%d heads of %d, the best %d; %d threads\n", N_HEAD, HEAD_DIM, K, n_thread);
    bench_lists(n_thread);
    if (measure_multiplies_bf16()) {
        bench(ISA_AVX512_BF16, "avx512bf16", n_thread, DTYPE_F8_E4M3, true);
        bench(ISA_AVX512_BF16, "avx512bf16", n_thread, DTYPE_BF16, true);
    }
    // A limit above what the processor has means its best.
    bench(ISA_AVX512, "avx512", n_thread, DTYPE_F8_E4M3, false);
    bench(ISA_AVX2, "avx2", n_thread, DTYPE_F8_E4M3, false);
    bench(ISA_AVX2, "avx2", n_thread, DTYPE_F32, false);
    return 0;
}
