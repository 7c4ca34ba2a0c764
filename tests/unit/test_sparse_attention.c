// Attention over selected rows on every backend against the reference: grouped heads, latents whose
// keys hold the values, one query (ranges of its selection are merged), uneven and empty
// selections; and merged into results over other keys, of which some are none.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/sparse.h"
#include "tests/common/attention_cases.h"
#include "tests/common/backends.h"

struct sparse_case {
    const char *name;
    int64_t n_query, n_key;
    int n_head, n_kv_head, head_dim, value_dim, k;
    bool value_in_key;
    enum dtype query_dtype, kv_dtype;
};

static const struct sparse_case cases[] = {
    {"grouped", 70, 90, 6, 2, 32, 32, 50, false, DTYPE_F32, DTYPE_F32},
    {"grouped, bf16 keys", 9, 200, 9, 3, 64, 64, 130, false, DTYPE_F32, DTYPE_BF16},
    {"grouped, bf16 products", 65, 300, 9, 3, 64, 64, 257, false, DTYPE_BF16, DTYPE_BF16},
    {"one query", 1, 5000, 8, 2, 64, 64, 2048, false, DTYPE_F32, DTYPE_F32},
    {"latent", 3, 700, 16, 1, 576, 512, 600, true, DTYPE_F32, DTYPE_F32},
    {"latent, bf16", 3, 2500, 128, 1, 576, 512, 2048, true, DTYPE_BF16, DTYPE_BF16},
    {"heads of their own", 5, 64, 4, 4, 192, 128, 33, false, DTYPE_BF16, DTYPE_F32},
    {"expanded latent, bf16", 4, 300, 4, 4, 192, 128, 200, false, DTYPE_BF16, DTYPE_BF16},
    {"wide heads, bf16", 3, 400, 40, 2, 128, 128, 321, false, DTYPE_BF16, DTYPE_BF16},
    {"few latent heads, bf16", 3, 500, 5, 1, 576, 512, 300, true, DTYPE_BF16, DTYPE_BF16},
    {"one latent query, bf16", 1, 1500, 80, 1, 576, 512, 1100, true, DTYPE_BF16, DTYPE_BF16},
    {"a shape of its own, bf16", 5, 64, 4, 2, 48, 40, 33, false, DTYPE_BF16, DTYPE_BF16},
    {"few rows, one head a group", 4, 300, 5, 5, 72, 72, 181, false, DTYPE_F32, DTYPE_BF16},
    {"few rows, group of 4", 3, 700, 8, 2, 128, 128, 333, false, DTYPE_BF16, DTYPE_BF16},
    {"few rows, keys of 192", 4, 260, 3, 1, 192, 128, 129, false, DTYPE_F32, DTYPE_F32},
    {"few rows, rounded", 3, 260, 8, 1, 96, 40, 97, false, DTYPE_BF16, DTYPE_F32},
    {"one query of SmolLM2", 1, 6000, 9, 3, 64, 64, 2049, false, DTYPE_BF16, DTYPE_BF16},
    {"one selected", 4, 40, 3, 1, 16, 24, 1, false, DTYPE_F32, DTYPE_F32},
};
enum { N_CASE = sizeof cases / sizeof *cases };

// Every selection has another length, none among them; rows ascend.
static void select_rows(const struct sparse_case *c, int32_t *row, int32_t *n_selected) {
    for (int64_t t = 0; t < c->n_query; t++) {
        int32_t wanted = (int32_t)(c->n_query == 1 ? c->k : t * 7 % (c->k + 1)), n = 0;
        if (t == 1) wanted = 0;
        if (t == 2) wanted = c->k;
        for (int64_t s = 0; s < c->n_key && n < wanted; s++) {
            uint64_t left = (uint64_t)(c->n_key - s), needed = (uint64_t)(wanted - n);
            if (random_bits(9 + (uint64_t)t, (uint64_t)s) % left < needed)
                row[t * c->k + n++] = (int32_t)s;
        }
        n_selected[t] = n;
    }
}

// Rows that no query selected become NaN: they must not be read.
static void spoil_others(const struct sparse_case *c, const int32_t *row, const int32_t *n_selected,
                         char *x, int64_t row_bytes) {
    for (int64_t s = 0; s < c->n_key; s++) {
        bool selected = false;
        for (int64_t t = 0; t < c->n_query; t++)
            for (int i = 0; i < n_selected[t]; i++) selected |= row[t * c->k + i] == s;
        if (!selected) memset(x + s * row_bytes, 0xff, (size_t)row_bytes);
    }
}

// Results over other keys than those of rows whose own lse is given: none held (out is NaN and must
// not be read), ones of about the same weight, and of far more or less.
static void hold_others(const struct sparse_case *c, const float *lse, float *held,
                        float *held_lse) {
    static const float by[] = {-INFINITY, 0.5f, -80, 80, 0};
    for (int64_t i = 0; i < c->n_query * c->n_head; i++) {
        held_lse[i] = (lse[i] == -INFINITY ? 3 : lse[i]) + by[i % 5];
        for (int j = 0; j < c->value_dim; j++, held++)
            *held = i % 5 ? random_normal(17, (uint64_t)(i * c->value_dim + j)) : NAN;
    }
}

