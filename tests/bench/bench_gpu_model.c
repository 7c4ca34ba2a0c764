// A network of Llama 3.1 8B's shape with random bf16 weights, on one GPU through model/session.h:
// tokens per second of prefill at 8K, 32K and 128K tokens and its share of the ceiling (a product
// of 8192^3 in bf16), of decode at 128K and its share of a device copy's bytes, and the memory
// taken beside the plan's. Then one of SmolLM2 135M's shape, whose decode waits for the host unless
// a token's layers are one step, and one of OLMoE 7B's, where each token takes 8 of 64 experts.
// `bench_gpu_model [DIVISOR]`: a divisor rehearses smaller networks.
#include <math.h>
#include <stdio.h>

#include "dist/comm.h"
#include "tests/common/measure.h"
#include "tests/common/measure_session.h"

enum {
    LONGEST = 131072,
    CHUNK = 16384,
    N_DECODE = 32,
    N_SHORT = 256, // tokens of the small network's context
    N_REPEAT = 3
};

struct bench {
    struct backend backend;
    struct measured_session model;
    struct comm comm;
    struct profile profile;
    int64_t divisor;
    double flops, bytes; // the ceilings, per second
};

static int64_t scaled(const struct bench *b, int64_t n) {
    return n / b->divisor > 0 ? n / b->divisor : 1;
}

static double append_seconds(struct bench *b, int64_t n) {
    double seconds;
    measure_require(measure_session_append(&b->model, 0, n, &seconds));
    return seconds;
}

static void measure_prefill(struct bench *b, int64_t n, int n_repeat) {
    double best = INFINITY;
    for (int i = 0; i < n_repeat; i++) {
        measure_require(session_truncate(b->model.session, 0));
        measure_clear_profile(&b->profile);
        best = fmin(best, append_seconds(b, n));
    }
    double attention = (double)b->profile.attention_flop;
    double flops =
        (2 * random_network_layer_elements(&b->model.network.checkpoint.spec) * (double)n +
         attention) /
        best;
    printf("prefill of %6lld tokens: %8.3f s %9.0f tokens/s %7.1f TFLOP/s %5.1f %% of the ceiling, "
           "attention %.0f %% of the operations\n",
           (long long)n, best, (double)n / best, flops * 1e-12, 100 * flops / b->flops,
           100 * attention / (flops * best));
    measure_print_phases(&b->profile, 1);
}

static void measure_decode(struct bench *b) {
    const struct model_spec *spec = &b->model.network.checkpoint.spec;
    int64_t length = session_length(b->model.session);
    append_seconds(b, 1);
    measure_clear_profile(&b->profile);
    double seconds = 0, row = 0;
    for (int i = 0; i < N_DECODE; i++) seconds += append_seconds(b, 1) / N_DECODE;
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        row += 2.0 * l->n_kv_head * (l->head_dim + l->value_dim);
    }
    double read =
        2 * (random_network_layer_elements(spec) + (double)spec->n_vocab * spec->n_hidden) +
        row * (double)length;
    printf(
        "decode at %6lld tokens: %8.3f ms %9.1f tokens/s %7.1f GB/s read, %5.1f %% of a copy's\n",
        (long long)length, seconds * 1e3, 1 / seconds, read / seconds * 1e-9,
        100 * read / seconds / b->bytes);
    measure_print_phases(&b->profile, N_DECODE);
}

static void print_memory(struct bench *b) {
    struct device_memory memory;
    if (!b->backend.ops->device_memory) return;
    measure_require(b->backend.ops->device_memory(&b->backend, &memory));
    printf("device memory: the backend held %.2f GB at most; %.1f of %.1f MB are free now\n",
           (double)memory.peak * 1e-9, (double)memory.available * 1e-6,
           (double)memory.total * 1e-6);
}

static void open_session(struct bench *b, struct session_options options) {
    options.precision = options.kv_precision = PRECISION_BF16;
    struct memory_plan plan;
    measure_require(session_plan(&b->model.network.checkpoint, &b->backend, 1, 1, &options, &plan));
    measure_print_plan(&plan);
    double begun = measure_now();
    measure_require(session_open(&b->model.network.checkpoint, &b->backend, &b->comm, &b->profile,
                                 &options, &b->model.session));
    printf("; weights loaded in %.1f s\n", measure_now() - begun);
    fflush(stdout);
}

static void open_network(struct bench *b, const struct network_shape *shape, int64_t capacity) {
    measure_require(measure_session_open(shape, b->divisor, capacity, &b->model));
}

static void measure_large(struct bench *b) {
    int64_t longest = scaled(b, LONGEST), capacity = longest + N_DECODE + 1;
    open_network(b, &network_llama_8b, capacity);
    open_session(b, (struct session_options){.max_tokens = capacity, .chunk = scaled(b, CHUNK)});
    measure_prefill(b, scaled(b, 8192), N_REPEAT);
    measure_prefill(b, scaled(b, 32768), N_REPEAT - 1);
    measure_prefill(b, longest, 1);
    measure_decode(b);
    print_memory(b);
    session_close(&b->model.session);
    measure_session_close(&b->model);
}

// Memory is free as before less the tables and graphs of steps (kernels/cuda/step.cu counts on
// them).
static void measure_steps(struct bench *b, const char *name, const struct network_shape *shape) {
    open_network(b, shape, N_SHORT);
    for (int eager = 1; eager >= 0; eager--) {
        printf("%s, %s\n", name, eager ? "operation by operation" : "a token's layers as one step");
        open_session(b, (struct session_options){.max_tokens = N_SHORT, .eager = eager});
        for (int i = 0; i < N_REPEAT; i++) {
            measure_require(session_truncate(b->model.session, 0));
            append_seconds(b, 16);
            append_seconds(b, 1);
            measure_decode(b);
        }
        print_memory(b);
        session_close(&b->model.session);
    }
    measure_session_close(&b->model);
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
    measure_steps(&b, "small network", &network_smollm2_135m);
    measure_steps(&b, "network with experts", &network_olmoe_7b);
    comm_close(&b.comm);
    backend_close(&b.backend);
    return 0;
}
