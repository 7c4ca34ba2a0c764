#include "model/tensor_names.h"

#include <stdio.h>
#include <string.h>

// Which prefixes come before, and where the number of a layer stands.
static const struct scheme {
    const char *prefixes[5]; // the usual one first, NULL after the last
    const char *layer;
} schemes[N_TENSOR_SCHEME] = {
    [TENSORS_LLAMA] = {{"model."}, "layers.%d."},
    [TENSORS_GEMMA3] = {{"model.", "language_model.model.", "model.language_model.", ""},
                        "layers.%d."},
    [TENSORS_MODERNBERT] = {{"model.", ""}, "layers.%d."},
    [TENSORS_BERT] = {{"", "bert.", "roberta."}, "encoder.layer.%d."},
    [TENSORS_GGUF] = {{""}, "blk.%d."},
};

#define LLAMA(name) [TENSORS_LLAMA] = (name)
#define GEMMA3(name) [TENSORS_GEMMA3] = (name) // where it differs from Llama's
#define MODERNBERT(name) [TENSORS_MODERNBERT] = (name)
#define BERT(name) [TENSORS_BERT] = (name)
#define GGUF(name) [TENSORS_GGUF] = (name)
// The part after prefix and layer.
static const char *const names[N_TENSOR_ROLE][N_TENSOR_SCHEME] = {
    [TENSOR_EMBEDDING] = {LLAMA("embed_tokens.weight"), GGUF("token_embd.weight"),
                          MODERNBERT("embeddings.tok_embeddings.weight"),
                          BERT("embeddings.word_embeddings.weight")},
    [TENSOR_POSITION] = {BERT("embeddings.position_embeddings.weight")},
    [TENSOR_TOKEN_TYPE] = {BERT("embeddings.token_type_embeddings.weight")},
    [TENSOR_EMBEDDING_NORM] = {MODERNBERT("embeddings.norm.weight"),
                               BERT("embeddings.LayerNorm.weight")},
    [TENSOR_EMBEDDING_NORM_BIAS] = {MODERNBERT("embeddings.norm.bias"),
                                    BERT("embeddings.LayerNorm.bias")},
    [TENSOR_FINAL_NORM] = {LLAMA("norm.weight"), GGUF("output_norm.weight"),
                           MODERNBERT("final_norm.weight")},
    [TENSOR_FINAL_NORM_BIAS] = {MODERNBERT("final_norm.bias")},
    [TENSOR_HEAD] = {LLAMA("lm_head.weight"), GGUF("output.weight")},
    [TENSOR_ATTENTION_NORM] = {LLAMA("input_layernorm.weight"), GGUF("attn_norm.weight"),
                               MODERNBERT("attn_norm.weight"),
                               BERT("attention.output.LayerNorm.weight")},
    [TENSOR_ATTENTION_NORM_BIAS] = {MODERNBERT("attn_norm.bias"),
                                    BERT("attention.output.LayerNorm.bias")},
    [TENSOR_ATTENTION_OUT_NORM] = {GEMMA3("post_attention_layernorm.weight"),
                                   GGUF("post_attention_norm.weight")},
    [TENSOR_QUERY] = {LLAMA("self_attn.q_proj.weight"), GGUF("attn_q.weight"),
                      MODERNBERT("attn.Wqkv.weight"), BERT("attention.self.query.weight")},
    [TENSOR_KEY] = {LLAMA("self_attn.k_proj.weight"), GGUF("attn_k.weight"),
                    MODERNBERT("attn.Wqkv.weight"), BERT("attention.self.key.weight")},
    [TENSOR_VALUE] = {LLAMA("self_attn.v_proj.weight"), GGUF("attn_v.weight"),
                      MODERNBERT("attn.Wqkv.weight"), BERT("attention.self.value.weight")},
    [TENSOR_OUTPUT] = {LLAMA("self_attn.o_proj.weight"), GGUF("attn_output.weight"),
                       MODERNBERT("attn.Wo.weight"), BERT("attention.output.dense.weight")},
    [TENSOR_QUERY_BIAS] = {LLAMA("self_attn.q_proj.bias"), GGUF("attn_q.bias"),
                           MODERNBERT("attn.Wqkv.bias"), BERT("attention.self.query.bias")},
    [TENSOR_KEY_BIAS] = {LLAMA("self_attn.k_proj.bias"), GGUF("attn_k.bias"),
                         MODERNBERT("attn.Wqkv.bias"), BERT("attention.self.key.bias")},
    [TENSOR_VALUE_BIAS] = {LLAMA("self_attn.v_proj.bias"), GGUF("attn_v.bias"),
                           MODERNBERT("attn.Wqkv.bias"), BERT("attention.self.value.bias")},
    [TENSOR_OUTPUT_BIAS] = {LLAMA("self_attn.o_proj.bias"), GGUF("attn_output.bias"),
                            MODERNBERT("attn.Wo.bias"), BERT("attention.output.dense.bias")},
    [TENSOR_QUERY_NORM] = {LLAMA("self_attn.q_norm.weight"), GGUF("attn_q_norm.weight")},
    [TENSOR_KEY_NORM] = {LLAMA("self_attn.k_norm.weight"), GGUF("attn_k_norm.weight")},
    [TENSOR_FEED_FORWARD_NORM] = {LLAMA("post_attention_layernorm.weight"),
                                  GEMMA3("pre_feedforward_layernorm.weight"),
                                  GGUF("ffn_norm.weight"), MODERNBERT("mlp_norm.weight"),
                                  BERT("output.LayerNorm.weight")},
    [TENSOR_FEED_FORWARD_NORM_BIAS] = {MODERNBERT("mlp_norm.bias"), BERT("output.LayerNorm.bias")},
    [TENSOR_FEED_FORWARD_OUT_NORM] = {GEMMA3("post_feedforward_layernorm.weight"),
                                      GGUF("post_ffw_norm.weight")},
    [TENSOR_GATE] = {LLAMA("mlp.gate_proj.weight"), GGUF("ffn_gate.weight"),
                     MODERNBERT("mlp.Wi.weight")},
    [TENSOR_UP] = {LLAMA("mlp.up_proj.weight"), GGUF("ffn_up.weight"), MODERNBERT("mlp.Wi.weight"),
                   BERT("intermediate.dense.weight")},
    [TENSOR_DOWN] = {LLAMA("mlp.down_proj.weight"), GGUF("ffn_down.weight"),
                     MODERNBERT("mlp.Wo.weight"), BERT("output.dense.weight")},
    [TENSOR_GATE_BIAS] = {LLAMA("mlp.gate_proj.bias"), MODERNBERT("mlp.Wi.bias")},
    [TENSOR_UP_BIAS] = {LLAMA("mlp.up_proj.bias"), MODERNBERT("mlp.Wi.bias"),
                        BERT("intermediate.dense.bias")},
    [TENSOR_DOWN_BIAS] = {LLAMA("mlp.down_proj.bias"), MODERNBERT("mlp.Wo.bias"),
                          BERT("output.dense.bias")},
    [TENSOR_QUERY_DOWN] = {LLAMA("self_attn.q_a_proj.weight"), GGUF("attn_q_a.weight")},
    [TENSOR_QUERY_DOWN_NORM] = {LLAMA("self_attn.q_a_layernorm.weight"),
                                GGUF("attn_q_a_norm.weight")},
    [TENSOR_QUERY_UP] = {LLAMA("self_attn.q_b_proj.weight"), GGUF("attn_q_b.weight")},
    [TENSOR_LATENT] = {LLAMA("self_attn.kv_a_proj_with_mqa.weight"), GGUF("attn_kv_a_mqa.weight")},
    [TENSOR_LATENT_NORM] = {LLAMA("self_attn.kv_a_layernorm.weight"),
                            GGUF("attn_kv_a_norm.weight")},
    [TENSOR_LATENT_UP] = {LLAMA("self_attn.kv_b_proj.weight"), GGUF("attn_kv_b.weight")},
    [TENSOR_INDEX_QUERY] = {LLAMA("self_attn.indexer.wq_b.weight"), GGUF("indexer.wq_b.weight")},
    [TENSOR_INDEX_KEY] = {LLAMA("self_attn.indexer.wk.weight"), GGUF("indexer.wk.weight")},
    [TENSOR_INDEX_KEY_NORM] = {LLAMA("self_attn.indexer.k_norm.weight"),
                               GGUF("indexer.k_norm.weight")},
    [TENSOR_INDEX_KEY_BIAS] = {LLAMA("self_attn.indexer.k_norm.bias"), GGUF("indexer.k_norm.bias")},
    [TENSOR_INDEX_WEIGHT] = {LLAMA("self_attn.indexer.weights_proj.weight"),
                             GGUF("indexer.weights_proj.weight")},
    [TENSOR_ROUTER] = {LLAMA("mlp.gate.weight"), GGUF("ffn_gate_inp.weight")},
    [TENSOR_ROUTER_BIAS] = {LLAMA("mlp.gate.e_score_correction_bias"), GGUF("exp_probs_b.bias")},
    [TENSOR_SHARED_GATE] = {LLAMA("mlp.shared_experts.gate_proj.weight"),
                            GGUF("ffn_gate_shexp.weight")},
    [TENSOR_SHARED_UP] = {LLAMA("mlp.shared_experts.up_proj.weight"), GGUF("ffn_up_shexp.weight")},
    [TENSOR_SHARED_DOWN] = {LLAMA("mlp.shared_experts.down_proj.weight"),
                            GGUF("ffn_down_shexp.weight")},
};

