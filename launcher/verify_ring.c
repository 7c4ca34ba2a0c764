// Ring attention by each pass and by decode, causal, in windows and without bounds, against the
// reference on one rank: every rank makes the whole problem from the same counters and checks the
// rows, or heads, that are its own.
#include <float.h>
#include <math.h>
#include <string.h>

#include "dist/ring_attention.h"
#include "launcher/verify.h"

enum { LENGTH = 301, N_HEAD = 6, N_KV_HEAD = 2, HEAD_DIM = 32 };
enum { QUERY_ROW = N_HEAD * HEAD_DIM, KEY_ROW = N_KV_HEAD * HEAD_DIM };

struct ring_case {
    struct verify *verify;
    struct verify_memory memory;
    struct ring_attention ring;
    struct sequence sequence; // the prompt by zigzag, then one token of decode
    float *query, *key, *value, *expected, *expected_lse;  // [LENGTH] whole
    float *own_query, *own_key, *own_value, *own_expected; // this rank's rows
    float *own_expected_lse, *out, *lse;
    int64_t position[LENGTH], first[LENGTH], end[LENGTH];
};

static enum status allocate(struct ring_case *c) {
    const int64_t bytes = LENGTH * QUERY_ROW * (int64_t)sizeof(float);
    float **const rows[] = {
        &c->query,     &c->key,     &c->value,     &c->expected,     &c->expected_lse,
        &c->own_query, &c->own_key, &c->own_value, &c->own_expected, &c->own_expected_lse,
        &c->out,       &c->lse};
    TRY(verify_memory_open(&c->memory, &c->verify->job->backend, 4 << 20));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        *rows[i] = verify_take(&c->memory, bytes);
        if (!*rows[i]) FAIL(ERR_MEMORY, "no memory for the ring's self-test");
    }
    return OK;
}

static void ring_case_close(struct ring_case *c) {
    ring_attention_close(&c->ring);
    sequence_close(&c->sequence);
    verify_memory_close(&c->memory);
}

static enum status ring_case_open(struct verify *v, struct ring_case *c) {
    struct comm *comm = &v->job->comm;
    struct attention_shape shape = {N_HEAD,        N_KV_HEAD,     HEAD_DIM, HEAD_DIM,
                                    sizeof(float), sizeof(float), false};
    *c = (struct ring_case){.verify = v};
    sequence_open(&c->sequence, comm->size);
    TRY(allocate(c));
    if (!sequence_append(&c->sequence, LAYOUT_ZIGZAG, LENGTH - 1) ||
        !sequence_append(&c->sequence, LAYOUT_ROUND_ROBIN, 1)) {
        FAIL(ERR_MEMORY, "no memory for the ring's self-test");
    }
    verify_fill(c->query, LENGTH * QUERY_ROW, 3);
    verify_fill(c->key, LENGTH * KEY_ROW, 4);
    verify_fill(c->value, LENGTH * KEY_ROW, 5);
    for (int i = 0; i < LENGTH; i++) c->position[i] = i;
    const struct ring_extent extent = {.memory = v->job->backend.memory,
                                       .size = comm->size,
                                       .shard = LENGTH,
                                       .query = LENGTH,
                                       .all_query = LENGTH,
                                       .decode_query = 1,
                                       .halo = LENGTH};
    return ring_attention_open(&c->ring, &v->job->backend, comm, &v->job->profile,
                               ring_attention_workspace_bytes(&shape, &extent));
}

// What queries and keys [0, n) give by one attention of the reference.
static enum status expect(struct ring_case *c, const struct visibility *visibility, int64_t n) {
    visibility_bounds(visibility, c->position, n, c->first, c->end);
    return c->verify->reference.ops->attention(
        &c->verify->reference, &(struct attention_args){.n_query = n,
                                                        .n_key = n,
                                                        .n_head = N_HEAD,
                                                        .n_kv_head = N_KV_HEAD,
                                                        .head_dim = HEAD_DIM,
                                                        .value_dim = HEAD_DIM,
                                                        .scale = 0.5f,
                                                        .query = c->query,
                                                        .query_dtype = DTYPE_F32,
                                                        .query_stride = QUERY_ROW,
                                                        .key = c->key,
                                                        .value = c->value,
                                                        .kv_dtype = DTYPE_F32,
                                                        .key_stride = KEY_ROW,
                                                        .value_stride = KEY_ROW,
                                                        .first_visible = c->first,
                                                        .sinks = visibility_sinks(visibility),
                                                        .end_visible = c->end,
                                                        .key_position = c->position,
                                                        .out = c->expected,
                                                        .lse = c->expected_lse});
}

// This rank's rows of [0, end), packed. Returns how many.
static int64_t take_rows(const struct ring_case *c, int64_t end, const float *rows, int64_t n_col,
                         float *out) {
    int64_t position[LENGTH];
    int rank = c->verify->job->comm.rank;
    int64_t n = sequence_count(&c->sequence, rank, 0, end);
    sequence_positions(&c->sequence, rank, 0, end, position);
    for (int64_t i = 0; i < n; i++) {
        memcpy(out + i * n_col, rows + position[i] * n_col, (size_t)n_col * sizeof *out);
    }
    return n;
}

