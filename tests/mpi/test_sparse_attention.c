// ranks: 1 2 3 4 5 8
// fake device: 2
// Sparse attention over ranks against one process that scores, sorts and attends everything: the
// same sets, bit for bit, for every rank count, chunk, exchange and batch, also where thousands of
// scores are equal; the same results within rounding; the bytes that the volume model counts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dist/sparse_attention.h"
#include "kernels/reference/reference.h"
#include "tests/common/backends.h"
#include "tests/common/cases.h"
#include "tests/common/mpi_test.h"

static struct comm *const comm = &mpi_test_comm;
static struct backend backend, reference;
static struct backend selecting; // `backend`, or its mirror: on host memory

struct shape {
    const char *name;
    int n_head, n_kv_head, head_dim, value_dim; // value_in_key where kv_dtype rows hold both
    bool value_in_key;
    struct index_shape index;
    enum dtype index_dtype;
    bool exact; // small integers: every score is exact and most are equal
};

static const struct shape shapes[] = {
    {"ties fp8", 4, 2, 16, 16, false, {3, 32, 20, 1, 4}, DTYPE_F8_E4M3, true},
    {"ties bf16", 4, 1, 48, 32, true, {2, 16, 33, 2, 0}, DTYPE_BF16, true},
    {"ties fp32, one selected", 3, 3, 16, 24, false, {1, 8, 1, 4, 0}, DTYPE_F32, true},
    {"random fp8", 6, 2, 16, 16, false, {4, 64, 40, 1, 4}, DTYPE_F8_E4M3, false},
    {"random fp32", 8, 1, 48, 32, true, {4, 32, 25, 4, 0}, DTYPE_F32, false},
    {"more than there are", 4, 2, 16, 16, false, {2, 32, 1000, 4, 0}, DTYPE_F32, false},
};
enum { N_SHAPE = sizeof shapes / sizeof *shapes, N_TOKEN = 331 };

// All tokens, the same on every rank; rows are positions.
struct data {
    const struct shape *shape;
    float *query, *key, *value; // value NULL where keys hold it
    void *index_query, *index_key;
    float *index_weight, *index_scale;
    uint64_t *candidate; // [N_TOKEN, k] what one process selects
    int32_t *n_candidate;
    float *out, *lse;
};

static int64_t key_row(const struct shape *s) {
    return (int64_t)s->n_kv_head * s->head_dim;
}

static float small_integer(uint64_t seed, int64_t i, bool exact) {
    if (!exact) return random_normal(seed, (uint64_t)i);
    float x = (float)(random_bits(seed, (uint64_t)i) % 3) - 1;
    return x == 0 && random_bits(seed + 100, (uint64_t)i) % 2 ? -0.0f : x;
}

static void *index_rows(const struct shape *s, uint64_t seed, int64_t n) {
    float *x = test_alloc(n * 4);
    void *rows = test_alloc(dtype_bytes(s->index_dtype, n));
    for (int64_t i = 0; i < n; i++) x[i] = small_integer(seed, i, s->exact);
    dtype_from_float(s->index_dtype, x, n, rows);
    free(x);
    return rows;
}

