// Element and block formats of tensors, and conversions between single elements.
// Block formats are GGUF's: a row is a sequence of blocks, each with its own scales.
#ifndef HALKA_KERNELS_DTYPE_H
#define HALKA_KERNELS_DTYPE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t bf16; // bit pattern of a bfloat16

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_Q8_0,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_F8_E4M3, // see fp8.h; scales are kept beside it
    N_DTYPE,
};

struct dtype_info {
    const char *name;   // "F32", "Q4_1", ...
    int block_elements; // 1 for plain formats
    int block_bytes;
};
extern const struct dtype_info dtype_info[N_DTYPE];

// Bytes of `n` elements; n must be a multiple of the block's elements.
static inline int64_t dtype_bytes(enum dtype dtype, int64_t n) {
    return n / dtype_info[dtype].block_elements * dtype_info[dtype].block_bytes;
}
static inline bool dtype_is_block(enum dtype dtype) {
    return dtype_info[dtype].block_elements > 1;
}

static inline float bf16_to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

// Round to nearest even; NaN stays NaN.
static inline bf16 bf16_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)(bits >> 16 | 0x40);
    return (bf16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

float f16_to_float(uint16_t x);
uint16_t f16_from_float(float x); // round to nearest even

// Expands `n` elements of any format, or rounds fp32 to a plain one (F32, F16, BF16, F8_E4M3).
// Plain C.
void dtype_to_float(enum dtype dtype, const void *in, int64_t n, float *out);
void dtype_from_float(enum dtype dtype, const float *in, int64_t n, void *out);

#ifdef __cplusplus
}
#endif
#endif
