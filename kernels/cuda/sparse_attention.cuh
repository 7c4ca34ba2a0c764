// Forms of attention over selected rows. Where there are too few queries to fill the device, the
// selection of each is divided into parts, whose (out, lse) go to scratch and are merged.
#ifndef HALKA_KERNELS_CUDA_SPARSE_ATTENTION_CUH
#define HALKA_KERNELS_CUDA_SPARSE_ATTENTION_CUH

#include "kernels/cuda/launch.cuh"

struct sparse_parts {
    int n_part;
    float *out; // [n_part, n_query, n_head, value_dim]; the operation's own where n_part is 1
    float *lse; // [n_part, n_query, n_head]
};

// A score in units of ln 2, so that weights are powers of two. The running maximum is rounded up to
// an integer, which makes every rescaling exact.
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Rows [begin, end) of a selection of n that part `part` takes, in tiles of `tile`.
__device__ inline void part_range(int n, int part, int n_part, int tile, int *begin, int *end) {
    int n_tile = (n + tile - 1) / tile, per_part = (n_tile + n_part - 1) / n_part;
    *begin = min(n, part * per_part * tile);
    *end = min(n, (part + 1) * per_part * tile);
}

enum status sparse_attention_plain(struct backend *backend,
                                   const struct sparse_attention_args *args,
                                   const struct sparse_parts *parts);

// Heads that a block of the form for the tensor cores takes; 0 where it does not take the shape.
int sparse_attention_mma_rows(const struct cuda_state *state, const struct attention_args *args);
enum status sparse_attention_mma(struct backend *backend, const struct sparse_attention_args *args,
                                 const struct sparse_parts *parts);

// What the parts need of scratch, at most.
int64_t sparse_attention_scratch_bytes(const struct cuda_state *state,
                                       const struct scratch_shape *s);

#endif
