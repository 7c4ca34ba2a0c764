// ranks: 1 2 3 4 8
// fake device: 1 3
// Networks some of whose layers see a window: the same numbers however tokens arrive, on any number
// of ranks, in memory that the window bounds. Networks are tiny-llama with windows put in, so what
// is proved is that a session drops nothing that is seen and sees nothing else; that windows are
// what transformers computes is test_parity's part.
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

enum { N_TOKEN = 211, N_VOCAB = 256, N_LAYER = 3, N_PROMPT = 30 };
static const double tolerance = 5e-5; // of ln p down to -13: fp32 sums of other order, 3 layers

// window, sinks of each layer; tokens to be forgotten
struct network {
    const char *name;
    int64_t window[N_LAYER], sinks[N_LAYER], max_forget;
};
static const struct network networks[] = {
    {"mixed", {7, 0, 7}, {0}, 0},
    {"all", {16, 16, 16}, {0}, 9},
    {"one", {1, 1, 0}, {0}, 3},
    {"sinks", {12, 12, 12}, {4, 4, 4}, 5},
    {"unequal", {40, 3, 9}, {1, 30, 0}, 0},
    {"longer", {1000, 0, 5}, {0, 0, 2}, 2},
};
enum { N_NETWORK = sizeof networks / sizeof *networks };

static struct backend backend;
static struct comm self;
static struct checkpoint checkpoint;
static struct profile profile;
static int32_t token[N_TOKEN];
static float *expected[N_NETWORK]; // one rank, one append

static void set_network(const struct network *network) {
    for (int i = 0; i < N_LAYER; i++) {
        checkpoint.spec.layers[i].window = network->window[i];
        checkpoint.spec.layers[i].sinks = network->sinks[i];
    }
}

static struct session_options options_of(const struct network *network) {
    return (struct session_options){// so many that windows are kept as such on any number of ranks
                                    .precision = PRECISION_FP32,
                                    .max_tokens = 5000,
                                    .max_forget = network->max_forget};
}

static void succeed(enum status status) {
    if (status != OK) print_error("%s\n", status_message());
    assert_int_equal(status, OK);
}

static struct session *open_session(struct comm *comm, const struct session_options *options) {
    struct session *session = NULL;
    succeed(session_open(&checkpoint, &backend, comm, &profile, options, &session));
    return session;
}

static void append(struct session *session, int64_t from, int64_t n, float *logprob) {
    succeed(session_append(
        session, &(struct append_args){.token = token + from, .n = n, .logprob = logprob}));
}

static float *poisoned(int64_t n) {
    float *values = malloc((size_t)n * sizeof *values);
    assert_non_null(values);
    for (int64_t i = 0; i < n; i++) values[i] = NAN;
    return values;
}

static void compare(int network, const char *what, int64_t first, const float *values) {
    for (int64_t i = first; i < N_TOKEN; i++) {
        if (!(fabs(values[i] - expected[network][i]) <= tolerance))
            fail_msg("%s, %s: token %d: %.7f, not %.7f", networks[network].name, what, (int)i,
                     values[i], expected[network][i]);
    }
}

static void test_chunks(void **state) {
    (void)state;
    const int64_t chunks[] = {0, 7, 64, N_TOKEN - 1};
    for (int n = 0; n < N_NETWORK; n++) {
        set_network(&networks[n]);
        for (int way = 0; way < 8; way++) {
            struct session_options options = options_of(&networks[n]);
            options.chunk = chunks[way / 2];
            options.layout = way % 2 ? LAYOUT_CONTIGUOUS : LAYOUT_ZIGZAG;
            struct session *session = open_session(&mpi_test_comm, &options);
            float *logprob = poisoned(N_TOKEN);
            append(session, 0, N_TOKEN, logprob);
            struct session_facts facts;
            session_get_facts(session, &facts);
            if (n == 1 && way == 1 && mpi_test_comm.size > 1)
                assert_int_equal(facts.window_pass, PASS_HALO);
            char what[32];
            snprintf(what, sizeof what, "chunks of %d", (int)options.chunk);
            compare(n, what, 1, logprob);
            free(logprob);
            session_close(&session);
        }
    }
}

