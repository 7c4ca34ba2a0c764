// Normaliser, pre-tokenizer, post-processor and decoder of a tokenizer.json. Each kind of rule has
// a table of the types that are understood; a Sequence runs through the same table.
#include "model/tokenizer_rules.h"

#include <stdlib.h>
#include <string.h>

#include "model/unicode.h"

enum { MAX_NESTING = 8 };

typedef enum status rule_reader(struct tokenizer *tokenizer, json_t *value, const char *type);
struct rule {
    const char *type;
    rule_reader *read; // NULL: nothing to do
};

static enum status read_rule(struct tokenizer *t, json_t *value, const char *kind, const char *list,
                             const struct rule *rules, int depth) {
    if (!value || json_is_null(value)) return OK;
    const char *type = json_string_value(json_object_get(value, "type"));
    if (!type || depth > MAX_NESTING) FAIL(ERR_INPUT, "tokenizer.json: a %s has no type", kind);
    if (strcmp(type, "Sequence") == 0) {
        size_t index;
        json_t *item;
        json_array_foreach(json_object_get(value, list), index, item)
            TRY(read_rule(t, item, kind, list, rules, depth + 1));
        return OK;
    }
    for (const struct rule *rule = rules; rule->type; rule++)
        if (strcmp(type, rule->type) == 0) return rule->read ? rule->read(t, value, type) : OK;
    FAIL(ERR_INPUT, "tokenizer.json: the %s '%.40s' is not supported", kind, type);
}

static enum status copy_string(json_t *value, const char *key, const char *otherwise, char **out) {
    const char *text = json_string_value(json_object_get(value, key));
    if (!text) text = otherwise;
    if (!text) FAIL(ERR_INPUT, "tokenizer.json: a rule lacks its '%s'", key);
    *out = strdup(text);
    if (!*out) FAIL(ERR_MEMORY, "no memory for a rule");
    return OK;
}

static bool flag(json_t *value, const char *key, bool otherwise) {
    json_t *item = json_object_get(value, key);
    return json_is_boolean(item) ? json_is_true(item) : otherwise;
}

// {"String": literal} or {"Regex": pattern}
static enum status read_pattern(json_t *value, const char **text, bool *literal) {
    json_t *pattern = json_object_get(value, "pattern");
    const char *string = json_string_value(json_object_get(pattern, "String"));
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    *literal = string != NULL;
    *text = string ? string : regex;
    if (!*text) FAIL(ERR_INPUT, "tokenizer.json: a rule lacks its pattern");
    return OK;
}

static enum status new_step(struct tokenizer *t, enum normal_kind kind, struct normal_step **out) {
    if (t->n_normal == MAX_STEP)
        FAIL(ERR_INPUT, "tokenizer.json: more than %d normalizers", MAX_STEP);
    *out = &t->normal[t->n_normal++];
    **out = (struct normal_step){.kind = kind};
    return OK;
}

static enum status read_form(struct tokenizer *t, json_t *value, const char *type) {
    static const char *const names[] = {[UNICODE_NFC] = "NFC",
                                        [UNICODE_NFD] = "NFD",
                                        [UNICODE_NFKC] = "NFKC",
                                        [UNICODE_NFKD] = "NFKD"};
    (void)value;
    struct normal_step *step;
    TRY(new_step(t, NORMAL_FORM, &step));
    while (strcmp(names[step->form], type) != 0) step->form++;
    return OK;
}

static enum status read_prepend(struct tokenizer *t, json_t *value, const char *type) {
    (void)type;
    struct normal_step *step;
    TRY(new_step(t, NORMAL_PREPEND, &step));
    return copy_string(value, "prepend", NULL, &step->text);
}

static enum status read_replace(struct tokenizer *t, json_t *value, const char *type) {
    (void)type;
    struct normal_step *step;
    const char *pattern;
    bool literal;
    TRY(new_step(t, NORMAL_REPLACE, &step));
    TRY(read_pattern(value, &pattern, &literal));
    TRY(copy_string(value, "content", NULL, &step->text));
    return regex_open(pattern, literal, &step->regex);
}