// Selects and attends in one process, on the given backend for the selection.
static void solve(struct data *d, struct backend *on) {
    const struct shape *s = d->shape;
    int64_t position[N_TOKEN];
    int k = s->index.k;
    int32_t *row = test_alloc((int64_t)N_TOKEN * k * 4), n_selected[N_TOKEN];
    for (int i = 0; i < N_TOKEN; i++) position[i] = i;
    memset(d->n_candidate, 0, N_TOKEN * sizeof *d->n_candidate);
    struct key_run run = {0, 1, N_TOKEN, 0};
    struct index_args score = {.n_query = N_TOKEN,
                               .n_key = N_TOKEN,
                               .n_head = s->index.n_head,
                               .head_dim = s->index.head_dim,
                               .dtype = s->index_dtype,
                               .query = d->index_query,
                               .weight = d->index_weight,
                               .key = d->index_key,
                               .key_scale = s->index.scale_bytes ? d->index_scale : NULL,
                               .query_position = position,
                               .run = &run,
                               .n_run = 1,
                               .k = k,
                               .candidate = d->candidate,
                               .n_candidate = d->n_candidate};
    assert_int_equal(on->ops->index_top_k(on, &score), OK);
    struct select_rows_args rows = {N_TOKEN, k,       d->candidate, d->n_candidate, &run,
                                    1,       N_TOKEN, row,          n_selected};
    assert_int_equal(reference_select_rows(&reference, &rows), OK);
    struct sparse_attention_args sparse = {
        .attention = {.n_query = N_TOKEN,
                      .n_key = N_TOKEN,
                      .n_head = s->n_head,
                      .n_kv_head = s->n_kv_head,
                      .head_dim = s->head_dim,
                      .value_dim = s->value_dim,
                      .scale = 0.25f,
                      .query = d->query,
                      .query_dtype = DTYPE_F32,
                      .query_stride = (int64_t)s->n_head * s->head_dim,
                      .key = d->key,
                      .value = d->value ? d->value : d->key,
                      .kv_dtype = DTYPE_F32,
                      .key_stride = key_row(s),
                      .value_stride = d->value ? (int64_t)s->n_kv_head * s->value_dim : key_row(s),
                      .out = d->out,
                      .lse = d->lse},
        .row = row,
        .n_selected = n_selected,
        .k = k};
    assert_int_equal(reference_sparse_attention(&reference, &sparse), OK);
    free(row);
}

static struct data data_open(const struct shape *s) {
    const int64_t n = N_TOKEN;
    struct data d = {.shape = s};
    d.query = random_vector(DTYPE_F32, n * s->n_head * s->head_dim, 1, 1);
    d.key = random_vector(DTYPE_F32, n * key_row(s), 1, 2);
    if (!s->value_in_key) d.value = random_vector(DTYPE_F32, n * s->n_kv_head * s->value_dim, 1, 3);
    d.index_query = index_rows(s, 4, n * s->index.n_head * s->index.head_dim);
    d.index_key = index_rows(s, 5, n * s->index.head_dim);
    d.index_weight = test_alloc(n * s->index.n_head * 4);
    d.index_scale = test_alloc(n * 4);
    for (int64_t i = 0; i < n * s->index.n_head; i++)
        d.index_weight[i] = small_integer(6, i, s->exact);
    for (int64_t i = 0; i < n; i++)
        d.index_scale[i] = s->exact ? 1 : 0.5f + (float)(random_bits(7, (uint64_t)i) % 8);
    d.candidate = test_alloc(n * s->index.k * 8);
    d.n_candidate = test_alloc(n * 4);
    d.out = test_alloc(n * s->n_head * s->value_dim * 4);
    d.lse = test_alloc(n * s->n_head * 4);
    // Exact scores have one answer; rounded ones have the backend's own.
    solve(&d, s->exact ? &reference : &selecting);
    return d;
}

