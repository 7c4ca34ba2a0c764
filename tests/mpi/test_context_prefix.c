// ranks: 1 2 3
// fake device: 2
// A document that begins like a saved one takes its beginning from there, and is then as if it had
// been read.
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

#include "tests/common/context_test.h"

enum { N_LONG = N_TOKEN + CONTEXT_PAGE }; // a page more than the saved text
static const struct session_options plain = {
    .precision = PRECISION_FP32, .max_tokens = N_LONG, .chunk = 100};

// The text of n tokens, and what comes behind it; one token differs (-1: none does).
static struct context text_of(const char *identity, int64_t n, int64_t differs,
                              int32_t token[N_LONG]) {
    struct context context = context_test_named(identity);
    for (int64_t i = 0; i < N_LONG; i++)
        token[i] = i < N_TOKEN ? context.token[i] : (int32_t)((i * 57 + 11) % 256);
    if (differs >= 0) token[differs] ^= 1;
    context.token = token;
    context.n = n;
    return context;
}

// What was said of a document.
struct reading {
    float logprob[N_LONG];
    float *logits; // [n_vocab] after the last token
};

static void append(struct session *session, const struct context *context, int64_t from,
                   struct reading *out) {
    free(out->logits);
    out->logits = malloc((size_t)context_test_checkpoint.spec.n_vocab * sizeof *out->logits);
    assert_non_null(out->logits);
    context_test_succeed(session_append(session, &(struct append_args){
                                                     .token = context->token + from,
                                                     .n = context->n - from,
                                                     .logprob = out->logprob + from,
                                                     .last_logits = out->logits,
                                                 }));
}

// The first `done` of the document are saved, by one rank or all.
static void save_part(bool alone, const struct session_options *options,
                      const struct context *context, int64_t done, bool scored) {
    static float logprob[N_LONG];
    if (!alone || mpi_test_comm.rank == 0) {
        struct session *session =
            context_test_open_session(alone ? &context_test_self : &mpi_test_comm, options);
        context_test_succeed(session_append(
            session, &(struct append_args){
                         .token = context->token, .n = done, .logprob = scored ? logprob : NULL}));
        context_test_succeed(context_save(session, context, scored ? logprob : NULL));
        session_close(&session);
    }
    context_test_meet();
}

static struct context_restored read_on(bool alone, const struct session_options *options,
                                       const struct context *context, struct reading *out) {
    struct context_restored restored;
    struct session *session =
        context_test_open_session(alone ? &context_test_self : &mpi_test_comm, options);
    context_test_succeed(context_restore(session, context, out->logprob, &restored));
    float known = out->logprob[restored.n];
    assert_int_equal(session_length(session), restored.n);
    if (restored.n < context->n) append(session, context, restored.n, out);
    if (restored.n < restored.n_scored) out->logprob[restored.n] = known;
    session_close(&session);
    return restored;
}

static void compare(const char *what, int64_t n, const struct reading *got,
                    const struct reading *expected, double tolerance) {
    assert_true(isnan(got->logprob[0]));
    context_test_compare(what, "token behind the first", n - 1, got->logprob + 1,
                         expected->logprob + 1, tolerance);
    if (got->logits)
        context_test_compare(what, "logit", context_test_checkpoint.spec.n_vocab, got->logits,
                             expected->logits, tolerance);
}

// Of the document, `restored` tokens are found on all ranks and on each by itself; the result is
// that of a session that read it.
static void check(const char *what, const struct session_options *options,
                  const struct context *context, int64_t restored, double tolerance) {
    static struct reading expected, got;
    struct session *session = context_test_open_session(&mpi_test_comm, options);
    append(session, context, 0, &expected);
    session_close(&session);
    for (int alone = 0; alone < 2; alone++) {
        char name[160];
        snprintf(name, sizeof name, "%s, %d tokens, on %s", what, (int)context->n,
                 alone ? "one" : "all");
        struct context_restored found = read_on(alone, options, context, &got);
        if (found.n != restored)
            fail_msg("%s: %d were restored, not %d", name, (int)found.n, (int)restored);
        assert_string_equal(found.like, restored > 0 ? "a text" : "");
        compare(name, context->n, &got, &expected, tolerance);
        free(got.logits);
        got.logits = NULL;
    }
    free(expected.logits);
    expected.logits = NULL;
    context_test_meet();
}

