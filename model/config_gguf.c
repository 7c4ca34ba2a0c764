// Fills a spec_draft from GGUF metadata: keys are prefixed with the architecture's name.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/spec_draft.h"

struct source {
    const struct gguf *gguf;
    const char *path, *prefix;
};

static const char *full_key(const struct source *in, const char *suffix, char out[128]) {
    snprintf(out, 128, "%s.%s", in->prefix, suffix);
    return out;
}

// Leaves *out as it was when the key is absent.
static enum status read_int(const struct source *in, const char *suffix, int64_t *out) {
    char key[128];
    full_key(in, suffix, key);
    if (gguf_find(in->gguf, key) && (!gguf_get_int(in->gguf, key, out) || *out < 0))
        FAIL(ERR_INPUT, "%s: %s is not a single positive integer", in->path, key);
    return OK;
}

static enum status read_float(const struct source *in, const char *suffix, double *out) {
    char key[128];
    full_key(in, suffix, key);
    if (gguf_find(in->gguf, key) && (!gguf_get_float(in->gguf, key, out) || !isfinite(*out)))
        FAIL(ERR_INPUT, "%s: %s is not a finite number", in->path, key);
    return OK;
}

static const struct gguf_tensor *find_tensor(const struct gguf *gguf, const char *name) {
    for (uint64_t i = 0; i < gguf->n_tensor; ++i)
        if (strcmp(gguf->tensors[i].name, name) == 0) return &gguf->tensors[i];
    return NULL;
}

static enum status read_sizes(const struct source *in, struct spec_draft *draft) {
    int64_t n_expert = 0, value_dim = 0;
    TRY(read_int(in, "block_count", &draft->n_layer));
    TRY(read_int(in, "embedding_length", &draft->n_hidden));
    TRY(read_int(in, "attention.head_count", &draft->n_head));
    TRY(read_int(in, "attention.head_count_kv", &draft->n_kv_head));
    TRY(read_int(in, "attention.key_length", &draft->head_dim));
    TRY(read_int(in, "feed_forward_length", &draft->n_feed_forward));
    TRY(read_int(in, "context_length", &draft->context));
    TRY(read_float(in, "attention.layer_norm_rms_epsilon", &draft->norm_eps));
    TRY(read_float(in, "attention.scale", &draft->attention_scale));
    TRY(read_int(in, "attention.value_length", &value_dim));
    int64_t key_dim = draft->head_dim;
    if (key_dim == 0 && draft->n_head) key_dim = draft->n_hidden / draft->n_head;
    if (value_dim && value_dim != key_dim)
        FAIL(ERR_INPUT,
             "%s: values of %" PRId64 " elements beside keys of %" PRId64 " are not supported",
             in->path, value_dim, key_dim);
    TRY(read_int(in, "expert_count", &n_expert));
    if (n_expert) FAIL(ERR_INPUT, "%s: mixtures of experts are not supported", in->path);
    return OK;
}

// Which layers have windows: all of them, or those that an array of flags or a period names.
static enum status read_windows(const struct source *in, struct spec_draft *draft) {
    char key[128];
    const struct gguf_value *pattern =
        gguf_find(in->gguf, full_key(in, "attention.sliding_window_pattern", key));
    int64_t period = draft->architecture->full_every;
    bool flags = pattern && pattern->type == GGUF_ARRAY;
    TRY(read_int(in, "attention.sliding_window", &draft->window));
    if (!flags) TRY(read_int(in, "attention.sliding_window_pattern", &period));
    if (flags && (int64_t)pattern->count != draft->n_layer)
        FAIL(ERR_INPUT, "%s: %s has %" PRIu64 " entries for %" PRId64 " layers", in->path, key,
             pattern->count, draft->n_layer);
    for (int64_t i = 0; draft->window > 0 && i < draft->n_layer && i < SPEC_MAX_LAYER; ++i) {
        draft->windowed[i] = period == 0 || (i + 1) % period != 0;
        if (flags && !gguf_array_bool(pattern, (uint64_t)i, &draft->windowed[i]))
            FAIL(ERR_INPUT, "%s: %s holds no flags", in->path, key);
    }
    return OK;
}