// Long enough to move the rows of each window together several times.
static void test_decode(void **state) {
    (void)state;
    for (int n = 0; n < N_NETWORK; n++) {
        set_network(&networks[n]);
        struct session_options options = options_of(&networks[n]);
        struct session *session = open_session(&mpi_test_comm, &options);
        float *logprob = poisoned(N_TOKEN);
        append(session, 0, N_PROMPT, logprob);
        for (int64_t i = N_PROMPT; i < N_TOKEN; i++) append(session, i, 1, logprob + i);
        compare(n, "decode", 1, logprob);
        free(logprob);
        session_close(&session);
    }
}

// Forgets as much as may be forgotten, again and again, after prefill and after decode.
static void test_truncate(void **state) {
    (void)state;
    for (int n = 0; n < N_NETWORK; n++) {
        int64_t forget = networks[n].max_forget;
        set_network(&networks[n]);
        struct session_options options = options_of(&networks[n]);
        options.chunk = 23;
        struct session *session = open_session(&mpi_test_comm, &options);
        float *logprob = poisoned(N_TOKEN);
        append(session, 0, 90, logprob);
        for (int round = 0; round < 6; round++) {
            int64_t length = session_length(session);
            if (round % 2) {
                for (int64_t i = 0; i < forget; i++) append(session, i, 1, NULL);
            } else if (forget > 1) {
                append(session, 3, forget, NULL);
            }
            int64_t begin = session_length(session) > length + forget ? length + 1 : length;
            succeed(session_truncate(session, begin));
            append(session, begin, 7, logprob + begin);
            if (begin == length) continue;
            logprob[begin] = expected[n][begin]; // nothing is known of the state before it
        }
        int64_t length = session_length(session);
        succeed(session_truncate(session, length - forget));
        append(session, length - forget, N_TOKEN - length + forget, logprob + length - forget);
        if (forget) logprob[length - forget] = expected[n][length - forget];
        for (int64_t i = 0; i < N_TOKEN; i++) // first tokens of appends after something forgotten
            if (isnan(logprob[i])) logprob[i] = expected[n][i];
        compare(n, "truncation", 1, logprob);
        free(logprob);
        session_close(&session);
    }
}

// Always one token more, then as many forgotten as may be: rows are moved together by tokens that
// are forgotten next.
static void test_forget_decoded(void **state) {
    (void)state;
    for (int n = 0; n < N_NETWORK; n++) {
        int64_t forget = networks[n].max_forget;
        set_network(&networks[n]);
        struct session_options options = options_of(&networks[n]);
        struct session *session = open_session(&mpi_test_comm, &options);
        float *logprob = poisoned(N_TOKEN);
        append(session, 0, N_PROMPT, logprob);
        for (int64_t most = N_PROMPT + forget; forget > 0 && most < N_PROMPT + 45; most++) {
            for (int64_t i = session_length(session); i < most; i++)
                append(session, i, 1, logprob + i);
            succeed(session_truncate(session, most - forget));
        }
        int64_t length = session_length(session);
        append(session, length, N_TOKEN - length, logprob + length);
        for (int64_t i = 0; i < N_TOKEN; i++) // first tokens of appends after something forgotten
            if (isnan(logprob[i])) logprob[i] = expected[n][i];
        compare(n, "forgotten tokens", 1, logprob);
        free(logprob);
        session_close(&session);
    }
}

