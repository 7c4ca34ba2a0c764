// Formats and their expansion, plain C. Block layouts follow the GGUF specification (ggml): fp16
// scales first (Q6_K: last), little-endian, low nibbles before high ones within a group.
#include "kernels/dtype.h"

#include <stddef.h>

#include "kernels/fp8.h"
#include "kernels/k_scale.h"

const struct dtype_info dtype_info[N_DTYPE] = {
    [DTYPE_F32] = {"F32", 1, 4},       [DTYPE_F16] = {"F16", 1, 2},
    [DTYPE_BF16] = {"BF16", 1, 2},     [DTYPE_Q8_0] = {"Q8_0", 32, 34},
    [DTYPE_Q4_0] = {"Q4_0", 32, 18},   [DTYPE_Q4_1] = {"Q4_1", 32, 20},
    [DTYPE_Q5_0] = {"Q5_0", 32, 22},   [DTYPE_Q5_1] = {"Q5_1", 32, 24},
    [DTYPE_Q4_K] = {"Q4_K", 256, 144}, [DTYPE_Q5_K] = {"Q5_K", 256, 176},
    [DTYPE_Q6_K] = {"Q6_K", 256, 210}, [DTYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
};

float f16_to_float(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t magnitude = x & 0x7fffu;
    float y;
    if (magnitude >= 0x0400u && magnitude < 0x7c00u) {
        uint32_t bits = sign | ((magnitude << 13) + (112u << 23));
        memcpy(&y, &bits, sizeof y);
        return y;
    }
    if (magnitude >= 0x7c00u) {
        uint32_t bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
        memcpy(&y, &bits, sizeof y);
        return y;
    }
    y = (float)magnitude * 0x1p-24f; // subnormal or zero
    return sign ? -y : y;
}

uint16_t f16_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); // rounds to 65536 or more
    if (magnitude >= 0x38800000u) {                                  // normal in fp16
        magnitude += 0xfffu + (magnitude >> 13 & 1);
        return (uint16_t)(sign | (magnitude - (112u << 23)) >> 13);
    }
    // Adding 0.5 leaves the multiple of 2^-24, rounded to nearest even, in the low bits.
    float absolute, sum;
    memcpy(&absolute, &magnitude, sizeof absolute);
    sum = absolute + 0.5f;
    memcpy(&bits, &sum, sizeof bits);
    return (uint16_t)(sign | (bits - 0x3f000000u));
}

static float f16_at(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return f16_to_float(bits);
}

static void expand_q8_0(const uint8_t *p, float *out) {
    float scale = f16_at(p);
    for (int i = 0; i < 32; i++) out[i] = scale * (float)(int8_t)p[2 + i];
}

static void expand_q4_0(const uint8_t *p, float *out) {
    float scale = f16_at(p);
    for (int i = 0; i < 16; i++) {
        out[i] = scale * (float)((p[2 + i] & 15) - 8);
        out[i + 16] = scale * (float)((p[2 + i] >> 4) - 8);
    }
}

static void expand_q4_1(const uint8_t *p, float *out) {
    float scale = f16_at(p), low = f16_at(p + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = scale * (float)(p[4 + i] & 15) + low;
        out[i + 16] = scale * (float)(p[4 + i] >> 4) + low;
    }
}

// The 32 fifth bits of a Q5_0 or Q5_1 block, element i in bit i.
static uint32_t fifth_bits(const uint8_t *p) {
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}

static void expand_q5_0(const uint8_t *p, float *out) {
    float scale = f16_at(p);
    uint32_t high = fifth_bits(p + 2);
    for (int i = 0; i < 16; i++) {
        int q0 = (p[6 + i] & 15) | (int)(high >> i & 1) << 4;
        int q1 = (p[6 + i] >> 4) | (int)(high >> (i + 16) & 1) << 4;
        out[i] = scale * (float)(q0 - 16);
        out[i + 16] = scale * (float)(q1 - 16);
    }
}

static void expand_q5_1(const uint8_t *p, float *out) {
    float scale = f16_at(p), low = f16_at(p + 2);
    uint32_t high = fifth_bits(p + 4);
    for (int i = 0; i < 16; i++) {
        int q0 = (p[8 + i] & 15) | (int)(high >> i & 1) << 4;
        int q1 = (p[8 + i] >> 4) | (int)(high >> (i + 16) & 1) << 4;
        out[i] = scale * (float)q0 + low;
        out[i + 16] = scale * (float)q1 + low;
    }
}

