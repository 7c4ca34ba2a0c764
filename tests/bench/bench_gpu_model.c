// A network of Llama 3.1 8B's shape with random bf16 weights, on one GPU through model/session.h:
// tokens per second of prefill at 8K, 32K and 128K tokens and its share of the ceiling (a product
// of 8192^3 in bf16), of decode at 128K and its share of a device copy's bytes, and the memory
// taken beside the plan's. Then one of SmolLM2 135M's shape, whose decode waits for the host unless
// a token's layers are one step. `bench_gpu_model [DIVISOR]`: a divisor rehearses smaller networks.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/comm.h"
#include "model/session.h"
#include "model/tensor_names.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"

enum {
    LONGEST = 131072,
    CHUNK = 16384,
    N_DECODE = 32,
    N_SHORT = 256,                  // tokens of the small network's context
    DISTINCT = (1 << 21) - 64 * 17, // random values; no multiple of a row
    N_REPEAT = 3
};

struct network {
    int n_layer, n_hidden, n_head, n_kv_head, head_dim, n_feed_forward, n_vocab;
};
static const struct network large = {32, 4096, 32, 8, 128, 14336, 128256};
static const struct network small = {30, 576, 9, 3, 64, 1536, 49152};

struct bench {
    struct backend backend;
    const struct network *network;
    struct comm comm;
    struct profile profile;
    struct checkpoint checkpoint;
    struct session *session;
    int64_t divisor;
    double flops, bytes; // the ceilings, per second
    bf16 *matrix;        // what all matrices hold, the largest's elements
    float *ones;         // what all vectors hold
    int32_t *token;      // [longest + N_DECODE]
    float *logits;       // [n_vocab]
};

static int64_t scaled(const struct bench *b, int64_t n) {
    return n / b->divisor > 0 ? n / b->divisor : 1;
}

static void add_tensor(struct bench *b, struct tensor_list *list, enum tensor_role role, int layer,
                       int64_t n_row, int64_t n_col) {
    char name[TENSOR_NAME_BYTES];
    struct tensor t = {.name = strdup(tensor_name(role, layer, false, name)),
                       .dtype = n_col ? DTYPE_BF16 : DTYPE_F32,
                       .n_dim = n_col ? 2 : 1,
                       .shape = {n_row, n_col},
                       .data = n_col ? (void *)b->matrix : b->ones};
    t.bytes = dtype_bytes(t.dtype, n_row * (n_col ? n_col : 1));
    snprintf(t.format, sizeof t.format, "%s", dtype_info[t.dtype].name);
    measure_require(tensor_list_add(list, t));
}

static void fill_spec(const struct bench *b, struct model_spec *spec) {
    const struct network *n = b->network;
    int n_kv_head = (int)scaled(b, n->n_kv_head);
    int n_head = n_kv_head * (n->n_head / n->n_kv_head);
    *spec = (struct model_spec){
        .architecture = "llama",
        .n_layer = (int)scaled(b, n->n_layer),
        .n_rope = 1,
        .ropes = {{.method = ROPE_LLAMA3,
                   .base = 500000,
                   .dim = n->head_dim,
                   .factor = 8,
                   .original_context = 8192,
                   .low_freq_factor = 1,
                   .high_freq_factor = 4}},
        .n_vocab = scaled(b, n->n_vocab),
        .n_hidden = (int)scaled(b, n->n_hidden),
        .norm_eps = 1e-5f,
        .embedding_scale = 1,
        .context = LONGEST,
    };
    spec->layers = calloc((size_t)spec->n_layer, sizeof *spec->layers);
    for (int i = 0; spec->layers && i < spec->n_layer; i++)
        spec->layers[i] = (struct layer_spec){.attention = ATTENTION_FULL,
                                              .feed_forward = FEED_FORWARD_GATED,
                                              .norm = NORM_RMS,
                                              .activation = ACTIVATION_SILU,
                                              .n_head = n_head,
                                              .n_kv_head = n_kv_head,
                                              .head_dim = n->head_dim,
                                              .value_dim = n->head_dim,
                                              .n_feed_forward = (int)scaled(b, n->n_feed_forward),
                                              .attention_scale = 1 / sqrtf(n->head_dim)};
}

