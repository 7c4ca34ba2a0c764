// A named tensor of a mapped checkpoint, and a growing list of them.
#ifndef HALKA_MODEL_TENSOR_H
#define HALKA_MODEL_TENSOR_H

#include "kernels/dtype.h"
#include "kernels/status.h"

// How a kind of checkpoint calls its tensors, and which of them it stores as one: tensor_names.c.
enum tensor_scheme {
    TENSORS_LLAMA, // and what follows it in all but experts and indexers
    TENSORS_GEMMA3,
    TENSORS_MODERNBERT,
    TENSORS_BERT,
    TENSORS_GGUF,
    N_TENSOR_SCHEME,
};

struct tensor {
    char *name;       // owned
    enum dtype dtype; // N_DTYPE: a format Halka does not compute with (see format)
    char format[16];  // the file's own word for it: "BF16", "Q4_1", "I64", "F8_E4M3"
    int n_dim;
    int64_t shape[4]; // row-major: shape[n_dim - 1] is contiguous (GGUF's order is reversed here)
    const void *data; // mapped
    int64_t bytes;
};

struct tensor_list {
    int64_t n, capacity;
    struct tensor *tensors; // [n] owned
};

// Takes over the tensor's name, also when it fails.
enum status tensor_list_add(struct tensor_list *list, struct tensor tensor);
// Sorts by name; ERR_INPUT when a name occurs twice. `path` is for messages.
enum status tensor_list_sort(struct tensor_list *list, const char *path);
void tensor_list_close(struct tensor_list *list); // accepts a zeroed struct
// In tensors[n] sorted by name; NULL when absent.
const struct tensor *tensor_find(const struct tensor *tensors, int64_t n, const char *name);

int64_t tensor_elements(const struct tensor *tensor);
// The dtype whose name equals `format`; N_DTYPE when weights of it cannot be used.
enum dtype tensor_format_dtype(const char *format);
// "[49152, 576]"; returns out.
const char *tensor_shape_text(const struct tensor *tensor, char out[96]);

#endif
