// ranks: 1 2 3 4 8
// fake device: 1 3
// The states of session_encode: those of one rank that reads all at once, whatever the ranks,
// chunks and layout; each token's once, in ascending order on each rank. Packed documents are as if
// alone. Networks are tiny-llama made to be an encoder, with windows put in.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/extension.h"
#include "model/session.h"
#include "tests/common/mpi_test.h"

enum { N_TOKEN = 53, N_VOCAB = 256 };
static const double tolerance = 2e-5; // fp32 sums of other order over three layers

// Of unequal lengths; ends of ranks and windows fall within, at and between them.
static const int64_t document_end[] = {1, 14, 16, 37, 52, N_TOKEN};
enum { N_DOCUMENT = sizeof document_end / sizeof *document_end, N_LAYER = 3 };
struct network {
    const char *name;
    bool causal;
    int64_t window[N_LAYER];
};
static const struct network networks[] = {
    {"full encoder", false, {0}},
    {"alternating encoder", false, {8, 0, 8}},
    {"narrow encoder", false, {2, 3, 1}},
    {"wide encoder", false, {200, 0, 30}},
    {"causal", true, {0}},
    {"causal window", true, {6, 0, 6}},
};
enum { N_NETWORK = sizeof networks / sizeof *networks };

static struct backend backend;
static struct comm self;
static struct profile profile;
static int32_t token[N_TOKEN];

struct pack {
    const int32_t *token; // [n]
    int64_t n;
    int n_document;
    const int64_t *document_end;
};
static const struct pack whole = {token, N_TOKEN, 0, NULL},
                         packed = {token, N_TOKEN, N_DOCUMENT, document_end};

// What the callback received: states by position, and how many.
struct states {
    int64_t hidden, total, n, last;
    float *state; // [total, hidden] NaN where nothing came
    bool refuse;
};

static enum status take(void *user, const int64_t *position, int64_t n, const float *state) {
    struct states *out = user;
    if (out->refuse) FAIL(ERR_INPUT, "not these");
    for (int64_t i = 0; i < n; i++) {
        assert_true(position[i] > out->last && position[i] < out->total);
        out->last = position[i];
        memcpy(out->state + position[i] * out->hidden, state + i * out->hidden,
               (size_t)out->hidden * sizeof *state);
    }
    out->n += n;
    return OK;
}

static struct states open_states(const struct checkpoint *network, int64_t total) {
    struct states out = {.hidden = network->spec.n_hidden, .total = total, .last = -1};
    out.state = malloc((size_t)(total * out.hidden) * sizeof *out.state);
    assert_non_null(out.state);
    for (int64_t i = 0; i < total * out.hidden; i++) out.state[i] = NAN;
    return out;
}

static struct session *open_session(const struct checkpoint *network, struct comm *comm,
                                    const struct session_options *how) {
    struct session *session = NULL;
    struct session_options options = *how;
    options.precision = PRECISION_FP32;
    if (options.max_tokens == 0) options.max_tokens = N_TOKEN;
    enum status status = session_open(network, &backend, comm, &profile, &options, &session);
    if (status != OK) print_error("%s\n", status_message());
    assert_int_equal(status, OK);
    return session;
}

static struct states encode(struct session *session, const struct checkpoint *network,
                            const struct pack *pack) {
    struct states out = open_states(network, pack->n);
    struct encode_args args = {.token = pack->token,
                               .n = pack->n,
                               .n_document = pack->n_document,
                               .document_end = pack->document_end,
                               .states = take,
                               .user = &out};
    enum status status = session_encode(session, &args);
    if (status != OK) print_error("%s\n", status_message());
    assert_int_equal(status, OK);
    return out;
}

static void open_network(const struct network *network, struct checkpoint *out) {
    assert_int_equal(checkpoint_open("tests/fixtures/tiny-llama", out), OK);
    assert_int_equal(out->spec.n_layer, N_LAYER);
    out->spec.causal = network->causal;
    for (int i = 0; i < N_LAYER; i++) out->spec.layers[i].window = network->window[i];
}

