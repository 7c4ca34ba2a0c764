// fp8 e4m3 to fp32, exactly: a plain loop that the compiler vectorises for the including file.
#ifndef HALKA_KERNELS_CPU_INDEX_FP8_H
#define HALKA_KERNELS_CPU_INDEX_FP8_H

#include "kernels/fp8.h"

static void expand_fp8(const uint8_t *x, int64_t n, void *out) {
    float *y = (float *)out;
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = x[i] & 0x7fu, sign = (x[i] & 0x80u) << 24;
        uint32_t normal = (magnitude << 20) + (120u << 23), bits;
        float subnormal = (float)(int32_t)magnitude * 0x1p-9f;
        memcpy(&bits, &subnormal, sizeof bits);
        bits = magnitude < 8 ? bits : normal;
        bits = magnitude == 0x7f ? 0x7fc00000u : bits;
        bits |= sign;
        memcpy(&y[i], &bits, sizeof bits);
    }
}

#endif
