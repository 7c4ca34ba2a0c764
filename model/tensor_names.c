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
