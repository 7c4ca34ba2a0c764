// A checkpoint on disk, mapped read-only so that all ranks of a node share its pages: a GGUF file,
// or a Hugging Face folder (config.json + one or more .safetensors). Input is hostile: every size,
// offset and count is checked before use, and every failure names the file and what is wrong.
#ifndef HALKA_MODEL_CHECKPOINT_H
#define HALKA_MODEL_CHECKPOINT_H

#include "model/digest.h"
#include "model/gguf.h"
#include "model/spec.h"
#include "model/tensor.h"

struct tensor_naming {
    enum tensor_scheme scheme;
    const char *prefix; // of every name but the output matrix's; NULL: the scheme's usual one
};

struct checkpoint {
    char *path;
    struct gguf *gguf; // NULL for a folder
    char *folder;      // NULL for a GGUF file
    bool shapes_only;  // no tensor has data
    struct tensor_naming naming;
    int64_t n_tensor;
    struct tensor *tensors;   // sorted by name, owned
    struct mapping *mappings; // mapped files, owned
    int n_mapping;
    struct model_spec spec;
    char digest[DIGEST_BYTES]; // XXH3-128 (hex) of the configuration and of each tensor's name,
                               // type, shape and a sample of its bytes (of experts' none):
                               // identifies the weights
};

// Opens a checkpoint, fills its spec and checks that every tensor the spec needs is there.
// ERR_NO_INPUT: no such file; ERR_INPUT: damaged or unsupported.
enum status checkpoint_open(const char *path, struct checkpoint *out);
// For plans: of a folder with a tensor index only config.json and the index are read, no tensor has
// data. Anything else is opened whole.
enum status checkpoint_open_shapes(const char *path, struct checkpoint *out);
void checkpoint_close(struct checkpoint *checkpoint); // accepts a zeroed struct

// What a tensor is for; names differ by format and are kept in one table in tensor_names.c.
enum tensor_role {
    TENSOR_EMBEDDING,
    TENSOR_POSITION, // learned absolute positions
    TENSOR_TOKEN_TYPE,
    TENSOR_EMBEDDING_NORM,
    TENSOR_EMBEDDING_NORM_BIAS,
    TENSOR_FINAL_NORM,
    TENSOR_FINAL_NORM_BIAS,
    TENSOR_HEAD, // the last outside layers
    TENSOR_ATTENTION_NORM,
    TENSOR_ATTENTION_NORM_BIAS,
    TENSOR_ATTENTION_OUT_NORM, // the second of NORM_SANDWICH
    TENSOR_QUERY,
    TENSOR_KEY,
    TENSOR_VALUE,
    TENSOR_OUTPUT,
    TENSOR_QUERY_BIAS,
    TENSOR_KEY_BIAS,
    TENSOR_VALUE_BIAS,
    TENSOR_OUTPUT_BIAS,
    TENSOR_QUERY_NORM,
    TENSOR_KEY_NORM,
    TENSOR_FEED_FORWARD_NORM,
    TENSOR_FEED_FORWARD_NORM_BIAS,
    TENSOR_FEED_FORWARD_OUT_NORM,
    TENSOR_GATE,
    TENSOR_UP,
    TENSOR_DOWN,
    TENSOR_GATE_BIAS,
    TENSOR_UP_BIAS,
    TENSOR_DOWN_BIAS,
    TENSOR_QUERY_DOWN, // latent attention
    TENSOR_QUERY_DOWN_NORM,
    TENSOR_QUERY_UP,
    TENSOR_LATENT,
    TENSOR_LATENT_NORM,
    TENSOR_LATENT_UP,
    TENSOR_INDEX_QUERY, // lightning indexer
    TENSOR_INDEX_KEY,
    TENSOR_INDEX_KEY_NORM,
    TENSOR_INDEX_KEY_BIAS,
    TENSOR_INDEX_WEIGHT,
    TENSOR_ROUTER, // mixture of experts; the experts' own matrices: tensor_expert_name
    TENSOR_ROUTER_BIAS,
    TENSOR_SHARED_GATE,
    TENSOR_SHARED_UP,
    TENSOR_SHARED_DOWN,
    N_TENSOR_ROLE,
};

// NULL when absent.
const struct tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);
// Demands a tensor by role, layer (ignored for roles outside layers) and shape; n_col 0: a vector.
// ERR_INPUT naming the tensor when it is missing, differs or has a format that Halka cannot use.
// TENSOR_HEAD of a checkpoint with a tied head is its embedding table. Of several roles that are
// stored as one tensor *out is the role's rows; its name stays the checkpoint's.
enum status checkpoint_require(const struct checkpoint *checkpoint, enum tensor_role role,
                               int layer, int64_t n_row, int64_t n_col, struct tensor *out);
// The fp32 factors of an F8_E4M3 matrix, one for each 128 x 128 block: NAME_scale_inv.
enum status checkpoint_require_scale(const struct checkpoint *checkpoint,
                                     const struct tensor *tensor, const struct tensor **out);
// One matrix of one expert, in the shape that the layer's specification gives it.
enum expert_matrix { EXPERT_GATE, EXPERT_UP, EXPERT_DOWN, N_EXPERT_MATRIX };
enum status checkpoint_require_expert(const struct checkpoint *checkpoint,
                                      enum expert_matrix matrix, int layer, int expert,
                                      const struct tensor **out);

#endif
