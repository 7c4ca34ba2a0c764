// Weight rows with AVX2, FMA and F16C.
#include <immintrin.h>

#include "kernels/cpu/format.h"
#include "kernels/cpu/format_unpack.h"

typedef __m256 vec;
#define VEC_FLOATS 8
#define FORMAT_OPS format_avx2

static inline vec vec_zero(void) {
    return _mm256_setzero_ps();
}
static inline vec vec_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void vec_store(float *p, vec v) {
    _mm256_storeu_ps(p, v);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline float vec_sum(vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// Round to nearest even; NaN stays NaN.
static inline void vec_store_bf16(bf16 *p, vec v) {
    __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}

// Scale in lane 0 and minimum in lane 1 (Q8_0 and Q4_0: lane 1 is not a scale).
static inline __m128 scales(const uint8_t *p) {
    int bits;
    memcpy(&bits, p, sizeof bits);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
}
// 16 signed bytes to two vectors.
static inline void bytes_to_float(__m128i bytes, vec *out) {
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    out[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)));
}
static inline void nibbles_to_float(const uint8_t *p, vec *out) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)p), mask = _mm_set1_epi8(15);
    bytes_to_float(_mm_and_si128(bytes, mask), out);
    bytes_to_float(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), out + 2);
}

static inline void decode_f32(const uint8_t *p, int group, vec *out) {
    (void)group;
    for (int k = 0; k < 4; k++) out[k] = _mm256_loadu_ps((const void *)(p + 32 * k));
}
static inline void decode_f16(const uint8_t *p, int group, vec *out) {
    (void)group;
    for (int k = 0; k < 4; k++)
        out[k] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16 * k)));
}
static inline void decode_bf16(const uint8_t *p, int group, vec *out) {
    (void)group;
    for (int k = 0; k < 4; k++) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 16 * k)));
        out[k] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
}
static inline void decode_q8_0(const uint8_t *p, int group, vec *out) {
    (void)group;
    __m256 scale = _mm256_broadcastss_ps(scales(p));
    for (int k = 0; k < 2; k++)
        bytes_to_float(_mm_loadu_si128((const __m128i *)(p + 2 + 16 * k)), out + 2 * k);
    for (int k = 0; k < 4; k++) out[k] = _mm256_mul_ps(scale, out[k]);
}
static inline void decode_q4_0(const uint8_t *p, int group, vec *out) {
    (void)group;
    __m256 scale = _mm256_broadcastss_ps(scales(p));
    nibbles_to_float(p + 2, out);
    for (int k = 0; k < 4; k++)
        out[k] = _mm256_mul_ps(scale, _mm256_sub_ps(out[k], _mm256_set1_ps(8)));
}
static inline void decode_q4_1(const uint8_t *p, int group, vec *out) {
    (void)group;
    __m128 s = scales(p);
    __m256 scale = _mm256_broadcastss_ps(s), low = _mm256_broadcastss_ps(_mm_movehdup_ps(s));
    nibbles_to_float(p + 4, out);
    for (int k = 0; k < 4; k++) out[k] = _mm256_fmadd_ps(scale, out[k], low);
}

static inline void vec_unpacked(const struct unpacked *u, vec *out) {
    for (int k = 0; k < 2; k++) bytes_to_float(u->q[k], out + 2 * k);
    for (int k = 0; k < 4; k++)
        out[k] =
            _mm256_fmadd_ps(_mm256_set1_ps(u->scale[k / 2]), out[k], _mm256_set1_ps(u->low[k / 2]));
}

#include "kernels/cpu/format_body.h"
