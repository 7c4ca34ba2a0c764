// ranks: 1 2 3
// fake device: 2
// Nothing that is damaged, unfinished or of another kind is taken for a saved context, and what one
// job leaves behind does not disturb another.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/context_store.h"
#include "tests/common/context_test.h"

// Rank 0 writes, the others wait.
static void put(const char *path, const void *data, size_t bytes) {
    if (mpi_test_comm.rank == 0) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        assert_int_equal(fwrite(data, 1, bytes, file), bytes);
        assert_int_equal(fclose(file), 0);
    }
    context_test_meet();
}

static char *take(const char *path, size_t *bytes) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    char *data = malloc((size_t)info.st_size + 1);
    FILE *file = fopen(path, "r");
    assert_true(data && file);
    assert_int_equal(fread(data, 1, (size_t)info.st_size, file), (size_t)info.st_size);
    fclose(file);
    *bytes = (size_t)info.st_size;
    data[*bytes] = '\0';
    context_test_meet();
    return data;
}

// Refused with words that name what is wrong, into a session that is empty then.
static void refuse(struct session *session, const struct context *context, const char *words) {
    static float logprob[N_TOKEN];
    struct context_restored restored;
    enum status status = context_restore(session, context, logprob, &restored);
    if (status != ERR_INPUT || !strstr(status_message(), words))
        fail_msg("%s expected, got %d: %s", words, status, status_message());
    assert_int_equal(restored.n, 0);
    assert_int_equal(session_length(session), 0);
    context_test_meet();
}

static struct session *save_scored(const struct context *context) {
    static float logprob[N_TOKEN];
    struct session *session = context_test_open_session(&mpi_test_comm, &context_test_plain);
    context_test_append(session, 0, N_TOKEN, logprob, NULL);
    context_test_succeed(context_save(session, context, logprob));
    context_test_succeed(session_truncate(session, 0));
    context_test_meet();
    return session;
}

static void test_damage(void **state) {
    (void)state;
    context_test_succeed(checkpoint_open("tests/fixtures/tiny-llama", &context_test_checkpoint));
    struct context context = context_test_named("damage");
    struct session *session = save_scored(&context);
    char *pages = context_test_path(&context, "pages-1"),
         *scores = context_test_path(&context, "logprobs-1");
    size_t n_page, n_score;
    char *page = take(pages, &n_page), *score = take(scores, &n_score);
    size_t page_bytes = n_page / 3;
    page[page_bytes + 1000] ^= 4;
    put(pages, page, n_page);
    refuse(session, &context, "page 1 (tokens 256 to 511) of");
    page[page_bytes + 1000] ^= 4;
    put(pages, page, n_page - 1);
    refuse(session, &context, pages);
    put(pages, page, n_page);
    if (mpi_test_comm.rank == 0) unlink(pages);
    context_test_meet();
    refuse(session, &context, "is missing");
    put(pages, page, n_page);
    put(scores, score, n_score - 4);
    refuse(session, &context, scores);
    score[77] ^= 1;
    put(scores, score, n_score);
    refuse(session, &context, "logprobs-1 is damaged");
    struct context_restored restored;
    context_test_succeed(
        context_restore(session, &context, NULL, &restored)); // which does not read them
    assert_int_equal(restored.n, N_TOKEN);
    session_close(&session);
    free(score);
    free(page);
    free(scores);
    free(pages);
    checkpoint_close(&context_test_checkpoint);
}

