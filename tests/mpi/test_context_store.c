// ranks: 1 2 3 4
// fake device: 1 3
// A context that was saved and restored goes on as if it had been read, whatever ranks, layout,
// chunks and room wrote it. (What is refused is test_context_damage's part.)
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/context_store.h"
#include "model/extension.h"
#include "tests/common/mpi_test.h"
#include "tests/common/shared_folder.h"
#include "tests/common/tolerance.h"

// Three pages, the last of them part; what comes behind is not of the document.
enum { N_TOKEN = 600, N_TAIL = 12, N_DECODE = 4, N_ALL = N_TOKEN + N_TAIL + N_DECODE };
static const double fp32_sums = 1e-4; // of ln p and logits to 13: another order, 3 layers

static struct backend backend;
static struct comm self;
static struct checkpoint checkpoint;
static struct profile profile;
static int32_t token[N_ALL];
static char dir[SHARED_FOLDER_BYTES];

static void succeed(enum status status) {
    if (status != OK) fail_msg("%s", status_message());
}

static void meet(void) {
    succeed(mpi_test_host_comm.ops->barrier(&mpi_test_host_comm));
}

static void open_checkpoint(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "tests/fixtures/%s", name);
    succeed(checkpoint_open(path, &checkpoint));
}

static struct session *open_session(struct comm *comm, const struct session_options *options) {
    struct session *session = NULL;
    succeed(session_open(&checkpoint, &backend, comm, &profile, options, &session));
    return session;
}

static struct context context_named(const char *identity) {
    return (struct context){dir, identity, token, N_TOKEN, "a text"};
}

// Positions [from, from + n) of the tokens.
static void append(struct session *session, int64_t from, int64_t n, float *logprob,
                   float *logits) {
    succeed(session_append(
        session, &(struct append_args){
                     .token = token + from, .n = n, .logprob = logprob, .last_logits = logits}));
}

// What a session says behind the document: log-probabilities of the tail, then logits after each
// of the tokens that are decoded.
struct ending {
    float logprob[N_TAIL];
    float *logits; // [1 + N_DECODE, n_vocab]
};

static void end(struct session *session, struct ending *out) {
    int64_t n_vocab = checkpoint.spec.n_vocab;
    out->logits = malloc((size_t)((1 + N_DECODE) * n_vocab) * sizeof *out->logits);
    assert_non_null(out->logits);
    append(session, N_TOKEN, N_TAIL, out->logprob, out->logits);
    for (int i = 0; i < N_DECODE; i++)
        append(session, N_TOKEN + N_TAIL + i, 1, NULL, out->logits + (1 + i) * n_vocab);
}

static void compare(const char *what, const struct ending *got, const struct ending *expected,
                    double tolerance) {
    int64_t n = (1 + N_DECODE) * checkpoint.spec.n_vocab;
    for (int64_t i = 0; i < N_TAIL; i++)
        if (!(fabs((double)got->logprob[i] - expected->logprob[i]) <= tolerance))
            fail_msg("%s: token %d: %.7f, not %.7f", what, (int)i, got->logprob[i],
                     expected->logprob[i]);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got->logits[i] - expected->logits[i]) <= tolerance))
            fail_msg("%s: logit %d: %.7f, not %.7f", what, (int)i, got->logits[i],
                     expected->logits[i]);
}

struct network {
    const char *name; // of the test
    const char *folder;
    int64_t window, sinks; // set on it; 0: none
    struct extension extension;
    enum precision precision;
    enum index_precision index_precision;
    double tolerance;
};
static const struct network networks[] = {
    {"full", "tiny-llama", .precision = PRECISION_FP32, .tolerance = fp32_sums},
    {"bf16 rows", "tiny-llama", .tolerance = PARITY_BF16_MAX},
    {"some layers see a window", "tiny-gemma3", .precision = PRECISION_FP32,
     .tolerance = fp32_sums},
    {"window and sinks", "tiny-llama", 40, 4, .precision = PRECISION_FP32, .tolerance = fp32_sums},
    {"latents and index keys", "deepseek_v32_tiny", .precision = PRECISION_FP32,
     .tolerance = fp32_sums},
    // Queries rounded to fp8: the order of sums may tip one, and with it the choice of a token.
    {"fp8 index keys", "deepseek_v32_fp8_tiny", .precision = PRECISION_FP32,
     .index_precision = INDEX_FP8, .tolerance = PARITY_FP32_MAX},
    {"keys in two rotations", "tiny-qwen3",
     .extension = {.method = EXTENSION_DCA, .original_context = 256, .chunk = 100},
     .precision = PRECISION_FP32, .tolerance = fp32_sums},
};
enum { N_NETWORK = sizeof networks / sizeof *networks };

