// Products of a warpgroup, barriers and tensor copies of sm_90a: PTX, each in one function.
// Operands in shared memory lie in panels of 64 bf16 columns, rows of 128 bytes, whose 16-byte
// chunk c of row r is at chunk c ^ (r % 8); a panel begins at a multiple of 1024 bytes. PTX ISA,
// "Asynchronous Warpgroup Level Matrix Multiply-Accumulate".
#ifndef HALKA_KERNELS_CUDA_WGMMA_CUH
#define HALKA_KERNELS_CUDA_WGMMA_CUH

#include <cuda.h>
#include <stdint.h>

#include "kernels/cuda/launch.cuh"

__device__ inline uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// Swizzle of 128 bytes; 1024 bytes from 8 rows to the next 8. Rows along the sums' rows or columns
// (k within a row): panel_bytes is not used, and 32 bytes lead to the next 16 of k. Rows along k:
// panel_bytes from one panel of 64 columns to the next, 2048 bytes to the next 16 of k.
__device__ inline uint64_t wgmma_operand(uint32_t address, uint32_t panel_bytes) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(panel_bytes >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// The same address: operands made of it are computed where they are used, not kept in registers.
__device__ inline uint32_t wgmma_recompute(uint32_t address) {
    asm volatile("" : "+r"(address));
    return address;
}

// Registers that earlier instructions wrote are seen by the products that follow.
__device__ inline void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ inline void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Waits until at most N groups are under way.
template <int N> __device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
// Tells the compiler that products under way, or a wait for them, concern these sums.
template <int N> __device__ inline void wgmma_hold(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[n][i])::"memory");
}
// Waits until at most N groups are under way; `d` are the sums of those that ended.
template <int N, int N_BLOCK> __device__ inline void wgmma_finish(float (&d)[N_BLOCK][4]) {
    wgmma_wait<N>();
    wgmma_hold(d);
}

#define HALKA_D(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])

// d[64, 128] = or += a[64, 16] b[128, 16]^T, both in shared memory.
__device__ inline void wgmma_shared(float (&d)[16][4], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                 "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
                 : HALKA_D(0), HALKA_D(1), HALKA_D(2), HALKA_D(3), HALKA_D(4), HALKA_D(5),
                   HALKA_D(6), HALKA_D(7), HALKA_D(8), HALKA_D(9), HALKA_D(10), HALKA_D(11),
                   HALKA_D(12), HALKA_D(13), HALKA_D(14), HALKA_D(15)
                 : "l"(a), "l"(b), "r"((int)add));
}

// d[64, 64] = or += a[64, 16] b[64, 16]^T, both in shared memory.
__device__ inline void wgmma_shared(float (&d)[8][4], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : HALKA_D(0), HALKA_D(1), HALKA_D(2), HALKA_D(3), HALKA_D(4), HALKA_D(5),
                   HALKA_D(6), HALKA_D(7)
                 : "l"(a), "l"(b), "r"((int)add));
}

