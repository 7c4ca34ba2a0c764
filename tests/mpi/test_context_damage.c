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
#include "tests/common/mpi_test.h"
#include "tests/common/shared_folder.h"

enum { N_TOKEN = 600, N_ALL = 616 }; // three pages, the last of them part

static struct backend backend;
static struct comm self;
static struct checkpoint checkpoint;
static struct profile profile;
static int32_t token[N_ALL];
static char dir[SHARED_FOLDER_BYTES];
static const struct session_options plain = {
    .precision = PRECISION_FP32, .max_tokens = N_ALL, .chunk = 100};

static void succeed(enum status status) {
    if (status != OK) fail_msg("%s", status_message());
}

static void meet(void) {
    succeed(mpi_test_host_comm.ops->barrier(&mpi_test_host_comm));
}

static struct session *open_session(struct comm *comm, const struct session_options *options) {
    struct session *session = NULL;
    succeed(session_open(&checkpoint, &backend, comm, &profile, options, &session));
    return session;
}

static struct context context_named(const char *identity) {
    return (struct context){dir, identity, token, N_TOKEN, "a text"};
}

static void append(struct session *session, int64_t from, int64_t n, float *logprob,
                   float *logits) {
    succeed(session_append(
        session, &(struct append_args){
                     .token = token + from, .n = n, .logprob = logprob, .last_logits = logits}));
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

// Rank 0 writes, the others wait.
static void put(const char *path, const void *data, size_t bytes) {
    if (mpi_test_comm.rank == 0) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        assert_int_equal(fwrite(data, 1, bytes, file), bytes);
        assert_int_equal(fclose(file), 0);
    }
    meet();
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
    meet();
    return data;
}

// Refused with words that name what is wrong, into a session that is empty then.
static void refuse(struct session *session, const struct context *context, const char *words) {
    static float logprob[N_TOKEN];
    int64_t n_restored = -1;
    enum status status = context_restore(session, context, logprob, &n_restored);
    if (status != ERR_INPUT || !strstr(status_message(), words))
        fail_msg("%s expected, got %d: %s", words, status, status_message());
    assert_int_equal(n_restored, 0);
    assert_int_equal(session_length(session), 0);
    meet();
}

static struct session *save_scored(const struct context *context) {
    static float logprob[N_TOKEN];
    struct session *session = open_session(&mpi_test_comm, &plain);
    append(session, 0, N_TOKEN, logprob, NULL);
    succeed(context_save(session, context, logprob));
    succeed(session_truncate(session, 0));
    meet();
    return session;
}

static void test_damage(void **state) {
    (void)state;
    succeed(checkpoint_open("tests/fixtures/tiny-llama", &checkpoint));
    struct context context = context_named("damage");
    struct session *session = save_scored(&context);
    char *pages = path_of(&context, "pages-1"), *scores = path_of(&context, "logprobs-1");
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
    meet();
    refuse(session, &context, "is missing");
    put(pages, page, n_page);
    put(scores, score, n_score - 4);
    refuse(session, &context, scores);
    score[77] ^= 1;
    put(scores, score, n_score);
    refuse(session, &context, "logprobs-1 is damaged");
    int64_t n_restored;
    succeed(context_restore(session, &context, NULL, &n_restored)); // which does not read them
    assert_int_equal(n_restored, N_TOKEN);
    session_close(&session);
    free(score);
    free(page);
    free(scores);
    free(pages);
    checkpoint_close(&checkpoint);
}

// A manifest with one thing replaced, and the words that refuse it.
static const struct {
    const char *from, *to, *words;
} replacements[] = {
    {"halka context", "halka", "format is halka"},
    {"\"version\": 1", "\"version\": 2", "version is 2"},
    {"\"version\": 1", "\"version\": \"1\"", "version is not an integer"},
    {"\"version\": 1,", "", "version is missing"},
    {"{", "[", "line 2"},
    {"\"identity\": \"manifest", "\"identity\": \"other", "identity is other"},
    {"\"token_digest\": \"", "\"token_digest\": \"0", "token_digest is 0"},
    {"\"n_token\": 600", "\"n_token\": 599", "n_token is 599"},
    {"\"done\": 600", "\"done\": 0", "done is 0"},
    {"\"done\": 600", "\"done\": 601", "done is 601"},
    {"\"done\": 600", "\"done\": -9223372036854775808", "done is -9"},
    {"\"done\": 600", "\"done\": 9223372036854775807000", "too big"},
    {"\"done\": 600", "\"done\": 500", "digests is no list of 2"},
    {"\"done\": 600", "\"done\": 599", "logprobs-1 is of 2400 bytes"},
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
    {"\"digests\": [\n  \"0", "\"digests\": [\n  \"f", "digest of page 0"},
    {"\"digests\": [\n  \"0", "\"digests\": [\n  \"-", "digest of page 0"},
    {"\"layers\": [", "\"layers\": [ 1, ", "layers is no list of 3"},
    {"\"begin\": 0", "\"begin\": 1", "tokens before 1 are missing in layer 0"},
    {"\"begin\": 0", "\"begin\": 601", "begin is 601"},
    {"\"begin\": 0", "\"beginning\": 0", "begin is missing"},
    {"\"key\": ", "\"key\": 1", "rows of layer 0"},
    {"\"key\": ", "\"other_key\": ", "rows of layer 0"},
    {"\"key\": ", "\"more\": 4, \"key\": ", "layer 0 has 3 parts"},
    {"\"last_state\": \"", "\"last_state\": \"0", "last_state is not of"},
    {"\"last_state\": \"", "\"last_state\": 7, \"x\": \"", "last_state is not a string"},
};

