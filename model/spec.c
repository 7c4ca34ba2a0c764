// Checks a configuration and lays it out as one layer_spec per layer.
#include "model/spec.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/spec_draft.h"

enum {
    MAX_HEAD = 4096,
    MAX_HIDDEN = 1 << 18,
    MAX_FEED_FORWARD = 1 << 22,
    MAX_VOCAB = 1 << 24,
};

void spec_draft_init(struct spec_draft *draft) {
    *draft = (struct spec_draft){.activation = ACTIVATION_SILU, .rotary_part = 1};
    draft->rope = (struct rope_spec){.base = 10000,
                                     .factor = 1,
                                     .low_freq_factor = 1,
                                     .high_freq_factor = 4,
                                     .beta_fast = 32,
                                     .beta_slow = 1,
                                     .truncate = true};
}

enum status spec_draft_add_stop(struct spec_draft *draft, int64_t id, const char *path) {
    if (id < 0 || id >= MAX_VOCAB) return OK;
    for (int i = 0; i < draft->n_stop; ++i)
        if (draft->stop[i] == id) return OK;
    if (draft->n_stop == MODEL_MAX_STOP)
        FAIL(ERR_INPUT, "%s: more than %d end-of-sequence ids", path, MODEL_MAX_STOP);
    draft->stop[draft->n_stop++] = (int32_t)id;
    return OK;
}

static enum status check_range(const char *path, const char *what, int64_t value, int64_t low,
                               int64_t high) {
    if (value < low || value > high)
        FAIL(ERR_INPUT, "%s: %s is %" PRId64 "; %" PRId64 " to %" PRId64 " is supported", path,
             what, value, low, high);
    return OK;
}

static enum status check_sizes(const struct spec_draft *draft, const char *path) {
    TRY(check_range(path, "the number of layers", draft->n_layer, 1, SPEC_MAX_LAYER));
    TRY(check_range(path, "the hidden size", draft->n_hidden, 8, MAX_HIDDEN));
    TRY(check_range(path, "the number of heads", draft->n_head, 1, MAX_HEAD));
    TRY(check_range(path, "the number of key/value heads", draft->n_kv_head, 1, draft->n_head));
    TRY(check_range(path, "the feed-forward size", draft->n_feed_forward, 1, MAX_FEED_FORWARD));
    TRY(check_range(path, "the vocabulary", draft->n_vocab, 1, MAX_VOCAB));
    TRY(check_range(path, "the trained context", draft->context, 1, INT64_C(1) << 40));
    TRY(check_range(path, "the window", draft->window, 0, INT64_C(1) << 40));
    TRY(check_range(path, "the number of positions", draft->n_position, 0, MAX_VOCAB));
    TRY(check_range(path, "the number of token types", draft->n_token_type, 0, MAX_VOCAB));
    int64_t widest = draft->latent.rank ? 576 : 256;
    TRY(check_range(path, "the size of a head", draft->head_dim, 16, widest));
    if (draft->head_dim % 8)
        FAIL(ERR_INPUT, "%s: heads of %" PRId64 " elements are no multiple of 8", path,
             draft->head_dim);
    if (draft->n_head % draft->n_kv_head)
        FAIL(ERR_INPUT, "%s: %" PRId64 " heads cannot share %" PRId64 " key/value heads evenly",
             path, draft->n_head, draft->n_kv_head);
    if (!(draft->norm_eps > 0 && draft->norm_eps < 1))
        FAIL(ERR_INPUT, "%s: the norms' epsilon is %g or missing", path, draft->norm_eps);
    return OK;
}

static enum status check_rope(const struct rope_spec *rope, const struct spec_draft *draft,
                              const char *path) {
    if (draft->architecture->positions) return OK;
    if (rope->dim < 2 || rope->dim % 2 || rope->dim > draft->head_dim)
        FAIL(ERR_INPUT, "%s: %d rotated elements of heads of %" PRId64 " are impossible", path,
             rope->dim, draft->head_dim);
    return rope_check(rope, path);
}

static void fill_latent(const struct spec_draft *draft, int layer, struct layer_spec *out) {
    out->attention = ATTENTION_LATENT;
    out->latent = draft->latent;
    out->value_dim = draft->latent.rank;
    if (draft->has_experts[layer]) {
        out->feed_forward = FEED_FORWARD_EXPERTS;
        out->experts = draft->experts;
        out->n_feed_forward = draft->experts.n_shared * draft->experts.n_feed_forward;
    }
    if (!draft->index.n_head) return;
    out->index = draft->index;
    out->index.rope = 1;
    if (draft->shares_index[layer]) out->index.layout = INDEX_SHARED;
}