static enum status read_charsmap(struct tokenizer *t, json_t *value, const char *type) {
    const char *base64 = json_string_value(json_object_get(value, "precompiled_charsmap"));
    struct normal_step *step;
    if (!base64) FAIL(ERR_INPUT, "tokenizer.json: %s lacks its precompiled_charsmap", type);
    TRY(new_step(t, NORMAL_CHARSMAP, &step));
    return charsmap_open(base64, &step->charsmap);
}

static enum status read_strip(struct tokenizer *t, json_t *value, const char *type) {
    (void)type;
    struct normal_step *step;
    TRY(new_step(t, NORMAL_STRIP, &step));
    step->form = flag(value, "strip_left", true) | flag(value, "strip_right", true) << 1;
    return OK;
}

static enum status add_step(struct tokenizer *t, enum normal_kind kind) {
    struct normal_step *step;
    return new_step(t, kind, &step);
}

static enum status read_bert_normalizer(struct tokenizer *t, json_t *value, const char *type) {
    (void)type;
    bool lower = flag(value, "lowercase", true);
    if (flag(value, "clean_text", true)) TRY(add_step(t, NORMAL_CLEAN));
    if (flag(value, "handle_chinese_chars", true)) TRY(add_step(t, NORMAL_IDEOGRAPHS));
    if (flag(value, "strip_accents", lower)) {
        struct normal_step *step;
        TRY(new_step(t, NORMAL_FORM, &step));
        step->form = UNICODE_NFD;
        TRY(add_step(t, NORMAL_MARKS));
    }
    return lower ? add_step(t, NORMAL_LOWER) : OK;
}

static enum status read_lower_case(struct tokenizer *t, json_t *value, const char *type) {
    (void)value;
    (void)type;
    return add_step(t, NORMAL_LOWER);
}

enum status tokenizer_add_lower_case(struct tokenizer *t) {
    for (int i = 0; i < t->n_normal; i++)
        if (t->normal[i].kind == NORMAL_LOWER) return OK;
    TRY(add_step(t, NORMAL_LOWER));
    struct normal_step step = t->normal[t->n_normal - 1];
    memmove(t->normal + 1, t->normal, (size_t)(t->n_normal - 1) * sizeof step);
    t->normal[0] = step;
    return OK;
}

enum status tokenizer_read_normalizer(struct tokenizer *tokenizer, json_t *value) {
    static const struct rule rules[] = {{"NFC", read_form},
                                        {"NFD", read_form},
                                        {"NFKC", read_form},
                                        {"NFKD", read_form},
                                        {"Prepend", read_prepend},
                                        {"Replace", read_replace},
                                        {"BertNormalizer", read_bert_normalizer},
                                        {"Precompiled", read_charsmap},
                                        {"Strip", read_strip},
                                        {"Lowercase", read_lower_case},
                                        {.type = NULL, .read = NULL}};
    return read_rule(tokenizer, value, "normalizer", "normalizers", rules, 0);
}

static enum status new_stage(struct tokenizer *t, enum stage_kind kind, struct stage **out) {
    if (t->n_stage == MAX_STEP)
        FAIL(ERR_INPUT, "tokenizer.json: more than %d pre-tokenizers", MAX_STEP);
    *out = &t->stage[t->n_stage++];
    **out = (struct stage){.kind = kind};
    return OK;
}

// Byte-level text is in GPT-2's alphabet: a later stage would have to work on that.
static enum status check_last(const struct tokenizer *t, const char *type) {
    if (t->bpe.by_bytes)
        FAIL(ERR_INPUT, "tokenizer.json: the pre-tokenizer %s after ByteLevel is not supported",
             type);
    return OK;
}

static enum status read_split(struct tokenizer *t, json_t *value, const char *type) {
    static const char *const names[] = {[SPLIT_ISOLATED] = "Isolated",
                                        [SPLIT_REMOVED] = "Removed",
                                        [SPLIT_WITH_PREVIOUS] = "MergedWithPrevious",
                                        [SPLIT_WITH_NEXT] = "MergedWithNext",
                                        [SPLIT_CONTIGUOUS] = "Contiguous"};
    const char *behavior = json_string_value(json_object_get(value, "behavior"));
    const char *pattern;
    bool literal;
    int i = 0;
    TRY(check_last(t, type));
    TRY(read_pattern(value, &pattern, &literal));
    while (behavior && i <= SPLIT_CONTIGUOUS && strcmp(names[i], behavior) != 0) i++;
    if (!behavior || i > SPLIT_CONTIGUOUS)
        FAIL(ERR_INPUT, "tokenizer.json: the split behavior '%.40s' is not supported",
             behavior ? behavior : "");
    return tokenizer_add_stage(t, pattern, literal, (enum split_behavior)i,
                               flag(value, "invert", false));
}

