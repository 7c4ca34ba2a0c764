// Names of tensors in the two formats.
#ifndef HALKA_MODEL_TENSOR_NAMES_H
#define HALKA_MODEL_TENSOR_NAMES_H

#include "model/checkpoint.h"

enum { TENSOR_NAME_BYTES = 96 };
// Returns out. `layer` is ignored for roles outside layers.
const char *tensor_name(enum tensor_role role, int layer, bool gguf, char out[TENSOR_NAME_BYTES]);

#endif