const char *tensor_expert_name(enum expert_matrix matrix, int layer, int expert,
                               char out[TENSOR_NAME_BYTES]) {
    static const char *const parts[N_EXPERT_MATRIX] = {"gate_proj", "up_proj", "down_proj"};
    snprintf(out, TENSOR_NAME_BYTES, "model.layers.%d.mlp.experts.%d.%s.weight", layer, expert,
             parts[matrix]);
    return out;
}

const char *tensor_prefix(enum tensor_scheme scheme, int i) {
    return schemes[scheme].prefixes[i];
}

static const char *part_of(enum tensor_scheme scheme, enum tensor_role role) {
    const char *part = names[role][scheme];
    if (!part && scheme == TENSORS_GEMMA3) part = names[role][TENSORS_LLAMA];
    return part ? part : "(none)";
}

const char *tensor_name(struct tensor_naming naming, enum tensor_role role, int layer,
                        char out[TENSOR_NAME_BYTES]) {
    const struct scheme *scheme = &schemes[naming.scheme];
    const char *prefix = naming.prefix ? naming.prefix : scheme->prefixes[0];
    // The output matrix lies beside the model, not in it.
    if (role == TENSOR_HEAD)
        prefix = strcmp(prefix, "language_model.model.") == 0 ? "language_model." : "";
    int at = snprintf(out, TENSOR_NAME_BYTES, "%s", prefix);
    if (role > TENSOR_HEAD)
        at += snprintf(out + at, TENSOR_NAME_BYTES - (size_t)at, scheme->layer, layer);
    snprintf(out + at, TENSOR_NAME_BYTES - (size_t)at, "%s", part_of(naming.scheme, role));
    return out;
}

