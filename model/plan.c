#include "model/plan.h"

#include <stdlib.h>
#include <string.h>

// What a process holds besides model buffers, measured with `halka run` (proportional set size):
// MPI, a tokenizer and what oneDNN generates and keeps; and libraries, which the ranks of a node
// share.
enum { BASE_BYTES = 16 << 20, LIBRARY_BYTES = 14 << 20 };

// Host memory for a token of the whole document: its id, its log-probability as gathered, shifted,
// of the window and of the document, 4 bytes each; on rank 0 its text and where that begins and
// ends. Sessions that only encode have no log-probabilities. For one of a rank's own tokens: its
// position as key, as query and in the session.
enum { ENCODE_TABLE_BYTES = 4 + 4 + 2 * 8, OWN_TABLE_BYTES = 3 * 8 };
enum { TABLE_BYTES = ENCODE_TABLE_BYTES + 4 * 4 };

static struct attention_shape widest_attention(const struct model_spec *spec, enum dtype query,
                                               enum dtype kv) {
    struct attention_shape shape = {.query_bytes = (int)dtype_bytes(query, 1),
                                    .kv_bytes = (int)dtype_bytes(kv, 1)};
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        if (l->n_head > shape.n_head) shape.n_head = l->n_head;
        if (l->n_kv_head > shape.n_kv_head) shape.n_kv_head = l->n_kv_head;
        if (l->head_dim > shape.head_dim) shape.head_dim = l->head_dim;
        if (l->value_dim > shape.value_dim) shape.value_dim = l->value_dim;
        shape.value_in_key = l->attention == ATTENTION_LATENT;
    }
    return shape;
}

static struct index_shape widest_index(const struct model_spec *spec, enum dtype dtype) {
    struct index_shape shape = {.element_bytes = (int)dtype_bytes(dtype, 1),
                                .scale_bytes = dtype == DTYPE_F8_E4M3 ? (int)sizeof(float) : 0};
    for (int i = 0; i < spec->n_layer; i++) {
        const struct index_spec *index = &spec->layers[i].index;
        if (index->layout != INDEX_FULL) continue;
        if (index->n_head > shape.n_head) shape.n_head = index->n_head;
        if (index->head_dim > shape.head_dim) shape.head_dim = index->head_dim;
        if (index->k > shape.k) shape.k = index->k;
    }
    return shape;
}

static enum dtype index_dtype(const struct session_options *options) {
    switch (options->index_precision) {
    case INDEX_FP8:
        return DTYPE_F8_E4M3;
    case INDEX_BF16:
        return DTYPE_BF16;
    case INDEX_FP32:
        return DTYPE_F32;
    case INDEX_PRECISION_AUTO:
        break;
    }
    return options->precision == PRECISION_FP32 ? DTYPE_F32 : DTYPE_F8_E4M3;
}

// Whether rounding to bf16 changes few of the checkpoint's weights: most bytes of its matrices are
// of a format that bf16 holds.
static bool holds_bf16(const struct checkpoint *checkpoint) {
    int64_t held = 0, others = 0;
    for (int64_t i = 0; i < checkpoint->n_tensor; i++) {
        const struct tensor *t = &checkpoint->tensors[i];
        if (t->n_dim < 2) continue;
        bool holds = t->dtype == DTYPE_BF16 || t->dtype == DTYPE_F8_E4M3;
        *(holds ? &held : &others) += t->bytes;
    }
    return held > others;
}

