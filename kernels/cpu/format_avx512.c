// Weight rows with AVX-512. A 4-bit block is a table of 16 values: one permutation looks up 16
// elements, the index being the low 4 bits of each lane.
#include <immintrin.h>

#include "kernels/cpu/format.h"
#include "kernels/cpu/format_unpack.h"

typedef __m512 vec;
#define VEC_FLOATS 16
#define FORMAT_OPS format_avx512

static inline vec vec_zero(void) {
    return _mm512_setzero_ps();
}
static inline vec vec_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vec_store(float *p, vec v) {
    _mm512_storeu_ps(p, v);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline float vec_sum(vec v) {
    return _mm512_reduce_add_ps(v);
}
// Round to nearest even; NaN stays NaN.
static inline void vec_store_bf16(bf16 *p, vec v) {
    __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(rounded));
}

// Scale in lane 0 and minimum in lane 1 (Q8_0 and Q4_0: lane 1 is not a scale).
static inline __m128 scales(const uint8_t *p) {
    int bits;
    memcpy(&bits, p, sizeof bits);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
}
static inline __m512 iota(float first) {
    return _mm512_add_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_ps(first));
}
static inline void look_up_nibbles(const uint8_t *p, __m512 table, vec *out) {
    __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    out[0] = _mm512_permutexvar_ps(index, table);
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), table);
}

static inline void decode_f32(const uint8_t *p, int group, vec *out) {
    (void)group;
    out[0] = _mm512_loadu_ps(p);
    out[1] = _mm512_loadu_ps(p + 64);
}
static inline void decode_f16(const uint8_t *p, int group, vec *out) {
    (void)group;
    out[0] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
    out[1] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 32)));
}
static inline void decode_bf16(const uint8_t *p, int group, vec *out) {
    (void)group;
    for (int k = 0; k < 2; k++) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + 32 * k)));
        out[k] = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
}
static inline void decode_q8_0(const uint8_t *p, int group, vec *out) {
    (void)group;
    __m512 scale = _mm512_broadcastss_ps(scales(p));
    for (int k = 0; k < 2; k++) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(p + 2 + 16 * k));
        out[k] = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
    }
}
static inline void decode_q4_0(const uint8_t *p, int group, vec *out) {
    (void)group;
    look_up_nibbles(p + 2, _mm512_mul_ps(_mm512_broadcastss_ps(scales(p)), iota(-8)), out);
}
static inline void decode_q4_1(const uint8_t *p, int group, vec *out) {
    (void)group;
    __m128 s = scales(p);
    __m512 scale = _mm512_broadcastss_ps(s), low = _mm512_broadcastss_ps(_mm_movehdup_ps(s));
    look_up_nibbles(p + 4, _mm512_fmadd_ps(scale, iota(0), low), out);
}

static inline void vec_unpacked(const struct unpacked *u, vec *out) {
    for (int k = 0; k < 2; k++)
        out[k] = _mm512_fmadd_ps(_mm512_set1_ps(u->scale[k]),
                                 _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(u->q[k])),
                                 _mm512_set1_ps(u->low[k]));
}

#include "kernels/cpu/format_body.h"