static void compare(const char *name, const struct states *got, const struct states *expected) {
    for (int64_t i = 0; i < got->total * got->hidden; i++) {
        if (isnan(got->state[i])) continue; // another rank's
        if (!(fabs(got->state[i] - expected->state[i]) <= tolerance))
            fail_msg("%s: token %d: %.7f, not %.7f", name, (int)(i / got->hidden), got->state[i],
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
    struct states expected = encode(alone, &network, &whole);
    assert_int_equal(expected.n, N_TOKEN);
    session_close(&alone);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct session *session = open_session(&network, &mpi_test_comm, &ways[i]);
        for (int again = 0; again < 2; again++) {
            struct states got = encode(session, &network, &whole);
            struct session_facts facts;
            session_get_facts(session, &facts);
            assert_int_equal(got.n, facts.tokens);
            compare("causal", &got, &expected);
            free(got.state);
        }
        session_close(&session);
    }
    free(expected.state);
    checkpoint_close(&network);
}

// One rank, each document by itself.
static struct states encode_one_by_one(struct session *alone, const struct checkpoint *network,
                                       const struct pack *pack) {
    struct states out = open_states(network, pack->n), one = open_states(network, pack->n);
    int64_t begin = 0;
    for (int i = 0; i < pack->n_document; begin = pack->document_end[i++]) {
        struct encode_args args = {.token = pack->token + begin,
                                   .n = pack->document_end[i] - begin,
                                   .states = take,
                                   .user = &one};
        one.last = -1;
        assert_int_equal(session_encode(alone, &args), OK);
        memcpy(out.state + begin * out.hidden, one.state,
               (size_t)(args.n * out.hidden) * sizeof *out.state);
    }
    free(one.state);
    return out;
}

// Equal to fp32 rounding: products of other shapes sum in another order.
static void test_packed(void **state) {
    (void)state;
    const struct session_options ways[] = {{.chunk = 0},
                                           {.chunk = 9},
                                           {.chunk = 0, .encode_only = true},
                                           {.chunk = 20, .encode_only = true}};
    for (int n = 0; n < N_NETWORK; n++) {
        struct checkpoint network;
        open_network(&networks[n], &network);
        struct session *alone = open_session(&network, &self, &ways[0]);
        struct states expected = encode_one_by_one(alone, &network, &packed);
        session_close(&alone);
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            struct session *session = open_session(&network, &mpi_test_comm, &ways[i]);
            struct states got = encode(session, &network, &packed);
            struct session_facts facts;
            session_get_facts(session, &facts);
            assert_int_equal(got.n, facts.tokens);
            bool at_once = ways[i].chunk == 0 && ways[i].encode_only;
            assert_int_equal(facts.kv_bytes == 0, at_once || !network.spec.causal);
            compare(networks[n].name, &got, &expected);
            free(got.state);
            session_close(&session);
        }
        free(expected.state);
        checkpoint_close(&network);
    }
}

// What is kept, or not, of keys in more than one rotation makes no difference.
static void test_extended_context(void **state) {
    (void)state;
    const struct extension methods[] = {
        {.method = EXTENSION_SELF_EXTEND, .original_context = 32, .group = 4, .neighbours = 8},
        {.method = EXTENSION_DCA, .original_context = 32, .chunk = 24},
        {.method = EXTENSION_STREAMING, .original_context = 32, .sinks = 3, .window = 10}};
    for (size_t m = 0; m < sizeof methods / sizeof *methods; m++) {
        struct checkpoint network;
        open_network(&networks[4], &network);
        assert_int_equal(extension_apply(&methods[m], "tiny-llama", &network.spec), OK);
        struct session *alone =
            open_session(&network, &self, &(struct session_options){.chunk = 16});
        struct states expected = encode(alone, &network, &whole);
        session_close(&alone);
        struct session *session =
            open_session(&network, &mpi_test_comm, &(struct session_options){.encode_only = true});
        struct states got = encode(session, &network, &whole);
        compare("extended context", &got, &expected);
        free(got.state);
        free(expected.state);
        session_close(&session);
        checkpoint_close(&network);
    }
}

