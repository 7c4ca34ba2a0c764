// tokenizer.json of Hugging Face: vocabulary, merges and added tokens. Its rules (normaliser,
// pre-tokenizer, post-processor, decoder): tokenizer_rules.c.
#include <stdlib.h>
#include <string.h>

#include "model/mapping.h"
#include "model/tokenizer_rules.h"
#include "model/unicode.h"

// Ids may have holes, but not so many that a damaged file asks for memory without end.
static enum status count_ids(json_t *vocab, json_t *added, int64_t *n_token) {
    int64_t largest = (int64_t)json_array_size(vocab) - 1; // Unigram's vocabulary is an array
    size_t index, n = json_object_size(vocab) + json_array_size(vocab) + json_array_size(added);
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value) {
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            FAIL(ERR_INPUT, "tokenizer.json: the id of token '%.40s' is not a number", key);
        if (json_integer_value(value) > largest) largest = json_integer_value(value);
    }
    json_array_foreach(added, index, value) {
        json_t *id = json_object_get(value, "id");
        if (!json_is_integer(id) || json_integer_value(id) < 0)
            FAIL(ERR_INPUT, "tokenizer.json: added token %zu has no id", index);
        if (json_integer_value(id) > largest) largest = json_integer_value(id);
    }
    if (largest < 0) FAIL(ERR_INPUT, "tokenizer.json: the vocabulary is empty");
    if (largest > 4 * (int64_t)n + 65536)
        FAIL(ERR_INPUT, "tokenizer.json: token id %lld in a vocabulary of %zu", (long long)largest,
             n);
    *n_token = largest + 1;
    return OK;
}

// The bytes that a vocabulary literal stands for: malloc'd. *findable is false for literals that no
// text can reach.
static enum status literal_bytes(const struct bpe *bpe, const char *literal, char **out,
                                 size_t *bytes, bool *findable) {
    *bytes = strlen(literal);
    *out = malloc(*bytes + 1);
    if (!*out) FAIL(ERR_MEMORY, "no memory for a token");
    *findable = !bpe->by_bytes || tokenizer_undo_alphabet(literal, *bytes, *out, bytes);
    if (!bpe->by_bytes || !*findable) {
        *bytes = strlen(literal);
        memcpy(*out, literal, *bytes + 1);
    }
    return OK;
}

static enum status read_vocab(struct bpe *bpe, json_t *vocab) {
    const char *literal;
    json_t *value;
    json_object_foreach(vocab, literal, value) {
        int64_t id = json_integer_value(value);
        char *piece;
        size_t bytes;
        bool findable;
        if (bpe->piece[id].defined)
            FAIL(ERR_INPUT, "tokenizer.json: token id %lld is named twice", (long long)id);
        TRY(literal_bytes(bpe, literal, &piece, &bytes, &findable));
        int byte = bpe->byte_fallback ? tokenizer_byte_literal(literal, strlen(literal)) : -1;
        if (byte >= 0) bpe->byte_token[byte] = (int32_t)id;
        enum status status = bpe_set_piece(bpe, id, piece, bytes, findable);
        free(piece);
        TRY(status);
    }
    return OK;
}

static enum status read_added(struct tokenizer *t, json_t *added) {
    size_t index;
    json_t *item;
    json_array_foreach(added, index, item) {
        const char *content = json_string_value(json_object_get(item, "content"));
        json_t *normalized = json_object_get(item, "normalized");
        if (!content) FAIL(ERR_INPUT, "tokenizer.json: added token %zu has no content", index);
        struct added_token token = {
            .id = (int32_t)json_integer_value(json_object_get(item, "id")),
            .special = json_is_true(json_object_get(item, "special")),
            .left_strip = json_is_true(json_object_get(item, "lstrip")),
            .right_strip = json_is_true(json_object_get(item, "rstrip")),
            .single_word = json_is_true(json_object_get(item, "single_word")),
        };
        token.normalized = normalized ? json_is_true(normalized) : !token.special;
        TRY(tokenizer_add_token(t, token, content));
    }
    return OK;
}

