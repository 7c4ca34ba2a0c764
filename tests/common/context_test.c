#include "tests/common/context_test.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/common/shared_folder.h"
#include "tests/common/tolerance.h"

struct comm context_test_self;
struct checkpoint context_test_checkpoint;
const struct session_options context_test_plain = {
    .precision = PRECISION_FP32, .max_tokens = N_ALL, .chunk = 100};
const struct context_network context_test_networks[N_CONTEXT_NETWORK] = {
    {"full", "tiny-llama", .precision = PRECISION_FP32, .tolerance = CONTEXT_FP32_SUMS},
    {"bf16 rows", "tiny-llama", .tolerance = PARITY_BF16_MAX},
    {"some layers see a window", "tiny-gemma3", .precision = PRECISION_FP32,
     .tolerance = CONTEXT_FP32_SUMS},
    {"window and sinks", "tiny-llama", 40, 4, .precision = PRECISION_FP32,
     .tolerance = CONTEXT_FP32_SUMS},
    {"latents and index keys", "deepseek_v32_tiny", .precision = PRECISION_FP32,
     .tolerance = CONTEXT_FP32_SUMS},
    // Queries rounded to fp8: the order of sums may tip one, and with it the choice of a token.
    {"fp8 index keys", "deepseek_v32_fp8_tiny", .precision = PRECISION_FP32,
     .index_precision = INDEX_FP8, .tolerance = PARITY_FP32_MAX},
    {"keys in two rotations", "tiny-qwen3",
     .extension = {.method = EXTENSION_DCA, .original_context = 256, .chunk = 100},
     .precision = PRECISION_FP32, .tolerance = CONTEXT_FP32_SUMS},
};
static struct backend backend;
static struct profile profile;
static int32_t token[N_ALL];
static char dir[SHARED_FOLDER_BYTES];

int context_test_open(void **state) {
    (void)state;
    mpi_test_open_backend(BACKEND_CPU, &backend);
    struct backend *device = backend.memory == MEMORY_DEVICE ? &backend : NULL;
    if (comm_self_open(&context_test_self, device) != OK || !shared_folder_open(dir)) {
        fprintf(stderr, "%s\n", status_message());
        return -1;
    }
    for (int i = 0; i < N_ALL; i++) token[i] = (int32_t)((i * 131 + i * i % 7 + 17) % 256);
    return 0;
}

int context_test_close(void **state) {
    (void)state;
    shared_folder_close(dir);
    comm_close(&context_test_self);
    mpi_test_close_backend(&backend);
    return 0;
}

void context_test_succeed(enum status status) {
    if (status != OK) fail_msg("%s", status_message());
}

void context_test_compare(const char *what, const char *of, int64_t n, const float *got,
                          const float *expected, double tolerance) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - expected[i]) <= tolerance))
            fail_msg("%s: %s %d: %.7f, not %.7f", what, of, (int)i, got[i], expected[i]);
}

void context_test_meet(void) {
    context_test_succeed(mpi_test_host_comm.ops->barrier(&mpi_test_host_comm));
}

void context_test_open_checkpoint(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "tests/fixtures/%s", name);
    context_test_succeed(checkpoint_open(path, &context_test_checkpoint));
}

void context_test_open_network(const struct context_network *network) {
    context_test_open_checkpoint(network->folder);
    if (network->window)
        context_test_succeed(
            model_spec_set_window(&context_test_checkpoint.spec, network->window, network->sinks));
    if (network->extension.method)
        context_test_succeed(
            extension_apply(&network->extension, network->folder, &context_test_checkpoint.spec));
}

struct session *context_test_open_session(struct comm *comm,
                                          const struct session_options *options) {
    struct session *session = NULL;
    context_test_succeed(
        session_open(&context_test_checkpoint, &backend, comm, &profile, options, &session));
    return session;
}

struct context context_test_named(const char *identity) {
    return (struct context){dir, identity, token, N_TOKEN, "a text"};
}

void context_test_append(struct session *session, int64_t from, int64_t n, float *logprob,
                         float *logits) {
    context_test_succeed(session_append(
        session, &(struct append_args){
                     .token = token + from, .n = n, .logprob = logprob, .last_logits = logits}));
}

struct session *context_test_restore(struct comm *comm, const struct session_options *options,
                                     const struct context *context) {
    struct session *session = context_test_open_session(comm, options);
    struct context_restored restored;
    context_test_succeed(context_restore(session, context, NULL, &restored));
    assert_int_equal(restored.n, N_TOKEN);
    assert_int_equal(session_length(session), N_TOKEN);
    return session;
}

char *context_test_path(const struct context *context, const char *name) {
    char key[DIGEST_BYTES], *path = NULL;
    context_key(context, key);
    assert_true(asprintf(&path, "%s/%s/%s", dir, key, name) > 0);
    return path;
}

bool context_test_exists(const struct context *context, const char *name) {
    char *path = context_test_path(context, name);
    bool found = access(path, F_OK) == 0;
    free(path);
    return found;
}