// One rank attends long sequences in slabs of queries: of a pack longer than one, whose documents
// are not, though they begin and end within.
static void test_slabs(void **state) {
    (void)state;
    static const int64_t ends[] = {1, 3000, 8900, 9301};
    enum { N_LONG = 9301 };
    int32_t *ids = malloc(N_LONG * sizeof *ids);
    assert_non_null(ids);
    for (int i = 0; i < N_LONG; i++) ids[i] = (int32_t)((i * 131 + i / 256 * 7 + 17) % N_VOCAB);
    const struct pack pack = {ids, N_LONG, 4, ends};
    const struct session_options longer = {.max_tokens = N_LONG, .encode_only = true};
    for (int n = 1; n < N_NETWORK && mpi_test_comm.size == 1; n += 4) {
        struct checkpoint network;
        open_network(&networks[n], &network);
        struct session *session = open_session(&network, &self, &longer);
        struct states expected = encode_one_by_one(session, &network, &pack);
        struct states got = encode(session, &network, &pack);
        assert_int_equal(got.n, N_LONG);
        compare(networks[n].name, &got, &expected);
        free(got.state);
        free(expected.state);
        session_close(&session);
        checkpoint_close(&network);
    }
    free(ids);
}

static bool sees(const struct network *network, int64_t query, int64_t key, int n_document) {
    int64_t window = network->window[0], distance = query - key;
    for (int i = 0; i < n_document; i++)
        if ((query < document_end[i]) != (key < document_end[i])) return false;
    if (network->causal) return distance >= 0 && (window == 0 || distance < window);
    return window == 0 || (distance <= window / 2 && -distance <= window / 2);
}

// With one layer a state changes where a token that it sees does, and nowhere else.
static void test_what_is_seen(void **state) {
    (void)state;
    const int64_t changed[] = {0, 15, 16, 30, N_TOKEN - 1};
    for (int n = 0; n < 2 * N_NETWORK; n++) {
        int n_document = n % 2 ? N_DOCUMENT : 0;
        struct checkpoint network;
        open_network(&networks[n / 2], &network);
        network.spec.n_layer = 1;
        struct session *session =
            open_session(&network, &mpi_test_comm, &(struct session_options){.chunk = 0});
        struct pack pack = n_document ? packed : whole;
        struct states before = encode(session, &network, &pack);
        for (size_t c = 0; c < sizeof changed / sizeof *changed; c++) {
            int32_t other[N_TOKEN];
            memcpy(other, token, sizeof other);
            other[changed[c]] = (other[changed[c]] + 1) % N_VOCAB;
            pack.token = other;
            struct states after = encode(session, &network, &pack);
            for (int64_t i = 0; i < N_TOKEN; i++) {
                const float *a = before.state + i * before.hidden;
                const float *b = after.state + i * after.hidden;
                if (isnan(a[0])) continue; // another rank's
                bool differs = memcmp(a, b, (size_t)before.hidden * sizeof *a) != 0;
                if (differs != sees(&networks[n / 2], i, changed[c], n_document))
                    fail_msg("%s: token %d, of token %d", networks[n / 2].name, (int)i,
                             (int)changed[c]);
            }
            free(after.state);
        }
        free(before.state);
        session_close(&session);
        checkpoint_close(&network);
    }
}