static const struct {
    int64_t n, differs, restored;
} documents[] = {
    {N_LONG, -1, N_TOKEN}, {N_TOKEN + 1, -1, N_TOKEN},
    {N_TOKEN, 0, 0},       {N_TOKEN, 255, 0},
    {N_TOKEN, 256, 255},   {N_TOKEN, 257, 256},
    {N_TOKEN, 400, 399},   {N_TOKEN, 599, 598},
    {N_LONG, 511, 510},    {N_LONG, 512, 511},
    {N_LONG, 513, 512},    {300, -1, 299},
    {257, -1, 256},        {256, -1, 255},
    {255, -1, 0}, // no page
};

static void test_beginnings(void **state) {
    (void)state;
    int32_t token[N_LONG];
    context_test_open_checkpoint("tiny-llama");
    for (int alone = 0; alone < 2; alone++) {
        const char *identity = alone ? "saved by one" : "saved by all";
        struct context context = context_test_named(identity);
        save_part(alone, &plain, &context, N_TOKEN, true);
        for (size_t i = 0; i < sizeof documents / sizeof *documents; i++) {
            context = text_of(identity, documents[i].n, documents[i].differs, token);
            check(identity, &plain, &context, documents[i].restored, CONTEXT_FP32_SUMS);
        }
    }
    struct context context = text_of("of another model", N_LONG, -1, token);
    check("another identity", &plain, &context, 0, CONTEXT_FP32_SUMS);
    checkpoint_close(&context_test_checkpoint);
}

static void test_networks(void **state) {
    (void)state;
    int32_t token[N_LONG];
    for (int n = 0; n < N_CONTEXT_NETWORK; n++) {
        const struct context_network *network = &context_test_networks[n];
        context_test_open_network(network);
        struct session_options options = {.max_tokens = N_ALL,
                                          .chunk = 64,
                                          .max_forget = N_ALL, // windows keep all
                                          .precision = network->precision,
                                          .index_precision = network->index_precision};
        struct context context = context_test_named(network->name);
        save_part(false, &options, &context, N_TOKEN, true);
        context = text_of(network->name, N_ALL, 555, token);
        check(network->name, &options, &context, 554, network->tolerance);
        context = text_of(network->name, N_ALL, -1, token);
        check(network->name, &options, &context, N_TOKEN, network->tolerance);
        checkpoint_close(&context_test_checkpoint);
    }
}

// Rows that a window dropped are missing for a shorter beginning: what another context has of it is
// taken, or nothing.
static void test_windows(void **state) {
    (void)state;
    int32_t token[N_LONG], other[N_LONG];
    context_test_open_checkpoint("tiny-llama");
    context_test_succeed(model_spec_set_window(&context_test_checkpoint.spec, 40, 4));
    struct session_options options = plain;
    options.max_tokens = 5000;
    options.max_forget = 20;
    struct context context = context_test_named("windows"),
                   half = text_of("windows", 300, -1, other);
    save_part(false, &options, &context, N_TOKEN, true);
    context = text_of("windows", N_LONG, 595, token);
    check("the last window", &options, &context, 594, CONTEXT_FP32_SUMS);
    context = text_of("windows", N_LONG, 400, token);
    check("no window", &options, &context, 0, CONTEXT_FP32_SUMS);
    save_part(false, &options, &half, 300, true);
    check("the window of another", &options, &context, 300, CONTEXT_FP32_SUMS);
    static struct reading reading;
    struct session *session = context_test_open_session(&mpi_test_comm, &options);
    context = context_test_named("windows");
    for (int64_t end = 390; end <= N_TOKEN; end += N_TOKEN - 390) {
        context.n = end;
        append(session, &context, session_length(session), &reading);
        context.n = N_TOKEN;
        context_test_succeed(context_save(session, &context, reading.logprob));
    }
    session_close(&session);
    free(reading.logits);
    context = text_of("windows", N_LONG, 400, token);
    check("the window of an earlier save", &options, &context, 390, CONTEXT_FP32_SUMS);
    checkpoint_close(&context_test_checkpoint);
}

