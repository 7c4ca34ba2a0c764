// What the files of the forward pass share, by the file that has it. All of it works on
// forward.buffers; rows are tokens of this rank, from `row` on n.
#ifndef HALKA_MODEL_FORWARD_INTERNAL_H
#define HALKA_MODEL_FORWARD_INTERNAL_H

#include "model/forward.h"

// The layer's weights as they are to be read now: in prefill whole, in decode at least this rank's
// rows and columns.
static inline const struct layer_weights *forward_weights(const struct forward *f, int layer) {
    return f->whole ? f->whole : &f->weights.layers[layer];
}

// What the host does for so few tokens wakes no team of threads: ranks that share cores would wait
// for each other's.
enum { FEW_TOKENS = 64 };

// Whether heads are spread (rope_args) before they are rounded to this dtype.
static inline bool forward_spreads(enum dtype dtype, int head_dim) {
    return dtype != DTYPE_F32 && (head_dim & (head_dim - 1)) == 0;
}

// forward.c. Whether this layer selects tokens in this chunk. While every query sees at most k
// tokens, all are selected: dense attention.
bool forward_selects(const struct forward *forward, int layer, const struct forward_chunk *chunk);
// What prefill and decode tell the ring of a layer's attention; they add out and lse, prefill pass.
struct ring_attention_args forward_attention_args(const struct forward *forward, int layer,
                                                  const struct forward_chunk *chunk);

// Operations timed into the profile, shared by prefill and decode. The norm is that of heads and
// latents, RMS.
enum status forward_norm(struct forward *forward, const float *x, int64_t n, int64_t n_col,
                         const float *weight, void *out, enum dtype out_dtype);
enum status forward_matmul(struct forward *forward, const struct matmul_args *args);
enum status forward_matmul_each(struct forward *forward, const struct matmul_args *list, int n);
// As what heads are kept.
struct rotation {
    int rope;  // of the spec
    void *out; // of the first token
};
// The rotation of heads x [n, n_head, head_dim] by the positions of tokens [row, row + n), rounded.
// Queries and keys that attention reads in bf16 are spread: that keeps every product q . k, and the
// few large elements of a head are what rounding would hurt most.
struct rope_args forward_rope(const struct forward *forward, int layer, struct rotation to,
                              const float *x, int64_t row, int64_t n, int n_head, enum dtype dtype);
enum status forward_rope_each(struct forward *forward, const struct rope_args *list, int n);

// down(activation(gate(normed)) * up(normed)), or down(activation(up(normed))), to where the branch
// writes, for tokens [row, row + n), whose normed states are in buffers.normed: the dense
// feed-forward, or the experts that every token passes.
enum status forward_gated(struct forward *forward, int layer, int64_t row, int64_t n);

// forward_embed.c. x of n tokens whose ids are in buffers.token and, on the host, in `token`.
enum status forward_embed(struct forward *forward, const int32_t *token, int64_t n);

// forward_branch.c. What a branch (attention, or the feed-forward) reads of n rows of buffers.x
// from `row` on: buffers.normed. Where it writes: `accumulate` says whether to add. And what
// remains to do with that, on every rank alike.
enum branch { BRANCH_ATTENTION, BRANCH_FEED_FORWARD };
enum status forward_branch_begin(struct forward *forward, int layer, enum branch branch,
                                 int64_t row, int64_t n);
float *forward_branch_out(const struct forward *forward, int layer, int64_t row, bool *accumulate);
enum status forward_branch_end(struct forward *forward, int layer, enum branch branch, int64_t row,
                               int64_t n);
// Norm of hidden states, of the kind that layer has. weight NULL: only converts.
enum status forward_hidden_norm(struct forward *forward, int layer, const float *x, int64_t n,
                                const float *weight, const float *bias, void *out,
                                enum dtype out_dtype);
enum status forward_add(struct forward *forward, float *x, const float *by, int64_t n);

// forward_parts.c: attention in parts (model_spec.parts), and the one part of networks without. As
// which queries from row `row` of buffers.query on, and keys from row `row` of the chunk's in
// the store on, are kept; returns how many.
int forward_query_rotations(const struct forward *forward, int layer, int64_t row,
                            struct rotation out[MODEL_MAX_PART]);
int forward_key_rotations(const struct forward *forward, int layer, int64_t row,
                          struct rotation out[MODEL_MAX_PART]);
// In place of ring_attention_run and decode_attention_run: `whole` is the layer's attention, if it
// were one.
enum status forward_attend_parts(struct forward *forward, int layer,
                                 const struct forward_chunk *chunk,
                                 const struct ring_attention_args *whole);
enum status forward_attend_token_parts(struct forward *forward, int layer,
                                       const struct forward_chunk *chunk,
                                       const struct ring_attention_args *whole);
// What the token sees in a part of this rank's rows, with which query and keys.
struct part_seen {
    const void *query;
    const char *key;
    struct kv_run run;
};
struct part_seen forward_part_seen(const struct forward *forward, int layer,
                                   const struct forward_chunk *chunk, int part);

// forward_mass.c. Adds to buffers.mass what the decoded token reads in a layer of the tokens that
// this rank holds; buffers.lse is of all ranks. Some layers do not count.
bool forward_adds_mass(const struct forward *forward, int layer);
enum status forward_add_mass(struct forward *forward, int layer, const struct forward_chunk *chunk);

// forward_latent.c. Absorbed queries into buffers.query and latents into the store for tokens [row,
// row + n) of buffers.normed.
enum status forward_latent_tile(struct forward *forward, int layer, int64_t row, int64_t n);
// The parts, which decode splits over the ranks: the norm of buffers.query_down into .query_latent;
// absorbed queries of some heads, out [n, heads.length, rank + rope_dim]; buffers.latent and
// .rotated into the store; attended latents [n, heads.length, rank] to values [..,
// value_dim].
enum status forward_latent_norm(struct forward *forward, int layer, int64_t n);
enum status forward_latent_queries(struct forward *forward, int layer, struct span heads,
                                   int64_t row, int64_t n, float *out);
enum status forward_latent_store(struct forward *forward, int layer, int64_t row, int64_t n);
enum status forward_latent_values(struct forward *forward, int layer, struct span heads, int64_t n,
                                  const float *attended, float *out);

// forward_index.c. Index queries, weights and keys for tokens [row, row + n) of buffers.normed (and
// .query_latent).
enum status forward_index_tile(struct forward *forward, int layer,
                               const struct forward_chunk *chunk, int64_t row, int64_t n);
// The same from raw projections: keys in buffers.index_row, queries in .index_heads with weights in
// .index_weight.
enum status forward_index_keys(struct forward *forward, int layer, int64_t row, int64_t n);
enum status forward_index_queries(struct forward *forward, int layer, int64_t row, int64_t n);
// What the ring is told of a layer that selects, on top of its attention.
struct sparse_ring_args forward_sparse_args(const struct forward *forward, int layer,
                                            const struct ring_attention_args *attention);

// forward_experts.c. x += experts(norm(x)) for this rank's tokens; every rank calls it.
enum status forward_experts(struct forward *forward, int layer, const struct forward_chunk *chunk);
// Decode: adds to buffers.x what this rank's experts make of the token in buffers.normed.
enum status forward_experts_token(struct forward *forward, int layer);
// Tokens of one rank in one dispatch, which bounds the rows that one rank can receive.
int64_t forward_expert_tile(const struct model_spec *spec, int size, int64_t tile);

#endif
