// The checkpoint's tensors as the backend uses them: matrices in the checkpoint's own format
// (mapped on a host backend), vectors (norms, biases) expanded to fp32 in backend memory.
#ifndef HALKA_MODEL_WEIGHTS_H
#define HALKA_MODEL_WEIGHTS_H

#include "model/shard.h"

struct layer_weights {
    float *attention_norm, *feed_forward_norm;           // [n_hidden]; no attention_norm: NULL
    float *attention_norm_bias, *feed_forward_norm_bias; // [n_hidden] or NULL
    float *attention_out_norm, *feed_forward_out_norm;   // [n_hidden] of NORM_SANDWICH
    float *query_bias, *key_bias, *value_bias;           // [rows] or NULL
    float *output_bias, *down_bias;                      // [n_hidden] or NULL
    float *gate_bias, *up_bias;                          // [n_feed_forward] or NULL
    float *query_norm, *key_norm;                        // [head_dim] or NULL
    struct weight query, key, value, output;             // [rows, n_hidden]; [n_hidden, heads]
    struct weight gate, up, down;                        // [n_feed_forward, n_hidden]; transposed
    // Where they were gathered from the ranks: output and down as n_column groups of their columns,
    // each beginning at its first_col. NULL: output and down are whole.
    const struct weight *output_columns, *down_columns;
    int n_columns;
    // Latent attention. query is [n_head * (nope + rope), query_rank or n_hidden], key the
    // projection to latent and rotated part [rank + rope, n_hidden]; value is not used.
    struct weight query_down;             // [query_rank, n_hidden]
    float *query_down_norm, *latent_norm; // [query_rank], [rank]
    struct weight latent_up;              // [n_head * (nope + value), rank]: by head, keys first
    float *absorb;                        // what absorb_key points into; sharded: of own heads
    struct weight *absorb_key;            // [n_head] each [rank, nope]: transposed key rows, fp32
    struct weight *absorb_value;          // [n_head] each [value, rank]: views of latent_up
    // Indexer.
    struct weight index_query;              // [index heads * dim, query_rank or n_hidden]
    struct weight index_key;                // [dim, n_hidden]
    float *index_key_norm, *index_key_bias; // [dim]
    struct weight index_weight;             // [index heads, n_hidden]
    // Experts; gate, up and down above are those of the shared ones.
    struct weight router;      // [n_expert, n_hidden]
    float *router_bias;        // [n_expert] or NULL
    int first_expert, n_owned; // of this rank: partition_piece(n_expert, size, rank)
    struct weight *experts[3]; // gate, up, down of each owned one, for grouped_matmul
};

// Whose weights, and whether each rank holds all of them (but experts) or its shards (shard.h).
struct weights_owner {
    int rank, size;
    bool sharded;
};

struct weights {
    struct backend *backend;
    struct weights_owner owner;
    int n_layer;
    struct layer_weights *layers; // [n_layer] owned
    // [n_vocab, n_hidden]; the same matrix when tied. Encoders have no head.
    struct weight embedding, head;
    bool tied;
    bool embedding_on_host; // sharded, on a device: rows are read in the mapping
    float *position;        // [n_position, n_hidden] with the token type's row; NULL: none
    float *embedding_norm, *embedding_norm_bias; // [n_hidden] or NULL
    float *final_norm, *final_norm_bias;
    struct layer_shards *shards; // [n_layer + 1] owned, the last of the head; NULL: not sharded
};

// The checkpoint and the backend outlive the weights. Of the experts only those that this rank owns
// are loaded, of sharded matrices its piece: no byte of the others is touched. A sharded matrix
// looks whole, for decode, which uses its own rows or columns alone.
enum status weights_open(const struct checkpoint *checkpoint, struct backend *backend,
                         struct weights_owner owner, struct weights *out);
void weights_close(struct weights *weights); // accepts a zeroed struct
struct weight *weights_matrix(struct layer_weights *layer, enum tensor_role role);

// For the memory plan, from shapes alone and of the rank that has most, bytes of: tensors as stored
// that every rank maps; shards; experts; what each rank makes for itself (transposed key rows); the
// embedding table and a row of it where only rows are read, when sharded. Elements of the largest
// matrix of a layer and its widest row.
struct weights_extent {
    int64_t bytes, shard_bytes, expert_bytes, own_bytes, embedding_bytes, embedding_row_bytes;
    int64_t largest_elements, widest_row;
};
enum status weights_measure(const struct checkpoint *checkpoint, int size, bool sharded,
                            struct weights_extent *out);

#endif
