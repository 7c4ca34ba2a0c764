#include "model/tensor_names.h"

#include <stdio.h>

// The part after "model.layers.N." or "blk.N.", or the whole name outside layers.
static const struct {
    bool in_layer;
    const char *folder, *gguf;
} names[N_TENSOR_ROLE] = {
    [TENSOR_EMBEDDING] = {false, "model.embed_tokens.weight", "token_embd.weight"},
    [TENSOR_FINAL_NORM] = {false, "model.norm.weight", "output_norm.weight"},
    [TENSOR_HEAD] = {false, "lm_head.weight", "output.weight"},
    [TENSOR_ATTENTION_NORM] = {true, "input_layernorm.weight", "attn_norm.weight"},
    [TENSOR_QUERY] = {true, "self_attn.q_proj.weight", "attn_q.weight"},
    [TENSOR_KEY] = {true, "self_attn.k_proj.weight", "attn_k.weight"},
    [TENSOR_VALUE] = {true, "self_attn.v_proj.weight", "attn_v.weight"},
    [TENSOR_OUTPUT] = {true, "self_attn.o_proj.weight", "attn_output.weight"},
    [TENSOR_QUERY_BIAS] = {true, "self_attn.q_proj.bias", "attn_q.bias"},
    [TENSOR_KEY_BIAS] = {true, "self_attn.k_proj.bias", "attn_k.bias"},
    [TENSOR_VALUE_BIAS] = {true, "self_attn.v_proj.bias", "attn_v.bias"},
    [TENSOR_OUTPUT_BIAS] = {true, "self_attn.o_proj.bias", "attn_output.bias"},
    [TENSOR_QUERY_NORM] = {true, "self_attn.q_norm.weight", "attn_q_norm.weight"},
    [TENSOR_KEY_NORM] = {true, "self_attn.k_norm.weight", "attn_k_norm.weight"},
    [TENSOR_FEED_FORWARD_NORM] = {true, "post_attention_layernorm.weight", "ffn_norm.weight"},
    [TENSOR_GATE] = {true, "mlp.gate_proj.weight", "ffn_gate.weight"},
    [TENSOR_UP] = {true, "mlp.up_proj.weight", "ffn_up.weight"},
    [TENSOR_DOWN] = {true, "mlp.down_proj.weight", "ffn_down.weight"},
};

const char *tensor_name(enum tensor_role role, int layer, bool gguf, char out[TENSOR_NAME_BYTES]) {
    const char *part = gguf ? names[role].gguf : names[role].folder;
    if (!names[role].in_layer)
        snprintf(out, TENSOR_NAME_BYTES, "%s", part);
    else if (gguf)
        snprintf(out, TENSOR_NAME_BYTES, "blk.%d.%s", layer, part);
    else
        snprintf(out, TENSOR_NAME_BYTES, "model.layers.%d.%s", layer, part);
    return out;
}

int tensor_layer_needs(const struct model_spec *spec, int layer,
                       struct tensor_need out[LAYER_TENSORS]) {
    const struct layer_spec *l = &spec->layers[layer];
    int64_t hidden = spec->n_hidden, inner = l->n_feed_forward;
    int64_t q = (int64_t)l->n_head * l->head_dim, kv = (int64_t)l->n_kv_head * l->head_dim;
    const struct {
        struct tensor_need need;
        bool present;
    } list[LAYER_TENSORS] = {
        {{TENSOR_ATTENTION_NORM, hidden, 0}, true},
        {{TENSOR_QUERY, q, hidden}, true},
        {{TENSOR_KEY, kv, hidden}, true},
        {{TENSOR_VALUE, kv, hidden}, true},
        {{TENSOR_OUTPUT, hidden, q}, true},
        {{TENSOR_QUERY_BIAS, q, 0}, l->attention_bias},
        {{TENSOR_KEY_BIAS, kv, 0}, l->attention_bias},
        {{TENSOR_VALUE_BIAS, kv, 0}, l->attention_bias},
        {{TENSOR_OUTPUT_BIAS, hidden, 0}, l->output_bias},
        {{TENSOR_QUERY_NORM, l->head_dim, 0}, l->query_key_norm},
        {{TENSOR_KEY_NORM, l->head_dim, 0}, l->query_key_norm},
        {{TENSOR_FEED_FORWARD_NORM, hidden, 0}, true},
        {{TENSOR_GATE, inner, hidden}, true},
        {{TENSOR_UP, inner, hidden}, true},
        {{TENSOR_DOWN, hidden, inner}, true},
    };
    int n = 0;
    for (int i = 0; i < LAYER_TENSORS; i++)
        if (list[i].present) out[n++] = list[i].need;
    return n;
}