// A checkpoint in memory, without files: its matrices all lie over one block of random values.
static void open_checkpoint(struct bench *b) {
    struct checkpoint *c = &b->checkpoint;
    struct model_spec *spec = &c->spec;
    fill_spec(b, spec);
    int64_t n = spec->n_vocab * spec->n_hidden;
    b->matrix = test_alloc(dtype_bytes(DTYPE_BF16, n));
    b->ones = test_alloc(spec->n_hidden * (int64_t)sizeof *b->ones);
    for (int i = 0; i < spec->n_hidden; i++) b->ones[i] = 1;
    bf16 *distinct = random_vector(DTYPE_BF16, DISTINCT, 1 / sqrtf((float)spec->n_hidden), 1);
    for (int64_t i = 0; i < n; i += DISTINCT)
        memcpy(b->matrix + i, distinct, (size_t)(n - i < DISTINCT ? n - i : DISTINCT) * 2);
    free(distinct);
    struct tensor_list list = {0};
    add_tensor(b, &list, TENSOR_EMBEDDING, 0, spec->n_vocab, spec->n_hidden);
    add_tensor(b, &list, TENSOR_HEAD, 0, spec->n_vocab, spec->n_hidden);
    add_tensor(b, &list, TENSOR_FINAL_NORM, 0, spec->n_hidden, 0);
    for (int layer = 0; layer < spec->n_layer; layer++) {
        struct tensor_need need[LAYER_TENSORS];
        int n_need = tensor_layer_needs(spec, layer, need);
        for (int i = 0; i < n_need; i++)
            add_tensor(b, &list, need[i].role, layer, need[i].n_row, need[i].n_col);
    }
    c->path = strdup("random weights");
    measure_require(tensor_list_sort(&list, c->path));
    c->n_tensor = list.n;
    c->tensors = list.tensors;
}

// Elements of the matrices that a token passes through; the vocabulary's two apart.
static double layer_elements(const struct model_spec *spec) {
    double sum = 0;
    for (int layer = 0; layer < spec->n_layer; layer++) {
        struct tensor_need need[LAYER_TENSORS];
        int n = tensor_layer_needs(spec, layer, need);
        for (int i = 0; i < n; i++) sum += (double)(need[i].n_row * need[i].n_col);
    }
    return sum;
}

static double append_seconds(struct bench *b, int64_t n) {
    struct append_args args = {.token = b->token, .n = n, .last_logits = b->logits};
    int64_t n_vocab = b->checkpoint.spec.n_vocab;
    memset(b->logits, 0xff, (size_t)n_vocab * sizeof *b->logits);
    double begun = measure_now();
    measure_require(session_append(b->session, &args));
    double seconds = measure_now() - begun;
    for (int64_t i = 0; i < n_vocab; i++) {
        if (isfinite(b->logits[i])) continue;
        fprintf(stderr, "logit %lld is %g\n", (long long)i, (double)b->logits[i]);
        exit(1);
    }
    return seconds;
}

// Where the time went since the profile was cleared.
static void print_phases(struct bench *b) {
    double sum = 0;
    for (int i = 0; i < N_PHASE; i++) sum += b->profile.seconds[i];
    for (int i = 0; i < N_PHASE; i++)
        if (b->profile.seconds[i] > 0.0005 * sum)
            printf("  %s %.1f %%", phase_name[i], 100 * b->profile.seconds[i] / sum);
    printf("\n");
    fflush(stdout);
}

static void clear_profile(struct bench *b) {
    memset(b->profile.seconds, 0, sizeof b->profile.seconds);
    b->profile.attention_flop = 0;
}

static void measure_prefill(struct bench *b, int64_t n, int n_repeat) {
    double best = INFINITY;
    for (int i = 0; i < n_repeat; i++) {
        session_truncate(b->session, 0);
        clear_profile(b);
        best = fmin(best, append_seconds(b, n));
    }
    double attention = (double)b->profile.attention_flop;
    double flops = (2 * layer_elements(&b->checkpoint.spec) * (double)n + attention) / best;
    printf("prefill of %6lld tokens: %8.3f s %9.0f tokens/s %7.1f TFLOP/s %5.1f %% of the ceiling, "
           "attention %.0f %% of the operations\n",
           (long long)n, best, (double)n / best, flops * 1e-12, 100 * flops / b->flops,
           100 * attention / (flops * best));
    print_phases(b);
}

