#include "model/plan.h"

#include <string.h>

// A process with MPI, oneDNN and a tokenizer before any model buffer, measured with `halka run` on
// one token (proportional set size).
enum { BASE_BYTES = 14 << 20 };

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static struct attention_shape widest_attention(const struct model_spec *spec, enum dtype query,
                                               enum dtype kv) {
    struct attention_shape shape = {.query_bytes = (int)dtype_bytes(query, 1),
                                    .kv_bytes = (int)dtype_bytes(kv, 1)};
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        if (l->n_head > shape.n_head) shape.n_head = l->n_head;
        if (l->n_kv_head > shape.n_kv_head) shape.n_kv_head = l->n_kv_head;
        if (l->head_dim > shape.head_dim) shape.head_dim = shape.value_dim = l->head_dim;
    }
    return shape;
}

enum status session_measure(const struct checkpoint *checkpoint, const struct backend *backend,
                            int size, const struct session_options *options,
                            struct session_sizes *out) {
    const struct model_spec *spec = &checkpoint->spec;
    int64_t n = options->max_tokens;
    if (n < 1)
        FAIL(ERR_CONFIG, "a session needs room for at least one token, not %lld", (long long)n);
    struct session_sizes s = {.precision = options->precision,
                              .kv_precision = options->kv_precision};
    if (s.kv_precision == PRECISION_AUTO) {
        s.kv_precision = s.precision == PRECISION_FP32 ? PRECISION_FP32 : PRECISION_BF16;
    }
    s.kv_dtype = s.kv_precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
    // `auto` takes bf16 where it pays most and costs least, in attention; projections of rounded
    // inputs by rounded weights moved single log-probabilities of SmolLM2 by 0.2.
    bool bf16_attention = backend->bf16_products && s.kv_dtype == DTYPE_BF16;
    enum dtype query = bf16_attention ? DTYPE_BF16 : DTYPE_F32;
    if (s.precision == PRECISION_FP32) query = DTYPE_F32;
    if (s.precision == PRECISION_BF16) query = DTYPE_BF16;
    if (s.precision == PRECISION_AUTO) s.precision = PRECISION_FP32;
    enum dtype activation = s.precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
    s.chunk = options->chunk > 0 && options->chunk < n ? options->chunk : n;
    // An extent gives a rank at most two tokens more than its share (two zigzag pieces); besides
    // the chunks there are a question and an answer.
    int64_t extra = size == 1 ? 0 : 2 * (ceil_div(n, s.chunk) + 8);
    s.forward =
        (struct forward_shape){.n_token = size == 1 ? s.chunk : 2 * ceil_div(s.chunk, 2 * size),
                               .n_row = ceil_div(n, size) + extra,
                               .n_all = n,
                               .size = size,
                               .activation = activation,
                               .query = query};
    s.attention = widest_attention(spec, query, s.kv_dtype);
    struct forward_buffers buffers;
    s.buffer_bytes = forward_buffers_carve(spec, &s.forward, NULL, &buffers);
    s.tile = buffers.tile;
    s.kv_bytes = kv_store_bytes(spec, s.kv_dtype, s.forward.n_row);
    int64_t pass_q = s.chunk < PASS_Q_MAX_QUERIES ? s.chunk : PASS_Q_MAX_QUERIES;
    s.ring_bytes = ring_attention_workspace_bytes(&s.attention, size, s.forward.n_row,
                                                  s.forward.n_token, pass_q, 1);
    *out = s;
    return OK;
}

enum status session_plan(const struct checkpoint *checkpoint, const struct backend *backend,
                         int size, int local_size, const struct session_options *options,
                         struct memory_plan *out) {
    struct session_sizes sizes;
    struct weights_extent weights;
    TRY(session_measure(checkpoint, backend, size, options, &sizes));
    TRY(weights_measure(checkpoint, &weights));
    const struct scratch_shape scratch = {
        .n_token = sizes.tile,
        .n_key = sizes.forward.n_row,
        .n_hidden = checkpoint->spec.n_hidden,
        .widest_row = weights.widest_row,
        .largest_weight = weights.largest_elements,
        .n_head = sizes.attention.n_head,
        .head_dim = sizes.attention.head_dim,
    };
    *out = (struct memory_plan){
        .weights = weights.bytes / local_size,
        .kv = sizes.kv_bytes,
        .activations = sizes.buffer_bytes,
        .ring = sizes.ring_bytes,
        .scratch = backend->ops->scratch_bytes(backend, &scratch),
        .base = BASE_BYTES,
    };
    out->total = out->weights + out->kv + out->activations + out->ring + out->scratch + out->base;
    return OK;
}
