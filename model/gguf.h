// GGUF v2/v3 container: metadata and tensor table of a mapped file. Nothing is trusted: counts,
// lengths, offsets, alignment and UTF-8 of keys are checked against the file's size.
#ifndef HALKA_MODEL_GGUF_H
#define HALKA_MODEL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

enum gguf_type {
    GGUF_UINT8,
    GGUF_INT8,
    GGUF_UINT16,
    GGUF_INT16,
    GGUF_UINT32,
    GGUF_INT32,
    GGUF_FLOAT32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_UINT64,
    GGUF_INT64,
    GGUF_FLOAT64,
};

struct gguf_string {
    const char *data; // in the mapping, not terminated
    uint64_t bytes;
};

struct gguf_value {
    char *key; // owned by the gguf
    enum gguf_type type;
    enum gguf_type element;            // of an array
    uint64_t count;                    // of an array
    const void *data;                  // scalars and arrays: in the mapping, unaligned
    struct gguf_string string;         // type STRING
    const struct gguf_string *strings; // [count] of an array of strings; owned by the gguf
};

struct gguf_tensor {
    char *name;
    int n_dim;
    int64_t ne[4]; // GGUF order: ne[0] is contiguous
    uint32_t type; // ggml type number
    const void *data;
    int64_t bytes; // 0 when gguf_format_find does not know the type
};

// A tensor type by its ggml number; NULL when unknown.
struct gguf_format {
    const char *name; // "F32", "Q4_1", ...
    int block_elements, block_bytes;
};
const struct gguf_format *gguf_format_find(uint32_t type);

struct gguf {
    uint32_t version;
    const void *header; // in the mapping: all that comes before the tensors' data
    size_t header_bytes;
    uint64_t n_value, n_tensor;
    struct gguf_value *values;   // sorted by key
    struct gguf_tensor *tensors; // sorted by name
};

// Parses `bytes` of a mapped file that outlives the result. `name` is for messages.
enum status gguf_parse(const void *data, size_t bytes, const char *name, struct gguf **out);
void gguf_close(struct gguf **gguf);

const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key); // NULL when absent
// Typed look-ups: false when the key is absent or of another kind (integers convert freely).
bool gguf_get_int(const struct gguf *gguf, const char *key, int64_t *out);
bool gguf_get_float(const struct gguf *gguf, const char *key, double *out);
bool gguf_get_bool(const struct gguf *gguf, const char *key, bool *out);
bool gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *out);
// Element of an array of numbers or flags; false out of range or when of another kind.
bool gguf_array_bool(const struct gguf_value *value, uint64_t index, bool *out);
bool gguf_array_int(const struct gguf_value *value, uint64_t index, int64_t *out);
bool gguf_array_float(const struct gguf_value *value, uint64_t index, double *out);

#endif
