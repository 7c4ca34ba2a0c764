// One .safetensors file: 8 bytes of header size, a JSON header, tensor data.
#ifndef HALKA_MODEL_SAFETENSORS_H
#define HALKA_MODEL_SAFETENSORS_H

#include <stddef.h>

#include "model/tensor.h"

// Appends the tensors of a mapped file that outlives the list. Every size and offset is checked;
// a format that Halka does not know is kept as N_DTYPE. `path` is for messages.
enum status safetensors_parse(const void *data, size_t bytes, const char *path,
                              struct tensor_list *out);

#endif
