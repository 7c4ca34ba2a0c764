#include "kernels/fp8.h"

#include <math.h>
#include <string.h>

enum { MANTISSA_BITS = 3, BIAS = 7, SMALLEST_EXPONENT = 1 - BIAS };

float fp8_to_float(uint8_t x) {
    int exponent = x >> MANTISSA_BITS & 15, mantissa = x & 7;
    if (exponent == 15 && mantissa == 7) return copysignf(NAN, x & 0x80 ? -1.0f : 1.0f);
    float magnitude = exponent == 0
                          ? ldexpf((float)mantissa, SMALLEST_EXPONENT - MANTISSA_BITS)
                          : ldexpf((float)(8 + mantissa), exponent - BIAS - MANTISSA_BITS);
    return x & 0x80 ? -magnitude : magnitude;
}

uint8_t fp8_from_float(float x) {
    uint8_t sign = signbit(x) ? 0x80 : 0;
    float magnitude = fabsf(x);
    if (isnan(x)) return sign | 0x7f;
    if (magnitude >= FP8_MAX) return sign | 0x7e;
    // The grid's spacing at this magnitude; below the smallest normal it no longer shrinks.
    int exponent = SMALLEST_EXPONENT;
    if (magnitude >= ldexpf(1.0f, SMALLEST_EXPONENT)) exponent = ilogbf(magnitude);
    int steps = (int)nearbyintf(ldexpf(magnitude, MANTISSA_BITS - exponent)); // nearest even
    // steps is 0..7 (subnormal), 8..15, or 16 when it rounded up to the next binade: the code is
    // the same sum in each case, for a full mantissa carries into the exponent field.
    return sign | (uint8_t)(((exponent - SMALLEST_EXPONENT) << MANTISSA_BITS) + steps);
}

float fp8_block_scale(float amax, bool power_of_two) {
    float scale = fmaxf(amax, FP8_SMALLEST_AMAX) / FP8_MAX;
    if (!power_of_two) return scale;
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    bits = ((bits >> 23) + ((bits & 0x7fffff) != 0)) << 23;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

float fp8_quantize_block(const float *x, int64_t n, bool power_of_two, uint8_t *out) {
    float amax = 0;
    for (int64_t i = 0; i < n; i++) amax = fmaxf(amax, fabsf(x[i]));
    float scale = fp8_block_scale(amax, power_of_two);
    for (int64_t i = 0; i < n; i++)
        out[i] = fp8_from_float(copysignf(fabsf(x[i]) / scale, x[i])); // inf / inf: NaN with a sign
    return scale;
}
