// Prefill: embed, then per layer project -> ring attention -> project back -> feed-forward.
// Tokens pass in tiles wherever a layer acts on each token alone; only attention sees them all.
#include "model/forward.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/sparse.h"
#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

enum status forward_norm(struct forward *f, const float *x, int64_t n, int64_t n_col,
                         const float *weight, void *out, enum dtype out_dtype) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->norm(f->backend, &(struct norm_args){.kind = NORM_RMS,
                                                     .x = x,
                                                     .n_row = n,
                                                     .n_col = n_col,
                                                     .weight = weight,
                                                     .eps = f->spec->norm_eps,
                                                     .out = out,
                                                     .out_dtype = out_dtype}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

enum status forward_matmul(struct forward *f, const struct matmul_args *args) {
    double begun = profile_begin(f->profile, PHASE_MATMUL);
    TRY(OPS(f)->matmul(f->backend, args));
    profile_end(f->profile, PHASE_MATMUL, begun);
    if (!f->gather.in_flight || !f->comm->needs_progress) return OK;
    begun = profile_begin(f->profile, PHASE_GATHER_WAIT);
    TRY(f->comm->ops->progress(f->comm));
    profile_end(f->profile, PHASE_GATHER_WAIT, begun);
    return OK;
}

enum status forward_matmul_each(struct forward *f, const struct matmul_args *list, int n) {
    bool asked = f->gather.in_flight && f->comm->needs_progress; // after each of them
    for (int i = 0; asked && i < n; i++) TRY(forward_matmul(f, &list[i]));
    if (asked) return OK;
    double begun = profile_begin(f->profile, PHASE_MATMUL);
    TRY(OPS(f)->matmul_each(f->backend, &(struct matmul_each_args){list, n}));
    profile_end(f->profile, PHASE_MATMUL, begun);
    return OK;
}

// out = x W^T, or += as args say, where the columns of W may have come from the ranks in n groups.
static enum status add_product(struct forward *f, struct matmul_args args,
                               const struct weight *columns, int n) {
    const char *x = args.x;
    if (!columns) return forward_matmul(f, &args);
    for (int i = 0; i < n; i++) {
        if (columns[i].n_col == 0) continue;
        args.x = x + dtype_bytes(args.x_dtype, columns[i].first_col);
        args.weight = columns[i];
        TRY(forward_matmul(f, &args));
        args.bias = NULL;
        args.accumulate = true;
    }
    return OK;
}

struct rope_args forward_rope(const struct forward *f, int layer, struct rotation to,
                              const float *x, int64_t row, int64_t n, int n_head,
                              enum dtype dtype) {
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct rope_spec *rope = &f->spec->ropes[to.rope];
    int64_t width = (int64_t)n_head * l->head_dim, angles = row * (rope->dim / 2);
    return (struct rope_args){
        .x = x,
        .x_stride = width,
        .n_token = n,
        .n_head = n_head,
        .head_dim = l->head_dim,
        .rope_dim = rope->dim,
        .interleaved = rope->interleaved,
        .cos = f->buffers.cos[to.rope] + angles,
        .sin = f->buffers.sin[to.rope] + angles,
        .spread = forward_spreads(f->kv.shape.dtype, l->head_dim),
        .out = to.out,
        .out_dtype = dtype,
        .out_stride = width,
    };
}

enum status forward_rope_each(struct forward *f, const struct rope_args *list, int n) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->rope_each(f->backend, &(struct rope_each_args){list, n}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

static enum status set_rope(struct forward *f, int rope, const int64_t *position, int64_t n) {
    const struct rope_spec *spec = &f->spec->ropes[rope];
    int half = spec->dim / 2;
    int64_t bytes = n * half * (int64_t)sizeof(float);
    double inv_freq[ROPE_MAX_FACTORS], factor;
    rope_frequencies(spec, f->rope_length, inv_freq, &factor);
    float *table = malloc(2 * (size_t)bytes + 1);
    if (!table) FAIL(ERR_MEMORY, "no memory for the rope angles of %lld tokens", (long long)n);
    float *cosine = table, *sine = table + n * half;
#pragma omp parallel for if (n > FEW_TOKENS)
    for (int64_t i = 0; i < n; i++) {
        int64_t place = rope_position(&spec->map, position[i]);
        for (int j = 0; j < half; j++) {
            double angle = (double)place * inv_freq[j];
            cosine[i * half + j] = (float)(cos(angle) * factor);
            sine[i * half + j] = (float)(sin(angle) * factor);
        }
    }
    enum status status = OPS(f)->upload(f->backend, f->buffers.cos[rope], cosine, bytes);
    if (status == OK) status = OPS(f)->upload(f->backend, f->buffers.sin[rope], sine, bytes);
    free(table);
    return status;
}

// Rows of the table of learned positions.
static enum status set_learned(struct forward *f, const int64_t *position, int64_t n) {
    const struct model_spec *spec = f->spec;
    int64_t n_usable = spec->n_position - spec->first_position;
    enum status status = OK;
    int32_t *rows = malloc((size_t)n * sizeof *rows + 1);
    if (!rows) FAIL(ERR_MEMORY, "no memory for the positions of %lld tokens", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        if (position[i] >= n_usable)
            FAIL_OR(done, ERR_CONFIG,
                    "the network has learned %lld positions and reads no further: shorten the "
                    "document or set document.window",
                    (long long)n_usable);
        rows[i] = (int32_t)(spec->first_position + position[i]);
    }
    status = OPS(f)->upload(f->backend, f->buffers.position, rows, n * (int64_t)sizeof *rows);
done:
    free(rows);
    return status;
}

enum status forward_set_positions(struct forward *f, const int64_t *position, int64_t n) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    for (int i = 0; i < f->spec->n_rope; i++)
        if (f->spec->ropes[i].dim > 0) TRY(set_rope(f, i, position, n));
    if (f->spec->n_position) TRY(set_learned(f, position, n));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

// Projects a tile of normed tokens to heads, normalises each head where the layer asks for it and
// rotates, [n, n_head, head_dim].
struct head_projection {
    int n_head;
    struct weight weight;
    const float *bias, *head_norm;
    const struct rotation *rotations;
    int n_rotation;
    enum dtype dtype;
};
static enum status project_heads(struct forward *f, int layer, int64_t row, int64_t n,
                                 const struct head_projection *p) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    int64_t width = (int64_t)p->n_head * l->head_dim;
    TRY(forward_matmul(f, &(struct matmul_args){.x = b->normed,
                                                .x_dtype = f->activation,
                                                .x_stride = f->spec->n_hidden,
                                                .n_token = n,
                                                .weight = p->weight,
                                                .bias = p->bias,
                                                .out = b->projected,
                                                .out_dtype = DTYPE_F32,
                                                .out_stride = width}));
    if (p->head_norm) {
        TRY(forward_norm(f, b->projected, n * p->n_head, l->head_dim, p->head_norm, b->projected,
                         DTYPE_F32));
    }
    struct rope_args ropes[MODEL_MAX_PART];
    for (int i = 0; i < p->n_rotation; i++)
        ropes[i] =
            forward_rope(f, layer, p->rotations[i], b->projected, row, n, p->n_head, p->dtype);
    return forward_rope_each(f, ropes, p->n_rotation);
}

// Queries of the normed tokens [row, row + n) into buffers.query, which begins with token `first`.
static enum status project_queries(struct forward *f, int layer, int64_t first, int64_t row,
                                   int64_t n) {
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = forward_weights(f, layer);
    struct rotation rotations[MODEL_MAX_PART];
    int n_rotation = forward_query_rotations(f, layer, row - first, rotations);
    return project_heads(f, layer, row, n,
                         &(struct head_projection){l->n_head, w->query, w->query_bias,
                                                   w->query_norm, rotations, n_rotation,
                                                   f->query_dtype});
}

// Their keys and values into the store.
static enum status project_keys(struct forward *f, int layer, int64_t row, int64_t n) {
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = forward_weights(f, layer);
    struct rotation rotations[MODEL_MAX_PART];
    int n_rotation = forward_key_rotations(f, layer, row, rotations);
    TRY(project_heads(f, layer, row, n,
                      &(struct head_projection){l->n_kv_head, w->key, w->key_bias, w->key_norm,
                                                rotations, n_rotation, f->kv.shape.dtype}));
    return forward_matmul(f, &(struct matmul_args){.x = f->buffers.normed,
                                                   .x_dtype = f->activation,
                                                   .x_stride = f->spec->n_hidden,
                                                   .n_token = n,
                                                   .weight = w->value,
                                                   .bias = w->value_bias,
                                                   .out = kv_store_value(&f->kv, layer, row),
                                                   .out_dtype = f->kv.shape.dtype,
                                                   .out_stride = w->value.n_row});
}

// What attention needs of a tile, without queries where these come a slab at a time.
static enum status project_tile(struct forward *f, int layer, const struct forward_chunk *chunk,
                                int64_t row, int64_t n) {
    TRY(forward_branch_begin(f, layer, BRANCH_ATTENTION, row, n));
    if (f->spec->layers[layer].attention == ATTENTION_LATENT) {
        TRY(forward_latent_tile(f, layer, row, n));
    } else {
        if (chunk->n_token <= f->buffers.slab) TRY(project_queries(f, layer, 0, row, n));
        TRY(project_keys(f, layer, row, n));
    }
    return forward_index_tile(f, layer, chunk, row, n);
}

struct visibility forward_visibility(const struct model_spec *spec, int layer,
                                     const struct forward_chunk *chunk) {
    const struct layer_spec *l = &spec->layers[layer];
    struct visibility out = spec->causal ? VISIBILITY_CAUSAL : VISIBILITY_FULL;
    if (l->window) {
        out.back = spec->causal ? l->window - 1 : l->window / 2;
        if (!spec->causal) out.ahead = out.back;
        out.sinks = l->sinks;
    }
    if (!chunk) return out;
    out.n_document = chunk->n_document;
    out.document_end = chunk->document_end;
    return out;
}

struct ring_attention_args forward_attention_args(const struct forward *f, int layer,
                                                  const struct forward_chunk *chunk) {
    const struct layer_spec *l = &f->spec->layers[layer];
    return (struct ring_attention_args){.sequence = chunk->sequence,
                                        .query_begin = chunk->begin,
                                        .query_end = chunk->end,
                                        .n_head = l->n_head,
                                        .n_kv_head = l->n_kv_head,
                                        .head_dim = l->head_dim,
                                        .value_dim = l->value_dim,
                                        .scale = l->attention_scale,
                                        .visibility = forward_visibility(f->spec, layer, chunk),
                                        .key_begin = f->kv.layers[layer].block.key_begin,
                                        .query = f->buffers.query,
                                        .query_dtype = f->query_dtype,
                                        .key = f->kv.layers[layer].block.key,
                                        .value = f->kv.layers[layer].block.value,
                                        .kv_dtype = f->kv.shape.dtype};
}

// Tokens [first, first + n) of this rank: all, or a slab of one rank's, which owns every position.
static enum status attend(struct forward *f, int layer, const struct forward_chunk *chunk,
                          int64_t first, int64_t n) {
    struct ring_attention_args args = forward_attention_args(f, layer, chunk);
    args.out = f->buffers.attended;
    args.lse = f->buffers.lse;
    if (n < chunk->n_token) {
        args.query_begin = chunk->begin + first;
        args.query_end = args.query_begin + n;
        args.key_end = chunk->end;
    }
    if (f->spec->n_part) return forward_attend_parts(f, layer, chunk, &args);
    args.pass = f->passes[layer];
    if (!forward_selects(f, layer, chunk)) return ring_attention_run(&f->ring, &args);
    struct sparse_ring_args sparse = forward_sparse_args(f, layer, &args);
    enum status status = sparse_attention_run(&f->ring, &sparse);
    if (status == OK) status = OPS(f)->sync(f->backend); // a bad score is known now: of this layer
    if (status != OK) return status_context(status, "layer %d", layer);
    if (!f->study || sparse.reuse) return OK;
    bool opens = layer == 0 || !forward_selects(f, layer - 1, chunk);
    return selection_study_add(f->study, layer, &sparse, opens);
}

// x += output(attended) for tokens [row, row + n), normed as the layer has it. buffers.attended
// begins with token `first`.
static enum status project_back(struct forward *f, int layer, int64_t first, int64_t row,
                                int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = forward_weights(f, layer);
    int64_t width = w->output.n_col, hidden = f->spec->n_hidden;
    const float *input = b->attended + (row - first) * l->n_head * l->value_dim;
    if (l->attention == ATTENTION_LATENT) {
        struct span all = {0, l->n_head};
        TRY(forward_latent_values(f, layer, all, n, input, b->heads));
        input = b->heads;
    }
    const void *rounded = input;
    if (f->activation != DTYPE_F32) {
        double begun = profile_begin(f->profile, PHASE_OTHER);
        TRY(OPS(f)->convert(f->backend, &(struct convert_args){.x = input,
                                                               .x_dtype = DTYPE_F32,
                                                               .x_stride = width,
                                                               .n_row = n,
                                                               .n_col = width,
                                                               .out = b->product_input,
                                                               .out_dtype = f->activation,
                                                               .out_stride = width}));
        profile_end(f->profile, PHASE_OTHER, begun);
        rounded = b->product_input;
    }
    struct matmul_args back = {.x = rounded,
                               .x_dtype = f->activation,
                               .x_stride = width,
                               .n_token = n,
                               .weight = w->output,
                               .bias = w->output_bias,
                               .out_dtype = DTYPE_F32,
                               .out_stride = hidden};
    back.out = forward_branch_out(f, layer, row, &back.accumulate);
    TRY(add_product(f, back, w->output_columns, w->n_columns));
    return forward_branch_end(f, layer, BRANCH_ATTENTION, row, n);
}

enum status forward_gated(struct forward *f, int layer, int64_t row, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = forward_weights(f, layer);
    int64_t hidden = f->spec->n_hidden, width = l->n_feed_forward;
    struct matmul_args gate = {.x = b->normed,
                               .x_dtype = f->activation,
                               .x_stride = hidden,
                               .n_token = n,
                               .weight = w->gate,
                               .bias = w->gate_bias,
                               .out = b->gate,
                               .out_dtype = DTYPE_F32,
                               .out_stride = width};
    struct matmul_args up = gate;
    bool plain = l->feed_forward == FEED_FORWARD_PLAIN;
    up.weight = w->up;
    up.bias = w->up_bias;
    up.out = b->up;
    if (!plain) TRY(forward_matmul(f, &gate));
    TRY(forward_matmul(f, &up));
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->gate(f->backend, &(struct gate_args){.activation = l->activation,
                                                     .gate = plain ? b->up : b->gate,
                                                     .up = plain ? NULL : b->up,
                                                     .gate_stride = width,
                                                     .up_stride = width,
                                                     .n_token = n,
                                                     .n_col = width,
                                                     .out = b->gated,
                                                     .out_dtype = f->activation}));
    profile_end(f->profile, PHASE_OTHER, begun);
    struct matmul_args down = {.x = b->gated,
                               .x_dtype = f->activation,
                               .x_stride = width,
                               .n_token = n,
                               .weight = w->down,
                               .bias = w->down_bias,
                               .out_dtype = DTYPE_F32,
                               .out_stride = hidden};
    down.out = forward_branch_out(f, layer, row, &down.accumulate);
    return add_product(f, down, w->down_columns, w->n_columns);
}