static void data_close(struct data *d) {
    void *all[] = {d->query,       d->key,          d->value,       d->index_query,
                   d->index_key,   d->index_weight, d->index_scale, d->candidate,
                   d->n_candidate, d->out,          d->lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// FNV-1a over the positions of a selection, ascending: a set has one hash.
static uint64_t set_hash(const uint64_t *candidate, int32_t n) {
    uint64_t *position = test_alloc(n * 8 + 8), hash = 0xcbf29ce484222325u;
    for (int32_t i = 0; i < n; i++) position[i] = (uint64_t)candidate_position(candidate[i]);
    qsort(position, (size_t)n, sizeof *position, ascending);
    for (int32_t i = 0; i < n; i++) hash = (hash ^ position[i]) * 0x100000001b3u;
    free(position);
    return hash;
}

static void check_set(const struct data *d, int64_t position, const uint64_t *candidate,
                      int32_t n) {
    int k = d->shape->index.k;
    if (n != d->n_candidate[position] ||
        set_hash(candidate, n) != set_hash(d->candidate + position * k, n))
        fail_msg("%s: another selection for query %lld on rank %d of %d", d->shape->name,
                 (long long)position, comm->rank, comm->size);
}

static void check_close(const struct data *d, const float *got, const float *expected, int64_t n,
                        int64_t position) {
    char message[200];
    if (!is_close(DTYPE_F32, got, expected, n, TOLERANCE_F32, message, sizeof message))
        fail_msg("%s: query %lld on rank %d of %d: %s", d->shape->name, (long long)position,
                 comm->rank, comm->size, message);
}

// What this rank holds: rows of the positions that the sequence gives it, as they are appended.
struct shard {
    const struct data *data;
    struct sequence sequence;
    struct ring_attention ring;
    struct profile profile;
    int64_t n_key;
    struct test_buffer key, value, index_key, index_scale;
    int64_t position[N_TOKEN];
};

static void append_row(struct test_buffer *rows, int64_t row, const void *all, int64_t position,
                       int64_t bytes) {
    memcpy((char *)rows->host + row * bytes, (const char *)all + position * bytes, (size_t)bytes);
}

static struct attention_shape volume_shape(const struct shape *s) {
    return (struct attention_shape){.n_head = s->n_head,
                                    .n_kv_head = s->n_kv_head,
                                    .head_dim = s->head_dim,
                                    .value_dim = s->value_dim,
                                    .query_bytes = 4,
                                    .kv_bytes = 4,
                                    .value_in_key = s->value_in_key};
}

static void shard_open(struct shard *h, const struct data *d, int64_t chunk) {
    const struct shape *s = d->shape;
    struct attention_shape shape = volume_shape(s);
    int64_t n_query = 2 * ((chunk + 2 * comm->size - 1) / (2 * comm->size));
    const struct ring_extent extent = {.memory = backend.memory,
                                       .size = comm->size,
                                       .shard = N_TOKEN,
                                       .query = n_query,
                                       .all_query = chunk,
                                       .decode_query = 1};
    int64_t bytes = sparse_attention_workspace_bytes(&shape, &s->index, &extent);
    *h = (struct shard){.data = d};
    sequence_open(&h->sequence, comm->size);
    assert_int_equal(ring_attention_open(&h->ring, &backend, comm, &h->profile, bytes), OK);
    struct test_buffer nothing = test_buffer_open(&backend, bytes);
    assert_int_equal(backend.ops->copy(&backend, h->ring.workspace, nothing.image, bytes), OK);
    test_buffer_close(&nothing);
    h->key = test_buffer_open(&backend, N_TOKEN * key_row(s) * 4);
    h->value = test_buffer_open(&backend, (int64_t)N_TOKEN * s->n_kv_head * s->value_dim * 4);
    h->index_key =
        test_buffer_open(&backend, N_TOKEN * dtype_bytes(s->index_dtype, s->index.head_dim));
    h->index_scale = test_buffer_open(&backend, N_TOKEN * 4);
}

static void shard_close(struct shard *h) {
    ring_attention_close(&h->ring);
    sequence_close(&h->sequence);
    struct test_buffer *all[] = {&h->key, &h->value, &h->index_key, &h->index_scale};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) test_buffer_close(all[i]);
}

// Appends [begin, begin + n) and returns how many of them this rank owns; their positions are in
// h->position.
static int64_t shard_append(struct shard *h, enum layout layout, int64_t n) {
    const struct data *d = h->data;
    const struct shape *s = d->shape;
    int64_t begin = h->sequence.length;
    assert_true(sequence_append(&h->sequence, layout, n));
    int64_t n_own = sequence_count(&h->sequence, comm->rank, begin, begin + n);
    sequence_positions(&h->sequence, comm->rank, begin, begin + n, h->position);
    for (int64_t i = 0; i < n_own; i++, h->n_key++) {
        int64_t p = h->position[i];
        append_row(&h->key, h->n_key, d->key, p, key_row(s) * 4);
        if (d->value) append_row(&h->value, h->n_key, d->value, p, s->n_kv_head * s->value_dim * 4);
        append_row(&h->index_key, h->n_key, d->index_key, p,
                   dtype_bytes(s->index_dtype, s->index.head_dim));
        append_row(&h->index_scale, h->n_key, d->index_scale, p, 4);
    }
    const struct test_buffer *all[] = {&h->key, &h->value, &h->index_key, &h->index_scale};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) test_buffer_push(all[i]);
    return n_own;
}

