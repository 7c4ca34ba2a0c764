// What the host side of the indexer (index.cu) and its scoring kernels share: a chunk of queries
// against a chunk of keys, whose scores exist in scratch until they have been selected from.
#ifndef HALKA_KERNELS_CUDA_INDEX_CUH
#define HALKA_KERNELS_CUDA_INDEX_CUH

#include "kernels/cuda/fp8.cuh"
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
    float y;
    asm("max.NaN.f32 %0, %1, 0f00000000;\n" : "=f"(y) : "f"(x));
    return y;
}

// The first of the queries [begin, end) that sees this key of the chunk; end when none does.
__device__ inline int64_t first_seeing(const struct score_chunk &c, int64_t begin, int64_t end,
                                       int64_t key) {
    while (begin < end) {
        int64_t middle = begin + (end - begin) / 2;
        if (c.visible[middle] <= c.first_key + key)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

// 8 neighbouring elements of a key as bf16.
template <bool FP8> __device__ inline uint4 load_vector(const void *key, int64_t vector) {
    if (!FP8) return ((const uint4 *)key)[vector];
    uint2 codes = ((const uint2 *)key)[vector];
    return make_uint4(fp8_pair_to_bf16(codes.x & 0xffff), fp8_pair_to_bf16(codes.x >> 16),
                      fp8_pair_to_bf16(codes.y & 0xffff), fp8_pair_to_bf16(codes.y >> 16));
}

// Whether the tensor cores take this shape. It must not depend on how many queries or keys there
// are: a score is the same whatever call it is computed in.
bool index_score_mma_takes(enum dtype dtype, int head_dim);
// Queries are BF16; keys BF16 or F8_E4M3.
enum status index_score_mma(struct backend *backend, const struct score_chunk *chunk,
                            enum dtype key_dtype);
// By wgmma: chunk->query is packed, by index_score_sm90a_pack from queries in their own format.
static inline bool index_score_sm90a_takes(const struct cuda_state *state, enum dtype dtype,
                                           int n_head, int head_dim) {
    return state->architecture == 90 && dtype != DTYPE_F32 && (n_head == 32 || n_head == 64) &&
           (head_dim == 64 || head_dim == 128);
}
static inline int64_t index_packed_bytes(int n_head, int head_dim) {
    return divide_up(n_head * (head_dim * 2 + 4), 1024) * 1024; // queries and their weights
}
enum status index_score_sm90a_pack(struct backend *backend, const struct score_chunk *chunk,
                                   enum dtype dtype, void *to);
enum status index_score_sm90a(struct backend *backend, const struct score_chunk *chunk,
                              enum dtype key_dtype);
// Any shape; queries and keys F32, BF16 or F8_E4M3.
enum status index_score_plain(struct backend *backend, const struct score_chunk *chunk,
                              enum dtype dtype);

#endif