// [[piece, score], ...] by id.
static enum status read_scored(struct tokenizer *t, json_t *model, json_t *vocab, double *score) {
    struct bpe *bpe = &t->bpe;
    json_t *unknown = json_object_get(model, "unk_id"), *item;
    size_t id;
    bpe->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    bpe->unknown = json_is_integer(unknown) ? (int32_t)json_integer_value(unknown) : -1;
    if (bpe->unknown < 0 || json_integer_value(unknown) >= (json_int_t)json_array_size(vocab))
        FAIL(ERR_INPUT, "tokenizer.json: unk_id is not of the vocabulary");
    json_array_foreach(vocab, id, item) {
        json_t *piece = json_array_get(item, 0), *value = json_array_get(item, 1);
        size_t bytes = json_string_length(piece);
        if (!json_is_string(piece) || !json_is_number(value) || (bytes == 0 && id > 0))
            FAIL(ERR_INPUT, "tokenizer.json: piece %zu has no text or no score", id);
        score[id] = json_number_value(value);
        int byte = tokenizer_byte_literal(json_string_value(piece), bytes);
        if (bpe->byte_fallback && byte >= 0) bpe->byte_token[byte] = (int32_t)id;
        TRY(bpe_set_piece(bpe, (int64_t)id, json_string_value(piece), bytes, true));
    }
    return OK;
}

// The likeliest cut, once all pieces are in place.
static enum status read_unigram(struct tokenizer *t, json_t *root, json_t *model, json_t *vocab) {
    size_t n = json_array_size(vocab);
    double *score = malloc(n * sizeof(*score) + 1);
    if (!score) FAIL(ERR_MEMORY, "no memory for a vocabulary of %zu", n);
    enum status status = read_scored(t, model, vocab, score);
    if (status == OK) status = read_added(t, json_object_get(root, "added_tokens"));
    if (status == OK) status = bpe_index(&t->bpe);
    if (status != OK) {
        free(score);
        return status;
    }
    return unigram_open(&t->unigram, &t->bpe, score, (int64_t)n);
}

// "left right", or ["left", "right"]: parts as malloc'd copies.
static enum status merge_parts(json_t *merge, size_t index, char **left, char **right) {
    const char *text = json_string_value(merge);
    const char *space = text && text[0] ? strchr(text + 1, ' ') : NULL;
    const char *first = json_string_value(json_array_get(merge, 0));
    const char *second = json_string_value(json_array_get(merge, 1));
    if (!space && (!first || !second || json_array_size(merge) != 2))
        FAIL(ERR_INPUT, "tokenizer.json: merge %zu is not a pair of tokens", index);
    *left = space ? strndup(text, (size_t)(space - text)) : strdup(first);
    *right = strdup(space ? space + 1 : second);
    if (!*left || !*right) FAIL(ERR_MEMORY, "no memory for a merge");
    return OK;
}

static enum status add_merge(struct bpe *bpe, const char *left, const char *right, size_t index) {
    char *part[2] = {0}, *both = NULL;
    size_t bytes[2];
    bool findable[2];
    int32_t id[3] = {-1, -1, -1};
    enum status status = OK;
    TRY_OR(done, literal_bytes(bpe, left, &part[0], &bytes[0], &findable[0]));
    TRY_OR(done, literal_bytes(bpe, right, &part[1], &bytes[1], &findable[1]));
    both = malloc(bytes[0] + bytes[1] + 1);
    if (!both) FAIL_OR(done, ERR_MEMORY, "no memory for a merge");
    memcpy(both, part[0], bytes[0]);
    memcpy(both + bytes[0], part[1], bytes[1]);
    if (findable[0] && findable[1]) {
        id[0] = bpe_find(bpe, part[0], bytes[0]);
        id[1] = bpe_find(bpe, part[1], bytes[1]);
        id[2] = bpe_find(bpe, both, bytes[0] + bytes[1]);
    }
    if (id[0] < 0 || id[1] < 0 || id[2] < 0)
        FAIL_OR(done, ERR_INPUT,
                "tokenizer.json: merge %zu ('%.40s' and '%.40s') joins tokens that the vocabulary "
                "lacks",
                index, left, right);
    bpe_add_merge(bpe, id[0], id[1], (uint32_t)index, id[2]);
done:
    free(part[0]);
    free(part[1]);
    free(both);
    return status;
}

