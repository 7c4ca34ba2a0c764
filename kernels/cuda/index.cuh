// What the host side of the indexer (index.cu) and its scoring kernels share: a chunk of queries
// against a chunk of keys, whose scores exist in scratch until they have been selected from.
#ifndef HALKA_KERNELS_CUDA_INDEX_CUH
#define HALKA_KERNELS_CUDA_INDEX_CUH

#include "kernels/cuda/launch.cuh"

struct score_chunk {
    int n_head, head_dim;
    int64_t n_query, n_key;
    const void *query;      // [n_query, n_head, head_dim]
    const float *weight;    // [n_query, n_head]
    const void *key;        // [n_key, head_dim]
    const float *key_scale; // [n_key] or NULL
    const int64_t *visible; // [n_query] ascending: each query sees the block's first so many keys
    int64_t first_key;      // of the chunk in the block
    float *score;           // [n_query, stride]; of keys that are not visible: anything
    int64_t stride;
};

// The negative parts become 0; NaN stays NaN, which fmaxf would lose.
__device__ inline float positive_part(float x) {
    return x < 0 ? 0 : x;
}

// Whether the tensor cores take this shape. It must not depend on how many queries or keys there
// are: a score is the same whatever call it is computed in.
bool index_score_mma_takes(const struct cuda_state *state, enum dtype dtype, int n_head,
                           int head_dim);
// Queries are BF16; keys BF16 or F8_E4M3.
enum status index_score_mma(struct backend *backend, const struct score_chunk *chunk,
                            enum dtype key_dtype);
// Any shape; queries and keys F32, BF16 or F8_E4M3.
enum status index_score_plain(struct backend *backend, const struct score_chunk *chunk,
                              enum dtype dtype);

#endif
