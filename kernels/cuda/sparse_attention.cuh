// Forms of attention over selected rows. Where there are too few queries to fill the device, the
// selection of each is divided into parts, whose (out, lse) go to scratch and are merged.
#ifndef HALKA_KERNELS_CUDA_SPARSE_ATTENTION_CUH
#define HALKA_KERNELS_CUDA_SPARSE_ATTENTION_CUH

#include "kernels/cuda/attention.cuh"

struct sparse_parts {
    int n_part;
    float *out; // [n_part, n_query, n_head, value_dim]; the operation's own where n_part is 1
    float *lse; // [n_part, n_query, n_head]
    bool merge; // into what out and lse hold; only where n_part is 1
    // [n_part, blocks] that the forms for tensor cores set: a sum of the block is NaN. A row whose
    // score is -inf weighs 0, which does not silence a value of NaN or infinity; the plain form
    // then attends the block again, and alone writes it.
    int *spoiled;
    int rows; // heads of such a block
};

// A score in units of ln 2, so that weights are powers of two. The running maximum is rounded up to
// an integer, which makes every rescaling exact.
constexpr float kLog2e = 1.4426950408889634f;

// Rows [begin, end) of a selection of n that part `part` takes, in tiles of `tile`.
__device__ inline void part_range(int n, int part, int n_part, int tile, int *begin, int *end) {
    int n_tile = (n + tile - 1) / tile, per_part = (n_tile + n_part - 1) / n_part;
    *begin = min(n, part * per_part * tile);
    *end = min(n, (part + 1) * per_part * tile);
}

// What a block of a form for tensor cores works on.
struct sparse_place {
    int64_t query, first_head, kv_head;
    int n_head, begin, end; // heads of this block; its range of the selection
};

static inline int64_t sparse_blocks(const struct attention_args *a, int rows) {
    return a->n_query * a->n_kv_head * divide_up(a->n_head / a->n_kv_head, rows);
}

// Block blockIdx.x of part blockIdx.y, `rows` heads that share a key head.
__device__ inline struct sparse_place sparse_find_place(const struct sparse_attention_args &args,
                                                        int n_part, int rows, int tile) {
    const struct attention_args &a = args.attention;
    int group = a.n_head / a.n_kv_head, row_blocks = (group + rows - 1) / rows;
    int per_query = a.n_kv_head * row_blocks, block = blockIdx.x % per_query;
    struct sparse_place p;
    p.query = blockIdx.x / per_query;
    p.kv_head = block / row_blocks;
    int first = block % row_blocks * rows; // of the group
    p.first_head = p.kv_head * group + first;
    p.n_head = min(rows, group - first);
    part_range(args.n_selected[p.query], blockIdx.y, n_part, tile, &p.begin, &p.end);
    return p;
}

// Heads that a block of a form takes; 0 where it does not take the shape or the device.
typedef int sparse_attention_rows(const struct cuda_state *state,
                                  const struct attention_args *args);
typedef enum status sparse_attention_launch(struct backend *backend,
                                            const struct sparse_attention_args *args,
                                            const struct sparse_parts *parts);
sparse_attention_rows sparse_attention_wgmma_rows, sparse_attention_mma_rows;
sparse_attention_launch sparse_attention_wgmma, sparse_attention_mma, sparse_attention_plain;
enum { SPARSE_TILE = 64 }; // selected rows of a tile of the forms for tensor cores
// Attends again the blocks that are marked in parts->spoiled.
sparse_attention_launch sparse_attention_again;

// The lse that a row holds, for its result to be merged into; -inf where it is not.
__device__ inline float sparse_held(const struct sparse_parts &parts, int64_t row) {
    return parts.merge ? parts.lse[row] : -INFINITY;
}

// Whether rows begin at multiples of 16 bytes: what copies to shared memory take.
static inline bool sparse_is_aligned(const void *p, int64_t stride) {
    return (uintptr_t)p % 16 == 0 && stride % 8 == 0;
}

// What the parts need of scratch, at most.
int64_t sparse_attention_scratch_bytes(const struct cuda_state *state,
                                       const struct scratch_shape *s);

#endif
