// DeepSeek V3.2's layer over ranks of a device each (mpirun -np N): exchange of keys, of scores,
// and gathering everything; decoding; a hash of what was selected, equal for every N: scores are
// built to be exact. Device work, the slowest rank, medians. `bench_ring_sparse_gpu [LONGEST
// [DIVISOR]]` as bench_ring_gpu.
#include <stdio.h>
#include <stdlib.h>

#include "dist/sparse_attention.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"
#include "tests/common/measure_ranks.h"

enum {
    MIDDLE = 131072,
    INDEX_HEADS = 64,
    INDEX_DIM = 128,
    LATENT_HEADS = 128,
    LATENT = 512,
    LATENT_ROW = LATENT + 64,
    TOP_K = 2048,
    SPARSE_QUERIES = 2048, // of all ranks, the last ones of the sequence
    SPARSE_CALLS = 4,      // queued together, so that the host is ahead
    DECODE_CALLS = 50,
};

static const char *const exchange_name[] = {[EXCHANGE_KEYS] = "keys", [EXCHANGE_SCORES] = "scores"};

// DeepSeek V3.2's layer: what this rank holds of n tokens, of which the last n_query ask.
struct sparse_run {
    struct sequence sequence;
    struct ring_attention ring;
    struct sparse_ring_args args;
    int64_t n, n_query, n_own, n_key; // tokens, queries of all, of this rank, keys of this rank
    // Everything gathered: the rank alone attends it.
    struct comm self;
    struct sequence whole;
    struct ring_attention alone;
    struct sparse_ring_args gathered;
};

// Small integers, so that every score is exact and the same tokens are selected everywhere: row i
// belongs to position[i] and follows from that alone.
static void *exact_rows(struct ranks *b, const int64_t *position, int64_t n_row, int64_t n_col,
                        uint64_t seed) {
    static const uint8_t value[4] = {0x00, 0x38, 0xb8, 0x38}; // fp8: 0, 1, -1, 1
    uint8_t *rows = test_alloc(n_row * n_col + 1);
    for (int64_t i = 0; i < n_row; i++)
        for (int64_t c = 0; c < n_col; c += 32) {
            uint64_t bits = random_bits(seed, (uint64_t)(position[i] * n_col + c));
            for (int64_t k = 0; k < 32 && c + k < n_col; k++)
                rows[i * n_col + c + k] = value[bits >> 2 * k & 3];
        }
    void *out = ranks_hold(b, measure_upload(&b->backend, rows, n_row * n_col + 1));
    free(rows);
    return out;
}

static float *exact_floats(struct ranks *b, const int64_t *position, int64_t n_row, int64_t n_col,
                           uint64_t seed) { // seed 0: ones
    float *x = test_alloc(n_row * n_col * 4 + 4);
    for (int64_t i = 0; i < n_row * n_col; i++)
        x[i] = seed ? 1 + (float)(random_bits(seed,
                                              (uint64_t)(position[i / n_col] * n_col + i % n_col)) %
                                  4)
                    : 1;
    float *out = ranks_hold(b, measure_upload(&b->backend, x, n_row * n_col * 4 + 4));
    free(x);
    return out;
}

static void fill_sparse(struct ranks *b, struct sparse_run *s, int k) {
    int64_t n = s->n, *position = test_alloc((s->n_key + s->n_own + 1) * 8);
    bool decode = s->n_query == 1;
    s->args = (struct sparse_ring_args){
        .attention = {.sequence = &s->sequence,
                      .query_begin = n - s->n_query,
                      .query_end = n,
                      .n_head = LATENT_HEADS,
                      .n_kv_head = 1,
                      .head_dim = LATENT_ROW,
                      .value_dim = LATENT,
                      .scale = 0.05f,
                      .visibility = VISIBILITY_CAUSAL,
                      .query = ranks_random(b, DTYPE_BF16, s->n_own * LATENT_HEADS * LATENT_ROW),
                      .query_dtype = DTYPE_BF16,
                      .key = ranks_random(b, DTYPE_BF16, s->n_key * LATENT_ROW),
                      .kv_dtype = DTYPE_BF16,
                      .out = ranks_poisoned(b, s->n_own * LATENT_HEADS * LATENT * 4),
                      .lse = ranks_poisoned(b, s->n_own * LATENT_HEADS * 4)},
        .index = {INDEX_HEADS, INDEX_DIM, k, 1, 4},
        .index_dtype = DTYPE_F8_E4M3,
        .candidate = ranks_poisoned(b, s->n_own * k * 8),
        .n_candidate = ranks_poisoned(b, s->n_own * 4)};
    position[0] = n - 1;
    if (!decode) sequence_positions(&s->sequence, b->comm->rank, n - s->n_query, n, position);
    s->args.index_query = exact_rows(b, position, s->n_own, INDEX_HEADS * INDEX_DIM, 1);
    s->args.index_weight = exact_floats(b, position, s->n_own, INDEX_HEADS, 2);
    sequence_positions(&s->sequence, b->comm->rank, 0, n, position);
    s->args.index_key = exact_rows(b, position, s->n_key, INDEX_DIM, 3);
    s->args.index_key_scale = exact_floats(b, position, s->n_key, 1, 0);
    free(position);
}

