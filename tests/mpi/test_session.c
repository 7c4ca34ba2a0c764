// ranks: 1 2 3 4 8
// fake device: 1 3
// A session gives the same numbers however its tokens arrive: whole, in chunks, one at a time,
// after a truncation, in either layout. (Equality with Hugging Face's numbers is test_parity's
// part.)
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/session.h"
#include "tests/common/mpi_test.h"

enum { N_TOKEN = 53, N_VOCAB = 256 }; // ids that every network here knows
static const double tolerance = 2e-5; // fp32 sums of other order over three layers

static struct backend backend;
static struct checkpoint checkpoint;
static struct profile profile;
static int32_t token[N_TOKEN];
static float expected[N_TOKEN]; // one append, whole
static float *expected_logits;

static struct session *open_session(enum layout layout, int64_t chunk) {
    struct session *session = NULL;
    struct session_options options = {
        .precision = PRECISION_FP32, .layout = layout, .max_tokens = N_TOKEN, .chunk = chunk};
    enum status status =
        session_open(&checkpoint, &backend, &mpi_test_comm, &profile, &options, &session);
    if (status != OK) print_error("%s\n", status_message());
    assert_int_equal(status, OK);
    return session;
}

static void append(struct session *session, int64_t from, int64_t n, float *logprob,
                   float *logits) {
    enum status status = session_append(
        session, &(struct append_args){
                     .token = token + from, .n = n, .logprob = logprob, .last_logits = logits});
    if (status != OK) print_error("%s\n", status_message());
    assert_int_equal(status, OK);
}

static void assert_equal_from(int64_t first, const float *values) {
    for (int64_t i = first; i < N_TOKEN; i++) {
        if (!(fabs(values[i] - expected[i]) <= tolerance)) {
            fail_msg("token %d: %.7f, not %.7f", (int)i, values[i], expected[i]);
        }
    }
}

static float *poisoned(int64_t n) {
    float *values = malloc((size_t)n * sizeof *values);
    assert_non_null(values);
    for (int64_t i = 0; i < n; i++) values[i] = NAN;
    return values;
}

static void test_chunks_and_layouts(void **state) {
    (void)state;
    const int64_t chunks[] = {0, 1, 7, 16, N_TOKEN - 1};
    const enum layout layouts[] = {LAYOUT_ZIGZAG, LAYOUT_CONTIGUOUS};
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        for (size_t l = 0; l < 2; l++) {
            struct session *session = open_session(layouts[l], chunks[c]);
            float *logprob = poisoned(N_TOKEN), *logits = poisoned(checkpoint.spec.n_vocab);
            append(session, 0, N_TOKEN, logprob, logits);
            assert_true(isnan(logprob[0]));
            assert_equal_from(1, logprob);
            for (int64_t i = 0; i < checkpoint.spec.n_vocab; i++) {
                assert_true(fabs(logits[i] - expected_logits[i]) <= tolerance);
            }
            free(logits);
            free(logprob);
            session_close(&session);
        }
    }
}

static void test_decode_equals_prefill(void **state) {
    (void)state;
    struct session *session = open_session(LAYOUT_ZIGZAG, 0);
    float *logprob = poisoned(N_TOKEN);
    append(session, 0, 5, logprob, NULL);
    for (int64_t i = 5; i < N_TOKEN; i++) append(session, i, 1, logprob + i, NULL);
    assert_equal_from(1, logprob);
    assert_int_equal(session_length(session), N_TOKEN);
    free(logprob);
    session_close(&session);
}

enum { N_PROMPT = 20, N_LOGITS = N_TOKEN - N_PROMPT };

// Logits after each token that is decoded, with what may come between: attention mass goes on and
// off, tokens are forgotten.
static float *decode_logits(const struct checkpoint *network, bool eager, int64_t *n_step,
                            int64_t *expert_rows) {
    int64_t n_vocab = network->spec.n_vocab;
    struct session *session = NULL;
    struct session_options options = {.max_tokens = N_TOKEN, .eager = eager};
    struct session_facts facts;
    float *logits = poisoned(N_LOGITS * n_vocab);
    assert_int_equal(session_open(network, &backend, &mpi_test_comm, &profile, &options, &session),
                     OK);
    append(session, 0, N_PROMPT - 2, NULL, NULL);
    for (int64_t i = 0; i < N_LOGITS; i++) {
        if (i == 9) assert_int_equal(session_mass_reset(session, true), OK);
        if (i == 12) assert_int_equal(session_mass_reset(session, false), OK);
        if (i == 15) assert_int_equal(session_truncate(session, N_PROMPT), OK);
        if (i == 18) append(session, 3, 2, NULL, NULL);
        append(session, N_PROMPT + i, 1, NULL, i % 4 == 3 ? NULL : logits + i * n_vocab);
    }
    session_get_facts(session, &facts);
    *n_step = facts.steps;
    assert_int_equal(session_expert_rows(session, expert_rows), OK);
    session_close(&session);
    return logits;
}

