// Sparse attention by both exchanges and in decode against the reference on one rank. Index queries
// and keys are small integers: every score is exact and most are equal, so that there is one right
// selection, whose hash must be the same on any number of ranks and on any machine.
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dist/sparse_attention.h"
#include "launcher/verify.h"

enum { LENGTH = 301, N_HEAD = 6, N_KV_HEAD = 2, DIM = 32, INDEX_HEADS = 4, INDEX_DIM = 64, K = 40 };
enum {
    QUERY_ROW = N_HEAD * DIM,
    KEY_ROW = N_KV_HEAD * DIM,
    INDEX_ROW = INDEX_HEADS * INDEX_DIM,
    WIDEST_ROW = INDEX_ROW,
};

// Rows of all positions, and this rank's.
struct rows {
    float *query, *key, *value, *index_query, *index_key, *index_weight, *out, *lse;
    uint64_t *candidate;
    int32_t *n_candidate;
};
enum { N_FLOAT_ROWS = 8 };

struct sparse_case {
    struct verify *verify;
    struct verify_memory memory;
    struct ring_attention ring;
    struct sequence sequence; // the prompt by zigzag, then one token of decode
    struct rows all, own;     // all.out, all.lse, all.candidate: the reference's
    int64_t position[LENGTH];
};

static const struct index_shape index_shape = {INDEX_HEADS, INDEX_DIM, K, sizeof(float), 0};

static enum status allocate(struct verify_memory *m, struct rows *r) {
    float **const floats[N_FLOAT_ROWS] = {&r->query,       &r->key,       &r->value,
                                          &r->index_query, &r->index_key, &r->index_weight,
                                          &r->out,         &r->lse};
    for (int i = 0; i < N_FLOAT_ROWS; i++)
        *floats[i] = verify_take(m, LENGTH * WIDEST_ROW * (int64_t)sizeof(float));
    r->candidate = verify_take(m, LENGTH * K * (int64_t)sizeof *r->candidate);
    r->n_candidate = verify_take(m, LENGTH * (int64_t)sizeof *r->n_candidate);
    if (!r->n_candidate) FAIL(ERR_MEMORY, "no memory for the self-test of sparse attention");
    memset(r->candidate, 0, LENGTH * K * sizeof *r->candidate);
    memset(r->n_candidate, 0, LENGTH * sizeof *r->n_candidate);
    return OK;
}

static void fill_integers(float *out, int64_t n, uint64_t stream) {
    for (int64_t i = 0; i < n; i++) out[i] = roundf(1.5f * verify_number(stream, (uint64_t)i));
}

static struct attention_args whole_attention(struct sparse_case *c) {
    return (struct attention_args){.n_query = LENGTH,
                                   .n_key = LENGTH,
                                   .n_head = N_HEAD,
                                   .n_kv_head = N_KV_HEAD,
                                   .head_dim = DIM,
                                   .value_dim = DIM,
                                   .scale = 0.5f,
                                   .query = c->all.query,
                                   .query_dtype = DTYPE_F32,
                                   .query_stride = QUERY_ROW,
                                   .key = c->all.key,
                                   .value = c->all.value,
                                   .kv_dtype = DTYPE_F32,
                                   .key_stride = KEY_ROW,
                                   .value_stride = KEY_ROW,
                                   .out = c->all.out,
                                   .lse = c->all.lse};
}

// What the reference selects and attends, on every rank.
static enum status solve(struct sparse_case *c) {
    struct backend *reference = &c->verify->reference;
    struct rows *all = &c->all;
    int32_t *row = malloc(LENGTH * (K + 1) * sizeof *row);
    if (!row) FAIL(ERR_MEMORY, "no memory for the self-test of sparse attention");
    int32_t *n_selected = row + LENGTH * K;
    const struct key_run run = {0, 1, LENGTH, 0};
    enum status status = OK;
    TRY_OR(done, reference->ops->index_top_k(
                     reference, &(struct index_args){.n_query = LENGTH,
                                                     .n_key = LENGTH,
                                                     .n_head = INDEX_HEADS,
                                                     .head_dim = INDEX_DIM,
                                                     .dtype = DTYPE_F32,
                                                     .query = all->index_query,
                                                     .weight = all->index_weight,
                                                     .key = all->index_key,
                                                     .query_position = c->position,
                                                     .run = &run,
                                                     .n_run = 1,
                                                     .k = K,
                                                     .candidate = all->candidate,
                                                     .n_candidate = all->n_candidate}));
    TRY_OR(done, reference->ops->select_rows(
                     reference, &(struct select_rows_args){.n_query = LENGTH,
                                                           .k = K,
                                                           .candidate = all->candidate,
                                                           .n_candidate = all->n_candidate,
                                                           .run = &run,
                                                           .n_run = 1,
                                                           .n_row = LENGTH,
                                                           .row = row,
                                                           .n_selected = n_selected}));
    TRY_OR(done,
           reference->ops->sparse_attention(
               reference,
               &(struct sparse_attention_args){
                   .attention = whole_attention(c), .row = row, .n_selected = n_selected, .k = K}));
done:
    free(row);
    return status;
}

