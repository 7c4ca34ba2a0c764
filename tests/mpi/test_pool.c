// ranks: 1 2 3 4
// fake device: 1 3
// Pooling over ranks: rows of overlapping and nested spans, whichever rank has which token, against
// sums in one place. Then what makes vectors of rows: Dense layers and length 1.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/vector_head.h"
#include "tests/common/mpi_test.h"

enum { N_TOKEN = 67, N_HIDDEN = 5, N_ROW = 9, TILE = 11 };
static const struct span spans[N_ROW] = {{0, 67}, {3, 1},  {3, 10}, {0, 2},  {66, 1},
                                         {5, 40}, {30, 3}, {13, 7}, {30, 37}};

static float value(int64_t token, int64_t j) {
    return (float)((token * 7 + j * 13) % 29) - 14;
}

// A rank's tokens in tiles; coordinates are shifted by 100 against positions.
static void add_tokens(struct pool *pool, int rank, int size) {
    int64_t position[TILE];
    float state[TILE][N_HIDDEN];
    int64_t n = 0;
    for (int64_t t = 0; t <= N_TOKEN; t++) {
        if (n == TILE || t == N_TOKEN) {
            assert_int_equal(pool_add(pool, position, n, -100, state[0]), OK);
            n = 0;
        }
        if (t == N_TOKEN || (t / 4) % size != rank) continue;
        for (int64_t j = 0; j < N_HIDDEN; j++) state[n][j] = value(t, j);
        position[n++] = t + 100;
    }
}

static double expected(enum pooling pooling, int64_t row, int64_t j) {
    if (pooling == POOLING_NONE) return value(row, j);
    int64_t begin = spans[row].start, last = begin + spans[row].length - 1;
    if (pooling == POOLING_CLS) return value(begin, j);
    if (pooling == POOLING_LAST) return value(last, j);
    double sum = 0;
    for (int64_t t = begin; t <= last; t++) sum += value(t, j);
    return sum / (double)spans[row].length;
}

static void check(enum pooling pooling) {
    struct comm *comm = &mpi_test_comm;
    struct pool pool;
    int64_t n_row = pooling == POOLING_NONE ? N_TOKEN : N_ROW;
    float rows[4][N_HIDDEN];
    assert_int_equal(pool_open(pooling, N_HIDDEN, spans, n_row, &pool), OK);
    add_tokens(&pool, comm->rank, comm->size);
    for (int64_t begin = 0; begin < n_row; begin += 4) {
        int64_t n = n_row - begin < 4 ? n_row - begin : 4;
        assert_int_equal(pool_rows(&pool, comm, begin, n, rows[0]), OK);
        for (int64_t i = 0; comm->rank == 0 && i < n; i++)
            for (int64_t j = 0; j < N_HIDDEN; j++)
                assert_true(rows[i][j] == (float)expected(pooling, begin + i, j));
    }
    pool_close(&pool);
}

static void rows_are_pooled(void **state) {
    (void)state;
    for (int pooling = POOLING_MEAN; pooling <= POOLING_NONE; pooling++)
        check((enum pooling)pooling);
}

enum { N_STATE = 3 };
static const float states[N_STATE][2] = {{0, 0}, {3, 4}, {1, -2}};

// One row of each state, pooled from the last rank's tokens, through the head.
static void vectors_of_states(struct vector_head *head, float *out) {
    const int64_t position[N_STATE] = {0, 1, 2};
    const struct span one_each[N_STATE] = {{0, 1}, {1, 1}, {2, 1}};
    struct comm *comm = &mpi_test_host_comm;
    struct pool pool;
    assert_int_equal(pool_open(POOLING_MEAN, 2, one_each, N_STATE, &pool), OK);
    if (comm->rank == comm->size - 1)
        assert_int_equal(pool_add(&pool, position, N_STATE, 0, states[0]), OK);
    assert_int_equal(vector_head_rows(head, &pool, comm, 0, N_STATE, out), OK);
    pool_close(&pool);
}

static void vectors_have_length_one(void **state) {
    (void)state;
    struct vector_head head = {.normalise = true, .n_out = 2, .widest = 2};
    float rows[N_STATE][2];
    vectors_of_states(&head, rows[0]);
    if (mpi_test_host_comm.rank != 0) return;
    assert_true(rows[0][0] == 0 && rows[0][1] == 0); // a state of zeros stays as it is
    assert_true(rows[1][0] == 0.6f && rows[1][1] == 0.8f);
}

static void vectors_pass_dense_layers(void **state) {
    (void)state;
    static const float first[3][2] = {{0.5f, -1}, {2, 0.25f}, {-1, 1}}, second[1][3] = {{1, -2, 4}};
    const float bias[3] = {0.125f, -1, 2};
    struct backend backend;
    struct vector_head head = {.n_out = 1, .widest = 3, .modules.n_dense = 2};
    struct sentence_dense *dense = head.modules.dense;
    dense[0].weight = (struct weight){first, DTYPE_F32, 3, 2, sizeof *first, NULL, 0, 0, 0};
    dense[0].bias = malloc(sizeof bias);
    assert_non_null(dense[0].bias);
    memcpy(dense[0].bias, bias, sizeof bias);
    dense[0].activation = DENSE_TANH;
    dense[1].weight = (struct weight){second, DTYPE_F32, 1, 3, sizeof *second, NULL, 0, 0, 0};
    mpi_test_open_backend(BACKEND_CPU, &backend);
    bool writes = mpi_test_host_comm.rank == 0;
    if (writes) assert_int_equal(vector_head_load(&head, &backend), OK);
    float rows[N_STATE];
    vectors_of_states(&head, rows);
    for (int i = 0; writes && i < N_STATE; i++) {
        double expected = 0;
        for (int h = 0; h < 3; h++)
            expected += second[0][h] * tanh((double)first[h][0] * states[i][0] +
                                            (double)first[h][1] * states[i][1] + bias[h]);
        assert_true(fabs(rows[i] - expected) < 1e-6); // of six: fp32 rounding
    }
    vector_head_close(&head);
    mpi_test_close_backend(&backend);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_pooled),
        cmocka_unit_test(vectors_have_length_one),
        cmocka_unit_test(vectors_pass_dense_layers),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
