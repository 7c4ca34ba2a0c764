// ranks: 1 2 3 4 8
// fake device: 2
// Tiny random checkpoints with latent attention, experts and indexers against Hugging Face
// transformers in float64 (scripts/make_sparse_fixtures.py). One wrong key of one query moves
// log-probabilities by 1 and more: what passes has selected the very sets of the reference.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"
#include "tests/common/parity.h"

static const char *const sparse[] = {"deepseek_v32_tiny", "deepseek_v32_fp8_tiny",
                                     "glm_moe_dsa_tiny"};
enum { N_SPARSE = sizeof sparse / sizeof *sparse };

static void check_sparse(struct parity_run run) {
    for (int i = 0; i < N_SPARSE; i++) {
        run.name = sparse[i];
        parity_check(&run);
    }
}

static void test_keys_travel(void **state) {
    (void)state;
    check_sparse((struct parity_run){.kind = BACKEND_CPU, .exchange = EXCHANGE_KEYS});
}

static void test_queries_travel(void **state) {
    (void)state;
    check_sparse((struct parity_run){.kind = BACKEND_CPU, .exchange = EXCHANGE_SCORES});
}

static void test_chunks(void **state) {
    (void)state;
    check_sparse((struct parity_run){.kind = BACKEND_CPU, .chunk = 29});
    check_sparse((struct parity_run){.kind = BACKEND_CPU, .chunk = 7, .exchange = EXCHANGE_KEYS});
}

// Hadamard transform, fp8 and its scales, which the reference imitates.
static void test_fp8_index(void **state) {
    (void)state;
    struct parity_run run = {.name = "deepseek_v32_tiny",
                             .reference = "reference-index-fp8.json",
                             .kind = BACKEND_CPU,
                             .exchange = EXCHANGE_KEYS,
                             .index_precision = INDEX_FP8};
    parity_check(&run);
    run.exchange = EXCHANGE_SCORES;
    parity_check(&run);
    run.chunk = 29;
    parity_check(&run);
    run.kind = BACKEND_REFERENCE;
    parity_check(&run);
}

static void test_reference_backend(void **state) {
    (void)state;
    check_sparse((struct parity_run){.kind = BACKEND_REFERENCE});
}

static void test_dense(void **state) {
    (void)state;
    struct parity_run run = {.name = "deepseek_v3_tiny", .kind = BACKEND_CPU};
    parity_check(&run);
    run.chunk = 29;
    parity_check(&run);
    parity_check(&(struct parity_run){.name = run.name, .kind = BACKEND_REFERENCE});
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),          cmocka_unit_test(test_keys_travel),
        cmocka_unit_test(test_queries_travel), cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_fp8_index),      cmocka_unit_test(test_reference_backend),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
