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
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/context_store.h"
#include "tests/common/context_test.h"

enum { N_TAIL = 12, N_DECODE = 4 }; // behind the document
_Static_assert(N_TOKEN + N_TAIL + N_DECODE == N_ALL, "the text of context_test.h");
// What a session says behind the document: log-probabilities of the tail, then logits after each
// of the tokens that are decoded.
struct ending {
    float logprob[N_TAIL];
    float *logits; // [1 + N_DECODE, n_vocab]
};

static void end(struct session *session, struct ending *out) {
    int64_t n_vocab = context_test_checkpoint.spec.n_vocab;
    out->logits = malloc((size_t)((1 + N_DECODE) * n_vocab) * sizeof *out->logits);
    assert_non_null(out->logits);
    context_test_append(session, N_TOKEN, N_TAIL, out->logprob, out->logits);
    for (int i = 0; i < N_DECODE; i++)
        context_test_append(session, N_TOKEN + N_TAIL + i, 1, NULL,
                            out->logits + (1 + i) * n_vocab);
}

static void compare(const char *what, const struct ending *got, const struct ending *expected,
                    double tolerance) {
    int64_t n = (1 + N_DECODE) * context_test_checkpoint.spec.n_vocab;
    context_test_compare(what, "token", N_TAIL, got->logprob, expected->logprob, tolerance);
    context_test_compare(what, "logit", n, got->logits, expected->logits, tolerance);
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

static struct session_options options_of(const struct context_network *network, int way) {
    struct session_options options = ways[way];
    options.precision = network->precision;
    options.index_precision = network->index_precision;
    return options;
}

// The last tokens come one at a time, as an answer's do. context: it is saved on the way.
static struct session *read_document(struct comm *comm, const struct session_options *options,
                                     const struct context *context) {
    static const int64_t ends[] = {130, 131, 450, N_TOKEN - 6};
    struct session *session = context_test_open_session(comm, options);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        int64_t from = session_length(session);
        context_test_append(session, from, ends[i] - from, NULL, NULL);
        if (context) context_test_succeed(context_save(session, context, NULL));
    }
    for (int i = 6; i > 0; i--) context_test_append(session, N_TOKEN - i, 1, NULL, NULL);
    if (context) context_test_succeed(context_save(session, context, NULL));
    return session;
}

// On all ranks, then on each by itself.
static void check_readers(const struct context_network *network, const char *writer, int way,
                          const struct context *context, const struct ending *expected) {
    for (int alone = 0; alone < 2; alone++) {
        struct session_options options = options_of(network, way);
        struct comm *comm = alone ? &context_test_self : &mpi_test_comm;
        struct session *session = context_test_restore(comm, &options, context);
        struct ending ending;
        char what[160];
        end(session, &ending);
        snprintf(what, sizeof what, "%s, saved by %s, restored by %s in way %d", network->name,
                 writer, alone ? "one" : "all", way);
        compare(what, &ending, expected, network->tolerance);
        free(ending.logits);
        session_close(&session);
    }
    context_test_meet();
}

static void test_restored(void **state) {
    (void)state;
    for (int n = 0; n < N_CONTEXT_NETWORK; n++) {
        context_test_open_network(&context_test_networks[n]);
        struct context context = context_test_named(context_test_networks[n].name);
        for (int way = 0; way < N_WAY; way++) {
            struct session_options options = options_of(&context_test_networks[n], way);
            struct ending expected;
            struct session *session = read_document(&mpi_test_comm, &options, &context);
            end(session, &expected); // saving changes nothing
            session_close(&session);
            check_readers(&context_test_networks[n], "all", (way + 1) % N_WAY, &context, &expected);
            check_readers(&context_test_networks[n], "all", way, &context, &expected);
            if (mpi_test_comm.rank == 0) {
                session = read_document(&context_test_self, &options, NULL);
                context_test_succeed(context_save(session, &context, NULL));
                session_close(&session);
            }
            context_test_meet();
            check_readers(&context_test_networks[n], "one", (way + 3) % N_WAY, &context, &expected);
            free(expected.logits);
        }
        checkpoint_close(&context_test_checkpoint);
    }
}