static struct ring_attention_args arguments(const struct ring_case *c, int64_t begin, int64_t end,
                                            const float *query) {
    return (struct ring_attention_args){.sequence = &c->sequence,
                                        .query_begin = begin,
                                        .query_end = end,
                                        .n_head = N_HEAD,
                                        .n_kv_head = N_KV_HEAD,
                                        .head_dim = HEAD_DIM,
                                        .value_dim = HEAD_DIM,
                                        .scale = 0.5f,
                                        .visibility = VISIBILITY_CAUSAL,
                                        .query = verify_image(&c->memory, query),
                                        .query_dtype = DTYPE_F32,
                                        .key = verify_image(&c->memory, c->own_key),
                                        .value = verify_image(&c->memory, c->own_value),
                                        .kv_dtype = DTYPE_F32,
                                        .out = verify_image(&c->memory, c->out),
                                        .lse = verify_image(&c->memory, c->lse)};
}

// Inputs to the backend, with outputs that show what is not written.
static enum status push(struct ring_case *c) {
    for (int i = 0; i < LENGTH * QUERY_ROW; i++) c->out[i] = c->lse[i] = NAN;
    return verify_push(&c->memory);
}

struct ring_row {
    enum pass pass;
    struct visibility visibility;
    const char *name, *what;
};

static enum status verify_pass(struct ring_case *c, const struct ring_row *row) {
    const int64_t end = LENGTH - 1;
    TRY(expect(c, &row->visibility, end));
    int64_t n = take_rows(c, end, c->query, QUERY_ROW, c->own_query);
    take_rows(c, end, c->expected, QUERY_ROW, c->own_expected);
    take_rows(c, end, c->expected_lse, N_HEAD, c->own_expected_lse);
    struct ring_attention_args args = arguments(c, 0, end, c->own_query);
    args.visibility = row->visibility;
    args.pass = row->pass;
    TRY(push(c));
    TRY(ring_attention_run(&c->ring, &args));
    TRY(verify_pull(&c->memory));
    TRY(verify_row(c->verify, row->name, row->what, FLT_EPSILON / 2, HEAD_DIM, c->out,
                   c->own_expected, n * QUERY_ROW));
    return verify_row(c->verify, row->name, "its log-sum-exp", FLT_EPSILON / 2, HEAD_DIM, c->lse,
                      c->own_expected_lse, n * N_HEAD);
}

static enum status verify_decode(struct ring_case *c) {
    struct comm *comm = &c->verify->job->comm;
    struct span heads = partition_piece(N_HEAD, comm->size, comm->rank);
    const int64_t last = LENGTH - 1;
    TRY(expect(c, &VISIBILITY_CAUSAL, LENGTH));
    struct ring_attention_args args = arguments(c, last, LENGTH, c->query + last * QUERY_ROW);
    TRY(push(c));
    TRY(decode_attention_run(&c->ring, &args, 1));
    TRY(verify_pull(&c->memory));
    TRY(verify_row(c->verify, "decode", "1 of 301, heads split", FLT_EPSILON / 2, HEAD_DIM, c->out,
                   c->expected + last * QUERY_ROW + heads.start * HEAD_DIM,
                   heads.length * HEAD_DIM));
    return verify_row(c->verify, "decode", "its log-sum-exp", FLT_EPSILON / 2, HEAD_DIM, c->lse,
                      c->expected_lse + last * N_HEAD, N_HEAD);
}

enum status verify_ring(struct verify *v) {
    static const struct ring_row rows[] = {
        {PASS_KV, {.back = VISIBLE_ALL}, "ring pass-KV", "300 x 6:2 x 32, causal"},
        {PASS_Q, {.back = VISIBLE_ALL}, "ring pass-Q", "300 x 6:2 x 32, causal"},
        {PASS_KV,
         {.back = VISIBLE_ALL, .ahead = VISIBLE_ALL},
         "ring pass-KV",
         "300 x 6:2 x 32, both ways"},
        {PASS_HALO, {.back = 31, .sinks = 4}, "ring halo", "window of 32, 4 sinks"},
        {PASS_HALO, {.back = 16, .ahead = 16}, "ring halo", "16 before to 16 after"},
    };
    struct ring_case c = {0};
    enum status status = OK;
    TRY_OR(done, ring_case_open(v, &c));
    take_rows(&c, LENGTH, c.key, KEY_ROW, c.own_key);
    take_rows(&c, LENGTH, c.value, KEY_ROW, c.own_value);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) TRY_OR(done, verify_pass(&c, &rows[i]));
    TRY_OR(done, verify_decode(&c));
done:
    ring_case_close(&c);
    return status;
}
