// Attention over parts of the keys, merged, is attention over all of them; merging alone.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
// setjmp.h, stdarg.h and stdlib.h come before cmocka.h
#include <cmocka.h>

#include "tests/common/attention_cases.h"

// The keys [begin, end) of `a` as a block of their own.
static struct attention_args key_block(const struct attention_args *a, int64_t begin, int64_t end) {
    struct attention_args block = *a;
    block.n_key = end - begin;
    block.key = (const char *)a->key + dtype_bytes(a->kv_dtype, begin * a->key_stride);
    block.value = (const char *)a->value + dtype_bytes(a->kv_dtype, begin * a->value_stride);
    block.key_position = a->key_position + begin;
    return block;
}

// Keys cut into blocks in any way, in any order of merging: the same as one call.
static void check_split(struct backend *backend, const struct attention_case *c,
                        const int64_t *bound, int n_block, int first, int step) {
    struct attention_args a = attention_arguments_open(c, DTYPE_F32, DTYPE_F32);
    int64_t n_row = a.n_query * a.n_head, n_out = n_row * a.value_dim;
    attention_attend(backend, &a);
    float *out = test_alloc(n_out * 4), *lse = test_alloc(n_row * 4);
    memset(out, 0, (size_t)n_out * 4);
    for (int64_t i = 0; i < n_row; i++) lse[i] = -INFINITY;
    float *other = test_alloc(n_out * 4 + 4), *other_lse = test_alloc(n_row * 4 + 4);
    for (int i = 0; i < n_block; i++) {
        int b = (first + i * step) % n_block;
        struct attention_args block = key_block(&a, bound[b], bound[b + 1]);
        block.out = other;
        block.lse = other_lse;
        attention_attend(backend, &block);
        struct merge_args merge = {n_row, a.value_dim, out, lse, other, other_lse};
        assert_int_equal(backend->ops->merge_partials(backend, &merge), OK);
    }
    attention_assert_close(c->name, out, a.out, n_out, TOLERANCE_F32);
    attention_assert_close(c->name, lse, a.lse, n_row, TOLERANCE_F32);
    free(out);
    free(lse);
    free(other);
    free(other_lse);
    attention_arguments_close(&a);
}

static void test_blocks_merge_to_one_call(void **state) {
    (void)state;
    static const struct attention_case split[] = {
        {"shards", 60, 333, 6, 2, 32, 40, CAUSAL, SHARDS, RANDOM, 0, 0},
        {"causal", 50, 333, 4, 4, 16, 16, CAUSAL, LAST, RANDOM, 0, 0},
        {"decode", 1, 333, 9, 3, 64, 64, FULL, LAST, RANDOM, 0, 0},
        {"large scores", 5, 333, 3, 1, 32, 32, CAUSAL, LAST, LARGE, 0, 0},
        {"window", 70, 333, 4, 2, 32, 32, WINDOW, LAST, RANDOM, 0, 60},
        {"symmetric", 333, 333, 2, 2, 32, 32, SYMMETRIC, LAST, RANDOM, 0, 20},
        {"sinks", 70, 333, 4, 2, 32, 32, SINKS, LAST, RANDOM, 0, 60},
    };
    static const int64_t halves[] = {0, 166, 333}, ragged[] = {0, 1, 1, 130, 131, 257, 330, 333};
    for (size_t i = 0; i < sizeof split / sizeof *split; i++)
        for (int kind = BACKEND_REFERENCE; kind <= BACKEND_CUDA; kind++) {
            struct backend backend = attention_backend_open((enum backend_kind)kind, ISA_AUTO,
                                                            kind == BACKEND_CPU ? 2 : 1);
            check_split(&backend, &split[i], halves, 2, 0, 1);
            check_split(&backend, &split[i], ragged, 7, 0, 1);
            check_split(&backend, &split[i], ragged, 7, 3, 2); // another order
            check_split(&backend, &split[i], ragged, 7, 6, 6); // backwards
            attention_backend_close(&backend);
        }
}

// A partial that saw no key changes nothing, bit for bit, whichever side it is on; its values are
// not read. Both empty stay empty. NaN stays in its row.
static void test_merge_knows_the_infinities(void **state) {
    (void)state;
    enum { N_ROW = 6, DIM = 19 };
    static const float lse[N_ROW] = {-INFINITY, 1.5f, -INFINITY, 700, -3e38f, 2};
    static const float other_lse[N_ROW] = {2.5f, -INFINITY, -INFINITY, 700, -3e38f, NAN};
    for (int kind = BACKEND_REFERENCE; kind <= BACKEND_CUDA; kind++) {
        struct backend backend = attention_backend_open((enum backend_kind)kind, ISA_AUTO, 1);
        float *out = random_vector(DTYPE_F32, N_ROW * DIM, 1, 1), got_lse[N_ROW];
        float *other = random_vector(DTYPE_F32, N_ROW * DIM, 1, 2);
        float before[N_ROW * DIM];
        memset(&out[2 * DIM], 0, 4 * DIM);
        for (int i = DIM; i < 3 * DIM; i++) other[i] = NAN;
        for (int i = 0; i < DIM; i++) out[i] = NAN;
        memcpy(before, out, sizeof before);
        memcpy(got_lse, lse, sizeof lse);
        struct merge_args merge = {N_ROW, DIM, out, got_lse, other, other_lse};
        assert_int_equal(backend.ops->merge_partials(&backend, &merge), OK);
        assert_memory_equal(out, other, 4 * DIM);
        assert_true(got_lse[0] == 2.5f);
        assert_memory_equal(&out[DIM], &before[DIM], 2 * 4 * DIM);
        assert_true(got_lse[1] == 1.5f && got_lse[2] == -INFINITY);
        for (int i = 3 * DIM; i < 5 * DIM; i++)
            assert_float_equal(out[i], (before[i] + other[i]) / 2, 1e-6);
        assert_float_equal(got_lse[3], 700 + logf(2), 1e-4);
        assert_true(got_lse[4] == -3e38f && isnan(got_lse[5]));
        free(out);
        free(other);
        attention_backend_close(&backend);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_merge_to_one_call),
        cmocka_unit_test(test_merge_knows_the_infinities),
    };
    return cmocka_run_group_tests_name("attention merge", tests, attention_device_open,
                                       attention_device_close);
}
