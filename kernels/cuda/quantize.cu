// Rows to fp8 with block scales, bit for bit as kernels/fp8.c. A warp takes a block of a row.
#include "kernels/cuda/launch.cuh"
#include "kernels/fp8.h"

namespace {

constexpr int kThreads = 128, kWarps = kThreads / WARP;

__device__ float block_scale(float amax, bool power_of_two) {
    float scale = fmaxf(amax, FP8_SMALLEST_AMAX) / FP8_MAX;
    if (!power_of_two) return scale;
    uint32_t bits = __float_as_uint(scale);
    return __uint_as_float(((bits >> 23) + ((bits & 0x7fffff) != 0)) << 23);
}

// fp8_from_float(x / scale): nearest even, saturating. A NaN keeps its sign, which the device's
// division would drop.
__device__ uint8_t round_to_fp8(float x, float scale) {
    constexpr int kMantissaBits = 3, kSmallestExponent = -6;
    uint32_t sign = __float_as_uint(x) >> 24 & 0x80;
    float magnitude = __fdiv_rn(fabsf(x), scale);
    uint32_t bits = __float_as_uint(magnitude);
    if (isnan(magnitude)) return (uint8_t)(sign | 0x7f);
    if (magnitude >= FP8_MAX) return (uint8_t)(sign | 0x7e);
    int exponent = max((int)(bits >> 23 & 255) - 127, kSmallestExponent);
    float grid = __uint_as_float((uint32_t)(127 + kMantissaBits - exponent) << 23);
    int steps = __float2int_rn(magnitude * grid);
    return (uint8_t)(sign | (uint32_t)(((exponent - kSmallestExponent) << kMantissaBits) + steps));
}

__global__ void __launch_bounds__(kThreads) quantize_blocks(struct quantize_args a) {
    int lane = threadIdx.x % WARP;
    int64_t block = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    if (block >= a.n_row * (a.n_col / a.block)) return;
    const float *x = a.x + block * a.block;
    uint8_t *out = a.out + block * a.block;
    float amax = 0;
    for (int i = lane; i < a.block; i += WARP) amax = fmaxf(amax, fabsf(x[i]));
    float scale = block_scale(warp_max(amax), a.power_of_two);
    for (int i = lane; i < a.block; i += WARP) out[i] = round_to_fp8(x[i], scale);
    if (lane == 0) a.scale[block] = scale;
}

} // namespace

enum status cuda_quantize(struct backend *backend, const struct quantize_args *args) {
    int64_t n_block = args->n_row * (args->n_col / args->block);
    LAUNCH(backend, quantize_blocks, (unsigned)divide_up(n_block, kWarps), kThreads, 0, *args);
    return OK;
}
