// Mixture of experts (DeepSeek-V3 technical report, equations 12 to 16): a gate chooses experts for
// each token, their rows travel to the ranks that own the experts and the products come home.
#include "kernels/experts.h"

#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

enum { MAX_ROUTED_ROWS = 16384 }; // of all ranks in one dispatch: bounds what one rank can receive

int64_t forward_expert_tile(const struct model_spec *spec, int size, int64_t tile) {
    int64_t n_used = 1;
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        if (l->feed_forward == FEED_FORWARD_EXPERTS && l->experts.n_used > n_used)
            n_used = l->experts.n_used;
    }
    int64_t most = MAX_ROUTED_ROWS / (size * n_used);
    if (most < 1) most = 1;
    return tile < most ? tile : most;
}

// The experts of tokens [row, row + n), normed in buffers.router_input.
static enum status route(struct forward *f, int layer, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct expert_spec *e = &f->spec->layers[layer].experts;
    const struct layer_weights *w = forward_weights(f, layer);
    int64_t hidden = f->spec->n_hidden;
    TRY(forward_matmul(f, &(struct matmul_args){.x = b->router_input,
                                                .x_dtype = DTYPE_F32,
                                                .x_stride = hidden,
                                                .n_token = n,
                                                .weight = w->router,
                                                .out = b->router,
                                                .out_dtype = DTYPE_F32,
                                                .out_stride = e->n_expert}));
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->expert_gate(f->backend, &(struct expert_gate_args){
                                            .scoring = e->softmax ? EXPERT_SOFTMAX : EXPERT_SIGMOID,
                                            .logit = b->router,
                                            .bias = w->router_bias,
                                            .n_token = n,
                                            .n_expert = e->n_expert,
                                            .n_used = e->n_used,
                                            .n_group = e->n_group,
                                            .n_group_used = e->n_group_used,
                                            .normalise = e->normalise,
                                            .scale = e->scale,
                                            .expert = b->expert,
                                            .weight = b->expert_weight,
                                        }));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

static enum status grouped(struct forward *f, int n_group, const int64_t *first_row,
                           const struct weight *weight, const void *x, float *out) {
    double begun = profile_begin(f->profile, PHASE_MATMUL);
    TRY(OPS(f)->grouped_matmul(f->backend, &(struct grouped_matmul_args){.n_group = n_group,
                                                                         .first_row = first_row,
                                                                         .weight = weight,
                                                                         .x = x,
                                                                         .x_dtype = f->activation,
                                                                         .out = out}));
    profile_end(f->profile, PHASE_MATMUL, begun);
    return OK;
}

// buffers.expert_gated = activation(expert_gate) * expert_up for n rows.
static enum status gate_experts(struct forward *f, int layer, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    int64_t width = l->experts.n_feed_forward;
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->gate(f->backend, &(struct gate_args){.activation = l->activation,
                                                     .gate = b->expert_gate,
                                                     .up = b->expert_up,
                                                     .gate_stride = width,
                                                     .up_stride = width,
                                                     .n_token = n,
                                                     .n_col = width,
                                                     .out = b->expert_gated,
                                                     .out_dtype = f->activation}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

// out = down(activation(gate(x)) * up(x)) for rows grouped by expert.
static enum status run_experts(struct forward *f, int layer, int n_group, const int64_t *first_row,
                               struct weight *const weights[N_EXPERT_MATRIX], const void *x) {
    struct forward_buffers *b = &f->buffers;
    TRY(grouped(f, n_group, first_row, weights[0], x, b->expert_gate));
    TRY(grouped(f, n_group, first_row, weights[1], x, b->expert_up));
    TRY(gate_experts(f, layer, first_row[n_group]));
    return grouped(f, n_group, first_row, weights[2], b->expert_gated, b->expert_out);
}

static enum status experts_tile(struct forward *f, int layer, int64_t row, int64_t n) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_weights *w = forward_weights(f, layer);
    int64_t hidden = f->spec->n_hidden;
    float *x = b->x + row * hidden;
    const void *rows;
    TRY(forward_norm(f, x, n, hidden, w->feed_forward_norm, b->router_input, DTYPE_F32));
    TRY(route(f, layer, n));
    TRY(forward_norm(f, x, n, hidden, w->feed_forward_norm, b->normed, f->activation));
    TRY(expert_exchange_dispatch(&f->experts, b->normed, b->expert, n, &rows));
    TRY(run_experts(f, layer, w->n_owned, f->experts.first_row, w->experts, rows));
    TRY(expert_exchange_combine(&f->experts, b->expert_out, b->expert_weight, x));
    if (f->spec->layers[layer].experts.n_shared == 0) return OK;
    return forward_gated(f, layer, row, n);
}

enum status forward_experts(struct forward *f, int layer, const struct forward_chunk *chunk) {
    int64_t most = 0; // tokens of one rank: all ranks dispatch equally often
    for (int rank = 0; rank < f->comm->size; rank++) {
        int64_t n = sequence_count(chunk->sequence, rank, chunk->begin, chunk->end);
        if (n > most) most = n;
    }
    for (int64_t row = 0; row < most; row += f->buffers.expert_tile) {
        int64_t n = chunk->n_token - row;
        if (n > f->buffers.expert_tile) n = f->buffers.expert_tile;
        TRY(experts_tile(f, layer, n > 0 ? row : 0, n > 0 ? n : 0));
    }
    return OK;
}

// out[j] = x[j] W^T with matrix m of the j-th expert chosen for the token; zeros where another rank
// owns it.
static enum status chosen(struct forward *f, int layer, int m, const void *x, int64_t x_stride,
                          float *out) {
    const struct layer_weights *w = forward_weights(f, layer);
    double begun = profile_begin(f->profile, PHASE_MATMUL);
    TRY(OPS(f)->chosen_matmul(f->backend, &(struct chosen_matmul_args){
                                              .n_row = f->spec->layers[layer].experts.n_used,
                                              .expert = f->buffers.expert,
                                              .first_expert = w->first_expert,
                                              .n_expert = w->n_owned,
                                              .weight = w->experts[m],
                                              .x = x,
                                              .x_dtype = f->activation,
                                              .x_stride = x_stride,
                                              .out = out,
                                              .n_product = m == 0 ? f->buffers.expert_count : NULL,
                                          }));
    profile_end(f->profile, PHASE_MATMUL, begun);
    return OK;
}

// The token's experts run as rows, all of them the token's; the host never learns which they are.
enum status forward_experts_token(struct forward *f, int layer) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    int64_t hidden = f->spec->n_hidden, width = l->experts.n_feed_forward;
    int n_used = l->experts.n_used;
    if (forward_weights(f, layer)->n_owned == 0) return OK;
    TRY(route(f, layer, 1));
    TRY(chosen(f, layer, 0, b->normed, 0, b->expert_gate));
    TRY(chosen(f, layer, 1, b->normed, 0, b->expert_up));
    TRY(gate_experts(f, layer, n_used));
    TRY(chosen(f, layer, 2, b->expert_gated, width, b->expert_out));
    return OPS(f)->expert_combine(f->backend,
                                  &(struct expert_combine_args){.n_token = 1,
                                                                .n_used = n_used,
                                                                .n_col = hidden,
                                                                .x = b->expert_out,
                                                                .weight = b->expert_weight,
                                                                .out = b->x});
}
