// ranks: 1 2 3 4
// SmolLM2-135M-Instruct on real text against Hugging Face transformers in fp32
// (scripts/make_smollm2_fixtures.py). Skipped where HALKA_MODEL does not name the demo model.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"
#include "tests/common/tolerance.h"

enum { DEMO_MODEL_BYTES = 98362432, SKIPPED = 77 };

static struct checkpoint checkpoint;
static struct backend backend;
static struct fixture fixture;

static void check_precision(enum precision precision, double max, double mean) {
    struct parity_model model = {.checkpoint = &checkpoint,
                                 .backend = &backend,
                                 .comm = &mpi_test_comm,
                                 .precision = precision};
    for (int i = 0; i < fixture.n_case; i++) {
        struct parity_distance d = parity_measure(&model, &fixture.cases[i]);
        print_message("%s: log-probabilities differ by %.4f at most, %.5f in the mean\n",
                      fixture.cases[i].name, d.logprob_max, d.logprob_mean);
        assert_true(d.logprob_max <= max);
        assert_true(d.logprob_mean <= mean);
    }
    for (int i = 0; i < fixture.n_greedy; i++) {
        int64_t n = parity_check_greedy(&model, &fixture.greedy[i], 2 * max);
        print_message("greedy continuation %d: %d of %d tokens equal\n", i, (int)n,
                      (int)fixture.greedy[i].n_token);
    }
}

static void test_bf16(void **state) {
    (void)state;
    check_precision(PRECISION_AUTO, PARITY_BF16_MAX, PARITY_BF16_MEAN);
}

static void test_fp32(void **state) {
    (void)state;
    check_precision(PRECISION_FP32, PARITY_FP32_MAX, PARITY_FP32_MAX);
}

int main(int argc, char **argv) {
    const char *path = getenv("HALKA_MODEL");
    struct stat file;
    if (!path || stat(path, &file) != 0 || file.st_size != DEMO_MODEL_BYTES) {
        printf("skipped: HALKA_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf\n");
        return SKIPPED;
    }
    mpi_test_start_with(&argc, &argv, 0, 120);
    if (checkpoint_open(path, &checkpoint) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return 1;
    }
    mpi_test_open_backend(BACKEND_CPU, &backend);
    if (!fixture_open("tests/fixtures/smollm2/reference.json", &fixture)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bf16), cmocka_unit_test(test_fp32)};
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_close(&fixture);
    mpi_test_close_backend(&backend);
    checkpoint_close(&checkpoint);
    return mpi_test_stop(n_failed);
}