static void compare_steps(const char *folder) {
    struct checkpoint network;
    int64_t n_eager, n_step, eager_rows, rows;
    assert_int_equal(checkpoint_open(folder, &network), OK);
    float *eager = decode_logits(&network, true, &n_eager, &eager_rows);
    float *steps = decode_logits(&network, false, &n_step, &rows);
    assert_int_equal(n_eager, 0);
    assert_int_equal(rows, eager_rows);
    // The first token, and those after a change, have no step yet.
    if (backend.ops->steps && mpi_test_comm.ops->launch_step)
        assert_int_equal(n_step, N_LOGITS - 5);
    else
        assert_int_equal(n_step, 0);
    assert_memory_equal(steps, eager, (size_t)(N_LOGITS * network.spec.n_vocab) * sizeof *steps);
    free(eager);
    free(steps);
    checkpoint_close(&network);
}

// A token's layers launched as one step do what the same operations do one by one, bit for bit.
static void test_steps_equal_eager(void **state) {
    (void)state;
    compare_steps("tests/fixtures/tiny-llama");
    compare_steps("tests/fixtures/deepseek_v32_tiny");
    compare_steps("tests/fixtures/deepseek_v32_fp8_tiny");
    compare_steps("tests/fixtures/glm_moe_dsa_tiny");
}

static void test_truncate(void **state) {
    (void)state;
    struct session *session = open_session(LAYOUT_ZIGZAG, 16);
    float *logprob = poisoned(N_TOKEN);
    append(session, 0, 40, NULL, NULL);
    assert_int_equal(session_truncate(session, 23), OK);
    append(session, 30, 3, NULL, NULL); // other tokens, forgotten again
    append(session, 33, 1, NULL, NULL);
    assert_int_equal(session_truncate(session, 22), OK);
    append(session, 22, N_TOKEN - 22, logprob + 22, NULL);
    assert_true(isnan(logprob[22])); // nothing is known of the state before it
    assert_equal_from(23, logprob);
    free(logprob);
    session_close(&session);
}

static void test_mass(void **state) {
    (void)state;
    struct session *session = open_session(LAYOUT_ZIGZAG, 0);
    append(session, 0, 20, NULL, NULL);
    assert_int_equal(session_mass_reset(session, true), OK);
    append(session, 20, 1, NULL, NULL);
    append(session, 21, 1, NULL, NULL);
    float *mass = poisoned(22);
    assert_int_equal(session_mass_take(session, mass), OK);
    double sum = 0;
    for (int i = 0; i < 22; i++) {
        assert_true(mass[i] > 0);
        sum += mass[i];
    }
    assert_true(fabs(sum - 2) < 1e-5); // each query's probabilities sum to one
    free(mass);
    session_close(&session);
}

static void test_refusals(void **state) {
    (void)state;
    struct session *session = open_session(LAYOUT_ZIGZAG, 0);
    int32_t bad[2] = {1, (int32_t)checkpoint.spec.n_vocab};
    assert_int_equal(session_append(session, &(struct append_args){.token = bad, .n = 2}),
                     ERR_INPUT);
    int32_t many[N_TOKEN + 1] = {0};
    assert_int_equal(
        session_append(session, &(struct append_args){.token = many, .n = N_TOKEN + 1}),
        ERR_CONFIG);
    session_close(&session);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const char *folder = "tests/fixtures/tiny-llama";
    mpi_test_open_backend(BACKEND_CPU, &backend);
    if (checkpoint_open(folder, &checkpoint) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return mpi_test_stop(1);
    }
    for (int i = 0; i < N_TOKEN; i++) token[i] = (int32_t)((i * 131 + 17) % N_VOCAB);
    expected_logits = poisoned(checkpoint.spec.n_vocab);
    struct session *session = open_session(LAYOUT_ZIGZAG, 0);
    append(session, 0, N_TOKEN, expected, expected_logits);
    session_close(&session);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks_and_layouts),
        cmocka_unit_test(test_decode_equals_prefill),
        cmocka_unit_test(test_steps_equal_eager),
        cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_mass),
        cmocka_unit_test(test_refusals),
    };
    int failed = cmocka_run_group_tests_name("session", tests, NULL, NULL);
    free(expected_logits);
    checkpoint_close(&checkpoint);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(failed);
}
