// What the indexer's queries and keys go through: the Hadamard rotation and fp8 with block scales,
// bit for bit as kernels/fp8.c. A warp takes a row or a block of one.
#include "kernels/cuda/launch.cuh"
#include "kernels/fp8.h"

namespace {

constexpr int kThreads = 128, kWarps = kThreads / WARP;
constexpr int kHadamardColumns = 256;

// The butterflies of Sylvester's order, in the order of kernels/reference: sums round the same way.
__global__ void __launch_bounds__(kThreads)
    rotate_rows(float *x, int64_t n_row, int n_col, float scale) {
    __shared__ float rows[kWarps][kHadamardColumns];
    int lane = threadIdx.x % WARP;
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    if (row >= n_row) return;
    float *y = rows[threadIdx.x / WARP];
    x += row * n_col;
    for (int i = lane; i < n_col; i += WARP) y[i] = x[i];
    for (int half = 1; half < n_col; half *= 2) {
        __syncwarp();
        for (int pair = lane; pair < n_col / 2; pair += WARP) {
            int i = pair / half * 2 * half + pair % half;
            float a = y[i], b = y[i + half];
            y[i] = a + b;
            y[i + half] = a - b;
        }
    }
    __syncwarp();
    for (int i = lane; i < n_col; i += WARP) x[i] = y[i] * scale;
}

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

enum status cuda_hadamard(struct backend *backend, const struct hadamard_args *args) {
    if (args->n_col > kHadamardColumns)
        FAIL(ERR_INTERNAL, "a Hadamard transform of %d elements; at most %d", args->n_col,
             kHadamardColumns);
    LAUNCH(backend, rotate_rows, (unsigned)divide_up(args->n_row, kWarps), kThreads, 0, args->x,
           args->n_row, args->n_col, 1.0f / sqrtf((float)args->n_col));
    return OK;
}

enum status cuda_quantize(struct backend *backend, const struct quantize_args *args) {
    int64_t n_block = args->n_row * (args->n_col / args->block);
    LAUNCH(backend, quantize_blocks, (unsigned)divide_up(n_block, kWarps), kThreads, 0, *args);
    return OK;
}
