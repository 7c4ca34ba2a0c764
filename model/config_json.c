// Fills a spec_draft from a Hugging Face folder's config.json. Absent keys take the defaults of
// transformers' classes.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/config_deepseek.h"
#include "model/config_layers.h"

static enum status read_architecture(struct json_object in, struct spec_draft *draft) {
    const char *model_type = NULL, *class_name = NULL;
    const json_t *classes = NULL;
    char list[ARCHITECTURE_LIST_BYTES];
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

static bool is_named(const struct spec_draft *draft, const char *name) {
    return strcmp(draft->architecture->name, name) == 0;
}

// Published configurations leave out what is as in the class.
static void set_defaults(struct spec_draft *draft) {
    const struct architecture *architecture = draft->architecture;
    draft->norm_eps = architecture->epsilon > 0 ? architecture->epsilon : 1e-6;
    draft->activation = architecture->activation;
    draft->encoder = architecture->encoder;
    draft->norm_offset = architecture->norm_offset;
    if (is_named(draft, "qwen3")) draft->head_dim = 128;
    if (!is_named(draft, "gemma3")) return;
    draft->n_layer = 26;
    draft->n_hidden = 2304;
    draft->n_head = 8;
    draft->n_kv_head = 4;
    draft->head_dim = 256;
    draft->n_feed_forward = 9216;
    draft->n_vocab = 262208;
    draft->context = 131072;
    draft->tied_head = true;
}

static enum status read_sizes(struct json_object in, struct spec_draft *draft) {
    const char *epsilon = draft->architecture->epsilon_key;
    TRY(json_read_int(in, "num_hidden_layers", 1, INT32_MAX, &draft->n_layer));
    TRY(json_read_int(in, "hidden_size", 1, INT32_MAX, &draft->n_hidden));
    TRY(json_read_int(in, "num_attention_heads", 1, INT32_MAX, &draft->n_head));
    TRY(json_read_int(in, "num_key_value_heads", 1, INT32_MAX, &draft->n_kv_head));
    TRY(json_read_int(in, "head_dim", 1, INT32_MAX, &draft->head_dim));
    TRY(json_read_int(in, "intermediate_size", 1, INT32_MAX, &draft->n_feed_forward));
    TRY(json_read_int(in, "vocab_size", 1, INT32_MAX, &draft->n_vocab));
    TRY(json_read_int(in, "max_position_embeddings", 1, INT64_MAX, &draft->context));
    TRY(json_read_float(in, epsilon ? epsilon : "rms_norm_eps", 0, 1, &draft->norm_eps));
    TRY(json_read_bool(in, "tie_word_embeddings", &draft->tied_head));
    if (!draft->n_layer || !draft->n_hidden || !draft->n_head || !draft->n_feed_forward ||
        !draft->context)
        FAIL(ERR_INPUT,
             "%s lacks one of num_hidden_layers, hidden_size, num_attention_heads, "
             "intermediate_size and max_position_embeddings",
             in.path);
    return OK;
}

static enum status read_activation(struct json_object in, struct spec_draft *draft) {
    static const struct {
        const char *name;
        enum activation activation;
    } activations[] = {{"silu", ACTIVATION_SILU},
                       {"swish", ACTIVATION_SILU},
                       {"gelu", ACTIVATION_GELU_ERF},
                       {"gelu_new", ACTIVATION_GELU_TANH},
                       {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH}};
    const char *key = draft->architecture->activation_key, *name = NULL;
    size_t i = 0, n = sizeof activations / sizeof activations[0];
    if (!key) key = "hidden_act";
    TRY(json_read_string(in, key, &name));
    if (!name) return OK;
    while (i < n && strcmp(activations[i].name, name) != 0) ++i;
    if (i == n) FAIL(ERR_INPUT, "%s: %s %s is not supported", in.path, key, name);
    draft->activation = activations[i].activation;
    return OK;
}

static enum status read_biases(struct json_object in, struct spec_draft *draft) {
    const struct architecture *architecture = draft->architecture;
    bool attention_bias = architecture->encoder && architecture->query_key_value_bias;
    draft->norm_bias = architecture->norm_bias;
    draft->feed_forward_bias = attention_bias;
    if (!architecture->query_key_value_bias) {
        TRY(json_read_bool(in, "attention_bias", &attention_bias));
        TRY(json_read_bool(in, "mlp_bias", &draft->feed_forward_bias));
    }
    draft->attention_bias = draft->output_bias = attention_bias;
    if (architecture->norm == NORM_LAYER) TRY(json_read_bool(in, "norm_bias", &draft->norm_bias));
    return OK;
}

static enum status read_gemma3(struct json_object in, struct spec_draft *draft) {
    double scalar = 256, cap = 0;
    TRY(json_read_float(in, "query_pre_attn_scalar", 1, 1e6, &scalar));
    draft->attention_scale = 1 / sqrt(scalar);
    TRY(json_read_float(in, "attn_logit_softcapping", 0, 1e6, &cap));
    TRY(json_read_float(in, "final_logit_softcapping", 0, 1e6, &cap));
    if (cap > 0) FAIL(ERR_INPUT, "%s: soft caps of logits are not supported", in.path);
    return json_read_bool(in, "use_bidirectional_attention", &draft->encoder);
}

// Learned positions: their rows, and the first that a token takes.
static enum status read_positions(struct json_object in, struct spec_draft *draft) {
    const char *kind = "absolute";
    bool decoder = false;
    int64_t pad = 1;
    TRY(json_read_string(in, "position_embedding_type", &kind));
    TRY(json_read_bool(in, "is_decoder", &decoder));
    if (strcmp(kind, "absolute") != 0 || decoder)
        FAIL(ERR_INPUT, "%s: %s is not supported", in.path,
             decoder ? "is_decoder" : "position_embedding_type other than absolute");
    draft->n_token_type = 2;
    TRY(json_read_int(in, "type_vocab_size", 1, INT32_MAX, &draft->n_token_type));
    draft->n_position = draft->context;
    if (!draft->architecture->positions_past_pad) return OK;
    TRY(json_read_int(in, "pad_token_id", 0, INT32_MAX, &pad));
    draft->first_position = pad + 1;
    draft->context -= pad + 1;
    return OK;
}

// What else changes the network.
static enum status read_variants(struct json_object in, struct spec_draft *draft) {
    const json_t *quantization = NULL;
    TRY(read_activation(in, draft));
    TRY(read_biases(in, draft));
    if (is_named(draft, "gemma3")) TRY(read_gemma3(in, draft));
    if (draft->architecture->positions) TRY(read_positions(in, draft));
    TRY(json_read_object(in, "quantization_config", &quantization));
    return quantization ? config_check_fp8(in, quantization) : OK;
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
    const json_t *text = NULL;
    TRY(read_architecture(in, draft));
    TRY(read_stops(in, draft));
    set_defaults(draft);
    if (strcmp(draft->architecture->model_type, "gemma3") == 0) { // the rest is about images
        TRY(json_read_object(in, "text_config", &text));
        in.json = text;
        TRY(read_stops(in, draft));
    }
    TRY(read_sizes(in, draft));
    TRY(read_variants(in, draft));
    TRY(config_read_windows(in, draft));
    if (!draft->architecture->positions) TRY(config_read_ropes(in, draft));
    return draft->architecture->latent ? config_read_deepseek(in, draft) : OK;
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
