#include "model/config_rope.h"

#include <jansson.h>
#include <stdlib.h>

static enum status read_factors(struct json_object in, const char *key, float out[ROPE_MAX_FACTORS],
                                int *n) {
    const json_t *list = NULL;
    TRY(json_read_array(in, key, &list));
    if (!list) FAIL(ERR_INPUT, "%s: LongRoPE without %s", in.path, key);
    if (json_array_size(list) > ROPE_MAX_FACTORS)
        FAIL(ERR_INPUT, "%s: %s has %zu factors; %d at most", in.path, key, json_array_size(list),
             ROPE_MAX_FACTORS);
    if (*n && (size_t)*n != json_array_size(list))
        FAIL(ERR_INPUT, "%s: short_factor and long_factor differ in length", in.path);
    *n = (int)json_array_size(list);
    for (int i = 0; i < *n; ++i) {
        const json_t *factor = json_array_get(list, (size_t)i);
        if (!json_is_number(factor)) FAIL(ERR_INPUT, "%s: %s[%d] is not a number", in.path, key, i);
        out[i] = (float)json_number_value(factor);
    }
    return OK;
}

enum status config_read_longrope(struct json_object in, struct rope_spec *rope) {
    rope->n_factor = 0;
    TRY(json_read_float(in, "attention_factor", 0, 1e3, &rope->attention_factor));
    TRY(read_factors(in, "short_factor", rope->short_factor, &rope->n_factor));
    return read_factors(in, "long_factor", rope->long_factor, &rope->n_factor);
}

enum status config_read_longrope_file(const char *path, struct rope_spec *rope) {
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!root) FAIL(ERR_NO_INPUT, "%s: line %d: %s", path, error.line, error.text);
    const json_t *scaling = json_object_get(root, "rope_parameters");
    if (!json_is_object(scaling)) scaling = json_object_get(root, "rope_scaling");
    if (!json_is_object(scaling)) scaling = root;
    enum status status = OK;
    if (json_is_object(scaling))
        status = config_read_longrope((struct json_object){scaling, path}, rope);
    else
        status = status_fail(ERR_INPUT, __FILE__, "%s is not a JSON object", path);
    json_decref(root);
    return status;
}
