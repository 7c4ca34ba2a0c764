#include "model/extension.h"

#include <stddef.h>

#include "model/config_rope.h"

static const enum rope_method rope_methods[N_EXTENSION] = {
    [EXTENSION_NONE] = ROPE_DEFAULT,     [EXTENSION_LINEAR] = ROPE_LINEAR,
    [EXTENSION_NTK] = ROPE_NTK,          [EXTENSION_DYNAMIC] = ROPE_DYNAMIC,
    [EXTENSION_YARN] = ROPE_YARN,        [EXTENSION_LLAMA3] = ROPE_LLAMA3,
    [EXTENSION_LONGROPE] = ROPE_LONGROPE};

static double given(double value, double otherwise) {
    return value > 0 ? value : otherwise;
}

static double original_context(const struct extension *e, const struct model_spec *spec) {
    const struct rope_spec *own = &spec->ropes[0];
    double context = (double)spec->context;
    if (e->original_context > 0) return e->original_context;
    return own->method >= ROPE_DYNAMIC && own->original_context < context ? own->original_context
                                                                          : context;
}

// The rotation of the same elements as `own` by another method.
static enum status replace(const struct extension *e, double original, const char *path,
                           const struct rope_spec *own, struct rope_spec *out) {
    *out = (struct rope_spec){
        .method = rope_methods[e->method],
        .base = own->base,
        .dim = own->dim,
        .interleaved = own->interleaved,
        .factor = given(e->factor, (double)e->context / original),
        .original_context = original,
        .low_freq_factor = given(e->low_freq_factor, 1),
        .high_freq_factor = given(e->high_freq_factor, 4),
        .beta_fast = given(e->beta_fast, 32),
        .beta_slow = given(e->beta_slow, 1),
        .attention_factor = e->attention_factor,
        .truncate = true,
    };
    if (e->method == EXTENSION_NONE) out->factor = 1;
    if (e->method == EXTENSION_DYNAMIC) out->factor = given(e->factor, 1);
    if (e->method == EXTENSION_LONGROPE && e->factor_path) {
        TRY(config_read_longrope_file(e->factor_path, out));
    } else if (e->method == EXTENSION_LONGROPE) {
        if (own->method != ROPE_LONGROPE)
            FAIL(ERR_CONFIG,
                 "extension.method = longrope needs lists of factors, and %s has none: set "
                 "extension.factors to a file that has",
                 path);
        if (e->factor == 0 && e->context == 0) out->factor = own->factor;
        out->n_factor = own->n_factor;
        for (int i = 0; i < own->n_factor; i++) {
            out->short_factor[i] = own->short_factor[i];
            out->long_factor[i] = own->long_factor[i];
        }
    }
    if (e->attention_factor > 0) out->attention_factor = e->attention_factor;
    if (out->factor < 1)
        FAIL(ERR_CONFIG,
             "extension.method = %s needs extension.factor, or a model.context above the %.0f "
             "tokens that the positions were trained for",
             rope_method_name(out->method), original);
    return OK;
}

static int64_t reach(const struct extension *e, double original, double factor) {
    if (e->method == EXTENSION_DYNAMIC) return EXTENSION_LONGEST;
    return (int64_t)(original * factor);
}

// Whether all layers attend to every token, rotated alike: what parts are defined for.
static enum status check_alike(const char *path, const struct model_spec *spec) {
    bool alike = spec->causal;
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        if (l->index.layout != INDEX_NONE)
            FAIL(ERR_CONFIG,
                 "extension.method = self_extend, dca and streaming are for dense attention: leave "
                 "out the indexer of %s",
                 path);
        alike = alike && l->window == 0 && l->rope == spec->layers[0].rope;
    }
    if (!alike || spec->n_rope != 1)
        FAIL(ERR_CONFIG,
             "extension.method = self_extend, dca and streaming are for causal networks whose "
             "layers all attend to every token: leave out attention.window, or choose a method "
             "of rotation for %s",
             path);
    return OK;
}

// Adds a rotation of the same frequencies and other positions.
static int add_rope(struct model_spec *spec, struct position_map map) {
    spec->ropes[spec->n_rope] = spec->ropes[0];
    spec->ropes[spec->n_rope].map = map;
    return spec->n_rope++;
}

// Keys nearer than w at their own distances, those behind as if G positions were one: Jin et al.,
// section 3.2. The query's grouped position is moved so that both meet at distance w.
static enum status apply_self_extend(const struct extension *e, int64_t original,
                                     struct model_spec *spec) {
    int64_t w = e->neighbours > 0 ? e->neighbours : original / 4, group = e->group;
    if (w < 1 || w >= original)
        FAIL(ERR_CONFIG,
             "extension.neighbours = %lld must be less than the original context of %lld tokens",
             (long long)w, (long long)original);
    if (group == 0) // the least that reaches the wanted context
        while (++group < EXTENSION_LONGEST && (original - w + w / group) * group < e->context)
            continue;
    if (group < 2)
        FAIL(ERR_CONFIG, "extension.method = self_extend needs extension.group of 2 or more, or a "
                         "model.context above the original one");
    int keys = add_rope(spec, (struct position_map){.group = group});
    int queries = add_rope(spec, (struct position_map){.group = group, .offset = w - w / group});
    spec->parts[0] = (struct attention_part){.visibility = {.back = w - 1}};
    spec->parts[1] = (struct attention_part){
        .visibility = {.back = VISIBLE_ALL, .ahead = -w}, .query_rope = queries, .key_set = 1};
    spec->n_part = spec->n_key_set = 2;
    spec->key_rope[1] = keys;
    spec->part_method = "self_extend";
    spec->reach = (original - w + w / group) * group;
    return OK;
}