static void open_sparse(struct ranks *b, int64_t n, int64_t n_query, struct sparse_run *s) {
    const int size = b->comm->size, k = (int)ranks_scaled(b, TOP_K);
    bool decode = n_query == 1;
    *s = (struct sparse_run){.n = n, .n_query = n_query};
    sequence_open(&s->sequence, size);
    ranks_append(b, &s->sequence, LAYOUT_ZIGZAG, n - n_query);
    ranks_append(b, &s->sequence, LAYOUT_ZIGZAG, n_query);
    s->n_own = decode ? 1 : sequence_count(&s->sequence, b->comm->rank, n - n_query, n);
    s->n_key = sequence_count(&s->sequence, b->comm->rank, 0, n);
    fill_sparse(b, s, k);
    const struct attention_shape shape = {LATENT_HEADS, 1, LATENT_ROW, LATENT, 2, 2, true};
    const struct ring_extent extent = {.memory = b->backend.memory,
                                       .size = size,
                                       .shard = n / size + 4,
                                       .query = decode ? 0 : n_query / size + 4,
                                       .all_query = decode ? 0 : n_query,
                                       .decode_query = decode};
    ranks_require(
        b, ring_attention_open(&s->ring, &b->backend, b->comm, &b->profile,
                               sparse_attention_workspace_bytes(&shape, &s->args.index, &extent)));
}

static void close_sparse(struct ranks *b, struct sparse_run *s) {
    ring_attention_close(&s->ring);
    sequence_close(&s->sequence);
    ranks_release(b);
}

static enum status call_sparse(struct ranks *b, void *user) {
    struct sparse_run *s = user;
    (void)b;
    return sparse_attention_run(&s->ring, &s->args);
}
static enum status call_sparse_decode(struct ranks *b, void *user) {
    struct sparse_run *s = user;
    (void)b;
    struct sparse_ring_args args = s->args;
    args.attention.lse = NULL;
    return sparse_decode_run(&s->ring, &args);
}

// Of all ranks' selections: the same whatever the order, and whoever holds the query.
static uint64_t selection_hash(struct ranks *b, const struct sparse_run *s) {
    struct backend *backend = &b->backend;
    const int k = s->args.index.k;
    int64_t sum = 0, n = s->n_query == 1 && b->comm->rank > 0 ? 0 : s->n_own;
    uint64_t *candidate = test_alloc(n * k * 8 + 8);
    int32_t *n_candidate = test_alloc(n * 4 + 4);
    ranks_require(b, backend->ops->download(backend, candidate, s->args.candidate, n * k * 8));
    ranks_require(b, backend->ops->download(backend, n_candidate, s->args.n_candidate, n * 4));
    ranks_require(b, backend->ops->sync(backend));
    int64_t *position = test_alloc(n * 8 + 8);
    position[0] = s->n - 1;
    if (s->n_query > 1)
        sequence_positions(&s->sequence, b->comm->rank, s->n - s->n_query, s->n, position);
    for (int64_t i = 0; i < n; i++)
        for (int32_t c = 0; c < n_candidate[i]; c++)
            sum += (int64_t)(random_bits((uint64_t)position[i], candidate[i * k + c]) >> 16);
    free(position);
    free(n_candidate);
    free(candidate);
    ranks_require(b, b->host.ops->all_reduce(&b->host, &sum, 1, REDUCE_SUM_I64));
    return (uint64_t)sum;
}

static void print_sparse_row(const struct ranks *b, const struct sparse_run *s, const char *what,
                             struct ranks_timing t, const char *hash) {
    if (b->comm->rank == 0)
        printf("sparse, %4lld queries of %7lld tokens, %-10s %17.3f ms, wait %4.1f %%, merge "
               "%4.1f %% %s\n",
               (long long)s->n_query, (long long)s->n, what, t.seconds * 1e3, 100 * t.wait,
               100 * t.merge, hash);
    fflush(stdout);
}

