// ranks: 1 2 3 4 8
// fake device: 3
// Rows that travel to experts and home: an expert here multiplies a row by its number plus one and
// adds its number, so that what must come home is known. Uneven loads, ranks without tokens, more
// ranks than experts, one expert for all.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dist/expert_exchange.h"
#include "tests/common/cases.h"
#include "tests/common/mpi_test.h"

static struct comm *const comm = &mpi_test_comm;
static struct backend backend;

enum load { SPREAD, ALL_TO_ONE, SOME_RANKS_EMPTY };
enum { N_COL = 12, MAX_TOKENS = 40, MAX_USED = 4 };

struct tokens { // of this rank
    int64_t n;
    float x[MAX_TOKENS * N_COL], weight[MAX_TOKENS * MAX_USED], out[MAX_TOKENS * N_COL];
    int32_t expert[MAX_TOKENS * MAX_USED];
};

static int64_t tokens_of(enum load load, int rank, int round) {
    if (load == SOME_RANKS_EMPTY && rank % 2 == round % 2) return 0;
    return (rank * 13 + round * 7) % MAX_TOKENS + (rank == 0);
}

// Small integers: sums are exact, whatever their order.
static void fill(struct tokens *t, const struct expert_exchange_shape *s, enum load load,
                 int round) {
    uint64_t seed = (uint64_t)(comm->rank * 100 + round);
    t->n = tokens_of(load, comm->rank, round);
    for (int64_t i = 0; i < t->n * N_COL; i++)
        t->x[i] = (float)(random_bits(seed, (uint64_t)i) % 9);
    for (int64_t i = 0; i < t->n * s->n_used; i++) {
        int64_t token = i / s->n_used, j = i % s->n_used;
        int64_t first = (int64_t)(random_bits(seed + 50, (uint64_t)token) % 1000);
        if (load == ALL_TO_ONE) first = 2;
        t->expert[i] = (int32_t)((first + j) % s->n_expert); // each once
        t->weight[i] = (float)(1 + random_bits(seed + 70, (uint64_t)i) % 3);
    }
    for (int64_t i = 0; i < t->n * N_COL; i++) t->out[i] = 5;
}

// Groups, their order, and the experts' work on them.
static void run_experts(struct expert_exchange *x, const float *rows, float *product) {
    struct span own = partition_piece(x->shape.n_expert, comm->size, comm->rank);
    assert_int_equal(x->first_row[0], 0);
    for (int64_t e = 0; e < own.length; e++) {
        assert_true(x->first_row[e] <= x->first_row[e + 1]);
        float expert = (float)(own.start + e);
        for (int64_t i = x->first_row[e] * N_COL; i < x->first_row[e + 1] * N_COL; i++)
            product[i] = rows[i] * (expert + 1) + expert;
    }
}

static struct test_buffer image_of(const void *values, int64_t bytes) {
    void *host = test_alloc(bytes);
    memcpy(host, values, (size_t)bytes);
    return test_buffer_take(&backend, host, bytes);
}

