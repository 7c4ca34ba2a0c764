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

#include "model/extension.h"
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
    assert_int_equal(json_array_size(cases), 17);
    for (size_t k = 0; k < json_array_size(cases); ++k) {
        const json_t *one = json_array_get(cases, k);
        const char *name = json_string_value(json_object_get(one, "name"));
        const json_t *expected = json_object_get(one, "inv_freq");
        struct model_spec spec = spec_from_config(json_object_get(one, "config"));
        double inv_freq[ROPE_MAX_FACTORS], factor = NAN;
        for (int i = 0; i < ROPE_MAX_FACTORS; ++i) inv_freq[i] = NAN;
        rope_frequencies(&spec.ropes[0], json_integer_value(json_object_get(one, "length")),
                         inv_freq, &factor);
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
    rope_frequencies(&banded, 1, expected, &factor);
    rope_frequencies(&plain, 1, base, &factor);
    plain.has_divisors = true;
    for (int i = 0; i < 32; ++i) plain.divisor[i] = (float)(base[i] / expected[i]);
    rope_frequencies(&plain, 1, inv_freq, &factor);
    for (int i = 0; i < 32; ++i) assert_close(inv_freq[i], expected[i], "divisors", (size_t)i);
    assert_true(plain.divisor[0] == 1 && plain.divisor[31] == 32);
}

// A network of two layers: the first attends to all, the second to a window with its own rotation.
static struct layer_spec two_layers[] = {{.rope = 0}, {.rope = 1, .window = 16}};
static struct model_spec two_ropes(void) {
    return (struct model_spec){
        .n_layer = 2,
        .layers = two_layers,
        .n_rope = 2,
        .context = 4096,
        .ropes = {{.base = 1e4, .dim = 64, .interleaved = true, .has_divisors = true},
                  {.base = 1e3, .dim = 64}}};
}

static void test_extension(void **state) {
    (void)state;
    struct model_spec spec = two_ropes();
    assert_int_equal(extension_apply(&(struct extension){0}, "m", &spec), OK);
    assert_true(spec.ropes[0].has_divisors && spec.reach == 0); // as the checkpoint says
    struct extension yarn = {.method = EXTENSION_YARN, .factor = 4};
    assert_int_equal(extension_apply(&yarn, "m", &spec), OK);
    assert_true(spec.ropes[0].method == ROPE_YARN && spec.ropes[0].factor == 4);
    assert_true(spec.ropes[0].original_context == 4096 && spec.ropes[0].interleaved);
    assert_false(spec.ropes[0].has_divisors);
    assert_true(spec.ropes[1].method == ROPE_DEFAULT); // windows need no extension
    assert_int_equal(spec.reach, 16384);
    // The scaling that a checkpoint has is replaced, and tells the original context.
    spec.ropes[0].original_context = 1024;
    struct extension ntk = {.method = EXTENSION_NTK, .context = 8192};
    assert_int_equal(extension_apply(&ntk, "m", &spec), OK);
    assert_true(spec.ropes[0].method == ROPE_NTK && spec.ropes[0].factor == 8);
    spec = two_ropes();
    struct extension dynamic = {.method = EXTENSION_DYNAMIC};
    assert_int_equal(extension_apply(&dynamic, "m", &spec), OK);
    assert_true(spec.ropes[0].factor == 1 && spec.reach > 100000000);
    assert_true(model_spec_reads_length(&spec));
    // The same frequencies: within the original context; beyond it each length has its own ...
    assert_true(model_spec_rotates_alike(&spec, 1, 4096));
    assert_false(model_spec_rotates_alike(&spec, 4096, 4097));
    assert_false(model_spec_rotates_alike(&spec, 4098, 4097));
    assert_true(model_spec_rotates_alike(&spec, 4097, 4097));
    spec.ropes[0].method = ROPE_LONGROPE; // ... or one list serves all
    assert_true(model_spec_rotates_alike(&spec, 1, 4096));
    assert_false(model_spec_rotates_alike(&spec, 4097, 4096));
    assert_true(model_spec_rotates_alike(&spec, 4097, 9999));
    spec.ropes[0].method = ROPE_YARN;
    assert_true(model_spec_rotates_alike(&spec, 1, 9999));
}