// Attention and, but for experts, the feed-forward of tokens [first, end).
static enum status prefill_slab(struct forward *f, int layer, const struct forward_chunk *chunk,
                                int64_t first, int64_t end) {
    int64_t tile = f->buffers.tile;
    bool experts = f->spec->layers[layer].feed_forward == FEED_FORWARD_EXPERTS;
    bool whole = chunk->n_token <= f->buffers.slab;
    for (int64_t row = first; row < end && !whole; row += tile) {
        int64_t count = end - row < tile ? end - row : tile;
        TRY(forward_branch_begin(f, layer, BRANCH_ATTENTION, row, count));
        TRY(project_queries(f, layer, first, row, count));
    }
    TRY(attend(f, layer, chunk, first, end - first));
    for (int64_t row = first; row < end; row += tile) {
        int64_t count = end - row < tile ? end - row : tile;
        TRY(project_back(f, layer, first, row, count));
        if (experts) continue;
        TRY(forward_branch_begin(f, layer, BRANCH_FEED_FORWARD, row, count));
        TRY(forward_gated(f, layer, row, count));
        TRY(forward_branch_end(f, layer, BRANCH_FEED_FORWARD, row, count));
    }
    return OK;
}

static enum status prefill_layer(struct forward *f, int layer, const struct forward_chunk *chunk) {
    int64_t tile = f->buffers.tile, slab = f->buffers.slab, n = chunk->n_token, done = 0;
    TRY(kv_store_enter(&f->kv, layer));
    for (int64_t row = 0; row < n; row += tile) {
        TRY(project_tile(f, layer, chunk, row, n - row < tile ? n - row : tile));
    }
    do { // once also where this rank has no tokens: it takes part in the exchange
        int64_t end = n - done < slab ? n : done + slab;
        TRY(prefill_slab(f, layer, chunk, done, end));
        done = end;
    } while (done < n);
    TRY(kv_store_leave(&f->kv, layer));
    bool experts = f->spec->layers[layer].feed_forward == FEED_FORWARD_EXPERTS;
    return experts ? forward_experts(f, layer, chunk) : OK;
}

