// ranks: 1 2 3 4 8
// fake device: 3
// Tiny random encoders and decoders with windows against Hugging Face transformers, computed in
// float64 (scripts/make_window_fixtures.py): states of encoders, also of packed documents;
// log-probabilities, logits and greedy tokens of decoders, at and beyond the window.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"

static const struct model {
    const char *name, *file;
    bool causal;
} models[] = {
    {"tiny-modernbert", NULL, false},     {"tiny-modernbert-bias", NULL, false},
    {"tiny-bert", NULL, false},           {"tiny-xlm-roberta", NULL, false},
    {"tiny-embeddinggemma", NULL, false}, {"tiny-gemma3", NULL, true},
    {"tiny-gemma3", "model.gguf", true},  {"tiny-mistral-window", NULL, true},
    {"tiny-qwen3-window", NULL, true},
};
enum { N_MODEL = sizeof models / sizeof *models };

static struct parity_run run_of(const struct model *model) {
    return (struct parity_run){.name = model->name, .file = model->file, .kind = BACKEND_CPU};
}

static void test_whole(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++) {
        struct parity_run run = run_of(&models[i]);
        parity_check(&run);
    }
}

// Chunks shorter than a window, and longer.
static void test_chunks(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++) {
        struct parity_run run = run_of(&models[i]);
        if (!models[i].causal) continue; // encoders read everything at once
        for (run.chunk = 7; run.chunk < 50; run.chunk += 22) parity_check(&run);
    }
}

// attention.window and attention.sinks: layers with a smaller window of their own keep it.
static void test_sinks(void **state) {
    (void)state;
    struct parity_run run = {.name = "tiny-qwen3-window",
                             .reference = "reference-sinks.json",
                             .kind = BACKEND_CPU,
                             .window = 24,
                             .sinks = 4};
    for (run.chunk = 0; run.chunk < 50; run.chunk += 11) parity_check(&run);
}

static void test_sharded_weights(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++) {
        struct parity_run run = run_of(&models[i]);
        run.sharded = true;
        parity_check(&run);
    }
}

static void test_reference_backend(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++) {
        struct parity_run run = run_of(&models[i]);
        run.kind = BACKEND_REFERENCE;
        parity_check(&run);
    }
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_sinks),
        cmocka_unit_test(test_sharded_weights),
        cmocka_unit_test(test_reference_backend),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
