// ranks: 1 2 3 4 8
// fake device: 1 3
// The states of session_encode: those of one rank that reads all at once, whatever the ranks,
// chunks and layout; each token's once, in ascending order on each rank.
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

enum { N_TOKEN = 53, N_VOCAB = 256 };
static const double tolerance = 2e-5; // fp32 sums of other order over three layers

static struct backend backend;
static struct comm self;
static struct profile profile;
static int32_t token[N_TOKEN];

// What the callback received: states by position, and how many.
struct states {
    int64_t hidden, n, last;
    float *state; // [N_TOKEN, hidden] NaN where nothing came
    bool refuse;
};

static enum status take(void *user, const int64_t *position, int64_t n, const float *state) {
    struct states *out = user;
    if (out->refuse) FAIL(ERR_INPUT, "not these");
    for (int64_t i = 0; i < n; i++) {
        assert_true(position[i] > out->last && position[i] < N_TOKEN);
        out->last = position[i];
        memcpy(out->state + position[i] * out->hidden, state + i * out->hidden,
               (size_t)out->hidden * sizeof *state);
    }
    out->n += n;
    return OK;
}

static struct states open_states(const struct checkpoint *network) {
    struct states out = {.hidden = network->spec.n_hidden, .last = -1};
    out.state = malloc((size_t)(N_TOKEN * out.hidden) * sizeof *out.state);
    assert_non_null(out.state);
    for (int64_t i = 0; i < N_TOKEN * out.hidden; i++) out.state[i] = NAN;
    return out;
}

static struct session *open_session(const struct checkpoint *network, struct comm *comm,
                                    const struct session_options *how) {
    struct session *session = NULL;
    struct session_options options = *how;
    options.precision = PRECISION_FP32;
    options.max_tokens = N_TOKEN;
    enum status status = session_open(network, &backend, comm, &profile, &options, &session);
    if (status != OK) print_error("%s\n", status_message());
    assert_int_equal(status, OK);
    return session;
}

static struct states encode(struct session *session, const struct checkpoint *network) {
    struct states out = open_states(network);
    enum status status = session_encode(
        session, &(struct encode_args){.token = token, .n = N_TOKEN, .states = take, .user = &out});
    if (status != OK) print_error("%s\n", status_message());
    assert_int_equal(status, OK);
    return out;
}

static void compare(const struct states *got, const struct states *expected) {
    for (int64_t i = 0; i < N_TOKEN * got->hidden; i++) {
        if (isnan(got->state[i])) continue; // another rank's
        if (!(fabs(got->state[i] - expected->state[i]) <= tolerance))
            fail_msg("token %d: %.7f, not %.7f", (int)(i / got->hidden), got->state[i],
                     expected->state[i]);
    }
}

static void test_encode_causal(void **state) {
    (void)state;
    const struct session_options ways[] = {{.chunk = 0},
                                           {.chunk = 7},
                                           {.chunk = 1, .layout = LAYOUT_CONTIGUOUS},
                                           {.chunk = 20, .layout = LAYOUT_CONTIGUOUS}};
    struct checkpoint network;
    assert_int_equal(checkpoint_open("tests/fixtures/tiny-llama", &network), OK);
    struct session *alone = open_session(&network, &self, &ways[0]);
    struct states expected = encode(alone, &network);
    assert_int_equal(expected.n, N_TOKEN);
    session_close(&alone);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct session *session = open_session(&network, &mpi_test_comm, &ways[i]);
        for (int again = 0; again < 2; again++) {
            struct states got = encode(session, &network);
            struct session_facts facts;
            session_get_facts(session, &facts);
            assert_int_equal(got.n, facts.tokens);
            compare(&got, &expected);
            free(got.state);
        }
        session_close(&session);
    }
    free(expected.state);
    checkpoint_close(&network);
}

static void test_refusals(void **state) {
    (void)state;
    struct checkpoint network;
    assert_int_equal(checkpoint_open("tests/fixtures/tiny-llama", &network), OK);
    struct session *session = open_session(&network, &self, &(struct session_options){0});
    struct states out = open_states(&network);
    struct encode_args args = {.token = token, .n = 4, .states = take, .user = &out};
    int64_t falling[] = {3, 2}, beyond[] = {3, 5}, before[] = {2, 3};
    int64_t *ends[] = {falling, beyond, before};
    args.n_document = 2;
    for (int i = 0; i < 3; i++) {
        args.document_end = ends[i];
        assert_int_equal(session_encode(session, &args), ERR_INTERNAL);
    }
    args.n_document = 0;
    out.refuse = true;
    assert_int_equal(session_encode(session, &args), ERR_INPUT); // the callback's own status
    int32_t bad[] = {N_VOCAB * 1000};
    args = (struct encode_args){.token = bad, .n = 1, .states = take, .user = &out};
    assert_int_equal(session_encode(session, &args), ERR_INPUT);
    assert_int_equal(out.n, 0);
    free(out.state);
    session_close(&session);
    checkpoint_close(&network);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    mpi_test_open_backend(BACKEND_CPU, &backend);
    if (comm_self_open(&self, backend.memory == MEMORY_DEVICE ? &backend : NULL) != OK)
        return mpi_test_stop(1);
    for (int i = 0; i < N_TOKEN; i++) token[i] = (int32_t)((i * 131 + 17) % N_VOCAB);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_causal),
        cmocka_unit_test(test_refusals),
    };
    int failed = cmocka_run_group_tests_name("encode", tests, NULL, NULL);
    comm_close(&self);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(failed);
}