struct queries { // rows of some positions
    struct test_buffer query, index_query, index_weight, candidate, n_candidate, out, lse;
};

static struct queries queries_open(const struct data *d, const int64_t *position, int64_t n) {
    const struct shape *s = d->shape;
    int64_t row = (int64_t)s->n_head * s->head_dim * 4, weight = s->index.n_head * 4;
    int64_t index = dtype_bytes(s->index_dtype, (int64_t)s->index.n_head * s->index.head_dim);
    struct queries q = {.query = test_buffer_open(&backend, n * row),
                        .index_query = test_buffer_open(&backend, n * index),
                        .index_weight = test_buffer_open(&backend, n * weight),
                        .candidate = test_buffer_open(&backend, n * s->index.k * 8),
                        .n_candidate = test_buffer_open(&backend, n * 4),
                        .out = test_buffer_open(&backend, n * s->n_head * s->value_dim * 4),
                        .lse = test_buffer_open(&backend, n * s->n_head * 4)};
    for (int64_t i = 0; i < n; i++) {
        append_row(&q.query, i, d->query, position[i], row);
        append_row(&q.index_query, i, d->index_query, position[i], index);
        append_row(&q.index_weight, i, d->index_weight, position[i], weight);
    }
    test_buffer_push(&q.query);
    test_buffer_push(&q.index_query);
    test_buffer_push(&q.index_weight);
    return q;
}

static void queries_close(struct queries *q) {
    struct test_buffer *all[] = {&q->query,       &q->index_query, &q->index_weight, &q->candidate,
                                 &q->n_candidate, &q->out,         &q->lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) test_buffer_close(all[i]);
}

// What the backend made of them.
static void queries_pull(struct queries *q) {
    struct test_buffer *all[] = {&q->candidate, &q->n_candidate, &q->out, &q->lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) test_buffer_pull(all[i]);
}

static struct sparse_ring_args sparse_args(const struct shard *h, const struct queries *q,
                                           int64_t begin, enum exchange exchange) {
    const struct shape *s = h->data->shape;
    return (struct sparse_ring_args){.attention = {.sequence = &h->sequence,
                                                   .query_begin = begin,
                                                   .query_end = h->sequence.length,
                                                   .n_head = s->n_head,
                                                   .n_kv_head = s->n_kv_head,
                                                   .head_dim = s->head_dim,
                                                   .value_dim = s->value_dim,
                                                   .scale = 0.25f,
                                                   .visibility = VISIBILITY_CAUSAL,
                                                   .query = q->query.image,
                                                   .query_dtype = DTYPE_F32,
                                                   .key = h->key.image,
                                                   .value = s->value_in_key ? NULL : h->value.image,
                                                   .kv_dtype = DTYPE_F32,
                                                   .out = q->out.image,
                                                   .lse = q->lse.image},
                                     .index = s->index,
                                     .index_dtype = s->index_dtype,
                                     .index_query = q->index_query.image,
                                     .index_weight = q->index_weight.image,
                                     .index_key = h->index_key.image,
                                     .index_key_scale =
                                         s->index.scale_bytes ? h->index_scale.image : NULL,
                                     .exchange = exchange,
                                     .candidate = q->candidate.image,
                                     .n_candidate = q->n_candidate.image};
}

