#include "model/config_deepseek.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static enum status read_int(struct json_object in, const char *key, int64_t low, int *out) {
    int64_t value = *out;
    TRY(json_read_int(in, key, low, 1 << 20, &value));
    *out = (int)value;
    return OK;
}

static enum status refuse_other(struct json_object in, const char *key, const char *supported) {
    const char *value = supported;
    TRY(json_read_string(in, key, &value));
    if (strcmp(value, supported) != 0)
        FAIL(ERR_INPUT, "%s: %s = %s is not supported; %s is", in.path, key, value, supported);
    return OK;
}

// Element i of an array of words is `first` or `second`: marks[i] says which. An absent array
// leaves the marks alone.
static enum status read_words(struct json_object in, const char *key, const char *first,
                              const char *second, int64_t n, bool *marks) {
    const json_t *array = NULL;
    TRY(json_read_array(in, key, &array));
    if (!array) return OK;
    if ((int64_t)json_array_size(array) != n)
        FAIL(ERR_INPUT, "%s: %s has %zu entries for %" PRId64 " layers", in.path, key,
             json_array_size(array), n);
    for (int64_t i = 0; i < n; i++) {
        const char *word = json_string_value(json_array_get(array, (size_t)i));
        if (!word || (strcmp(word, first) != 0 && strcmp(word, second) != 0))
            FAIL(ERR_INPUT, "%s: %s[%" PRId64 "] is neither %s nor %s", in.path, key, i, first,
                 second);
        marks[i] = strcmp(word, second) == 0;
    }
    return OK;
}

// The factor that YaRN puts on the scores: Peng et al. 2023, section 3.4, squared (one for the
// query, one for the key), where DeepSeek gives mscale_all_dim.
static enum status read_score_factor(struct json_object in, const struct spec_draft *draft,
                                     double *out) {
    const json_t *rope = NULL;
    double all_dim = 0;
    *out = 1;
    TRY(json_read_object(in, "rope_parameters", &rope));
    TRY(json_read_object(in, "rope_scaling", &rope));
    TRY(json_read_float((struct json_object){rope, in.path}, "mscale_all_dim", 0, 1e3, &all_dim));
    if (draft->rope.method != ROPE_YARN || all_dim == 0 || draft->rope.factor <= 1) return OK;
    double scale = 0.1 * all_dim * log(draft->rope.factor) + 1;
    *out = scale * scale;
    return OK;
}

static enum status read_latent(struct json_object in, struct spec_draft *draft) {
    bool bias = false;
    double factor;
    struct latent_spec *latent = &draft->latent;
    *latent = (struct latent_spec){.query_rank = 0, .norm_eps = 1e-6f}; // transformers' default
    TRY(read_int(in, "q_lora_rank", 1, &latent->query_rank));
    TRY(read_int(in, "kv_lora_rank", 1, &latent->rank));
    TRY(read_int(in, "qk_nope_head_dim", 1, &latent->nope_dim));
    TRY(read_int(in, "qk_rope_head_dim", 2, &latent->rope_dim));
    TRY(read_int(in, "v_head_dim", 1, &latent->value_dim));
    if (!latent->rank || !latent->nope_dim || !latent->rope_dim || !latent->value_dim)
        FAIL(ERR_INPUT,
             "%s lacks one of kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and v_head_dim",
             in.path);
    if (latent->rank % 8 || latent->rope_dim % 8 || latent->value_dim % 8 || latent->nope_dim % 8)
        FAIL(ERR_INPUT,
             "%s: latent attention of %d, %d, %d and %d elements: all must be multiples of 8",
             in.path, latent->rank, latent->nope_dim, latent->rope_dim, latent->value_dim);
    TRY(json_read_bool(in, "attention_bias", &bias));
    if (bias) FAIL(ERR_INPUT, "%s: attention_bias with latent attention is not supported", in.path);
    TRY(read_score_factor(in, draft, &factor));
    draft->attention_scale = factor / sqrt((double)(latent->nope_dim + latent->rope_dim));
    draft->head_dim = latent->rank + latent->rope_dim;
    draft->n_kv_head = 1;
    draft->rope.dim = latent->rope_dim;
    draft->rope.interleaved = true;
    return json_read_bool(in, "rope_interleave", &draft->rope.interleaved);
}

static enum status read_experts(struct json_object in, struct spec_draft *draft) {
    struct expert_spec *e = &draft->experts;
    bool is_glm = strcmp(draft->architecture->name, "glm_moe_dsa") == 0;
    double scale = 2.5; // this and what follows: transformers' defaults
    int64_t n_dense = 3, frequency = 1;
    e->normalise = true;
    e->bias = true;
    e->n_shared = 1;
    e->n_group = is_glm ? 1 : 8;
    e->n_group_used = is_glm ? 1 : 4;
    TRY(refuse_other(in, "scoring_func", "sigmoid"));
    TRY(refuse_other(in, "topk_method", "noaux_tc"));
    TRY(read_int(in, "n_routed_experts", 1, &e->n_expert));
    TRY(read_int(in, "num_experts_per_tok", 1, &e->n_used));
    TRY(read_int(in, "n_group", 1, &e->n_group));
    TRY(read_int(in, "topk_group", 1, &e->n_group_used));
    TRY(read_int(in, "n_shared_experts", 0, &e->n_shared));
    TRY(read_int(in, "moe_intermediate_size", 1, &e->n_feed_forward));
    TRY(json_read_bool(in, "norm_topk_prob", &e->normalise));
    TRY(json_read_float(in, "routed_scaling_factor", 0, 1e6, &scale));
    TRY(json_read_int(in, "first_k_dense_replace", 0, INT32_MAX, &n_dense));
    TRY(json_read_int(in, "moe_layer_freq", 1, INT32_MAX, &frequency));
    e->scale = (float)scale;
    if (frequency != 1)
        FAIL(ERR_INPUT, "%s: moe_layer_freq other than 1 is not supported", in.path);
    if (!e->n_expert || !e->n_used || !e->n_feed_forward)
        FAIL(ERR_INPUT,
             "%s lacks one of n_routed_experts, num_experts_per_tok and moe_intermediate_size",
             in.path);
    int in_group = e->n_expert / e->n_group;
    if (e->n_expert % e->n_group || e->n_group_used > e->n_group ||
        e->n_used > e->n_group_used * in_group)
        FAIL(ERR_INPUT, "%s: %d experts in %d groups cannot give %d from %d groups", in.path,
             e->n_expert, e->n_group, e->n_used, e->n_group_used);
    for (int64_t i = 0; i < draft->n_layer; i++) draft->has_experts[i] = i >= n_dense;
    return read_words(in, "mlp_layer_types", "dense", "sparse", draft->n_layer, draft->has_experts);
}

