// A network of a published shape with random bf16 weights, as a checkpoint in memory without files,
// for benchmarks.
#ifndef HALKA_TESTS_COMMON_RANDOM_NETWORK_H
#define HALKA_TESTS_COMMON_RANDOM_NETWORK_H

#include "model/checkpoint.h"

struct network_shape {
    int n_layer, n_hidden, n_head, n_kv_head, head_dim, n_feed_forward, n_vocab;
    int64_t context;
    int n_expert, n_used; // of the width n_feed_forward; 0: the feed-forward is dense
};
extern const struct network_shape network_llama_8b, network_smollm2_135m, network_olmoe_7b;

struct random_network {
    struct checkpoint checkpoint;
    bf16 *matrix; // what all matrices hold, the largest's elements
    float *ones;  // what all vectors hold
};
// Sizes are divided by `divisor`, down to 1.
enum status random_network_open(const struct network_shape *shape, int64_t divisor,
                                struct random_network *out);
void random_network_close(struct random_network *network); // accepts a zeroed struct

// Elements of the matrices that a token passes through; the vocabulary's two apart.
double random_network_layer_elements(const struct model_spec *spec);

#endif
