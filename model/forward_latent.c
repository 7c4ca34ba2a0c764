// Latent attention (MLA; DeepSeek-V2 technical report, section 2.1) in its absorbed form: every
// head attends to the same row [latent | rotated key part], its query being multiplied by the key
// up-projection beforehand and its result by the value up-projection afterwards.
#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

static enum status norm_latent(struct forward *f, const struct latent_spec *latent, const float *x,
                               int64_t n, int64_t n_col, const float *weight, void *out,
                               enum dtype out_dtype) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->norm(f->backend, &(struct norm_args){.kind = NORM_RMS,
                                                     .x = x,
                                                     .n_row = n,
                                                     .n_col = n_col,
                                                     .weight = weight,
                                                     .eps = latent->norm_eps,
                                                     .out = out,
                                                     .out_dtype = out_dtype}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

static enum status project(struct forward *f, const void *x, enum dtype x_dtype, int64_t n,
                           struct weight weight, float *out) {
    return forward_matmul(f, &(struct matmul_args){.x = x,
                                                   .x_dtype = x_dtype,
                                                   .x_stride = weight.n_col,
                                                   .n_token = n,
                                                   .weight = weight,
                                                   .out = out,
                                                   .out_dtype = DTYPE_F32,
                                                   .out_stride = weight.n_row});
}

// Columns of `x` into columns of `out`, [n_row, n_col] each.
static enum status copy_columns(struct forward *f, const float *x, int64_t x_stride, int64_t n_row,
                                int64_t n_col, void *out, enum dtype out_dtype,
                                int64_t out_stride) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->convert(f->backend, &(struct convert_args){.x = x,
                                                           .x_dtype = DTYPE_F32,
                                                           .x_stride = x_stride,
                                                           .n_row = n_row,
                                                           .n_col = n_col,
                                                           .out = out,
                                                           .out_dtype = out_dtype,
                                                           .out_stride = out_stride}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

enum status forward_latent_norm(struct forward *f, int layer, int64_t n) {
    const struct latent_spec *latent = &f->spec->layers[layer].latent;
    if (latent->query_rank == 0) return OK;
    return norm_latent(f, latent, f->buffers.query_down, n, latent->query_rank,
                       forward_weights(f, layer)->query_down_norm, f->buffers.query_latent,
                       f->activation);
}

enum status forward_latent_queries(struct forward *f, int layer, struct span heads, int64_t row,
                                   int64_t n, float *out) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_weights *w = forward_weights(f, layer);
    const struct latent_spec *latent = &f->spec->layers[layer].latent;
    const struct rope_spec *rope = &f->spec->ropes[f->spec->layers[layer].rope];
    int n_head = (int)heads.length, head_dim = latent->nope_dim + latent->rope_dim;
    int64_t width = (int64_t)n_head * head_dim, row_dim = latent->rank + latent->rope_dim;
    if (n_head == 0) return OK;
    TRY(project(f, latent->query_rank ? b->query_latent : b->normed, f->activation, n,
                weight_rows(w->query, heads.start * head_dim, width), b->heads));
    double begun = profile_begin(f->profile, PHASE_OTHER);
    int64_t angles = row * (rope->dim / 2);
    TRY(OPS(f)->rope(f->backend,
                     &(struct rope_args){.x = b->heads,
                                         .x_stride = width,
                                         .n_token = n,
                                         .n_head = n_head,
                                         .head_dim = head_dim,
                                         .first = latent->nope_dim,
                                         .rope_dim = rope->dim,
                                         .interleaved = rope->interleaved,
                                         .cos = b->cos[f->spec->layers[layer].rope] + angles,
                                         .sin = b->sin[f->spec->layers[layer].rope] + angles,
                                         .out = b->heads,
                                         .out_dtype = DTYPE_F32,
                                         .out_stride = width}));
    profile_end(f->profile, PHASE_OTHER, begun);
    struct matmul_args product[n_head];
    for (int h = 0; h < n_head; h++)
        product[h] = (struct matmul_args){.x = b->heads + (int64_t)h * head_dim,
                                          .x_dtype = DTYPE_F32,
                                          .x_stride = width,
                                          .n_token = n,
                                          .weight = w->absorb_key[heads.start + h],
                                          .out = out + h * row_dim,
                                          .out_dtype = DTYPE_F32,
                                          .out_stride = n_head * row_dim};
    TRY(forward_matmul_each(f, product, n_head));
    return copy_columns(f, b->heads + latent->nope_dim, head_dim, n * n_head, latent->rope_dim,
                        out + latent->rank, DTYPE_F32, row_dim);
}

enum status forward_latent_store(struct forward *f, int layer, int64_t row, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct latent_spec *latent = &l->latent;
    const struct rope_spec *rope = &f->spec->ropes[l->rope];
    enum dtype dtype = f->kv.shape.dtype;
    int64_t row_dim = latent->rank + latent->rope_dim, angles = row * (rope->dim / 2);
    char *store = kv_store_key(&f->kv, layer, row);
    TRY(norm_latent(f, latent, b->latent, n, latent->rank, forward_weights(f, layer)->latent_norm,
                    b->latent, DTYPE_F32));
    TRY(copy_columns(f, b->latent, latent->rank, n, latent->rank, store, dtype, row_dim));
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->rope(f->backend,
                     &(struct rope_args){.x = b->rotated,
                                         .x_stride = latent->rope_dim,
                                         .n_token = n,
                                         .n_head = 1,
                                         .head_dim = latent->rope_dim,
                                         .rope_dim = rope->dim,
                                         .interleaved = rope->interleaved,
                                         .cos = b->cos[l->rope] + angles,
                                         .sin = b->sin[l->rope] + angles,
                                         .out = store + dtype_bytes(dtype, latent->rank),
                                         .out_dtype = dtype,
                                         .out_stride = row_dim}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

enum status forward_latent_tile(struct forward *f, int layer, int64_t row, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = forward_weights(f, layer);
    int64_t width = (int64_t)l->n_head * l->head_dim;
    struct span all = {0, l->n_head};
    if (l->latent.query_rank) {
        TRY(project(f, b->normed, f->activation, n, w->query_down, b->query_down));
        TRY(forward_latent_norm(f, layer, n));
    }
    void *query = (char *)b->query + dtype_bytes(f->query_dtype, row * width);
    float *absorbed = f->query_dtype == DTYPE_F32 ? query : b->projected;
    TRY(forward_latent_queries(f, layer, all, row, n, absorbed));
    if (f->query_dtype != DTYPE_F32)
        TRY(copy_columns(f, absorbed, width, n, width, query, f->query_dtype, width));
    TRY(project(f, b->normed, f->activation, n, weight_rows(w->key, 0, l->latent.rank), b->latent));
    TRY(project(f, b->normed, f->activation, n,
                weight_rows(w->key, l->latent.rank, l->latent.rope_dim), b->rotated));
    return forward_latent_store(f, layer, row, n);
}

enum status forward_latent_values(struct forward *f, int layer, struct span heads, int64_t n,
                                  const float *attended, float *out) {
    const struct latent_spec *latent = &f->spec->layers[layer].latent;
    const struct layer_weights *w = forward_weights(f, layer);
    int n_head = (int)heads.length;
    if (n_head == 0) return OK;
    struct matmul_args product[n_head];
    for (int h = 0; h < n_head; h++)
        product[h] = (struct matmul_args){.x = attended + (int64_t)h * latent->rank,
                                          .x_dtype = DTYPE_F32,
                                          .x_stride = heads.length * latent->rank,
                                          .n_token = n,
                                          .weight = w->absorb_value[heads.start + h],
                                          .out = out + (int64_t)h * latent->value_dim,
                                          .out_dtype = DTYPE_F32,
                                          .out_stride = heads.length * latent->value_dim};
    return forward_matmul_each(f, product, n_head);
}
