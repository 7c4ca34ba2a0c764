// GGUF v2/v3 parser. Layout: magic, version, counts, key/value pairs, tensor table, padding to the
// alignment, tensor data. All integers are little-endian, which is the order of every host that
// Halka runs on. Format: the ggml project's docs/gguf.md.
#include "model/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "model/utf8.h"

enum {
    MAX_KEY_BYTES = 65535, // the format's own limit
    MAX_NAME_BYTES = 255,
    MAX_ARRAY_DEPTH = 4,
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 20,
};

static const struct gguf_format formats[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},      [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17},
};

// Bytes of one value in an array; strings and arrays: their least size.
static const uint8_t element_bytes[] = {
    [GGUF_UINT8] = 1,  [GGUF_INT8] = 1,    [GGUF_UINT16] = 2, [GGUF_INT16] = 2,  [GGUF_UINT32] = 4,
    [GGUF_INT32] = 4,  [GGUF_FLOAT32] = 4, [GGUF_BOOL] = 1,   [GGUF_STRING] = 8, [GGUF_ARRAY] = 12,
    [GGUF_UINT64] = 8, [GGUF_INT64] = 8,   [GGUF_FLOAT64] = 8};

struct reader {
    const uint8_t *data;
    size_t bytes, at;
    const char *name;
};

const struct gguf_format *gguf_format_find(uint32_t type) {
    if (type >= sizeof formats / sizeof formats[0] || !formats[type].name) return NULL;
    return &formats[type];
}

static enum status read_bytes(struct reader *in, void *out, size_t bytes, const char *what) {
    if (bytes > in->bytes - in->at)
        FAIL(ERR_INPUT, "%s: truncated at byte %zu of %zu, within %s; fetch the file again",
             in->name, in->at, in->bytes, what);
    memcpy(out, in->data + in->at, bytes);
    in->at += bytes;
    return OK;
}

static enum status read_u32(struct reader *in, uint32_t *out, const char *what) {
    return read_bytes(in, out, sizeof *out, what);
}

static enum status read_u64(struct reader *in, uint64_t *out, const char *what) {
    return read_bytes(in, out, sizeof *out, what);
}

static enum status read_string(struct reader *in, struct gguf_string *out, const char *what) {
    TRY(read_u64(in, &out->bytes, what));
    if (out->bytes > in->bytes - in->at)
        FAIL(ERR_INPUT, "%s: %s at byte %zu claims %llu bytes, %zu are left in the file", in->name,
             what, in->at, (unsigned long long)out->bytes, in->bytes - in->at);
    out->data = (const char *)in->data + in->at;
    in->at += out->bytes;
    return OK;
}

// A key or tensor name as an owned C string.
static enum status read_name(struct reader *in, size_t max_bytes, const char *what, char **out) {
    struct gguf_string text;
    size_t at = in->at;
    TRY(read_string(in, &text, what));
    if (text.bytes == 0 || text.bytes > max_bytes)
        FAIL(ERR_INPUT, "%s: %s at byte %zu has %llu bytes; 1 to %zu are allowed", in->name, what,
             at, (unsigned long long)text.bytes, max_bytes);
    if (memchr(text.data, 0, text.bytes) || !utf8_is_valid(text.data, text.bytes))
        FAIL(ERR_INPUT, "%s: %s at byte %zu is not valid UTF-8 text", in->name, what, at);
    *out = strndup(text.data, text.bytes);
    if (!*out) FAIL(ERR_MEMORY, "no memory for the metadata of %s", in->name);
    return OK;
}

static enum status read_array_head(struct reader *in, uint32_t *element, uint64_t *count) {
    TRY(read_u32(in, element, "an array's type"));
    TRY(read_u64(in, count, "an array's length"));
    if (*element > GGUF_FLOAT64)
        FAIL(ERR_INPUT, "%s: array of unknown type %u at byte %zu", in->name, *element, in->at);
    if (*count > (in->bytes - in->at) / element_bytes[*element])
        FAIL(ERR_INPUT, "%s: array of %llu elements at byte %zu exceeds the file's %zu bytes",
             in->name, (unsigned long long)*count, in->at, in->bytes);
    return OK;
}