// A manifest with one thing replaced, and the words that refuse it.
static const struct {
    const char *from, *to, *words;
} replacements[] = {
    {"halka context", "halka", "format is halka"},
    {"\"version\": 2", "\"version\": 1", "version is 1: another version of Halka saved it"},
    {"\"version\": 2", "\"version\": \"2\"", "version is not an integer"},
    {"\"version\": 2,", "", "version is missing"},
    {"{", "[", "line 2"},
    {"\"identity\": \"manifest", "\"identity\": \"other", "identity is other"},
    {"\"token_digest\": \"", "\"token_digest\": \"0", "token_digest is 0"},
    {"\"n_token\": 600", "\"n_token\": 599", "n_token is 599"},
    {"\"done\": 600", "\"done\": 0", "done is 0"},
    {"\"done\": 600", "\"done\": 601", "done is 601"},
    {"\"done\": 600", "\"done\": -9223372036854775808", "done is -9"},
    {"\"done\": 600", "\"done\": 9223372036854775807000", "too big"},
    {"\"done\": 600", "\"done\": 500", "done is 600"},
    {"\"done\": 600,\n \"ranks", "\"done\": 599,\n \"ranks", "done is 600"},
    {"\"done\": 600,\n   \"pages", "\"done\": 500,\n   \"pages", "digests is no list of 2"},
    {"\"done\": 600,\n   \"pages", "\"done\": 599,\n   \"pages", "saves are of 599 tokens"},
    {"\"saves\": [", "\"saves\": [ 7, ", "save 0 is not an object"},
    {"\"saves\": [", "\"saves\": {}, \"x\": [", "saves is not a list"},
    {"\"saves\": [", "\"other\": [", "saves is missing"},
    {"\"dtype\": \"F32\"", "\"dtype\": \"BF16\"", "dtype is BF16, and F32"},
    {"\"dtype\": \"F32\"", "\"dtype\": {}", "dtype is not a string"},
    {"\"index_dtype\": null", "\"index_dtype\": \"F32\"", "index_dtype is F32, and none"},
    {"\"page\": 256", "\"page\": 128", "page is 128"},
    {"\"page_bytes\": ", "\"page_bytes\": 1", "page_bytes is 1"},
    {"\"pages\": \"pages-1\"", "\"pages\": \"../pages-1\"", "pages does not name a file"},
    {"\"pages\": \"pages-1\"", "\"pages\": \"pages-01\"", "pages does not name a file"},
    {"\"pages\": \"pages-1\"", "\"pages\": null", "pages does not name a file"},
    {"\"logprobs\": \"logprobs-1\"", "\"logprobs\": \"logprobs-2\"", "logprobs or its digest"},
    {"\"logprobs_digest\": \"", "\"logprobs_digest\": \"0", "logprobs or its digest"},
    {"\"digests\": [", "\"digests\": {}, \"x\": [", "digests is not a list"},
    {"\"digests\": [", "\"digests\": [ \"0\", ", "digests is no list of 3"},
    {"\"digests\": [\n    \"0", "\"digests\": [\n    \"f", "digest of page 0"},
    {"\"digests\": [\n    \"0", "\"digests\": [\n    \"-", "digest of page 0"},
    {"\"layers\": [", "\"layers\": [ 1, ", "layers is no list of 3"},
    {"\"begin\": [\n    0", "\"begin\": [\n    1", "tokens that the next one sees are missing"},
    {"\"begin\": [\n    0", "\"begin\": [\n    601", "begin of layer 0 is none"},
    {"\"begin\": [\n    0", "\"begin\": [\n    \"0\"", "begin of layer 0 is none"},
    {"\"begin\": [", "\"begin\": [ 0, ", "begin is no list of 3"},
    {"\"begin\": [", "\"beginning\": [", "begin is no list of 3"},
    {"\"key\": ", "\"key\": 1", "rows of layer 0"},
    {"\"key\": ", "\"other_key\": ", "rows of layer 0"},
    {"\"key\": ", "\"more\": 4, \"key\": ", "layer 0 has 3 parts"},
    {"\"last_state\": \"", "\"last_state\": \"0", "last_state is not of"},
    {"\"last_state\": \"", "\"last_state\": 7, \"x\": \"", "last_state is not a string"},
};

static void test_manifests(void **state) {
    (void)state;
    context_test_succeed(checkpoint_open("tests/fixtures/tiny-llama", &context_test_checkpoint));
    struct context context = context_test_named("manifest");
    struct session *session = save_scored(&context);
    char *path = context_test_path(&context, "manifest.json");
    size_t bytes;
    struct context_restored restored;
    char *text = take(path, &bytes), *changed = malloc(bytes + 100);
    assert_non_null(changed);
    for (size_t i = 0; i < sizeof replacements / sizeof *replacements; i++) {
        const char *at = strstr(text, replacements[i].from);
        if (!at) fail_msg("no %s in the manifest", replacements[i].from);
        int n = sprintf(changed, "%.*s%s%s", (int)(at - text), text, replacements[i].to,
                        at + strlen(replacements[i].from));
        put(path, changed, (size_t)n);
        refuse(session, &context, replacements[i].words);
    }
    for (size_t n = 0; n < bytes; n += bytes / 7 + 1) { // cut off
        put(path, text, n);
        refuse(session, &context, path);
    }
    put(path, text, bytes);
    context_test_succeed(context_restore(session, &context, NULL, &restored));
    assert_int_equal(restored.n, N_TOKEN);
    session_close(&session);
    free(changed);
    free(text);
    free(path);
    checkpoint_close(&context_test_checkpoint);
}

static void test_refusals(void **state) {
    (void)state;
    context_test_succeed(checkpoint_open("tests/fixtures/tiny-llama", &context_test_checkpoint));
    struct context context = context_test_named("refusals");
    struct session *session = save_scored(&context), *other;
    struct context_restored restored;
    context_test_append(session, 0, 3, NULL, NULL);
    assert_int_equal(context_restore(session, &context, NULL, &restored), ERR_INTERNAL);
    assert_int_equal(session_length(session), 3); // and keeps what it has
    char *file = context_test_path(&context, "pages-1");
    struct context bad = context;
    bad.dir = file;
    assert_int_equal(context_save(session, &bad, NULL), ERR_CREATE);
    context_test_meet();
    struct session_options options = context_test_plain;
    options.max_tokens = N_TOKEN - 1;
    other = context_test_open_session(&mpi_test_comm, &options);
    assert_int_equal(context_restore(other, &context, NULL, &restored), ERR_CONFIG);
    assert_int_equal(session_length(other), 0);
    session_close(&other);
    options = context_test_plain;
    options.kv_precision = PRECISION_BF16;
    other = context_test_open_session(&mpi_test_comm, &options);
    refuse(other, &context, "dtype is F32, and BF16");
    session_close(&other);
    free(file);
    session_close(&session);
    checkpoint_close(&context_test_checkpoint);
}

