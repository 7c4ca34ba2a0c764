// The tensors of a network: their names in the two formats, and what each layer needs.
#ifndef HALKA_MODEL_TENSOR_NAMES_H
#define HALKA_MODEL_TENSOR_NAMES_H

#include "model/checkpoint.h"

enum { TENSOR_NAME_BYTES = 112 };
// Returns out. `layer` is ignored for roles outside layers.
const char *tensor_name(struct tensor_naming naming, enum tensor_role role, int layer,
                        char out[TENSOR_NAME_BYTES]);
// The i-th prefix that names of a scheme may have, the usual one first; NULL after the last.
const char *tensor_prefix(enum tensor_scheme scheme, int i);

// The rows that a role has of the tensor it is stored in.
struct tensor_rows {
    int64_t first, n_stored; // n_stored 0: all of them
};
struct tensor_rows tensor_stored_rows(const struct model_spec *spec, enum tensor_scheme scheme,
                                      enum tensor_role role, int layer);

struct tensor_need {
    enum tensor_role role;
    int64_t n_row, n_col; // n_col 0: a vector
};
enum { LAYER_TENSORS = 40 };
// Fills `out` with the tensors outside layers (LAYER_TENSORS at most) or those that the layer's
// specification asks for; returns how many.
int tensor_outer_needs(const struct model_spec *spec, struct tensor_need out[LAYER_TENSORS]);
int tensor_layer_needs(const struct model_spec *spec, int layer,
                       struct tensor_need out[LAYER_TENSORS]);

// The matrices of one expert: gate and up [experts.n_feed_forward, n_hidden], down transposed.
const char *tensor_expert_name(enum expert_matrix matrix, int layer, int expert,
                               char out[TENSOR_NAME_BYTES]);

#endif
