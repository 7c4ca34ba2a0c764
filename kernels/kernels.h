// The mathematics on one rank's buffers: one table of operations, filled by kernels/reference,
// kernels/cpu (and kernels/cuda). Arguments of an operation are one struct with a shape at every
// pointer. Pointers are in the backend's memory unless marked host. Rows are tokens, row-major;
// a stride counts elements between consecutive tokens. Work is queued in order until sync().
// Every entry is required unless marked optional. Nothing here knows about ranks.
#ifndef HALKA_KERNELS_KERNELS_H
#define HALKA_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"
#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum memory { MEMORY_HOST, MEMORY_DEVICE };

struct kernel_ops;
struct backend {
    const struct kernel_ops *ops;
    enum memory memory;
    bool bf16_products; // the processor multiplies bf16 natively: `auto` precision means bf16
    // fp32 products of many tokens may round their inputs to tf32 (10 bits of mantissa) where that
    // is faster: chosen by the session, false until then.
    bool tf32;
    unsigned char device_id[16]; // MEMORY_DEVICE: differs between any two devices of a job
    char device_name[64];        // likewise: "NVIDIA H100 80GB HBM3"
    void *state;                 // owned by the backend
    // Called again and again while the host waits in sync(), which returns what it returns: a
    // transport's look at its peers and deadline. NULL: nobody looks.
    enum status (*while_waiting)(void *user);
    void *waiting_user;
    // Where a device adds up the seconds of its work by phase (see kernel_ops.phase); NULL:
    // nowhere.
    double *phase_seconds;
};

// A matrix [n_row, n_col] in any format, or a view of some rows or columns of one. y = x W^T.
struct weight {
    const void *data;
    enum dtype dtype;
    int64_t n_row, n_col;
    int64_t row_bytes; // from one row to the next
    // F8_E4M3 only, else NULL: a factor for each 128 x 128 block of the whole matrix, of which this
    // may be a view that begins at (first_row, first_col), as one of any format may: element (r, c)
    // times
    // scale[(first_row + r) / 128 * scale_stride + (first_col + c) / 128].
    const float *scale;
    int64_t scale_stride, first_row, first_col;
};
enum { WEIGHT_SCALE_BLOCK = 128 };

// Views; begin and n must be multiples of the format's block for columns.
struct weight weight_rows(struct weight w, int64_t begin, int64_t n);
struct weight weight_columns(struct weight w, int64_t begin, int64_t n);

// Expands a row of n_col elements, block scales applied. Host memory, plain C.
void weight_row_to_float(const struct weight *w, int64_t row, float *out);

struct embed_args {
    struct weight table;  // [n_vocab, n_col]
    const int32_t *token; // [n_token], each in [0, n_vocab)
    int64_t n_token;
    float scale; // 1 unless the network scales its embeddings
    float *out;  // [n_token, n_col]
};

enum norm_kind { NORM_RMS, NORM_LAYER };
struct norm_args {
    enum norm_kind kind; // RMS: x / sqrt(mean(x^2) + eps) * weight
    const float *x;      // [n_row, n_col]
    int64_t n_row, n_col;
    const float *weight; // [n_col]
    const float *bias;   // [n_col] or NULL
    float eps;
    void *out;            // [n_row, n_col]; may be x itself when out_dtype is F32
    enum dtype out_dtype; // F32 or BF16
};

struct matmul_args {
    const void *x;      // [n_token, weight.n_col]
    enum dtype x_dtype; // F32: fp32 products; BF16: weights rounded to bf16, fp32 sums
    int64_t x_stride;
    int64_t n_token;      // 0 is allowed
    struct weight weight; // [n_out, n_in]
    const float *bias;    // [n_out] or NULL
    bool accumulate;      // out += instead of out =   (F32 out only): the residual addition
    void *out;            // [n_token, n_out]
    enum dtype out_dtype; // F32 or BF16
    int64_t out_stride;
};

// Rotates elements [first, first + rope_dim) of each head by the angle whose cosine and sine are
// given; the others are copied.
struct rope_args {
    const float *x; // [n_token, n_head, head_dim], x_stride between tokens
    int64_t x_stride;
    int64_t n_token;
    int n_head, head_dim, first, rope_dim;
    bool interleaved;       // pairs (2i, 2i+1); otherwise (i, i + rope_dim/2), from `first`
    const float *cos, *sin; // [n_token, rope_dim/2]
    void *out;              // [n_token, n_head, head_dim]; may be x when out_dtype is F32
    enum dtype out_dtype;   // F32 or BF16
    int64_t out_stride;
};

enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH, ACTIVATION_GELU_ERF };
struct gate_args { // out = activation(gate) * up
    enum activation activation;
    const float *gate, *up; // [n_token, n_col], strides between tokens
    int64_t gate_stride, up_stride;
    int64_t n_token, n_col;
    void *out;            // [n_token, n_col]
    enum dtype out_dtype; // F32 or BF16
};

