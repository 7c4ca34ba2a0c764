#include "model/forward_buffers.h"

#include "model/forward_internal.h"

enum { TILE_TOKENS = 2048, SLAB_TOKENS = 4 * TILE_TOKENS, ALIGNMENT = 64 };

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

// Columns of the widest layer's intermediates.
struct widths {
    int64_t query, attended, kv, heads, feed_forward, output;
    int64_t query_rank, latent_heads, latent, rotated;
    int64_t index_query, index_heads, index_dim, k;
    int64_t n_expert, n_used, expert, expert_rows; // expert_rows: per token of all ranks
    int64_t split;                                 // decode: what the ranks share in one exchange
};

static void at_least(int64_t *most, int64_t n) {
    if (n > *most) *most = n;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void add_latent(struct widths *w, const struct layer_spec *l) {
    const struct latent_spec *latent = &l->latent;
    int widest = latent->rope_dim + latent->nope_dim;
    if (widest < latent->value_dim) widest = latent->value_dim;
    at_least(&w->query_rank, latent->query_rank);
    at_least(&w->latent_heads, (int64_t)l->n_head * widest);
    at_least(&w->latent, latent->rank);
    at_least(&w->rotated, latent->rope_dim);
    at_least(&w->output, (int64_t)l->n_head * latent->value_dim);
}

static void add_layer(struct widths *w, const struct layer_spec *l, const struct forward_shape *s) {
    int64_t query = (int64_t)l->n_head * l->head_dim, kv = (int64_t)l->n_kv_head * l->head_dim;
    int64_t index_query = 0;
    at_least(&w->query, query);
    at_least(&w->attended, (int64_t)l->n_head * l->value_dim);
    at_least(&w->kv, kv);
    at_least(&w->heads, l->n_head);
    at_least(&w->feed_forward, l->n_feed_forward);
    if (l->attention == ATTENTION_LATENT)
        add_latent(w, l);
    else
        at_least(&w->output, query);
    if (s->indexed && l->index.layout != INDEX_NONE) {
        index_query = (int64_t)l->index.n_head * l->index.head_dim;
        at_least(&w->index_query, index_query);
        at_least(&w->index_heads, l->index.n_head);
        at_least(&w->index_dim, l->index.head_dim);
        at_least(&w->k, l->index.k);
    }
    if (l->feed_forward == FEED_FORWARD_EXPERTS) {
        const struct expert_spec *e = &l->experts;
        at_least(&w->n_expert, e->n_expert);
        at_least(&w->n_used, e->n_used);
        at_least(&w->expert, e->n_feed_forward);
        at_least(&w->expert_rows, smaller(e->n_used, (e->n_expert + s->size - 1) / s->size));
    }
    at_least(&w->split, query + 2 * kv + l->latent.query_rank + index_query + l->index.n_head +
                            l->index.head_dim);
}

static struct widths widest(const struct model_spec *spec, const struct forward_shape *shape) {
    struct widths w = {0};
    for (int i = 0; i < spec->n_layer; i++) add_layer(&w, &spec->layers[i], shape);
    return w;
}

static void carve_latent(struct carver *c, const struct widths *w, enum dtype activation,
                         struct forward_buffers *b) {
    b->query_down = carve(c, b->tile * w->query_rank, DTYPE_F32);
    b->query_latent = carve(c, b->tile * w->query_rank, activation);
    b->heads = carve(c, b->tile * w->latent_heads, DTYPE_F32);
    b->latent = carve(c, b->tile * w->latent, DTYPE_F32);
    b->rotated = carve(c, b->tile * w->rotated, DTYPE_F32);
}

static void carve_index(struct carver *c, const struct widths *w, const struct forward_shape *shape,
                        struct forward_buffers *b) {
    int64_t n = shape->n_token;
    b->index_query = carve(c, n * w->index_query, shape->index);
    b->index_weight = carve(c, n * w->index_heads, DTYPE_F32);
    b->index_heads = carve(c, b->tile * w->index_query, DTYPE_F32);
    b->index_scale = carve(c, b->tile * w->index_heads, DTYPE_F32);
    b->index_row = carve(c, b->tile * w->index_dim, DTYPE_F32);
    b->candidate = carve(c, 2 * n * w->k, DTYPE_F32); // one uint64 has the width of two F32
    b->n_candidate = carve(c, w->k ? n : 0, DTYPE_F32);
}

static void carve_experts(struct carver *c, const struct model_spec *spec, const struct widths *w,
                          const struct forward_shape *shape, struct forward_buffers *b) {
    if (w->n_expert == 0) return;
    int64_t hidden = spec->n_hidden, n = forward_expert_tile(spec, shape->size, b->tile);
    int64_t rows = shape->size * n * w->expert_rows;
    if (rows < w->n_used) rows = w->n_used; // decode runs the token's experts as rows
    b->expert_tile = n;
    b->router_input = carve(c, n * hidden, DTYPE_F32);
    b->router = carve(c, n * w->n_expert, DTYPE_F32);
    b->expert_weight = carve(c, n * w->n_used, DTYPE_F32);
    b->expert = carve(c, n * w->n_used, DTYPE_F32);
    b->expert_gate = carve(c, rows * w->expert, DTYPE_F32);
    b->expert_up = carve(c, rows * w->expert, DTYPE_F32);
    b->expert_gated = carve(c, rows * w->expert, shape->activation);
    b->expert_out = carve(c, rows * hidden, DTYPE_F32);
    b->expert_count = carve(c, 2, DTYPE_F32); // one int64
}

static bool needs_branch(const struct model_spec *spec) {
    return spec->n_position > 0 || spec->layers[0].norm_place == NORM_SANDWICH;
}

// What sessions that only encode lack: decode, logits and log-probabilities.
static void carve_decode(struct carver *c, const struct model_spec *spec, const struct widths *w,
                         const struct forward_shape *shape, struct forward_buffers *b) {
    b->split = carve(c, w->split, DTYPE_F32);
    b->gathered = carve(c, w->split, DTYPE_F32);
    b->key = carve(c, w->kv, DTYPE_F32);
    b->value = carve(c, w->kv, DTYPE_F32);
    b->logits_split = carve(c, spec->n_vocab, DTYPE_F32);
    b->logits = carve(c, spec->n_vocab, DTYPE_F32);
    b->sampled = carve(c, 1, DTYPE_F32);
    b->mass = carve(c, shape->n_row, DTYPE_F32);
    b->all_values = carve(c, shape->n_all, DTYPE_F32);
    b->last_hidden = carve(c, spec->n_hidden, shape->activation);
}

// Keys would travel a ring again for every slab; queries of latents and of indexers come with keys.
static bool attends_in_slabs(const struct model_spec *spec, const struct forward_shape *shape) {
    if (shape->size > 1 || shape->n_token <= SLAB_TOKENS) return false;
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        bool indexed = shape->indexed && l->index.layout != INDEX_NONE;
        if (l->attention != ATTENTION_FULL || indexed) return false;
    }
    return true;
}