static enum status sparse_case_open(struct verify *v, struct sparse_case *c) {
    struct comm *comm = &v->job->comm;
    const struct attention_shape shape = {.n_head = N_HEAD,
                                          .n_kv_head = N_KV_HEAD,
                                          .head_dim = DIM,
                                          .value_dim = DIM,
                                          .query_bytes = sizeof(float),
                                          .kv_bytes = sizeof(float)};
    *c = (struct sparse_case){.verify = v};
    sequence_open(&c->sequence, comm->size);
    TRY(verify_memory_open(&c->memory, &v->job->backend, 8 << 20));
    TRY(allocate(&c->memory, &c->all));
    TRY(allocate(&c->memory, &c->own));
    if (!sequence_append(&c->sequence, LAYOUT_ZIGZAG, LENGTH - 1) ||
        !sequence_append(&c->sequence, LAYOUT_ROUND_ROBIN, 1))
        FAIL(ERR_MEMORY, "no memory for the self-test of sparse attention");
    verify_fill(c->all.query, LENGTH * QUERY_ROW, 13);
    verify_fill(c->all.key, LENGTH * KEY_ROW, 14);
    verify_fill(c->all.value, LENGTH * KEY_ROW, 15);
    fill_integers(c->all.index_query, LENGTH * INDEX_ROW, 16);
    fill_integers(c->all.index_key, LENGTH * INDEX_DIM, 17);
    fill_integers(c->all.index_weight, LENGTH * INDEX_HEADS, 18);
    for (int i = 0; i < LENGTH; i++) c->position[i] = i;
    TRY(solve(c));
    const struct ring_extent extent = {.memory = v->job->backend.memory,
                                       .size = comm->size,
                                       .shard = LENGTH,
                                       .query = LENGTH,
                                       .all_query = LENGTH,
                                       .decode_query = 1};
    return ring_attention_open(&c->ring, &v->job->backend, comm, &v->job->profile,
                               sparse_attention_workspace_bytes(&shape, &index_shape, &extent));
}

static void sparse_case_close(struct sparse_case *c) {
    ring_attention_close(&c->ring);
    sequence_close(&c->sequence);
    verify_memory_close(&c->memory);
}

static void take(const int64_t *position, int64_t n, const float *rows, int64_t n_col, float *out) {
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * n_col, rows + position[i] * n_col, (size_t)n_col * sizeof *out);
}

