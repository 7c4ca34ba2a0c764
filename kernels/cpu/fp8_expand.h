// fp8 e4m3 to fp32, exactly: a plain loop that the compiler vectorises for the including file.
#ifndef HALKA_KERNELS_CPU_FP8_EXPAND_H
#define HALKA_KERNELS_CPU_FP8_EXPAND_H

#include <stdint.h>
#include <string.h>

static void expand_fp8(const uint8_t *restrict x, int64_t n, void *restrict out) {
    uint32_t *restrict y = (uint32_t *)out;
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = x[i] & 0x7fu, sign = (x[i] & 0x80u) << 24, subnormal;
        float value = (float)(int32_t)magnitude * 0x1p-9f;
        memcpy(&subnormal, &value, sizeof subnormal);
        // Masks instead of choices: branches would keep the loop from being vectorised.
        uint32_t is_subnormal = -(uint32_t)(magnitude < 8), is_nan = -(uint32_t)(magnitude == 0x7f);
        uint32_t normal = (magnitude << 20) + (120u << 23);
        y[i] =
            sign | (is_nan & 0x7fc00000u) | (is_subnormal & subnormal) | (~is_subnormal & normal);
    }
}

#endif
