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
    [TENSOR_QUERY_DOWN] = {true, "self_attn.q_a_proj.weight", "attn_q_a.weight"},
    [TENSOR_QUERY_DOWN_NORM] = {true, "self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
    [TENSOR_QUERY_UP] = {true, "self_attn.q_b_proj.weight", "attn_q_b.weight"},
    [TENSOR_LATENT] = {true, "self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
    [TENSOR_LATENT_NORM] = {true, "self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
    [TENSOR_LATENT_UP] = {true, "self_attn.kv_b_proj.weight", "attn_kv_b.weight"},
    [TENSOR_INDEX_QUERY] = {true, "self_attn.indexer.wq_b.weight", "indexer.wq_b.weight"},
    [TENSOR_INDEX_KEY] = {true, "self_attn.indexer.wk.weight", "indexer.wk.weight"},
    [TENSOR_INDEX_KEY_NORM] = {true, "self_attn.indexer.k_norm.weight", "indexer.k_norm.weight"},
    [TENSOR_INDEX_KEY_BIAS] = {true, "self_attn.indexer.k_norm.bias", "indexer.k_norm.bias"},
    [TENSOR_INDEX_WEIGHT] = {true, "self_attn.indexer.weights_proj.weight",
                             "indexer.weights_proj.weight"},
    [TENSOR_ROUTER] = {true, "mlp.gate.weight", "ffn_gate_inp.weight"},
    [TENSOR_ROUTER_BIAS] = {true, "mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
    [TENSOR_SHARED_GATE] = {true, "mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
    [TENSOR_SHARED_UP] = {true, "mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
    [TENSOR_SHARED_DOWN] = {true, "mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"},
};

const char *tensor_expert_name(enum expert_matrix matrix, int layer, int expert,
                               char out[TENSOR_NAME_BYTES]) {
    static const char *const parts[N_EXPERT_MATRIX] = {"gate_proj", "up_proj", "down_proj"};
    snprintf(out, TENSOR_NAME_BYTES, "model.layers.%d.mlp.experts.%d.%s.weight", layer, expert,
             parts[matrix]);
    return out;
}

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

struct possible_need {
    struct tensor_need need;
    bool present;
};

static int add_needs(const struct possible_need *list, int n_list, struct tensor_need *out) {
    int n = 0;
    for (int i = 0; i < n_list; i++)
        if (list[i].present) out[n++] = list[i].need;
    return n;
}
#define ADD_NEEDS(list, out) add_needs(list, (int)(sizeof(list) / sizeof *(list)), out)

static int full_needs(const struct layer_spec *l, int64_t hidden, struct tensor_need *out) {
    int64_t q = (int64_t)l->n_head * l->head_dim, kv = (int64_t)l->n_kv_head * l->head_dim;
    const struct possible_need list[] = {
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
    };
    return ADD_NEEDS(list, out);
}

static int latent_needs(const struct layer_spec *l, int64_t hidden, struct tensor_need *out) {
    const struct latent_spec *latent = &l->latent;
    int64_t n_head = l->n_head, query_rank = latent->query_rank;
    int64_t q = n_head * (latent->nope_dim + latent->rope_dim);
    const struct possible_need list[] = {
        {{TENSOR_QUERY_DOWN, query_rank, hidden}, query_rank > 0},
        {{TENSOR_QUERY_DOWN_NORM, query_rank, 0}, query_rank > 0},
        {{TENSOR_QUERY_UP, q, query_rank}, query_rank > 0},
        {{TENSOR_QUERY, q, hidden}, query_rank == 0},
        {{TENSOR_LATENT, latent->rank + latent->rope_dim, hidden}, true},
        {{TENSOR_LATENT_NORM, latent->rank, 0}, true},
        {{TENSOR_LATENT_UP, n_head * (latent->nope_dim + latent->value_dim), latent->rank}, true},
        {{TENSOR_OUTPUT, hidden, n_head * latent->value_dim}, true},
    };
    return ADD_NEEDS(list, out);
}

static int index_needs(const struct layer_spec *l, int64_t hidden, struct tensor_need *out) {
    const struct index_spec *index = &l->index;
    int64_t input = index->from_latent ? l->latent.query_rank : hidden;
    bool full = index->layout == INDEX_FULL;
    const struct possible_need list[] = {
        {{TENSOR_INDEX_QUERY, (int64_t)index->n_head * index->head_dim, input}, full},
        {{TENSOR_INDEX_KEY, index->head_dim, hidden}, full},
        {{TENSOR_INDEX_KEY_NORM, index->head_dim, 0}, full},
        {{TENSOR_INDEX_KEY_BIAS, index->head_dim, 0}, full},
        {{TENSOR_INDEX_WEIGHT, index->n_head, hidden}, full},
    };
    return ADD_NEEDS(list, out);
}

static int feed_forward_needs(const struct layer_spec *l, int64_t hidden, struct tensor_need *out) {
    bool experts = l->feed_forward == FEED_FORWARD_EXPERTS;
    bool shared = experts && l->experts.n_shared > 0;
    int64_t inner = l->n_feed_forward;
    const struct possible_need list[] = {
        {{TENSOR_GATE, inner, hidden}, !experts},
        {{TENSOR_UP, inner, hidden}, !experts},
        {{TENSOR_DOWN, hidden, inner}, !experts},
        {{TENSOR_ROUTER, l->experts.n_expert, hidden}, experts},
        {{TENSOR_ROUTER_BIAS, l->experts.n_expert, 0}, experts && l->experts.bias},
        {{TENSOR_SHARED_GATE, inner, hidden}, shared},
        {{TENSOR_SHARED_UP, inner, hidden}, shared},
        {{TENSOR_SHARED_DOWN, hidden, inner}, shared},
    };
    return ADD_NEEDS(list, out);
}

int tensor_layer_needs(const struct model_spec *spec, int layer,
                       struct tensor_need out[LAYER_TENSORS]) {
    const struct layer_spec *l = &spec->layers[layer];
    int64_t hidden = spec->n_hidden;
    int n = 0;
    out[n++] = (struct tensor_need){TENSOR_ATTENTION_NORM, hidden, 0};
    n += l->attention == ATTENTION_LATENT ? latent_needs(l, hidden, out + n)
                                          : full_needs(l, hidden, out + n);
    n += index_needs(l, hidden, out + n);
    out[n++] = (struct tensor_need){TENSOR_FEED_FORWARD_NORM, hidden, 0};
    return n + feed_forward_needs(l, hidden, out + n);
}