// Encoders keep nothing, and have no logits, log-probabilities and attention mass; nor have causal
// networks where they only encode.
static void test_encoder_memory(void **state) {
    (void)state;
    struct checkpoint network;
    struct memory_plan causal, encoder;
    struct session_options options = {.precision = PRECISION_FP32, .max_tokens = 8192};
    int size = mpi_test_comm.size;
    open_network(&networks[4], &network);
    assert_int_equal(session_plan(&network, &backend, size, size, &options, &causal), OK);
    network.spec.causal = false;
    assert_int_equal(session_plan(&network, &backend, size, size, &options, &encoder), OK);
    assert_int_equal(encoder.kv, 0);
    int64_t logits = 2 * network.spec.n_vocab, values = 8192 + 2 * 8192 / size;
    assert_true(causal.activations + causal.kv >=
                encoder.activations + (logits + values) * (int64_t)sizeof(float));
    struct session *session = open_session(&network, &self, &options);
    assert_int_equal(session_append(session, &(struct append_args){.token = token, .n = N_TOKEN}),
                     ERR_CONFIG);
    session_close(&session);
    // A token of a long sequence on one rank: residual, keys, values, rotation, id and
    // log-probability.
    int64_t hidden = network.spec.n_hidden, kv = 2 * 2 * 16, rotation = 16;
    struct memory_plan longer;
    options.max_tokens = 100000;
    assert_int_equal(session_plan(&network, &backend, 1, 1, &options, &encoder), OK);
    options.max_tokens = 200000;
    assert_int_equal(session_plan(&network, &backend, 1, 1, &options, &longer), OK);
    assert_int_equal(longer.activations - encoder.activations,
                     100000 * (hidden + kv + rotation + 1) * (int64_t)sizeof(float));
    network.spec.causal = options.encode_only = true;
    assert_int_equal(session_plan(&network, &backend, 1, 1, &options, &causal), OK);
    assert_int_equal(causal.activations, longer.activations);
    assert_int_equal(causal.kv, 0);
    checkpoint_close(&network);
}

// Rotations are those of a document's own length, whatever the room, the chunk or the pack.
static void test_rotated_by_length(void **state) {
    (void)state;
    const struct extension dynamic = {
        .method = EXTENSION_DYNAMIC, .original_context = 32, .factor = 2};
    static const int64_t short_ends[] = {13, 45, N_TOKEN}, long_ends[] = {40, N_TOKEN};
    const struct pack shorter = {token, N_TOKEN, 3, short_ends}, longer = {token, 40, 0, NULL},
                      both = {token, N_TOKEN, 2, long_ends};
    struct checkpoint network;
    open_network(&networks[4], &network);
    assert_int_equal(extension_apply(&dynamic, "tiny-llama", &network.spec), OK);
    struct session *exact =
        open_session(&network, &self, &(struct session_options){.max_tokens = 40});
    struct session *session =
        open_session(&network, &mpi_test_comm, &(struct session_options){.chunk = 9});
    struct states expected = encode_one_by_one(exact, &network, &shorter);
    struct states got = encode(session, &network, &shorter);
    compare("shorter documents", &got, &expected);
    free(got.state);
    free(expected.state);
    expected = encode(exact, &network, &longer);
    got = encode(session, &network, &longer);
    compare("a longer document", &got, &expected);
    assert_int_equal(
        session_encode(session, &(struct encode_args){.token = both.token,
                                                      .n = both.n,
                                                      .n_document = both.n_document,
                                                      .document_end = both.document_end,
                                                      .states = take,
                                                      .user = &got}),
        ERR_CONFIG);
    free(got.state);
    free(expected.state);
    session_close(&session);
    session_close(&exact);
    checkpoint_close(&network);
}

static void test_refusals(void **state) {
    (void)state;
    struct checkpoint network;
    assert_int_equal(checkpoint_open("tests/fixtures/tiny-llama", &network), OK);
    struct session *session = open_session(&network, &self, &(struct session_options){0});
    struct states out = open_states(&network, N_TOKEN);
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
        cmocka_unit_test(test_encode_causal),     cmocka_unit_test(test_packed),
        cmocka_unit_test(test_extended_context),  cmocka_unit_test(test_slabs),
        cmocka_unit_test(test_what_is_seen),      cmocka_unit_test(test_encoder_memory),
        cmocka_unit_test(test_rotated_by_length), cmocka_unit_test(test_refusals),
    };
    int failed = cmocka_run_group_tests_name("encode", tests, NULL, NULL);
    comm_close(&self);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(failed);
}
