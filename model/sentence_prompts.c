#include "model/sentence_prompts.h"

#include <stdio.h>
#include <stdlib.h>

#include "model/json_util.h"
#include "model/mapping.h"

enum status sentence_prompts_parse(const char *text, size_t bytes, const char *path,
                                   struct sentence_prompts *out) {
    json_t *root = NULL, *value;
    const json_t *texts = NULL;
    const char *standard = NULL, *name;
    enum status status = OK;
    *out = (struct sentence_prompts){0};
    TRY(json_read_text(text, bytes, path, &root));
    struct json_object in = {root, path};
    TRY_OR(done, json_read_object(in, "prompts", &texts));
    TRY_OR(done, json_read_string(in, "default_prompt_name", &standard));
    json_object_foreach((json_t *)texts, name, value) {
        if (!json_is_string(value))
            FAIL_OR(done, ERR_INPUT, "%s: the prompt %.60s is no text", path, name);
    }
    if (standard && !json_object_get(texts, standard))
        FAIL_OR(done, ERR_INPUT, "%s: default_prompt_name is %.60s, which is none of the prompts",
                path, standard);
    out->texts = json_incref((json_t *)texts);
    if (standard) out->standard = sentence_prompts_find(out, standard);
done:
    json_decref(root);
    return status;
}

enum status sentence_prompts_open(const char *folder, struct sentence_prompts *out) {
    static const char file[] = "config_sentence_transformers.json";
    struct mapping text;
    char *path;
    *out = (struct sentence_prompts){0};
    if (!folder) return OK;
    enum status status = mapping_open_optional(folder, file, &path, &text);
    if (status == OK && path) status = sentence_prompts_parse(text.data, text.bytes, path, out);
    mapping_close(&text);
    free(path);
    return status;
}

void sentence_prompts_close(struct sentence_prompts *prompts) {
    json_decref(prompts->texts);
    *prompts = (struct sentence_prompts){0};
}

const char *sentence_prompts_find(const struct sentence_prompts *prompts, const char *name) {
    return json_string_value(json_object_get(prompts->texts, name));
}

const char *sentence_prompts_names(const struct sentence_prompts *prompts, char *out,
                                   size_t bytes) {
    const char *name;
    json_t *value;
    size_t used = 0;
    snprintf(out, bytes, "none");
    json_object_foreach(prompts->texts, name, value) {
        if (used < bytes)
            used += (size_t)snprintf(out + used, bytes - used, "%s%s", used ? ", " : "", name);
    }
    return out;
}

// Numbers without an end are written as an integer of 31 digits.
static enum status read_limit(const char *folder, const char *file, const char *key, int64_t *out) {
    struct mapping text;
    char *path;
    json_t *root = NULL;
    json_error_t error;
    enum status status = mapping_open_optional(folder, file, &path, &text);
    if (status != OK || !path) goto done;
    root = json_loadb(text.data ? text.data : "", text.bytes, JSON_DECODE_INT_AS_REAL, &error);
    if (!root) FAIL_OR(done, ERR_INPUT, "%s: line %d: %s", path, error.line, error.text);
    double limit = json_number_value(json_object_get(root, key));
    if (limit >= 1 && limit < INT32_MAX) *out = (int64_t)limit;
done:
    json_decref(root);
    mapping_close(&text);
    free(path);
    return status;
}

enum status sentence_max_tokens(const char *folder, int64_t *out) {
    *out = 0;
    if (!folder) return OK;
    TRY(read_limit(folder, "sentence_bert_config.json", "max_seq_length", out));
    if (*out > 0) return OK;
    return read_limit(folder, "tokenizer_config.json", "model_max_length", out);
}