// Chunks of s positions; queries stand at s + p mod s, at most c - 1, for the chunk before, and at
// c - 1 for all earlier ones: An et al., equations 2 to 6.
static enum status apply_dca(const struct extension *e, int64_t original, struct model_spec *spec) {
    int64_t s = e->chunk > 0 ? e->chunk : original - original / 4, last = original - 1;
    if (s >= original)
        FAIL(ERR_CONFIG,
             "extension.chunk = %lld must be less than the original context of %lld tokens",
             (long long)s, (long long)original);
    spec->ropes[0].map = (struct position_map){.modulus = s};
    int next = add_rope(spec, (struct position_map){.modulus = s, .offset = s, .limit = last});
    int far = add_rope(spec, (struct position_map){.offset = last, .limit = last});
    spec->parts[0] = (struct attention_part){.visibility = {.block = s}};
    spec->parts[1] = (struct attention_part){.visibility = {.block = s, .back = 1, .ahead = -1},
                                             .query_rope = next};
    spec->parts[2] = (struct attention_part){
        .visibility = {.block = s, .back = VISIBLE_ALL, .ahead = -2}, .query_rope = far};
    spec->n_part = 3;
    spec->part_method = "dca";
    spec->reach = EXTENSION_LONGEST;
    return OK;
}

// The first tokens and a window, at positions inside this cache: within the window distances are
// as they were; from the first tokens a query is never farther than the cache is long.
static enum status apply_streaming(const struct extension *e, int64_t original,
                                   struct model_spec *spec) {
    int64_t sinks = e->sinks, window = e->window > 0 ? e->window : original - sinks;
    if (window < 1 || sinks + window > original)
        FAIL(ERR_CONFIG,
             "extension.sinks = %lld and extension.window = %lld must fit the original context of "
             "%lld tokens",
             (long long)sinks, (long long)window, (long long)original);
    TRY(model_spec_set_window(spec, window, sinks));
    int capped = add_rope(spec, (struct position_map){.limit = sinks + window - 1});
    spec->parts[0] = (struct attention_part){.visibility = {.back = window - 1}};
    spec->parts[1] = (struct attention_part){
        .visibility = {.back = window - 1, .ahead = -window, .sinks = sinks}, .query_rope = capped};
    spec->n_part = sinks > 0 ? 2 : 1;
    spec->part_method = "streaming";
    spec->reach = EXTENSION_LONGEST;
    return OK;
}

static enum status apply_parts(const struct extension *e, double original, const char *path,
                               struct model_spec *spec) {
    TRY(check_alike(path, spec));
    spec->n_key_set = 1;
    spec->key_rope[0] = 0;
    if (e->method == EXTENSION_SELF_EXTEND) return apply_self_extend(e, (int64_t)original, spec);
    if (e->method == EXTENSION_DCA) return apply_dca(e, (int64_t)original, spec);
    return apply_streaming(e, (int64_t)original, spec);
}

enum status extension_apply(const struct extension *e, const char *path, struct model_spec *spec) {
    if (e->method == EXTENSION_AUTO) return OK;
    double original = original_context(e, spec);
    bool extends[MODEL_MAX_ROPE] = {false}; // rotations of windows stay as they are
    for (int i = 0; i < spec->n_layer; i++) {
        const struct layer_spec *l = &spec->layers[i];
        if (l->window == 0) extends[l->rope] = true;
        if (l->index.layout != INDEX_NONE) extends[l->index.rope] = true;
        if (l->attention == ATTENTION_LATENT)
            FAIL(ERR_CONFIG,
                 "%s has latent attention, whose scores carry its own scaling: leave "
                 "extension.method at auto",
                 path);
        if (spec->ropes[l->rope].dim == 0)
            FAIL(ERR_CONFIG,
                 "%s does not rotate by positions: leave extension.method at auto and shorten the "
                 "document",
                 path);
    }
    if (e->method >= EXTENSION_SELF_EXTEND) return apply_parts(e, original, path, spec);
    for (int i = 0; i < spec->n_rope; i++) {
        struct rope_spec own = spec->ropes[i];
        if (!extends[i]) continue;
        TRY(replace(e, original, path, &own, &spec->ropes[i]));
        enum status status = rope_check(&spec->ropes[i], path);
        if (status != OK) return status_context(ERR_CONFIG, "extension.*");
    }
    spec->reach = reach(e, original, spec->ropes[0].factor);
    return OK;
}