// Where ranks and layout are the same, so are all bits.
static void test_same_bits(void **state) {
    (void)state;
    context_test_open_checkpoint("tiny-llama");
    const struct session_options options = {.max_tokens = N_ALL};
    struct context context = context_test_named("bits");
    struct ending expected, ending;
    struct session *session = context_test_open_session(&mpi_test_comm, &options);
    context_test_append(session, 0, N_TOKEN, NULL, NULL);
    context_test_succeed(context_save(session, &context, NULL));
    end(session, &expected);
    session_close(&session);
    session = context_test_restore(&mpi_test_comm, &options, &context);
    end(session, &ending);
    assert_memory_equal(ending.logprob, expected.logprob, sizeof ending.logprob);
    assert_memory_equal(ending.logits, expected.logits,
                        (size_t)((1 + N_DECODE) * context_test_checkpoint.spec.n_vocab) *
                            sizeof(float));
    session_close(&session);
    free(ending.logits);
    free(expected.logits);
    checkpoint_close(&context_test_checkpoint);
}

// Stopped at half, and begun again on the same ranks, then saved behind the half.
static void test_parts(void **state) {
    (void)state;
    enum { N_HALF = 300 };
    context_test_open_checkpoint("tiny-llama");
    struct context context = context_test_named("parts");
    static float expected[N_ALL], logprob[N_ALL];
    struct context_restored restored;
    struct session *session = context_test_open_session(&mpi_test_comm, &context_test_plain);
    context_test_append(session, 0, N_HALF, logprob, NULL);
    context_test_succeed(context_save(session, &context, logprob));
    context_test_append(session, N_HALF, N_TOKEN - N_HALF, expected + N_HALF, NULL);
    memcpy(expected, logprob, N_HALF * sizeof *expected);
    session_close(&session);
    memset(logprob, 0, sizeof logprob);
    session = context_test_open_session(&mpi_test_comm, &context_test_plain);
    context_test_succeed(context_restore(session, &context, logprob, &restored));
    assert_int_equal(restored.n, N_HALF);
    context_test_append(session, N_HALF, N_TOKEN - N_HALF, logprob + N_HALF, NULL);
    assert_true(isnan(logprob[0]));
    for (int i = 1; i < N_TOKEN; i++)
        assert_true(fabs((double)logprob[i] - expected[i]) <= CONTEXT_FP32_SUMS);
    context_test_succeed(context_save(session, &context, logprob));
    session_close(&session);
    for (int i = 0; i < 4; i++) // the half is still of use
        assert_true(context_test_exists(
            &context, (const char *[]){"pages-1", "logprobs-1", "pages-2", "logprobs-2"}[i]));
    context_test_meet();
    static float both[N_ALL];
    session = context_test_open_session(&context_test_self, &context_test_plain);
    context_test_succeed(context_restore(session, &context, both, &restored));
    assert_int_equal(restored.n, N_TOKEN);
    assert_memory_equal(both + 1, logprob + 1, (N_TOKEN - 1) * sizeof *both);
    session_close(&session);
    context_test_meet();
    checkpoint_close(&context_test_checkpoint);
}

// What was not saved is not restored.
static void test_nothing(void **state) {
    (void)state;
    context_test_open_checkpoint("tiny-llama");
    static float logprob[N_TOKEN];
    struct context_restored restored;
    struct context context = context_test_named("nothing"), other = context;
    struct session *session = context_test_open_session(&mpi_test_comm, &context_test_plain);
    context_test_succeed(context_restore(session, &context, NULL, &restored));
    assert_int_equal(restored.n, 0);
    context_test_append(session, 0, N_TOKEN, NULL, NULL);
    context_test_succeed(context_save(session, &context, NULL));
    session_close(&session);
    session = context_test_open_session(&mpi_test_comm, &context_test_plain);
    other.n = N_TOKEN - 1;
    context_test_succeed(context_restore(session, &other, logprob, &restored)); // a beginning
    assert_int_equal(restored.n, 0);
    other = context_test_named("other");
    context_test_succeed(context_restore(session, &other, NULL, &restored));
    assert_int_equal(restored.n, 0);
    context_test_succeed(context_restore(session, &context, logprob, &restored)); // none were saved
    assert_int_equal(restored.n, 0);
    assert_int_equal(session_length(session), 0);
    session_close(&session);
    checkpoint_close(&context_test_checkpoint);
}

