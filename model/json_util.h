// JSON objects read strictly: duplicate keys are refused, kinds and ranges are checked, and each
// message names the file and the key.
#ifndef HALKA_MODEL_JSON_UTIL_H
#define HALKA_MODEL_JSON_UTIL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"

struct json_object {
    const json_t *json; // an object, borrowed; NULL: an object without keys
    const char *path;   // for messages
};

// Parses text whose root must be an object; the caller drops *out with json_decref.
enum status json_read_text(const char *text, size_t bytes, const char *path, json_t **out);
// Likewise text whose root must be a list.
enum status json_read_list(const char *text, size_t bytes, const char *path, json_t **out);

// Each leaves *out as it was when the key is absent or null, and fails with ERR_INPUT when the
// value is of another kind or out of range (bounds inclusive; integers serve as floats).
enum status json_read_int(struct json_object in, const char *key, int64_t low, int64_t high,
                          int64_t *out);
enum status json_read_float(struct json_object in, const char *key, double low, double high,
                            double *out);
enum status json_read_bool(struct json_object in, const char *key, bool *out);
enum status json_read_string(struct json_object in, const char *key, const char **out);
enum status json_read_object(struct json_object in, const char *key, const json_t **out);
enum status json_read_array(struct json_object in, const char *key, const json_t **out);

#endif