// What Gemma 3 has and other files do not say: the scale of the largest network, the second rope.
static enum status read_gemma3(const struct source *in, struct spec_draft *draft) {
    enum { LAYERS_27B = 62 };
    double cap = 0;
    if (draft->attention_scale == 0 && draft->n_layer == LAYERS_27B && draft->n_head > 0)
        draft->attention_scale = 1 / sqrt((double)draft->n_hidden / (double)draft->n_head);
    TRY(read_float(in, "attn_logit_softcapping", &cap));
    TRY(read_float(in, "final_logit_softcapping", &cap));
    if (cap > 0) FAIL(ERR_INPUT, "%s: soft caps of logits are not supported", in->path);
    draft->has_window_rope = true;
    draft->window_rope = draft->rope;
    draft->window_rope.method = ROPE_DEFAULT;
    draft->window_rope.factor = 1;
    draft->window_rope.has_divisors = false;
    draft->window_rope.base = draft->architecture->window_rope_base;
    return read_float(in, "rope.freq_base_swa", &draft->window_rope.base);
}

static enum status read_rope_scaling(const struct source *in, struct rope_spec *rope) {
    static const struct {
        const char *name;
        enum rope_method method;
    } methods[] = {{"none", ROPE_DEFAULT},
                   {"linear", ROPE_LINEAR},
                   {"yarn", ROPE_YARN},
                   {"longrope", ROPE_LONGROPE}};
    char key[128];
    struct gguf_string type = {"none", 4};
    double multiplier = 1;
    size_t i = 0, n = sizeof methods / sizeof methods[0];
    gguf_get_string(in->gguf, full_key(in, "rope.scaling.type", key), &type);
    while (i < n && (strlen(methods[i].name) != type.bytes ||
                     memcmp(methods[i].name, type.data, type.bytes) != 0))
        ++i;
    if (i == n)
        FAIL(ERR_INPUT, "%s: %s %.*s is not supported; none, linear, yarn and longrope are",
             in->path, key, type.bytes < 32 ? (int)type.bytes : 32, type.data);
    rope->method = methods[i].method;
    TRY(read_float(in, "rope.scale_linear", &rope->factor));
    if (rope->factor != 1 && rope->method == ROPE_DEFAULT) rope->method = ROPE_LINEAR;
    TRY(read_float(in, "rope.scaling.factor", &rope->factor));
    TRY(read_float(in, "rope.scaling.original_context_length", &rope->original_context));
    TRY(read_float(in, "rope.scaling.yarn_beta_fast", &rope->beta_fast));
    TRY(read_float(in, "rope.scaling.yarn_beta_slow", &rope->beta_slow));
    // In GGUF this multiplies YaRN's own formula.
    TRY(read_float(in, "rope.scaling.attn_factor", &multiplier));
    if (rope->method == ROPE_YARN && multiplier != 1)
        rope->attention_factor = multiplier * (rope->factor > 1 ? 0.1 * log(rope->factor) + 1 : 1);
    return OK;
}

// One divisor per frequency, where the file has such a tensor.
static enum status read_divisors(const struct source *in, const char *name, int *dim, float *out,
                                 bool *found) {
    const struct gguf_tensor *tensor = find_tensor(in->gguf, name);
    *found = tensor != NULL;
    if (!tensor) return OK;
    if (tensor->type != 0 || tensor->n_dim != 1 || tensor->ne[0] > ROPE_MAX_FACTORS)
        FAIL(ERR_INPUT, "%s: %s is no F32 vector of up to %d elements", in->path, name,
             ROPE_MAX_FACTORS);
    if (*dim == 0) *dim = (int)(2 * tensor->ne[0]);
    if (tensor->ne[0] != *dim / 2)
        FAIL(ERR_INPUT, "%s: %s has %" PRId64 " elements for %d rotated ones", in->path, name,
             tensor->ne[0], *dim);
    memcpy(out, tensor->data, (size_t)tensor->bytes);
    for (int i = 0; i < *dim / 2; ++i)
        if (!(out[i] > 0 && isfinite(out[i])))
            FAIL(ERR_INPUT, "%s: %s[%d] is %g", in->path, name, i, (double)out[i]);
    return OK;
}