// Everything to every rank, then each selects and attends for its own queries alone.
static enum status call_gathered(struct ranks *b, void *user) {
    struct sparse_run *s = user;
    const struct comm_ops *ops = b->comm->ops;
    int64_t bytes[b->comm->size];
    const struct {
        const void *from, *to;
        int64_t width;
    } parts[] = {{s->args.index_key, s->gathered.index_key, INDEX_DIM},
                 {s->args.index_key_scale, s->gathered.index_key_scale, 4},
                 {s->args.attention.key, s->gathered.attention.key, LATENT_ROW * 2}};
    double begun = profile_begin(&b->profile, PHASE_RING_WAIT);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        for (int r = 0; r < b->comm->size; r++)
            bytes[r] = sequence_count(&s->sequence, r, 0, s->n) * parts[i].width;
        TRY(ops->all_gather(b->comm, parts[i].from, (void *)parts[i].to, bytes));
    }
    profile_end(&b->profile, PHASE_RING_WAIT, begun);
    return sparse_attention_run(&s->alone, &s->gathered);
}

static void print_gathered(struct ranks *b, struct sparse_run *s) {
    const struct attention_shape shape = {LATENT_HEADS, 1, LATENT_ROW, LATENT, 2, 2, true};
    const struct ring_extent extent = {
        .memory = b->backend.memory, .size = 1, .shard = s->n, .query = s->n_own};
    bool device = b->backend.memory == MEMORY_DEVICE;
    ranks_require(b, comm_self_open(&s->self, device ? &b->backend : NULL));
    ranks_require(
        b, ring_attention_open(&s->alone, &b->backend, &s->self, &b->profile,
                               sparse_attention_workspace_bytes(&shape, &s->args.index, &extent)));
    sequence_open(&s->whole, 1);
    ranks_append(b, &s->whole, LAYOUT_CONTIGUOUS, s->n);
    s->gathered = s->args;
    s->gathered.attention.sequence = &s->whole;
    s->gathered.attention.query_begin = s->n - s->n_own;
    s->gathered.attention.key = ranks_poisoned(b, s->n * LATENT_ROW * 2);
    s->gathered.index_key = ranks_poisoned(b, s->n * INDEX_DIM);
    s->gathered.index_key_scale = ranks_poisoned(b, s->n * 4);
    print_sparse_row(b, s, "gathered", ranks_measure(b, call_gathered, s, SPARSE_CALLS), "");
    sequence_close(&s->whole);
    ring_attention_close(&s->alone);
    comm_close(&s->self);
}

static void print_sparse(struct ranks *b, int64_t n, int64_t n_query) {
    struct sparse_run s;
    char hash[64];
    open_sparse(b, n, n_query, &s);
    for (enum exchange e = EXCHANGE_KEYS; e <= EXCHANGE_SCORES; e++) {
        s.args.exchange = e;
        struct ranks_timing t = ranks_measure(b, call_sparse, &s, SPARSE_CALLS);
        measure_check(&b->backend, DTYPE_F32, s.args.attention.out,
                      s.n_own * LATENT_HEADS * LATENT);
        snprintf(hash, sizeof hash, "selection %016llx", (unsigned long long)selection_hash(b, &s));
        print_sparse_row(b, &s, exchange_name[e], t, hash);
        if (b->comm->size == 1) break; // there is nothing to exchange
    }
    if (b->comm->size > 1) print_gathered(b, &s);
    close_sparse(b, &s);
    open_sparse(b, n, 1, &s);
    struct ranks_timing t = ranks_measure(b, call_sparse_decode, &s, DECODE_CALLS);
    snprintf(hash, sizeof hash, "selection %016llx", (unsigned long long)selection_hash(b, &s));
    print_sparse_row(b, &s, "decode", t, hash);
    close_sparse(b, &s);
}

static void run(struct ranks *b) {
    print_sparse(b, ranks_scaled(b, MIDDLE), ranks_scaled(b, SPARSE_QUERIES));
    if (b->longest > MIDDLE)
        print_sparse(b, ranks_scaled(b, b->longest), ranks_scaled(b, SPARSE_QUERIES));
}

int main(int argc, char **argv) {
    struct ranks b;
    if (ranks_open(&argc, &argv, "bench_ring_sparse_gpu", &b)) run(&b);
    ranks_close(&b);
    return 0;
}
