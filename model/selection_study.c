#include "model/selection_study.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t out_bytes(const struct study_shape *s) {
    return s->n_token * s->n_head * s->value_dim * (int64_t)sizeof(float);
}

static int64_t lse_bytes(const struct study_shape *s) {
    return s->n_token * s->n_head * (int64_t)sizeof(float);
}

static int64_t candidate_bytes(const struct study_shape *s) {
    return s->n_token * s->k * (int64_t)sizeof(uint64_t);
}

int64_t selection_study_bytes(const struct study_shape *s) {
    return out_bytes(s) + 3 * lse_bytes(s) + 2 * candidate_bytes(s) +
           s->n_token * (int64_t)(2 * sizeof(int32_t) + sizeof(int64_t));
}

enum status selection_study_open(struct selection_study *out, struct ring_attention *ring,
                                 const struct study_shape *s) {
    *out = (struct selection_study){.ring = ring, .n_layer = s->n_layer, .k = s->k};
    struct backend *backend = ring->backend;
    enum status status = OK;
    void *memory = NULL;
    out->layers = calloc((size_t)s->n_layer, sizeof *out->layers);
    out->host_lse = malloc(2 * (size_t)lse_bytes(s) + 1);
    out->candidate = malloc(2 * (size_t)candidate_bytes(s) + 1);
    out->n_candidate = malloc(2 * (size_t)s->n_token * sizeof *out->n_candidate);
    out->position = malloc((size_t)s->n_token * sizeof *out->position);
    if (!out->layers || !out->host_lse || !out->candidate || !out->n_candidate || !out->position)
        FAIL_OR(failed, ERR_MEMORY, "no memory to study the selections of %lld tokens",
                (long long)s->n_token);
    TRY_OR(failed, backend->ops->alloc(backend, out_bytes(s), &memory));
    out->out = memory;
    TRY_OR(failed, backend->ops->alloc(backend, lse_bytes(s), &memory));
    out->lse = memory;
    return OK;
failed:
    selection_study_close(out);
    return status;
}

void selection_study_close(struct selection_study *study) {
    if (study->ring) {
        struct backend *backend = study->ring->backend;
        if (study->lse) backend->ops->free(backend, study->lse);
        if (study->out) backend->ops->free(backend, study->out);
    }
    free(study->position);
    free(study->n_candidate);
    free(study->candidate);
    free(study->host_lse);
    free(study->layers);
    *study = (struct selection_study){0};
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// Positions of n candidates, ascending, in place of the candidates.
static void sort_positions(uint64_t *candidate, int32_t n) {
    for (int32_t i = 0; i < n; i++) candidate[i] = (uint64_t)candidate_position(candidate[i]);
    qsort(candidate, (size_t)n, sizeof *candidate, ascending);
}

static int64_t count_common(const uint64_t *x, int32_t n_a, const uint64_t *y, int32_t n_b) {
    int64_t n = 0;
    for (int32_t i = 0, j = 0; i < n_a && j < n_b;) {
        n += x[i] == y[j];
        bool step_x = x[i] <= y[j], step_y = y[j] <= x[i];
        i += step_x;
        j += step_y;
    }
    return n;
}

// Downloads this layer's selection and compares it with the one before.
static enum status add_overlap(struct selection_study *study, struct layer_study *layer,
                               const struct sparse_ring_args *args, int64_t n, bool first) {
    struct backend *backend = study->ring->backend;
    int64_t k = study->k;
    int now = 1 - study->current;
    uint64_t *selected = study->candidate + now * n * k;
    const uint64_t *before = study->candidate + study->current * n * k;
    int32_t *n_selected = study->n_candidate + now * n;
    const int32_t *n_before = study->n_candidate + study->current * n;
    TRY(backend->ops->download(backend, selected, args->candidate, n * k * 8));
    TRY(backend->ops->download(backend, n_selected, args->n_candidate, n * 4));
    TRY(backend->ops->sync(backend));
    for (int64_t t = 0; t < n; t++) {
        sort_positions(selected + t * k, n_selected[t]);
        if (first || study->position[t] < k) continue;
        layer->overlap +=
            (double)count_common(selected + t * k, n_selected[t], before + t * k, n_before[t]);
        layer->n_overlap += n_selected[t];
    }
    study->current = now;
    return OK;
}

static enum status add_recall(struct selection_study *study, struct layer_study *layer,
                              const struct sparse_ring_args *args, int64_t n) {
    struct backend *backend = study->ring->backend;
    struct ring_attention_args dense = args->attention;
    int64_t n_row = n * dense.n_head;
    float *selected = study->host_lse, *all = study->host_lse + n_row;
    dense.pass = PASS_KV;
    dense.out = study->out;
    dense.lse = study->lse;
    TRY(ring_attention_run(study->ring, &dense));
    TRY(backend->ops->download(backend, selected, args->attention.lse, n_row * 4));
    TRY(backend->ops->download(backend, all, study->lse, n_row * 4));
    TRY(backend->ops->sync(backend));
    for (int64_t i = 0; i < n_row; i++) {
        if (study->position[i / dense.n_head] < study->k) continue;
        layer->recall += exp((double)selected[i] - (double)all[i]);
        layer->n_recall++;
    }
    return OK;
}

enum status selection_study_add(struct selection_study *study, int layer,
                                const struct sparse_ring_args *args, bool first) {
    const struct ring_attention_args *a = &args->attention;
    int rank = study->ring->comm->rank;
    int64_t n = sequence_count(a->sequence, rank, a->query_begin, a->query_end);
    sequence_positions(a->sequence, rank, a->query_begin, a->query_end, study->position);
    TRY(add_recall(study, &study->layers[layer], args, n));
    return add_overlap(study, &study->layers[layer], args, n, first);
}

enum status selection_study_take(struct selection_study *study, double *recall, double *overlap) {
    struct comm *comm = comm_host(study->ring->comm);
    for (int i = 0; i < study->n_layer; i++) {
        const struct layer_study *l = &study->layers[i];
        double sums[4] = {l->recall, (double)l->n_recall, l->overlap, (double)l->n_overlap};
        TRY(comm->ops->all_reduce(comm, sums, 4, REDUCE_SUM_F64));
        recall[i] = sums[1] > 0 ? sums[0] / sums[1] : NAN;
        overlap[i] = sums[3] > 0 ? sums[2] / sums[3] : NAN;
    }
    return OK;
}