static struct sparse_ring_args arguments(const struct sparse_case *c, int64_t begin, int64_t end,
                                         enum exchange exchange) {
    const struct rows *own = &c->own;
    const struct verify_memory *m = &c->memory;
    return (struct sparse_ring_args){.attention = {.sequence = &c->sequence,
                                                   .query_begin = begin,
                                                   .query_end = end,
                                                   .n_head = N_HEAD,
                                                   .n_kv_head = N_KV_HEAD,
                                                   .head_dim = DIM,
                                                   .value_dim = DIM,
                                                   .scale = 0.5f,
                                                   .visibility = VISIBILITY_CAUSAL,
                                                   .query = verify_image(m, own->query),
                                                   .query_dtype = DTYPE_F32,
                                                   .key = verify_image(m, own->key),
                                                   .value = verify_image(m, own->value),
                                                   .kv_dtype = DTYPE_F32,
                                                   .out = verify_image(m, own->out),
                                                   .lse = verify_image(m, own->lse)},
                                     .index = index_shape,
                                     .index_dtype = DTYPE_F32,
                                     .index_query = verify_image(m, own->index_query),
                                     .index_weight = verify_image(m, own->index_weight),
                                     .index_key = verify_image(m, own->index_key),
                                     .exchange = exchange,
                                     .candidate = verify_image(m, own->candidate),
                                     .n_candidate = verify_image(m, own->n_candidate)};
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// FNV-1a over a query's position and those that it selected, ascending; candidates are sorted.
static uint64_t set_hash(int64_t position, uint64_t *candidate, int32_t n) {
    uint64_t hash = 0xcbf29ce484222325u ^ (uint64_t)position;
    for (int32_t i = 0; i < n; i++) candidate[i] = (uint64_t)candidate_position(candidate[i]);
    qsort(candidate, (size_t)n, sizeof *candidate, ascending);
    for (int32_t i = 0; i < n; i++) hash = (hash ^ candidate[i]) * 0x100000001b3u;
    return hash;
}

// The sum over all ranks of the hashes of n queries; *right: each equals the reference's.
static enum status hash_selection(struct sparse_case *c, const int64_t *position, int64_t n,
                                  int64_t *sum, bool *right) {
    uint64_t total = 0, expected[K];
    *right = true;
    for (int64_t i = 0; i < n; i++) {
        int32_t count = c->all.n_candidate[position[i]];
        memcpy(expected, c->all.candidate + position[i] * K, sizeof expected);
        uint64_t hash = set_hash(position[i], c->own.candidate + i * K, c->own.n_candidate[i]);
        *right = *right && hash == set_hash(position[i], expected, count);
        total += hash;
    }
    *sum = (int64_t)total;
    struct comm *host = comm_host(&c->verify->job->comm);
    return host->ops->all_reduce(host, sum, 1, REDUCE_SUM_I64);
}

static enum status verify_exchange(struct sparse_case *c, enum exchange exchange, const char *name,
                                   int64_t *hash) {
    const int64_t end = LENGTH - 1;
    struct comm *comm = &c->verify->job->comm;
    int64_t position[LENGTH], n = sequence_count(&c->sequence, comm->rank, 0, end);
    float *expected = c->own.index_query; // its rows are wide enough, and read no more
    bool right;
    sequence_positions(&c->sequence, comm->rank, 0, end, position);
    take(position, n, c->all.query, QUERY_ROW, c->own.query);
    take(position, n, c->all.index_query, INDEX_ROW, c->own.index_query);
    take(position, n, c->all.index_weight, INDEX_HEADS, c->own.index_weight);
    struct sparse_ring_args args = arguments(c, 0, end, exchange);
    for (int i = 0; i < LENGTH * QUERY_ROW; i++) c->own.out[i] = NAN;
    TRY(verify_push(&c->memory));
    TRY(sparse_attention_run(&c->ring, &args));
    TRY(verify_pull(&c->memory));
    TRY(hash_selection(c, position, n, hash, &right));
    TRY(verify_exact(c->verify, name, "selection, 40 of 300", right));
    take(position, n, c->all.out, QUERY_ROW, expected);
    return verify_row(c->verify, name, "300 x 6:2 x 32", FLT_EPSILON / 2, DIM, c->own.out, expected,
                      n * QUERY_ROW);
}

static enum status verify_decode(struct sparse_case *c) {
    struct comm *comm = &c->verify->job->comm;
    struct span heads = partition_piece(N_HEAD, comm->size, comm->rank);
    const int64_t last = LENGTH - 1;
    int64_t hash;
    bool right;
    take(&last, 1, c->all.query, QUERY_ROW, c->own.query);
    take(&last, 1, c->all.index_query, INDEX_ROW, c->own.index_query);
    take(&last, 1, c->all.index_weight, INDEX_HEADS, c->own.index_weight);
    struct sparse_ring_args args = arguments(c, last, LENGTH, EXCHANGE_AUTO);
    for (int i = 0; i < QUERY_ROW; i++) c->own.out[i] = NAN;
    TRY(verify_push(&c->memory));
    args.attention.lse = NULL;
    TRY(sparse_decode_run(&c->ring, &args));
    TRY(verify_pull(&c->memory));
    TRY(hash_selection(c, &last, 1, &hash, &right));
    TRY(verify_exact(c->verify, "sparse decode", "selection, 40 of 301", right));
    return verify_row(c->verify, "sparse decode", "1 of 301, heads split", FLT_EPSILON / 2, DIM,
                      c->own.out, c->all.out + last * QUERY_ROW + heads.start * DIM,
                      heads.length * DIM);
}

enum status verify_sparse(struct verify *v) {
    struct sparse_case c = {0};
    enum status status = OK;
    int64_t position[LENGTH], hash[2] = {0, 0};
    TRY_OR(done, sparse_case_open(v, &c));
    int64_t n = sequence_count(&c.sequence, v->job->comm.rank, 0, LENGTH);
    sequence_positions(&c.sequence, v->job->comm.rank, 0, LENGTH, position);
    take(position, n, c.all.key, KEY_ROW, c.own.key);
    take(position, n, c.all.value, KEY_ROW, c.own.value);
    take(position, n, c.all.index_key, INDEX_DIM, c.own.index_key);
    TRY_OR(done, verify_exchange(&c, EXCHANGE_KEYS, "sparse by keys", &hash[0]));
    TRY_OR(done, verify_exchange(&c, EXCHANGE_SCORES, "sparse by scores", &hash[1]));
    TRY_OR(done, verify_exact(v, "both exchanges", "hash of all sets", hash[0] == hash[1]));
    TRY_OR(done, verify_decode(&c));
    if (v->job->comm.rank == 0)
        printf("  selection hash %016llx: the same on any number of ranks\n",
               (unsigned long long)hash[0]);
done:
    sparse_case_close(&c);
    return status;
}