static void test_refuses_to_forget(void **state) {
    (void)state;
    const int n = 1;
    set_network(&networks[n]);
    struct session_options options = options_of(&networks[n]);
    struct session *session = open_session(&mpi_test_comm, &options);
    float *logprob = poisoned(N_TOKEN);
    append(session, 0, 100, logprob);
    assert_int_equal(session_truncate(session, 40), ERR_INTERNAL);
    assert_non_null(strstr(status_message(), "forget 9 tokens"));
    assert_int_equal(session_length(session), 100); // and goes on as if nothing was said
    append(session, 100, N_TOKEN - 100, logprob + 100);
    compare(n, "refusal", 1, logprob);
    succeed(session_truncate(session, 0)); // all may be forgotten
    append(session, 0, N_TOKEN, logprob);
    compare(n, "all forgotten", 1, logprob);
    free(logprob);
    session_close(&session);
}

// Of one layer, what an append may use: the window, what may be forgotten, a quarter and 16 more.
static int64_t window_rows(int64_t window, int64_t sinks, int64_t forget) {
    return sinks + window + forget + (window + forget) / 4 + 16;
}

static void test_memory(void **state) {
    (void)state;
    const struct layer_spec *l = &checkpoint.spec.layers[0];
    int64_t row = (int64_t)2 * l->n_kv_head * l->head_dim * (int64_t)sizeof(float);
    int size = mpi_test_comm.size;
    struct memory_plan plans[2];
    for (int n = 0; n < N_NETWORK; n++) {
        set_network(&networks[n]);
        struct session_options options = options_of(&networks[n]);
        int64_t bytes = 0, n_full = 0;
        for (int i = 0; i < N_LAYER; i++) {
            n_full += networks[n].window[i] == 0;
            if (networks[n].window[i])
                bytes += row * window_rows(networks[n].window[i], networks[n].sinks[i],
                                           networks[n].max_forget);
        }
        for (int longer = 0; longer < 2; longer++) { // tokens are many or ten times as many
            options.max_tokens = longer ? 1000000 : 100000;
            options.chunk = 1000;
            succeed(session_plan(&checkpoint, &backend, size, size, &options, &plans[longer]));
            int64_t extra = size == 1 ? 0 : 2 * (options.max_tokens / options.chunk + 8);
            int64_t n_row = (options.max_tokens + size - 1) / size + extra;
            assert_int_equal(plans[longer].kv, bytes + n_full * n_row * row);
        }
        if (n_full) continue;
        // Of what remains, two tables have an entry for a token: attention mass, log-probabilities.
        assert_int_equal(plans[0].kv, plans[1].kv);
        assert_int_equal(plans[0].ring, plans[1].ring);
        assert_true(plans[1].activations - plans[0].activations <= 900000 * 8 + 8000 * size);
    }
    set_network(&networks[1]);
    struct session_options options = options_of(&networks[1]);
    struct session *session = open_session(&mpi_test_comm, &options);
    struct session_facts facts;
    session_get_facts(session, &facts);
    succeed(session_plan(&checkpoint, &backend, size, size, &options, &plans[0]));
    assert_int_equal(facts.kv_bytes, plans[0].kv);
    session_close(&session);
}

// Where layers see a window and the rates are known, the layout is what costs less.
static void test_layout(void **state) {
    (void)state;
    for (int n = 0; n < N_NETWORK; n++) {
        set_network(&networks[n]);
        struct session_options options = options_of(&networks[n]);
        options.rates = rates_of_thread;
        struct session *session = open_session(&mpi_test_comm, &options);
        struct session_facts facts;
        session_get_facts(session, &facts);
        assert_int_equal(facts.layout.zigzag_s > 0, mpi_test_comm.size > 1);
        if (mpi_test_comm.size == 1) {
            assert_int_equal(facts.layout.layout, LAYOUT_ZIGZAG); // as given
        } else {
            bool less = facts.layout.contiguous_s < facts.layout.zigzag_s;
            if (less) assert_int_equal(facts.layout.layout, LAYOUT_CONTIGUOUS);
            if (n == 1) assert_int_equal(facts.layout.layout, LAYOUT_CONTIGUOUS);
        }
        session_close(&session);
    }
}

