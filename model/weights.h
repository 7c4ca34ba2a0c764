// The checkpoint's tensors as the backend uses them: matrices in the checkpoint's own format
// (mapped on a host backend), vectors (norms, biases) expanded to fp32 in backend memory.
#ifndef HALKA_MODEL_WEIGHTS_H
#define HALKA_MODEL_WEIGHTS_H

#include "model/checkpoint.h"

struct layer_weights {
    float *attention_norm, *feed_forward_norm; // [n_hidden]
    float *query_bias, *key_bias, *value_bias; // [rows] or NULL
    float *output_bias;                        // [n_hidden] or NULL
    float *query_norm, *key_norm;              // [head_dim] or NULL
    struct weight query, key, value, output;   // [rows, n_hidden]; [n_hidden, heads]
    struct weight gate, up, down;              // [n_feed_forward, n_hidden]; transposed
    // Latent attention. query is then [n_head * (nope + rope), query_rank or n_hidden], key the
    // projection to latent and rotated part [rank + rope, n_hidden]; value is not used.
    struct weight query_down;             // [query_rank, n_hidden]
    float *query_down_norm, *latent_norm; // [query_rank], [rank]
    struct weight *absorb_key;            // [n_head] each [rank, nope_dim]: q_nope to latent
    struct weight *absorb_value;          // [n_head] each [value_dim, rank]
    // Indexer.
    struct weight index_query;              // [index heads * dim, query_rank or n_hidden]
    struct weight index_key;                // [dim, n_hidden]
    float *index_key_norm, *index_key_bias; // [dim]
    struct weight index_weight;             // [index heads, n_hidden]
    // Experts. gate, up, down above are the shared ones'.
    struct weight router;                                 // [n_expert, n_hidden]
    float *router_bias;                                   // [n_expert] or NULL
    int first_expert, n_owned;                            // of this rank
    struct weight *expert_gate, *expert_up, *expert_down; // [n_owned], for grouped_matmul
};

struct weights {
    struct backend *backend;
    int n_layer;
    struct layer_weights *layers;  // [n_layer] owned
    struct weight embedding, head; // [n_vocab, n_hidden]; the same matrix when tied
    bool tied;
    float *final_norm; // [n_hidden]
};

// The checkpoint and the backend outlive the weights.
enum status weights_open(const struct checkpoint *checkpoint, struct backend *backend,
                         struct weights *out);
void weights_close(struct weights *weights); // accepts a zeroed struct

// Bytes of all tensors as stored; elements of the largest matrix of a layer and its widest row: for
// the memory plan.
struct weights_extent {
    int64_t bytes, largest_elements, widest_row;
};
enum status weights_measure(const struct checkpoint *checkpoint, struct weights_extent *out);

#endif
