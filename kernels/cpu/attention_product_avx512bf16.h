// bf16 products with fp32 sums: a product unit is a pair of bf16, of neighbouring dimensions in
// queries and keys, of neighbouring keys in weights and values. Included after
// attention_vec_avx512.h.
#ifndef HALKA_KERNELS_CPU_ATTENTION_PRODUCT_AVX512BF16_H
#define HALKA_KERNELS_CPU_ATTENTION_PRODUCT_AVX512BF16_H

#include "kernels/cpu/attention_tile.h"

enum { UNIT = 2 };

typedef uint32_t unit;
typedef __m512bh operand;

static inline operand operand_load(const unit *x) {
    return (__m512bh)_mm512_loadu_si512(x);
}
static inline operand operand_broadcast(const unit *x) {
    return (__m512bh)_mm512_set1_epi32((int)*x);
}
static inline vec operand_multiply_add(operand a, operand b, vec c) {
    return _mm512_dpbf16_ps(c, a, b);
}

// 16 bf16 of a row from `col`, zeros past its end.
static inline __m256i row_load(const struct kv_rows *rows, int row, int col) {
    int64_t at = kv_row_at(rows, row) + col;
    int n = rows->n_col - col;
    __mmask16 keep = (__mmask16)(n >= 16 ? 0xffffu : n <= 0 ? 0 : (1u << n) - 1);
    if (rows->dtype == DTYPE_BF16)
        return _mm256_maskz_loadu_epi16(keep, (const bf16 *)rows->data + at);
    return (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(keep, (const float *)rows->data + at));
}

// Units of key dimensions `col`.. of one key.
static inline vec key_load(const struct kv_rows *rows, int row, int col) {
    __m512i low = _mm512_castsi256_si512(row_load(rows, row, col));
    return _mm512_castsi512_ps(_mm512_inserti64x4(low, row_load(rows, row, col + 16), 1));
}

// The same for a whole vector of units, whose elements begin at `at`.
static inline operand key_load_whole(enum dtype dtype, const void *data, int64_t at) {
    if (dtype == DTYPE_BF16) return (__m512bh)_mm512_loadu_si512((const bf16 *)data + at);
    const float *x = (const float *)data + at;
    return _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
}
static inline operand as_operand(vec units) {
    return (__m512bh)_mm512_castps_si512(units);
}

static inline vec widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
// VEC_WIDTH values from `at`.
static inline vec value_load_whole(enum dtype dtype, const void *data, int64_t at) {
    if (dtype == DTYPE_BF16) return vec_load_bf16((const bf16 *)data + at);
    return widen((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps((const float *)data + at)));
}
static inline vec value_load(const struct kv_rows *rows, int row, int col) {
    return widen(row_load(rows, row, col));
}

// Units of value columns `col`.. for the product with keys `row` and `row` + 1.
static inline void value_pack(const struct kv_rows *rows, int row, int col, unit *out) {
    __m512i even = _mm512_cvtepu16_epi32(row_load(rows, row, col));
    __m512i odd = _mm512_setzero_si512();
    if (row + 1 < rows->n_row) odd = _mm512_cvtepu16_epi32(row_load(rows, row + 1, col));
    _mm512_storeu_si512(out, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
}

static inline void weight_store(unit *weight, int vec_index, vec p) {
    _mm256_storeu_si256((__m256i *)(weight + vec_index * VEC_WIDTH / UNIT),
                        (__m256i)_mm512_cvtneps_pbh(p));
}

#endif