// "FSSF": full and shared layers as one word.
static enum status read_pattern(struct json_object in, const char *pattern,
                                struct spec_draft *draft) {
    if ((int64_t)strlen(pattern) != draft->n_layer)
        FAIL(ERR_INPUT, "%s: index_topk_pattern has %zu letters for %" PRId64 " layers", in.path,
             strlen(pattern), draft->n_layer);
    for (int64_t i = 0; i < draft->n_layer; i++) {
        if (pattern[i] != 'F' && pattern[i] != 'S')
            FAIL(ERR_INPUT, "%s: index_topk_pattern holds letters other than F and S", in.path);
        draft->shares_index[i] = pattern[i] == 'S';
    }
    return OK;
}

static enum status read_sharing(struct json_object in, struct spec_draft *draft) {
    const char *pattern = NULL;
    int64_t frequency = 1, offset = 2;
    TRY(json_read_int(in, "index_topk_freq", 1, INT32_MAX, &frequency));
    TRY(json_read_int(in, "index_skip_topk_offset", 0, INT32_MAX, &offset));
    for (int64_t i = 0; i < draft->n_layer; i++) {
        int64_t past = i - offset + 1;
        draft->shares_index[i] = past > 0 && past % frequency != 0;
    }
    if (json_is_string(json_object_get(in.json, "index_topk_pattern"))) {
        TRY(json_read_string(in, "index_topk_pattern", &pattern));
        TRY(read_pattern(in, pattern, draft));
    } else {
        TRY(read_words(in, "index_topk_pattern", "full", "shared", draft->n_layer,
                       draft->shares_index));
    }
    TRY(read_words(in, "indexer_types", "full", "shared", draft->n_layer, draft->shares_index));
    if (draft->shares_index[0])
        FAIL(ERR_INPUT, "%s: the first layer shares the selection of a layer before it", in.path);
    return OK;
}

static enum status read_index(struct json_object in, struct spec_draft *draft) {
    bool is_glm = strcmp(draft->architecture->name, "glm_moe_dsa") == 0;
    struct index_spec *index = &draft->index;
    *index = (struct index_spec){.layout = INDEX_FULL,
                                 .n_head = is_glm ? 32 : 64,
                                 .head_dim = 128,
                                 .k = 2048,
                                 .from_latent = draft->latent.query_rank > 0,
                                 .norm_eps = 1e-6f};
    draft->index_interleaved = is_glm;
    TRY(read_int(in, "index_n_heads", 1, &index->n_head));
    TRY(read_int(in, "index_head_dim", 8, &index->head_dim));
    TRY(read_int(in, "index_topk", 1, &index->k));
    TRY(json_read_bool(in, "indexer_rope_interleave", &draft->index_interleaved));
    if (index->k > draft->context)
        FAIL(ERR_INPUT, "%s: index_topk %d exceeds the context of %" PRId64, in.path, index->k,
             draft->context);
    if (index->head_dim % 8 || index->head_dim > 256 || index->head_dim < draft->latent.rope_dim)
        FAIL(ERR_INPUT, "%s: index heads of %d elements, %d of them rotated, are not supported",
             in.path, index->head_dim, draft->latent.rope_dim);
    index->scale = 1 / sqrtf((float)(index->n_head * index->head_dim));
    return read_sharing(in, draft);
}

enum status config_read_deepseek(struct json_object in, struct spec_draft *draft) {
    if (draft->n_layer > SPEC_MAX_LAYER)
        FAIL(ERR_INPUT, "%s: %" PRId64 " layers are too many; at most %d are supported", in.path,
             draft->n_layer, SPEC_MAX_LAYER);
    TRY(read_latent(in, draft));
    TRY(read_experts(in, draft));
    return draft->architecture->indexed ? read_index(in, draft) : OK;
}

enum status config_check_fp8(struct json_object in, const json_t *quantization) {
    struct json_object sub = {quantization, in.path};
    const char *method = NULL, *format = "e4m3";
    const json_t *block = NULL;
    TRY(json_read_string(sub, "quant_method", &method));
    TRY(json_read_string(sub, "fmt", &format));
    TRY(json_read_array(sub, "weight_block_size", &block));
    bool fits = method && strcmp(method, "fp8") == 0 && strcmp(format, "e4m3") == 0 &&
                json_array_size(block) == 2 &&
                json_integer_value(json_array_get(block, 0)) == WEIGHT_SCALE_BLOCK &&
                json_integer_value(json_array_get(block, 1)) == WEIGHT_SCALE_BLOCK;
    if (!fits)
        FAIL(ERR_INPUT,
             "%s: this quantization_config is not supported; fp8 (e4m3) in blocks of 128 x 128 is: "
             "use the bfloat16 folder or a GGUF file of this model",
             in.path);
    return OK;
}