// What another network would make of the same tokens, where the identity does not tell: here other
// rotations, so that only keys differ at first.
static void test_other_networks(void **state) {
    (void)state;
    static const struct extension others[] = {
        {.method = EXTENSION_LINEAR, .factor = 2},
        {.method = EXTENSION_YARN, .factor = 4, .original_context = 64},
        {.method = EXTENSION_NTK, .factor = 8},
    };
    for (int i = 0; i < 3; i++) {
        struct context_restored restored;
        context_test_open_checkpoint("tiny-llama");
        struct context context = context_test_named("other networks");
        struct session *session = save_scored(&context);
        context_test_succeed(context_restore(session, &context, NULL, &restored));
        assert_true(restored.n == N_TOKEN && restored.n_probed > 0 && restored.disparity < 1e-5);
        session_close(&session);
        context_test_succeed(
            extension_apply(&others[i], "tiny-llama", &context_test_checkpoint.spec));
        session = context_test_open_session(&mpi_test_comm, &context_test_plain);
        refuse(session, &context, "are not those of this model");
        context_test_append(session, 0, N_TOKEN, NULL, NULL); // it is as good as new
        session_close(&session);
        checkpoint_close(&context_test_checkpoint);
    }
}

static int n_pages_files(const struct context *context) {
    int n = 0;
    for (int generation = 1; generation < 40; generation++) {
        char name[32];
        snprintf(name, sizeof name, "pages-%d", generation);
        n += context_test_exists(context, name);
    }
    return n;
}

// Jobs that read and save one context at once do not disturb each other, nor what is saved.
static void test_jobs_at_once(void **state) {
    (void)state;
    context_test_succeed(checkpoint_open("tests/fixtures/tiny-llama", &context_test_checkpoint));
    struct context context = context_test_named("jobs");
    struct session *session = context_test_open_session(&context_test_self, &context_test_plain);
    context_test_append(session, 0, N_TOKEN, NULL, NULL);
    context_test_meet();
    for (int i = 0; i < 5; i++) {
        context_test_succeed(context_save(session, &context, NULL));
        struct session *other =
            context_test_restore(&context_test_self, &context_test_plain, &context);
        session_close(&other);
    }
    context_test_meet();
    assert_true(n_pages_files(&context) >= 1);
    if (mpi_test_comm.rank == 0) context_test_succeed(context_save(session, &context, NULL));
    context_test_meet();
    assert_int_equal(n_pages_files(&context), 1);
    session_close(&session);
    checkpoint_close(&context_test_checkpoint);
}

// What a job that died left behind is not taken for anything, and goes with the next start or save;
// one that finds no room leaves the earlier state as it is.
static void test_unfinished(void **state) {
    (void)state;
    context_test_succeed(checkpoint_open("tests/fixtures/tiny-llama", &context_test_checkpoint));
    struct context context = context_test_named("unfinished");
    struct session *session = save_scored(&context);
    char *pages = context_test_path(&context, "pages-7"),
         *part = context_test_path(&context, "manifest-7");
    put(pages, "half", 4);
    put(part, "{", 1);
    struct rlimit limit, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = (struct rlimit){100000, limit.rlim_max};
    struct session *full = context_test_restore(&mpi_test_comm, &context_test_plain, &context);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    assert_int_equal(context_save(full, &context, NULL), ERR_IO);
    setrlimit(RLIMIT_FSIZE, &limit);
    session_close(&session);
    context_test_meet();
    put(pages, "half", 4);
    put(part, "{", 1);
    session = context_test_restore(&mpi_test_comm, &context_test_plain, &context);
    session_close(&session);
    context_test_meet();
    assert_true(context_test_exists(&context, "pages-1") &&
                !context_test_exists(&context, "manifest-7"));
    assert_int_equal(n_pages_files(&context), 1);
    put(pages, "half", 4);
    context_test_succeed(context_save(full, &context, NULL));
    assert_true(context_test_exists(&context, "pages-2"));
    assert_int_equal(n_pages_files(&context), 1);
    session_close(&full);
    free(part);
    free(pages);
    checkpoint_close(&context_test_checkpoint);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_manifests),
        cmocka_unit_test(test_refusals),   cmocka_unit_test(test_jobs_at_once),
        cmocka_unit_test(test_unfinished), cmocka_unit_test(test_other_networks),
    };
    return mpi_test_stop(cmocka_run_group_tests_name("damaged contexts", tests, context_test_open,
                                                     context_test_close));
}
