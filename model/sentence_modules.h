// What sentence-transformers makes of the states of a model folder's network, by its modules.json:
// pooling, then Dense layers, then length 1. GGUF files only say how to pool
// (<architecture>.pooling_type). Input is hostile: kinds, sizes and places are checked, and what
// Halka cannot apply is refused.
#ifndef HALKA_MODEL_SENTENCE_MODULES_H
#define HALKA_MODEL_SENTENCE_MODULES_H

#include "kernels/weight.h"
#include "model/checkpoint.h"
#include "model/mapping.h"

// A passage's vector from its tokens' states; AUTO: as the model says.
enum pooling { POOLING_AUTO, POOLING_MEAN, POOLING_CLS, POOLING_LAST, POOLING_NONE };
enum dense_activation {
    DENSE_IDENTITY,
    DENSE_TANH,
    DENSE_RELU,
    DENSE_SIGMOID,
    DENSE_GELU,
    N_DENSE_ACTIVATION
};
enum { SENTENCE_MAX_MODULE = 16, SENTENCE_MAX_WIDTH = 1 << 20 };

struct sentence_dense {   // activation(x W^T + bias)
    struct weight weight; // [n_out, n_in] in `file`
    float *bias;          // [n_out] owned; NULL: none
    enum dense_activation activation;
    struct mapping file;
};

struct sentence_modules {
    enum pooling pooling; // never AUTO
    bool without_prompt;  // what a prompt adds is not pooled
    bool normalise;
    int n_dense;
    struct sentence_dense dense[SENTENCE_MAX_MODULE];
    char digest[DIGEST_BYTES]; // XXH3-128 (hex) of what was read; "": there is nothing to read
};

// `wanted` other than AUTO replaces the model's own pooling, whatever that is; with NONE, which
// gives every token its state, nothing is read. Without a word from the model: the mean.
enum status sentence_modules_open(const struct checkpoint *checkpoint, enum pooling wanted,
                                  struct sentence_modules *out);
void sentence_modules_close(struct sentence_modules *modules); // accepts a zeroed struct
int64_t sentence_modules_width(const struct sentence_modules *modules, int64_t n_hidden);
void sentence_activate(enum dense_activation activation, float *x, int64_t n); // in place
const char *pooling_name(enum pooling pooling);                      // "mean", as options call it
const char *dense_activation_name(enum dense_activation activation); // torch's: "Tanh"

// The readers of each file's text; `path` is for messages.
enum module_kind {
    MODULE_TRANSFORMER,
    MODULE_POOLING,
    MODULE_DENSE,
    MODULE_DROPOUT, // which does nothing after training
    MODULE_NORMALISE,
    N_MODULE_KIND
};
struct module_list { // in an order that Halka applies
    int n;
    struct {
        enum module_kind kind;
        char folder[64]; // beside modules.json; "": there itself
    } items[SENTENCE_MAX_MODULE];
};
enum status module_list_parse(const char *text, size_t bytes, const char *path,
                              struct module_list *out);
// Sets pooling, where that is AUTO, and without_prompt.
enum status pooling_parse(const char *text, size_t bytes, const char *path, int64_t n_hidden,
                          struct sentence_modules *out);
struct dense_config {
    int64_t n_in, n_out;
    bool bias;
    enum dense_activation activation;
};
enum status dense_parse(const char *text, size_t bytes, const char *path, struct dense_config *out);

#endif
