// ranks: 1 2 3 4
// Pooling over ranks: rows of overlapping and nested spans, whichever rank has which token, against
// sums in one place.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/pool.h"
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
    assert_int_equal(pool_open(pooling, false, N_HIDDEN, spans, n_row, &pool), OK);
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

static void rows_have_length_one(void **state) {
    (void)state;
    const struct span zero = {0, 1}; // a state of zeros stays as it is
    const float states[2][2] = {{0, 0}, {3, 4}};
    const int64_t position[2] = {0, 1};
    const struct span two[2] = {zero, {1, 1}};
    float rows[2][2];
    struct pool pool;
    struct comm *comm = &mpi_test_comm;
    assert_int_equal(pool_open(POOLING_MEAN, true, 2, two, 2, &pool), OK);
    if (comm->rank == comm->size - 1)
        assert_int_equal(pool_add(&pool, position, 2, 0, states[0]), OK);
    assert_int_equal(pool_rows(&pool, comm, 0, 2, rows[0]), OK);
    if (comm->rank == 0) {
        assert_true(rows[0][0] == 0 && rows[0][1] == 0);
        assert_true(rows[1][0] == 0.6f && rows[1][1] == 0.8f);
    }
    pool_close(&pool);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_pooled),
        cmocka_unit_test(rows_have_length_one),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
