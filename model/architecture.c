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
};
enum { N_ARCHITECTURE = sizeof architectures / sizeof architectures[0] };

const struct architecture *architecture_find(const char *model_type, const char *class_name) {
    if (!model_type && !class_name) return NULL;
    for (int i = 0; i < N_ARCHITECTURE; ++i) {
        const struct architecture *it = &architectures[i];
        if (model_type && strcmp(model_type, it->model_type) != 0) continue;
        if (class_name && strcmp(class_name, it->class_name) != 0) continue;
        return it;
    }
    return NULL;
}

const struct architecture *architecture_find_gguf(struct gguf_string name) {
    for (int i = 0; i < N_ARCHITECTURE; ++i) {
        const struct architecture *it = &architectures[i];
        if (it->latent) continue; // only read from folders
        if (name.bytes == strlen(it->name) && memcmp(name.data, it->name, name.bytes) == 0)
            return it;
    }
    return NULL;
}

const char *architecture_list(char out[128]) {
    int at = 0;
    for (int i = 0; i < N_ARCHITECTURE; ++i)
        at += snprintf(out + at, (size_t)(128 - at), "%s%s", i ? ", " : "",
                       architectures[i].model_type);
    return out;
}