static enum status read_merges(struct bpe *bpe, json_t *merges) {
    size_t index;
    json_t *merge;
    TRY(bpe_reserve_merges(bpe, json_array_size(merges)));
    json_array_foreach(merges, index, merge) {
        char *left = NULL, *right = NULL;
        enum status status = merge_parts(merge, index, &left, &right);
        if (status == OK) status = add_merge(bpe, left, right, index);
        free(left);
        free(right);
        TRY(status);
    }
    return OK;
}

static enum status read_wordpiece(struct tokenizer *t, json_t *model) {
    const char *mark = json_string_value(json_object_get(model, "continuing_subword_prefix"));
    const char *unknown = json_string_value(json_object_get(model, "unk_token"));
    json_t *most = json_object_get(model, "max_input_chars_per_word");
    json_t *id = json_object_get(json_object_get(model, "vocab"), unknown ? unknown : "[UNK]");
    if (!id) FAIL(ERR_INPUT, "tokenizer.json: the vocabulary lacks the unknown token");
    t->bpe.unknown = (int32_t)json_integer_value(id);
    t->wordpiece.max_character = json_is_integer(most) ? json_integer_value(most) : 100;
    t->wordpiece.mark = strdup(mark ? mark : "##");
    if (!t->wordpiece.mark) FAIL(ERR_MEMORY, "no memory for a rule");
    // Cutting a word looks at each pair of its characters.
    if (t->wordpiece.max_character < 0 || t->wordpiece.max_character > 10000)
        FAIL(ERR_INPUT, "tokenizer.json: words of %lld characters",
             (long long)t->wordpiece.max_character);
    return OK;
}

static enum status read_model_flags(struct bpe *bpe, json_t *model) {
    static const char *const unsupported[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const char *text = json_string_value(json_object_get(model, unsupported[i]));
        if (text && text[0])
            FAIL(ERR_INPUT, "tokenizer.json: %s '%.40s' is not supported", unsupported[i], text);
    }
    bpe->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    bpe->fuse_unknown = json_is_true(json_object_get(model, "fuse_unk"));
    bpe->whole_pieces = json_is_true(json_object_get(model, "ignore_merges"));
    const char *unknown = json_string_value(json_object_get(model, "unk_token"));
    if (!unknown) return OK;
    json_t *id = json_object_get(json_object_get(model, "vocab"), unknown);
    if (id) bpe->unknown = (int32_t)json_integer_value(id);
    return OK;
}

static enum status read_model(struct tokenizer *t, json_t *root, json_t *model, const char *type) {
    json_t *vocab = json_object_get(model, "vocab");
    if (strcmp(type, "Unigram") == 0) return read_unigram(t, root, model, vocab);
    bool words = strcmp(type, "WordPiece") == 0;
    TRY(words ? read_wordpiece(t, model) : read_model_flags(&t->bpe, model));
    TRY(read_vocab(&t->bpe, vocab));
    TRY(read_added(t, json_object_get(root, "added_tokens")));
    TRY(bpe_index(&t->bpe));
    return words ? OK : read_merges(&t->bpe, json_object_get(model, "merges"));
}

static enum status read_root(json_t *root, struct tokenizer **out) {
    json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    const char *type = json_string_value(json_object_get(model, "type"));
    if (!type) type = json_is_array(json_object_get(model, "merges")) ? "BPE" : "without a type";
    bool fits = strcmp(type, "BPE") == 0
                    ? json_is_object(vocab) && json_is_array(json_object_get(model, "merges"))
                    : (strcmp(type, "WordPiece") == 0 && json_is_object(vocab)) ||
                          (strcmp(type, "Unigram") == 0 && json_array_size(vocab) > 0);
    if (!fits)
        FAIL(ERR_INPUT,
             "tokenizer.json: the model '%.40s' is not supported (BPE, WordPiece and Unigram are)",
             type);
    int64_t n_token;
    TRY(count_ids(vocab, json_object_get(root, "added_tokens"), &n_token));
    TRY(tokenizer_allocate(n_token, out));
    struct tokenizer *t = *out;
    TRY(tokenizer_read_normalizer(t, json_object_get(root, "normalizer")));
    TRY(tokenizer_read_pre_tokenizer(t, json_object_get(root, "pre_tokenizer")));
    TRY(read_model(t, root, model, type));
    TRY(tokenizer_read_post_processor(t, json_object_get(root, "post_processor")));
    return tokenizer_read_decoder(t, json_object_get(root, "decoder"));
}

