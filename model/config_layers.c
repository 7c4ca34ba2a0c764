#include "model/config_layers.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "model/config_rope.h"

static enum status read_layer_types(struct json_object in, const json_t *types,
                                    struct spec_draft *draft) {
    size_t n = json_array_size(types);
    if (draft->n_layer > SPEC_MAX_LAYER) return OK; // refused with the other sizes
    for (size_t i = 0; i < n; ++i) {
        const char *type = json_string_value(json_array_get(types, i));
        bool windowed = type && strcmp(type, "sliding_attention") == 0;
        bool full = type && (strcmp(type, "full_attention") == 0 ||
                             (draft->architecture->indexed && !strcmp(type, "indexed_attention")));
        if (!windowed && !full)
            FAIL(ERR_INPUT, "%s: layer type %s is not supported", in.path, type ? type : "?");
        if ((int64_t)i < draft->n_layer) draft->windowed[i] = windowed;
    }
    if ((int64_t)n != draft->n_layer)
        FAIL(ERR_INPUT, "%s: layer_types has %zu entries for %" PRId64 " layers", in.path, n,
             draft->n_layer);
    return OK;
}

// One full layer in every `period`.
static enum status read_pattern(struct json_object in, struct spec_draft *draft) {
    const struct architecture *architecture = draft->architecture;
    int64_t period = architecture->full_every, last = architecture->full_first ? 0 : 1;
    TRY(json_read_int(in, "global_attn_every_n_layers", 1, INT32_MAX, &period));
    TRY(json_read_int(in, "sliding_window_pattern", 1, INT32_MAX, &period));
    for (int64_t i = 0; i < draft->n_layer && i < SPEC_MAX_LAYER; ++i)
        draft->windowed[i] = (i + last) % period != 0;
    return OK;
}

// By use_sliding_window and max_window_layers (Qwen) or the mere presence of sliding_window
// (Mistral).
static enum status read_switches(struct json_object in, struct spec_draft *draft) {
    bool used = draft->architecture->windowed && draft->window > 0;
    int64_t n_full = 0;
    if (!draft->architecture->windowed) {
        TRY(json_read_bool(in, "use_sliding_window", &used));
        n_full = 28; // transformers' default
        TRY(json_read_int(in, "max_window_layers", 0, INT32_MAX, &n_full));
    }
    for (int64_t i = 0; i < draft->n_layer && i < SPEC_MAX_LAYER; ++i)
        draft->windowed[i] = used && i >= n_full;
    return OK;
}

enum status config_read_windows(struct json_object in, struct spec_draft *draft) {
    const struct architecture *architecture = draft->architecture;
    const char *key = architecture->window_key ? architecture->window_key : "sliding_window";
    const json_t *types = NULL;
    if (!architecture->windowed) draft->window = architecture->full_first ? 128 : 4096;
    TRY(json_read_int(in, key, 1, INT64_C(1) << 40, &draft->window));
    TRY(json_read_array(in, "layer_types", &types));
    if (!types)
        return architecture->full_every ? read_pattern(in, draft) : read_switches(in, draft);
    TRY(read_layer_types(in, types, draft));
    for (int64_t i = 0; i < draft->n_layer && i < SPEC_MAX_LAYER; ++i)
        if (draft->windowed[i] && draft->window == 0)
            FAIL(ERR_INPUT, "%s: layer_types names windows, but %s is not given", in.path, key);
    return OK;
}

static enum status read_rope_method(struct json_object in, struct rope_spec *rope) {
    static const struct {
        const char *name;
        enum rope_method method;
    } methods[] = {{"default", ROPE_DEFAULT}, {"linear", ROPE_LINEAR}, {"dynamic", ROPE_DYNAMIC},
                   {"yarn", ROPE_YARN},       {"llama3", ROPE_LLAMA3}, {"longrope", ROPE_LONGROPE},
                   {"su", ROPE_LONGROPE}}; // as it was called at first
    const char *name = "default";
    TRY(json_read_string(in, "type", &name));
    TRY(json_read_string(in, "rope_type", &name));
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; ++i) {
        if (strcmp(methods[i].name, name) != 0) continue;
        rope->method = methods[i].method;
        return OK;
    }
    FAIL(ERR_INPUT,
         "%s: rope type %s is not supported; default, linear, dynamic, yarn, llama3 and longrope "
         "are",
         in.path, name);
}

static double yarn_scale(double factor, double weight) {
    return factor <= 1 ? 1 : 0.1 * weight * log(factor) + 1;
}

