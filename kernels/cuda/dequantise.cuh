// Formats of weights on the device: a thread expands a chunk of 16 elements, two runs of eight
// consecutive ones `kDistance` apart, so that both nibbles of a byte are used where it is read.
// Values equal dtype_to_float's bit for bit: every product and sum is rounded by itself.
#ifndef HALKA_KERNELS_CUDA_DEQUANTISE_CUH
#define HALKA_KERNELS_CUDA_DEQUANTISE_CUH

#include <cuda_fp16.h>

#include "kernels/cuda/launch.cuh"

enum { RUN = 8, CHUNK = 2 * RUN };

struct eight_bytes {
    uint32_t word[2];
};

// kAlign: what the address is a multiple of, at least: 2, 4 or 8.
template <int kAlign> __device__ inline struct eight_bytes load_eight_bytes(const uint8_t *p) {
    struct eight_bytes x;
    if (kAlign == 8) {
        uint2 both = *(const uint2 *)p;
        x.word[0] = both.x, x.word[1] = both.y;
    } else if (kAlign == 4) {
        x.word[0] = ((const uint32_t *)p)[0], x.word[1] = ((const uint32_t *)p)[1];
    } else {
        const uint16_t *half = (const uint16_t *)p;
        x.word[0] = half[0] | (uint32_t)half[1] << 16;
        x.word[1] = half[2] | (uint32_t)half[3] << 16;
    }
    return x;
}
__device__ inline int byte_of(struct eight_bytes x, int i) {
    return (int)(x.word[i / 4] >> i % 4 * 8 & 255);
}
// 32 bits from an address that is a multiple of 2.
__device__ inline uint32_t load_four_bytes(const uint8_t *p) {
    return ((const uint16_t *)p)[0] | (uint32_t)((const uint16_t *)p)[1] << 16;
}
__device__ inline float half_at(const uint8_t *p) {
    return __half2float(__ushort_as_half(*(const uint16_t *)p));
}
__device__ inline float times_plus(float scale, int q, float low) {
    return __fadd_rn(__fmul_rn(scale, (float)q), low);
}

// e4m3 moved to the place of fp32's exponent and mantissa, then to its bias; 127 is NaN.
__device__ inline float fp8_value(uint32_t x) {
    float magnitude = __uint_as_float((x & 127) << 20) * 0x1p120f;
    if ((x & 127) == 127) magnitude = __uint_as_float(0x7fc00000u);
    return __uint_as_float(__float_as_uint(magnitude) | (x & 128) << 24);
}

// One element of a plain format, at any address.
template <enum dtype kDtype> __device__ inline float plain_element(const uint8_t *p) {
    if (kDtype == DTYPE_F8_E4M3) return fp8_value(p[0]);
    uint32_t bits = p[0] | (uint32_t)p[1] << 8;
    if (kDtype == DTYPE_BF16) return __uint_as_float(bits << 16);
    if (kDtype == DTYPE_F16) return __half2float(__ushort_as_half((unsigned short)bits));
    return __uint_as_float(bits | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

// kAlign: of the rows and their blocks, for the widest loads; all but plain formats also work on
// multiples of 2 with kWide false. kParts: chunks of a block.
template <enum dtype kDtype> struct format;

// Plain formats: a "block" of 16 elements, the runs side by side.
template <enum dtype kDtype, int kSize> struct plain_format {
    static constexpr int kElements = CHUNK, kBytes = CHUNK * kSize, kParts = 1, kDistance = RUN;
    static constexpr int kAlign = 16;
    static constexpr bool kPlain = true;
    __device__ static int first(int) { return 0; }
    template <bool kWide> __device__ static void expand(const uint8_t *p, int, float out[CHUNK]) {
        uint4 words[kSize];
        uint32_t word[4 * kSize];
        for (int i = 0; i < kSize; i++) words[i] = ((const uint4 *)p)[i];
#pragma unroll
        for (int i = 0; i < kSize; i++) {
            word[4 * i] = words[i].x, word[4 * i + 1] = words[i].y;
            word[4 * i + 2] = words[i].z, word[4 * i + 3] = words[i].w;
        }
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            uint32_t bits = word[i * kSize / 4] >> i * kSize % 4 * 8;
            if (kDtype == DTYPE_F32) out[i] = __uint_as_float(bits);
            if (kDtype == DTYPE_BF16) out[i] = __uint_as_float(bits << 16);
            if (kDtype == DTYPE_F16) out[i] = __half2float(__ushort_as_half((unsigned short)bits));
            if (kDtype == DTYPE_F8_E4M3) out[i] = fp8_value(bits & 255);
        }
    }
};
template <> struct format<DTYPE_F32> : plain_format<DTYPE_F32, 4> {};
template <> struct format<DTYPE_F16> : plain_format<DTYPE_F16, 2> {};
template <> struct format<DTYPE_BF16> : plain_format<DTYPE_BF16, 2> {};
template <> struct format<DTYPE_F8_E4M3> : plain_format<DTYPE_F8_E4M3, 1> {};

template <> struct format<DTYPE_Q8_0> {
    static constexpr int kElements = 32, kBytes = 34, kParts = 2, kDistance = RUN, kAlign = 2;
    static constexpr bool kPlain = false;
    __device__ static int first(int part) { return part * CHUNK; }
    template <bool kWide>
    __device__ static void expand(const uint8_t *p, int part, float out[CHUNK]) {
        float scale = half_at(p);
        const uint8_t *byte = p + 2 + part * CHUNK;
        struct eight_bytes low = load_eight_bytes<2>(byte), high = load_eight_bytes<2>(byte + RUN);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            out[i] = __fmul_rn(scale, (float)(int8_t)byte_of(low, i));
            out[RUN + i] = __fmul_rn(scale, (float)(int8_t)byte_of(high, i));
        }
    }
};

