// Block formats unpacked to bytes, for every instruction set from AVX2 on. See kernels/dtype.c for
// the layouts.
#ifndef HALKA_KERNELS_CPU_FORMAT_UNPACK_H
#define HALKA_KERNELS_CPU_FORMAT_UNPACK_H

#include <immintrin.h>

#include "kernels/dtype.h"
#include "kernels/k_scale.h"

// 32 elements: element i of half k is scale[k] * q[k][i] + low[k], q signed.
struct unpacked {
    __m128i q[2];
    float scale[2], low[2];
};

static inline float unpack_f16(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _cvtsh_ss(bits);
}

// Bits [shift, shift + n_bit) of 16 bytes.
static inline __m128i unpack_bits(const uint8_t *p, int shift, int n_bit) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return _mm_and_si128(_mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift)),
                         _mm_set1_epi8((char)((1 << n_bit) - 1)));
}

static inline void unpack_same_scale(struct unpacked *u, float scale, float low) {
    u->scale[0] = u->scale[1] = scale;
    u->low[0] = u->low[1] = low;
}

// Nibbles at `nibble`, with the 32 fifth bits at `fifth`: element i in bit i.
static inline void unpack_five_bits(const uint8_t *fifth, const uint8_t *nibble,
                                    struct unpacked *u) {
    const __m128i bit = _mm_set1_epi64x((long long)0x8040201008040201u);
    const __m128i byte = _mm_set_epi64x(0x0101010101010101, 0);
    for (int k = 0; k < 2; k++) {
        int16_t bits;
        memcpy(&bits, fifth + 2 * k, sizeof bits);
        __m128i spread = _mm_shuffle_epi8(_mm_set1_epi16(bits), byte);
        __m128i set = _mm_cmpeq_epi8(_mm_and_si128(spread, bit), bit);
        u->q[k] =
            _mm_or_si128(unpack_bits(nibble, 4 * k, 4), _mm_and_si128(set, _mm_set1_epi8(16)));
    }
}

static inline void unpack_q5_0(const uint8_t *p, int group, struct unpacked *u) {
    (void)group;
    float scale = unpack_f16(p);
    unpack_five_bits(p + 2, p + 6, u);
    unpack_same_scale(u, scale, -16 * scale);
}

static inline void unpack_q5_1(const uint8_t *p, int group, struct unpacked *u) {
    (void)group;
    unpack_five_bits(p + 4, p + 8, u);
    unpack_same_scale(u, unpack_f16(p), unpack_f16(p + 2));
}

static inline void unpack_k(const uint8_t *p, int group, const uint8_t *nibble,
                            struct unpacked *u) {
    int scale, low;
    k_scale(p + 4, group, &scale, &low);
    for (int k = 0; k < 2; k++)
        u->q[k] = unpack_bits(nibble + group / 2 * 32 + 16 * k, group % 2 * 4, 4);
    unpack_same_scale(u, unpack_f16(p) * (float)scale, -unpack_f16(p + 2) * (float)low);
}

static inline void unpack_q4_k(const uint8_t *p, int group, struct unpacked *u) {
    unpack_k(p, group, p + 16, u);
}

static inline void unpack_q5_k(const uint8_t *p, int group, struct unpacked *u) {
    unpack_k(p, group, p + 48, u);
    for (int k = 0; k < 2; k++) {
        __m128i fifth = unpack_bits(p + 16 + 16 * k, group, 1);
        u->q[k] = _mm_or_si128(u->q[k], _mm_slli_epi16(fifth, 4));
    }
}

static inline void unpack_q6_k(const uint8_t *p, int group, struct unpacked *u) {
    int half = group / 4, quarter = group % 4;
    const uint8_t *low = p + 64 * half + quarter % 2 * 32, *high = p + 128 + 32 * half;
    const int8_t *scales = (const int8_t *)p + 192 + 8 * half + 2 * quarter;
    float scale = unpack_f16(p + 208);
    for (int k = 0; k < 2; k++) {
        __m128i top = _mm_slli_epi16(unpack_bits(high + 16 * k, 2 * quarter, 2), 4);
        u->q[k] = _mm_or_si128(unpack_bits(low + 16 * k, quarter / 2 * 4, 4), top);
        u->scale[k] = scale * (float)scales[k];
        u->low[k] = -32 * u->scale[k];
    }
}

#endif