struct tensor_rows tensor_stored_rows(const struct model_spec *spec, enum tensor_scheme scheme,
                                      enum tensor_role role, int layer) {
    if (scheme != TENSORS_MODERNBERT || role <= TENSOR_HEAD) return (struct tensor_rows){0};
    // Wqkv is query, key and value; Wi what is activated, then what that multiplies.
    const struct layer_spec *l = &spec->layers[layer];
    int64_t q = (int64_t)l->n_head * l->head_dim, kv = (int64_t)l->n_kv_head * l->head_dim;
    switch (role) {
    case TENSOR_QUERY:
    case TENSOR_QUERY_BIAS:
        return (struct tensor_rows){0, q + 2 * kv};
    case TENSOR_KEY:
    case TENSOR_KEY_BIAS:
        return (struct tensor_rows){q, q + 2 * kv};
    case TENSOR_VALUE:
    case TENSOR_VALUE_BIAS:
        return (struct tensor_rows){q + kv, q + 2 * kv};
    case TENSOR_GATE:
    case TENSOR_GATE_BIAS:
        return (struct tensor_rows){0, (int64_t)2 * l->n_feed_forward};
    case TENSOR_UP:
    case TENSOR_UP_BIAS:
        return (struct tensor_rows){l->n_feed_forward, (int64_t)2 * l->n_feed_forward};
    default:
        return (struct tensor_rows){0};
    }
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
    bool gated = l->feed_forward == FEED_FORWARD_GATED;
    int64_t inner = l->n_feed_forward;
    const struct possible_need list[] = {
        {{TENSOR_GATE, inner, hidden}, gated},
        {{TENSOR_UP, inner, hidden}, !experts},
        {{TENSOR_DOWN, hidden, inner}, !experts},
        {{TENSOR_GATE_BIAS, inner, 0}, gated && l->feed_forward_bias},
        {{TENSOR_UP_BIAS, inner, 0}, !experts && l->feed_forward_bias},
        {{TENSOR_DOWN_BIAS, hidden, 0}, !experts && l->feed_forward_bias},
        {{TENSOR_ROUTER, l->experts.n_expert, hidden}, experts},
        {{TENSOR_ROUTER_BIAS, l->experts.n_expert, 0}, experts && l->experts.bias},
        {{TENSOR_SHARED_GATE, inner, hidden}, shared},
        {{TENSOR_SHARED_UP, inner, hidden}, shared},
        {{TENSOR_SHARED_DOWN, hidden, inner}, shared},
    };
    return ADD_NEEDS(list, out);
}