static void open_network(const struct network *network) {
    open_checkpoint(network->folder);
    if (network->window)
        succeed(model_spec_set_window(&checkpoint.spec, network->window, network->sinks));
    if (network->extension.method)
        succeed(extension_apply(&network->extension, network->folder, &checkpoint.spec));
}

// Room, chunks, layout and what may be forgotten differ from job to job. Much room keeps windows
// as such, on any number of ranks; little, with much to be forgotten, keeps all.
static const struct session_options ways[] = {
    {.max_tokens = 5000, .chunk = 100, .layout = LAYOUT_ZIGZAG, .max_forget = 5},
    {.max_tokens = 5000, .chunk = 7, .layout = LAYOUT_CONTIGUOUS},
    {.max_tokens = N_ALL, .chunk = 64, .layout = LAYOUT_ZIGZAG, .max_forget = N_ALL},
    {.max_tokens = 5000, .layout = LAYOUT_CONTIGUOUS, .max_forget = 90},
};
enum { N_WAY = sizeof ways / sizeof *ways };

static struct session_options options_of(const struct network *network, int way) {
    struct session_options options = ways[way];
    options.precision = network->precision;
    options.index_precision = network->index_precision;
    return options;
}

// The last tokens come one at a time, as an answer's do.
static struct session *read_document(struct comm *comm, const struct session_options *options) {
    struct session *session = open_session(comm, options);
    append(session, 0, N_TOKEN - 6, NULL, NULL);
    for (int i = 6; i > 0; i--) append(session, N_TOKEN - i, 1, NULL, NULL);
    return session;
}

static struct session *restore(struct comm *comm, const struct session_options *options,
                               const struct context *context) {
    struct session *session = open_session(comm, options);
    int64_t n_restored = -1;
    succeed(context_restore(session, context, NULL, &n_restored));
    assert_int_equal(n_restored, N_TOKEN);
    assert_int_equal(session_length(session), N_TOKEN);
    return session;
}

// On all ranks, then on each by itself.
static void check_readers(const struct network *network, const char *writer, int way,
                          const struct context *context, const struct ending *expected) {
    for (int alone = 0; alone < 2; alone++) {
        struct session_options options = options_of(network, way);
        struct comm *comm = alone ? &self : &mpi_test_comm;
        struct session *session = restore(comm, &options, context);
        struct ending ending;
        char what[160];
        end(session, &ending);
        snprintf(what, sizeof what, "%s, saved by %s, restored by %s in way %d", network->name,
                 writer, alone ? "one" : "all", way);
        compare(what, &ending, expected, network->tolerance);
        free(ending.logits);
        session_close(&session);
    }
    meet();
}

static void test_restored(void **state) {
    (void)state;
    for (int n = 0; n < N_NETWORK; n++) {
        open_network(&networks[n]);
        struct context context = context_named(networks[n].name);
        for (int way = 0; way < N_WAY; way++) {
            struct session_options options = options_of(&networks[n], way);
            struct ending expected;
            struct session *session = read_document(&mpi_test_comm, &options);
            succeed(context_save(session, &context, NULL));
            end(session, &expected); // saving changes nothing
            session_close(&session);
            check_readers(&networks[n], "all", (way + 1) % N_WAY, &context, &expected);
            check_readers(&networks[n], "all", way, &context, &expected);
            if (mpi_test_comm.rank == 0) {
                session = read_document(&self, &options);
                succeed(context_save(session, &context, NULL));
                session_close(&session);
            }
            meet();
            check_readers(&networks[n], "one", (way + 3) % N_WAY, &context, &expected);
            free(expected.logits);
        }
        checkpoint_close(&checkpoint);
    }
}

// Where ranks and layout are the same, so are all bits.
static void test_same_bits(void **state) {
    (void)state;
    open_checkpoint("tiny-llama");
    const struct session_options options = {.max_tokens = N_ALL};
    struct context context = context_named("bits");
    struct ending expected, ending;
    struct session *session = open_session(&mpi_test_comm, &options);
    append(session, 0, N_TOKEN, NULL, NULL);
    succeed(context_save(session, &context, NULL));
    end(session, &expected);
    session_close(&session);
    session = restore(&mpi_test_comm, &options, &context);
    end(session, &ending);
    assert_memory_equal(ending.logprob, expected.logprob, sizeof ending.logprob);
    assert_memory_equal(ending.logits, expected.logits,
                        (size_t)((1 + N_DECODE) * checkpoint.spec.n_vocab) * sizeof(float));
    session_close(&session);
    free(ending.logits);
    free(expected.logits);
    checkpoint_close(&checkpoint);
}

static const struct session_options plain = {
    .precision = PRECISION_FP32, .max_tokens = N_ALL, .chunk = 100};

