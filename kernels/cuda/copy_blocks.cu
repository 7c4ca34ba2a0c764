// Many rectangles in one launch: what decode packs for an exchange or unpacks after it, a piece a
// rank. Grid: parts of the longest row along x, rectangles along y, rows along z; a thread takes
// units of four numbers, or of one where rows do not begin at multiples of 16 bytes.
#include <algorithm>

#include "kernels/cuda/launch.cuh"

namespace {

constexpr int kThreads = 256, kVector = 4;
constexpr int kBlocks = 40; // of a launch: their table is a parameter of the kernel
constexpr int64_t kMostParts = 1024, kMostRows = 1024; // of the grid

struct blocks {
    struct block_copy block[kBlocks];
};
static_assert(sizeof(struct blocks) <= 4096, "more than the parameters of a kernel");

template <typename Unit> __device__ void copy_units(const struct block_copy &b) {
    constexpr int kSize = sizeof(Unit) / sizeof(float);
    for (int64_t row = blockIdx.z; row < b.n_row; row += gridDim.z) {
        const Unit *from = (const Unit *)(b.from + row * b.from_stride);
        Unit *to = (Unit *)(b.to + row * b.to_stride);
        for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < b.n_col / kSize;
             i += (int64_t)gridDim.x * kThreads)
            to[i] = from[i];
    }
}

__device__ bool is_aligned(const struct block_copy &b) {
    bool rows = b.n_row == 1 || (b.from_stride | b.to_stride) % kVector == 0;
    return rows && b.n_col % kVector == 0 && ((uintptr_t)b.from | (uintptr_t)b.to) % 16 == 0;
}

__global__ void __launch_bounds__(kThreads) copy_each(struct blocks all) {
    const struct block_copy &b = all.block[blockIdx.y];
    if (is_aligned(b))
        copy_units<float4>(b);
    else
        copy_units<float>(b);
}

} // namespace

enum status cuda_copy_blocks(struct backend *backend, const struct copy_blocks_args *args) {
    for (int done = 0; done < args->n_block;) {
        struct blocks some = {};
        unsigned n = 0;
        int64_t n_col = 0, n_row = 0; // most of any
        for (; done < args->n_block && n < kBlocks; done++) {
            const struct block_copy *block = &args->block[done];
            if (block->n_row < 1 || block->n_col < 1) continue;
            some.block[n++] = *block;
            n_col = std::max(n_col, block->n_col);
            n_row = std::max(n_row, block->n_row);
        }
        int64_t n_part = std::min(divide_up(n_col, kVector * kThreads), kMostParts);
        dim3 grid((unsigned)n_part, n, (unsigned)std::min(n_row, kMostRows));
        LAUNCH(backend, copy_each, grid, kThreads, 0, some);
    }
    return OK;
}
