#include "model/json_util.h"

#include <inttypes.h>

static enum status read_root(const char *text, size_t bytes, const char *path, json_type type,
                             json_t **out) {
    json_error_t error;
    *out = NULL;
    json_t *root = json_loadb(text ? text : "", bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        FAIL(ERR_INPUT, "%s: line %d, column %d: %s", path, error.line, error.column, error.text);
    if (json_typeof(root) != type) {
        json_decref(root);
        FAIL(ERR_INPUT, "%s: a JSON %s was expected", path,
             type == JSON_OBJECT ? "object" : "list");
    }
    *out = root;
    return OK;
}

enum status json_read_text(const char *text, size_t bytes, const char *path, json_t **out) {
    return read_root(text, bytes, path, JSON_OBJECT, out);
}

enum status json_read_list(const char *text, size_t bytes, const char *path, json_t **out) {
    return read_root(text, bytes, path, JSON_ARRAY, out);
}

// NULL when absent or null.
static const json_t *find(struct json_object in, const char *key) {
    const json_t *value = in.json ? json_object_get(in.json, key) : NULL;
    return json_is_null(value) ? NULL : value;
}

enum status json_read_int(struct json_object in, const char *key, int64_t low, int64_t high,
                          int64_t *out) {
    const json_t *value = find(in, key);
    if (!value) return OK;
    if (!json_is_integer(value)) FAIL(ERR_INPUT, "%s: %s is not an integer", in.path, key);
    int64_t integer = json_integer_value(value);
    if (integer < low || integer > high)
        FAIL(ERR_INPUT, "%s: %s is %" PRId64 "; %" PRId64 " to %" PRId64 " is supported", in.path,
             key, integer, low, high);
    *out = integer;
    return OK;
}

enum status json_read_float(struct json_object in, const char *key, double low, double high,
                            double *out) {
    const json_t *value = find(in, key);
    if (!value) return OK;
    if (!json_is_number(value)) FAIL(ERR_INPUT, "%s: %s is not a number", in.path, key);
    double number = json_number_value(value);
    if (!(number >= low && number <= high))
        FAIL(ERR_INPUT, "%s: %s is %g; %g to %g is supported", in.path, key, number, low, high);
    *out = number;
    return OK;
}

enum status json_read_bool(struct json_object in, const char *key, bool *out) {
    const json_t *value = find(in, key);
    if (!value) return OK;
    if (!json_is_boolean(value)) FAIL(ERR_INPUT, "%s: %s is not true or false", in.path, key);
    *out = json_is_true(value);
    return OK;
}

enum status json_read_string(struct json_object in, const char *key, const char **out) {
    const json_t *value = find(in, key);
    if (!value) return OK;
    if (!json_is_string(value)) FAIL(ERR_INPUT, "%s: %s is not a string", in.path, key);
    *out = json_string_value(value);
    return OK;
}

enum status json_read_object(struct json_object in, const char *key, const json_t **out) {
    const json_t *value = find(in, key);
    if (!value) return OK;
    if (!json_is_object(value)) FAIL(ERR_INPUT, "%s: %s is not an object", in.path, key);
    *out = value;
    return OK;
}

enum status json_read_array(struct json_object in, const char *key, const json_t **out) {
    const json_t *value = find(in, key);
    if (!value) return OK;
    if (!json_is_array(value)) FAIL(ERR_INPUT, "%s: %s is not a list", in.path, key);
    *out = value;
    return OK;
}
