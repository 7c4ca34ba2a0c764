// Launching kernels, and the few device functions that every kernel file uses.
#ifndef HALKA_KERNELS_CUDA_LAUNCH_CUH
#define HALKA_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/cuda.cuh"

// Queues KERNEL on the compute stream and returns from the caller when that fails. A template's
// name with commas goes into parentheses. An empty grid is not launched.
#define LAUNCH(backend, kernel, grid, block, shared_bytes, ...)                                    \
    do {                                                                                           \
        dim3 grid_(grid), block_(block);                                                           \
        if ((int64_t)grid_.x * grid_.y * grid_.z == 0) break;                                      \
        kernel<<<grid_, block_, shared_bytes, cuda_state(backend)->compute>>>(__VA_ARGS__);        \
        TRY_CUDA(cudaGetLastError());                                                              \
    } while (0)
// Lets a kernel have so much dynamic shared memory in a block as not every device has.
template <typename Kernel>
enum status reserve_shared(const struct backend *backend, Kernel kernel, int bytes) {
    int most = cuda_state(backend)->shared_bytes;
    if (bytes > most)
        FAIL(ERR_CONFIG,
             "rows so long need %d bytes of shared memory in a block, and this GPU has %d: set "
             "run.backend to cpu",
             bytes, most);
    TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    return OK;
}
// Dynamic shared memory of a kernel, 16-byte aligned.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

enum { WARP = 32 };
#define FULL_WARP 0xffffffffu

static inline int64_t divide_up(int64_t n, int64_t by) {
    return (n + by - 1) / by;
}

__device__ inline float load_float(const float *x) {
    return *x;
}
__device__ inline float load_float(const __nv_bfloat16 *x) {
    return __bfloat162float(*x);
}
__device__ inline void store_float(float *to, float x) {
    *to = x;
}
__device__ inline void store_float(__nv_bfloat16 *to, float x) {
    *to = __float2bfloat16_rn(x);
}

__device__ inline float warp_sum(float x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(FULL_WARP, x, lane);
    return x;
}
__device__ inline float warp_max(float x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, lane));
    return x;
}
// `shared` holds a float for each warp. Every thread of the block calls it and gets the result.
__device__ inline float block_sum(float x, float *shared) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP,
        n_warp = (blockDim.x + WARP - 1) / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < n_warp; i++) x += shared[i];
    return x;
}
__device__ inline float block_max(float x, float *shared) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP,
        n_warp = (blockDim.x + WARP - 1) / WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < n_warp; i++) x = fmaxf(x, shared[i]);
    return x;
}

#endif
