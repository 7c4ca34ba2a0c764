// Fills a spec_draft from a Hugging Face folder's config.json: transformers 4 (rope_theta and
// rope_scaling) and 5 (rope_parameters). Absent keys take the defaults of transformers' classes.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/config_deepseek.h"
#include "model/config_rope.h"
#include "model/json_util.h"
#include "model/spec_draft.h"

static enum status read_architecture(struct json_object in, struct spec_draft *draft) {
    const char *model_type = NULL, *class_name = NULL;
    const json_t *classes = NULL;
    char list[128];
    TRY(json_read_string(in, "model_type", &model_type));
    TRY(json_read_array(in, "architectures", &classes));
    if (classes && json_array_size(classes)) {
        class_name = json_string_value(json_array_get(classes, 0));
        if (!class_name) FAIL(ERR_INPUT, "%s: architectures holds no names", in.path);
    }
    draft->architecture = architecture_find(model_type, class_name);
    if (!draft->architecture)
        FAIL(ERR_INPUT, "%s: architecture %s (model_type %s) is not supported; %s are", in.path,
             class_name ? class_name : "(none)", model_type ? model_type : "(none)",
             architecture_list(list));
    return OK;
}

static enum status read_sizes(struct json_object in, struct spec_draft *draft) {
    bool is_qwen3 = strcmp(draft->architecture->name, "qwen3") == 0;
    if (is_qwen3) draft->head_dim = 128;
    draft->norm_eps = 1e-6;
    TRY(json_read_int(in, "num_hidden_layers", 1, INT32_MAX, &draft->n_layer));
    TRY(json_read_int(in, "hidden_size", 1, INT32_MAX, &draft->n_hidden));
    TRY(json_read_int(in, "num_attention_heads", 1, INT32_MAX, &draft->n_head));
    TRY(json_read_int(in, "num_key_value_heads", 1, INT32_MAX, &draft->n_kv_head));
    TRY(json_read_int(in, "head_dim", 1, INT32_MAX, &draft->head_dim));
    TRY(json_read_int(in, "intermediate_size", 1, INT32_MAX, &draft->n_feed_forward));
    TRY(json_read_int(in, "vocab_size", 1, INT32_MAX, &draft->n_vocab));
    TRY(json_read_int(in, "max_position_embeddings", 1, INT64_MAX, &draft->context));
    TRY(json_read_float(in, "rms_norm_eps", 0, 1, &draft->norm_eps));
    TRY(json_read_bool(in, "tie_word_embeddings", &draft->tied_head));
    if (!draft->n_layer || !draft->n_hidden || !draft->n_head || !draft->n_feed_forward ||
        !draft->context)
        FAIL(ERR_INPUT,
             "%s lacks one of num_hidden_layers, hidden_size, num_attention_heads, "
             "intermediate_size and max_position_embeddings",
             in.path);
    return OK;
}

// What would change the network in ways that are not computed.
static enum status read_variants(struct json_object in, struct spec_draft *draft) {
    static const struct {
        const char *name;
        enum activation activation;
    } activations[] = {{"silu", ACTIVATION_SILU},
                       {"swish", ACTIVATION_SILU},
                       {"gelu", ACTIVATION_GELU_ERF},
                       {"gelu_new", ACTIVATION_GELU_TANH},
                       {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH}};
    const char *name = "silu";
    bool mlp_bias = false, attention_bias = false;
    const json_t *quantization = NULL;
    size_t i = 0, n = sizeof activations / sizeof activations[0];
    TRY(json_read_string(in, "hidden_act", &name));
    while (i < n && strcmp(activations[i].name, name) != 0) ++i;
    if (i == n) FAIL(ERR_INPUT, "%s: hidden_act %s is not supported", in.path, name);
    draft->activation = activations[i].activation;
    TRY(json_read_bool(in, "mlp_bias", &mlp_bias));
    if (mlp_bias) FAIL(ERR_INPUT, "%s: mlp_bias is not supported", in.path);
    if (!draft->architecture->query_key_value_bias)
        TRY(json_read_bool(in, "attention_bias", &attention_bias));
    draft->attention_bias = draft->output_bias = attention_bias;
    TRY(json_read_object(in, "quantization_config", &quantization));
    return quantization ? config_check_fp8(in, quantization) : OK;
}