// Q4_0, Q4_1, Q5_0 and Q5_1: fp16 scale, with kLow fp16 lowest value, with kFifth a fifth bit of
// each element, then 16 bytes of nibbles: elements i and i + 16.
template <bool kLow, bool kFifth> struct nibble_format {
    static constexpr int kHead = 2 + 2 * kLow + 4 * kFifth, kElements = 32, kBytes = kHead + 16;
    static constexpr int kParts = 2, kDistance = 16;
    static constexpr int kAlign = kBytes % 8 == 0 ? 8 : kBytes % 4 == 0 ? 4 : 2;
    static constexpr bool kPlain = false;
    __device__ static int first(int part) { return part * RUN; }
    template <bool kWide>
    __device__ static void expand(const uint8_t *p, int part, float out[CHUNK]) {
        float scale = half_at(p), low = kLow ? half_at(p + 2) : 0;
        uint32_t fifth = kFifth ? load_four_bytes(p + 2 + 2 * kLow) : 0;
        struct eight_bytes x = load_eight_bytes < kWide ? kAlign : 2 > (p + kHead + part * RUN);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            int q0 = byte_of(x, i) & 15, q1 = byte_of(x, i) >> 4;
            if (kFifth) {
                q0 |= (int)(fifth >> (part * RUN + i) & 1) << 4;
                q1 |= (int)(fifth >> (part * RUN + i + 16) & 1) << 4;
            }
            constexpr int kMiddle = kLow ? 0 : kFifth ? 16 : 8;
            out[i] = kLow ? times_plus(scale, q0, low) : __fmul_rn(scale, (float)(q0 - kMiddle));
            out[RUN + i] =
                kLow ? times_plus(scale, q1, low) : __fmul_rn(scale, (float)(q1 - kMiddle));
        }
    }
};
template <> struct format<DTYPE_Q4_0> : nibble_format<false, false> {};
template <> struct format<DTYPE_Q4_1> : nibble_format<true, false> {};
template <> struct format<DTYPE_Q5_0> : nibble_format<false, true> {};
template <> struct format<DTYPE_Q5_1> : nibble_format<true, true> {};

// k_scale of kernels/k_scale.h, from the three words of the packed scales.
__device__ inline void packed_scale(const uint32_t word[3], int group, int *scale, int *low) {
    int shift = group % 4 * 8;
    int first = (int)(word[0] >> shift & 255), second = (int)(word[1] >> shift & 255);
    int third = (int)(word[2] >> shift & 255);
    *scale = group < 4 ? first & 63 : (third & 15) | first >> 6 << 4;
    *low = group < 4 ? second & 63 : third >> 4 | second >> 6 << 4;
}

