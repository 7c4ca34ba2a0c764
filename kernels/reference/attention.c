// Attention of one K/V block, the merge of two partials, and how much each key was read.
// softmax(scale q k^T) v row by row, as written in Vaswani et al. 2017, equation 1. Sums are
// double, so that fast forms are tested against the value and not against one order of rounding.
#include <math.h>
#include <stdlib.h>

#include "kernels/reference/reference.h"

// Element i of a row, as the products see it: rounded to bf16 when the query is BF16.
static float operand(const void *row, enum dtype dtype, int64_t i, bool to_bf16) {
    if (dtype == DTYPE_BF16) return bf16_to_float(((const bf16 *)row)[i]);
    float x = ((const float *)row)[i];
    return to_bf16 ? bf16_to_float(bf16_from_float(x)) : x;
}

static const void *element(const void *base, enum dtype dtype, int64_t index) {
    return (const char *)base + index * (dtype == DTYPE_BF16 ? 2 : 4);
}

static int kv_head(const struct attention_args *a, int head) {
    return head / (a->n_head / a->n_kv_head);
}

static bool is_visible(const struct attention_args *a, int64_t query, int64_t key) {
    if (a->end_visible && a->key_position[key] >= a->end_visible[query]) return false;
    if (!a->first_visible || a->key_position[key] < a->sinks) return true;
    return a->key_position[key] >= a->first_visible[query];
}

// Scores of one query and head against every key: [n_key], -inf where the key is not visible.
static void score_row(const struct attention_args *a, int64_t query, int head, float *score) {
    bool to_bf16 = a->query_dtype == DTYPE_BF16;
    const void *q =
        element(a->query, a->query_dtype, query * a->query_stride + (int64_t)head * a->head_dim);
    for (int64_t s = 0; s < a->n_key; s++) {
        score[s] = -INFINITY;
        if (!is_visible(a, query, s)) continue;
        const void *k = element(a->key, a->kv_dtype,
                                s * a->key_stride + (int64_t)kv_head(a, head) * a->head_dim);
        double sum = 0;
        for (int i = 0; i < a->head_dim; i++)
            sum += (double)operand(q, a->query_dtype, i, to_bf16) *
                   (double)operand(k, a->kv_dtype, i, to_bf16);
        score[s] = (float)(sum * (double)a->scale);
    }
}

// Room for one row: scores and weights [n_key], weighted sums and their mean [value_dim].
struct row_room {
    float *score;
    double *weight, *sum;
    float *mean;
};

// Leaves the mean in the room, returns lse. Keys with a score of -inf weigh nothing, whatever their
// value; NaN and +inf spoil their own row.
static float attend_row(const struct attention_args *a, int head, const struct row_room *room) {
    bool to_bf16 = a->query_dtype == DTYPE_BF16;
    const float *score = room->score;
    double *weight = room->weight, *sum = room->sum, max = -INFINITY, total = 0;
    for (int64_t s = 0; s < a->n_key; s++)
        if ((double)score[s] > max) max = score[s];
    for (int64_t s = 0; s < a->n_key; s++) {
        weight[s] = score[s] == -INFINITY ? 0 : exp(score[s] - max);
        total += weight[s];
    }
    for (int i = 0; i < a->value_dim; i++) sum[i] = 0;
    for (int64_t s = 0; s < a->n_key; s++) {
        if (score[s] == -INFINITY) continue;
        const void *v = element(a->value, a->kv_dtype,
                                s * a->value_stride + (int64_t)kv_head(a, head) * a->value_dim);
        for (int i = 0; i < a->value_dim; i++)
            sum[i] += weight[s] * (double)operand(v, a->kv_dtype, i, to_bf16);
    }
    for (int i = 0; i < a->value_dim; i++) room->mean[i] = total == 0 ? 0 : (float)(sum[i] / total);
    return total == 0 ? -INFINITY : (float)(max + log(total));
}

static void merge_row(int value_dim, float *out, float *lse, const float *other, float other_lse) {
    double a = *lse, b = other_lse;
    if (b == -INFINITY) return;
    double max = a > b ? a : b;
    double weight_a = a == -INFINITY ? 0 : exp(a - max), weight_b = exp(b - max);
    double total = weight_a + weight_b;
    for (int i = 0; i < value_dim; i++) {
        double kept = a == -INFINITY ? 0 : weight_a * (double)out[i];
        out[i] = (float)((kept + weight_b * (double)other[i]) / total);
    }
    *lse = (float)(max + log(total));
}

static enum status alloc_row(int64_t n, size_t element_bytes, void *out) {
    void *row = malloc((size_t)(n + 1) * element_bytes);
    if (!row) FAIL(ERR_MEMORY, "no memory for a row of %lld numbers", (long long)n);
    *(void **)out = row;
    return OK;
}

enum status reference_attention(struct backend *backend, const struct attention_args *args) {
    (void)backend;
    struct row_room room = {0};
    enum status status = OK;
    TRY_OR(close, alloc_row(args->n_key, sizeof *room.score, &room.score));
    TRY_OR(close, alloc_row(args->n_key, sizeof *room.weight, &room.weight));
    TRY_OR(close, alloc_row(args->value_dim, sizeof *room.sum, &room.sum));
    TRY_OR(close, alloc_row(args->value_dim, sizeof *room.mean, &room.mean));
    for (int64_t row = 0; row < args->n_query * args->n_head; row++) {
        int head = (int)(row % args->n_head);
        score_row(args, row / args->n_head, head, room.score);
        float lse = attend_row(args, head, &room), *out = args->out + row * args->value_dim;
        if (args->merge) {
            merge_row(args->value_dim, out, &args->lse[row], room.mean, lse);
            continue;
        }
        memcpy(out, room.mean, (size_t)args->value_dim * sizeof *out);
        args->lse[row] = lse;
    }
close:
    free(room.mean);
    free(room.sum);
    free(room.weight);
    free(room.score);
    return status;
}

enum status reference_merge_partials(struct backend *backend, const struct merge_args *args) {
    (void)backend;
    for (int64_t row = 0; row < args->n_row; row++) {
        int64_t at = row * args->value_dim;
        if (!args->merge) {
            args->lse[row] = -INFINITY;
            for (int i = 0; i < args->value_dim; i++) args->out[at + i] = 0;
        }
        for (int other = 0; other < args->n_other; other++) {
            int64_t first = other * args->other_stride;
            merge_row(args->value_dim, args->out + at, &args->lse[row],
                      args->other_out + first + at, args->other_lse[first + row]);
        }
    }
    return OK;
}

enum status reference_attention_mass(struct backend *backend,
                                     const struct attention_mass_args *args) {
    (void)backend;
    const struct attention_args *a = &args->attention;
    float *score;
    TRY(alloc_row(a->n_key, sizeof *score, &score));
    for (int64_t query = 0; query < a->n_query; query++)
        for (int head = 0; head < a->n_head; head++) {
            double lse = a->lse[query * a->n_head + head];
            score_row(a, query, head, score);
            for (int64_t s = 0; s < a->n_key; s++)
                if (score[s] != -INFINITY)
                    args->mass[s] += args->factor * (float)exp(score[s] - lse);
        }
    free(score);
    return OK;
}
