// ranks: 1 2 3 4 8
// Tiny random checkpoints of every architecture and storage against Hugging Face transformers,
// whose log-probabilities and logits were computed in float64 (scripts/make_model_fixtures.py).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"
#include "tests/common/tolerance.h"

static void check_model(const char *name, enum backend_kind kind, int64_t chunk) {
    char path[256];
    struct fixture fixture;
    struct checkpoint checkpoint = {0};
    struct backend backend = {0};
    snprintf(path, sizeof path, "tests/fixtures/%s/reference.json", name);
    assert_true(fixture_open(path, &fixture));
    snprintf(path, sizeof path, "tests/fixtures/%s", name);
    if (checkpoint_open(path, &checkpoint) != OK ||
        backend_open(&(struct backend_options){.kind = kind, .n_thread = 1}, &backend) != OK) {
        fail_msg("%s: %s", name, status_message());
    }
    struct parity_model model = {.checkpoint = &checkpoint,
                                 .backend = &backend,
                                 .comm = &mpi_test_comm,
                                 .precision = PRECISION_FP32,
                                 .chunk = chunk};
    for (int i = 0; i < fixture.n_case; i++) {
        struct parity_distance d = parity_measure(&model, &fixture.cases[i]);
        if (!(d.logprob_max <= PARITY_FP32_MAX) || !(d.logit_max <= PARITY_FP32_MAX)) {
            fail_msg("%s, case %s: log-probabilities differ by %g, logits by %g", name,
                     fixture.cases[i].name, d.logprob_max, d.logit_max);
        }
    }
    for (int i = 0; i < fixture.n_greedy; i++) {
        parity_check_greedy(&model, &fixture.greedy[i], 2 * PARITY_FP32_MAX);
    }
    backend_close(&backend);
    checkpoint_close(&checkpoint);
    fixture_close(&fixture);
}

static const char *const models[] = {"tiny-llama", "tiny-llama-old", "tiny-llama3",
                                     "tiny-qwen2", "tiny-qwen3",     "tiny-mistral"};
enum { N_MODEL = sizeof models / sizeof *models };

static void test_whole(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++) check_model(models[i], BACKEND_CPU, 0);
}

static void test_chunks(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++) check_model(models[i], BACKEND_CPU, 29);
}

static void test_reference_backend(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++) check_model(models[i], BACKEND_REFERENCE, 0);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_reference_backend),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