// What the options leave open about arithmetic.
static void resolve_precision(const struct checkpoint *checkpoint, const struct backend *backend,
                              const struct session_options *options, struct session_sizes *s) {
    s->precision = options->precision;
    s->kv_precision = options->kv_precision;
    if (s->kv_precision == PRECISION_AUTO) {
        s->kv_precision = s->precision == PRECISION_FP32 ? PRECISION_FP32 : PRECISION_BF16;
    }
    s->kv.dtype = s->kv_precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
    // `auto` on a processor takes bf16 where it pays most and costs least, in attention. A GPU
    // multiplies bf16 ten times as fast as fp32: it takes bf16 everywhere where the weights are of
    // bf16, and tf32 where they would be rounded (SmolLM2 in Q4_1: log-probabilities moved by
    // 0.25).
    bool bf16_attention = backend->bf16_products && s->kv.dtype == DTYPE_BF16;
    s->forward.query = bf16_attention ? DTYPE_BF16 : DTYPE_F32;
    if (s->precision == PRECISION_FP32) s->forward.query = DTYPE_F32;
    if (s->precision == PRECISION_BF16) s->forward.query = DTYPE_BF16;
    if (s->precision == PRECISION_AUTO) {
        bool device = backend->memory == MEMORY_DEVICE && backend->bf16_products;
        s->precision = device && holds_bf16(checkpoint) ? PRECISION_BF16 : PRECISION_FP32;
        s->tf32 = device && s->precision == PRECISION_FP32;
    }
    s->forward.activation = s->precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

static struct expert_exchange_shape measure_experts(const struct model_spec *spec,
                                                    enum dtype activation, int64_t max_tokens) {
    struct expert_exchange_shape shape = {.max_tokens = max_tokens,
                                          .row_bytes = dtype_bytes(activation, spec->n_hidden),
                                          .n_col = spec->n_hidden};
    for (int i = 0; i < spec->n_layer; i++) {
        if (spec->layers[i].feed_forward != FEED_FORWARD_EXPERTS) continue;
        shape.n_expert = spec->layers[i].experts.n_expert; // the same in every layer
        shape.n_used = spec->layers[i].experts.n_used;
    }
    return shape;
}

static enum status choose_layout(const struct model_spec *spec, struct session_sizes *s, int size,
                                 const struct attention_rates *rates) {
    struct layer_kind *kinds = calloc((size_t)spec->n_layer, sizeof *kinds);
    struct layout_case args = {.kinds = kinds,
                               .size = size,
                               .n_token = s->forward.n_all,
                               .chunk = s->chunk,
                               .rates = *rates};
    if (!kinds) FAIL(ERR_MEMORY, "no memory for the kinds of %d layers", spec->n_layer);
    for (int i = 0; i < spec->n_layer; i++) {
        struct visibility v = forward_visibility(spec, i, NULL);
        int k = 0; // layers of one network differ in what they see
        while (k < args.n_kind &&
               (kinds[k].visibility.back != v.back || kinds[k].visibility.sinks != v.sinks))
            k++;
        if (k == args.n_kind) kinds[args.n_kind++] = (struct layer_kind){v, s->attention, 0};
        kinds[k].n_layer++;
    }
    s->layout = layout_choose(&args);
    free(kinds);
    return OK;
}

// The most key rows that pass-halo receives at once. Packed documents are as long as they like:
// where a layer sees all of them, a shard, as the ring does.
static int64_t halo_rows(const struct model_spec *spec, const struct session_sizes *s) {
    int64_t most = 0, shard = kv_store_block_rows(spec, &s->kv);
    if (spec->n_part) return shard; // each part travels as its bytes say
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        struct visibility v = forward_visibility(spec, i, NULL);
        int64_t n = l->window ? volume_halo_rows(&v, s->layout.layout, shard) : shard;
        if (n > most) most = n;
    }
    return most;
}

int64_t session_most_sent(bool indexed) {
    return indexed ? SCORES_MAX_QUERIES : PASS_Q_MAX_QUERIES;
}

static int64_t measure_ring(const struct model_spec *spec, const struct session_sizes *s,
                            enum memory memory, int size) {
    const int64_t most_sent = session_most_sent(s->forward.indexed);
    const struct ring_extent extent = {
        .memory = memory,
        .size = size,
        .shard = kv_store_block_rows(spec, &s->kv),
        .query = s->forward.n_token,
        .all_query = s->chunk < most_sent ? s->chunk : most_sent,
        .decode_query = 1,
        .halo = halo_rows(spec, s),
    };
    int64_t dense = ring_attention_workspace_bytes(&s->attention, &extent);
    if (!s->forward.indexed) return dense;
    int64_t sparse = sparse_attention_workspace_bytes(&s->attention, &s->index, &extent);
    return sparse > dense ? sparse : dense;
}

static void measure_rows(struct session_sizes *s, int64_t n, int size) {
    // An extent gives a rank at most two tokens more than its share (two zigzag pieces); besides
    // the chunks there are a question and an answer.
    int64_t extra = size == 1 ? 0 : 2 * (ceil_div(n, s->chunk) + 8);
    s->kv.at_once = s->encode_only && s->chunk == n && !s->forward.indexed;
    s->forward.encode_only = s->encode_only;
    s->forward.n_token = size == 1 ? s->chunk : 2 * ceil_div(s->chunk, 2 * size);
    s->forward.n_row = s->kv.at_once ? s->forward.n_token : ceil_div(n, size) + extra;
    s->forward.n_all = n;
    s->forward.size = size;
    s->kv.capacity = s->forward.n_row;
    s->kv.n_token = s->forward.n_token;
}