static enum status read_digits(struct tokenizer *t, json_t *value, const char *type) {
    TRY(check_last(t, type));
    const char *pattern = flag(value, "individual_digits", false) ? "\\p{N}" : "\\p{N}+";
    return tokenizer_add_stage(t, pattern, false, SPLIT_ISOLATED, false);
}

static enum status read_byte_level(struct tokenizer *t, json_t *value, const char *type) {
    struct stage *stage;
    TRY(check_last(t, type));
    t->bpe.by_bytes = true;
    if (flag(value, "add_prefix_space", true)) TRY(new_stage(t, STAGE_PREFIX_SPACE, &stage));
    if (!flag(value, "use_regex", true)) return OK;
    return tokenizer_add_stage(t, tokenizer_gpt2_pattern, false, SPLIT_ISOLATED, false);
}

static enum status read_prefix_scheme(json_t *value, enum prefix_scheme *out) {
    const char *scheme = json_string_value(json_object_get(value, "prepend_scheme"));
    if (!scheme) scheme = flag(value, "add_prefix_space", true) ? "always" : "never";
    if (strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0 &&
        strcmp(scheme, "never") != 0)
        FAIL(ERR_INPUT, "tokenizer.json: the prepend scheme '%.40s' is not supported", scheme);
    *out = scheme[0] == 'a' ? PREFIX_ALWAYS : scheme[0] == 'f' ? PREFIX_FIRST : PREFIX_NEVER;
    return OK;
}

static enum status read_metaspace(struct tokenizer *t, json_t *value, const char *type) {
    struct stage *stage;
    TRY(check_last(t, type));
    TRY(new_stage(t, STAGE_METASPACE, &stage));
    TRY(copy_string(value, "replacement", "▁", &stage->mark));
    TRY(read_prefix_scheme(value, &stage->prefix));
    if (!flag(value, "split", true)) return OK;
    return tokenizer_add_stage(t, stage->mark, true, SPLIT_WITH_NEXT, false);
}

static enum status read_spaces(struct tokenizer *t, json_t *value, const char *type) {
    (void)value;
    TRY(check_last(t, type));
    return tokenizer_add_stage(t, "\\s+", false, SPLIT_REMOVED, false);
}

static enum status read_bert_words(struct tokenizer *t, json_t *value, const char *type) {
    TRY(read_spaces(t, value, type));
    return tokenizer_add_stage(t, "[!-/:-@\\[-`{-~\\p{P}]", false, SPLIT_ISOLATED, false);
}

enum status tokenizer_read_pre_tokenizer(struct tokenizer *tokenizer, json_t *value) {
    static const struct rule rules[] = {{"Split", read_split},
                                        {"Digits", read_digits},
                                        {"ByteLevel", read_byte_level},
                                        {"Metaspace", read_metaspace},
                                        {"BertPreTokenizer", read_bert_words},
                                        {"WhitespaceSplit", read_spaces},
                                        {.type = NULL, .read = NULL}};
    return read_rule(tokenizer, value, "pre-tokenizer", "pretokenizers", rules, 0);
}

static enum status add_special(struct tokenizer *t, json_t *id, bool before) {
    int *n = before ? &t->n_prefix : &t->n_suffix;
    int64_t value = json_integer_value(id);
    if (!json_is_integer(id) || value < 0 || value >= t->bpe.n_token || *n == MAX_SPECIAL)
        FAIL(ERR_INPUT, "tokenizer.json: the post-processor's special tokens are wrong");
    (before ? t->prefix : t->suffix)[(*n)++] = (int32_t)value;
    return OK;
}