static void check_round(struct expert_exchange *x, enum load load, int round) {
    const struct expert_exchange_shape *s = &x->shape;
    struct tokens t;
    const void *rows = NULL;
    int64_t before = x->rows_received, counts[2];
    fill(&t, s, load, round);
    struct test_buffer in = image_of(t.x, t.n * N_COL * 4);
    struct test_buffer out = image_of(t.out, t.n * N_COL * 4);
    struct test_buffer expert = image_of(t.expert, t.n * s->n_used * 4);
    struct test_buffer weight = image_of(t.weight, t.n * s->n_used * 4);
    assert_int_equal(expert_exchange_dispatch(x, in.image, expert.image, t.n, &rows), OK);
    int64_t owned = partition_piece(s->n_expert, comm->size, comm->rank).length;
    int64_t received = x->first_row[owned];
    assert_int_equal(x->rows_received - before, received);
    float *host_rows = test_alloc(received * N_COL * 4);
    assert_int_equal(backend.ops->download(&backend, host_rows, rows, received * N_COL * 4), OK);
    assert_int_equal(backend.ops->sync(&backend), OK);
    struct test_buffer product = test_buffer_open(&backend, received * N_COL * 4);
    run_experts(x, host_rows, product.host);
    test_buffer_push(&product);
    assert_int_equal(expert_exchange_combine(x, product.image, weight.image, out.image), OK);
    test_buffer_pull(&out);
    for (int64_t i = 0; i < t.n * N_COL; i++) {
        float expected = 5;
        for (int j = 0; j < s->n_used; j++) {
            int64_t at = i / N_COL * s->n_used + j;
            float chosen = (float)t.expert[at];
            expected += t.weight[at] * (t.x[i] * (chosen + 1) + chosen);
        }
        float got = ((float *)out.host)[i];
        if (got != expected)
            fail_msg("element %d is %g, not %g, on rank %d of %d", (int)i, (double)got,
                     (double)expected, comm->rank, comm->size);
    }
    struct test_buffer *all[] = {&in, &out, &expert, &weight, &product};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) test_buffer_close(all[i]);
    free(host_rows);
    counts[0] = received; // nothing lost, nothing doubled
    counts[1] = t.n * s->n_used;
    struct comm *host = comm_host(comm);
    assert_int_equal(host->ops->all_reduce(host, counts, 2, REDUCE_SUM_I64), OK);
    assert_int_equal(counts[0], counts[1]);
}

static void check_shape(int n_expert, int n_used, enum load load) {
    const struct expert_exchange_shape shape = {.n_expert = n_expert,
                                                .n_used = n_used,
                                                .max_tokens = MAX_TOKENS,
                                                .row_bytes = N_COL * 4,
                                                .n_col = N_COL};
    struct expert_exchange x;
    struct profile profile = {0};
    assert_int_equal(expert_exchange_open(&x, &backend, comm, &profile, &shape), OK);
    for (int round = 0; round < 5; round++) check_round(&x, load, round);
    expert_exchange_close(&x);
}

static void test_spread(void **state) {
    (void)state;
    check_shape(16, 4, SPREAD);
    check_shape(7, 2, SPREAD);
    check_shape(256, 3, SPREAD);
}

static void test_one_for_all(void **state) {
    (void)state;
    check_shape(16, 1, ALL_TO_ONE);
    check_shape(16, 4, ALL_TO_ONE);
}

static void test_empty_ranks(void **state) {
    (void)state;
    check_shape(16, 4, SOME_RANKS_EMPTY);
}

static void test_few_experts(void **state) { // ranks that own none
    (void)state;
    check_shape(3, 2, SPREAD);
    check_shape(1, 1, SPREAD);
}

static void test_wrong_expert(void **state) {
    (void)state;
    const struct expert_exchange_shape shape = {
        .n_expert = 4, .n_used = 1, .max_tokens = 1, .row_bytes = 16, .n_col = 4};
    struct expert_exchange x;
    struct profile profile = {0};
    const float row[4] = {0};
    const int32_t expert = 4;
    const void *rows = NULL;
    struct test_buffer row_image = image_of(row, sizeof row);
    struct test_buffer expert_image = image_of(&expert, sizeof expert);
    assert_int_equal(expert_exchange_open(&x, &backend, comm, &profile, &shape), OK);
    assert_int_equal(expert_exchange_dispatch(&x, row_image.image, expert_image.image, 1, &rows),
                     ERR_INTERNAL);
    assert_non_null(strstr(status_message(), "expert 4 of 4"));
    expert_exchange_close(&x);
    test_buffer_close(&row_image);
    test_buffer_close(&expert_image);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    mpi_test_open_backend(BACKEND_CPU, &backend);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spread),       cmocka_unit_test(test_one_for_all),
        cmocka_unit_test(test_empty_ranks),  cmocka_unit_test(test_few_experts),
        cmocka_unit_test(test_wrong_expert),
    };
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(n_failed);
}
