// Arguments of a mixture of experts: the gate that chooses experts for each token, products of rows
// grouped by expert, and the weighted sum of what the experts made of a token.
// Sources: DeepSeek-V3 technical report, equations 12 to 16 (noaux_tc); Shazeer et al. 2017.
#ifndef HALKA_KERNELS_EXPERTS_H
#define HALKA_KERNELS_EXPERTS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum expert_scoring { EXPERT_SIGMOID, EXPERT_SOFTMAX };

// Experts are chosen by score + bias: the n_group_used groups with the largest sum of their two
// best, then the n_used best experts of those groups; equal ones by number, the lower first.
// Their weights come from the scores without bias: score / sum of the chosen (normalise) * scale.
struct expert_gate_args {
    enum expert_scoring scoring;
    const float *logit; // [n_token, n_expert]
    const float *bias;  // [n_expert] or NULL
    int64_t n_token;
    int n_expert, n_used;
    int n_group, n_group_used; // 1 and 1: no groups; n_group divides n_expert
    bool normalise;
    float scale;
    int32_t *expert; // [n_token, n_used], best first
    float *weight;   // [n_token, n_used]
};

// out[i] = x[i] W[g]^T for the rows i of group g: [first_row[g], first_row[g + 1]).
struct grouped_matmul_args {
    int n_group;
    const int64_t *first_row;    // [n_group + 1] host, ascending; first_row[0] is 0
    const struct weight *weight; // [n_group] host table, all of one shape [n_out, n_in]
    const void *x;               // [rows, n_in]
    enum dtype x_dtype;          // as matmul_args
    float *out;                  // [rows, n_out]
};

// out[j] = x[j] W[expert[j] - first_expert]^T: which matrix, the backend reads when the product is
// computed. Rows of experts beyond the n_expert of the table become zeros.
struct chosen_matmul_args {
    int n_row;
    const int32_t *expert; // [n_row], any numbers
    int first_expert, n_expert;
    const struct weight *weight; // [n_expert] host table, at least one, all of one shape
    const void *x;               // [n_row, n_in]
    enum dtype x_dtype;          // as matmul_args
    int64_t x_stride;            // 0: the same row for all
    float *out;                  // [n_row, n_out]
    int64_t *n_product;          // [1] += rows that were multiplied; or NULL
};

// out[t] += sum over j of weight[t, j] * x[row[t, j]], j ascending; a row of -1 counts nothing.
struct expert_combine_args {
    int64_t n_token;
    int n_used;
    int64_t n_col;
    const float *x;      // [*, n_col]
    const int32_t *row;  // [n_token, n_used]; NULL: t * n_used + j
    const float *weight; // [n_token, n_used]
    float *out;          // [n_token, n_col]
};

#ifdef __cplusplus
}
#endif
#endif