// Attention mass is on what is seen: a token's is one in all, on tokens of its window and sinks.
static void test_mass(void **state) {
    (void)state;
    for (int n = 0; n < N_NETWORK; n++) {
        set_network(&networks[n]);
        struct session_options options = options_of(&networks[n]);
        struct session *session = open_session(&mpi_test_comm, &options);
        append(session, 0, 100, NULL);
        for (int64_t i = 100; i < 130; i++) append(session, i, 1, NULL);
        succeed(session_mass_reset(session, true));
        append(session, 130, 1, NULL);
        append(session, 131, 1, NULL);
        float *mass = poisoned(132);
        succeed(session_mass_take(session, mass));
        bool full = false; // of the upper half of the layers, 1 and 2
        int64_t widest = 0, sinks = 0;
        for (int i = 1; i < N_LAYER; i++) {
            full |= networks[n].window[i] == 0;
            if (networks[n].window[i] > widest) widest = networks[n].window[i];
            if (networks[n].sinks[i] > sinks) sinks = networks[n].sinks[i];
        }
        double sum = 0;
        for (int64_t i = 0; i < 132; i++) {
            sum += mass[i];
            bool seen = full || i < sinks || i > 130 - widest;
            if (seen != (mass[i] > 0))
                fail_msg("%s: mass of token %d is %g", networks[n].name, (int)i, mass[i]);
        }
        assert_true(fabs(sum - 2) < 1e-5);
        free(mass);
        session_close(&session);
    }
}

// A token's layers launched as one step do what the same operations do one by one, bit for bit.
static void test_steps(void **state) {
    (void)state;
    if (!backend.ops->steps || !mpi_test_comm.ops->launch_step) return; // all is one by one
    for (int n = 0; n < N_NETWORK; n++) {
        float *logprob[2];
        set_network(&networks[n]);
        for (int eager = 0; eager < 2; eager++) {
            struct session_options options = options_of(&networks[n]);
            options.eager = eager;
            struct session *session = open_session(&mpi_test_comm, &options);
            logprob[eager] = poisoned(N_TOKEN);
            append(session, 0, N_PROMPT, logprob[eager]);
            for (int64_t i = N_PROMPT; i < N_TOKEN; i++) append(session, i, 1, logprob[eager] + i);
            session_close(&session);
        }
        assert_memory_equal(logprob[0] + 1, logprob[1] + 1, (N_TOKEN - 1) * sizeof *logprob[0]);
        free(logprob[0]);
        free(logprob[1]);
    }
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    mpi_test_open_backend(BACKEND_CPU, &backend);
    if (comm_self_open(&self, backend.memory == MEMORY_DEVICE ? &backend : NULL) != OK ||
        checkpoint_open("tests/fixtures/tiny-llama", &checkpoint) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return mpi_test_stop(1);
    }
    for (int i = 0; i < N_TOKEN; i++) token[i] = (int32_t)((i * 131 + i * i % 7 + 17) % N_VOCAB);
    for (int n = 0; n < N_NETWORK; n++) {
        set_network(&networks[n]);
        struct session_options options = options_of(&networks[n]);
        struct session *session = open_session(&self, &options);
        expected[n] = poisoned(N_TOKEN);
        append(session, 0, N_TOKEN, expected[n]);
        session_close(&session);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),         cmocka_unit_test(test_decode),
        cmocka_unit_test(test_truncate),       cmocka_unit_test(test_refuses_to_forget),
        cmocka_unit_test(test_forget_decoded), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_layout),         cmocka_unit_test(test_mass),
        cmocka_unit_test(test_steps),
    };
    int failed = cmocka_run_group_tests_name("window", tests, NULL, NULL);
    for (int n = 0; n < N_NETWORK; n++) free(expected[n]);
    checkpoint_close(&checkpoint);
    comm_close(&self);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(failed);
}