// Which layers attend to a window: layer_types when given, else use_sliding_window and
// max_window_layers (Qwen) or the mere presence of sliding_window (Mistral).
static enum status read_window(struct json_object in, struct spec_draft *draft) {
    bool used = draft->architecture->windowed;
    int64_t window = 0, n_full = 0;
    const json_t *types = NULL;
    TRY(json_read_int(in, "sliding_window", 1, INT64_MAX, &window));
    if (!draft->architecture->windowed) {
        TRY(json_read_bool(in, "use_sliding_window", &used));
        TRY(json_read_int(in, "max_window_layers", 0, INT32_MAX, &n_full));
        used = used && n_full < draft->n_layer;
    }
    TRY(json_read_array(in, "layer_types", &types));
    if (types) used = false;
    for (size_t i = 0; i < json_array_size(types); ++i) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type && strcmp(type, "sliding_attention") == 0)
            used = true;
        else if (!type ||
                 (strcmp(type, "full_attention") != 0 &&
                  !(draft->architecture->indexed && strcmp(type, "indexed_attention") == 0)))
            FAIL(ERR_INPUT, "%s: layer type %s is not supported", in.path, type ? type : "?");
    }
    draft->window = used ? window : 0;
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

static enum status read_rope(struct json_object in, struct spec_draft *draft) {
    struct rope_spec *rope = &draft->rope;
    const json_t *scaling = NULL;
    double factor = 0;
    TRY(json_read_float(in, "rope_theta", 0, 1e15, &rope->base));
    TRY(json_read_float(in, "partial_rotary_factor", 0, 1, &draft->rotary_part));
    TRY(json_read_object(in, "rope_parameters", &scaling));
    TRY(json_read_object(in, "rope_scaling", &scaling));
    struct json_object sub = {scaling, in.path};
    if (json_object_get(scaling, "full_attention") || json_object_get(scaling, "sliding_attention"))
        FAIL(ERR_INPUT, "%s: rope parameters that differ by layer are not supported", in.path);
    TRY(json_read_float(sub, "rope_theta", 0, 1e15, &rope->base));
    TRY(json_read_float(sub, "partial_rotary_factor", 0, 1, &draft->rotary_part));
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
    if (rope->method == ROPE_LONGROPE) TRY(config_read_longrope(sub, rope));
    return OK;
}

static enum status read_stops(struct json_object in, struct spec_draft *draft) {
    const json_t *value = json_object_get(in.json, "eos_token_id");
    if (!value || json_is_null(value)) return OK;
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; i < n; ++i) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id))
            FAIL(ERR_INPUT, "%s: eos_token_id is neither an integer nor a list of them", in.path);
        TRY(spec_draft_add_stop(draft, json_integer_value(id), in.path));
    }
    return OK;
}

static enum status read_config(struct json_object in, struct spec_draft *draft) {
    TRY(read_architecture(in, draft));
    TRY(read_sizes(in, draft));
    TRY(read_variants(in, draft));
    TRY(read_window(in, draft));
    TRY(read_rope(in, draft));
    if (draft->architecture->latent) TRY(config_read_deepseek(in, draft));
    return read_stops(in, draft);
}

enum status spec_draft_read_json(const char *text, size_t bytes, const char *path,
                                 struct spec_draft *draft) {
    json_t *root;
    TRY(json_read_text(text, bytes, path, &root));
    enum status status = read_config((struct json_object){root, path}, draft);
    json_decref(root);
    return status;
}

enum status spec_draft_read_generation(const char *text, size_t bytes, const char *path,
                                       struct spec_draft *draft) {
    json_t *root;
    TRY(json_read_text(text, bytes, path, &root));
    enum status status = read_stops((struct json_object){root, path}, draft);
    json_decref(root);
    return status;
}