// Llama 3.1's bands, or LongRoPE's two lists, which no other key announces.
static enum status read_lists(const struct source *in, struct rope_spec *rope) {
    bool has_short, has_long;
    double attention_factor = 0;
    TRY(read_divisors(in, "rope_freqs.weight", &rope->dim, rope->divisor, &rope->has_divisors));
    TRY(read_divisors(in, "rope_factors_short.weight", &rope->dim, rope->short_factor, &has_short));
    TRY(read_divisors(in, "rope_factors_long.weight", &rope->dim, rope->long_factor, &has_long));
    if (has_short != has_long || (rope->method == ROPE_LONGROPE && !has_long))
        FAIL(ERR_INPUT, "%s: LongRoPE needs both rope_factors_short and rope_factors_long",
             in->path);
    if (!has_long) return OK;
    rope->method = ROPE_LONGROPE;
    rope->n_factor = rope->dim / 2;
    TRY(read_float(in, "rope.scaling.attn_factor", &attention_factor));
    rope->attention_factor = attention_factor > 0 ? attention_factor : 1;
    return OK;
}

static enum status read_rope(const struct source *in, struct spec_draft *draft) {
    int64_t dim = 0;
    if (draft->architecture->rope_base > 0) draft->rope.base = draft->architecture->rope_base;
    TRY(read_float(in, "rope.freq_base", &draft->rope.base));
    TRY(read_int(in, "rope.dimension_count", &dim));
    if (dim > 2 * ROPE_MAX_FACTORS)
        FAIL(ERR_INPUT, "%s: %s.rope.dimension_count is %" PRId64 "; %d at most", in->path,
             in->prefix, dim, 2 * ROPE_MAX_FACTORS);
    draft->rope.dim = (int)dim;
    draft->rope.interleaved = draft->architecture->gguf_interleaved;
    draft->rope.original_context = (double)draft->context;
    TRY(read_rope_scaling(in, &draft->rope));
    return read_lists(in, &draft->rope);
}

static enum status read_stops(const struct source *in, struct spec_draft *draft) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
        int64_t id;
        if (!gguf_get_int(in->gguf, keys[i], &id)) continue;
        TRY(spec_draft_add_stop(draft, id, in->path));
    }
    return OK;
}

enum status spec_draft_read_gguf(const struct gguf *gguf, const char *path,
                                 struct spec_draft *draft) {
    struct gguf_string name;
    char list[ARCHITECTURE_LIST_BYTES];
    int64_t n_file = 1;
    if (gguf_get_int(gguf, "split.count", &n_file) && n_file > 1)
        FAIL(ERR_INPUT,
             "%s is one of %" PRId64 " files of a split model, which is read as one file: merge "
             "them with llama-gguf-split --merge FIRST-FILE OUT.gguf",
             path, n_file);
    if (!gguf_get_string(gguf, "general.architecture", &name))
        FAIL(ERR_INPUT, "%s names no general.architecture; it holds no language model", path);
    draft->architecture = architecture_find_gguf(name);
    if (!draft->architecture)
        FAIL(ERR_INPUT, "%s: architecture %.*s is not supported; %s are", path,
             name.bytes < 64 ? (int)name.bytes : 64, name.data, architecture_list(list));
    struct source in = {gguf, path, draft->architecture->name};
    const struct gguf_value *tokens = gguf_find(gguf, "tokenizer.ggml.tokens");
    if (tokens && tokens->type == GGUF_ARRAY && tokens->count <= INT32_MAX)
        draft->n_vocab = (int64_t)tokens->count;
    draft->attention_bias = find_tensor(gguf, "blk.0.attn_q.bias") != NULL;
    draft->output_bias = find_tensor(gguf, "blk.0.attn_output.bias") != NULL;
    draft->activation = draft->architecture->activation;
    TRY(read_sizes(&in, draft));
    TRY(read_windows(&in, draft));
    TRY(read_rope(&in, draft));
    if (draft->architecture->window_rope_base > 0) TRY(read_gemma3(&in, draft));
    return read_stops(&in, draft);
}
