// Rotary frequencies against Hugging Face transformers (tests/fixtures/rope.json).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/spec.h"
#include "model/spec_draft.h"
#include "tests/common/tolerance.h"

static void assert_close(double value, double expected, const char *what, size_t i) {
    if (!(fabs(value - expected) <= ROPE_RELATIVE * fabs(expected)))
        fail_msg("%s, %zu: %.9g, expected %.9g", what, i, value, expected);
}

static struct model_spec spec_from_config(const json_t *config) {
    struct model_spec spec;
    struct spec_draft draft;
    char *text = json_dumps(config, 0);
    assert_non_null(text);
    spec_draft_init(&draft);
    assert_int_equal(spec_draft_read_json(text, strlen(text), "config.json", &draft), OK);
    assert_int_equal(spec_build(&draft, "config.json", &spec), OK);
    free(text);
    return spec;
}

static void test_equals_transformers(void **state) {
    (void)state;
    json_error_t error;
    json_t *cases = json_load_file("tests/fixtures/rope.json", 0, &error);
    assert_non_null(cases);
    assert_int_equal(json_array_size(cases), 10);
    for (size_t k = 0; k < json_array_size(cases); ++k) {
        const json_t *one = json_array_get(cases, k);
        const char *name = json_string_value(json_object_get(one, "name"));
        const json_t *expected = json_object_get(one, "inv_freq");
        struct model_spec spec = spec_from_config(json_object_get(one, "config"));
        double inv_freq[ROPE_MAX_FACTORS], factor = NAN;
        for (int i = 0; i < ROPE_MAX_FACTORS; ++i) inv_freq[i] = NAN;
        rope_frequencies(&spec.ropes[0], inv_freq, &factor);
        assert_int_equal(json_array_size(expected), spec.ropes[0].dim / 2);
        for (size_t i = 0; i < json_array_size(expected); ++i)
            assert_close(inv_freq[i], json_number_value(json_array_get(expected, i)), name, i);
        assert_true(isnan(inv_freq[spec.ropes[0].dim / 2])); // nothing past the end
        assert_close(factor, json_number_value(json_object_get(one, "attention_factor")), name, 0);
        model_spec_close(&spec);
    }
    json_decref(cases);
}

// GGUF stores Llama 3.1's bands as divisors: both ways must agree.
static void test_divisors(void **state) {
    (void)state;
    struct rope_spec banded = {.method = ROPE_LLAMA3,
                               .base = 500000,
                               .dim = 64,
                               .factor = 32,
                               .original_context = 8192,
                               .low_freq_factor = 1,
                               .high_freq_factor = 4};
    struct rope_spec plain = {.method = ROPE_DEFAULT, .base = 500000, .dim = 64};
    double expected[32], base[32], inv_freq[32], factor;
    rope_frequencies(&banded, expected, &factor);
    rope_frequencies(&plain, base, &factor);
    plain.has_divisors = true;
    for (int i = 0; i < 32; ++i) plain.divisor[i] = (float)(base[i] / expected[i]);
    rope_frequencies(&plain, inv_freq, &factor);
    for (int i = 0; i < 32; ++i) assert_close(inv_freq[i], expected[i], "divisors", (size_t)i);
    assert_true(plain.divisor[0] == 1 && plain.divisor[31] == 32);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_transformers),
        cmocka_unit_test(test_divisors),
    };
    return cmocka_run_group_tests_name("rope", tests, NULL, NULL);
}
