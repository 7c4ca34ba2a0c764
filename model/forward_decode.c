// Decode on P ranks (Helix parallelism, Bhatia et al.): every rank holds the same residual x.
// Per layer: rows of q|k|v split, one all-gather; attention over sharded K/V, one all-to-all that
// leaves each rank its own heads; columns of the output split, one all-reduce; gate and up rows and
// down columns split, one all-reduce. Partial sums land in x: rank 0 adds to the residual, the
// others replace theirs, and the all-reduce makes them equal again.
#include "model/forward.h"

#define OPS(f) ((f)->backend->ops)

static struct span my_piece(const struct forward *f, int64_t n) {
    return partition_piece(n, f->comm->size, f->comm->rank);
}

static enum status convert_rows(struct forward *f, const void *x, enum dtype x_dtype, void *out,
                                enum dtype out_dtype, int64_t n) {
    double begun = profile_begin();
    TRY(OPS(f)->convert(f->backend, &(struct convert_args){.x = x,
                                                           .x_dtype = x_dtype,
                                                           .x_stride = n,
                                                           .n_row = 1,
                                                           .n_col = n,
                                                           .out = out,
                                                           .out_dtype = out_dtype,
                                                           .out_stride = n}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

// out[0..piece.length) = rows `piece` of the weight times the normed token.
static enum status project_piece(struct forward *f, const void *normed, struct weight weight,
                                 const float *bias, struct span piece, float *out) {
    if (piece.length == 0) return OK;
    return forward_matmul(
        f, &(struct matmul_args){.x = normed,
                                 .x_dtype = f->activation,
                                 .x_stride = weight.n_col,
                                 .n_token = 1,
                                 .weight = weight_rows(weight, piece.start, piece.length),
                                 .bias = bias ? bias + piece.start : NULL,
                                 .out = out,
                                 .out_dtype = DTYPE_F32,
                                 .out_stride = piece.length});
}

static enum status all_gather(struct forward *f, const void *send, void *receive,
                              const int64_t *bytes) {
    TRY(OPS(f)->sync(f->backend));
    double begun = profile_begin();
    TRY(f->comm->ops->all_gather(f->comm, send, receive, bytes));
    profile_end(f->profile, PHASE_RING_WAIT, begun);
    return OK;
}

// q, k and v of the token on every rank: buffers.projected, .key and .value.
static enum status project_token(struct forward *f, int layer) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_weights *w = &f->weights.layers[layer];
    const struct weight weights[3] = {w->query, w->key, w->value};
    const float *bias[3] = {w->query_bias, w->key_bias, w->value_bias};
    float *out[3] = {b->projected, b->key, b->value};
    int size = f->comm->size;
    float *split = size == 1 ? NULL : b->split;
    for (int i = 0; i < 3; i++) {
        struct span piece = my_piece(f, weights[i].n_row);
        TRY(project_piece(f, b->normed, weights[i], bias[i], piece, split ? split : out[i]));
        if (split) split += piece.length;
    }
    if (size == 1) return OK;
    int64_t bytes[size];
    for (int rank = 0; rank < size; rank++) {
        bytes[rank] = 0;
        for (int i = 0; i < 3; i++) {
            bytes[rank] += partition_piece(weights[i].n_row, size, rank).length * 4;
        }
    }
    TRY(all_gather(f, b->split, b->gathered, bytes));
    const float *from = b->gathered;
    for (int rank = 0; rank < size; rank++) {
        for (int i = 0; i < 3; i++) {
            struct span piece = partition_piece(weights[i].n_row, size, rank);
            if (piece.length == 0) continue;
            TRY(convert_rows(f, from, DTYPE_F32, out[i] + piece.start, DTYPE_F32, piece.length));
            from += piece.length;
        }
    }
    return OK;
}

static enum status rotate_and_store(struct forward *f, int layer,
                                    const struct forward_chunk *chunk) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = &f->weights.layers[layer];
    if (w->query_norm) {
        TRY(forward_norm(f, b->projected, l->n_head, l->head_dim, w->query_norm, b->projected,
                         DTYPE_F32));
    }
    TRY(forward_rope(f, layer, b->projected, 0, 1, l->n_head, b->query, f->query_dtype));
    if (chunk->n_token == 0) return OK; // another rank stores this token
    if (w->key_norm) {
        TRY(forward_norm(f, b->key, l->n_kv_head, l->head_dim, w->key_norm, b->key, DTYPE_F32));
    }
    TRY(forward_rope(f, layer, b->key, 0, 1, l->n_kv_head,
                     kv_store_key(&f->kv, layer, chunk->first_row), f->kv.dtype));
    return convert_rows(f, b->value, DTYPE_F32, kv_store_value(&f->kv, layer, chunk->first_row),
                        f->kv.dtype, (int64_t)l->n_kv_head * l->head_dim);
}

static enum status add_attention_mass(struct forward *f, int layer,
                                      const struct forward_chunk *chunk) {
    const struct layer_spec *l = &f->spec->layers[layer];
    int n_layer = f->spec->n_layer;
    // Every key held is at or before the token: no mask.
    int64_t n_key = chunk->first_row + chunk->n_token;
    int64_t width = (int64_t)l->n_kv_head * l->head_dim;
    if (n_key == 0) return OK;
    double begun = profile_begin();
    struct attention_args attention = {.n_query = 1,
                                       .n_key = n_key,
                                       .n_head = l->n_head,
                                       .n_kv_head = l->n_kv_head,
                                       .head_dim = l->head_dim,
                                       .value_dim = l->head_dim,
                                       .scale = l->attention_scale,
                                       .query = f->buffers.query,
                                       .query_dtype = f->query_dtype,
                                       .query_stride = (int64_t)l->n_head * l->head_dim,
                                       .key = f->kv.layers[layer].key,
                                       .value = f->kv.layers[layer].value,
                                       .kv_dtype = f->kv.dtype,
                                       .key_stride = width,
                                       .value_stride = width,
                                       .lse = f->buffers.lse};
    float factor = 1.0f / (float)(l->n_head * (n_layer - n_layer / 2));
    TRY(OPS(f)->attention_mass(f->backend, &(struct attention_mass_args){
                                               .attention = attention,
                                               .factor = factor,
                                               .mass = f->buffers.mass,
                                           }));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

static enum status attend_token(struct forward *f, int layer, const struct forward_chunk *chunk,
                                bool add_mass) {
    struct ring_attention_args args = forward_attention_args(f, layer, chunk);
    bool upper = layer >= f->spec->n_layer / 2;
    TRY(decode_attention_run(&f->ring, &args, f->buffers.attended,
                             add_mass && upper ? f->buffers.lse : NULL));
    return add_mass && upper ? add_attention_mass(f, layer, chunk) : OK;
}

// x = (rank 0: x +) columns [start, start + length) of the weight times `input`; then x is summed
// over the ranks. input holds the columns from `start` on.
static enum status sum_columns(struct forward *f, struct weight weight, const float *bias,
                               struct span columns, const void *input) {
    struct forward_buffers *b = &f->buffers;
    bool first = f->comm->rank == 0;
    if (columns.length > 0) {
        TRY(forward_matmul(f, &(struct matmul_args){
                                  .x = input,
                                  .x_dtype = f->activation,
                                  .x_stride = columns.length,
                                  .n_token = 1,
                                  .weight = weight_columns(weight, columns.start, columns.length),
                                  .bias = first ? bias : NULL,
                                  .accumulate = first,
                                  .out = b->x,
                                  .out_dtype = DTYPE_F32,
                                  .out_stride = weight.n_row}));
    } else if (!first) {
        TRY(OPS(f)->upload(f->backend, b->x, f->zeros, weight.n_row * 4));
    }
    if (f->comm->size == 1) return OK;
    TRY(OPS(f)->sync(f->backend));
    double begun = profile_begin();
    TRY(f->comm->ops->all_reduce(f->comm, b->x, weight.n_row, REDUCE_SUM_F32));
    profile_end(f->profile, PHASE_RING_WAIT, begun);
    return OK;
}

// Quantised rows can be cut only at blocks: the columns of this rank's heads are widened to whole
// blocks and the foreign elements of the input are zero.
static enum status project_heads_back(struct forward *f, int layer) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    struct weight output = f->weights.layers[layer].output;
    int64_t block = dtype_info[output.dtype].block_elements;
    struct span heads = my_piece(f, l->n_head);
    int64_t begin = heads.start * l->head_dim, n = heads.length * l->head_dim;
    struct span columns = {.start = begin / block * block};
    columns.length = n ? (begin + n + block - 1) / block * block - columns.start : 0;
    if (columns.length != n) {
        TRY(OPS(f)->upload(f->backend, b->product_input, f->zeros,
                           dtype_bytes(f->activation, columns.length)));
    }
    if (n) {
        void *input = (char *)b->product_input + dtype_bytes(f->activation, begin - columns.start);
        TRY(convert_rows(f, b->attended, DTYPE_F32, input, f->activation, n));
    }
    return sum_columns(f, output, f->weights.layers[layer].output_bias, columns, b->product_input);
}

static enum status feed_forward_token(struct forward *f, int layer) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = &f->weights.layers[layer];
    int64_t block = dtype_info[w->down.dtype].block_elements;
    struct span units = my_piece(f, l->n_feed_forward / block);
    struct span piece = {units.start * block, units.length * block};
    TRY(forward_norm(f, b->x, 1, f->spec->n_hidden, w->feed_forward_norm, b->normed,
                     f->activation));
    TRY(project_piece(f, b->normed, w->gate, NULL, piece, b->gate));
    TRY(project_piece(f, b->normed, w->up, NULL, piece, b->up));
    double begun = profile_begin();
    TRY(OPS(f)->gate(f->backend, &(struct gate_args){.activation = l->activation,
                                                     .gate = b->gate,
                                                     .up = b->up,
                                                     .gate_stride = piece.length,
                                                     .up_stride = piece.length,
                                                     .n_token = piece.length ? 1 : 0,
                                                     .n_col = piece.length,
                                                     .out = b->gated,
                                                     .out_dtype = f->activation}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return sum_columns(f, w->down, NULL, piece, b->gated);
}

enum status forward_decode(struct forward *f, const struct forward_chunk *chunk, bool add_mass) {
    struct forward_buffers *b = &f->buffers;
    double begun = profile_begin();
    TRY(OPS(f)->embed(f->backend, &(struct embed_args){.table = f->weights.embedding,
                                                       .token = b->token,
                                                       .n_token = 1,
                                                       .scale = f->spec->embedding_scale,
                                                       .out = b->x}));
    profile_end(f->profile, PHASE_OTHER, begun);
    for (int layer = 0; layer < f->spec->n_layer; layer++) {
        TRY(forward_norm(f, b->x, 1, f->spec->n_hidden, f->weights.layers[layer].attention_norm,
                         b->normed, f->activation));
        TRY(project_token(f, layer));
        TRY(rotate_and_store(f, layer, chunk));
        TRY(attend_token(f, layer, chunk, add_mass));
        TRY(project_heads_back(f, layer));
        TRY(feed_forward_token(f, layer));
    }
    return OK;
}

enum status forward_logits(struct forward *f, const void *normed) {
    struct forward_buffers *b = &f->buffers;
    int size = f->comm->size;
    int64_t n_vocab = f->spec->n_vocab, bytes[size];
    for (int rank = 0; rank < size; rank++) {
        bytes[rank] = partition_piece(n_vocab, size, rank).length * 4;
    }
    TRY(project_piece(f, normed, f->weights.head, NULL, my_piece(f, n_vocab), b->logits_split));
    return all_gather(f, b->logits_split, b->logits, bytes);
}
