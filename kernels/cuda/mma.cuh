// Tensor-core products of one warp and asynchronous copies to shared memory: PTX of sm_80, each in
// one function. Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16".
#ifndef HALKA_KERNELS_CUDA_MMA_CUH
#define HALKA_KERNELS_CUDA_MMA_CUH

#include <stdint.h>

// d[16, 8] += a[16, 16] b[16, 8], bf16 inputs (a row-major, b column-major), fp32 sums.
__device__ inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrix_x4(uint32_t r[4], const void *shared) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ inline void load_matrix_x4_transposed(uint32_t r[4], const void *shared) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// 2^x with a relative error of 2^-22; 0 below 2^-126.
__device__ inline float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// 16 bytes from global to shared memory; zeros where `valid` is false (nothing is read then).
__device__ inline void copy_async_16(void *shared, const void *global, bool valid) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global),
                 "r"(bytes)
                 : "memory");
}
// Likewise; the second-level cache reads the 256 bytes that they are of, for what is all read soon.
__device__ inline void copy_async_16_of_256(void *shared, const void *global, bool valid) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global),
                 "r"(bytes)
                 : "memory");
}
// Likewise 4 bytes.
__device__ inline void copy_async_4(void *shared, const void *global, bool valid) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(at), "l"(global), "r"(bytes)
                 : "memory");
}
__device__ inline void copy_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most N groups of this thread are under way.
template <int N> __device__ inline void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

#endif
