// Vectors of 8 floats: AVX2 with FMA.
#ifndef HALKA_KERNELS_CPU_ATTENTION_VEC_AVX2_H
#define HALKA_KERNELS_CPU_ATTENTION_VEC_AVX2_H

#include <immintrin.h>
#include <math.h>

#include "kernels/dtype.h"

// SUMS: vectors that hold sums while others pass through the registers.
enum { VEC_WIDTH = 8, PANEL_VECS = 2, SUMS = 12 };

typedef __m256 vec;

static inline vec vec_load(const float *x) {
    return _mm256_loadu_ps(x);
}
static inline vec vec_load_bf16(const bf16 *x) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline void vec_store(float *x, vec v) {
    _mm256_storeu_ps(x, v);
}
static inline vec vec_set(float x) {
    return _mm256_set1_ps(x);
}
static inline vec vec_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}
static inline vec vec_sub(vec a, vec b) {
    return _mm256_sub_ps(a, b);
}
static inline vec vec_mul(vec a, vec b) {
    return _mm256_mul_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
// b where either is NaN
static inline vec vec_max(vec a, vec b) {
    return _mm256_max_ps(a, b);
}
static inline vec vec_min(vec a, vec b) {
    return _mm256_min_ps(a, b);
}
static inline float vec_reduce_max(vec v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
// The first n lanes of v, -inf in the others.
static inline vec vec_first(vec v, int n) {
    __m256i keep =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(vec_set(-INFINITY), v, _mm256_castsi256_ps(keep));
}
// -inf in the first n lanes of v.
static inline vec vec_without_first(vec v, int n) {
    __m256i drop =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(v, vec_set(-INFINITY), _mm256_castsi256_ps(drop));
}
// 2^n for whole n in [-127, 127] (2^-127 counts as 0), times x
static inline vec vec_scale_power(vec x, vec n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
static inline vec vec_round(vec x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// The sums of the lanes of four vectors.
static inline void vec_sum_four(const vec v[4], float out[4]) {
    vec sum = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1)));
}
static inline void vec_transpose(vec v[VEC_WIDTH]) {
    vec a[VEC_WIDTH], b[VEC_WIDTH];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

#include "kernels/cpu/attention_exp2.h"

#endif