// Groups of 32: groups 2g and 2g+1 are the low and high nibbles of the same 32 bytes. `fifth`
// (Q5_K, else NULL) holds bit `group` of byte i for element i of the group.
static void expand_k(const uint8_t *p, const uint8_t *fifth, const uint8_t *nibble, float *out) {
    float scale = f16_at(p), low = f16_at(p + 2);
    for (int group = 0; group < 8; group++) {
        int group_scale, group_low;
        k_scale(p + 4, group, &group_scale, &group_low);
        float s = scale * (float)group_scale, m = low * (float)group_low;
        const uint8_t *byte = nibble + group / 2 * 32;
        int shift = group % 2 * 4;
        for (int i = 0; i < 32; i++) {
            int q = byte[i] >> shift & 15;
            if (fifth) q |= (fifth[i] >> group & 1) << 4;
            out[group * 32 + i] = s * (float)q - m;
        }
    }
}

static void expand_q4_k(const uint8_t *p, float *out) {
    expand_k(p, NULL, p + 16, out);
}

static void expand_q5_k(const uint8_t *p, float *out) {
    expand_k(p, p + 16, p + 48, out);
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales (one per 16 elements), fp16.
static void expand_q6_k(const uint8_t *p, float *out) {
    const uint8_t *low = p, *high = p + 128, *scales = p + 192;
    float scale = f16_at(p + 208);
    for (int half = 0; half < 2; half++, low += 64, high += 32, scales += 8, out += 128) {
        for (int quarter = 0; quarter < 4; quarter++) {
            const uint8_t *byte = low + quarter % 2 * 32;
            int shift = quarter / 2 * 4;
            for (int i = 0; i < 32; i++) {
                int q = (byte[i] >> shift & 15) | (high[i] >> 2 * quarter & 3) << 4;
                float s = scale * (float)(int8_t)scales[quarter * 2 + i / 16];
                out[quarter * 32 + i] = s * (float)(q - 32);
            }
        }
    }
}

static void (*const expand_block[N_DTYPE])(const uint8_t *, float *) = {
    [DTYPE_Q8_0] = expand_q8_0, [DTYPE_Q4_0] = expand_q4_0, [DTYPE_Q4_1] = expand_q4_1,
    [DTYPE_Q5_0] = expand_q5_0, [DTYPE_Q5_1] = expand_q5_1, [DTYPE_Q4_K] = expand_q4_k,
    [DTYPE_Q5_K] = expand_q5_k, [DTYPE_Q6_K] = expand_q6_k,
};

void dtype_to_float(enum dtype dtype, const void *in, int64_t n, float *out) {
    const uint8_t *p = in;
    uint16_t bits;
    switch (dtype) {
    case DTYPE_F32:
        memcpy(out, in, (size_t)n * sizeof *out);
        break;
    case DTYPE_F16:
        for (int64_t i = 0; i < n; i++) out[i] = f16_at(p + 2 * i);
        break;
    case DTYPE_BF16:
        for (int64_t i = 0; i < n; i++) {
            memcpy(&bits, p + 2 * i, sizeof bits);
            out[i] = bf16_to_float(bits);
        }
        break;
    case DTYPE_F8_E4M3:
        for (int64_t i = 0; i < n; i++) out[i] = fp8_to_float(p[i]);
        break;
    default:
        for (int64_t i = 0; i < n; i += dtype_info[dtype].block_elements) {
            expand_block[dtype](p, out + i);
            p += dtype_info[dtype].block_bytes;
        }
    }
}

void dtype_from_float(enum dtype dtype, const float *in, int64_t n, void *out) {
    if (dtype == DTYPE_F32) {
        memmove(out, in, (size_t)n * sizeof *in);
        return;
    }
    uint8_t *p = out;
    if (dtype == DTYPE_F8_E4M3) {
        for (int64_t i = 0; i < n; i++) p[i] = fp8_from_float(in[i]);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits = dtype == DTYPE_F16 ? f16_from_float(in[i]) : bf16_from_float(in[i]);
        memcpy(p + 2 * i, &bits, sizeof bits);
    }
}
