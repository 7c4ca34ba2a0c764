// ranks: 1 2 4
// Sparse attention of the demo model by its trained indexer on real text, against log-probabilities
// of an independent implementation in fp32. Near-ties at the k-th place go either way under
// rounding, so single tokens may differ; perplexity and the mean must not. Skipped where
// HALKA_MODEL does not name the demo model.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "model/indexer.h"
#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"

enum { DEMO_MODEL_BYTES = 98362432, SKIPPED = 77 };

static struct checkpoint checkpoint;
static struct backend backend;
static struct fixture fixture;

struct limits {
    double mean, perplexity;
};
static const struct limits fp32 = {0.001, 0.0005}, rounded = {0.03, 0.003};

static void check(struct parity_model model, int which, const struct limits *limits) {
    const struct fixture_case *from = &fixture.cases[which];
    model.checkpoint = &checkpoint;
    model.backend = &backend;
    model.comm = &mpi_test_comm;
    model_spec_set_top_k(&checkpoint.spec, which == 2 ? 1024 : 512);
    struct parity_distance d = parity_measure(&model, from);
    print_message("%s: log-probabilities differ by %.5f in the mean, perplexity by %.4f %%\n",
                  from->name, d.logprob_mean, 100 * d.perplexity);
    assert_true(d.logprob_mean <= limits->mean);
    assert_true(fabs(d.perplexity) <= limits->perplexity);
}

static void test_dense(void **state) {
    (void)state;
    check((struct parity_model){.precision = PRECISION_FP32, .dense = true}, 0, &fp32);
}

static void test_fp32(void **state) {
    (void)state;
    check((struct parity_model){.precision = PRECISION_FP32, .exchange = EXCHANGE_KEYS}, 1, &fp32);
}

static void test_queries_travel(void **state) {
    (void)state;
    check((struct parity_model){.precision = PRECISION_FP32, .exchange = EXCHANGE_SCORES}, 2,
          &fp32);
}

static void test_fp8(void **state) {
    (void)state;
    check((struct parity_model){.index_precision = INDEX_FP8, .exchange = EXCHANGE_KEYS}, 1,
          &rounded);
}

int main(int argc, char **argv) {
    const char *path = getenv("HALKA_MODEL");
    struct stat file;
    if (!path || stat(path, &file) != 0 || file.st_size != DEMO_MODEL_BYTES) {
        printf("skipped: HALKA_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf\n");
        return SKIPPED;
    }
    mpi_test_start(&argc, &argv);
    bool check_base = mpi_test_comm.rank == 0;
    if (checkpoint_open(path, &checkpoint) != OK ||
        indexer_attach("configs/indexers/smollm2-135m-instruct.safetensors", check_base,
                       &checkpoint) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return 1;
    }
    mpi_test_open_backend(BACKEND_CPU, &backend);
    if (!fixture_open("tests/fixtures/smollm2/sparse_reference.json", &fixture)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dense), cmocka_unit_test(test_fp32),
                                       cmocka_unit_test(test_queries_travel),
                                       cmocka_unit_test(test_fp8)};
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_close(&fixture);
    mpi_test_close_backend(&backend);
    checkpoint_close(&checkpoint);
    return mpi_test_stop(n_failed);
}
