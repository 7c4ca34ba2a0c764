// The tokenizer inside a GGUF file: model "gpt2" (byte-level BPE, its pre-split named by family) or
// "llama" (SentencePiece: scores instead of merges, byte tokens).
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

#define KEY(name) "tokenizer.ggml." name
enum token_type { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

// Llama 3, Qwen 2 and GLM 4 differ in how many digits go together.
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

#define DEEPSEEK                                                                                   \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"                                       \
    "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"                      \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

enum { MAX_SPLIT = 3 };

static const struct family {
    const char *name;
    const char *split[MAX_SPLIT]; // one after the other, as long as there are any
    bool whole_pieces, nfc, add_bos;
} families[] = {
    {.name = "smollm", .split = {"\\p{N}", tokenizer_gpt2_pattern}},
    {.name = "llama-bpe",
     .split = {CONTRACTIONS "\\p{N}{1,3}" REST},
     .whole_pieces = true,
     .add_bos = true},
    {.name = "qwen2", .split = {CONTRACTIONS "\\p{N}" REST}, .nfc = true},
    {.name = "deepseek-v3", .split = {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK}},
    {.name = "glm4", .split = {CONTRACTIONS "\\p{N}{1,3}" REST}},
    {.name = "chatglm-bpe", .split = {CONTRACTIONS "\\p{N}{1,3}" REST}},
    {.name = "gpt-2", .split = {tokenizer_gpt2_pattern}},
    {.name = "gpt2", .split = {tokenizer_gpt2_pattern}},
    {.name = "default", .split = {tokenizer_gpt2_pattern}},
};

static bool string_is(struct gguf_string string, const char *text) {
    return string.bytes == strlen(text) && memcmp(string.data, text, string.bytes) == 0;
}

static enum status find_array(const struct gguf *gguf, const char *key, bool strings,
                              uint64_t count, const struct gguf_value **out) {
    const struct gguf_value *value = gguf_find(gguf, key);
    if (!value || value->type != GGUF_ARRAY || strings != (value->element == GGUF_STRING))
        FAIL(ERR_INPUT, "the GGUF file's metadata lacks the array %s", key);
    if (count > 0 && value->count != count)
        FAIL(ERR_INPUT, "%s has %llu entries for a vocabulary of %llu", key,
             (unsigned long long)value->count, (unsigned long long)count);
    *out = value;
    return OK;
}

static enum status token_type(const struct gguf_value *types, int64_t id, int64_t *type) {
    *type = TYPE_NORMAL;
    if (types && !gguf_array_int(types, (uint64_t)id, type))
        FAIL(ERR_INPUT, KEY("token_type") " is not an array of integers");
    return OK;
}

static enum status set_piece(struct bpe *bpe, int64_t id, struct gguf_string token, int64_t type) {
    if (unicode_valid_prefix(token.data, token.bytes) < token.bytes)
        FAIL(ERR_INPUT, "token %lld of the GGUF vocabulary is not UTF-8", (long long)id);
    bool text = type == TYPE_NORMAL || type == TYPE_USER || type == TYPE_UNUSED;
    if (!bpe->by_bytes) {
        int byte = type == TYPE_BYTE ? tokenizer_byte_literal(token.data, token.bytes) : -1;
        if (byte >= 0) bpe->byte_token[byte] = (int32_t)id;
        return bpe_set_piece(bpe, id, token.data, token.bytes, text);
    }
    char *undone = malloc(token.bytes + 1);
    size_t n = 0;
    if (!undone) FAIL(ERR_MEMORY, "no memory for a token of %zu bytes", (size_t)token.bytes);
    bool plain = tokenizer_undo_alphabet(token.data, token.bytes, undone, &n);
    enum status status = plain ? bpe_set_piece(bpe, id, undone, n, text)
                               : bpe_set_piece(bpe, id, token.data, token.bytes, false);
    free(undone);
    return status;
}

static enum status read_vocabulary(struct tokenizer *t, const struct gguf_value *tokens,
                                   const struct gguf_value *types) {
    for (int64_t id = 0; id < t->bpe.n_token; id++) {
        int64_t type;
        TRY(token_type(types, id, &type));
        TRY(set_piece(&t->bpe, id, tokens->strings[id], type));
    }
    for (int64_t id = 0; id < t->bpe.n_token; id++) {
        int64_t type;
        TRY(token_type(types, id, &type));
        if (type != TYPE_CONTROL && type != TYPE_UNKNOWN && type != TYPE_USER) continue;
        struct added_token token = {.id = (int32_t)id, .special = type != TYPE_USER};
        char *content = strndup(tokens->strings[id].data, tokens->strings[id].bytes);
        if (!content) FAIL(ERR_MEMORY, "no memory for added tokens");
        enum status status = content[0] ? tokenizer_add_token(t, token, content) : OK;
        free(content);
        TRY(status);
    }
    return bpe_index(&t->bpe);
}

// "left right": the first space after the first character parts them.
static enum status read_merge(struct bpe *bpe, struct gguf_string merge, uint32_t rank) {
    const char *space =
        merge.bytes < 3 ? NULL : memchr(merge.data + 1, ' ', (size_t)merge.bytes - 1);
    char *text = malloc(merge.bytes + 1);
    size_t n_left = 0, n_right = 0;
    int32_t left = -1, right = -1, merged = -1;
    if (!text) FAIL(ERR_MEMORY, "no memory for a merge");
    if (space && unicode_valid_prefix(merge.data, merge.bytes) == merge.bytes &&
        tokenizer_undo_alphabet(merge.data, (size_t)(space - merge.data), text, &n_left) &&
        tokenizer_undo_alphabet(space + 1, (size_t)(merge.data + merge.bytes - space - 1),
                                text + n_left, &n_right)) {
        left = bpe_find(bpe, text, n_left);
        right = bpe_find(bpe, text + n_left, n_right);
        merged = bpe_find(bpe, text, n_left + n_right);
    }
    free(text);
    if (left < 0 || right < 0 || merged < 0)
        FAIL(ERR_INPUT, "merge %u of the GGUF vocabulary joins tokens that it lacks", rank);
    bpe_add_merge(bpe, left, right, rank, merged);
    return OK;
}

static enum status read_byte_level(struct tokenizer *t, const struct gguf *gguf, bool *add_bos) {
    struct gguf_string pre = {.data = "default", .bytes = 7};
    const struct family *family = NULL;
    const struct gguf_value *merges;
    gguf_get_string(gguf, KEY("pre"), &pre);
    for (size_t i = 0; i < sizeof(families) / sizeof(*families); i++)
        if (string_is(pre, families[i].name)) family = &families[i];
    if (!family)
        FAIL(ERR_INPUT,
             "the GGUF file's pre-tokenizer '%.*s' is not supported (smollm, llama-bpe, qwen2, "
             "deepseek-v3, glm4, chatglm-bpe, gpt-2 and default are)",
             (int)(pre.bytes > 40 ? 40 : pre.bytes), pre.data);
    if (family->nfc)
        t->normal[t->n_normal++] = (struct normal_step){.kind = NORMAL_FORM, .form = UNICODE_NFC};
    for (int i = 0; i < MAX_SPLIT && family->split[i]; i++)
        TRY(tokenizer_add_stage(t, family->split[i], false, SPLIT_ISOLATED, false));
    t->bpe.whole_pieces = family->whole_pieces;
    *add_bos = family->add_bos;

