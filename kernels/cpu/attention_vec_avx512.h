// Vectors of 16 floats: AVX-512 (F, BW, VL, DQ).
#ifndef HALKA_KERNELS_CPU_ATTENTION_VEC_AVX512_H
#define HALKA_KERNELS_CPU_ATTENTION_VEC_AVX512_H

#include <immintrin.h>
#include <math.h>

#include "kernels/dtype.h"

// SUMS: vectors that hold sums while others pass through the registers.
enum { VEC_WIDTH = 16, PANEL_VECS = 4, SUMS = 24 };

typedef __m512 vec;

static inline vec vec_load(const float *x) {
    return _mm512_loadu_ps(x);
}
static inline vec vec_load_bf16(const bf16 *x) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void vec_store(float *x, vec v) {
    _mm512_storeu_ps(x, v);
}
static inline vec vec_set(float x) {
    return _mm512_set1_ps(x);
}
static inline vec vec_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}
static inline vec vec_sub(vec a, vec b) {
    return _mm512_sub_ps(a, b);
}
static inline vec vec_mul(vec a, vec b) {
    return _mm512_mul_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
// b where either is NaN
static inline vec vec_max(vec a, vec b) {
    return _mm512_max_ps(a, b);
}
static inline vec vec_min(vec a, vec b) {
    return _mm512_min_ps(a, b);
}
static inline float vec_reduce_max(vec v) {
    return _mm512_reduce_max_ps(v);
}
// The first n lanes of v, -inf in the others.
static inline vec vec_first(vec v, int n) {
    __mmask16 keep = (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1);
    return _mm512_mask_blend_ps(keep, vec_set(-INFINITY), v);
}
// -inf in the first n < 16 lanes of v.
static inline vec vec_without_first(vec v, int n) {
    return _mm512_mask_blend_ps((__mmask16)((1u << n) - 1), v, vec_set(-INFINITY));
}
// 2^n for whole n in [-127, 127], times x
static inline vec vec_scale_power(vec x, vec n) {
    return _mm512_scalef_ps(x, n);
}
static inline vec vec_round(vec x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// The sums of the lanes of four vectors.
static inline void vec_sum_four(const vec v[4], float out[4]) {
    vec a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    vec b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    vec sum = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
static inline void vec_transpose(vec v[VEC_WIDTH]) {
    vec a[VEC_WIDTH], b[VEC_WIDTH];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
    }
}

#include "kernels/cpu/attention_exp2.h"

#endif