static char *path_of(const struct context *context, const char *name) {
    char key[DIGEST_BYTES], *path = NULL;
    context_key(context, key);
    assert_true(asprintf(&path, "%s/%s/%s", dir, key, name) > 0);
    return path;
}

static bool exists(const struct context *context, const char *name) {
    char *path = path_of(context, name);
    bool found = access(path, F_OK) == 0;
    free(path);
    return found;
}

// Stopped at half, and begun again on the same ranks, then saved in place of the half.
static void test_parts(void **state) {
    (void)state;
    enum { N_HALF = 300 };
    open_checkpoint("tiny-llama");
    struct context context = context_named("parts");
    static float expected[N_ALL], logprob[N_ALL];
    int64_t n_restored;
    struct session *session = open_session(&mpi_test_comm, &plain);
    append(session, 0, N_HALF, logprob, NULL);
    succeed(context_save(session, &context, logprob));
    append(session, N_HALF, N_TOKEN - N_HALF, expected + N_HALF, NULL);
    memcpy(expected, logprob, N_HALF * sizeof *expected);
    session_close(&session);
    memset(logprob, 0, sizeof logprob);
    session = open_session(&mpi_test_comm, &plain);
    succeed(context_restore(session, &context, logprob, &n_restored));
    assert_int_equal(n_restored, N_HALF);
    append(session, N_HALF, N_TOKEN - N_HALF, logprob + N_HALF, NULL);
    assert_true(isnan(logprob[0]));
    for (int i = 1; i < N_TOKEN; i++)
        assert_true(fabs((double)logprob[i] - expected[i]) <= fp32_sums);
    succeed(context_save(session, &context, logprob));
    session_close(&session);
    assert_false(exists(&context, "pages-1") || exists(&context, "logprobs-1"));
    assert_true(exists(&context, "pages-2") && exists(&context, "logprobs-2"));
    meet();
    session = restore(&self, &plain, &context);
    session_close(&session);
    meet();
    checkpoint_close(&checkpoint);
}

// What was not saved is not restored.
static void test_nothing(void **state) {
    (void)state;
    open_checkpoint("tiny-llama");
    static float logprob[N_TOKEN];
    int64_t n_restored = -1;
    struct context context = context_named("nothing"), other = context;
    struct session *session = open_session(&mpi_test_comm, &plain);
    succeed(context_restore(session, &context, NULL, &n_restored));
    assert_int_equal(n_restored, 0);
    append(session, 0, N_TOKEN, NULL, NULL);
    succeed(context_save(session, &context, NULL));
    session_close(&session);
    session = open_session(&mpi_test_comm, &plain);
    other.n = N_TOKEN - 1;
    succeed(context_restore(session, &other, NULL, &n_restored));
    assert_int_equal(n_restored, 0);
    other = context_named("other");
    succeed(context_restore(session, &other, NULL, &n_restored));
    assert_int_equal(n_restored, 0);
    succeed(context_restore(session, &context, logprob, &n_restored)); // none were saved
    assert_int_equal(n_restored, 0);
    assert_int_equal(session_length(session), 0);
    session_close(&session);
    checkpoint_close(&checkpoint);
}

// Rows that only a window's session held are not there for one that keeps all.
static void test_lost_rows(void **state) {
    (void)state;
    open_checkpoint("tiny-llama");
    succeed(model_spec_set_window(&checkpoint.spec, 20, 2));
    struct context context = context_named("lost");
    struct session_options options = plain;
    options.max_tokens = 5000;
    struct session *session = open_session(&mpi_test_comm, &options);
    append(session, 0, N_TOKEN, NULL, NULL);
    succeed(context_save(session, &context, NULL));
    session_close(&session);
    options = ways[2];
    options.precision = PRECISION_FP32;
    session = restore(&mpi_test_comm, &options, &context);
    assert_int_equal(session_truncate(session, N_TOKEN - 100), ERR_INTERNAL);
    succeed(session_truncate(session, 0));
    append(session, 0, N_TOKEN, NULL, NULL);
    succeed(session_truncate(session, N_TOKEN - 100));
    session_close(&session);
    checkpoint_close(&checkpoint);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    mpi_test_open_backend(BACKEND_CPU, &backend);
    if (comm_self_open(&self, backend.memory == MEMORY_DEVICE ? &backend : NULL) != OK ||
        !shared_folder_open(dir)) {
        fprintf(stderr, "%s\n", status_message());
        return mpi_test_stop(1);
    }
    for (int i = 0; i < N_ALL; i++) token[i] = (int32_t)((i * 131 + i * i % 7 + 17) % 256);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restored),  cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_parts),     cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_lost_rows),
    };
    int failed = cmocka_run_group_tests_name("context store", tests, NULL, NULL);
    shared_folder_close(dir);
    comm_close(&self);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(failed);
}
