// Arguments of attention over one block of keys and values, of the merge of two such partial
// results, and of the reading of its weights. Pointers, shapes and strides as in kernels.h.
#ifndef HALKA_KERNELS_ATTENTION_H
#define HALKA_KERNELS_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

// One block of keys and values against a set of queries. Grouped heads: query head h reads
// key/value head h / (n_head / n_kv_head). Masks come from positions, never from offsets:
// one form for causal attention, windows of either or both sides and packed documents.
// Vaswani et al., Attention is all you need (2017), equation 1.
struct attention_args {
    int64_t n_query, n_key;                     // either may be 0
    int n_head, n_kv_head, head_dim, value_dim; // dims 16..576, multiples of 8
    float scale;                                // of the scores, e.g. head_dim^-0.5
    const void *query;                          // [n_query, n_head, head_dim]
    enum dtype query_dtype; // F32: fp32 products (K/V may still be BF16); BF16: bf16 products
    int64_t query_stride;
    const void *key;   // [n_key, n_kv_head, head_dim]
    const void *value; // [n_key, n_kv_head, value_dim]; may be key itself with its stride, where a
                       // value is the first value_dim elements of its key (latent attention)
    enum dtype kv_dtype; // F32 or BF16
    int64_t key_stride, value_stride;
    // A query sees the keys at positions from first_visible (or below `sinks`) to end_visible - 1.
    const int64_t *first_visible; // [n_query] host, ascending; NULL: from the first key on
    int64_t sinks;                // >= 0; read only with first_visible
    const int64_t *end_visible;   // [n_query] host, ascending; NULL: to the last key
    const int64_t *key_position;  // [n_key] host, ascending; read only with one of the two
    float *out; // [n_query, n_head, value_dim]: softmax-weighted mean over visible keys
    float *lse; // [n_query, n_head] natural log of the sum of exp(score);
                // -inf (and out = 0) when no key is visible
    bool merge; // out and lse hold the result over other keys, which this one joins as in struct
                // merge_args; a row that sees no key of this block keeps its own, bit for bit
};

// Joins partials over other keys to (out, lse), one after another: weights exp(lse - max). One that
// saw no key (lse = -inf) changes nothing, bit for bit, and its out is not read.
// Milakov and Gimelshein, Online normalizer calculation for softmax (2018), equation 4.
struct merge_args {
    int64_t n_row; // n_query * n_head
    int value_dim;
    bool merge; // out and lse hold a partial, which the others join; false: they are only written
    float *out; // [n_row, value_dim]; 0 where none saw a key
    float *lse; // [n_row]; -inf likewise
    int n_other;
    const float *other_out; // [n_row, value_dim] of the first
    const float *other_lse; // [n_row] of the first
    int64_t other_stride;   // floats from one to the next, of out and of lse
};

// mass[s] += factor * sum over queries and heads of exp(score - lse): how much each key was read.
struct attention_mass_args {
    struct attention_args attention; // out is not touched; lse holds the final, merged values
    float factor;
    float *mass; // [n_key]
};

#ifdef __cplusplus
}
#endif
#endif
