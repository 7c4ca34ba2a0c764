// The lightning indexer of DeepSeek Sparse Attention (V3.2 technical report, equation 1): queries,
// keys and head weights from a layer's normed input, and what the ring is told of them.
#include "kernels/sparse.h"

#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

bool forward_selects(const struct forward *f, int layer, const struct forward_chunk *chunk) {
    const struct index_spec *index = &f->spec->layers[layer].index;
    return f->indexed && index->layout != INDEX_NONE && chunk->end > index->k;
}

static enum status project(struct forward *f, const void *x, int64_t n, struct weight weight,
                           float *out) {
    return forward_matmul(f, &(struct matmul_args){.x = x,
                                                   .x_dtype = f->activation,
                                                   .x_stride = weight.n_col,
                                                   .n_token = n,
                                                   .weight = weight,
                                                   .out = out,
                                                   .out_dtype = DTYPE_F32,
                                                   .out_stride = weight.n_row});
}

// Rotates heads x [n, n_head, dim] by the angles of tokens [row, row + n) into the index dtype; x
// is changed.
static enum status rotate(struct forward *f, const struct index_spec *index, float *x, int64_t row,
                          int64_t n, int n_head, void *out, float *scale) {
    const struct rope_spec *rope = &f->spec->ropes[index->rope];
    int dim = index->head_dim;
    int64_t angles = row * (rope->dim / 2), width = (int64_t)n_head * dim;
    bool scales = f->index_dtype == DTYPE_F8_E4M3;
    TRY(OPS(f)->rope(f->backend,
                     &(struct rope_args){.x = x,
                                         .x_stride = width,
                                         .n_token = n,
                                         .n_head = n_head,
                                         .head_dim = dim,
                                         .rope_dim = rope->dim,
                                         .interleaved = rope->interleaved,
                                         .cos = f->buffers.cos[index->rope] + angles,
                                         .sin = f->buffers.sin[index->rope] + angles,
                                         .spread = forward_spreads(f->index_dtype, dim),
                                         .out = scales ? x : out,
                                         .out_dtype = scales ? DTYPE_F32 : f->index_dtype,
                                         .out_stride = width}));
    if (!scales) return OK;
    return OPS(f)->quantize(f->backend, &(struct quantize_args){.x = x,
                                                                .n_row = n * n_head,
                                                                .n_col = dim,
                                                                .block = dim,
                                                                .power_of_two = true,
                                                                .out = out,
                                                                .scale = scale});
}

enum status forward_index_keys(struct forward *f, int layer, int64_t row, int64_t n) {
    const struct index_spec *index = &f->spec->layers[layer].index;
    const struct layer_weights *w = forward_weights(f, layer);
    float *x = f->buffers.index_row;
    double begun = profile_begin(f->profile, PHASE_INDEX);
    TRY(OPS(f)->norm(f->backend, &(struct norm_args){.kind = NORM_LAYER,
                                                     .x = x,
                                                     .n_row = n,
                                                     .n_col = index->head_dim,
                                                     .weight = w->index_key_norm,
                                                     .bias = w->index_key_bias,
                                                     .eps = index->norm_eps,
                                                     .out = x,
                                                     .out_dtype = DTYPE_F32}));
    TRY(rotate(f, index, x, row, n, 1, kv_store_index_key(&f->kv, layer, row),
               kv_store_index_scale(&f->kv, layer, row)));
    profile_end(f->profile, PHASE_INDEX, begun);
    return OK;
}

enum status forward_index_queries(struct forward *f, int layer, int64_t row, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct index_spec *index = &f->spec->layers[layer].index;
    int64_t n_head = index->n_head;
    int64_t at = dtype_bytes(f->index_dtype, row * n_head * index->head_dim);
    double begun = profile_begin(f->profile, PHASE_INDEX);
    TRY(rotate(f, index, b->index_heads, row, n, index->n_head, (char *)b->index_query + at,
               b->index_scale));
    TRY(OPS(f)->multiply(
        f->backend,
        &(struct multiply_args){.x = b->index_weight + row * n_head,
                                .n = n * n_head,
                                .by = f->index_dtype == DTYPE_F8_E4M3 ? b->index_scale : NULL,
                                .factor = index->scale}));
    profile_end(f->profile, PHASE_INDEX, begun);
    return OK;
}

enum status forward_index_tile(struct forward *f, int layer, const struct forward_chunk *chunk,
                               int64_t row, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct index_spec *index = &f->spec->layers[layer].index;
    const struct layer_weights *w = forward_weights(f, layer);
    if (!f->indexed || index->layout != INDEX_FULL) return OK;
    TRY(project(f, b->normed, n, w->index_key, b->index_row));
    TRY(forward_index_keys(f, layer, row, n));
    if (!forward_selects(f, layer, chunk)) return OK;
    TRY(project(f, index->from_latent ? b->query_latent : b->normed, n, w->index_query,
                b->index_heads));
    TRY(project(f, b->normed, n, w->index_weight, b->index_weight + row * index->n_head));
    return forward_index_queries(f, layer, row, n);
}

struct sparse_ring_args forward_sparse_args(const struct forward *f, int layer,
                                            const struct ring_attention_args *attention) {
    const struct forward_buffers *b = &f->buffers;
    int source = layer; // of the selection
    while (f->spec->layers[source].index.layout == INDEX_SHARED) source--;
    const struct index_spec *index = &f->spec->layers[source].index;
    const struct kv_layer *kv = &f->kv.layers[source];
    return (struct sparse_ring_args){
        .attention = *attention,
        .index = {.n_head = index->n_head,
                  .head_dim = index->head_dim,
                  .k = index->k,
                  .element_bytes = (int)dtype_bytes(f->index_dtype, 1),
                  .scale_bytes = kv->index_scale ? (int)sizeof(float) : 0},
        .index_dtype = f->index_dtype,
        .index_query = b->index_query,
        .index_weight = b->index_weight,
        .index_key = kv->index_key,
        .index_key_scale = kv->index_scale,
        .exchange = f->exchange,
        .reuse = source != layer,
        .candidate = b->candidate,
        .n_candidate = b->n_candidate,
    };
}