static void append_chunks(struct session *session, const struct context *context, int64_t from,
                          int64_t to, struct reading *out) {
    for (int64_t at = from; at < to; at += 100)
        context_test_succeed(session_append(session, &(struct append_args){
                                                         .token = context->token + at,
                                                         .n = to - at < 100 ? to - at : 100,
                                                         .logprob = out->logprob + at,
                                                     }));
}

// On one rank, where the chunks are those in which the saved beginning was read, so are all bits.
static void test_same_bits(void **state) {
    (void)state;
    static struct reading expected, got;
    int32_t token[N_LONG];
    struct context_restored restored;
    context_test_open_checkpoint("tiny-llama");
    char identity[40];
    snprintf(identity, sizeof identity, "bits of rank %d", mpi_test_comm.rank);
    struct context context = context_test_named(identity);
    struct session *session = context_test_open_session(&context_test_self, &plain);
    append_chunks(session, &context, 0, N_TOKEN, &expected);
    context_test_succeed(context_save(session, &context, expected.logprob));
    context = text_of(identity, N_LONG, -1, token);
    append_chunks(session, &context, N_TOKEN, N_LONG, &expected);
    context_test_succeed(session_truncate(session, 0));
    context_test_succeed(context_restore(session, &context, got.logprob, &restored));
    assert_int_equal(restored.n, N_TOKEN);
    append_chunks(session, &context, N_TOKEN, N_LONG, &got);
    assert_memory_equal(got.logprob, expected.logprob, sizeof got.logprob);
    session_close(&session);
    context_test_meet();
    checkpoint_close(&context_test_checkpoint);
}

static void expect(const struct context *context, bool scored, int64_t n, const char *like) {
    static float logprob[N_LONG];
    struct context_restored restored;
    struct session *session = context_test_open_session(&mpi_test_comm, &plain);
    context_test_succeed(context_restore(session, context, scored ? logprob : NULL, &restored));
    assert_int_equal(restored.n, n);
    assert_string_equal(restored.like, like);
    session_close(&session);
    context_test_meet();
}

// Of several, whichever gives most; log-probabilities only where they were saved.
static void test_candidates(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t n, differs, done;
        bool scored;
    } saved[] = {
        {"another beginning", N_TOKEN, 10, N_TOKEN, true},
        {"a little", N_TOKEN, 300, N_TOKEN, true},
        {"more", N_TOKEN, 500, N_TOKEN, true},
        {"most, not finished", N_TOKEN, 550, 350, true},
        {"most, not scored", N_TOKEN, 590, N_TOKEN, false},
    };
    int32_t token[N_LONG];
    context_test_open_checkpoint("tiny-llama");
    for (size_t i = 0; i < sizeof saved / sizeof *saved; i++) {
        struct context context = text_of("several", saved[i].n, saved[i].differs, token);
        context.name = saved[i].name;
        save_part(false, &plain, &context, saved[i].done, saved[i].scored);
    }
    struct context context = text_of("several", N_LONG, -1, token);
    expect(&context, true, 499, "more");
    expect(&context, false, 589, "most, not scored");
    save_part(false, &plain, &context, 400, true); // the document itself, in part
    expect(&context, true, 499, "more");
    save_part(false, &plain, &context, 500, true);
    expect(&context, true, 500, "");
    save_part(false, &plain, &context, N_LONG, true);
    expect(&context, true, N_LONG, "");
    context = text_of("several", N_TOKEN, 500, token);
    expect(&context, true, N_TOKEN, ""); // its own, where a longer one has no more
    context = text_of("several", N_LONG, 550, token);
    context.name = NULL;
    char key[DIGEST_BYTES];
    context_key(&context, key);
    save_part(false, &plain, &context, N_LONG, true);
    context = text_of("several", N_LONG, 550, token);
    context.n = N_LONG - 1;
    expect(&context, true, N_LONG - 2, key); // which has no name
    checkpoint_close(&context_test_checkpoint);
}

