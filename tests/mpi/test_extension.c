// ranks: 1 2 3 4
// fake device: 3
// Attention whose positions are changed pair by pair, Self-Extend, Dual Chunk Attention and
// StreamingLLM, against the definitions computed directly (scripts/make_extension_fixtures.py).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"

static const char *const models[] = {"tiny-llama", "tiny-qwen3"};
static const struct {
    const char *reference;
    struct extension extension;
} methods[] = {
    {"self_extend.json",
     {.method = EXTENSION_SELF_EXTEND, .original_context = 64, .group = 4, .neighbours = 16}},
    {"dca.json", {.method = EXTENSION_DCA, .original_context = 32, .chunk = 24}},
    {"streaming.json", {.method = EXTENSION_STREAMING, .sinks = 3, .window = 20}},
};

static void check(enum backend_kind kind, int64_t chunk, enum layout layout) {
    for (int i = 0; i < 2; i++)
        for (int m = 0; m < 3; m++)
            parity_check(&(struct parity_run){.name = models[i],
                                              .reference = methods[m].reference,
                                              .kind = kind,
                                              .chunk = chunk,
                                              .layout = layout,
                                              .extension = &methods[m].extension});
}

static void test_whole(void **state) {
    (void)state;
    check(BACKEND_CPU, 0, LAYOUT_ZIGZAG);
    check(BACKEND_CPU, 0, LAYOUT_CONTIGUOUS);
}

// Chunks shorter and longer than the windows, that do not divide them.
static void test_chunks(void **state) {
    (void)state;
    check(BACKEND_CPU, 7, LAYOUT_ZIGZAG);
    check(BACKEND_CPU, 29, LAYOUT_CONTIGUOUS);
}

// The tiny networks of one seed differ by their rotations alone: what options say of one is what
// another's configuration says.
static void test_rotations(void **state) {
    (void)state;
    static const struct {
        const char *name, *reference;
        struct extension extension;
    } cases[] = {
        {"tiny-dynamic",
         "../tiny-linear/reference.json",
         {.method = EXTENSION_LINEAR, .factor = 4}},
        {"tiny-dynamic", "../tiny-yarn/reference.json", {.method = EXTENSION_YARN, .context = 256}},
        {"tiny-yarn", "../tiny-dynamic/reference.json", {.method = EXTENSION_DYNAMIC, .factor = 2}},
        {"tiny-linear",
         "../tiny-longrope/reference.json",
         {.method = EXTENSION_LONGROPE,
          .factor = 4,
          .original_context = 64,
          .factor_path = "tests/fixtures/tiny-longrope/config.json"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        parity_check(&(struct parity_run){.name = cases[i].name,
                                          .reference = cases[i].reference,
                                          .kind = BACKEND_CPU,
                                          .extension = &cases[i].extension});
}

static void test_reference_backend(void **state) {
    (void)state;
    check(BACKEND_REFERENCE, 50, LAYOUT_ZIGZAG);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_rotations),
        cmocka_unit_test(test_reference_backend),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
