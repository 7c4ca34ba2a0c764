// Typed look-ups in a parsed GGUF file's metadata.
#include <stdlib.h>
#include <string.h>

#include "model/gguf.h"

static int compare_key(const void *key, const void *value) {
    return strcmp(key, ((const struct gguf_value *)value)->key);
}

const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key) {
    if (gguf->n_value == 0) return NULL;
    return bsearch(key, gguf->values, gguf->n_value, sizeof *gguf->values, compare_key);
}

#define LOAD(type, data, index)                                                                    \
    do {                                                                                           \
        type element_;                                                                             \
        memcpy(&element_, (const char *)(data) + (index) * sizeof element_, sizeof element_);      \
        *out = element_;                                                                           \
        return true;                                                                               \
    } while (0)

static bool load_int(enum gguf_type type, const void *data, uint64_t index, int64_t *out) {
    switch (type) {
    case GGUF_UINT8:
        LOAD(uint8_t, data, index);
    case GGUF_INT8:
        LOAD(int8_t, data, index);
    case GGUF_UINT16:
        LOAD(uint16_t, data, index);
    case GGUF_INT16:
        LOAD(int16_t, data, index);
    case GGUF_UINT32:
        LOAD(uint32_t, data, index);
    case GGUF_INT32:
        LOAD(int32_t, data, index);
    case GGUF_INT64:
        LOAD(int64_t, data, index);
    case GGUF_UINT64: {
        uint64_t wide;
        memcpy(&wide, (const char *)data + index * sizeof wide, sizeof wide);
        *out = (int64_t)wide;
        return wide <= INT64_MAX;
    }
    default:
        return false;
    }
}

static bool load_float(enum gguf_type type, const void *data, uint64_t index, double *out) {
    int64_t integer;
    switch (type) {
    case GGUF_FLOAT32:
        LOAD(float, data, index);
    case GGUF_FLOAT64:
        LOAD(double, data, index);
    default:
        if (!load_int(type, data, index, &integer)) return false;
        *out = (double)integer;
        return true;
    }
}

bool gguf_get_int(const struct gguf *gguf, const char *key, int64_t *out) {
    const struct gguf_value *value = gguf_find(gguf, key);
    return value && load_int(value->type, value->data, 0, out);
}

bool gguf_get_float(const struct gguf *gguf, const char *key, double *out) {
    const struct gguf_value *value = gguf_find(gguf, key);
    return value && load_float(value->type, value->data, 0, out);
}

bool gguf_get_bool(const struct gguf *gguf, const char *key, bool *out) {
    const struct gguf_value *value = gguf_find(gguf, key);
    if (!value || value->type != GGUF_BOOL) return false;
    *out = *(const uint8_t *)value->data != 0;
    return true;
}

bool gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *out) {
    const struct gguf_value *value = gguf_find(gguf, key);
    if (!value || value->type != GGUF_STRING) return false;
    *out = value->string;
    return true;
}

bool gguf_array_bool(const struct gguf_value *value, uint64_t index, bool *out) {
    if (value->type != GGUF_ARRAY || value->element != GGUF_BOOL || index >= value->count)
        return false;
    *out = ((const uint8_t *)value->data)[index] != 0;
    return true;
}

bool gguf_array_int(const struct gguf_value *value, uint64_t index, int64_t *out) {
    return value->type == GGUF_ARRAY && index < value->count &&
           load_int(value->element, value->data, index, out);
}

bool gguf_array_float(const struct gguf_value *value, uint64_t index, double *out) {
    return value->type == GGUF_ARRAY && index < value->count &&
           load_float(value->element, value->data, index, out);
}