static enum status read_yarn(struct json_object in, struct rope_spec *rope) {
    double scale = 0, scale_all = 0;
    TRY(json_read_float(in, "beta_fast", 0, 1e6, &rope->beta_fast));
    TRY(json_read_float(in, "beta_slow", 0, 1e6, &rope->beta_slow));
    if (rope->beta_fast == 0) rope->beta_fast = 32; // transformers takes 0 for "not given"
    if (rope->beta_slow == 0) rope->beta_slow = 1;
    TRY(json_read_bool(in, "truncate", &rope->truncate));
    TRY(json_read_float(in, "attention_factor", 0, 1e3, &rope->attention_factor));
    TRY(json_read_float(in, "mscale", 0, 1e3, &scale));
    TRY(json_read_float(in, "mscale_all_dim", 0, 1e3, &scale_all));
    if (rope->attention_factor == 0 && scale > 0 && scale_all > 0)
        rope->attention_factor =
            yarn_scale(rope->factor, scale) / yarn_scale(rope->factor, scale_all);
    return OK;
}

// What rope_parameters or rope_scaling say of one kind of layer.
static enum status read_rope(struct json_object in, struct json_object sub,
                             const struct spec_draft *draft, struct rope_spec *rope) {
    double factor = 0;
    TRY(json_read_float(sub, "rope_theta", 0, 1e15, &rope->base));
    TRY(read_rope_method(sub, rope));
    rope->original_context = (double)draft->context;
    TRY(json_read_float(sub, "original_max_position_embeddings", 1, 1e15, &rope->original_context));
    TRY(json_read_float(in, "original_max_position_embeddings", 1, 1e15, &rope->original_context));
    TRY(json_read_float(sub, "factor", 0, 1e9, &factor));
    if (rope->method == ROPE_DYNAMIC) rope->original_context = (double)draft->context;
    if (factor == 0 && (rope->method == ROPE_YARN || rope->method == ROPE_LONGROPE))
        factor = (double)draft->context / rope->original_context;
    if (factor == 0 && rope->method != ROPE_DEFAULT)
        FAIL(ERR_INPUT, "%s: the rope scaling has no factor", in.path);
    rope->factor = factor == 0 ? 1 : factor;
    TRY(json_read_float(sub, "low_freq_factor", 0, 1e6, &rope->low_freq_factor));
    TRY(json_read_float(sub, "high_freq_factor", 0, 1e6, &rope->high_freq_factor));
    if (rope->method == ROPE_YARN) TRY(read_yarn(sub, rope));
    return rope->method == ROPE_LONGROPE ? config_read_longrope(sub, rope) : OK;
}

// Layers with a window rotate by another base, and by another scaling where the configuration
// speaks of each kind. A scaling for all is one for full layers in Gemma, for both in ModernBERT.
static enum status read_two_ropes(struct json_object in, struct spec_draft *draft) {
    const struct architecture *architecture = draft->architecture;
    const json_t *parameters = NULL, *scaling = NULL, *full = NULL, *windowed = NULL;
    draft->has_window_rope = true;
    draft->window_rope = draft->rope;
    draft->rope.base = architecture->rope_base;
    draft->window_rope.base = architecture->window_rope_base;
    TRY(json_read_float(in, architecture->rope_base_key, 0, 1e15, &draft->rope.base));
    TRY(json_read_float(in, architecture->window_rope_base_key, 0, 1e15, &draft->window_rope.base));
    TRY(json_read_object(in, "rope_parameters", &parameters));
    TRY(json_read_object(in, "rope_scaling", &scaling));
    struct json_object by_type = {parameters, in.path};
    TRY(json_read_object(by_type, "full_attention", &full));
    TRY(json_read_object(by_type, "sliding_attention", &windowed));
    if (parameters && !full && !windowed)
        FAIL(ERR_INPUT, "%s: rope_parameters has neither full_attention nor sliding_attention",
             in.path);
    if (scaling && !full) full = scaling;
    if (scaling && !windowed && architecture->encoder) windowed = scaling;
    TRY(read_rope(in, (struct json_object){full, in.path}, draft, &draft->rope));
    return read_rope(in, (struct json_object){windowed, in.path}, draft, &draft->window_rope);
}

enum status config_read_ropes(struct json_object in, struct spec_draft *draft) {
    const json_t *scaling = NULL;
    if (draft->architecture->window_rope_base > 0) return read_two_ropes(in, draft);
    TRY(json_read_float(in, "rope_theta", 0, 1e15, &draft->rope.base));
    TRY(json_read_float(in, "partial_rotary_factor", 0, 1, &draft->rotary_part));
    TRY(json_read_object(in, "rope_parameters", &scaling));
    TRY(json_read_object(in, "rope_scaling", &scaling));
    struct json_object sub = {scaling, in.path};
    if (json_object_get(scaling, "full_attention") || json_object_get(scaling, "sliding_attention"))
        FAIL(ERR_INPUT, "%s: rope parameters that differ by layer are not supported", in.path);
    TRY(json_read_float(sub, "partial_rotary_factor", 0, 1, &draft->rotary_part));
    return read_rope(in, sub, draft, &draft->rope);
}