static enum status fill_layers(const struct spec_draft *draft, const char *path,
                               struct model_spec *out) {
    const struct architecture *architecture = draft->architecture;
    double scale = draft->attention_scale;
    if (scale == 0) scale = 1 / sqrt((double)draft->head_dim);
    out->layers = calloc((size_t)draft->n_layer, sizeof *out->layers);
    if (!out->layers) FAIL(ERR_MEMORY, "no memory for the layers of %s", path);
    out->n_layer = (int)draft->n_layer;
    for (int i = 0; i < out->n_layer; ++i) {
        out->layers[i] = (struct layer_spec){
            .attention = ATTENTION_FULL,
            .feed_forward = architecture->no_gate ? FEED_FORWARD_PLAIN : FEED_FORWARD_GATED,
            .norm = architecture->norm,
            .norm_place = architecture->norm_place,
            .norm_bias = draft->norm_bias,
            // ModernBERT's first layer reads the embeddings, which were normed just before.
            .attention_norm = i > 0 || architecture->scheme != TENSORS_MODERNBERT,
            .activation = draft->activation,
            .n_head = (int)draft->n_head,
            .n_kv_head = (int)draft->n_kv_head,
            .head_dim = (int)draft->head_dim,
            .value_dim = (int)draft->head_dim,
            .n_feed_forward = (int)draft->n_feed_forward,
            .attention_bias = draft->attention_bias || architecture->query_key_value_bias,
            .output_bias = draft->output_bias,
            .feed_forward_bias = draft->feed_forward_bias,
            .query_key_norm = architecture->query_key_norm,
            .attention_scale = (float)scale,
            .rope = draft->windowed[i] && draft->has_window_rope ? 1 : 0,
            .window = draft->windowed[i] ? draft->window : 0,
        };
        if (draft->latent.rank) fill_latent(draft, i, &out->layers[i]);
    }
    return OK;
}

enum status spec_build(const struct spec_draft *given, const char *path, struct model_spec *out) {
    struct spec_draft draft = *given;
    *out = (struct model_spec){0};
    if (draft.n_kv_head == 0) draft.n_kv_head = draft.n_head;
    if (draft.head_dim == 0 && draft.n_head > 0) {
        if (draft.n_hidden % draft.n_head)
            FAIL(ERR_INPUT, "%s: a hidden size of %" PRId64 " is no multiple of %" PRId64 " heads",
                 path, draft.n_hidden, draft.n_head);
        draft.head_dim = draft.n_hidden / draft.n_head;
    }
    TRY(check_sizes(&draft, path));
    int rotated = (int)((double)draft.head_dim * draft.rotary_part);
    if (draft.rope.dim == 0 && !draft.architecture->positions) draft.rope.dim = rotated;
    draft.window_rope.dim = draft.rope.dim;
    TRY(check_rope(&draft.rope, &draft, path));
    if (draft.has_window_rope) TRY(check_rope(&draft.window_rope, &draft, path));
    snprintf(out->architecture, sizeof out->architecture, "%s", draft.architecture->name);
    out->n_rope = draft.has_window_rope ? 2 : 1;
    out->ropes[0] = draft.rope;
    out->ropes[1] = draft.window_rope;
    if (draft.index.n_head) { // the same angles, other pairs
        out->n_rope = 2;
        out->ropes[1] = draft.rope;
        out->ropes[1].interleaved = draft.index_interleaved;
    }
    out->n_vocab = draft.n_vocab;
    out->n_hidden = (int)draft.n_hidden;
    out->norm_eps = (float)draft.norm_eps;
    out->causal = !draft.encoder;
    out->norm_offset = draft.norm_offset;
    out->embedding_scale = 1;
    if (draft.architecture->scaled_embedding) out->embedding_scale = sqrtf((float)draft.n_hidden);
    out->embedding_norm = draft.architecture->embedding_norm;
    out->final_norm = draft.architecture->norm_place != NORM_POST;
    out->n_position = draft.n_position;
    out->first_position = draft.first_position;
    out->n_token_type = draft.n_token_type;
    out->tied_head = draft.tied_head;
    out->context = draft.context;
    for (int i = 0; i < draft.n_stop; ++i)
        if (draft.stop[i] < draft.n_vocab) out->stop[out->n_stop++] = draft.stop[i];
    return fill_layers(&draft, path, out);
}

int model_spec_top_k(const struct model_spec *spec) {
    int k = 0;
    for (int i = 0; i < spec->n_layer; ++i)
        if (spec->layers[i].index.layout != INDEX_NONE) k = spec->layers[i].index.k;
    return k;
}

void model_spec_set_top_k(struct model_spec *spec, int k) {
    for (int i = 0; i < spec->n_layer; ++i) spec->layers[i].index.k = k;
}

enum status model_spec_set_window(struct model_spec *spec, int64_t window, int64_t sinks) {
    if (window < 1 || sinks < 0)
        FAIL(ERR_CONFIG,
             "a window of %" PRId64 " tokens with %" PRId64
             " sinks is impossible: attention.window must be 1 or more, attention.sinks 0 or more",
             window, sinks);
    if (!spec->causal)
        FAIL(ERR_CONFIG, "%s is an encoder: attention.window is for causal models",
             spec->architecture);
    if (model_spec_top_k(spec) > 0)
        FAIL(ERR_CONFIG,
             "layers that select their tokens take no window: leave out attention.window, or "
             "the indexer");
    for (int i = 0; i < spec->n_layer; ++i) {
        struct layer_spec *l = &spec->layers[i];
        if (l->window > 0 && l->window <= window) continue;
        l->window = window;
        l->sinks = sinks;
    }
    return OK;
}

int64_t model_spec_window(const struct model_spec *spec) {
    int64_t window = 0;
    for (int i = 0; i < spec->n_layer; ++i)
        if (spec->layers[i].window > window) window = spec->layers[i].window;
    return window;
}

bool model_spec_reads_length(const struct model_spec *spec) {
    for (int i = 0; i < spec->n_rope; ++i)
        if (rope_reads_length(&spec->ropes[i])) return true;
    return false;
}

bool model_spec_rotates_alike(const struct model_spec *spec, int64_t length, int64_t other) {
    for (int i = 0; i < spec->n_rope; ++i)
        if (!rope_rotates_alike(&spec->ropes[i], length, other)) return false;
    return true;
}

void model_spec_close(struct model_spec *spec) {
    free(spec->layers);
    *spec = (struct model_spec){0};
}