// The path of a file beside `path`; malloc'd.
static char *beside(const char *path, const char *name) {
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    char *out = malloc(folder + strlen(name) + 1);
    if (!out) return NULL;
    memcpy(out, path, folder);
    strcpy(out + folder, name);
    return out;
}

// Through a mapping, which refuses pipes and folders in place of files.
static enum status load_json(const char *path, size_t flags, json_t **out) {
    struct mapping text;
    json_error_t error;
    TRY(mapping_open(path, &text));
    *out = json_loadb(text.data ? text.data : "", text.bytes, flags, &error);
    mapping_close(&text);
    if (!*out) FAIL(ERR_INPUT, "%s, line %d: %s", path, error.line, error.text);
    return OK;
}

static enum status load_text(const char *path, char **out) {
    struct mapping text;
    TRY(mapping_open(path, &text));
    *out = strndup(text.data ? text.data : "", text.bytes);
    mapping_close(&text);
    if (!*out) FAIL(ERR_MEMORY, "no memory for %s", path);
    return OK;
}

// The template called "default" of a list of named ones, or the string itself.
static const char *template_text(json_t *value) {
    size_t index;
    json_t *item;
    json_array_foreach(value, index, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(item, "template"));
    }
    return json_string_value(value);
}

// The id of the token that the configuration names under this key; -1: none.
static int32_t named_token(const struct tokenizer *t, json_t *config, const char *key) {
    json_t *value = json_object_get(config, key);
    const char *name =
        json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    return name ? tokenizer_find(t, name) : -1;
}

// DeepSeek's tokenizer.json adds nothing: its models get the BOS that they were trained with from
// add_bos_token (honoured by transformers 4, passed over by 5). A post-processor that adds
// specials stands above it.
static void read_added_specials(struct tokenizer *t, json_t *config) {
    int32_t bos = named_token(t, config, "bos_token");
    t->eos = named_token(t, config, "eos_token");
    if (t->n_prefix + t->n_suffix > 0) return;
    if (json_is_true(json_object_get(config, "add_bos_token")) && bos >= 0)
        t->prefix[t->n_prefix++] = bos;
    if (json_is_true(json_object_get(config, "add_eos_token")) && t->eos >= 0)
        t->suffix[t->n_suffix++] = t->eos;
}

// NULL where there is no such file. Integers are none that are read here, and model_max_length,
// where nobody set it, is 10^30.
static enum status load_optional(const char *path, const char *name, json_t **out) {
    char *file = beside(path, name);
    if (!file) FAIL(ERR_MEMORY, "no memory for the path of %s", name);
    *out = NULL;
    enum status status = mapping_exists(file) ? load_json(file, JSON_DECODE_INT_AS_REAL, out) : OK;
    free(file);
    return status;
}

static enum status read_template(const char *path, json_t *config, struct tokenizer *t) {
    char *file = beside(path, "chat_template.jinja");
    if (!file) FAIL(ERR_MEMORY, "no memory for the path of a template");
    enum status status = OK;
    const char *text = template_text(json_object_get(config, "chat_template"));
    if (mapping_exists(file))
        status = load_text(file, &t->chat_template);
    else if (text)
        t->chat_template = strdup(text);
    free(file);
    return status;
}

// Files beside tokenizer.json are optional; only a damaged one is an error.
static enum status read_companions(const char *path, struct tokenizer *t) {
    json_t *config = NULL, *sentences = NULL;
    enum status status = OK;
    TRY_OR(done, load_optional(path, "tokenizer_config.json", &config));
    read_added_specials(t, config);
    TRY_OR(done, read_template(path, config, t));
    TRY_OR(done, load_optional(path, "sentence_bert_config.json", &sentences));
    if (json_is_true(json_object_get(sentences, "do_lower_case")))
        status = tokenizer_add_lower_case(t);
done:
    json_decref(sentences);
    json_decref(config);
    return status;
}

enum status tokenizer_open_json(const char *path, struct tokenizer **out) {
    *out = NULL;
    json_t *root = NULL;
    TRY(load_json(path, JSON_ALLOW_NUL, &root));
    enum status status = read_root(root, out);
    if (status == OK) status = read_companions(path, *out);
    if (status == OK) status = tokenizer_finish(*out);
    json_decref(root);
    if (status != OK) {
        tokenizer_close(out);
        return status_context(status, "%s", path);
    }
    return OK;
}