static void test_manifests(void **state) {
    (void)state;
    succeed(checkpoint_open("tests/fixtures/tiny-llama", &checkpoint));
    struct context context = context_named("manifest");
    struct session *session = save_scored(&context);
    char *path = path_of(&context, "manifest.json");
    size_t bytes;
    int64_t n_restored;
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
    succeed(context_restore(session, &context, NULL, &n_restored));
    assert_int_equal(n_restored, N_TOKEN);
    session_close(&session);
    free(changed);
    free(text);
    free(path);
    checkpoint_close(&checkpoint);
}

static void test_refusals(void **state) {
    (void)state;
    succeed(checkpoint_open("tests/fixtures/tiny-llama", &checkpoint));
    struct context context = context_named("refusals");
    struct session *session = save_scored(&context), *other;
    int64_t n_restored;
    append(session, 0, 3, NULL, NULL);
    assert_int_equal(context_restore(session, &context, NULL, &n_restored), ERR_INTERNAL);
    assert_int_equal(session_length(session), 3); // and keeps what it has
    char *file = path_of(&context, "pages-1");
    struct context bad = context;
    bad.dir = file;
    assert_int_equal(context_save(session, &bad, NULL), ERR_CREATE);
    meet();
    struct session_options options = plain;
    options.max_tokens = N_TOKEN - 1;
    other = open_session(&mpi_test_comm, &options);
    assert_int_equal(context_restore(other, &context, NULL, &n_restored), ERR_CONFIG);
    assert_int_equal(session_length(other), 0);
    session_close(&other);
    options = plain;
    options.kv_precision = PRECISION_BF16;
    other = open_session(&mpi_test_comm, &options);
    refuse(other, &context, "dtype is F32, and BF16");
    session_close(&other);
    free(file);
    session_close(&session);
    checkpoint_close(&checkpoint);
}

static int n_pages_files(const struct context *context) {
    int n = 0;
    for (int generation = 1; generation < 40; generation++) {
        char name[32];
        snprintf(name, sizeof name, "pages-%d", generation);
        n += exists(context, name);
    }
    return n;
}

// Jobs that read and save one context at once do not disturb each other, nor what is saved.
static void test_jobs_at_once(void **state) {
    (void)state;
    succeed(checkpoint_open("tests/fixtures/tiny-llama", &checkpoint));
    struct context context = context_named("jobs");
    struct session *session = open_session(&self, &plain);
    append(session, 0, N_TOKEN, NULL, NULL);
    meet();
    for (int i = 0; i < 5; i++) {
        succeed(context_save(session, &context, NULL));
        struct session *other = restore(&self, &plain, &context);
        session_close(&other);
    }
    meet();
    assert_true(n_pages_files(&context) >= 1);
    if (mpi_test_comm.rank == 0) succeed(context_save(session, &context, NULL));
    meet();
    assert_int_equal(n_pages_files(&context), 1);
    session_close(&session);
    checkpoint_close(&checkpoint);
}

// What a job that died left behind is not taken for anything, and goes with the next save; one that
// finds no room leaves the earlier state as it is.
static void test_unfinished(void **state) {
    (void)state;
    succeed(checkpoint_open("tests/fixtures/tiny-llama", &checkpoint));
    struct context context = context_named("unfinished");
    struct session *session = save_scored(&context);
    char *pages = path_of(&context, "pages-7"), *part = path_of(&context, "manifest-7");
    put(pages, "half", 4);
    put(part, "{", 1);
    struct rlimit limit, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = (struct rlimit){100000, limit.rlim_max};
    struct session *full = restore(&mpi_test_comm, &plain, &context);
    signal(SIGXFSZ, SIG_IGN);
    if (mpi_test_comm.rank == 0) setrlimit(RLIMIT_FSIZE, &small);
    assert_int_equal(context_save(full, &context, NULL), ERR_IO);
    setrlimit(RLIMIT_FSIZE, &limit);
    session_close(&session);
    meet();
    session = restore(&mpi_test_comm, &plain, &context);
    session_close(&session);
    assert_true(exists(&context, "pages-1") && exists(&context, "pages-7"));
    assert_int_equal(n_pages_files(&context), 2);
    meet();
    succeed(context_save(full, &context, NULL));
    assert_true(exists(&context, "pages-8"));
    assert_false(exists(&context, "manifest-7"));
    assert_int_equal(n_pages_files(&context), 1);
    session_close(&full);
    free(part);
    free(pages);
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
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_manifests),
        cmocka_unit_test(test_refusals),   cmocka_unit_test(test_jobs_at_once),
        cmocka_unit_test(test_unfinished),
    };
    int failed = cmocka_run_group_tests_name("damaged contexts", tests, NULL, NULL);
    shared_folder_close(dir);
    comm_close(&self);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(failed);
}