enum status session_measure(const struct checkpoint *checkpoint, const struct backend *backend,
                            int size, const struct session_options *options,
                            struct session_sizes *out) {
    const struct model_spec *spec = &checkpoint->spec;
    int64_t n = options->max_tokens;
    if (n < 1)
        FAIL(ERR_CONFIG, "a session needs room for at least one token, not %lld", (long long)n);
    struct session_sizes s = {0};
    resolve_precision(checkpoint, backend, options, &s);
    enum dtype index = index_dtype(options);
    struct index_shape index_shape = widest_index(spec, index);
    bool indexed = index_shape.n_head > 0 && !options->dense;
    if (indexed) s.index = index_shape;
    s.encode_only = options->encode_only || !spec->causal;
    // An encoder's tokens see those behind them: all come at once, and none is dearer than others.
    s.layout.layout = spec->causal ? options->layout : LAYOUT_CONTIGUOUS;
    s.chunk = spec->causal && options->chunk > 0 && options->chunk < n ? options->chunk : n;
    if (indexed && options->exchange == EXCHANGE_SCORES && size > 1 && s.chunk > SCORES_MAX_QUERIES)
        s.chunk = SCORES_MAX_QUERIES;
    s.forward.indexed = s.kv.indexed = indexed;
    s.forward.index = s.kv.index_dtype = index;
    s.kv.max_forget = options->max_forget;
    measure_rows(&s, n, size);
    s.attention = widest_attention(spec, s.forward.query, s.kv.dtype);
    if (spec->causal && size > 1 && model_spec_window(spec) > 0 && options->rates.flop_per_s > 0)
        TRY(choose_layout(spec, &s, size, &options->rates));
    struct forward_buffers buffers;
    s.buffer_bytes = forward_buffers_carve(spec, &s.forward, NULL, &buffers);
    s.tile = buffers.tile;
    s.kv_bytes = kv_store_bytes(spec, &s.kv);
    s.room_bytes = kv_store_room_bytes(spec, &s.kv);
    s.ring_bytes = measure_ring(spec, &s, backend->memory, size);
    s.experts = measure_experts(spec, s.forward.activation, buffers.expert_tile);
    if (s.experts.n_expert) s.expert_bytes = expert_exchange_bytes(&s.experts, size);
    if (indexed && options->study) {
        s.study = (struct study_shape){.n_layer = spec->n_layer,
                                       .n_head = s.attention.n_head,
                                       .value_dim = s.attention.value_dim,
                                       .k = s.index.k,
                                       .n_token = s.forward.n_token};
        s.study_bytes = selection_study_bytes(&s.study);
    }
    s.sharded = options->sharded && size > 1;
    *out = s;
    return OK;
}

// Of the weights that a rank maps or holds. On hosts the embedding rows of its own tokens are read
// in the mapping, and so they are for devices, which do not hold them.
static int64_t weights_share(const struct weights_extent *weights, const struct backend *backend,
                             const struct session_sizes *sizes, int local_size) {
    int64_t embedding = sizes->forward.n_row * weights->embedding_row_bytes;
    int64_t table = weights->embedding_bytes / local_size;
    if (embedding > table) embedding = table;
    if (backend->memory == MEMORY_DEVICE) embedding = 0;
    return weights->bytes / local_size + weights->own_bytes + weights->shard_bytes + embedding;
}

enum status session_plan(const struct checkpoint *checkpoint, const struct backend *backend,
                         int size, int local_size, const struct session_options *options,
                         struct memory_plan *out) {
    struct session_sizes sizes;
    struct weights_extent weights;
    TRY(session_measure(checkpoint, backend, size, options, &sizes));
    if (backend->memory == MEMORY_DEVICE) local_size = 1; // each rank has a copy of its own
    struct gather_extent gather = {0};
    TRY(weights_measure(checkpoint, size, sizes.sharded, &weights));
    if (sizes.sharded) TRY(weight_gather_measure(checkpoint, size, &gather));
    const struct scratch_shape scratch = {
        .n_token = sizes.tile,
        .n_key = sizes.forward.n_row,
        .n_hidden = checkpoint->spec.n_hidden,
        .widest_row = weights.widest_row,
        .largest_weight = weights.largest_elements,
        .n_head = sizes.attention.n_head,
        .head_dim = sizes.attention.head_dim,
        .value_dim = sizes.attention.value_dim,
        .index_k = sizes.index.k,
        .n_index_head = sizes.index.n_head,
        .index_dim = sizes.index.head_dim,
    };
    *out = (struct memory_plan){
        .layout = sizes.layout,
        .weights = weights_share(&weights, backend, &sizes, local_size),
        .experts = weights.expert_bytes,
        .gathered = gather.buffer_bytes[0] + gather.buffer_bytes[1],
        .gather_traffic = gather.chunk_bytes,
        .kv = sizes.kv_bytes,
        .activations = sizes.buffer_bytes + sizes.room_bytes + sizes.study_bytes,
        .ring = sizes.ring_bytes + sizes.expert_bytes,
        .scratch = backend->ops->scratch_bytes(backend, &scratch),
        .tables = sizes.forward.n_all * (sizes.encode_only ? ENCODE_TABLE_BYTES : TABLE_BYTES) +
                  sizes.forward.n_row * OWN_TABLE_BYTES,
        .base = BASE_BYTES + LIBRARY_BYTES / local_size,
    };
    bool device = backend->memory == MEMORY_DEVICE;
    out->total = out->weights + out->experts + out->gathered + out->kv + out->activations +
                 out->ring + out->scratch + (device ? 0 : out->tables + out->base);
    return OK;
}