// x[i] *= factor * by[i].
struct multiply_args {
    float *x; // [n] in place
    int64_t n;
    const float *by; // [n], or NULL for ones
    float factor;
};

// out[i] = convert(x[row ? row[i] : i]): changes format, gathers rows, or both.
struct convert_args {
    const void *x;      // [*, n_col]
    enum dtype x_dtype; // F32 or BF16
    int64_t x_stride;
    const int64_t *row; // [n_row] or NULL
    int64_t n_row, n_col;
    void *out;            // [n_row, n_col]
    enum dtype out_dtype; // F32 or BF16
    int64_t out_stride;
};

// One block of keys and values against a set of queries. Grouped heads: query head h reads
// key/value head h / (n_head / n_kv_head). Masks come from positions, never from offsets.
struct attention_args {
    int64_t n_query, n_key;                     // either may be 0
    int n_head, n_kv_head, head_dim, value_dim; // dims 16..576, multiples of 8
    float scale;                                // of the scores, e.g. head_dim^-0.5
    bool causal;            // key visible iff key_position <= query_position; else all visible
    const void *query;      // [n_query, n_head, head_dim]
    enum dtype query_dtype; // F32: fp32 products (K/V may still be BF16); BF16: bf16 products
    int64_t query_stride;
    const void *key;   // [n_key, n_kv_head, head_dim]
    const void *value; // [n_key, n_kv_head, value_dim]; may be key itself with its stride, where a
                       // value is the first value_dim elements of its key (latent attention)
    enum dtype kv_dtype; // F32 or BF16
    int64_t key_stride, value_stride;
    const int64_t *query_position; // [n_query] host, ascending
    const int64_t *key_position;   // [n_key] host, ascending; read only when causal
    float *out; // [n_query, n_head, value_dim]: softmax-weighted mean over visible keys
    float *lse; // [n_query, n_head] natural log of the sum of exp(score);
                // -inf (and out = 0) when no key is visible
};

// Merges partial b into a: weights exp(lse - max); -inf means "saw no key". Exact for both -inf.
struct merge_args {
    int64_t n_row; // n_query * n_head
    int value_dim;
    float *out;             // [n_row, value_dim] in and out
    float *lse;             // [n_row] in and out
    const float *other_out; // [n_row, value_dim]
    const float *other_lse; // [n_row]
};

// mass[s] += factor * sum over queries and heads of exp(score - lse): how much each key was read.
struct attention_mass_args {
    struct attention_args attention; // out is not touched; lse holds the final, merged values
    float factor;
    float *mass; // [n_key]
};

// ln softmax(x W^T)[target], tiled over tokens x vocabulary: nothing of size n_token * n_vocab.
struct logprob_args {
    const void *x;      // [n_token, head.n_col]
    enum dtype x_dtype; // F32 or BF16
    int64_t n_token;
    struct weight head;    // [n_vocab, n_col]
    const int32_t *target; // [n_token]
    float *logprob;        // [n_token]
};

// The next token: the largest logit, or a draw among those that min_p and top_p keep, in
// proportion to exp(logit / temperature). Logits that are not finite are never chosen.
struct sample_args {
    const float *logits; // [n]
    int64_t n;
    double temperature; // 0: greedy, the lowest id of the largest logits
    double top_p;       // keep the smallest set of tokens whose probability reaches this; 1: all
    double min_p;       // drop tokens below min_p times the largest probability; 0: none
    double uniform;     // in [0, 1): which of them. By ascending ids; with top_p by weight
    int32_t *token;     // [1]; -1 when no logit is finite
};

struct scratch_shape {
    int64_t n_token, n_key; // most tokens of one product or attention, most keys of one attention
    int64_t n_hidden;       // columns of the vocabulary's matrices
    int64_t widest_row;     // columns of the layers' matrices, and the elements of the largest
    int64_t largest_weight;
    int n_head, head_dim, value_dim;
    int index_k, n_index_head, index_dim; // of the lightning indexer; 0: there is none
};

// Copies between the device and pinned host memory, beside the computation, for transports. They
// run in order on a queue of their own; a ticket says when one has ended. Only where memory is
// DEVICE.
struct copy_ops {
    enum status (*pin)(struct backend *, int64_t bytes, void **host);
    void (*unpin)(struct backend *, void *host);
    enum status (*after_work)(struct backend *);  // later copies wait for the work queued so far
    enum status (*before_work)(struct backend *); // later work waits for the copies queued so far
    enum status (*out)(struct backend *, void *host, const void *from, int64_t bytes,
                       int64_t *ticket);
    enum status (*in)(struct backend *, void *to, const void *host, int64_t bytes, int64_t *ticket);
    // Tickets end in order; of the last COPY_TICKETS, older ones have ended.
    enum status (*ended)(struct backend *, int64_t ticket, bool *out);
};
enum { COPY_TICKETS = 64 };