static enum status skip_elements(struct reader *in, uint32_t element, uint64_t count, int depth) {
    if (depth > MAX_ARRAY_DEPTH)
        FAIL(ERR_INPUT, "%s: arrays nested deeper than %d at byte %zu", in->name, MAX_ARRAY_DEPTH,
             in->at);
    if (element != GGUF_STRING && element != GGUF_ARRAY) {
        in->at += count * element_bytes[element];
        return OK;
    }
    for (uint64_t i = 0; i < count; ++i) {
        if (element == GGUF_STRING) {
            struct gguf_string text;
            TRY(read_string(in, &text, "a string in an array"));
        } else {
            uint32_t inner;
            uint64_t n_inner;
            TRY(read_array_head(in, &inner, &n_inner));
            TRY(skip_elements(in, inner, n_inner, depth + 1));
        }
    }
    return OK;
}

static enum status read_array(struct reader *in, struct gguf_value *value) {
    uint32_t element;
    TRY(read_array_head(in, &element, &value->count));
    value->element = element;
    value->data = in->data + in->at;
    size_t begin = in->at;
    // The walk comes first, so that a false count fails before memory is reserved for it.
    TRY(skip_elements(in, element, value->count, 1));
    if (element != GGUF_STRING || value->count == 0) return OK;
    struct gguf_string *strings = calloc(value->count, sizeof *strings);
    if (!strings) FAIL(ERR_MEMORY, "no memory for the strings of %s", in->name);
    value->strings = strings;
    in->at = begin;
    for (uint64_t i = 0; i < value->count; ++i)
        TRY(read_string(in, &strings[i], "a string in an array"));
    return OK;
}

static enum status read_value(struct reader *in, struct gguf_value *value) {
    uint32_t type;
    TRY(read_name(in, MAX_KEY_BYTES, "a key", &value->key));
    TRY(read_u32(in, &type, "a value's type"));
    if (type > GGUF_FLOAT64)
        FAIL(ERR_INPUT, "%s: key %s has the unknown type %u", in->name, value->key, type);
    value->type = type;
    if (type == GGUF_ARRAY) return read_array(in, value);
    if (type == GGUF_STRING) return read_string(in, &value->string, value->key);
    value->data = in->data + in->at;
    if (element_bytes[type] > in->bytes - in->at)
        FAIL(ERR_INPUT, "%s: truncated within the value of %s", in->name, value->key);
    in->at += element_bytes[type];
    return OK;
}

// `offset` is from the start of the data section, whose place is known only after the table.
static enum status read_tensor(struct reader *in, struct gguf_tensor *tensor, uint64_t *offset) {
    uint32_t n_dim;
    TRY(read_name(in, MAX_NAME_BYTES, "a tensor's name", &tensor->name));
    TRY(read_u32(in, &n_dim, tensor->name));
    if (n_dim > 4)
        FAIL(ERR_INPUT, "%s: tensor %s has %u dimensions; 4 at most are allowed", in->name,
             tensor->name, n_dim);
    tensor->n_dim = (int)n_dim;
    int64_t n_element = 1;
    for (uint32_t i = 0; i < 4; ++i) {
        uint64_t n = 1;
        if (i < n_dim) TRY(read_u64(in, &n, tensor->name));
        tensor->ne[i] = (int64_t)n;
        if (n == 0 || n > INT64_MAX || __builtin_mul_overflow(n_element, (int64_t)n, &n_element))
            FAIL(ERR_INPUT, "%s: tensor %s has an impossible size in dimension %u: %llu", in->name,
                 tensor->name, i, (unsigned long long)n);
    }
    TRY(read_u32(in, &tensor->type, tensor->name));
    TRY(read_u64(in, offset, tensor->name));
    const struct gguf_format *format = gguf_format_find(tensor->type);
    if (!format) return OK;
    if (tensor->ne[0] % format->block_elements)
        FAIL(ERR_INPUT, "%s: rows of tensor %s hold %lld elements, no multiple of %s's %d",
             in->name, tensor->name, (long long)tensor->ne[0], format->name,
             format->block_elements);
    int64_t n_block = n_element / format->block_elements;
    if (__builtin_mul_overflow(n_block, (int64_t)format->block_bytes, &tensor->bytes))
        FAIL(ERR_INPUT, "%s: the size of tensor %s overflows", in->name, tensor->name);
    return OK;
}