static int norm_needs(const struct layer_spec *l, int64_t hidden, struct tensor_need *out) {
    bool sandwich = l->norm_place == NORM_SANDWICH;
    const struct possible_need list[] = {
        {{TENSOR_ATTENTION_NORM, hidden, 0}, l->attention_norm},
        {{TENSOR_ATTENTION_NORM_BIAS, hidden, 0}, l->attention_norm && l->norm_bias},
        {{TENSOR_ATTENTION_OUT_NORM, hidden, 0}, sandwich},
        {{TENSOR_FEED_FORWARD_NORM, hidden, 0}, true},
        {{TENSOR_FEED_FORWARD_NORM_BIAS, hidden, 0}, l->norm_bias},
        {{TENSOR_FEED_FORWARD_OUT_NORM, hidden, 0}, sandwich},
    };
    return ADD_NEEDS(list, out);
}

int tensor_layer_needs(const struct model_spec *spec, int layer,
                       struct tensor_need out[LAYER_TENSORS]) {
    const struct layer_spec *l = &spec->layers[layer];
    int64_t hidden = spec->n_hidden;
    int n = norm_needs(l, hidden, out);
    n += l->attention == ATTENTION_LATENT ? latent_needs(l, hidden, out + n)
                                          : full_needs(l, hidden, out + n);
    n += index_needs(l, hidden, out + n);
    return n + feed_forward_needs(l, hidden, out + n);
}

int tensor_outer_needs(const struct model_spec *spec, struct tensor_need out[LAYER_TENSORS]) {
    int64_t hidden = spec->n_hidden;
    bool bias = spec->layers[0].norm_bias, positions = spec->n_position > 0;
    const struct possible_need list[] = {
        {{TENSOR_EMBEDDING, spec->n_vocab, hidden}, true},
        {{TENSOR_POSITION, spec->n_position, hidden}, positions},
        {{TENSOR_TOKEN_TYPE, spec->n_token_type, hidden}, positions},
        {{TENSOR_EMBEDDING_NORM, hidden, 0}, spec->embedding_norm},
        {{TENSOR_EMBEDDING_NORM_BIAS, hidden, 0}, spec->embedding_norm && bias},
        {{TENSOR_FINAL_NORM, hidden, 0}, spec->final_norm},
        {{TENSOR_FINAL_NORM_BIAS, hidden, 0}, spec->final_norm && bias},
        {{TENSOR_HEAD, spec->n_vocab, hidden}, spec->causal},
    };
    return ADD_NEEDS(list, out);
}
