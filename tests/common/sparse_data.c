#include "tests/common/sparse_data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
// setjmp.h, stdarg.h and stdlib.h come before cmocka.h
#include <cmocka.h>

#include "kernels/reference/reference.h"
#include "tests/common/cases.h"

int64_t sparse_key_row(const struct sparse_shape *s) {
    return (int64_t)s->n_kv_head * s->head_dim;
}

static float small_integer(uint64_t seed, int64_t i, bool exact) {
    if (!exact) return random_normal(seed, (uint64_t)i);
    float x = (float)(random_bits(seed, (uint64_t)i) % 3) - 1;
    return x == 0 && random_bits(seed + 100, (uint64_t)i) % 2 ? -0.0f : x;
}

static void *index_rows(const struct sparse_shape *s, uint64_t seed, int64_t n) {
    float *x = test_alloc(n * 4);
    void *rows = test_alloc(dtype_bytes(s->index_dtype, n));
    for (int64_t i = 0; i < n; i++) x[i] = small_integer(seed, i, s->exact);
    dtype_from_float(s->index_dtype, x, n, rows);
    free(x);
    return rows;
}

// Selects and attends in one process, on the given backend for the selection.
static void solve(struct sparse_data *d, struct backend *reference, struct backend *on) {
    const struct sparse_shape *s = d->shape;
    int64_t position[SPARSE_TOKENS];
    int k = s->index.k;
    int32_t *row = test_alloc((int64_t)SPARSE_TOKENS * k * 4), n_selected[SPARSE_TOKENS];
    for (int i = 0; i < SPARSE_TOKENS; i++) position[i] = i;
    memset(d->n_candidate, 0, SPARSE_TOKENS * sizeof *d->n_candidate);
    struct key_run run = {0, 1, SPARSE_TOKENS, 0};
    struct index_args score = {.n_query = SPARSE_TOKENS,
                               .n_key = SPARSE_TOKENS,
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
    struct select_rows_args rows = {SPARSE_TOKENS, k,   d->candidate, d->n_candidate, &run, 1,
                                    SPARSE_TOKENS, row, n_selected};
    assert_int_equal(reference_select_rows(reference, &rows), OK);
    struct sparse_attention_args sparse = {
        .attention = {.n_query = SPARSE_TOKENS,
                      .n_key = SPARSE_TOKENS,
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
                      .key_stride = sparse_key_row(s),
                      .value_stride =
                          d->value ? (int64_t)s->n_kv_head * s->value_dim : sparse_key_row(s),
                      .out = d->out,
                      .lse = d->lse},
        .row = row,
        .n_selected = n_selected,
        .k = k};
    assert_int_equal(reference_sparse_attention(reference, &sparse), OK);
    free(row);
}

struct sparse_data sparse_data_open(const struct sparse_shape *s, struct backend *reference,
                                    struct backend *selecting) {
    const int64_t n = SPARSE_TOKENS;
    struct sparse_data d = {.shape = s};
    d.query = random_vector(DTYPE_F32, n * s->n_head * s->head_dim, 1, 1);
    d.key = random_vector(DTYPE_F32, n * sparse_key_row(s), 1, 2);
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
    solve(&d, reference, s->exact ? reference : selecting);
    return d;
}

void sparse_data_close(struct sparse_data *d) {
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

void check_selection(const struct sparse_data *d, int64_t position, const uint64_t *candidate,
                     int32_t n) {
    int k = d->shape->index.k;
    if (n != d->n_candidate[position] ||
        set_hash(candidate, n) != set_hash(d->candidate + position * k, n))
        fail_msg("%s: another selection for query %lld on rank %d of %d", d->shape->name,
                 (long long)position, mpi_test_comm.rank, mpi_test_comm.size);
}

void check_result(const struct sparse_data *d, const float *got, const float *expected, int64_t n,
                  int64_t position) {
    char message[200];
    if (!is_close(DTYPE_F32, got, expected, n, TOLERANCE_F32, message, sizeof message))
        fail_msg("%s: query %lld on rank %d of %d: %s", d->shape->name, (long long)position,
                 mpi_test_comm.rank, mpi_test_comm.size, message);
}
