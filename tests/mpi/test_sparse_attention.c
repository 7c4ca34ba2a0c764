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

#include "tests/common/backends.h"
#include "tests/common/cases.h"
#include "tests/common/sparse_data.h"

static struct comm *const comm = &mpi_test_comm;
static struct backend backend, reference;
static struct backend selecting; // `backend`, or its mirror: on host memory

static const struct sparse_shape shapes[] = {
    {"ties fp8", 4, 2, 16, 16, false, {3, 32, 20, 1, 4}, DTYPE_F8_E4M3, true},
    {"ties bf16", 4, 1, 48, 32, true, {2, 16, 33, 2, 0}, DTYPE_BF16, true},
    {"ties fp32, one selected", 3, 3, 16, 24, false, {1, 8, 1, 4, 0}, DTYPE_F32, true},
    {"random fp8", 6, 2, 16, 16, false, {4, 64, 40, 1, 4}, DTYPE_F8_E4M3, false},
    {"random fp32", 8, 1, 48, 32, true, {4, 32, 25, 4, 0}, DTYPE_F32, false},
    {"more than there are", 4, 2, 16, 16, false, {2, 32, 1000, 4, 0}, DTYPE_F32, false},
};
enum { N_SHAPE = sizeof shapes / sizeof *shapes };

// What this rank holds: rows of the positions that the sequence gives it, as they are appended.
struct shard {
    const struct sparse_data *data;
    struct sequence sequence;
    struct ring_attention ring;
    struct profile profile;
    int64_t n_key;
    struct test_buffer key, value, index_key, index_scale;
    int64_t position[SPARSE_TOKENS];
};

static void append_row(struct test_buffer *rows, int64_t row, const void *all, int64_t position,
                       int64_t bytes) {
    memcpy((char *)rows->host + row * bytes, (const char *)all + position * bytes, (size_t)bytes);
}

static struct attention_shape volume_shape(const struct sparse_shape *s) {
    return (struct attention_shape){.n_head = s->n_head,
                                    .n_kv_head = s->n_kv_head,
                                    .head_dim = s->head_dim,
                                    .value_dim = s->value_dim,
                                    .query_bytes = 4,
                                    .kv_bytes = 4,
                                    .value_in_key = s->value_in_key};
}