    TRY(find_array(gguf, KEY("merges"), true, 0, &merges));
    TRY(bpe_reserve_merges(&t->bpe, merges->count));
    for (uint64_t i = 0; i < merges->count; i++)
        TRY(read_merge(&t->bpe, merges->strings[i], (uint32_t)i));
    return OK;
}

static enum status read_scores(struct tokenizer *t, const struct gguf *gguf) {
    const struct gguf_value *scores;
    uint64_t n = (uint64_t)t->bpe.n_token;
    TRY(find_array(gguf, KEY("scores"), false, n, &scores));
    float *score = malloc((n + 1) * sizeof(*score));
    if (!score) FAIL(ERR_MEMORY, "no memory for %llu scores", (unsigned long long)n);
    enum status status = OK;
    for (uint64_t i = 0; i < n; i++) {
        double value;
        if (!gguf_array_float(scores, i, &value) || isnan(value))
            FAIL_OR(done, ERR_INPUT, "score %llu of the GGUF vocabulary is not a number",
                    (unsigned long long)i);
        score[i] = (float)value;
    }
    status = bpe_merges_from_scores(&t->bpe, score);
done:
    free(score);
    return status;
}

static enum status read_sentencepiece(struct tokenizer *t, const struct gguf *gguf) {
    bool prefix = true;
    gguf_get_bool(gguf, KEY("add_space_prefix"), &prefix);
    t->mark = strdup("▁");
    if (!t->mark) FAIL(ERR_MEMORY, "no memory for a tokenizer");
    t->strip_spaces = prefix ? 1 : 0;
    t->bpe.byte_fallback = t->bpe.fuse_unknown = true;
    if (prefix) {
        t->normal[t->n_normal] = (struct normal_step){.kind = NORMAL_PREPEND, .text = strdup("▁")};
        if (!t->normal[t->n_normal++].text) FAIL(ERR_MEMORY, "no memory for a tokenizer");
    }
    struct normal_step *step = &t->normal[t->n_normal++];
    *step = (struct normal_step){.kind = NORMAL_REPLACE, .text = strdup("▁")};
    if (!step->text) FAIL(ERR_MEMORY, "no memory for a tokenizer");
    TRY(regex_open(" ", true, &step->regex));
    return read_scores(t, gguf);
}

static enum status read_id(const struct gguf *gguf, const char *key, int64_t n_token,
                           int32_t *out) {
    int64_t id;
    *out = -1;
    if (!gguf_get_int(gguf, key, &id)) return OK;
    if (id < 0 || id >= n_token)
        FAIL(ERR_INPUT, "%s is %lld in a vocabulary of %lld", key, (long long)id,
             (long long)n_token);
    *out = (int32_t)id;
    return OK;
}

static enum status read_specials(struct tokenizer *t, const struct gguf *gguf, bool add_bos) {
    bool add_eos = false;
    int32_t bos;
    struct gguf_string text;
    gguf_get_bool(gguf, KEY("add_bos_token"), &add_bos);
    gguf_get_bool(gguf, KEY("add_eos_token"), &add_eos);
    TRY(read_id(gguf, KEY("bos_token_id"), t->bpe.n_token, &bos));
    TRY(read_id(gguf, KEY("eos_token_id"), t->bpe.n_token, &t->eos));
    if (add_bos && bos >= 0) t->prefix[t->n_prefix++] = bos;
    if (add_eos && t->eos >= 0) t->suffix[t->n_suffix++] = t->eos;
    if (!gguf_get_string(gguf, "tokenizer.chat_template", &text)) return OK;
    t->chat_template = strndup(text.data, text.bytes);
    if (!t->chat_template) FAIL(ERR_MEMORY, "no memory for the chat template");
    return OK;
}

static enum status read_gguf(const struct gguf *gguf, struct tokenizer **out) {
    struct gguf_string model = {.data = "", .bytes = 0};
    const struct gguf_value *tokens, *types = NULL;
    gguf_get_string(gguf, KEY("model"), &model);
    bool byte_level = string_is(model, "gpt2");
    if (!byte_level && !string_is(model, "llama"))
        FAIL(ERR_INPUT, "the GGUF file's tokenizer model '%.*s' is not supported (gpt2, llama are)",
             (int)(model.bytes > 40 ? 40 : model.bytes), model.data);
    TRY(find_array(gguf, KEY("tokens"), true, 0, &tokens));
    if (tokens->count == 0 || tokens->count >= INT32_MAX)
        FAIL(ERR_INPUT, "the GGUF vocabulary has %llu tokens", (unsigned long long)tokens->count);
    if (gguf_find(gguf, KEY("token_type")))
        TRY(find_array(gguf, KEY("token_type"), false, tokens->count, &types));

    TRY(tokenizer_allocate((int64_t)tokens->count, out));
    struct tokenizer *t = *out;
    bool add_bos = true;
    t->bpe.by_bytes = byte_level;
    if (!byte_level) // bytes without a token occur in no UTF-8
        TRY(read_id(gguf, KEY("unknown_token_id"), t->bpe.n_token, &t->bpe.unknown));
    TRY(read_vocabulary(t, tokens, types));
    TRY(byte_level ? read_byte_level(t, gguf, &add_bos) : read_sentencepiece(t, gguf));
    TRY(read_specials(t, gguf, add_bos));
    return tokenizer_finish(t);
}

enum status tokenizer_open_gguf(const struct gguf *gguf, struct tokenizer **out) {
    *out = NULL;
    enum status status = read_gguf(gguf, out);
    if (status != OK) tokenizer_close(out);
    return status;
}
