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