static void shard_open(struct shard *h, const struct sparse_data *d, int64_t chunk) {
    const struct sparse_shape *s = d->shape;
    struct attention_shape shape = volume_shape(s);
    int64_t n_query = 2 * ((chunk + 2 * comm->size - 1) / (2 * comm->size));
    const struct ring_extent extent = {.memory = backend.memory,
                                       .size = comm->size,
                                       .shard = SPARSE_TOKENS,
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
    h->key = test_buffer_open(&backend, SPARSE_TOKENS * sparse_key_row(s) * 4);
    h->value = test_buffer_open(&backend, (int64_t)SPARSE_TOKENS * s->n_kv_head * s->value_dim * 4);
    h->index_key =
        test_buffer_open(&backend, SPARSE_TOKENS * dtype_bytes(s->index_dtype, s->index.head_dim));
    h->index_scale = test_buffer_open(&backend, SPARSE_TOKENS * 4);
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
    const struct sparse_data *d = h->data;
    const struct sparse_shape *s = d->shape;
    int64_t begin = h->sequence.length;
    assert_true(sequence_append(&h->sequence, layout, n));
    int64_t n_own = sequence_count(&h->sequence, comm->rank, begin, begin + n);
    sequence_positions(&h->sequence, comm->rank, begin, begin + n, h->position);
    for (int64_t i = 0; i < n_own; i++, h->n_key++) {
        int64_t p = h->position[i];
        append_row(&h->key, h->n_key, d->key, p, sparse_key_row(s) * 4);
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

static struct queries queries_open(const struct sparse_data *d, const int64_t *position,
                                   int64_t n) {
    const struct sparse_shape *s = d->shape;
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
    const struct sparse_shape *s = h->data->shape;
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

static void check_results(const struct sparse_data *d, const struct queries *q,
                          const int64_t *position, int64_t n) {
    const struct sparse_shape *s = d->shape;
    int64_t width = (int64_t)s->n_head * s->value_dim;
    const float *out = q->out.host, *lse = q->lse.host;
    for (int64_t i = 0; i < n; i++) {
        int64_t p = position[i];
        check_result(d, out + i * width, d->out + p * width, width, p);
        check_result(d, lse + i * s->n_head, d->lse + p * s->n_head, s->n_head, p);
    }
}

static void check_queries(const struct sparse_data *d, struct queries *q, const int64_t *position,
                          int64_t n) {
    queries_pull(q);
    const uint64_t *candidate = q->candidate.host;
    const int32_t *n_candidate = q->n_candidate.host;
    for (int64_t i = 0; i < n; i++)
        check_selection(d, position[i], candidate + i * d->shape->index.k, n_candidate[i]);
    check_results(d, q, position, n);
}

// A chunk read by one exchange, then once more with its own selection as an earlier layer's.
static void check_chunk(struct shard *h, int64_t begin, int64_t n_own, enum exchange exchange) {
    const struct sparse_shape *s = h->data->shape;
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

typedef void check_chunk_of(struct shard *h, int64_t begin, int64_t n_own, enum exchange exchange);

static void check_prefill(const struct sparse_data *d, int64_t chunk, enum exchange exchange,
                          enum layout layout, check_chunk_of *check) {
    struct shard h;
    shard_open(&h, d, chunk);
    while (h.sequence.length < SPARSE_TOKENS) {
        int64_t begin = h.sequence.length, left = SPARSE_TOKENS - begin;
        int64_t n_own = shard_append(&h, layout, left < chunk ? left : chunk);
        check(&h, begin, n_own, exchange);
    }
    shard_close(&h);
}

static void test_prefill(void **state) {
    (void)state;
    const int64_t chunks[] = {SPARSE_TOKENS, 100, 64, 3};
    for (int i = 0; i < N_SHAPE; i++) {
        struct sparse_data d = sparse_data_open(&shapes[i], &reference, &selecting);
        for (int c = 0; c < 4; c++) {
            check_prefill(&d, chunks[c], EXCHANGE_KEYS, LAYOUT_ZIGZAG, check_chunk);
            check_prefill(&d, chunks[c], EXCHANGE_SCORES, LAYOUT_ZIGZAG, check_chunk);
        }
        check_prefill(&d, 100, EXCHANGE_KEYS, LAYOUT_CONTIGUOUS, check_chunk);
        sparse_data_close(&d);
    }
}

// Selections in two halves, of which some queries have all in the first, some all in the second. By
// position: ranks on devices of their own find the same candidates in other orders.
enum half { FIRST_HALF, SECOND_HALF };

static bool in_half(int64_t query_position, uint64_t candidate, enum half half) {
    bool odd = candidate_position(candidate) % 2 == 1;
    bool second = query_position % 3 == 2 ? odd : query_position % 3 == 1;
    return second == (half == SECOND_HALF);
}

static void select_half(struct queries *q, const struct sparse_data *d, const int64_t *position,
                        int64_t n, enum half half) {
    const int k = d->shape->index.k;
    uint64_t *candidate = q->candidate.host;
    int32_t *n_candidate = q->n_candidate.host;
    poison(candidate, q->candidate.bytes);
    for (int64_t i = 0; i < n; i++) {
        n_candidate[i] = 0;
        for (int32_t c = 0; c < d->n_candidate[position[i]]; c++) {
            uint64_t found = d->candidate[position[i] * k + c];
            if (in_half(position[i], found, half)) candidate[i * k + n_candidate[i]++] = found;
        }
    }
    test_buffer_push(&q->candidate);
    test_buffer_push(&q->n_candidate);
}

// The own keys and values, but those that no query from `begin` on, of any rank, has in the half:
// they become NaN, as they must not be read.
static void spoil_others(struct shard *h, int64_t begin, enum half half) {
    const struct sparse_data *d = h->data;
    const struct sparse_shape *s = d->shape;
    int64_t key_bytes = sparse_key_row(s) * 4, value_bytes = s->n_kv_head * s->value_dim * 4;
    int64_t end = h->sequence.length, position[SPARSE_TOKENS];
    bool selected[SPARSE_TOKENS] = {false};
    for (int64_t p = begin; p < end; p++)
        for (int32_t c = 0; c < d->n_candidate[p]; c++) {
            uint64_t found = d->candidate[p * s->index.k + c];
            if (in_half(p, found, half)) selected[candidate_position(found)] = true;
        }
    sequence_positions(&h->sequence, comm->rank, 0, end, position);
    for (int64_t row = 0; row < h->n_key; row++) {
        append_row(&h->key, row, d->key, position[row], key_bytes);
        if (d->value) append_row(&h->value, row, d->value, position[row], value_bytes);
        if (selected[position[row]]) continue;
        poison((char *)h->key.host + row * key_bytes, key_bytes);
        poison((char *)h->value.host + row * value_bytes, value_bytes);
    }
    test_buffer_push(&h->key);
    test_buffer_push(&h->value);
}

// The second call joins what the first left, and leaves the rows of queries that it selects
// nothing for as they are, bit for bit.
static void check_halves(struct shard *h, int64_t begin, int64_t n_own, enum exchange exchange) {
    const struct sparse_shape *s = h->data->shape;
    struct queries q = queries_open(h->data, h->position, n_own);
    struct sparse_ring_args args = sparse_args(h, &q, begin, exchange);
    int64_t width = (int64_t)s->n_head * s->value_dim;
    float *out = test_alloc(q.out.bytes), *lse = test_alloc(q.lse.bytes);
    args.reuse = true;
    for (enum half half = FIRST_HALF; half <= SECOND_HALF; half++) {
        memcpy(out, q.out.host, (size_t)q.out.bytes);
        memcpy(lse, q.lse.host, (size_t)q.lse.bytes);
        select_half(&q, h->data, h->position, n_own, half);
        spoil_others(h, begin, half);
        args.attention.merge = half == SECOND_HALF;
        assert_int_equal(sparse_attention_run(&h->ring, &args), OK);
        queries_pull(&q);
    }
    check_results(h->data, &q, h->position, n_own);
    for (int64_t i = 0; i < n_own; i++) {
        if (h->position[i] % 3) continue;
        assert_memory_equal((float *)q.out.host + i * width, out + i * width, (size_t)width * 4);
        assert_memory_equal((float *)q.lse.host + i * s->n_head, lse + i * s->n_head,
                            (size_t)s->n_head * 4);
    }
    free(out);
    free(lse);
    queries_close(&q);
}

static void test_halves_merge(void **state) {
    (void)state;
    const int64_t chunks[] = {SPARSE_TOKENS, 50, 3};
    for (int i = 0; i < N_SHAPE; i++) {
        struct sparse_data d = sparse_data_open(&shapes[i], &reference, &selecting);
        for (int c = 0; c < 3; c++) {
            check_prefill(&d, chunks[c], EXCHANGE_KEYS, LAYOUT_ZIGZAG, check_halves);
            check_prefill(&d, chunks[c], EXCHANGE_SCORES, LAYOUT_ZIGZAG, check_halves);
        }
        sparse_data_close(&d);
    }
}

// The last tokens one by one: every rank holds the query and learns the whole selection.
static void check_decode(struct shard *h) {
    const struct sparse_data *d = h->data;
    const struct sparse_shape *s = d->shape;
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
    check_selection(d, begin, q.candidate.host, *(int32_t *)q.n_candidate.host);
    check_result(d, q.out.host, d->out + (begin * s->n_head + heads.start) * dim,
                 heads.length * dim, begin);
    args.reuse = true;
    args.attention.lse = q.lse.image;
    test_buffer_poison(&q.out);
    assert_int_equal(sparse_decode_run(&h->ring, &args), OK);
    queries_pull(&q);
    check_result(d, q.out.host, d->out + (begin * s->n_head + heads.start) * dim,
                 heads.length * dim, begin);
    check_result(d, q.lse.host, d->lse + begin * s->n_head, s->n_head, begin);
    queries_close(&q);
}

static void test_decode(void **state) {
    (void)state;
    for (int i = 0; i < N_SHAPE; i++) {
        struct sparse_data d = sparse_data_open(&shapes[i], &reference, &selecting);
        struct shard h;
        shard_open(&h, &d, SPARSE_TOKENS);
        shard_append(&h, LAYOUT_ZIGZAG, SPARSE_TOKENS - 23);
        while (h.sequence.length < SPARSE_TOKENS) check_decode(&h);
        shard_close(&h);
        shard_open(&h, &d, 1); // nothing but decode: ranks without tokens
        for (int token = 0; token < 12; token++) check_decode(&h);
        shard_close(&h);
        sparse_data_close(&d);
    }
}

// Where k covers everything, the dense ring gives the same.
static void test_all_selected(void **state) {
    (void)state;
    struct sparse_data d = sparse_data_open(&shapes[N_SHAPE - 1], &reference, &selecting);
    struct shard h;
    shard_open(&h, &d, SPARSE_TOKENS);
    int64_t n_own = shard_append(&h, LAYOUT_ZIGZAG, SPARSE_TOKENS);
    struct queries q = queries_open(&d, h.position, n_own);
    struct sparse_ring_args args = sparse_args(&h, &q, 0, EXCHANGE_KEYS);
    assert_int_equal(ring_attention_run(&h.ring, &args.attention), OK);
    int64_t width = (int64_t)d.shape->n_head * d.shape->value_dim;
    test_buffer_pull(&q.out);
    for (int64_t i = 0; i < n_own; i++)
        check_result(&d, (float *)q.out.host + i * width, d.out + h.position[i] * width, width,
                     h.position[i]);
    queries_close(&q);
    shard_close(&h);
    sparse_data_close(&d);
}

static void test_not_a_number(void **state) {
    (void)state;
    struct sparse_data d = sparse_data_open(&shapes[4], &reference, &selecting);
    struct shard h;
    shard_open(&h, &d, SPARSE_TOKENS);
    int64_t n_own = shard_append(&h, LAYOUT_ZIGZAG, SPARSE_TOKENS);
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
    sparse_data_close(&d);
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
        cmocka_unit_test(test_halves_merge),
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