// A step of work, queued once as a whole: what is queued from begin to end is kept, not done, and
// launch queues it all. One step is kept at a time, begin forgets the last; other work may come
// between end and launch. A step neither waits for the device nor allocates nor downloads; host
// tables are read when they are queued. Cheap to begin again where a step is like one before it.
struct step_ops {
    enum status (*begin)(struct backend *);
    enum status (*end)(struct backend *, bool keep); // keep = false: something failed, forget it
    enum status (*launch)(struct backend *);
    // Drops what is remembered of earlier steps, before a transport whose work they hold closes.
    void (*forget)(struct backend *);
};

struct device_memory {        // bytes
    int64_t available, total; // of the whole device
    int64_t peak;             // most that this backend held
};

struct hadamard_args; // DeepSeek Sparse Attention: kernels/sparse.h
struct quantize_args;
struct index_args;
struct sparse_attention_args;
struct index_merge_args;
struct index_filter_args;
struct select_rows_args;
struct expert_gate_args; // mixture of experts: kernels/experts.h
struct grouped_matmul_args;
struct expert_combine_args;

struct kernel_ops {
    const char *name; // "reference", "cpu", "cuda"
    void (*close)(struct backend *);
    enum status (*alloc)(struct backend *, int64_t bytes,
                         void **out); // 64-byte aligned, not zeroed
    void (*free)(struct backend *, void *);
    enum status (*upload)(struct backend *, void *to, const void *host, int64_t bytes);
    enum status (*download)(struct backend *, void *host, const void *from, int64_t bytes);
    // From backend memory to backend memory; the ranges do not overlap, or are the same.
    enum status (*copy)(struct backend *, void *to, const void *from, int64_t bytes);
    enum status (*sync)(struct backend *);
    const struct copy_ops *copies; // NULL where memory is the host's
    const struct step_ops *steps;  // NULL where work ends with its call
    // What is queued from here on counts as this phase, until the next or sync(), which adds the
    // device's time to backend->phase_seconds[phase]. NULL where work ends with its call.
    void (*phase)(struct backend *, int phase);
    // NULL where memory is the host's.
    enum status (*device_memory)(struct backend *, struct device_memory *);
    // Makes a host (mapped) matrix usable; a host backend keeps the mapping itself.
    enum status (*load_weight)(struct backend *, const struct weight *host, struct weight *out);
    void (*unload_weight)(struct backend *, struct weight *);

    enum status (*embed)(struct backend *, const struct embed_args *);
    enum status (*norm)(struct backend *, const struct norm_args *);
    enum status (*matmul)(struct backend *, const struct matmul_args *);
    enum status (*rope)(struct backend *, const struct rope_args *);
    enum status (*gate)(struct backend *, const struct gate_args *);
    enum status (*multiply)(struct backend *, const struct multiply_args *);
    enum status (*convert)(struct backend *, const struct convert_args *);
    enum status (*attention)(struct backend *, const struct attention_args *);
    enum status (*merge_partials)(struct backend *, const struct merge_args *);
    enum status (*attention_mass)(struct backend *, const struct attention_mass_args *);
    enum status (*logprob)(struct backend *, const struct logprob_args *);
    enum status (*sample)(struct backend *, const struct sample_args *);
    enum status (*hadamard)(struct backend *, const struct hadamard_args *);
    enum status (*quantize)(struct backend *, const struct quantize_args *);
    enum status (*index_top_k)(struct backend *, const struct index_args *);
    enum status (*index_merge)(struct backend *, const struct index_merge_args *);
    enum status (*index_filter)(struct backend *, const struct index_filter_args *);
    enum status (*select_rows)(struct backend *, const struct select_rows_args *);
    enum status (*sparse_attention)(struct backend *, const struct sparse_attention_args *);
    enum status (*expert_gate)(struct backend *, const struct expert_gate_args *);
    enum status (*grouped_matmul)(struct backend *, const struct grouped_matmul_args *);
    enum status (*expert_combine)(struct backend *, const struct expert_combine_args *);
    // Bytes the backend itself needs at most for these sizes (expanded panels, tiles): for `plan`.
    int64_t (*scratch_bytes)(const struct backend *, const struct scratch_shape *);
};

enum backend_kind { BACKEND_AUTO, BACKEND_REFERENCE, BACKEND_CPU, BACKEND_CUDA };
enum isa { ISA_AUTO, ISA_PLAIN, ISA_AVX2, ISA_AVX512, ISA_AVX512_BF16 }; // best allowed for cpu
struct backend_options {
    enum backend_kind kind;
    enum isa isa; // a limit; what the processor lacks is never used
    int n_thread; // of this rank; at least 1
    int device;   // cuda: which of the devices this process sees
};

// Opens a backend. ERR_CONFIG when this build or machine lacks it. close accepts a zeroed struct.
enum status backend_open(const struct backend_options *options, struct backend *out);
void backend_close(struct backend *backend);
// Devices that this process may use by such options; 0: the backend computes on the host.
int backend_device_count(enum backend_kind kind);

#ifdef __cplusplus
}
#endif
#endif
