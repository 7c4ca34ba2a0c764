// fp8 e4m3 (kernels/fp8.h) on the device, exactly.
#ifndef HALKA_KERNELS_CUDA_FP8_CUH
#define HALKA_KERNELS_CUDA_FP8_CUH

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>

__device__ inline float2 fp8_pair_to_float(uint16_t pair) {
    __half2_raw half = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
    return __half22float2(__half2(half));
}

// Two neighbouring elements as two of bf16: e4m3 has fewer bits of either kind.
__device__ inline uint32_t fp8_pair_to_bf16(uint16_t pair) {
    float2 x = fp8_pair_to_float(pair);
    __nv_bfloat162 y = __floats2bfloat162_rn(x.x, x.y);
    return *(uint32_t *)&y;
}

#endif
