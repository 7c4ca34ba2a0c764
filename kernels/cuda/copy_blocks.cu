// Many rectangles in one launch: what decode packs for an exchange or unpacks after it, a piece a
// rank. Grid: parts of the largest one along x, rectangles along y; a thread takes units of four
// numbers, or of one where rows do not begin at multiples of 16 bytes.
#include <algorithm>

#include "kernels/cuda/launch.cuh"

namespace {

constexpr int kThreads = 256, kVector = 4;
constexpr int kBlocks = 40; // of a launch: their table is a parameter of the kernel
constexpr int64_t kMostParts = 1024;

struct blocks {
    struct block_copy block[kBlocks];
};
static_assert(sizeof(struct blocks) <= 4096, "more than the parameters of a kernel");

template <typename Unit> __device__ void copy_units(const struct block_copy &b) {
    constexpr int kSize = sizeof(Unit) / sizeof(float);
    int64_t of_row = b.n_col / kSize, n = b.n_row * of_row;
    for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * kThreads) {
        int64_t row = b.n_row == 1 ? 0 : i / of_row, column = (i - row * of_row) * kSize;
        *(Unit *)(b.to + row * b.to_stride + column) =
            *(const Unit *)(b.from + row * b.from_stride + column);
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
        int64_t largest = 0;
        for (; done < args->n_block && n < kBlocks; done++) {
            const struct block_copy *block = &args->block[done];
            if (block->n_row < 1 || block->n_col < 1) continue;
            some.block[n++] = *block;
            largest = std::max(largest, block->n_row * block->n_col);
        }
        int64_t parts = std::min(divide_up(largest, kVector * kThreads), kMostParts);
        LAUNCH(backend, copy_each, dim3((unsigned)parts, n), kThreads, 0, some);
    }
    return OK;
}