// d[64, 128] = or += a[64, 16] b[16, 128], a in registers, rows of b along k.
__device__ inline void wgmma_registers(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b,
                                       bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
                 : HALKA_D(0), HALKA_D(1), HALKA_D(2), HALKA_D(3), HALKA_D(4), HALKA_D(5),
                   HALKA_D(6), HALKA_D(7), HALKA_D(8), HALKA_D(9), HALKA_D(10), HALKA_D(11),
                   HALKA_D(12), HALKA_D(13), HALKA_D(14), HALKA_D(15)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

// d[64, 64] = or += a[64, 16] b[16, 64], a in registers, rows of b along k.
__device__ inline void wgmma_registers(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b,
                                       bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
                 : HALKA_D(0), HALKA_D(1), HALKA_D(2), HALKA_D(3), HALKA_D(4), HALKA_D(5),
                   HALKA_D(6), HALKA_D(7)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

// d[64, 256] = or += a[64, 16] b[16, 256], a in registers, rows of b along k.
__device__ inline void wgmma_registers(float (&d)[32][4], const uint32_t (&a)[4], uint64_t b,
                                       bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
                 "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
                 "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "
                 "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "
                 "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "
                 "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "
                 "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
                 "}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}\n"
                 : HALKA_D(0), HALKA_D(1), HALKA_D(2), HALKA_D(3), HALKA_D(4), HALKA_D(5),
                   HALKA_D(6), HALKA_D(7), HALKA_D(8), HALKA_D(9), HALKA_D(10), HALKA_D(11),
                   HALKA_D(12), HALKA_D(13), HALKA_D(14), HALKA_D(15), HALKA_D(16), HALKA_D(17),
                   HALKA_D(18), HALKA_D(19), HALKA_D(20), HALKA_D(21), HALKA_D(22), HALKA_D(23),
                   HALKA_D(24), HALKA_D(25), HALKA_D(26), HALKA_D(27), HALKA_D(28), HALKA_D(29),
                   HALKA_D(30), HALKA_D(31)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

// d[64, 64] = or += a[64, 16] b[64, 16]^T, a in registers, k within a row of b.
__device__ inline void wgmma_registers_rows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b,
                                            bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
                 : HALKA_D(0), HALKA_D(1), HALKA_D(2), HALKA_D(3), HALKA_D(4), HALKA_D(5),
                   HALKA_D(6), HALKA_D(7)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
// Likewise d[64, 32].
__device__ inline void wgmma_registers_rows(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b,
                                            bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
                 "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
                 : HALKA_D(0), HALKA_D(1), HALKA_D(2), HALKA_D(3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
#undef HALKA_D

// mbarriers in shared memory. A phase ends when `count` threads have arrived and the bytes that
// were announced have come; phases alternate in parity from 0.
__device__ inline void mbarrier_init(uint64_t *barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
                 "r"(count)
                 : "memory");
}
__device__ inline void mbarrier_fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ inline void mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier))
                 : "memory");
}
// One arrival of each warp.
__device__ inline void mbarrier_arrive_warp(uint64_t *barrier) {
    if (threadIdx.x % WARP == 0) mbarrier_arrive(barrier);
}
// Arrives and announces bytes of tensor copies.
__device__ inline void mbarrier_expect(uint64_t *barrier, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}
// Waits for the end of the phase of this parity.
__device__ inline void mbarrier_wait(uint64_t *barrier, int parity) {
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra done;\nbra again;\ndone:\n}\n" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// Arrives at the barrier in that place of a block of the cluster.
__device__ inline void mbarrier_arrive_at(uint64_t *barrier, int block) {
    asm volatile("{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [at];\n}\n" ::"r"(shared_address(barrier)),
                 "r"(block)
                 : "memory");
}

// Arrives once this thread's copies to shared memory so far (copy_async_16) have come.
__device__ inline void mbarrier_arrive_copies(uint64_t *barrier) {
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(shared_address(barrier))
        : "memory");
}

// Rows of keys in memory as tensor_copy_3d takes them, at (column, head, key): n_key rows of
// n_kv_head times n_col bf16 elements, `stride` elements apart, in panels of key_tile keys of a
// head. tensor_map.cu.
struct key_rows {
    const void *base;
    int64_t stride;
    int n_key, n_kv_head, n_col;
};
enum status tensor_map_keys(const struct key_rows *rows, int key_tile, CUtensorMap *out);

// A box of a tensor of three dimensions to shared memory, in the map's swizzle; zeros outside.
__device__ inline void tensor_copy_3d(void *shared, const CUtensorMap *map, uint64_t *barrier,
                                      int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(shared_address(shared)),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
                 : "memory");
}
// The same place of every block of a cluster whose bit is in `blocks` gets the box, and its barrier
// the bytes.
__device__ inline void tensor_copy_3d_to(uint16_t blocks, void *shared, const CUtensorMap *map,
                                         uint64_t *barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;\n" ::"r"(shared_address(shared)),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier)), "h"(blocks)
        : "memory");
}
// Contiguous bytes, a multiple of 16, at addresses that are.
__device__ inline void bulk_copy(void *shared, const void *global, int bytes, uint64_t *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];\n" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
// Stores of this thread to shared memory are seen by products and tensor copies that come after.
__device__ inline void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// All threads of a cluster arrive, then wait for those that have not returned.
__device__ inline void cluster_arrive() {
    asm volatile("barrier.cluster.arrive;\n" ::: "memory");
}
__device__ inline void cluster_wait() {
    asm volatile("barrier.cluster.wait;\n" ::: "memory");
}

// Barriers between warps, 1 to 15; a number of threads syncs, or arrives without waiting.
__device__ inline void barrier_sync(int barrier, int n_thread) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(n_thread) : "memory");
}
__device__ inline void barrier_arrive(int barrier, int n_thread) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(n_thread) : "memory");
}

// Moves registers between the warpgroups of a block: multiples of 8, all four warps call it.
template <int N> __device__ inline void registers_raise() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N> __device__ inline void registers_lower() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}

#endif
