// Attention and attention mass of every instruction set and of a device against the reference, over
// one table of cases and every combination of formats.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
// setjmp.h, stdarg.h and stdlib.h come before cmocka.h
#include <cmocka.h>

#include "tests/common/attention_cases.h"

static void check_cases(bool are_windows) {
    struct backend reference = attention_backend_open(BACKEND_REFERENCE, ISA_AUTO, 1);
    for (int i = 0; i < n_attention_case; i++)
        for (int f = 0; f < N_ATTENTION_FORMAT; f++) {
            const struct attention_case *c = &attention_cases[i];
            if ((c->visibility > CAUSAL) != are_windows) continue;
            if (!attention_case_is_wanted(c, attention_formats[f])) continue;
            attention_check_case(&reference, c, attention_formats[f]);
        }
    backend_close(&reference);
}

static void test_attention_equals_the_reference(void **state) {
    (void)state;
    check_cases(false);
}

static void test_windows_equal_the_reference(void **state) {
    (void)state;
    check_cases(true);
}

// A row without a visible key is exactly (0, -inf), also next to rows that see keys.
static void test_a_row_without_keys_is_zero(void **state) {
    (void)state;
    struct attention_case c = {"", 8,      6,    3,      1, 16,
                               24, CAUSAL, LAST, RANDOM, 0, 0}; // two see no key
    for (int form = FORM_PLAIN; form <= FORM_DEVICE; form++)
        for (int f = 0; f < N_ATTENTION_FORMAT; f++) {
            struct backend backend = attention_form_open(form, 1);
            struct attention_args a =
                attention_arguments_open(&c, attention_formats[f].query, attention_formats[f].kv);
            attention_attend(&backend, &a);
            for (int i = 0; i < 2 * 3; i++) {
                assert_true(a.lse[i] == -INFINITY);
                for (int j = 0; j < 24; j++) assert_true(a.out[i * 24 + j] == 0);
            }
            for (int i = 2 * 3; i < 8 * 3; i++) assert_true(isfinite(a.lse[i]));
            attention_arguments_close(&a);
            attention_backend_close(&backend);
        }
}

// Two keys, scores 0 and t < 0, values that pick one weight each: the weights are exponentials.
static void test_weights_are_exponentials(void **state) {
    (void)state;
    enum { N_QUERY = 400, DIM = 8 };
    float *query = test_alloc(N_QUERY * DIM * 4), *out = test_alloc(N_QUERY * DIM * 4);
    float lse[N_QUERY], expected[N_QUERY * DIM] = {0};
    static const float key[2 * DIM] = {[DIM] = 1}, value[2 * DIM] = {[0] = 1, [DIM + 1] = 1};
    static const int64_t key_position[2] = {0, 1};
    int64_t end[N_QUERY];
    for (int i = 0; i < N_QUERY; i++) {
        float t = -0.05f * (float)i;
        for (int j = 0; j < DIM; j++) query[i * DIM + j] = t;
        expected[i * DIM] = (float)(1 / (1 + exp((double)t)));
        expected[i * DIM + 1] = (float)(exp((double)t) / (1 + exp((double)t)));
        end[i] = 2;
    }
    struct attention_args a = {.n_query = N_QUERY,
                               .n_key = 2,
                               .n_head = 1,
                               .n_kv_head = 1,
                               .head_dim = DIM,
                               .value_dim = DIM,
                               .scale = 1,
                               .query = query,
                               .query_stride = DIM,
                               .key = key,
                               .value = value,
                               .key_stride = DIM,
                               .value_stride = DIM,
                               .end_visible = end,
                               .key_position = key_position,
                               .out = out,
                               .lse = lse};
    for (int form = FORM_PLAIN; form <= FORM_AVX512; form++) {
        struct backend backend = attention_form_open(form, 1);
        poison(out, N_QUERY * DIM * 4);
        assert_int_equal(backend.ops->attention(&backend, &a), OK);
        attention_assert_close("exponentials", out, expected, N_QUERY * DIM, TOLERANCE_EXPONENTIAL);
        attention_backend_close(&backend);
    }
    free(query);
    free(out);
}

static void test_attention_mass_equals_the_reference(void **state) {
    (void)state;
    struct backend reference = attention_backend_open(BACKEND_REFERENCE, ISA_AUTO, 1);
    for (int i = 0; i < n_attention_case; i++) {
        const struct attention_case *c = &attention_cases[i];
        if (c->content != RANDOM && c->content != EQUAL && c->content != VALUE_IN_KEY) continue;
        for (int f = 0; f < N_ATTENTION_FORMAT; f++) {
            if (!attention_case_is_wanted(c, attention_formats[f])) continue;
            struct attention_args a =
                attention_arguments_open(c, attention_formats[f].query, attention_formats[f].kv);
            attention_attend(&reference, &a);
            float *expected = test_alloc(a.n_key * 4 + 4), *mass = test_alloc(a.n_key * 4 + 4);
            for (int64_t k = 0; k < a.n_key; k++) expected[k] = 0.25f; // masses are added
            struct attention_mass_args m = {a, 0.5f, expected};
            assert_int_equal(reference.ops->attention_mass(&reference, &m), OK);
            for (int form = attention_first_form(); form <= FORM_DEVICE; form++) {
                struct backend backend = attention_form_open(form, 2);
                for (int64_t k = 0; k < a.n_key; k++) mass[k] = 0.25f;
                m.mass = mass;
                assert_int_equal(backend.ops->attention_mass(&backend, &m), OK);
                attention_assert_close(c->name, mass, expected, a.n_key, TOLERANCE_F32);
                attention_backend_close(&backend);
            }
            free(expected);
            free(mass);
            attention_arguments_close(&a);
        }
    }
    backend_close(&reference);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_equals_the_reference),
        cmocka_unit_test(test_windows_equal_the_reference),
        cmocka_unit_test(test_a_row_without_keys_is_zero),
        cmocka_unit_test(test_weights_are_exponentials),
        cmocka_unit_test(test_attention_mass_equals_the_reference),
    };
    return cmocka_run_group_tests_name("attention", tests, attention_device_open,
                                       attention_device_close);
}
