// fp32 products: a product unit is one float; bf16 keys and values are expanded when packed.
// Included after one attention_vec_*.h.
#ifndef HALKA_KERNELS_CPU_ATTENTION_PRODUCT_FP32_H
#define HALKA_KERNELS_CPU_ATTENTION_PRODUCT_FP32_H

#include "kernels/cpu/attention_tile.h"

enum { UNIT = 1 };

typedef float unit;
typedef vec operand;

static inline operand operand_load(const unit *x) {
    return vec_load(x);
}
static inline operand operand_broadcast(const unit *x) {
    return vec_set(*x);
}
static inline vec operand_multiply_add(operand a, operand b, vec c) {
    return vec_fma(a, b, c);
}

// Rows that end inside the vector or need rounding: one element at a time.
static inline vec row_load_slow(const struct kv_rows *rows, int row, int col) {
    float x[VEC_WIDTH] = {0};
    int64_t at = kv_row_at(rows, row) + col;
    for (int i = 0; i < VEC_WIDTH && col + i < rows->n_col; i++) {
        if (rows->dtype == DTYPE_BF16)
            x[i] = bf16_to_float(((const bf16 *)rows->data)[at + i]);
        else
            x[i] = ((const float *)rows->data)[at + i];
        if (rows->round) x[i] = bf16_to_float(bf16_from_float(x[i]));
    }
    return vec_load(x);
}

// VEC_WIDTH units of a row from `col`, zeros past its end.
static inline vec row_load(const struct kv_rows *rows, int row, int col) {
    if (rows->round || col + VEC_WIDTH > rows->n_col) return row_load_slow(rows, row, col);
    int64_t at = kv_row_at(rows, row) + col;
    if (rows->dtype == DTYPE_BF16) return vec_load_bf16((const bf16 *)rows->data + at);
    return vec_load((const float *)rows->data + at);
}

// Units of key dimensions `col`.. of one key.
static inline vec key_load(const struct kv_rows *rows, int row, int col) {
    return row_load(rows, row, col);
}

// The same for a whole vector of units, whose elements begin at `at`.
static inline operand key_load_whole(enum dtype dtype, const void *data, int64_t at) {
    if (dtype == DTYPE_BF16) return vec_load_bf16((const bf16 *)data + at);
    return vec_load((const float *)data + at);
}
static inline operand as_operand(vec units) {
    return units;
}

// VEC_WIDTH values from `at`.
static inline vec value_load_whole(enum dtype dtype, const void *data, int64_t at) {
    return key_load_whole(dtype, data, at);
}
static inline vec value_load(const struct kv_rows *rows, int row, int col) {
    return row_load(rows, row, col);
}

// Units of value columns `col`.. for the product with key `row`.
static inline void value_pack(const struct kv_rows *rows, int row, int col, unit *out) {
    vec_store(out, row_load(rows, row, col));
}

static inline void weight_store(unit *weight, int vec_index, vec p) {
    vec_store(weight + vec_index * VEC_WIDTH, p);
}

#endif