// Queries that selected nothing keep their bits.
static void assert_kept(const struct sparse_case *c, const int32_t *n_selected, const float *got,
                        const float *held) {
    int64_t n_lse = c->n_query * c->n_head, n_out = n_lse * c->value_dim;
    for (int64_t t = 0; t < c->n_query; t++) {
        if (n_selected[t] > 0) continue;
        int64_t lse_at = n_out + t * c->n_head, width = (int64_t)c->n_head * c->value_dim;
        assert_memory_equal(got + t * width, held + t * width, (size_t)width * 4);
        assert_memory_equal(got + lse_at, held + lse_at, (size_t)c->n_head * 4);
    }
}

// Every backend against what the arguments' out and lse, one after the other, hold. held: what lies
// there before, or NULL for poison.
static void check_backends(const struct sparse_case *c, const struct sparse_attention_args *args,
                           const float *held) {
    int64_t n_lse = c->n_query * c->n_head, n_out = n_lse * c->value_dim;
    const float *expected = args->attention.out;
    float *got = test_alloc((n_out + n_lse) * 4);
    bool bf16 = c->query_dtype == DTYPE_BF16;
    struct tolerance tolerance = bf16 ? TOLERANCE_BF16_PRODUCT : TOLERANCE_F32;
    struct sparse_attention_args own = *args;
    own.attention.out = got;
    own.attention.lse = got + n_out;
    for (int i = 1; i < N_BACKEND; i++) {
        char message[200];
        poison(got, (n_out + n_lse) * 4);
        if (held) memcpy(got, held, (size_t)(n_out + n_lse) * 4);
        assert_int_equal(backends[i].ops->sparse_attention(&backends[i], &own), OK);
        if (!is_close(DTYPE_F32, got, expected, n_out, tolerance, message, sizeof message) ||
            !is_close(DTYPE_F32, got + n_out, expected + n_out, n_lse, tolerance, message,
                      sizeof message))
            fail_msg("%s, %s, backend %d: %s", c->name, held ? "merged" : "alone", i, message);
        if (held) assert_kept(c, args->n_selected, got, held);
    }
    free(got);
}

static void check_case(const struct sparse_case *c) {
    int64_t n_out = c->n_query * c->n_head * c->value_dim, n_lse = c->n_query * c->n_head;
    struct attention_case dense = {.n_query = c->n_query,
                                   .n_key = c->n_key,
                                   .n_head = c->n_head,
                                   .n_kv_head = c->n_kv_head,
                                   .head_dim = c->head_dim,
                                   .value_dim = c->value_dim,
                                   .content = c->value_in_key ? VALUE_IN_KEY : RANDOM};
    struct attention_args own = attention_arguments_open(&dense, c->query_dtype, c->kv_dtype);
    int32_t *row = test_alloc(c->n_query * c->k * 4), *n_selected = test_alloc(c->n_query * 4);
    float *expected = test_alloc((n_out + n_lse) * 4);
    memset(row, 0x7f, (size_t)(c->n_query * c->k) * 4); // what is not selected must not be read
    select_rows(c, row, n_selected);
    spoil_others(c, row, n_selected, (char *)own.key, dtype_bytes(own.kv_dtype, own.key_stride));
    spoil_others(c, row, n_selected, (char *)own.value,
                 dtype_bytes(own.kv_dtype, own.value_stride));
    struct sparse_attention_args args = {
        .attention = own, .row = row, .n_selected = n_selected, .k = c->k};
    args.attention.out = expected;
    args.attention.lse = expected + n_out;
    assert_int_equal(backends[0].ops->sparse_attention(&backends[0], &args), OK);
    check_backends(c, &args, NULL);
    float *held = test_alloc((n_out + n_lse) * 4);
    hold_others(c, expected + n_out, held, held + n_out);
    memcpy(expected, held, (size_t)(n_out + n_lse) * 4);
    args.attention.merge = true;
    assert_int_equal(backends[0].ops->sparse_attention(&backends[0], &args), OK);
    check_backends(c, &args, held);
    assert_kept(c, n_selected, expected, held);
    attention_arguments_close(&own);
    void *all[] = {row, n_selected, expected, held};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void test_against_reference(void **state) {
    (void)state;
    for (int i = 0; i < N_CASE; i++) {
        const struct sparse_case *c = &cases[i];
        bool bf16 = c->query_dtype == DTYPE_BF16 && c->kv_dtype == DTYPE_BF16;
        if (case_is_wanted(c->n_query * c->k * c->n_head * (c->head_dim + c->value_dim), bf16))
            check_case(c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_reference)};
    return cmocka_run_group_tests_name("sparse attention", tests, open_backends, close_backends);
}