int64_t forward_buffers_carve(const struct model_spec *spec, const struct forward_shape *shape,
                              char *base, struct forward_buffers *out) {
    struct carver c = {.base = base};
    struct widths w = widest(spec, shape);
    enum dtype activation = shape->activation;
    int64_t n = shape->n_token, tile = n < TILE_TOKENS ? n : TILE_TOKENS;
    int64_t slab = attends_in_slabs(spec, shape) ? SLAB_TOKENS : n;
    struct forward_buffers b = {.tile = tile, .slab = slab};
    b.x = carve(&c, n * spec->n_hidden, DTYPE_F32);
    int n_part = spec->n_part > 1 ? spec->n_part : 1;
    b.query_stride = slab * w.query;
    b.query = carve(&c, n_part * b.query_stride, shape->query);
    b.attended = carve(&c, slab * w.attended, DTYPE_F32);
    b.lse = carve(&c, slab * w.heads, DTYPE_F32);
    for (int i = 0; i < spec->n_rope; i++) {
        b.cos[i] = carve(&c, n * spec->ropes[i].dim / 2, DTYPE_F32);
        b.sin[i] = carve(&c, n * spec->ropes[i].dim / 2, DTYPE_F32);
    }
    b.token = carve(&c, n, DTYPE_F32); // int32 has the width of F32
    b.position = carve(&c, spec->n_position ? n : 0, DTYPE_F32);
    b.branch = carve(&c, needs_branch(spec) ? tile * spec->n_hidden : 0, DTYPE_F32);
    b.logprob = carve(&c, shape->encode_only ? 0 : n, DTYPE_F32);
    b.normed = carve(&c, tile * spec->n_hidden, activation);
    b.projected = carve(&c, tile * w.query, DTYPE_F32);
    int64_t rounded = activation == DTYPE_F32 ? 1 : tile; // fp32 needs it in decode only
    b.product_input = carve(&c, rounded * w.output, activation);
    b.gate = carve(&c, tile * w.feed_forward, DTYPE_F32);
    b.up = carve(&c, tile * w.feed_forward, DTYPE_F32);
    b.gated = carve(&c, tile * w.feed_forward, activation);
    carve_latent(&c, &w, activation, &b);
    carve_index(&c, &w, shape, &b);
    carve_experts(&c, spec, &w, shape, &b);
    if (!shape->encode_only) carve_decode(&c, spec, &w, shape, &b);
    *out = b;
    return c.used;
}
