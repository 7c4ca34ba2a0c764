// The tensors of a network: their names in the two formats, and what each layer needs.
#ifndef HALKA_MODEL_TENSOR_NAMES_H
#define HALKA_MODEL_TENSOR_NAMES_H

#include "model/checkpoint.h"

enum { TENSOR_NAME_BYTES = 96 };
// Returns out. `layer` is ignored for roles outside layers.
const char *tensor_name(enum tensor_role role, int layer, bool gguf, char out[TENSOR_NAME_BYTES]);

struct tensor_need {
    enum tensor_role role;
    int64_t n_row, n_col; // n_col 0: a vector
};
enum { LAYER_TENSORS = 31 };
// Fills `out` with the tensors that the layer's specification asks for; returns how many.
int tensor_layer_needs(const struct model_spec *spec, int layer,
                       struct tensor_need out[LAYER_TENSORS]);

// The matrices of one expert: gate and up [experts.n_feed_forward, n_hidden], down transposed.
const char *tensor_expert_name(enum expert_matrix matrix, int layer, int expert,
                               char out[TENSOR_NAME_BYTES]);

#endif
