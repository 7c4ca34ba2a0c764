// A whole network of Llama 3.1 8B's shape with random bf16 weights over ranks of a GPU each (mpirun
// -np N): prefill of 128K tokens and of the longest case, tokens per second, the rate of a GPU and
// its share of a bf16 product's, the exposed wait, and decode at that depth. Weights are
// replicated. `bench_ring_model [LONGEST [DIVISOR]]`: a divisor rehearses smaller networks on any
// machine.
#include <stdio.h>

#include "tests/common/measure.h"
#include "tests/common/measure_ranks.h"
#include "tests/common/measure_session.h"

enum { MIDDLE = 131072, CHUNK_OF_A_RANK = 16384, N_DECODE = 16 };

struct bench {
    struct ranks ranks;
    struct measured_session model;
    double flops; // of a bf16 product, per second
};

static double append_seconds(struct bench *b, int64_t first, int64_t n) {
    struct ranks *r = &b->ranks;
    double seconds;
    ranks_require(r, r->host.ops->barrier(&r->host));
    ranks_require(r, measure_session_append(&b->model, first, n, &seconds));
    return ranks_slowest(r, seconds);
}

static void measure_prefill(struct bench *b, int64_t n) {
    struct ranks *r = &b->ranks;
    session_truncate(b->model.session, 0);
    measure_clear_profile(&r->profile);
    double seconds = append_seconds(b, 0, n);
    double pairs = (double)n * (double)(n + 1) / 2, elements, flops;
    const struct model_spec *spec = &b->model.network.checkpoint.spec;
    const struct layer_spec *l = &spec->layers[0];
    elements = random_network_layer_elements(spec);
    flops = (2 * elements * (double)n + 4 * pairs * spec->n_layer * l->n_head * l->head_dim) /
            r->comm->size / seconds;
    if (r->comm->rank != 0) return;
    printf("prefill of %7lld tokens: %8.2f s %9.0f tokens/s %7.1f TFLOP/s a GPU, %5.1f %% of a "
           "product's\n",
           (long long)n, seconds, (double)n / seconds, flops * 1e-12, 100 * flops / b->flops);
    measure_print_phases(&b->ranks.profile, 1);
}

static void measure_decode(struct bench *b, bool eager) {
    int64_t length = session_length(b->model.session);
    double seconds = 0;
    append_seconds(b, 0, 1);
    append_seconds(b, 0, 1);
    measure_clear_profile(&b->ranks.profile);
    for (int i = 0; i < N_DECODE; i++) seconds += append_seconds(b, i, 1) / N_DECODE;
    if (b->ranks.comm->rank != 0) return;
    printf("decode at %7lld tokens, %s: %8.3f ms %9.1f tokens/s, by phase\n", (long long)length,
           eager ? "operation by operation" : "in steps", seconds * 1e3, 1 / seconds);
    measure_print_phases(&b->ranks.profile, N_DECODE);
}

static void print_memory(struct bench *b, const struct memory_plan *plan) {
    struct ranks *r = &b->ranks;
    struct device_memory memory = {0};
    if (r->backend.ops->device_memory)
        ranks_require(r, r->backend.ops->device_memory(&r->backend, &memory));
    double peak = ranks_slowest(r, (double)memory.peak);
    if (r->comm->rank != 0) return;
    measure_print_plan(plan);
    printf("; held at most %.2f GB\n", peak * 1e-9);
}

static void run(struct bench *b) {
    struct ranks *r = &b->ranks;
    double seconds;
    int64_t middle = ranks_scaled(r, MIDDLE), longest = ranks_scaled(r, r->longest);
    int64_t capacity = (longest > middle ? longest : middle) + 2 * N_DECODE;
    b->flops = measure_product_ceiling(&r->backend, r->divisor, &seconds);
    ranks_require(r, measure_session_open(&network_llama_8b, r->divisor, capacity, &b->model));
    struct session_options options = {
        .precision = PRECISION_BF16,
        .kv_precision = PRECISION_BF16,
        .max_tokens = capacity,
        .chunk = ranks_scaled(r, (int64_t)CHUNK_OF_A_RANK * r->comm->size)};
    struct memory_plan plan;
    ranks_require(r, session_plan(&b->model.network.checkpoint, &r->backend, r->comm->size, 1,
                                  &options, &plan));
    for (int eager = 1; eager >= 0; eager--) {
        options.eager = eager;
        ranks_require(r, session_open(&b->model.network.checkpoint, &r->backend, r->comm,
                                      &r->profile, &options, &b->model.session));
        measure_prefill(b, middle);
        measure_decode(b, eager);
        if (eager) session_close(&b->model.session);
    }
    if (longest > middle) {
        measure_prefill(b, longest);
        measure_decode(b, false);
    }
    print_memory(b, &plan);
    session_close(&b->model.session);
    measure_session_close(&b->model);
}

int main(int argc, char **argv) {
    struct bench b = {0};
    if (ranks_open(&argc, &argv, "bench_ring_model", &b.ranks)) run(&b);
    ranks_close(&b.ranks);
    return 0;
}
