// Where norms stand around the branches of a layer.
#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

enum status forward_hidden_norm(struct forward *f, int layer, const float *x, int64_t n,
                                const float *weight, const float *bias, void *out,
                                enum dtype out_dtype) {
    int64_t hidden = f->spec->n_hidden;
    if (!weight && out == (const void *)x) return OK;
    double begun = profile_begin(f->profile, PHASE_OTHER);
    if (weight)
        TRY(OPS(f)->norm(f->backend, &(struct norm_args){.kind = f->spec->layers[layer].norm,
                                                         .x = x,
                                                         .n_row = n,
                                                         .n_col = hidden,
                                                         .weight = weight,
                                                         .bias = bias,
                                                         .eps = f->spec->norm_eps,
                                                         .out = out,
                                                         .out_dtype = out_dtype}));
    else
        TRY(OPS(f)->convert(f->backend, &(struct convert_args){.x = x,
                                                               .x_dtype = DTYPE_F32,
                                                               .x_stride = hidden,
                                                               .n_row = n,
                                                               .n_col = hidden,
                                                               .out = out,
                                                               .out_dtype = out_dtype,
                                                               .out_stride = hidden}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

enum status forward_add(struct forward *f, float *x, const float *by, int64_t n) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->add(f->backend, &(struct add_args){.x = x, .n = n, .by = by}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

struct norm_weights {
    const float *weight, *bias;
};

static struct norm_weights branch_norm(const struct forward *f, int layer, enum branch branch) {
    const struct layer_weights *w = forward_weights(f, layer);
    if (branch == BRANCH_ATTENTION)
        return (struct norm_weights){w->attention_norm, w->attention_norm_bias};
    return (struct norm_weights){w->feed_forward_norm, w->feed_forward_norm_bias};
}

enum status forward_branch_begin(struct forward *f, int layer, enum branch branch, int64_t row,
                                 int64_t n) {
    bool after = f->spec->layers[layer].norm_place == NORM_POST;
    struct norm_weights norm = branch_norm(f, layer, branch);
    return forward_hidden_norm(f, layer, f->buffers.x + row * f->spec->n_hidden, n,
                               after ? NULL : norm.weight, norm.bias, f->buffers.normed,
                               f->activation);
}

float *forward_branch_out(const struct forward *f, int layer, int64_t row, bool *accumulate) {
    *accumulate = f->spec->layers[layer].norm_place != NORM_SANDWICH;
    return *accumulate ? f->buffers.x + row * f->spec->n_hidden : f->buffers.branch;
}

enum status forward_branch_end(struct forward *f, int layer, enum branch branch, int64_t row,
                               int64_t n) {
    const struct layer_weights *w = forward_weights(f, layer);
    float *x = f->buffers.x + row * f->spec->n_hidden, *out = f->buffers.branch;
    struct norm_weights norm = branch_norm(f, layer, branch);
    const float *second =
        branch == BRANCH_ATTENTION ? w->attention_out_norm : w->feed_forward_out_norm;
    switch (f->spec->layers[layer].norm_place) {
    case NORM_PRE:
        break;
    case NORM_POST:
        return forward_hidden_norm(f, layer, x, n, norm.weight, norm.bias, x, DTYPE_F32);
    case NORM_SANDWICH:
        TRY(forward_hidden_norm(f, layer, out, n, second, NULL, out, DTYPE_F32));
        return forward_add(f, x, out, n * f->spec->n_hidden);
    }
    return OK;
}
