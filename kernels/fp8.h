// 8-bit floating point e4m3 ("fn": no infinities, NaN is S.1111.111, largest 448) and the block
// scales that go with it. One definition, bit for bit, for every backend.
// Source: Micikevicius et al., FP8 Formats for Deep Learning, table 1; DeepSeek-V3.2 act_quant.
#ifndef HALKA_KERNELS_FP8_H
#define HALKA_KERNELS_FP8_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FP8_MAX 448.0f
#define FP8_SMALLEST_AMAX 1e-4f // a block of zeros still gets a finite scale

float fp8_to_float(uint8_t x);
// Rounds to nearest even and saturates at +-448; NaN stays NaN.
uint8_t fp8_from_float(float x);

// Scale of a block whose largest magnitude is amax: amax / 448, or the power of two at or above it
// (ue8m0: 8 exponent bits and nothing else).
float fp8_block_scale(float amax, bool power_of_two);

// Quantises n values with one scale: out = fp8(clamp(x / scale)), with the sign of x even where the
// quotient is NaN; returns the scale.
float fp8_quantize_block(const float *x, int64_t n, bool power_of_two, uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif
