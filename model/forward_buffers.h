// Memory of the forward pass: what its buffers hold and how large they are, as plans count them.
#ifndef HALKA_MODEL_FORWARD_BUFFERS_H
#define HALKA_MODEL_FORWARD_BUFFERS_H

#include "model/spec.h"

struct forward_shape {
    int64_t n_token;       // most tokens of this rank in one prefill chunk; at least 1
    int64_t n_row;         // capacity of its K/V shard
    int64_t n_all;         // most tokens of the whole sequence
    int size;              // ranks
    enum dtype activation; // of product inputs: F32 or BF16
    enum dtype query;      // of attention's queries: F32 or BF16
    bool encode_only;      // no decode, no logits
    bool indexed;          // layers with an indexer select; otherwise they attend to every token
    enum dtype index;      // of index queries and keys: F32, BF16 or F8_E4M3
};

// Backend memory, carved from one allocation by forward_buffers_carve. tile: tokens that pass
// through projections and feed-forward together, which bounds the fp32 intermediates. slab: tokens
// whose queries are attended together: all of the chunk but where one rank holds all keys anyway.
struct forward_buffers {
    int64_t tile, slab;
    float *x;    // [n_token, n_hidden] residual
    void *query; // [parts of attention] of query_stride elements [slab, n_head * head_dim], query
                 // dtype
    int64_t query_stride;
    float *attended;            // [slab, n_head * value_dim]
    float *lse;                 // [slab, n_head]
    float *cos[MODEL_MAX_ROPE]; // [n_token, rope dim / 2] for each rope of the spec
    float *sin[MODEL_MAX_ROPE];
    int32_t *token;      // [n_token] ids, or targets of the log-probabilities
    int32_t *position;   // [n_token] rows of the table of learned positions
    float *branch;       // [tile, n_hidden] what is normed or scaled before it is added to x
    float *logprob;      // [n_token]
    void *normed;        // [tile, n_hidden] activation dtype
    float *projected;    // [tile, n_head * head_dim]
    void *product_input; // [tile, or 1 in fp32, columns of the output matrix] activation dtype
    float *gate, *up;    // [tile, n_feed_forward]
    void *gated;         // [tile, n_feed_forward] activation dtype
    // Latent attention: the query's latent before and after its norm (activation dtype), the query
    // heads or what attention returned for them, the key's latent and rotated part.
    float *query_down;  // [tile, query_rank]
    void *query_latent; // [tile, query_rank]
    float *heads;       // [tile, n_head * (nope + rope or value dim)]
    float *latent;      // [tile, rank]
    float *rotated;     // [tile, rope_dim]
    // Indexer: queries and head weights of the chunk, a tile of both before rounding, a tile of
    // keys, and the selection of the last layer that scored.
    void *index_query;    // [n_token, index heads * dim] index dtype
    float *index_weight;  // [n_token, index heads]
    float *index_heads;   // [tile, index heads * dim]
    float *index_scale;   // [tile, index heads] of fp8 queries
    float *index_row;     // [tile, dim]
    uint64_t *candidate;  // [n_token, k]
    int32_t *n_candidate; // [n_token]
    // Experts: tokens in dispatch, then the rows that this rank's experts receive.
    int64_t expert_tile;
    float *router_input, *router, *expert_weight; // [expert_tile, n_hidden | n_expert | n_used]
    int32_t *expert;                              // [expert_tile, n_used]
    float *expert_gate, *expert_up;               // [rows, expert n_feed_forward]
    void *expert_gated;                           // likewise, activation dtype
    float *expert_out;                            // [rows, n_hidden]
    int64_t *expert_count;                        // [1] rows of tokens decoded one at a time
    // Decode: this rank's share of a projection, and all ranks' shares.
    float *split, *gathered;
    float *key, *value;           // of the token
    float *logits_split, *logits; // [n_vocab]
    int32_t *sampled;             // [1]
    float *mass;                  // [n_row] attention mass of this rank's tokens
    float *all_values;            // [n_all] one value per token, gathered in rank order
    void *last_hidden;            // [n_hidden] normed, activation dtype
};
// Lays the buffers out from `base` (NULL: only measures) and returns the bytes used.
int64_t forward_buffers_carve(const struct model_spec *spec, const struct forward_shape *shape,
                              char *base, struct forward_buffers *out);

#endif