static void flip(const char *path, int64_t at) {
    if (mpi_test_comm.rank == 0) {
        FILE *file = fopen(path, "r+");
        assert_non_null(file);
        assert_int_equal(fseek(file, at, SEEK_SET), 0);
        int byte = fgetc(file);
        assert_int_equal(fseek(file, at, SEEK_SET), 0);
        assert_true(fputc(byte ^ 4, file) != EOF);
        assert_int_equal(fclose(file), 0);
    }
    context_test_meet();
}

static void refuse(const struct context *context, const struct context *other, const char *words) {
    struct context_restored restored;
    char *folder = context_test_path(other, "");
    folder[strlen(folder) - 1] = '\0';
    struct session *session = context_test_open_session(&mpi_test_comm, &plain);
    assert_int_equal(context_restore(session, context, NULL, &restored), ERR_INPUT);
    if (!strstr(status_message(), words) || !strstr(status_message(), folder))
        fail_msg("%s and %s expected, got %s", words, folder, status_message());
    assert_int_equal(session_length(session), 0);
    session_close(&session);
    free(folder);
    context_test_meet();
}

// What is damaged in the pages that are taken is refused, whichever tokens it is of, and named by
// the context that has it; tokens that are not those of the folder are not taken for it.
static void test_damage(void **state) {
    (void)state;
    int32_t token[N_LONG];
    struct stat info;
    context_test_open_checkpoint("tiny-llama");
    struct context other = context_test_named("damage"),
                   context = text_of("damage", N_LONG, 400, token);
    save_part(false, &plain, &other, N_TOKEN, true);
    char *pages = context_test_path(&other, "pages-1"), *ids = context_test_path(&other, "tokens"),
         *manifest = context_test_path(&other, "manifest.json");
    assert_int_equal(stat(pages, &info), 0);
    int64_t page = info.st_size / 3;
    context_test_meet();
    static const int64_t damaged[] = {0, 1};
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        char words[40];
        snprintf(words, sizeof words, "page %d (tokens", (int)damaged[i]);
        flip(pages, damaged[i] * page + 200); // a key of the first positions
        refuse(&context, &other, words);
        flip(pages, damaged[i] * page + 200);
    }
    int64_t row = context_test_checkpoint.spec.layers[0].n_kv_head *
                  context_test_checkpoint.spec.layers[0].head_dim * (int64_t)sizeof(float);
    flip(pages, page + 200 * row); // of token 456, behind what is taken
    refuse(&context, &other, "page 1 (tokens");
    flip(pages, page + 200 * row);
    flip(pages, 2 * page + 200);
    expect(&context, true, 399, "a text");
    flip(manifest, 0);
    refuse(&context, &other, manifest);
    flip(manifest, 0);
    flip(ids, 4 * 300);
    expect(&context, true, 0, "");
    flip(ids, 4 * 300);
    flip(ids, 4 * 500); // behind what is alike
    expect(&context, true, 0, "");
    if (mpi_test_comm.rank == 0) assert_int_equal(truncate(ids, 4 * 500 + 1), 0);
    context_test_meet();
    expect(&context, true, 0, "");
    if (mpi_test_comm.rank == 0) assert_int_equal(unlink(ids), 0);
    context_test_meet();
    expect(&context, true, 0, "");
    free(manifest);
    free(ids);
    free(pages);
    checkpoint_close(&context_test_checkpoint);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beginnings), cmocka_unit_test(test_networks),
        cmocka_unit_test(test_windows),    cmocka_unit_test(test_candidates),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_same_bits),
    };
    return mpi_test_stop(cmocka_run_group_tests_name("beginnings of contexts", tests,
                                                     context_test_open, context_test_close));
}