static void check_queries(const struct data *d, struct queries *q, const int64_t *position,
                          int64_t n) {
    const struct shape *s = d->shape;
    int64_t width = (int64_t)s->n_head * s->value_dim;
    queries_pull(q);
    const uint64_t *candidate = q->candidate.host;
    const int32_t *n_candidate = q->n_candidate.host;
    const float *out = q->out.host, *lse = q->lse.host;
    for (int64_t i = 0; i < n; i++) {
        int64_t p = position[i];
        check_set(d, p, candidate + i * s->index.k, n_candidate[i]);
        check_close(d, out + i * width, d->out + p * width, width, p);
        check_close(d, lse + i * s->n_head, d->lse + p * s->n_head, s->n_head, p);
    }
}

// A chunk read by one exchange, then once more with its own selection as an earlier layer's.
static void check_chunk(struct shard *h, int64_t begin, int64_t n_own, enum exchange exchange) {
    const struct shape *s = h->data->shape;
    struct attention_shape shape = volume_shape(s);
    struct queries q = queries_open(h->data, h->position, n_own);
    struct sparse_ring_args args = sparse_args(h, &q, begin, exchange);
    int64_t before = comm->bytes_received, end = h->sequence.length;
    int64_t volume =
        exchange == EXCHANGE_KEYS
            ? volume_sparse_keys(&h->sequence, &shape, &s->index, comm->rank, end)
            : volume_sparse_scores(&h->sequence, &shape, &s->index, comm->rank, begin, end);
    assert_int_equal(sparse_attention_run(&h->ring, &args), OK);
    if (comm->size > 1) assert_int_equal(comm->bytes_received - before, volume);
    check_queries(h->data, &q, h->position, n_own);
    args.reuse = true;
    test_buffer_poison(&q.out);
    assert_int_equal(sparse_attention_run(&h->ring, &args), OK);
    check_queries(h->data, &q, h->position, n_own);
    queries_close(&q);
}

static void check_prefill(const struct data *d, int64_t chunk, enum exchange exchange,
                          enum layout layout) {
    struct shard h;
    shard_open(&h, d, chunk);
    while (h.sequence.length < N_TOKEN) {
        int64_t begin = h.sequence.length, left = N_TOKEN - begin;
        int64_t n_own = shard_append(&h, layout, left < chunk ? left : chunk);
        check_chunk(&h, begin, n_own, exchange);
    }
    shard_close(&h);
}

static void test_prefill(void **state) {
    (void)state;
    const int64_t chunks[] = {N_TOKEN, 100, 64, 3};
    for (int i = 0; i < N_SHAPE; i++) {
        struct data d = data_open(&shapes[i]);
        for (int c = 0; c < 4; c++) {
            check_prefill(&d, chunks[c], EXCHANGE_KEYS, LAYOUT_ZIGZAG);
            check_prefill(&d, chunks[c], EXCHANGE_SCORES, LAYOUT_ZIGZAG);
        }
        check_prefill(&d, 100, EXCHANGE_KEYS, LAYOUT_CONTIGUOUS);
        data_close(&d);
    }
}

// The last tokens one by one: every rank holds the query and learns the whole selection.
static void check_decode(struct shard *h) {
    const struct data *d = h->data;
    const struct shape *s = d->shape;
    struct attention_shape shape = volume_shape(s);
    struct span heads = partition_piece(s->n_head, comm->size, comm->rank);
    int64_t begin = h->sequence.length, dim = s->value_dim;
    shard_append(h, LAYOUT_ROUND_ROBIN, 1);
    struct queries q = queries_open(d, &begin, 1);
    struct sparse_ring_args args = sparse_args(h, &q, begin, EXCHANGE_AUTO);
    int64_t before = comm->bytes_received;
    args.attention.lse = NULL;
    assert_int_equal(sparse_decode_run(&h->ring, &args), OK);
    if (comm->size > 1)
        assert_int_equal(comm->bytes_received - before,
                         volume_sparse_decode(&shape, &s->index, comm->size, comm->rank, 1));
    queries_pull(&q);
    check_set(d, begin, q.candidate.host, *(int32_t *)q.n_candidate.host);
    check_close(d, q.out.host, d->out + (begin * s->n_head + heads.start) * dim, heads.length * dim,
                begin);
    args.reuse = true;
    args.attention.lse = q.lse.image;
    test_buffer_poison(&q.out);
    assert_int_equal(sparse_decode_run(&h->ring, &args), OK);
    queries_pull(&q);
    check_close(d, q.out.host, d->out + (begin * s->n_head + heads.start) * dim, heads.length * dim,
                begin);
    check_close(d, q.lse.host, d->lse + begin * s->n_head, s->n_head, begin);
    queries_close(&q);
}

