#include "model/config_rope.h"

#include <stdlib.h>

#include "model/mapping.h"

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
    struct mapping text;
    json_t *root = NULL;
    const json_t *scaling = NULL;
    enum status status = mapping_open(path, &text);
    TRY_OR(done, status);
    TRY_OR(done, json_read_text(text.data, text.bytes, path, &root));
    struct json_object in = {root, path};
    TRY_OR(done, json_read_object(in, "rope_scaling", &scaling));
    TRY_OR(done, json_read_object(in, "rope_parameters", &scaling));
    if (scaling) in.json = scaling;
    status = config_read_longrope(in, rope);
done:
    json_decref(root);
    mapping_close(&text);
    return status;
}
