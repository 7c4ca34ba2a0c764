// ranks: 1 2 3 4
// fake device: 1 3
// A context that was saved and restored goes on as if it had been read, whatever ranks, layout,
// chunks and room wrote it; and nothing that is damaged is taken for one.
#include <ftw.h>
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
#include "model/extension.h"
#include "tests/common/mpi_test.h"
#include "tests/common/tolerance.h"

// Three pages, the last of them part; what comes behind is not of the document.
enum { N_TOKEN = 600, N_TAIL = 12, N_DECODE = 4, N_ALL = N_TOKEN + N_TAIL + N_DECODE };
static const double fp32_sums = 1e-4; // of ln p and logits to 13: another order, 3 layers

static struct backend backend;
static struct comm self;
static struct checkpoint checkpoint;
static struct profile profile;
static int32_t token[N_ALL];
static char dir[64];

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
    return (struct context){dir, identity, token, N_TOKEN};
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
    open_checkpoint("tiny-llama");
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
    {"\"activation\": \"F32\"", "\"activation\": null", "activation is none, and F32"},
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
    open_checkpoint("tiny-llama");
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
    open_checkpoint("tiny-llama");
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

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk) {
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    mpi_test_open_backend(BACKEND_CPU, &backend);
    struct comm *host = &mpi_test_host_comm;
    snprintf(dir, sizeof dir, "/tmp/halka-contexts-XXXXXX");
    if (comm_self_open(&self, backend.memory == MEMORY_DEVICE ? &backend : NULL) != OK ||
        (host->rank == 0 && !mkdtemp(dir)) ||
        host->ops->broadcast(host, dir, sizeof dir, 0) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return mpi_test_stop(1);
    }
    for (int i = 0; i < N_ALL; i++) token[i] = (int32_t)((i * 131 + i * i % 7 + 17) % 256);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restored), cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_parts),    cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_damage),   cmocka_unit_test(test_manifests),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_lost_rows),
    };
    int failed = cmocka_run_group_tests_name("context store", tests, NULL, NULL);
    if (host->rank == 0) nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    comm_close(&self);
    mpi_test_close_backend(&backend);
    return mpi_test_stop(failed);
}
