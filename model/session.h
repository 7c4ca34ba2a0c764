// A model reading one sequence that is sharded over the ranks: append tokens (prefill in chunks,
// or decode one), forget back to a length, and read logits, log-probabilities and attention mass.
// Every rank calls the same functions with the same arguments. Token ids are on every rank.
#ifndef HALKA_MODEL_SESSION_H
#define HALKA_MODEL_SESSION_H

#include "dist/comm.h"
#include "dist/profile.h"
#include "model/checkpoint.h"
#include "partition/layout_choice.h"

enum precision { PRECISION_AUTO, PRECISION_FP32, PRECISION_BF16 };
enum index_precision { INDEX_PRECISION_AUTO, INDEX_FP8, INDEX_BF16, INDEX_FP32 };

struct session_options {
    enum precision precision;    // products and activations
    enum precision kv_precision; // AUTO: fp32 with fp32 precision asked for, else bf16
    enum layout layout;          // of prefill chunks; encoders take contiguous
    // Of a rank: where some layers see a window, the layout is what costs less. Zeroed: as above.
    struct attention_rates rates;
    int64_t max_tokens; // capacity: prompt and generated tokens of one sequence
    int64_t chunk; // tokens per prefill chunk; 0: the whole prompt at once, as encoders read always
    bool dense;    // attend to every token although layers have an indexer
    enum index_precision index_precision; // AUTO: fp32 with fp32 precision asked for, else fp8
    enum exchange exchange;               // of sparse attention; SCORES cuts chunks short
    bool study;                           // session_study: what sparse attention leaves out
    bool eager;                           // decode never launches a token's layers as one step
    bool sharded; // weights are cut over the ranks (shard.h); one rank has them whole
    // Most tokens that session_truncate forgets at once, but for all of them. Layers that attend in
    // a window keep so many tokens more; others forget any number.
    int64_t max_forget;
    // Only session_encode is called, as of encoders always: nothing is kept of what is read in one
    // chunk, and there are no logits.
    bool encode_only;
};

// Bytes per rank by part, from the specification alone: session_open allocates these very sizes.
struct memory_plan {
    struct layout_choice layout; // seconds 0: there was no choice
    // Mapped and shared by the node's ranks: this rank's proportional share. Sharded: what the rank
    // that has most holds.
    int64_t weights;
    int64_t experts;     // of the rank that owns most of them
    int64_t gathered;    // sharded: two layers' weights
    int64_t kv;          // this rank's shard, capacity: what is kept between chunks
    int64_t activations; // and K/V of the layers that do not keep every token, one at a time
    int64_t ring;        // receive buffers and partials, rows that travel to experts
    int64_t scratch;     // of the backend
    int64_t tables; // ids, positions and log-probabilities of every token in host memory; of rank 0
    int64_t base;   // process, MPI, libraries, tokenizer
    int64_t total;  // of the memory that the backend computes in: a device's without tables, base
    // Not of this memory: sharded weights that a rank receives for each chunk of prefill.
    int64_t gather_traffic;
};
enum status session_plan(const struct checkpoint *checkpoint, const struct backend *backend,
                         int size, int local_size, const struct session_options *options,
                         struct memory_plan *out);

struct session; // opaque
// The checkpoint, backend, comm and profile outlive the session.
enum status session_open(const struct checkpoint *checkpoint, struct backend *backend,
                         struct comm *comm, struct profile *profile,
                         const struct session_options *options, struct session **out);
void session_close(struct session **session);

struct append_args {
    const int32_t *token; // [n] on every rank; ids are checked against the vocabulary
    int64_t n;
    float *logprob;     // [n] or NULL: entry i = ln p(token[i] | all before it); entry 0 only if
                        // something came before (else NaN). Complete on every rank.
    float *last_logits; // [n_vocab] or NULL: after the last token, on every rank
    bool logits;        // likewise, but left to session_sample
    void (*progress)(void *user, int64_t tokens_done); // NULL or called after every chunk
    void *user;
};
enum status session_append(struct session *session, const struct append_args *args);
// After a restore (context_store.h): the logits of the last token, left to session_sample.
enum status session_recall_logits(struct session *session);