static void test_decode(void **state) {
    (void)state;
    for (int i = 0; i < N_SHAPE; i++) {
        struct data d = data_open(&shapes[i]);
        struct shard h;
        shard_open(&h, &d, N_TOKEN);
        shard_append(&h, LAYOUT_ZIGZAG, N_TOKEN - 23);
        while (h.sequence.length < N_TOKEN) check_decode(&h);
        shard_close(&h);
        shard_open(&h, &d, 1); // nothing but decode: ranks without tokens
        for (int token = 0; token < 12; token++) check_decode(&h);
        shard_close(&h);
        data_close(&d);
    }
}

// Where k covers everything, the dense ring gives the same.
static void test_all_selected(void **state) {
    (void)state;
    struct data d = data_open(&shapes[N_SHAPE - 1]);
    struct shard h;
    shard_open(&h, &d, N_TOKEN);
    int64_t n_own = shard_append(&h, LAYOUT_ZIGZAG, N_TOKEN);
    struct queries q = queries_open(&d, h.position, n_own);
    struct sparse_ring_args args = sparse_args(&h, &q, 0, EXCHANGE_KEYS);
    assert_int_equal(ring_attention_run(&h.ring, &args.attention), OK);
    int64_t width = (int64_t)d.shape->n_head * d.shape->value_dim;
    test_buffer_pull(&q.out);
    for (int64_t i = 0; i < n_own; i++)
        check_close(&d, (float *)q.out.host + i * width, d.out + h.position[i] * width, width,
                    h.position[i]);
    queries_close(&q);
    shard_close(&h);
    data_close(&d);
}

static void test_not_a_number(void **state) {
    (void)state;
    struct data d = data_open(&shapes[4]);
    struct shard h;
    shard_open(&h, &d, N_TOKEN);
    int64_t n_own = shard_append(&h, LAYOUT_ZIGZAG, N_TOKEN);
    struct queries q = queries_open(&d, h.position, n_own);
    struct sparse_ring_args args = sparse_args(&h, &q, 0, EXCHANGE_KEYS);
    if (n_own) // each rank spoils its last query
        poison((char *)q.index_weight.host + (n_own - 1) * d.shape->index.n_head * 4, 4);
    test_buffer_push(&q.index_weight);
    enum status status = sparse_attention_run(&h.ring, &args);
    if (status == OK) status = backend.ops->sync(&backend);
    assert_int_equal(status, n_own ? ERR_INPUT : OK);
    if (n_own) assert_non_null(strstr(status_message(), "is not a number"));
    queries_close(&q);
    shard_close(&h);
    data_close(&d);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct backend_options slow = {.kind = BACKEND_REFERENCE, .n_thread = 1};
    mpi_test_open_backend(BACKEND_CPU, &backend);
    selecting = backend;
    if (backend_open(&slow, &reference) != OK ||
        (backend.memory == MEMORY_DEVICE && open_mirror(mpi_test_device(), &selecting) != OK))
        return mpi_test_stop(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_all_selected),
    };
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    const struct CMUnitTest last[] = {cmocka_unit_test(test_not_a_number)}; // leaves the ring as is
    if (comm->size == 1) n_failed += cmocka_run_group_tests(last, NULL, NULL);
    if (backend.memory == MEMORY_DEVICE) backend_close(&selecting);
    backend_close(&reference);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(n_failed);
}
