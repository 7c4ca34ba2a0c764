#include "kernels/experts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/expert_group.h"
#include "kernels/reference/reference.h"

// The best `n` of the experts still allowed (choice is not -inf), best first, the lower number
// before an equal one. Chosen ones are struck out.
static void take_best(float *choice, int n_expert, int n, int32_t *out) {
    for (int i = 0; i < n; i++) {
        int best = 0;
        for (int e = 1; e < n_expert; e++)
            if (choice[e] > choice[best]) best = e;
        out[i] = best;
        choice[best] = -INFINITY;
    }
}

// Strikes out every expert outside the best groups.
static void keep_groups(const struct expert_gate_args *args, float *choice, float *group_score) {
    int width = args->n_expert / args->n_group;
    for (int g = 0; g < args->n_group; g++)
        group_score[g] = expert_group_score(choice + g * width, width);
    for (int kept = 0; kept < args->n_group_used; kept++) {
        int best = 0;
        for (int g = 1; g < args->n_group; g++)
            if (group_score[g] > group_score[best]) best = g;
        group_score[best] = -INFINITY;
    }
    for (int g = 0; g < args->n_group; g++) {
        if (group_score[g] == -INFINITY) continue; // kept
        for (int e = g * width; e < (g + 1) * width; e++) choice[e] = -INFINITY;
    }
}

static void score_experts(const struct expert_gate_args *args, const float *logit, float *score) {
    if (args->scoring == EXPERT_SIGMOID) {
        for (int e = 0; e < args->n_expert; e++) score[e] = 1 / (1 + expf(-logit[e]));
        return;
    }
    float max = -INFINITY, total = 0;
    for (int e = 0; e < args->n_expert; e++) max = fmaxf(max, logit[e]);
    for (int e = 0; e < args->n_expert; e++) total += score[e] = expf(logit[e] - max);
    for (int e = 0; e < args->n_expert; e++) score[e] /= total;
}

static void gate_token(const struct expert_gate_args *args, int64_t t, float *room) {
    float *score = room, *choice = score + args->n_expert, *group_score = choice + args->n_expert;
    int32_t *expert = args->expert + t * args->n_used;
    float *weight = args->weight + t * args->n_used, total = 1e-20f;
    score_experts(args, args->logit + t * args->n_expert, score);
    for (int e = 0; e < args->n_expert; e++)
        choice[e] = score[e] + (args->bias ? args->bias[e] : 0);
    if (args->n_group > 1) keep_groups(args, choice, group_score);
    take_best(choice, args->n_expert, args->n_used, expert);
    for (int i = 0; i < args->n_used; i++) total += score[expert[i]];
    for (int i = 0; i < args->n_used; i++)
        weight[i] = score[expert[i]] / (args->normalise ? total : 1) * args->scale;
}

enum status reference_expert_gate(struct backend *backend, const struct expert_gate_args *args) {
    (void)backend;
    float *room = malloc((size_t)(2 * args->n_expert + args->n_group) * sizeof *room);
    if (!room) FAIL(ERR_MEMORY, "no memory for the scores of %d experts", args->n_expert);
    for (int64_t t = 0; t < args->n_token; t++) gate_token(args, t, room);
    free(room);
    return OK;
}

enum status reference_grouped_matmul(struct backend *backend,
                                     const struct grouped_matmul_args *args) {
    for (int g = 0; g < args->n_group; g++) {
        const struct weight *w = &args->weight[g];
        int64_t first = args->first_row[g];
        TRY(reference_matmul(
            backend, &(struct matmul_args){.x = (const char *)args->x +
                                                dtype_bytes(args->x_dtype, first * w->n_col),
                                           .x_dtype = args->x_dtype,
                                           .x_stride = w->n_col,
                                           .n_token = args->first_row[g + 1] - first,
                                           .weight = *w,
                                           .out = args->out + first * w->n_row,
                                           .out_dtype = DTYPE_F32,
                                           .out_stride = w->n_row}));
    }
    return OK;
}

// By the backend's own products.
enum status reference_chosen_matmul(struct backend *backend,
                                    const struct chosen_matmul_args *args) {
    int64_t n_out = args->weight[0].n_row;
    for (int64_t j = 0; j < args->n_row; j++) {
        int64_t local = (int64_t)args->expert[j] - args->first_expert;
        float *out = args->out + j * n_out;
        if (local < 0 || local >= args->n_expert) {
            memset(out, 0, (size_t)n_out * sizeof *out);
            continue;
        }
        if (args->n_product) ++*args->n_product;
        TRY(backend->ops->matmul(
            backend, &(struct matmul_args){.x = (const char *)args->x +
                                                dtype_bytes(args->x_dtype, j * args->x_stride),
                                           .x_dtype = args->x_dtype,
                                           .x_stride = args->weight[0].n_col,
                                           .n_token = 1,
                                           .weight = args->weight[local],
                                           .out = out,
                                           .out_dtype = DTYPE_F32,
                                           .out_stride = n_out}));
    }
    return OK;
}

enum status reference_expert_combine(struct backend *backend,
                                     const struct expert_combine_args *args) {
    (void)backend;
    for (int64_t t = 0; t < args->n_token; t++)
        for (int j = 0; j < args->n_used; j++) {
            int64_t row = args->row ? args->row[t * args->n_used + j] : t * args->n_used + j;
            float weight = args->weight[t * args->n_used + j];
            if (row < 0) continue;
            for (int64_t i = 0; i < args->n_col; i++)
                args->out[t * args->n_col + i] += weight * args->x[row * args->n_col + i];
        }
    return OK;
}
