// Attention mass: how much a decoded token reads each token before it. It is that of the upper half
// of the layers; of those that see every token where there are some, because the others tell
// nothing of tokens beyond their window.
#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

bool forward_adds_mass(const struct forward *f, int layer) {
    int n_layer = f->spec->n_layer;
    if (layer < n_layer / 2) return false;
    if (f->spec->layers[layer].window == 0) return true;
    for (int i = n_layer / 2; i < n_layer; i++)
        if (f->spec->layers[i].window == 0) return false;
    return true;
}

static int count_mass_layers(const struct forward *f) {
    int n = 0;
    for (int i = 0; i < f->spec->n_layer; i++) n += forward_adds_mass(f, i);
    return n;
}

// The token sees every key of the run: no mask. Where the layer selects, lse is that of the
// selected tokens: the others count as what they would add.
static enum status add_attention_mass(struct forward *f, int layer, const void *query,
                                      const char *key, const struct kv_run *run) {
    const struct layer_spec *l = &f->spec->layers[layer];
    int64_t width = (int64_t)l->n_kv_head * l->head_dim;
    const struct kv_block *block = &f->kv.layers[layer].block;
    int64_t skipped = dtype_bytes(f->kv.shape.dtype, run->block_row * width);
    if (run->n == 0) return OK;
    double begun = profile_begin(f->profile, PHASE_OTHER);
    struct attention_args attention = {.n_query = 1,
                                       .n_key = run->n,
                                       .n_head = l->n_head,
                                       .n_kv_head = l->n_kv_head,
                                       .head_dim = l->head_dim,
                                       .value_dim = l->value_dim,
                                       .scale = l->attention_scale,
                                       .query = query,
                                       .query_dtype = f->query_dtype,
                                       .query_stride = (int64_t)l->n_head * l->head_dim,
                                       .key = key + skipped,
                                       .value = (block->value ? block->value : key) + skipped,
                                       .kv_dtype = f->kv.shape.dtype,
                                       .key_stride = width,
                                       .value_stride = width,
                                       .lse = f->buffers.lse};
    float factor = 1.0f / (float)(l->n_head * count_mass_layers(f));
    TRY(OPS(f)->attention_mass(f->backend, &(struct attention_mass_args){
                                               .attention = attention,
                                               .factor = factor,
                                               .mass = f->buffers.mass + run->position_row,
                                           }));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

enum status forward_add_mass(struct forward *f, int layer, const struct forward_chunk *chunk) {
    struct kv_run runs[2];
    for (int part = 0; part < f->spec->n_part; part++) {
        struct part_seen seen = forward_part_seen(f, layer, chunk, part);
        TRY(add_attention_mass(f, layer, seen.query, seen.key, &seen.run));
    }
    if (f->spec->n_part) return OK;
    int n_run = kv_store_seen(&f->kv, layer, runs);
    for (int i = 0; i < n_run; i++)
        TRY(add_attention_mass(f, layer, f->buffers.query, f->kv.layers[layer].block.key,
                               &runs[i]));
    return OK;
}
