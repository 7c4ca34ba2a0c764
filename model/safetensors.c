// Format: the safetensors project's README. Tensors must lie inside the file and must not overlap;
// unused bytes between them are tolerated.
#include "model/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_util.h"

enum { MAX_HEADER_BYTES = 100 * 1000 * 1000, MAX_DIM = 16, MAX_NAME_BYTES = 1024 };

// Bits of one element; formats that are not listed are kept without a check of their size.
static const struct {
    const char *name;
    int bits;
} formats[] = {{"F32", 32},    {"F16", 16},    {"BF16", 16},  {"F64", 64}, {"I64", 64},
               {"I32", 32},    {"I16", 16},    {"I8", 8},     {"U8", 8},   {"BOOL", 8},
               {"U16", 16},    {"U32", 32},    {"U64", 64},   {"C64", 64}, {"F4", 4},
               {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}};

struct place { // of the data section within the file
    const char *path;
    const uint8_t *begin;
    int64_t bytes;
};

static int format_bits(const char *name) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; ++i)
        if (strcmp(formats[i].name, name) == 0) return formats[i].bits;
    return 0;
}

// Rank above 4 occurs only in tensors that Halka does not use: leading dimensions are folded.
static enum status read_shape(const char *path, const json_t *shape, struct tensor *tensor) {
    size_t n_dim = json_array_size(shape);
    int64_t n_element = 1;
    if (!json_is_array(shape) || n_dim > MAX_DIM)
        FAIL(ERR_INPUT, "%s: tensor %s has no shape of up to %d dimensions", path, tensor->name,
             MAX_DIM);
    tensor->n_dim = n_dim > 4 ? 4 : (int)n_dim;
    for (int i = 0; i < 4; ++i) tensor->shape[i] = 1;
    for (size_t i = 0; i < n_dim; ++i) {
        const json_t *value = json_array_get(shape, i);
        int64_t n = json_is_integer(value) ? json_integer_value(value) : -1;
        if (n < 0 || __builtin_mul_overflow(n_element, n, &n_element))
            FAIL(ERR_INPUT, "%s: tensor %s has an impossible size in dimension %zu", path,
                 tensor->name, i);
        size_t folded = n_dim > 4 ? n_dim - 4 : 0;
        int64_t *to = &tensor->shape[i < folded ? 0 : i - folded];
        if (__builtin_mul_overflow(*to, n, to))
            FAIL(ERR_INPUT, "%s: the size of tensor %s overflows", path, tensor->name);
    }
    return OK;
}

static enum status read_place(const struct place *place, const json_t *offsets,
                              struct tensor *tensor) {
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        FAIL(ERR_INPUT, "%s: tensor %s has no pair of data_offsets", place->path, tensor->name);
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin || end > place->bytes)
        FAIL(ERR_INPUT,
             "%s: tensor %s lies at %" PRId64 " to %" PRId64 " of %" PRId64
             " bytes of data; the file is truncated or damaged: fetch it again",
             place->path, tensor->name, begin, end, place->bytes);
    tensor->data = place->begin + begin;
    tensor->bytes = end - begin;
    return OK;
}

static enum status check_size(const char *path, const struct tensor *tensor) {
    int bits = format_bits(tensor->format);
    int64_t n_bit;
    char shape[96];
    if (bits == 0) return OK;
    if (__builtin_mul_overflow(tensor_elements(tensor), (int64_t)bits, &n_bit) || n_bit % 8 != 0 ||
        n_bit / 8 != tensor->bytes)
        FAIL(ERR_INPUT, "%s: tensor %s of %s %s cannot have %" PRId64 " bytes", path, tensor->name,
             tensor->format, tensor_shape_text(tensor, shape), tensor->bytes);
    return OK;
}

static enum status read_tensor(const struct place *place, const char *name, const json_t *json,
                               struct tensor *tensor) {
    const char *format = NULL;
    if (strlen(name) > MAX_NAME_BYTES || !*name)
        FAIL(ERR_INPUT, "%s: a tensor's name has %zu bytes; 1 to %d are allowed", place->path,
             strlen(name), MAX_NAME_BYTES);
    tensor->name = strdup(name);
    if (!tensor->name) FAIL(ERR_MEMORY, "no memory for the tensors of %s", place->path);
    if (!json_is_object(json))
        FAIL(ERR_INPUT, "%s: tensor %s is not described by an object", place->path, name);
    TRY(json_read_string((struct json_object){json, place->path}, "dtype", &format));
    if (!format || strlen(format) >= sizeof tensor->format)
        FAIL(ERR_INPUT, "%s: tensor %s has no dtype", place->path, name);
    snprintf(tensor->format, sizeof tensor->format, "%s", format);
    // GGUF's block formats have names, too, but no place in this container.
    tensor->dtype = format_bits(format) ? tensor_format_dtype(format) : N_DTYPE;
    TRY(read_shape(place->path, json_object_get(json, "shape"), tensor));
    TRY(read_place(place, json_object_get(json, "data_offsets"), tensor));
    return check_size(place->path, tensor);
}

static int compare_places(const void *a, const void *b) {
    const struct tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty tensors come first
}

static enum status check_overlap(const char *path, struct tensor *tensors, int64_t n) {
    qsort(tensors, (size_t)n, sizeof *tensors, compare_places);
    for (int64_t i = 1; i < n; ++i)
        if ((const char *)tensors[i - 1].data + tensors[i - 1].bytes >
            (const char *)tensors[i].data)
            FAIL(ERR_INPUT, "%s: tensors %s and %s overlap", path, tensors[i - 1].name,
                 tensors[i].name);
    return OK;
}

static enum status read_header(const void *data, size_t bytes, const char *path,
                               uint64_t *header_bytes) {
    if (bytes < sizeof *header_bytes)
        FAIL(ERR_INPUT, "%s has %zu bytes: no safetensors file; fetch it again", path, bytes);
    memcpy(header_bytes, data, sizeof *header_bytes);
    if (*header_bytes > MAX_HEADER_BYTES)
        FAIL(ERR_INPUT, "%s: a header of %" PRIu64 " bytes exceeds the limit of %d", path,
             *header_bytes, MAX_HEADER_BYTES);
    if (*header_bytes > bytes - sizeof *header_bytes)
        FAIL(ERR_INPUT, "%s: truncated within its header of %" PRIu64 " bytes; fetch it again",
             path, *header_bytes);
    return OK;
}

enum status safetensors_parse(const void *data, size_t bytes, const char *path,
                              struct tensor_list *out) {
    enum status status = OK;
    uint64_t header_bytes;
    json_t *root = NULL, *value;
    const char *name;
    int64_t n_before = out->n;
    TRY(read_header(data, bytes, path, &header_bytes));
    const char *text = (const char *)data + sizeof header_bytes;
    TRY(json_read_text(text, header_bytes, path, &root));
    struct place place = {.path = path,
                          .begin = (const uint8_t *)text + header_bytes,
                          .bytes = (int64_t)(bytes - sizeof header_bytes - header_bytes)};
    json_object_foreach(root, name, value) {
        if (strcmp(name, "__metadata__") == 0) continue;
        struct tensor tensor = {0};
        status = read_tensor(&place, name, value, &tensor);
        if (status != OK) {
            free(tensor.name);
            goto done;
        }
        TRY_OR(done, tensor_list_add(out, tensor));
    }
    if (out->n > n_before) status = check_overlap(path, out->tensors + n_before, out->n - n_before);
done:
    json_decref(root);
    return status;
}
