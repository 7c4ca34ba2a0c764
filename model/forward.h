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

// The output matrix of sharded weights, after a prefill that was to score; on every rank.
enum status forward_whole_head(struct forward *forward, struct weight *out);

// What a layer's queries see, by positions in the sequence. chunk NULL: of one document.
struct visibility forward_visibility(const struct model_spec *spec, int layer,
                                     const struct forward_chunk *chunk);

#endif