static int compare_values(const void *a, const void *b) {
    return strcmp(((const struct gguf_value *)a)->key, ((const struct gguf_value *)b)->key);
}

static int compare_tensors(const void *a, const void *b) {
    return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static int compare_places(const void *a, const void *b) {
    const struct gguf_tensor *x = a, *y = b;
    return (x->data > y->data) - (x->data < y->data);
}

// Makes room for element `n` of an array: its growth follows what was really read, not a count
// that the file merely claims. New elements are zero.
static enum status grow(void **array, uint64_t n, uint64_t n_claimed, size_t element,
                        const char *name) {
    if (n != 0 && (n < 64 || (n & (n - 1)))) return OK; // still inside the last doubling
    uint64_t capacity = n == 0 ? 64 : 2 * n;
    if (capacity > n_claimed) capacity = n_claimed;
    char *grown = realloc(*array, capacity * element);
    if (!grown) FAIL(ERR_MEMORY, "no memory for the metadata of %s", name);
    memset(grown + n * element, 0, (capacity - n) * element);
    *array = grown;
    return OK;
}

static enum status read_values(struct reader *in, uint64_t count, struct gguf *out) {
    for (uint64_t i = 0; i < count; ++i) {
        TRY(grow((void **)&out->values, i, count, sizeof *out->values, in->name));
        out->n_value = i + 1;
        TRY(read_value(in, &out->values[i]));
    }
    if (count) qsort(out->values, count, sizeof *out->values, compare_values);
    for (uint64_t i = 1; i < count; ++i)
        if (strcmp(out->values[i - 1].key, out->values[i].key) == 0)
            FAIL(ERR_INPUT, "%s: key %s occurs twice", in->name, out->values[i].key);
    return OK;
}

static enum status read_alignment(const struct reader *in, const struct gguf *gguf,
                                  uint64_t *alignment) {
    int64_t value = DEFAULT_ALIGNMENT;
    if (gguf_find(gguf, "general.alignment") && !gguf_get_int(gguf, "general.alignment", &value))
        FAIL(ERR_INPUT, "%s: general.alignment is not an integer", in->name);
    if (value < 8 || value > MAX_ALIGNMENT || (value & (value - 1)))
        FAIL(ERR_INPUT, "%s: general.alignment %lld is no power of two from 8 to %d", in->name,
             (long long)value, MAX_ALIGNMENT);
    *alignment = (uint64_t)value;
    return OK;
}

// Turns the offset, kept in `data` while the table was read, into an address inside the file.
static enum status place_tensors(const struct reader *in, struct gguf *gguf, uint64_t alignment) {
    size_t begin = gguf->header_bytes;
    for (uint64_t i = 0; i < gguf->n_tensor; ++i) {
        struct gguf_tensor *tensor = &gguf->tensors[i];
        uint64_t offset = (uint64_t)(uintptr_t)tensor->data;
        tensor->data = NULL;
        if (offset % alignment)
            FAIL(ERR_INPUT,
                 "%s: tensor %s begins at offset %llu, no multiple of the alignment %llu", in->name,
                 tensor->name, (unsigned long long)offset, (unsigned long long)alignment);
        if (begin > in->bytes || offset > in->bytes - begin ||
            (uint64_t)tensor->bytes > in->bytes - begin - offset)
            FAIL(ERR_INPUT,
                 "%s: tensor %s (%lld bytes at offset %llu) lies beyond the file's %zu bytes; the "
                 "file is truncated or damaged: fetch it again",
                 in->name, tensor->name, (long long)tensor->bytes, (unsigned long long)offset,
                 in->bytes);
        tensor->data = in->data + begin + offset;
    }
    if (gguf->n_tensor) qsort(gguf->tensors, gguf->n_tensor, sizeof *gguf->tensors, compare_places);
    for (uint64_t i = 1; i < gguf->n_tensor; ++i) {
        const struct gguf_tensor *before = &gguf->tensors[i - 1], *after = &gguf->tensors[i];
        if ((const char *)before->data + before->bytes > (const char *)after->data)
            FAIL(ERR_INPUT, "%s: tensors %s and %s overlap", in->name, before->name, after->name);
    }
    return OK;
}

static enum status read_tensors(struct reader *in, uint64_t count, struct gguf *out) {
    uint64_t alignment, offset;
    TRY(read_alignment(in, out, &alignment));
    for (uint64_t i = 0; i < count; ++i) {
        TRY(grow((void **)&out->tensors, i, count, sizeof *out->tensors, in->name));
        out->n_tensor = i + 1;
        TRY(read_tensor(in, &out->tensors[i], &offset));
        out->tensors[i].data = (const void *)(uintptr_t)offset;
    }
    out->header = in->data;
    out->header_bytes = (in->at + alignment - 1) / alignment * alignment;
    TRY(place_tensors(in, out, alignment));
    if (out->header_bytes > in->bytes) out->header_bytes = in->bytes; // a file without tensors
    if (count) qsort(out->tensors, count, sizeof *out->tensors, compare_tensors);
    for (uint64_t i = 1; i < count; ++i)
        if (strcmp(out->tensors[i - 1].name, out->tensors[i].name) == 0)
            FAIL(ERR_INPUT, "%s: tensor %s occurs twice", in->name, out->tensors[i].name);
    return OK;
}

static enum status read_header(struct reader *in, struct gguf *out, uint64_t *n_value,
                               uint64_t *n_tensor) {
    char magic[4];
    TRY(read_bytes(in, magic, sizeof magic, "the magic number"));
    if (memcmp(magic, "GGUF", 4) != 0) FAIL(ERR_INPUT, "%s is not a GGUF file", in->name);
    TRY(read_u32(in, &out->version, "the version"));
    if (out->version != 0 && (out->version & 0xffff) == 0)
        FAIL(ERR_INPUT, "%s is a big-endian GGUF file; convert it to little-endian", in->name);
    if (out->version != 2 && out->version != 3)
        FAIL(ERR_INPUT, "%s is GGUF version %u; versions 2 and 3 are supported", in->name,
             out->version);
    TRY(read_u64(in, n_tensor, "the number of tensors"));
    TRY(read_u64(in, n_value, "the number of keys"));
    // The least size of a key/value pair is 14 bytes, of a tensor's row 25.
    size_t left = in->bytes - in->at;
    if (*n_value > left / 14 || *n_tensor > left / 25)
        FAIL(ERR_INPUT, "%s: %llu keys and %llu tensors cannot be in a file of %zu bytes", in->name,
             (unsigned long long)*n_value, (unsigned long long)*n_tensor, in->bytes);
    return OK;
}

enum status gguf_parse(const void *data, size_t bytes, const char *name, struct gguf **out) {
    enum status status;
    uint64_t n_value, n_tensor;
    struct reader in = {.data = data, .bytes = bytes, .name = name};
    *out = NULL;
    struct gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf) FAIL(ERR_MEMORY, "no memory for the metadata of %s", name);
    TRY_OR(fail, read_header(&in, gguf, &n_value, &n_tensor));
    TRY_OR(fail, read_values(&in, n_value, gguf));
    TRY_OR(fail, read_tensors(&in, n_tensor, gguf));
    *out = gguf;
    return OK;
fail:
    gguf_close(&gguf);
    return status;
}

void gguf_close(struct gguf **gguf) {
    struct gguf *it = *gguf;
    if (!it) return;
    for (uint64_t i = 0; i < it->n_value; ++i) {
        free(it->values[i].key);
        free((void *)it->values[i].strings);
    }
    for (uint64_t i = 0; i < it->n_tensor; ++i) free(it->tensors[i].name);
    free(it->values);
    free(it->tensors);
    free(it);
    *gguf = NULL;
}