static void test_extension_refusals(void **state) {
    (void)state;
    static const struct {
        struct extension extension;
        const char *fragment;
    } cases[] = {
        {{.method = EXTENSION_YARN}, "needs extension.factor"},
        {{.method = EXTENSION_NTK, .context = 100}, "needs extension.factor"},
        {{.method = EXTENSION_LONGROPE, .factor = 2}, "needs lists of factors"},
        {{.method = EXTENSION_LINEAR, .factor = 2, .original_context = 1e16}, NULL},
        {{.method = EXTENSION_YARN, .factor = 2, .original_context = 1e16}, "original context"},
        {{.method = EXTENSION_DCA}, "whose layers all attend to every token"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_spec spec = two_ropes();
        enum status status = extension_apply(&cases[i].extension, "m", &spec);
        const char *fragment = cases[i].fragment;
        if (fragment ? status != ERR_CONFIG || !strstr(status_message(), fragment) : status != OK)
            fail_msg("case %zu: status %d, message \"%s\"", i, status, status_message());
    }
    struct layer_spec latent = {.attention = ATTENTION_LATENT};
    struct model_spec spec = two_ropes();
    spec.layers = &latent;
    spec.n_layer = 1;
    struct extension linear = {.method = EXTENSION_LINEAR, .factor = 2};
    assert_int_equal(extension_apply(&linear, "m", &spec), ERR_CONFIG);
    assert_non_null(strstr(status_message(), "latent attention"));
}

// What the parts of a method see is together what causal attention does, each key once, and no
// rotation is beyond those of the trained context.
static void check_parts(struct extension extension, int64_t original, int64_t n, int64_t window) {
    struct layer_spec layer = {.rope = 0};
    struct model_spec spec = {.causal = true,
                              .n_layer = 1,
                              .layers = &layer,
                              .n_rope = 1,
                              .context = original,
                              .ropes = {{.base = 1e4, .dim = 64}}};
    if (extension_apply(&extension, "m", &spec) != OK) fail_msg("%s", status_message());
    for (int64_t q = 0; q < n; q++) {
        int seen[512] = {0};
        for (int i = 0; i < spec.n_part; i++) {
            const struct attention_part *part = &spec.parts[i];
            const struct position_map *query_map = &spec.ropes[part->query_rope].map;
            const struct position_map *key_map = &spec.ropes[spec.key_rope[part->key_set]].map;
            struct span keys = visibility_keys(&part->visibility, q);
            if (visibility_sinks(&part->visibility))
                keys = (struct span){0, visibility_end(&part->visibility, q)};
            for (int64_t k = keys.start; k < keys.start + keys.length; k++) {
                if (visibility_sinks(&part->visibility) && k >= part->visibility.sinks) continue;
                int64_t distance = rope_position(query_map, q) - rope_position(key_map, k);
                seen[k]++;
                // Groups that do not divide the neighbours begin one position early.
                assert_true(distance >= 0 && distance < original && distance <= q - k + 1);
            }
        }
        for (int64_t k = 0; k < n; k++)
            assert_int_equal(seen[k], k <= q && (q - k < window || k < extension.sinks));
    }
}

static void test_part_refusals(void **state) {
    (void)state;
    static const struct {
        struct extension extension;
        const char *fragment;
    } cases[] = {
        {{.method = EXTENSION_SELF_EXTEND}, "needs extension.group"},
        {{.method = EXTENSION_SELF_EXTEND, .group = 1}, "needs extension.group"},
        {{.method = EXTENSION_SELF_EXTEND, .group = 4, .neighbours = 64}, "extension.neighbours"},
        {{.method = EXTENSION_DCA, .chunk = 64}, "extension.chunk = 64 must be less"},
        {{.method = EXTENSION_STREAMING, .sinks = 4, .window = 61}, "must fit"},
        {{.method = EXTENSION_STREAMING, .sinks = 64}, "must fit"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct layer_spec layer = {.rope = 0};
        struct model_spec spec = {.causal = true,
                                  .n_layer = 1,
                                  .layers = &layer,
                                  .n_rope = 1,
                                  .context = 64,
                                  .ropes = {{.base = 1e4, .dim = 64}}};
        enum status status = extension_apply(&cases[i].extension, "m", &spec);
        if (status != ERR_CONFIG || !strstr(status_message(), cases[i].fragment))
            fail_msg("case %zu: status %d, message \"%s\"", i, status, status_message());
    }
}

static void test_parts(void **state) {
    (void)state;
    const int64_t all = INT64_MAX;
    check_parts((struct extension){.method = EXTENSION_SELF_EXTEND, .group = 4, .neighbours = 16},
                64, 208, all);
    check_parts((struct extension){.method = EXTENSION_SELF_EXTEND, .context = 300}, 64, 300, all);
    check_parts((struct extension){.method = EXTENSION_DCA}, 64, 400, all);
    check_parts((struct extension){.method = EXTENSION_DCA, .chunk = 1}, 2, 20, all);
    check_parts((struct extension){.method = EXTENSION_STREAMING, .sinks = 3, .window = 20}, 64,
                300, 20);
    check_parts((struct extension){.method = EXTENSION_STREAMING, .sinks = 0}, 64, 300, 64);
}

// The formula of bloc97: the slowest pair is interpolated by the factor, the fastest is left.
static void test_ntk(void **state) {
    (void)state;
    struct rope_spec plain = {.method = ROPE_DEFAULT, .base = 1e5, .dim = 64};
    struct rope_spec ntk = {.method = ROPE_NTK, .base = 1e5, .dim = 64, .factor = 4};
    double a[32], b[32], factor;
    rope_frequencies(&plain, 1, a, &factor);
    rope_frequencies(&ntk, 1, b, &factor);
    assert_close(b[0], a[0], "fastest", 0);
    assert_close(b[31], a[31] / 4, "slowest", 31);
    assert_close(b[1], pow(1e5 * pow(4, 64.0 / 62), -2.0 / 64), "base", 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_transformers),
        cmocka_unit_test(test_divisors),
        cmocka_unit_test(test_ntk),
        cmocka_unit_test(test_extension),
        cmocka_unit_test(test_extension_refusals),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_part_refusals),
    };
    return cmocka_run_group_tests_name("rope", tests, NULL, NULL);
}
