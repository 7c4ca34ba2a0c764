// The next token by its logits. Sums are fp64.
#include <math.h>
#include <stdlib.h>

#include "kernels/reference/reference.h"

struct choice {
    double weight; // exp((logit - largest) / temperature)
    int32_t id;
};

static int32_t largest_logit(const float *logits, int64_t n_vocab) {
    int32_t best = -1;
    for (int64_t i = 0; i < n_vocab; i++)
        if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = (int32_t)i;
    return best;
}

static int comes_before(const struct choice *a, const struct choice *b) {
    return a->weight != b->weight ? a->weight > b->weight : a->id < b->id;
}

static void sift_down(struct choice *heap, int64_t n, int64_t i) {
    struct choice moving = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && comes_before(&heap[child + 1], &heap[child])) child++;
        if (!comes_before(&heap[child], &moving)) break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

// Moves the likeliest choices, in order, to the end of the array until they reach top_p of the
// total; returns how many. A heap, because the set is small and the vocabulary large.
static int64_t keep_top(struct choice *choice, int64_t n, double top_p) {
    double total = 0, kept = 0;
    for (int64_t i = 0; i < n; i++) total += choice[i].weight;
    for (int64_t i = n / 2; i-- > 0;) sift_down(choice, n, i);
    int64_t left = n;
    while (left > 0 && (left == n || kept < top_p * total)) {
        struct choice best = choice[0];
        choice[0] = choice[--left];
        if (left > 0) sift_down(choice, left, 0);
        choice[left] = best;
        kept += best.weight;
    }
    return n - left;
}

// `largest` is the answer when nothing is left (min_p above 1).
static int32_t draw(const struct choice *choice, int64_t n, double uniform, int32_t largest) {
    double total = 0, passed = 0;
    for (int64_t i = 0; i < n; i++) total += choice[i].weight;
    int32_t last = largest;
    for (int64_t i = 0; i < n; i++) {
        if (choice[i].weight == 0) continue;
        last = choice[i].id;
        passed += choice[i].weight;
        if (passed > uniform * total) break;
    }
    return last;
}

enum status reference_sample(struct backend *backend, const struct sample_args *args) {
    (void)backend;
    *args->token = largest_logit(args->logits, args->n);
    if (*args->token < 0 || args->temperature <= 0) return OK;
    struct choice *choice = malloc((size_t)args->n * sizeof(*choice));
    if (!choice) FAIL(ERR_MEMORY, "no memory to sample from %lld tokens", (long long)args->n);
    double largest = args->logits[*args->token];
    int64_t n = 0;
    for (int64_t i = 0; i < args->n; i++) {
        if (!isfinite(args->logits[i])) continue;
        double weight = exp((args->logits[i] - largest) / args->temperature);
        if (weight < args->min_p) continue;
        choice[n++] = (struct choice){.weight = weight, .id = (int32_t)i};
    }
    int64_t kept = args->top_p < 1 ? keep_top(choice, n, args->top_p) : n;
    *args->token = draw(choice + n - kept, kept, args->uniform, *args->token);
    free(choice);
    return OK;
}
