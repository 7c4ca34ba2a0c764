// A plan from config.json and the tensor index alone counts the bytes that the tensors themselves
// have, and misses what the index does not name.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/mapping.h"
#include "model/weights.h"
#include "tests/common/make_files.h"

// A folder with the fixture's config.json and an index of its tensors, `without` left out.
static char *make_folder(const char *fixture, const struct checkpoint *whole, const char *without) {
    char *folder = folder_make(), path[256];
    struct mapping config;
    struct buffer index = {0};
    snprintf(path, sizeof path, "%s/config.json", fixture);
    assert_int_equal(mapping_open(path, &config), OK);
    free(folder_write(folder, "config.json", config.data, config.bytes));
    mapping_close(&config);
    const char *begin = "{\"weight_map\": {\"unused\": \"none.safetensors\"";
    buffer_add(&index, begin, strlen(begin));
    for (int64_t i = 0; i < whole->n_tensor; i++) {
        char entry[256];
        if (without && strcmp(whole->tensors[i].name, without) == 0) continue;
        int n =
            snprintf(entry, sizeof entry, ", \"%s\": \"none.safetensors\"", whole->tensors[i].name);
        buffer_add(&index, entry, (size_t)n);
    }
    buffer_add(&index, "}}", 2);
    free(folder_write(folder, "model.safetensors.index.json", index.data, index.n));
    buffer_close(&index);
    return folder;
}

static void test_bytes(void **state) {
    (void)state;
    const char *const fixtures[] = {
        "tests/fixtures/deepseek_v32_tiny", "tests/fixtures/deepseek_v32_fp8_tiny",
        "tests/fixtures/deepseek_v3_tiny", "tests/fixtures/glm_moe_dsa_tiny"};
    for (int i = 0; i < 4; i++) {
        struct checkpoint whole, shapes;
        assert_int_equal(checkpoint_open(fixtures[i], &whole), OK);
        char *folder = make_folder(fixtures[i], &whole, NULL);
        if (checkpoint_open_shapes(folder, &shapes) != OK) fail_msg("%s", status_message());
        for (int size = 1; size <= 8; size++) {
            struct weights_extent expected, got;
            assert_int_equal(weights_measure(&whole, size, false, &expected), OK);
            assert_int_equal(weights_measure(&shapes, size, false, &got), OK);
            // Routers and their biases may be kept in fp32.
            assert_true(labs((long)(got.bytes - expected.bytes)) <= 4096);
            assert_int_equal(got.expert_bytes, expected.expert_bytes);
            assert_int_equal(got.own_bytes, expected.own_bytes);
            assert_int_equal(got.largest_elements, expected.largest_elements);
        }
        checkpoint_close(&shapes);
        checkpoint_close(&whole);
        folder_remove(folder);
    }
}

static void test_missing(void **state) {
    (void)state;
    const char *fixture = "tests/fixtures/deepseek_v32_tiny";
    const char *name = "model.layers.3.mlp.experts.5.up_proj.weight";
    struct checkpoint whole, shapes;
    assert_int_equal(checkpoint_open(fixture, &whole), OK);
    char *folder = make_folder(fixture, &whole, name);
    assert_int_equal(checkpoint_open_shapes(folder, &shapes), ERR_INPUT);
    assert_non_null(strstr(status_message(), name));
    checkpoint_close(&whole);
    folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes),
                                       cmocka_unit_test(test_missing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
