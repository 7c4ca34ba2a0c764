// A whole network of Llama 3.1 8B's shape with random bf16 weights over ranks of a GPU each (mpirun
// -np N): prefill of 128K tokens and of the longest case, tokens per second, the rate of a GPU and
// its share of a bf16 product's, the exposed wait, and decode at that depth. Weights are
// replicated. `bench_ring_model [LONGEST [DIVISOR]]`: a divisor rehearses smaller networks on any
// machine.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/session.h"
#include "tests/common/cases.h"
#include "tests/common/measure.h"
#include "tests/common/measure_ranks.h"
#include "tests/common/random_network.h"

enum { MIDDLE = 131072, CHUNK_OF_A_RANK = 16384, N_DECODE = 16 };

struct bench {
    struct ranks ranks;
    struct random_network network;
    struct session *session;
    double flops; // of a bf16 product, per second
    int32_t *token;
    float *logits;
};

static double append_seconds(struct bench *b, const int32_t *token, int64_t n) {
    struct ranks *r = &b->ranks;
    struct append_args args = {.token = token, .n = n, .last_logits = b->logits};
    ranks_require(r, r->host.ops->barrier(&r->host));
    double begun = measure_now();
    ranks_require(r, session_append(b->session, &args));
    double seconds = ranks_slowest(r, measure_now() - begun);
    for (int64_t i = 0; i < b->network.checkpoint.spec.n_vocab; i++) {
        if (isfinite(b->logits[i])) continue;
        ranks_require(r, status_fail(ERR_INTERNAL, "", "logit %lld is %g", (long long)i,
                                     (double)b->logits[i]));
    }
    return seconds;
}

static void clear_profile(struct bench *b) {
    b->ranks.profile = (struct profile){.device = b->ranks.profile.device};
}

// Seconds of the device, or of host computation, by phase since the profile was cleared.
static void print_phases(const struct bench *b, int64_t n) {
    const struct profile *p = &b->ranks.profile;
    for (int i = 0; i < N_PHASE; i++)
        if (p->seconds[i] / (double)n > 1e-6)
            printf("  %s %.3f ms", phase_name[i], p->seconds[i] / (double)n * 1e3);
    printf("\n");
    fflush(stdout);
}

static void measure_prefill(struct bench *b, int64_t n) {
    struct ranks *r = &b->ranks;
    session_truncate(b->session, 0);
    clear_profile(b);
    double seconds = append_seconds(b, b->token, n);
    double pairs = (double)n * (double)(n + 1) / 2, elements, flops;
    const struct model_spec *spec = &b->network.checkpoint.spec;
    const struct layer_spec *l = &spec->layers[0];
    elements = random_network_layer_elements(spec);
    flops = (2 * elements * (double)n + 4 * pairs * spec->n_layer * l->n_head * l->head_dim) /
            r->comm->size / seconds;
    if (r->comm->rank != 0) return;
    printf("prefill of %7lld tokens: %8.2f s %9.0f tokens/s %7.1f TFLOP/s a GPU, %5.1f %% of a "
           "product's\n",
           (long long)n, seconds, (double)n / seconds, flops * 1e-12, 100 * flops / b->flops);
    print_phases(b, 1);
}

static void measure_decode(struct bench *b, bool eager) {
    int64_t length = session_length(b->session);
    double seconds = 0;
    append_seconds(b, b->token, 1);
    append_seconds(b, b->token, 1);
    clear_profile(b);
    for (int i = 0; i < N_DECODE; i++) seconds += append_seconds(b, b->token + i, 1) / N_DECODE;
    if (b->ranks.comm->rank != 0) return;
    printf("decode at %7lld tokens, %s: %8.3f ms %9.1f tokens/s, by phase\n", (long long)length,
           eager ? "operation by operation" : "in steps", seconds * 1e3, 1 / seconds);
    print_phases(b, N_DECODE);
}

static void print_memory(struct bench *b, const struct memory_plan *plan) {
    struct ranks *r = &b->ranks;
    struct device_memory memory = {0};
    if (r->backend.ops->device_memory)
        ranks_require(r, r->backend.ops->device_memory(&r->backend, &memory));
    double peak = ranks_slowest(r, (double)memory.peak);
    if (r->comm->rank == 0)
        printf("plan: weights %.2f, K/V %.2f, activations %.2f, ring %.2f, scratch %.2f: %.2f GB; "
               "held at most %.2f GB\n",
               (double)plan->weights * 1e-9, (double)plan->kv * 1e-9,
               (double)plan->activations * 1e-9, (double)plan->ring * 1e-9,
               (double)plan->scratch * 1e-9, (double)plan->total * 1e-9, peak * 1e-9);
}

static void run(struct bench *b) {
    struct ranks *r = &b->ranks;
    double seconds;
    int64_t middle = ranks_scaled(r, MIDDLE), longest = ranks_scaled(r, r->longest);
    int64_t capacity = (longest > middle ? longest : middle) + 2 * N_DECODE;
    b->flops = measure_product_ceiling(&r->backend, r->divisor, &seconds);
    ranks_require(r, random_network_open(&network_llama_8b, r->divisor, &b->network));
    const struct model_spec *spec = &b->network.checkpoint.spec;
    b->logits = test_alloc(spec->n_vocab * (int64_t)sizeof *b->logits);
    b->token = test_alloc(capacity * (int64_t)sizeof *b->token);
    for (int64_t i = 0; i < capacity; i++)
        b->token[i] = (int32_t)(random_bits(2, (uint64_t)i) % (uint64_t)spec->n_vocab);
    struct session_options options = {
        .precision = PRECISION_BF16,
        .kv_precision = PRECISION_BF16,
        .max_tokens = capacity,
        .chunk = ranks_scaled(r, (int64_t)CHUNK_OF_A_RANK * r->comm->size)};
    struct memory_plan plan;
    ranks_require(
        r, session_plan(&b->network.checkpoint, &r->backend, r->comm->size, 1, &options, &plan));
    for (int eager = 1; eager >= 0; eager--) {
        options.eager = eager;
        ranks_require(r, session_open(&b->network.checkpoint, &r->backend, r->comm, &r->profile,
                                      &options, &b->session));
        measure_prefill(b, middle);
        measure_decode(b, eager);
        if (eager) session_close(&b->session);
    }
    if (longest > middle) {
        measure_prefill(b, longest);
        measure_decode(b, false);
    }
    print_memory(b, &plan);
    session_close(&b->session);
    random_network_close(&b->network);
    free(b->logits);
    free(b->token);
}

int main(int argc, char **argv) {
    struct bench b = {0};
    if (ranks_open(&argc, &argv, "bench_ring_model", &b.ranks)) run(&b);
    ranks_close(&b.ranks);
    return 0;
}
