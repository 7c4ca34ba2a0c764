#include <stdio.h>
#include <string.h>

#include "model/spec_draft.h"

static const struct architecture architectures[] = {
    {
        .name = "llama",
        .model_type = "llama",
        .class_name = "LlamaForCausalLM",
        .gguf_interleaved = true,
    },
    {
        .name = "llama", // GGUF has no other name for it
        .model_type = "mistral",
        .class_name = "MistralForCausalLM",
        .gguf_interleaved = true,
        .windowed = true,
    },
    {
        .name = "qwen2",
        .model_type = "qwen2",
        .class_name = "Qwen2ForCausalLM",
        .query_key_value_bias = true,
    },
    {
        .name = "qwen3",
        .model_type = "qwen3",
        .class_name = "Qwen3ForCausalLM",
        .query_key_norm = true,
    },
    {
        .name = "deepseek_v3",
        .model_type = "deepseek_v3",
        .class_name = "DeepseekV3ForCausalLM",
        .latent = true,
    },
    {
        .name = "deepseek_v32",
        .model_type = "deepseek_v32",
        .class_name = "DeepseekV32ForCausalLM",
        .latent = true,
        .indexed = true,
    },
    {
        .name = "glm_moe_dsa",
        .model_type = "glm_moe_dsa",
        .class_name = "GlmMoeDsaForCausalLM",
        .latent = true,
        .indexed = true,
    },
#define GEMMA3                                                                                     \
    .name = "gemma3", .query_key_norm = true, .scaled_embedding = true,                            \
    .norm_place = NORM_SANDWICH, .norm_offset = 1, .scheme = TENSORS_GEMMA3, .full_every = 6,      \
    .rope_base = 1e6, .rope_base_key = "rope_theta", .window_rope_base = 10000,                    \
    .window_rope_base_key = "rope_local_base_freq", .activation_key = "hidden_activation",         \
    .activation = ACTIVATION_GELU_TANH
    {GEMMA3, .model_type = "gemma3_text"},
    {GEMMA3, .model_type = "gemma3"}, // with images: its text_config is a gemma3_text
#undef GEMMA3
    {
        .name = "modernbert",
        .model_type = "modernbert",
        .encoder = true,
        .embedding_norm = true,
        .norm = NORM_LAYER,
        .scheme = TENSORS_MODERNBERT,
        .full_every = 3,
        .full_first = true,
        .window_key = "local_attention",
        .rope_base = 160000,
        .rope_base_key = "global_rope_theta",
        .window_rope_base = 10000,
        .window_rope_base_key = "local_rope_theta",
        .epsilon_key = "norm_eps",
        .epsilon = 1e-5,
        .activation_key = "hidden_activation",
        .activation = ACTIVATION_GELU_ERF,
    },
#define BERT                                                                                       \
    .encoder = true, .no_gate = true, .embedding_norm = true, .positions = true,                   \
    .query_key_value_bias = true, .norm = NORM_LAYER, .norm_place = NORM_POST, .norm_bias = true,  \
    .scheme = TENSORS_BERT, .epsilon_key = "layer_norm_eps", .epsilon = 1e-12,                     \
    .activation = ACTIVATION_GELU_ERF
    {BERT, .name = "bert", .model_type = "bert"},
    {BERT, .name = "roberta", .model_type = "roberta", .positions_past_pad = true},
    {BERT, .name = "xlm-roberta", .model_type = "xlm-roberta", .positions_past_pad = true},
#undef BERT
};
enum { N_ARCHITECTURE = sizeof architectures / sizeof architectures[0] };

const struct architecture *architecture_find(const char *model_type, const char *class_name) {
    if (!model_type && !class_name) return NULL;
    for (int i = 0; i < N_ARCHITECTURE; ++i) {
        const struct architecture *it = &architectures[i];
        if (model_type && strcmp(model_type, it->model_type) != 0) continue;
        if (!it->class_name && !model_type) continue;
        if (class_name && it->class_name && strcmp(class_name, it->class_name) != 0) continue;
        return it;
    }
    return NULL;
}

const struct architecture *architecture_find_gguf(struct gguf_string name) {
    for (int i = 0; i < N_ARCHITECTURE; ++i) {
        const struct architecture *it = &architectures[i];
        if (it->latent || it->encoder) continue; // only read from folders
        if (name.bytes == strlen(it->name) && memcmp(name.data, it->name, name.bytes) == 0)
            return it;
    }
    return NULL;
}

const char *architecture_list(char out[ARCHITECTURE_LIST_BYTES]) {
    int at = 0;
    for (int i = 0; i < N_ARCHITECTURE; ++i)
        at += snprintf(out + at, (size_t)(ARCHITECTURE_LIST_BYTES - at), "%s%s", i ? ", " : "",
                       architectures[i].model_type);
    return out;
}