static void measure_decode(struct bench *b) {
    const struct model_spec *spec = &b->checkpoint.spec;
    int64_t length = session_length(b->session);
    append_seconds(b, 1);
    clear_profile(b);
    double seconds = 0, row = 0;
    for (int i = 0; i < N_DECODE; i++) seconds += append_seconds(b, 1) / N_DECODE;
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        row += 2.0 * l->n_kv_head * (l->head_dim + l->value_dim);
    }
    double read =
        2 * (layer_elements(spec) + (double)spec->n_vocab * spec->n_hidden) + row * (double)length;
    printf(
        "decode at %6lld tokens: %8.3f ms %9.1f tokens/s %7.1f GB/s read, %5.1f %% of a copy's\n",
        (long long)length, seconds * 1e3, 1 / seconds, read / seconds * 1e-9,
        100 * read / seconds / b->bytes);
    print_phases(b);
}

static void print_memory(struct bench *b) {
    struct device_memory memory;
    if (!b->backend.ops->device_memory) return;
    measure_require(b->backend.ops->device_memory(&b->backend, &memory));
    printf("device memory: the backend held %.2f GB at most; %.2f of %.2f GB are free now\n",
           (double)memory.peak * 1e-9, (double)memory.available * 1e-9,
           (double)memory.total * 1e-9);
}

// With the weights of open_checkpoint.
static void open_session(struct bench *b, struct session_options options) {
    options.precision = options.kv_precision = PRECISION_BF16;
    struct memory_plan plan;
    measure_require(session_plan(&b->checkpoint, &b->backend, 1, 1, &options, &plan));
    printf("plan: weights %.2f, K/V %.2f, activations %.2f, ring %.2f, scratch %.2f: %.2f GB\n",
           (double)plan.weights * 1e-9, (double)plan.kv * 1e-9, (double)plan.activations * 1e-9,
           (double)plan.ring * 1e-9, (double)plan.scratch * 1e-9, (double)plan.total * 1e-9);
    double begun = measure_now();
    measure_require(
        session_open(&b->checkpoint, &b->backend, &b->comm, &b->profile, &options, &b->session));
    printf("weights loaded in %.1f s\n", measure_now() - begun);
    fflush(stdout);
}

static void open_network(struct bench *b, const struct network *network, int64_t capacity) {
    b->network = network;
    open_checkpoint(b);
    b->logits = test_alloc(b->checkpoint.spec.n_vocab * (int64_t)sizeof *b->logits);
    b->token = test_alloc(capacity * (int64_t)sizeof *b->token);
    for (int64_t i = 0; i < capacity; i++)
        b->token[i] = (int32_t)(random_bits(2, (uint64_t)i) % (uint64_t)b->checkpoint.spec.n_vocab);
}

static void close_network(struct bench *b) {
    checkpoint_close(&b->checkpoint);
    free(b->matrix);
    free(b->ones);
    free(b->token);
    free(b->logits);
}

static void measure_large(struct bench *b) {
    int64_t longest = scaled(b, LONGEST), capacity = longest + N_DECODE + 1;
    open_network(b, &large, capacity);
    open_session(b, (struct session_options){.max_tokens = capacity, .chunk = scaled(b, CHUNK)});
    measure_prefill(b, scaled(b, 8192), N_REPEAT);
    measure_prefill(b, scaled(b, 32768), N_REPEAT - 1);
    measure_prefill(b, longest, 1);
    measure_decode(b);
    print_memory(b);
    session_close(&b->session);
    close_network(b);
}

static void measure_small(struct bench *b) {
    open_network(b, &small, N_SHORT);
    for (int eager = 1; eager >= 0; eager--) {
        printf("small network, %s\n",
               eager ? "operation by operation" : "a token's layers as one step");
        open_session(b, (struct session_options){.max_tokens = N_SHORT, .eager = eager});
        for (int i = 0; i < N_REPEAT; i++) {
            session_truncate(b->session, 0);
            append_seconds(b, 16);
            append_seconds(b, 1);
            measure_decode(b);
        }
        session_close(&b->session);
    }
    close_network(b);
}

int main(int argc, char **argv) {
    struct bench b = {0};
    if (!measure_open(argc, argv, "bench_gpu_model", &b.backend, &b.divisor)) return 0;
    double seconds;
    b.flops = measure_product_ceiling(&b.backend, b.divisor, &seconds);
    b.bytes = measure_copy_ceiling(&b.backend, b.divisor, &seconds);
    printf("# backend %s %s; ceilings: product %.1f TFLOP/s, copy %.1f GB/s\n", b.backend.ops->name,
           b.backend.device_name, b.flops * 1e-12, b.bytes * 1e-9);
    measure_require(comm_self_open(&b.comm, b.backend.memory == MEMORY_DEVICE ? &b.backend : NULL));
    measure_large(&b);
    measure_small(&b);
    comm_close(&b.comm);
    backend_close(&b.backend);
    return 0;
}
