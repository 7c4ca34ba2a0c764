// Arguments of DeepSeek Sparse Attention's operations: Hadamard rotation and fp8 quantisation of
// index queries and keys, the lightning indexer with its running top-k, and attention over the
// selected tokens only. Source: DeepSeek-V3.2 technical report, equations 1 and 2.
#ifndef HALKA_KERNELS_SPARSE_H
#define HALKA_KERNELS_SPARSE_H

#include "kernels/candidate.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Walsh-Hadamard transform in Sylvester order of each row, times n_col^-0.5: orthogonal.
struct hadamard_args {
    float *x; // [n_row, n_col] in place
    int64_t n_row;
    int n_col; // a power of two, at most 256
};

struct quantize_args {
    const float *x; // [n_row, n_col]
    int64_t n_row;
    int n_col, block;  // one scale for each block of a row; block divides n_col
    bool power_of_two; // scales are powers of two (ue8m0)
    uint8_t *out;      // [n_row, n_col] fp8 e4m3
    float *scale;      // [n_row, n_col / block]
};

// Scores one block of index keys against queries and keeps each query's k best candidates:
//   I[t,s] = key_scale[s] * sum over h of weight[t,h] * max(0, query[t,h] . key[s])   (fp32)
// Keys after the query's position are not candidates. A score depends on its query and key alone,
// summed in one fixed order, so any split of the keys gives the same candidates, bit for bit.
// Scores are never stored beyond a tile. ERR_INPUT when a score is NaN: names query and key.
struct index_args {
    int64_t n_query, n_key;
    int n_head, head_dim;
    enum dtype dtype;       // of query and key: F32, BF16 or F8_E4M3
    const void *query;      // [n_query, n_head, head_dim]
    const float *weight;    // [n_query, n_head], with every scale but key_scale folded in
    const void *key;        // [n_key, head_dim]
    const float *key_scale; // [n_key] or NULL
    const int64_t *query_position, *key_position; // host, ascending
    int k;
    uint64_t *candidate;  // [n_query, k] in and out, unordered; see candidate.h
    int32_t *n_candidate; // [n_query] in and out, at most k
};

// Attention of each query over its selected keys of one block, shared by all heads.
struct sparse_attention_args {
    struct attention_args attention; // causal and the positions are not read: selection is explicit
    const int32_t *row;              // [n_query, k]: rows of the block, ascending
    const int32_t *n_selected;       // [n_query], at most k
    int k;
};

#ifdef __cplusplus
}
#endif
#endif