// Rows that only a window's session held are not there for one that keeps all.
static void test_lost_rows(void **state) {
    (void)state;
    context_test_open_checkpoint("tiny-llama");
    context_test_succeed(model_spec_set_window(&context_test_checkpoint.spec, 20, 2));
    struct context context = context_test_named("lost");
    struct session_options options = context_test_plain;
    options.max_tokens = 5000;
    struct session *session = context_test_open_session(&mpi_test_comm, &options);
    context_test_append(session, 0, N_TOKEN, NULL, NULL);
    context_test_succeed(context_save(session, &context, NULL));
    session_close(&session);
    options = ways[2];
    options.precision = PRECISION_FP32;
    session = context_test_restore(&mpi_test_comm, &options, &context);
    assert_int_equal(session_truncate(session, N_TOKEN - 100), ERR_INTERNAL);
    context_test_succeed(session_truncate(session, 0));
    context_test_append(session, 0, N_TOKEN, NULL, NULL);
    context_test_succeed(session_truncate(session, N_TOKEN - 100));
    session_close(&session);
    checkpoint_close(&context_test_checkpoint);
}

static void expect_restored(const struct context *context, int64_t n) {
    struct context_restored restored;
    struct session *session = context_test_open_session(&context_test_self, &context_test_plain);
    context_test_meet();
    context_test_succeed(context_restore(session, context, NULL, &restored));
    assert_int_equal(restored.n, n);
    session_close(&session);
    context_test_meet();
}

// While a state is on its way to the disk the session reads on, and the earlier one is what is
// there: also when it does not get there.
static void test_beside(void **state) {
    (void)state;
    context_test_open_checkpoint("tiny-llama");
    static float logprob[N_TOKEN];
    struct context context = context_test_named("beside");
    struct context_saving *saving = NULL;
    struct session *session = context_test_open_session(&mpi_test_comm, &context_test_plain);
    context_test_append(session, 0, 100, logprob, NULL);
    context_test_succeed(context_save(session, &context, NULL));
    context_test_append(session, 100, 200, logprob + 100, NULL);
    context_test_succeed(context_save_begin(session, &context, NULL, &saving));
    context_test_append(session, 300, N_TOKEN - 300, logprob + 300, NULL);
    expect_restored(&context, 100);
    while (saving) context_test_succeed(context_save_end(&saving, false));
    expect_restored(&context, 300);
    context_test_meet();
    context_test_succeed(context_save_begin(session, &context, logprob, &saving));
    context_save_drop(&saving);
    assert_null(saving);
    expect_restored(&context, 300);
    char *tokens = context_test_path(&context, "tokens");
    if (mpi_test_comm.rank == 0) {
        assert_int_equal(unlink(tokens), 0);
        assert_int_equal(mkdir(tokens, 0777), 0);
    }
    context_test_succeed(context_save_begin(session, &context, logprob, &saving));
    assert_int_equal(context_save_end(&saving, true), ERR_CREATE);
    assert_null(saving);
    if (!strstr(status_message(), tokens))
        fail_msg("%s expected, got %s", tokens, status_message());
    expect_restored(&context, 300);
    assert_true(context_test_exists(&context, "pages-2"));
    assert_false(context_test_exists(&context, "pages-3") ||
                 context_test_exists(&context, "ids-3"));
    context_test_meet();
    if (mpi_test_comm.rank == 0) assert_int_equal(rmdir(tokens), 0);
    context_test_succeed(context_save(session, &context, logprob));
    expect_restored(&context, N_TOKEN);
    session_close(&session);
    free(tokens);
    checkpoint_close(&context_test_checkpoint);
}

