#include "model/forward.h"

enum { TILE_TOKENS = 2048, ALIGNMENT = 64 };

struct carver {
    char *base;
    int64_t used;
};

static void *carve(struct carver *c, int64_t elements, enum dtype dtype) {
    void *at = c->base ? c->base + c->used : NULL;
    int64_t bytes = dtype_bytes(dtype, elements);
    c->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

struct widths {
    int64_t query, kv, heads, feed_forward;
};

static struct widths widest(const struct model_spec *spec) {
    struct widths w = {0};
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        int64_t query = (int64_t)l->n_head * l->head_dim, kv = (int64_t)l->n_kv_head * l->head_dim;
        if (query > w.query) w.query = query;
        if (kv > w.kv) w.kv = kv;
        if (l->n_head > w.heads) w.heads = l->n_head;
        if (l->n_feed_forward > w.feed_forward) w.feed_forward = l->n_feed_forward;
    }
    return w;
}

int64_t forward_buffers_carve(const struct model_spec *spec, const struct forward_shape *shape,
                              char *base, struct forward_buffers *out) {
    struct carver c = {.base = base};
    struct widths w = widest(spec);
    enum dtype activation = shape->activation;
    int64_t n = shape->n_token, tile = n < TILE_TOKENS ? n : TILE_TOKENS;
    struct forward_buffers b = {.tile = tile};
    b.x = carve(&c, n * spec->n_hidden, DTYPE_F32);
    b.query = carve(&c, n * w.query, shape->query);
    b.attended = carve(&c, n * w.query, DTYPE_F32);
    b.lse = carve(&c, n * w.heads, DTYPE_F32);
    for (int i = 0; i < spec->n_rope; i++) {
        b.cos[i] = carve(&c, n * spec->ropes[i].dim / 2, DTYPE_F32);
        b.sin[i] = carve(&c, n * spec->ropes[i].dim / 2, DTYPE_F32);
    }
    b.token = carve(&c, n, DTYPE_F32); // int32 has the width of F32
    b.logprob = carve(&c, n, DTYPE_F32);
    b.normed = carve(&c, tile * spec->n_hidden, activation);
    b.projected = carve(&c, tile * w.query, DTYPE_F32);
    b.product_input = carve(&c, tile * w.query, activation);
    b.gate = carve(&c, tile * w.feed_forward, DTYPE_F32);
    b.up = carve(&c, tile * w.feed_forward, DTYPE_F32);
    b.gated = carve(&c, tile * w.feed_forward, activation);
    b.split = carve(&c, w.query + 2 * w.kv, DTYPE_F32);
    b.gathered = carve(&c, w.query + 2 * w.kv, DTYPE_F32);
    b.key = carve(&c, w.kv, DTYPE_F32);
    b.value = carve(&c, w.kv, DTYPE_F32);
    b.logits_split = carve(&c, spec->n_vocab, DTYPE_F32);
    b.logits = carve(&c, spec->n_vocab, DTYPE_F32);
    b.mass = carve(&c, shape->n_row, DTYPE_F32);
    b.all_values = carve(&c, shape->n_all, DTYPE_F32);
    b.last_hidden = carve(&c, spec->n_hidden, activation);
    *out = b;
    return c.used;
}