struct encode_args {
    const int32_t *token; // [n] on every rank; ids are checked against the vocabulary
    int64_t n;
    int n_document; // packed one behind the other, each read as if alone; 0: one document
    const int64_t *document_end; // [n_document] ascending, the last is n
    // Takes final-normed states of this rank's tokens, tile by tile in ascending order of
    // positions, in host memory: position [n] (of the whole pack), state [n, n_hidden].
    enum status (*states)(void *user, const int64_t *position, int64_t n, const float *state);
    void (*progress)(void *user, int64_t tokens_done); // NULL or called after every chunk
    void *user;                                        // of both
};
// The states of all tokens. Forgets what the session held before, and sets its length to that of
// the documents, which must be rotated alike (model_spec_rotates_alike). Causal networks read in
// chunks, encoders at once.
enum status session_encode(struct session *session, const struct encode_args *args);
// Whether it takes more than one document.
bool session_packs(const struct session *session);

// Chooses the next token (model/sampler.h) by the logits of the last append that asked for them.
// Only the id leaves the device. Ranks' choices may differ where their devices round differently.
enum status session_sample(struct session *session, const struct sample_args *how, int32_t *out);
// Tells an empty session how many tokens its sequence may come to hold, by which dynamic NTK and
// LongRoPE choose the rotations of all of them; max_tokens until said otherwise.
enum status session_set_length(struct session *session, int64_t length);
int64_t session_length(const struct session *session);
// Forgets the tokens from `length` on; ERR_INTERNAL, and nothing is forgotten, where a layer no
// longer holds what the next token would see (options.max_forget).
enum status session_truncate(struct session *session, int64_t length);
// Whether the session can forget all tokens from `length` on, and then every rank has room for
// append[n_append] more and n_single one by one: short appends, and what is left of long ones,
// weigh more on some ranks.
bool session_has_room(const struct session *session, int64_t length, const int64_t *append,
                      int n_append, int64_t n_single);

// Attention mass: while on, each token appended alone (n = 1) adds to mass[s] the attention
// probability of its query on token s, meaned over the heads of the upper half of the layers; of
// those that see every token, where there are such. take gathers it on every rank. Both clear what
// was added; truncation does not.
enum status session_mass_reset(struct session *session, bool on);
enum status session_mass_take(struct session *session, float *mass /* [session_length] */);

// Means over what was read so far, of each layer ([n_layer], NaN where none selected): the share of
// dense attention's mass on the selected tokens, and of selected tokens that the layer before had
// selected too. All NaN unless options.study.
enum status session_study(struct session *session, double *recall, double *overlap);

// What this rank holds and how: for reports.
struct session_facts {
    int64_t kv_bytes, tokens; // tokens of the sequence that this rank holds
    enum precision precision, kv_precision;
    struct layout_choice layout;      // of chunks; seconds 0: there was no choice
    bool windows;                     // some layer sees a window
    enum pass last_pass, window_pass; // of the last chunk, in layers that see all and in those
    bool indexed;                     // some layer selects its tokens
    enum index_precision index_precision;
    enum exchange last_exchange; // of the last chunk that selected; AUTO: none did
    int64_t steps;               // tokens decoded as one step of the backend
    int64_t gathered_bytes;      // sharded weights that other ranks sent to this one
};
void session_get_facts(const struct session *session, struct session_facts *out);
// Of what a plan calls kv, and of its activations and ring together, the bytes in physical memory
// so far, as the kernel counts them. 0 where memory is a device's.
struct session_resident {
    int64_t kv, buffers;
};
struct session_resident session_get_resident(const struct session *session);
// Token rows that this rank's experts multiplied so far: their balance. Waits for the device.
enum status session_expert_rows(struct session *session, int64_t *out);

#endif
