// Sparse against dense attention in DeepSeek V3.2's layer shape: indexer of 64 heads of 128 with
// fp8 keys, 2048 tokens selected, attention of 128 heads over latents of 512 + 64. Milliseconds a
// token at a position, attention and indexer only. Dense is the faster of the absorbed form (128
// heads over one row of 576) and the expanded one (heads of 192 and 128 of their own; a few of them
// are measured and scaled). bound: the ratio of the operations alone. `bench_sparse [threads
// [longest]]`.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/sparse.h"
#include "tests/common/cases.h"

enum {
    N_INDEX_HEAD = 64,
    INDEX_DIM = 128,
    K = 2048,
    N_HEAD = 128,
    LATENT = 512,
    ROW = LATENT + 64, // latent and rotated part
    HEAD_DIM = 192,
    VALUE_DIM = 128,
    N_EXPANDED = 8,
    N_PREFILL = 32,
    N_EXPANDED_ROW = 256, // the expanded form packs each head's keys anew: more rows, fairer to it
    N_REPEAT = 2,
    SHORTEST = 2048
};

static struct backend backend;
static enum dtype query_dtype; // BF16 where the processor multiplies it

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void require(enum status status) {
    if (status == OK) return;
    fprintf(stderr, "bench_sparse: %s\n", status_message());
    exit((int)status);
}

struct keys { // of the longest sequence; shorter ones take the first
    void *latent, *expanded_key, *expanded_value, *index_key;
    float *index_scale;
    int64_t *position;
};
struct queries { // N_PREFILL of them; decode takes the last
    void *absorbed, *expanded, *index_query;
    float *index_weight, *out, *lse;
    uint64_t *candidate;
    int32_t *n_candidate, *row, *n_selected;
};

// A row of random numbers over and over: their values do not matter, only that none is tiny.
static void *repeated(enum dtype dtype, int64_t n_row, int64_t n_col) {
    enum { DISTINCT = 64 };
    int64_t bytes = dtype_bytes(dtype, n_col);
    float *x = random_vector(DTYPE_F32, DISTINCT * n_col, 1, 1);
    char *rows = test_alloc(n_row * bytes), *few = test_alloc(DISTINCT * bytes);
    dtype_from_float(dtype, x, DISTINCT * n_col, few);
    for (int64_t i = 0; i < n_row; i++)
        memcpy(rows + i * bytes, few + (i * 7 + i / DISTINCT) % DISTINCT * bytes, (size_t)bytes);
    free(few);
    free(x);
    return rows;
}

static struct keys keys_open(int64_t n) {
    struct keys k = {.latent = repeated(DTYPE_BF16, n, ROW),
                     .expanded_key = repeated(DTYPE_BF16, n, N_EXPANDED * HEAD_DIM),
                     .expanded_value = repeated(DTYPE_BF16, n, N_EXPANDED * VALUE_DIM),
                     .index_key = repeated(DTYPE_F8_E4M3, n, INDEX_DIM),
                     .index_scale = test_alloc(n * 4),
                     .position = test_alloc((n + 1) * 8)};
    for (int64_t i = 0; i < n; i++) {
        k.index_scale[i] = 0.5f + (float)(random_bits(5, (uint64_t)i) % 64) / 64; // few ties
    }
    for (int64_t i = 0; i <= n; i++) k.position[i] = i;
    return k;
}

static struct queries queries_open(void) {
    return (struct queries){
        .absorbed = repeated(query_dtype, N_PREFILL, N_HEAD * ROW),
        .expanded = repeated(query_dtype, N_EXPANDED_ROW, N_EXPANDED * HEAD_DIM),
        .index_query = repeated(DTYPE_F8_E4M3, N_PREFILL, N_INDEX_HEAD * INDEX_DIM),
        .index_weight = random_vector(DTYPE_F32, N_PREFILL * N_INDEX_HEAD, 1, 6),
        .out = test_alloc((int64_t)N_PREFILL * N_HEAD * LATENT * 4),
        .lse = test_alloc(N_PREFILL * N_HEAD * 4),
        .candidate = test_alloc((int64_t)N_PREFILL * K * 8),
        .n_candidate = test_alloc(N_PREFILL * 4),
        .row = test_alloc((int64_t)N_PREFILL * K * 4),
        .n_selected = test_alloc(N_PREFILL * 4)};
}

static struct attention_args absorbed(const struct keys *k, const struct queries *q,
                                      int64_t n_query, int64_t n_key) {
    return (struct attention_args){.n_query = n_query,
                                   .n_key = n_key,
                                   .n_head = N_HEAD,
                                   .n_kv_head = 1,
                                   .head_dim = ROW,
                                   .value_dim = LATENT,
                                   .scale = 0.05f,
                                   .query = q->absorbed,
                                   .query_dtype = query_dtype,
                                   .query_stride = N_HEAD * ROW,
                                   .key = k->latent,
                                   .value = k->latent,
                                   .kv_dtype = DTYPE_BF16,
                                   .key_stride = ROW,
                                   .value_stride = ROW,
                                   .end_visible = k->position + n_key - n_query + 1,
                                   .key_position = k->position,
                                   .out = q->out,
                                   .lse = q->lse};
}

static double absorbed_seconds(const struct keys *k, const struct queries *q, int64_t n_query,
                               int64_t n_key) {
    struct attention_args args = absorbed(k, q, n_query, n_key);
    double start = now();
    require(backend.ops->attention(&backend, &args));
    return now() - start;
}

