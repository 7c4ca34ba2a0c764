#include "tests/common/ring_problem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
// setjmp.h, stdarg.h and stdlib.h come before cmocka.h
#include <cmocka.h>

#include "kernels/reference/reference.h"
#include "tests/common/cases.h"

static struct comm *const comm = &mpi_test_comm;

int64_t query_row(const struct shape *s) {
    return (int64_t)s->n_head * s->head_dim;
}

int64_t key_row(const struct shape *s) {
    return (int64_t)s->n_kv_head * s->head_dim;
}

int64_t value_row(const struct shape *s) {
    return (int64_t)s->n_kv_head * s->value_dim;
}

void problem_open(struct problem *p, struct backend *backend, const struct shape *s,
                  struct sequence sequence, int64_t begin, struct visibility visibility) {
    int64_t end = sequence.length, n = end - begin;
    *p = (struct problem){.backend = backend,
                          .shape = *s,
                          .sequence = sequence,
                          .begin = begin,
                          .end = end,
                          .visibility = visibility};
    p->query = random_vector(s->query_dtype, end * query_row(s), 2.0f, 1);
    p->key = random_vector(s->kv_dtype, end * key_row(s), 1.0f, 2);
    p->value = random_vector(s->kv_dtype, end * value_row(s), 1.0f, 3);
    p->out = test_alloc(n * s->n_head * s->value_dim * (int64_t)sizeof(float));
    p->lse = test_alloc(n * s->n_head * (int64_t)sizeof(float));
    int64_t *position = test_alloc(3 * end * (int64_t)sizeof(int64_t));
    int64_t *first_visible = position + end, *end_visible = first_visible + end;
    for (int64_t i = 0; i < end; i++) position[i] = i;
    visibility_bounds(&visibility, position + begin, n, first_visible, end_visible);
    struct attention_args whole = {
        .n_query = n,
        .n_key = end,
        .n_head = s->n_head,
        .n_kv_head = s->n_kv_head,
        .head_dim = s->head_dim,
        .value_dim = s->value_dim,
        .scale = 0.25f,
        .query = (char *)p->query + dtype_bytes(s->query_dtype, begin * query_row(s)),
        .query_dtype = s->query_dtype,
        .query_stride = query_row(s),
        .key = p->key,
        .value = p->value,
        .kv_dtype = s->kv_dtype,
        .key_stride = key_row(s),
        .value_stride = value_row(s),
        .first_visible = first_visible,
        .sinks = visibility_sinks(&visibility),
        .end_visible = end_visible,
        .key_position = position,
        .out = p->out,
        .lse = p->lse,
    };
    assert_int_equal(reference_attention(backend, &whole), OK);
    free(position);
}

void problem_close(struct problem *p) {
    free(p->query);
    free(p->key);
    free(p->value);
    free(p->out);
    free(p->lse);
    sequence_close(&p->sequence);
}

struct visible_range problem_range(const struct problem *p) {
    return (struct visible_range){.sequence = &p->sequence,
                                  .visibility = p->visibility,
                                  .key_begin = p->key_begin,
                                  .query_begin = p->begin,
                                  .query_end = p->end};
}

int64_t *own_positions(const struct problem *p, bool keys, int64_t *n) {
    const struct sequence *s = &p->sequence;
    struct visible_range range = problem_range(p);
    int64_t begin = keys ? p->key_begin : p->begin, sinks = keys ? visible_sinks(&range) : 0;
    int64_t n_sink = sequence_count(s, comm->rank, 0, sinks);
    *n = n_sink + sequence_count(s, comm->rank, begin, p->end);
    int64_t *position = test_alloc(*n * (int64_t)sizeof(int64_t) + 8);
    sequence_positions(s, comm->rank, 0, sinks, position);
    sequence_positions(s, comm->rank, begin, p->end, position + n_sink);
    return position;
}

struct test_buffer own_buffer(const struct problem *p, const void *rows, enum dtype dtype,
                              int64_t n_col, bool keys) {
    int64_t n, bytes = dtype_bytes(dtype, n_col);
    int64_t *position = own_positions(p, keys, &n);
    char *own = test_alloc(n * bytes + 64);
    for (int64_t i = 0; i < n; i++)
        memcpy(own + i * bytes, (const char *)rows + position[i] * bytes, (size_t)bytes);
    free(position);
    return test_buffer_take(p->backend, own, n * bytes);
}

void check_rows(const float *got, const float *expected, int64_t n, const char *what) {
    char message[256];
    if (!is_close(DTYPE_F32, got, expected, n, TOLERANCE_F32, message, sizeof message))
        fail_msg("%s on rank %d of %d: %s", what, comm->rank, comm->size, message);
}
