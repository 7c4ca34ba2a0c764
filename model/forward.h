// The forward pass over this rank's tokens, reading layer specs. Two forms of equal result:
//   prefill  each rank computes its own tokens with all weights; attention goes round the ring
//   decode   one token, the same on all ranks: rows and columns of the weights are split over the
//            ranks, attention over sharded K/V meets in one exchange (forward_decode.c)
// Attention and feed-forward are the two branches of a layer: each reads the residual x, which is
// fp32, and adds to it. Where norms stand the layer's norm_place says.
#ifndef HALKA_MODEL_FORWARD_H
#define HALKA_MODEL_FORWARD_H

#include "dist/expert_exchange.h"
#include "dist/sparse_attention.h"
#include "model/forward_buffers.h"
#include "model/kv_store.h"
#include "model/selection_study.h"
#include "model/weight_gather.h"

struct decode_counts { // of comm and profile
    int64_t bytes_sent, bytes_received, attention_flop;
};
// A step of decoding that the backend keeps for the token at `begin`, whatever its id.
struct decode_step {
    bool kept; // to be cleared when anything but that token is appended, or some are forgotten
    bool add_mass;
    int64_t begin;
    struct decode_counts counts; // that its launch adds
    int64_t n_launched;          // steps so far
};

struct forward {
    const struct model_spec *spec;
    struct weights weights;
    struct weight_gather gather; // open when the weights are sharded
    const struct layer_weights
        *whole; // the layer gathered for prefill; NULL: weights.layers has it
    struct kv_store kv;
    struct ring_attention ring;
    struct forward_buffers buffers;
    struct backend *backend;
    struct comm *comm;
    struct profile *profile;
    enum dtype activation, query_dtype;
    bool indexed;
    enum dtype index_dtype;
    int64_t rope_length;            // tokens that the sequence may come to hold: rope_frequencies
    enum pass *passes;              // host, [n_layer] of the last prefill chunk
    enum exchange exchange;         // likewise, where layers select
    struct expert_exchange experts; // zeroed in networks without
    struct selection_study *study;  // NULL: nobody asks
    float *zeros;                   // host, [widest row]: clears decode inputs
    bool keeps_steps;               // forward_decode_ahead may be called
    struct decode_step step;
};

struct forward_chunk {
    const struct sequence *sequence; // already includes [begin, end)
    int64_t begin, end;              // global positions of the chunk
    int64_t n_token;                 // of this rank: rows of x; ids are in buffers.token
    int64_t first_row;               // of its K/V rows
    const int32_t *token;            // host, ids as in buffers.token
    int n_document;                  // packed in the sequence; 0: one
    const int64_t *document_end;     // [n_document] ascending global positions
    bool score;                      // the output matrix will be asked for
};

// The layer's weights as they are to be read now: in prefill whole, in decode at least this rank's
// rows and columns.
static inline const struct layer_weights *forward_weights(const struct forward *f, int layer) {
    return f->whole ? f->whole : &f->weights.layers[layer];
}
// Of sharded weights, after a prefill that was to score; on every rank.
enum status forward_whole_head(struct forward *forward, struct weight *out);
// forward_embed.c. x of n tokens whose ids are in buffers.token and, on the host, in `token`.
enum status forward_embed(struct forward *forward, const int32_t *token, int64_t n);

// Fills buffers.cos and sin, or .position, for n host positions (at most shape.n_token).
enum status forward_set_positions(struct forward *forward, const int64_t *position, int64_t n);

// Runs all layers; afterwards buffers.x holds the residual of this rank's tokens.
enum status forward_prefill(struct forward *forward, const struct forward_chunk *chunk);

// One token at position end - 1 with id buffers.token[0] on every rank; buffers.x[0] likewise.
// The owner appends K/V at `first_row` (n_token is 1 there, 0 elsewhere; first_row counts the rows
// held before). add_mass: adds attention mass to buffers.mass (upper half of the layers).
enum status forward_decode(struct forward *forward, const struct forward_chunk *chunk,
                           bool add_mass);

// Queues the work of such a token, but for its embedding, into a step that forward_decode then
// launches: the host is ahead while the device works. Only where forward_decode_keeps.
enum status forward_decode_ahead(struct forward *forward, const struct forward_chunk *chunk,
                                 bool add_mass);
bool forward_decode_keeps(const struct forward *forward);

// Final norm of n rows of buffers.x from `row` on into `out`, which may be those very rows.
enum status forward_final_norm(struct forward *forward, int64_t row, int64_t n, void *out,
                               enum dtype out_dtype);
// Logits of one normed row, the same on all ranks, into buffers.logits: vocabulary split over
// ranks.
enum status forward_logits(struct forward *forward, const void *normed);

// Whether this layer selects tokens in this chunk. While every query sees at most k tokens, all are
// selected: dense attention.
bool forward_selects(const struct forward *forward, int layer, const struct forward_chunk *chunk);

// What a layer's queries see, by positions in the sequence. chunk NULL: of one document.
struct visibility forward_visibility(const struct model_spec *spec, int layer,
                                     const struct forward_chunk *chunk);
// What prefill and decode tell the ring of a layer's attention; they add out and lse, prefill pass.
struct ring_attention_args forward_attention_args(const struct forward *forward, int layer,
                                                  const struct forward_chunk *chunk);

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

// Operations timed into the profile, shared by prefill and decode. The norm is that of heads and
// latents, RMS.
enum status forward_norm(struct forward *forward, const float *x, int64_t n, int64_t n_col,
                         const float *weight, void *out, enum dtype out_dtype);
enum status forward_matmul(struct forward *forward, const struct matmul_args *args);
// Rotates heads by their positions and rounds them into `out`; x is changed. Queries and keys that
// attention reads in bf16 pass a Hadamard transform first: it keeps every product q . k and spreads
// the few large elements of a head, which rounding would hurt most.
enum status forward_rope(struct forward *forward, int layer, int rope, float *x, int64_t row,
                         int64_t n, int n_head, void *out, enum dtype out_dtype);

// forward_parts.c: attention in parts (model_spec.parts), and the one part of networks without.
struct rotation {
    int rope;
    void *out; // of the first token
};
// As which queries from row `row` of buffers.query on, and keys from row `row` of the chunk's in
// the store on, are kept; returns how many.
int forward_query_rotations(const struct forward *forward, int layer, int64_t row,
                            struct rotation out[MODEL_MAX_PART]);
int forward_key_rotations(const struct forward *forward, int layer, int64_t row,
                          struct rotation out[MODEL_MAX_PART]);
// forward_rope into each of them.
enum status forward_rotate(struct forward *forward, int layer, const struct rotation *list,
                           int n_list, float *x, int64_t row, int64_t n, int n_head,
                           enum dtype dtype);
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

// down(activation(gate(normed)) * up(normed)), or down(activation(up(normed))), to where the branch
// writes, for tokens [row, row + n), whose normed states are in buffers.normed: the dense
// feed-forward, or the experts that every token passes.
enum status forward_gated(struct forward *forward, int layer, int64_t row, int64_t n);

// forward_experts.c. x += experts(norm(x)) for this rank's tokens; every rank calls it.
enum status forward_experts(struct forward *forward, int layer, const struct forward_chunk *chunk);
// Decode: adds to buffers.x what this rank's experts make of the token in buffers.normed.
enum status forward_experts_token(struct forward *forward, int layer);
// Tokens of one rank in one dispatch, which bounds the rows that one rank can receive.
int64_t forward_expert_tile(const struct model_spec *spec, int size, int64_t tile);

#endif