static enum status read_template(struct tokenizer *t, json_t *value, const char *type) {
    bool before = true;
    size_t index;
    json_t *item, *specials = json_object_get(value, "special_tokens");
    if (!json_is_array(json_object_get(value, "single")))
        FAIL(ERR_INPUT, "tokenizer.json: %s lacks its 'single'", type);
    json_array_foreach(json_object_get(value, "single"), index, item) {
        const char *name =
            json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (json_object_get(item, "Sequence")) {
            before = false;
            continue;
        }
        json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
        if (!ids) FAIL(ERR_INPUT, "tokenizer.json: item %zu of %s is unknown", index, type);
        size_t place;
        json_t *id;
        json_array_foreach(ids, place, id) TRY(add_special(t, id, before));
    }
    return OK;
}

// {"cls": [token, id], "sep": [token, id]}
static enum status read_pair(struct tokenizer *t, json_t *value, const char *type) {
    json_t *first = json_array_get(json_object_get(value, "cls"), 1);
    json_t *last = json_array_get(json_object_get(value, "sep"), 1);
    if (!first || !last) FAIL(ERR_INPUT, "tokenizer.json: %s lacks its 'cls' or 'sep'", type);
    TRY(add_special(t, first, true));
    return add_special(t, last, false);
}

enum status tokenizer_read_post_processor(struct tokenizer *tokenizer, json_t *value) {
    static const struct rule rules[] = {{"TemplateProcessing", read_template},
                                        {"BertProcessing", read_pair},
                                        {"RobertaProcessing", read_pair},
                                        {"ByteLevel", NULL}, // trims offsets only
                                        {.type = NULL, .read = NULL}};
    return read_rule(tokenizer, value, "post-processor", "processors", rules, 0);
}

static enum status set_mark(struct tokenizer *t, const char *mark) {
    free(t->mark);
    t->mark = strdup(mark);
    if (!t->mark) FAIL(ERR_MEMORY, "no memory for a decoder");
    return OK;
}

static enum status read_decode_replace(struct tokenizer *t, json_t *value, const char *type) {
    const char *content = json_string_value(json_object_get(value, "content")), *pattern;
    bool literal;
    TRY(read_pattern(value, &pattern, &literal));
    if (!literal || !content || strcmp(content, " ") != 0)
        FAIL(ERR_INPUT, "tokenizer.json: the decoder %s of anything but a mark by a space", type);
    return set_mark(t, pattern);
}

static enum status read_decode_strip(struct tokenizer *t, json_t *value, const char *type) {
    const char *content = json_string_value(json_object_get(value, "content"));
    json_int_t start = json_integer_value(json_object_get(value, "start"));
    if (!content || strcmp(content, " ") != 0 || start < 0 || start > 16 ||
        json_integer_value(json_object_get(value, "stop")) != 0)
        FAIL(ERR_INPUT, "tokenizer.json: the decoder %s of anything but leading spaces", type);
    t->strip_spaces = (int)start;
    return OK;
}

static enum status read_decode_metaspace(struct tokenizer *t, json_t *value, const char *type) {
    (void)type;
    enum prefix_scheme scheme;
    const char *mark = json_string_value(json_object_get(value, "replacement"));
    TRY(read_prefix_scheme(value, &scheme));
    t->drop_first_marks = scheme != PREFIX_NEVER;
    return set_mark(t, mark ? mark : "▁");
}

static enum status read_decode_words(struct tokenizer *t, json_t *value, const char *type) {
    (void)type;
    free(t->join_mark);
    t->join_mark = NULL;
    t->tidies = flag(value, "cleanup", true);
    return copy_string(value, "prefix", "##", &t->join_mark);
}

enum status tokenizer_read_decoder(struct tokenizer *tokenizer, json_t *value) {
    static const struct rule rules[] = {{"ByteLevel", NULL},
                                        {"ByteFallback", NULL},
                                        {"Fuse", NULL},
                                        {"Replace", read_decode_replace},
                                        {"Strip", read_decode_strip},
                                        {"Metaspace", read_decode_metaspace},
                                        {"WordPiece", read_decode_words},
                                        {.type = NULL, .read = NULL}};
    return read_rule(tokenizer, value, "decoder", "decoders", rules, 0);
}
