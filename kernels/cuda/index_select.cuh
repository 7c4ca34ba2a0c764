// Selecting each query's best keys from a chunk of scores: index_select.cu, on behalf of index.cu.
#ifndef HALKA_KERNELS_CUDA_INDEX_SELECT_CUH
#define HALKA_KERNELS_CUDA_INDEX_SELECT_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/sparse.h"

enum { SCORE_STRIDE_UNIT = 1024 }; // rows of scores are multiples of it, and aligned to 16 bytes

struct select_chunk {
    int k;
    uint64_t *candidate; // [n_query, k], of the chunk's queries
    int32_t *n_candidate;
    const float *score; // [n_query, stride]
    int64_t stride, n_key, first_key, first_query;
    const int64_t *visible;    // [n_query]
    const struct key_run *run; // [n_run] of the block: first_row is the run's first key
    int n_run;
    unsigned long long *bad; // the first query << 32 | key with a score that is not a number
};

// Bytes of scratch for chunks of at most so many queries and keys.
int64_t index_select_bytes(const struct cuda_state *state, int64_t n_query, int64_t n_key, int k);
enum status index_select(struct backend *backend, const struct select_chunk *chunk, int64_t n_query,
                         void *scratch);

#endif
