// Arguments of DeepSeek Sparse Attention's operations: fp8 quantisation of index queries and keys,
// the lightning indexer with its running top-k, and attention over the selected tokens only.
// Source: DeepSeek-V3.2 technical report, equations 1 and 2.
#ifndef HALKA_KERNELS_SPARSE_H
#define HALKA_KERNELS_SPARSE_H

#include "kernels/candidate.h"
#include "kernels/kernels.h"
#include "kernels/key_run.h"

#ifdef __cplusplus
extern "C" {
#endif

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
    enum dtype dtype;              // of query and key: F32, BF16 or F8_E4M3
    const void *query;             // [n_query, n_head, head_dim]
    const float *weight;           // [n_query, n_head], with every scale but key_scale folded in
    const void *key;               // [n_key, head_dim]
    const float *key_scale;        // [n_key] or NULL
    const int64_t *query_position; // host, ascending
    const struct key_run *run;     // [n_run] host: the keys' positions
    int n_run, k;
    uint64_t *candidate;  // [n_query, k] in and out, unordered; see candidate.h
    int32_t *n_candidate; // [n_query] in and out, at most k
};

// Adds candidates found elsewhere: each query keeps the k best of its own and the others'.
// Afterwards threshold[t] is the k-th best, 0 when there are fewer: exactly the candidates at or
// above it are selected, wherever they lie.
struct index_merge_args {
    int64_t n_query;
    int k;
    bool merge;             // candidate holds a list, which the others join; false: only written
    uint64_t *candidate;    // [n_query, k] unordered
    int32_t *n_candidate;   // [n_query]
    int n_list;             // 0: only the thresholds are wanted
    const uint64_t *other;  // [n_list, n_query, k]
    const int32_t *n_other; // [n_list, n_query]
    uint64_t *threshold;    // [n_query] or NULL
};

// Drops the candidates below each query's threshold.
struct index_filter_args {
    int64_t n_query;
    int k;
    uint64_t *candidate;       // [n_query, k] in and out, unordered
    int32_t *n_candidate;      // [n_query] in and out
    const uint64_t *threshold; // [n_query]
};

// Which rows of a block each query selected: candidates whose position the runs hold.
struct select_rows_args {
    int64_t n_query;
    int k;
    const uint64_t *candidate;  // [n_query, k], unordered
    const int32_t *n_candidate; // [n_query]
    const struct key_run *run;  // [n_run] host
    int n_run;
    int64_t n_row;       // of the block: above every row of the runs
    int32_t *row;        // [n_query, k] ascending
    int32_t *n_selected; // [n_query]
};

// Attention of each query over its selected keys of one block, shared by all heads.
struct sparse_attention_args {
    struct attention_args attention; // its visibility is not read: selection is explicit
    const int32_t *row;              // [n_query, k]: rows of the block, ascending
    const int32_t *n_selected;       // [n_query], at most k
    int k;
};

#ifdef __cplusplus
}
#endif
#endif