// Q4_K and Q5_K: two fp16 factors, 12 bytes of six-bit scales, with kFifth 32 bytes of fifth bits
// (bit `group` of byte i), 128 bytes of nibbles: groups 2g and 2g + 1 of 32 elements.
template <bool kFifth> struct k_format {
    static constexpr int kElements = 256, kBytes = 144 + 32 * kFifth, kParts = 16, kDistance = 32;
    static constexpr int kAlign = 8;
    static constexpr bool kPlain = false;
    __device__ static int first(int part) { return part / 4 * 64 + part % 4 * RUN; }
    template <bool kWide>
    __device__ static void expand(const uint8_t *p, int part, float out[CHUNK]) {
        constexpr int kLoad = kWide ? 8 : 2;
        struct eight_bytes head = load_eight_bytes<kLoad>(p), tail = load_eight_bytes<kLoad>(p + 8);
        const uint32_t packed[3] = {head.word[1], tail.word[0], tail.word[1]};
        float scale = __half2float(__ushort_as_half((unsigned short)(head.word[0] & 0xffff)));
        float low = __half2float(__ushort_as_half((unsigned short)(head.word[0] >> 16)));
        int pair = part / 4, at = part % 4 * RUN;
        struct eight_bytes fifth = {};
        if (kFifth) fifth = load_eight_bytes<kLoad>(p + 16 + at);
        struct eight_bytes x = load_eight_bytes<kLoad>(p + 16 + 32 * kFifth + pair * 32 + at);
#pragma unroll
        for (int high = 0; high < 2; high++) {
            int group = 2 * pair + high, group_scale, group_low;
            packed_scale(packed, group, &group_scale, &group_low);
            float s = __fmul_rn(scale, (float)group_scale), m = __fmul_rn(low, (float)group_low);
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                int q = byte_of(x, i) >> 4 * high & 15;
                if (kFifth) q |= (byte_of(fifth, i) >> group & 1) << 4;
                out[RUN * high + i] = times_plus(s, q, -m);
            }
        }
    }
};
template <> struct format<DTYPE_Q4_K> : k_format<false> {};
template <> struct format<DTYPE_Q5_K> : k_format<true> {};

// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales (one per 16 elements), fp16.
// Quarters q and q + 2 of a half share their nibbles' bytes.
template <> struct format<DTYPE_Q6_K> {
    static constexpr int kElements = 256, kBytes = 210, kParts = 16, kDistance = 64, kAlign = 2;
    static constexpr bool kPlain = false;
    __device__ static int first(int part) {
        return part / 8 * 128 + part / 4 % 2 * 32 + part % 4 * RUN;
    }
    template <bool kWide>
    __device__ static void expand(const uint8_t *p, int part, float out[CHUNK]) {
        int half = part / 8, quarter = part / 4 % 2, at = part % 4 * RUN;
        float scale = half_at(p + 208);
        struct eight_bytes nibbles = load_eight_bytes<2>(p + half * 64 + quarter * 32 + at);
        struct eight_bytes pairs = load_eight_bytes<2>(p + 128 + half * 32 + at);
        const int8_t *scales = (const int8_t *)p + 192 + half * 8 + quarter * 2 + at / 16;
#pragma unroll
        for (int high = 0; high < 2; high++) {
            float s = __fmul_rn(scale, (float)scales[4 * high]);
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                int q = (byte_of(nibbles, i) >> 4 * high & 15) |
                        (byte_of(pairs, i) >> 2 * (quarter + 2 * high) & 3) << 4;
                out[RUN * high + i] = __fmul_rn(s, (float)(q - 32));
            }
        }
    }
};

// Where a chunk of a row begins, in elements; its second run is kDistance later.
template <enum dtype kDtype> __device__ inline int64_t chunk_first(int64_t chunk) {
    return chunk / format<kDtype>::kParts * format<kDtype>::kElements +
           format<kDtype>::first((int)(chunk % format<kDtype>::kParts));
}

// The factor of the block of fp8 that holds element `col` of row `row`.
__device__ inline float weight_scale(const struct weight &w, int64_t row, int64_t col) {
    return w.scale[(w.first_row + row) / WEIGHT_SCALE_BLOCK * w.scale_stride +
                   (w.first_col + col) / WEIGHT_SCALE_BLOCK];
}

// A whole chunk of a row whose blocks are aligned. fp8's runs must not straddle scales: first_col
// is a multiple of RUN.
template <enum dtype kDtype, bool kWide>
__device__ inline void expand_chunk(const struct weight &w, int64_t row, int64_t chunk,
                                    float out[CHUNK]) {
    constexpr int kParts = format<kDtype>::kParts;
    const uint8_t *p =
        (const uint8_t *)w.data + row * w.row_bytes + chunk / kParts * format<kDtype>::kBytes;
    format<kDtype>::template expand<kWide>(p, (int)(chunk % kParts), out);
    if (kDtype != DTYPE_F8_E4M3 || !w.scale) return;
    float low = weight_scale(w, row, chunk * CHUNK);
    float high = weight_scale(w, row, chunk * CHUNK + RUN);
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        out[i] = __fmul_rn(out[i], low);
        out[RUN + i] = __fmul_rn(out[RUN + i], high);
    }
}

// Whether the rows allow the widest loads of their format, and whole chunks.
bool dequantise_is_aligned(const struct weight *weight);

// out[i] = factor * row (row ? row[i] : i) of the weight, expanded to F32 or BF16.
struct expand_args {
    struct weight weight;
    const int32_t *row; // [n_row] or NULL
    int64_t n_row;
    float factor;
    void *out; // [n_row, weight.n_col]
    enum dtype out_dtype;
    int64_t out_stride;
};
enum status cuda_expand(struct backend *backend, const struct expand_args *args);

#endif
