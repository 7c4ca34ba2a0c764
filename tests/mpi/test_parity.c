// ranks: 1 2 3 4 8
// fake device: 3
// Tiny random checkpoints of every architecture and storage against Hugging Face transformers,
// whose log-probabilities and logits were computed in float64 (scripts/make_model_fixtures.py).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"

static const char *const models[] = {"tiny-llama", "tiny-llama-old", "tiny-llama3", "tiny-qwen2",
                                     "tiny-qwen3", "tiny-mistral",   "tiny-linear", "tiny-dynamic",
                                     "tiny-yarn",  "tiny-longrope"};
enum { N_MODEL = sizeof models / sizeof *models };

static void test_whole(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++)
        parity_check(&(struct parity_run){.name = models[i], .kind = BACKEND_CPU});
}

static void test_chunks(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++)
        parity_check(&(struct parity_run){.name = models[i], .kind = BACKEND_CPU, .chunk = 29});
}

static void test_reference_backend(void **state) {
    (void)state;
    for (int i = 0; i < N_MODEL; i++)
        parity_check(&(struct parity_run){.name = models[i], .kind = BACKEND_REFERENCE});
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
