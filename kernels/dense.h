// Arguments of the operations that every network has: embedding, norms, products, rotation, gates
// and, at its end, log-probabilities and the choice of a token. Pointers, shapes and strides as in
// kernels.h.
#ifndef HALKA_KERNELS_DENSE_H
#define HALKA_KERNELS_DENSE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

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

// Several products at once, in no order: none reads or writes what another writes.
struct matmul_each_args {
    const struct matmul_args *product; // [n_product] host
    int n_product;
};

// Rotates elements [first, first + rope_dim) of each head by the angle whose cosine and sine are
// given; the others are copied. Su et al., RoFormer (2021), equation 34. A head may then pass a
// Walsh-Hadamard transform in Sylvester's order, times head_dim^-0.5: it keeps products of heads
// and spreads the few large elements of one over all of them, before they are rounded.
struct rope_args {
    const float *x; // [n_token, n_head, head_dim], x_stride between tokens
    int64_t x_stride;
    int64_t n_token;
    int n_head, head_dim, first, rope_dim;
    bool interleaved;       // pairs (2i, 2i+1); otherwise (i, i + rope_dim/2), from `first`
    const float *cos, *sin; // [n_token, rope_dim/2]
    bool spread;            // transform; head_dim is a power of two, at most 256
    void *out;              // [n_token, n_head, head_dim]; may be x when out_dtype is F32
    enum dtype out_dtype;   // F32 or BF16
    int64_t out_stride;
};

// Several at once, in no order: none reads or writes what another writes.
struct rope_each_args {
    const struct rope_args *rope; // [n_rope] host
    int n_rope;
};

enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH, ACTIVATION_GELU_ERF };
struct gate_args { // out = activation(gate) * up; with up NULL, activation(gate)
    enum activation activation;
    const float *gate, *up; // [n_token, n_col], strides between tokens
    int64_t gate_stride, up_stride;
    int64_t n_token, n_col;
    void *out;            // [n_token, n_col]
    enum dtype out_dtype; // F32 or BF16
};

// x[i] += by[i].
struct add_args {
    float *x; // [n] in place
    int64_t n;
    const float *by; // [n]
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

// One rectangle of numbers, from one place to another.
struct block_copy {
    const float *from; // [n_row, n_col]
    float *to;         // [n_row, n_col]
    int64_t n_row, n_col;
    int64_t from_stride, to_stride;
};
// Many of them at once, in no order: what one writes, no other reads or writes.
struct copy_blocks_args {
    const struct block_copy *block; // [n_block] host
    int n_block;
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

#ifdef __cplusplus
}
#endif
#endif