static int64_t bytes_of(const struct context *context, int generation) {
    struct stat info;
    char name[32];
    snprintf(name, sizeof name, "pages-%d", generation);
    char *path = context_test_path(context, name);
    int64_t bytes = stat(path, &info) == 0 ? (int64_t)info.st_size : 0;
    free(path);
    return bytes;
}

// A save writes the pages that it finds new; where another job has saved the context since, or
// what is there has no log-probabilities, it writes all.
static void test_saves(void **state) {
    (void)state;
    context_test_open_checkpoint("tiny-llama");
    static float logprob[N_TOKEN];
    struct context context = context_test_named("saves");
    struct session *session = context_test_open_session(&mpi_test_comm, &context_test_plain),
                   *other;
    static const int64_t ends[] = {256, 300, 301, 550, N_TOKEN}, pages[] = {1, 1, 1, 2, 1};
    for (int i = 0; i < 5; i++) {
        int64_t from = session_length(session);
        context_test_append(session, from, ends[i] - from, logprob + from, NULL);
        context_test_succeed(context_save(session, &context, NULL));
        assert_int_equal(bytes_of(&context, i + 1), pages[i] * bytes_of(&context, 1));
        expect_restored(&context, ends[i]);
    }
    int64_t page = bytes_of(&context, 1);
    context_test_meet();
    context_test_succeed(context_save(session, &context, logprob));
    assert_int_equal(bytes_of(&context, 6), 3 * page);
    assert_int_equal(bytes_of(&context, 5), 0);
    context_test_succeed(session_truncate(session, 0));
    context_test_append(session, 0, 256, logprob, NULL);
    context_test_succeed(context_save(session, &context, logprob));
    assert_int_equal(bytes_of(&context, 7), page);
    context_test_meet();
    if (mpi_test_comm.rank == 0) { // another job
        other = context_test_open_session(&context_test_self, &context_test_plain);
        context_test_append(other, 0, 100, logprob, NULL);
        context_test_succeed(context_save(other, &context, logprob));
        session_close(&other);
    }
    context_test_meet();
    context_test_append(session, 256, 144, logprob + 256, NULL);
    context_test_succeed(context_save(session, &context, logprob));
    assert_int_equal(bytes_of(&context, 9), 2 * page);
    assert_int_equal(bytes_of(&context, 7) + bytes_of(&context, 8), 0);
    expect_restored(&context, 400);
    session_close(&session);
    checkpoint_close(&context_test_checkpoint);
}

// The list of saves does not grow without end.
static void test_many_saves(void **state) {
    (void)state;
    enum { MOST = 128 };
    if (mpi_test_comm.size > 1) return;
    context_test_open_checkpoint("tiny-llama");
    struct context context = context_test_named("many saves");
    struct session *session = context_test_open_session(&mpi_test_comm, &context_test_plain);
    for (int i = 1; i <= MOST + 2; i++) {
        context_test_append(session, i - 1, 1, NULL, NULL);
        context_test_succeed(context_save(session, &context, NULL));
        assert_true(bytes_of(&context, i) > 0);
        assert_int_equal(bytes_of(&context, 1) > 0, i <= MOST);
    }
    assert_true(bytes_of(&context, MOST + 1) > 0); // all of them
    assert_int_equal(bytes_of(&context, MOST), 0);
    expect_restored(&context, MOST + 2);
    session_close(&session);
    checkpoint_close(&context_test_checkpoint);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restored),  cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_parts),     cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_lost_rows), cmocka_unit_test(test_beside),
        cmocka_unit_test(test_saves),     cmocka_unit_test(test_many_saves),
    };
    return mpi_test_stop(
        cmocka_run_group_tests_name("context store", tests, context_test_open, context_test_close));
}