// Of one query.
static double expanded_seconds(const struct keys *k, const struct queries *q, bool prefill,
                               int64_t n_key) {
    int64_t n_query = prefill ? N_EXPANDED_ROW : 1;
    struct attention_args args = absorbed(k, q, n_query, n_key);
    args.n_head = args.n_kv_head = N_EXPANDED;
    args.head_dim = HEAD_DIM;
    args.value_dim = VALUE_DIM;
    args.query = q->expanded;
    args.query_stride = args.key_stride = N_EXPANDED * HEAD_DIM;
    args.key = k->expanded_key;
    args.value = k->expanded_value;
    args.value_stride = N_EXPANDED * VALUE_DIM;
    double start = now();
    require(backend.ops->attention(&backend, &args));
    return (now() - start) * N_HEAD / N_EXPANDED / (double)n_query;
}

struct sparse_seconds {
    double index, attention;
};

static struct sparse_seconds sparse_seconds(const struct keys *k, const struct queries *q,
                                            int64_t n_query, int64_t n_key) {
    const struct key_run run = {0, 1, n_key, 0};
    const struct index_args score = {.n_query = n_query,
                                     .n_key = n_key,
                                     .n_head = N_INDEX_HEAD,
                                     .head_dim = INDEX_DIM,
                                     .dtype = DTYPE_F8_E4M3,
                                     .query = q->index_query,
                                     .weight = q->index_weight,
                                     .key = k->index_key,
                                     .key_scale = k->index_scale,
                                     .query_position = k->position + n_key - n_query,
                                     .run = &run,
                                     .n_run = 1,
                                     .k = K,
                                     .candidate = q->candidate,
                                     .n_candidate = q->n_candidate};
    const struct select_rows_args rows = {n_query, K,     q->candidate, q->n_candidate, &run,
                                          1,       n_key, q->row,       q->n_selected};
    const struct sparse_attention_args sparse = {.attention = absorbed(k, q, n_query, n_key),
                                                 .row = q->row,
                                                 .n_selected = q->n_selected,
                                                 .k = K};
    memset(q->n_candidate, 0, (size_t)n_query * 4);
    double start = now();
    require(backend.ops->index_top_k(&backend, &score));
    require(backend.ops->select_rows(&backend, &rows));
    double middle = now();
    require(backend.ops->sparse_attention(&backend, &sparse));
    return (struct sparse_seconds){middle - start, now() - middle};
}

// Returns how many times cheaper sparse attention is.
static double bench(const struct keys *k, const struct queries *q, int64_t n_query, int64_t n_key) {
    double mqa = INFINITY, mha = INFINITY;
    struct sparse_seconds sparse = {INFINITY, INFINITY};
    for (int i = 0; i < N_REPEAT; i++) {
        struct sparse_seconds s = sparse_seconds(k, q, n_query, n_key);
        sparse.index = fmin(sparse.index, s.index);
        sparse.attention = fmin(sparse.attention, s.attention);
        mqa = fmin(mqa, absorbed_seconds(k, q, n_query, n_key));
        mha = fmin(mha, (double)n_query * expanded_seconds(k, q, n_query > 1, n_key));
    }
    double dense = fmin(mqa, mha), all = sparse.index + sparse.attention;
    double ms = 1e3 / (double)n_query;
    double index_flop = 2.0 * N_INDEX_HEAD * INDEX_DIM * (double)n_key;
    double row_flop = 2.0 * N_HEAD * (ROW + LATENT),
           head_flop = 2.0 * N_HEAD * (HEAD_DIM + VALUE_DIM);
    double dense_flop = (mqa < mha ? row_flop : head_flop) * (double)n_key;
    printf("%s %7lld %9.3f %9.3f %9.3f %9.3f %9.3f %7.2f %7.2f\n",
           n_query > 1 ? "prefill" : "decode ", (long long)n_key, mqa * ms, mha * ms,
           sparse.index * ms, sparse.attention * ms, all * ms, dense / all,
           dense_flop / (index_flop + row_flop * K));
    fflush(stdout);
    return dense / all;
}

// Powers of two; the crossover is where the ratio passes 1, on a line between two of them.
static void bench_lengths(const struct keys *k, const struct queries *q, int64_t n_query,
                          int64_t longest) {
    double before = 0, crossover = 0;
    for (int64_t n_key = SHORTEST; n_key <= longest; n_key *= 2) {
        double ratio = bench(k, q, n_query, n_key);
        double part = before > 0 ? (1 - before) / (ratio - before) : 1;
        if (before < 1 && ratio >= 1) crossover = (double)n_key / 2 * (1 + part);
        before = ratio;
    }
    printf("# %s: sparse attention is cheaper from about %.0f tokens on\n",
           n_query > 1 ? "prefill" : "decode", crossover);
}

int main(int argc, char **argv) {
    int n_thread = argc > 1 ? atoi(argv[1]) : 2;
    int64_t longest = argc > 2 ? atoll(argv[2]) : 131072;
    require(backend_open(
        &(struct backend_options){.kind = BACKEND_CPU, .isa = ISA_AUTO, .n_thread = n_thread},
        &backend));
    query_dtype = backend.bf16_products ? DTYPE_BF16 : DTYPE_F32;
    struct keys keys = keys_open(longest);
    struct queries queries = queries_open();
    printf("# %d threads, queries in %s; ms a token, %d query rows of prefill\n", n_thread,
           dtype_info[query_dtype].name, N_PREFILL);
    printf("#        keys  absorbed  expanded     index    sparse  idx+spar   ratio   bound\n");
    bench_lengths(&keys, &queries, N_PREFILL, longest);
    bench_lengths(&keys, &queries, 1, longest);
    void *all[] = {
        keys.latent,         keys.expanded_key,    keys.expanded_value, keys.index_key,
        keys.index_scale,    keys.position,        queries.absorbed,    queries.expanded,
        queries.index_query, queries.index_weight, queries.out,         queries.lse,
        queries.candidate,   queries.n_candidate,  queries.row,         queries.n_selected};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    backend_close(&backend);
    return 0;
}