// Waits for a stage of sharded weights and sends for the next, which flies during this one's work.
static enum status turn_to_stage(struct forward *f, int stage, int n_stage) {
    if (!f->gather.weights) return OK;
    TRY(weight_gather_wait(&f->gather, stage));
    return stage + 1 < n_stage ? weight_gather_start(&f->gather, stage + 1) : OK;
}

enum status forward_prefill(struct forward *f, const struct forward_chunk *chunk) {
    int n_layer = f->spec->n_layer, n_stage = n_layer + chunk->score;
    if (f->gather.weights) TRY(weight_gather_start(&f->gather, 0));
    TRY(forward_embed(f, chunk->token, chunk->n_token));
    for (int layer = 0; layer < n_layer; layer++) {
        beacon_layer(f->profile->beacon, layer + 1, n_layer);
        TRY(turn_to_stage(f, layer, n_stage));
        if (f->gather.weights) f->whole = &f->gather.buffers[layer % 2].layer;
        TRY(prefill_layer(f, layer, chunk));
    }
    beacon_layer(f->profile->beacon, 0, n_layer);
    f->whole = NULL;
    return OK;
}

enum status forward_whole_head(struct forward *f, struct weight *out) {
    int stage = f->spec->n_layer;
    TRY(turn_to_stage(f, stage, stage));
    *out = f->gather.weights ? f->gather.buffers[stage % 2].head : f->weights.head;
    return OK;
}

enum status forward_final_norm(struct forward *f, int64_t row, int64_t n, void *out,
                               enum dtype out_dtype) {
    return forward_hidden_norm(f, f->spec->n_layer - 1, f->buffers.x + row * f->spec->n_hidden, n,
                               f->weights.final_norm, f->weights.final_norm_bias, out, out_dtype);
}
