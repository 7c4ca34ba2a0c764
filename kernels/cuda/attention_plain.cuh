// Scores of a tile of rows against a tile of keys in fp32, any dimensions and formats: the parts of
// the plain attention and of the attention mass. A block has kWarps warps; a warp owns kWarpRows
// rows, a lane one key.
#ifndef HALKA_KERNELS_CUDA_ATTENTION_PLAIN_CUH
#define HALKA_KERNELS_CUDA_ATTENTION_PLAIN_CUH

#include "kernels/cuda/attention.cuh"

namespace attention_plain {

constexpr int kKeyTile = WARP;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * WARP;
constexpr int kRowTile = ATTENTION_PLAIN_ROWS;
constexpr int kWarpRows = kRowTile / kWarps;
constexpr int kPad = 4; // floats between rows: lanes read float4 of 32 rows without conflicts

__device__ inline int pitch(int n_col) {
    return n_col + kPad;
}

// Rows [0, n_row) of an operand to shared memory as floats, rounded to bf16 if the products are;
// rows up to kKeyTile become zeros.
template <class T>
__device__ inline void load_rows(const T *rows, int64_t stride, int n_row, int n_col, bool round,
                                 float *to) {
    for (int i = threadIdx.x; i < kKeyTile * n_col; i += kThreads) {
        int row = i / n_col, col = i % n_col;
        float x = row < n_row ? load_float(rows + row * stride + col) : 0;
        if (round) x = __bfloat162float(__float2bfloat16_rn(x));
        to[row * pitch(n_col) + col] = x;
    }
}

// The tile of keys (or values) from `first` on.
__device__ inline void load_tile(const struct attention_work &w, const void *base, int64_t stride,
                                 int n_col, int kv_head, int first, int n_key, float *to) {
    int64_t at = first * stride + (int64_t)kv_head * n_col;
    if (w.kv_dtype == DTYPE_BF16)
        load_rows((const __nv_bfloat16 *)base + at, stride, n_key, n_col, false, to);
    else
        load_rows((const float *)base + at, stride, n_key, n_col, w.query_dtype == DTYPE_BF16, to);
}

__device__ inline void load_queries(const struct attention_work &w, int kv_head, int64_t first_row,
                                    float *to) {
    for (int i = threadIdx.x; i < kRowTile * w.head_dim; i += kThreads) {
        int64_t row = first_row + i / w.head_dim;
        int col = i % w.head_dim;
        float x = 0;
        if (row < w.n_row) {
            int64_t at = attention_query_at(w, kv_head, row) + col;
            x = w.query_dtype == DTYPE_BF16 ? load_float((const __nv_bfloat16 *)w.query + at)
                                            : load_float((const float *)w.query + at);
        }
        to[i / w.head_dim * pitch(w.head_dim) + col] = x;
    }
}

// Scaled scores of this warp's rows and this lane's key. query: the warp's first row.
__device__ inline void score_tile(const struct attention_work &w, const float *query,
                                  const float *key, float score[kWarpRows]) {
    const float *my_key = key + threadIdx.x % WARP * pitch(w.head_dim);
    for (int r = 0; r < kWarpRows; r++) score[r] = 0;
    for (int i = 0; i < w.head_dim; i += 4) {
        float4 k = *(const float4 *)(my_key + i);
#pragma unroll
        for (int r = 0; r < kWarpRows; r++) {
            float4 q = *(const float4 *)(query + r * pitch(w.head_dim) + i);
            score[r] = fmaf(q.x, k.x, score[r]);
            score[r] = fmaf(q.y, k.y, score[r]);
            score[r] = fmaf(q.z, k.z, score[r]);
            score[r] = fmaf(q.w, k.w, score[r]);
        }
    }
    for (int r = 0; r < kWarpRows; r++) score[r] *= w.score_scale;
}

} // namespace attention_plain

#endif
