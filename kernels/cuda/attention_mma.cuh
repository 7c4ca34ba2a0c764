// Attention with bf16 products by mma.sync (sm_80 and later): the body that the attention_mma_*.cu
// files instantiate. A block takes kRowTile rows of one kv head and one range of keys, in tiles of
// kKeyTile that cp.async brings while the tile before is worked on; a warp takes kRowBlocks * 16
// rows, from scores to sums in registers (Dao 2023, FlashAttention-2).
// What values that a row does not see may spoil is marked (mark_spoiled).
#ifndef HALKA_KERNELS_CUDA_ATTENTION_MMA_CUH
#define HALKA_KERNELS_CUDA_ATTENTION_MMA_CUH

#include "kernels/cuda/attention_rows.cuh"

namespace attention_mma {

using namespace attention_rows;

template <int HEAD_DIM, int VALUE_DIM, int ROW_BLOCKS, int KEY_TILE, int BLOCKS_RESIDENT>
struct shape {
    static constexpr int kHeadDim = HEAD_DIM, kValueDim = VALUE_DIM;
    static constexpr int kRowBlocks = ROW_BLOCKS, kKeyTile = KEY_TILE;
    static constexpr int kWarps = 4, kThreads = kWarps * WARP, kResident = BLOCKS_RESIDENT;
    static constexpr int kRowTile = kWarps * kRowBlocks * 16;
    // 16 bytes between rows: the 8 rows of a matrix then lie in different banks.
    static constexpr int kKeyPitch = HEAD_DIM + 8, kValuePitch = VALUE_DIM + 8;
    static constexpr int kStage = kKeyTile * (kKeyPitch + kValuePitch); // elements
    static constexpr int kSharedBytes = (kRowTile * kKeyPitch + 2 * kStage) * 2;
    static_assert(HEAD_DIM % 16 == 0 && VALUE_DIM % 16 == 0 && KEY_TILE % 16 == 0, "mma tiles");
    static_assert(ATTENTION_SPLIT_MULTIPLE % KEY_TILE == 0, "ranges are whole tiles");
};

// Rows of `n_col` elements from global to shared memory; zeros for the rows past n_row.
template <int N_ROW, int N_COL, int N_THREAD>
__device__ inline void load_rows(bf16_t *to, const bf16_t *from, int64_t stride, int n_row) {
    constexpr int kChunks = N_COL / 8;
    for (int i = threadIdx.x; i < N_ROW * kChunks; i += N_THREAD) {
        int row = i / kChunks, col = i % kChunks * 8;
        bool valid = row < n_row;
        copy_async_16_of_256(to + row * (N_COL + 8) + col, from + (valid ? row * stride + col : 0),
                             valid);
    }
}

template <class S>
__device__ inline void load_queries(const attention_work &w, const attention_place &p, bf16_t *to) {
    constexpr int kChunks = S::kHeadDim / 8;
    for (int i = threadIdx.x; i < S::kRowTile * kChunks; i += S::kThreads) {
        int64_t row = p.first_row + i / kChunks;
        int col = i % kChunks * 8;
        bool valid = row < w.n_row;
        int64_t at = valid ? attention_query_at(w, p.kv_head, row) + col : 0;
        copy_async_16(to + i / kChunks * S::kKeyPitch + col, (const bf16_t *)w.query + at, valid);
    }
}

template <class S>
__device__ inline void load_tile(const attention_work &w, const attention_place &p, int first,
                                 bf16_t *stage) {
    int n_key = min(attention_end_key(p, first) - first, S::kKeyTile);
    load_rows<S::kKeyTile, S::kHeadDim, S::kThreads>(
        stage, (const bf16_t *)w.key + first * w.key_stride + p.kv_head * S::kHeadDim, w.key_stride,
        n_key);
    load_rows<S::kKeyTile, S::kValueDim, S::kThreads>(
        stage + S::kKeyTile * S::kKeyPitch,
        (const bf16_t *)w.value + first * w.value_stride + p.kv_head * S::kValueDim, w.value_stride,
        n_key);
}

// score = query key^T for the warp's rows, which begin at `query`.
template <class S>
__device__ inline void multiply_keys(const bf16_t *query, const bf16_t *key,
                                     tile_scores<S> &score) {
    int lane = threadIdx.x % WARP;
    query += lane % 16 * S::kKeyPitch + lane / 16 * 8;
    key += (lane / 16 * 8 + lane % 8) * S::kKeyPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int n = 0; n < S::kKeyTile / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) score[m][n][i] = 0;
#pragma unroll
    for (int col = 0; col < S::kHeadDim; col += 16) {
        uint32_t a[S::kRowBlocks][4];
#pragma unroll
        for (int m = 0; m < S::kRowBlocks; m++)
            load_matrix_x4(a[m], query + m * 16 * S::kKeyPitch + col);
#pragma unroll
        for (int n = 0; n < S::kKeyTile / 8; n += 2) {
            uint32_t b[4];
            load_matrix_x4(b, key + n * 8 * S::kKeyPitch + col);
#pragma unroll
            for (int m = 0; m < S::kRowBlocks; m++) {
                mma_bf16(score[m][n], a[m], b);
                mma_bf16(score[m][n + 1], a[m], b + 2);
            }
        }
    }
}

// sum += weight value.
template <class S>
__device__ inline void multiply_values(rows<S> &r, const tile_scores<S> &weight,
                                       const bf16_t *value) {
    int lane = threadIdx.x % WARP;
    value += lane % 16 * S::kValuePitch + lane / 16 * 8;
#pragma unroll
    for (int key = 0; key < S::kKeyTile; key += 16) {
        uint32_t a[S::kRowBlocks][4];
#pragma unroll
        for (int m = 0; m < S::kRowBlocks; m++) pack_weights<S>(weight[m], key, a[m]);
#pragma unroll
        for (int n = 0; n < S::kValueDim / 8; n += 2) {
            uint32_t b[4];
            load_matrix_x4_transposed(b, value + key * S::kValuePitch + n * 8);
#pragma unroll
            for (int m = 0; m < S::kRowBlocks; m++) {
                mma_bf16(r.sum[m][n], a[m], b);
                mma_bf16(r.sum[m][n + 1], a[m], b + 2);
            }
        }
    }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kResident) attend(attention_work w) {
    DYNAMIC_SHARED(shared);
    bf16_t *query = (bf16_t *)shared, *stages = query + S::kRowTile * S::kKeyPitch;
    attention_place p = attention_find_place(w, S::kRowTile, blockIdx.x);
    int warp_row = threadIdx.x / WARP * S::kRowBlocks * 16;
    bool is_used = p.first_row + warp_row < w.n_row; // the warp has rows
    attention_interval common = attention_common(w, p.first_row, S::kRowTile);
    rows<S> r;
    begin_rows<S>(w, p.first_row + warp_row, r);
    load_queries<S>(w, p, query);
    int first = attention_first_key(p), next;
    if (first < p.end) load_tile<S>(w, p, first, stages);
    copy_async_commit();
    for (int turn = 0; first < p.end; first = next, turn ^= 1) {
        bf16_t *stage = stages + turn * S::kStage, *value = stage + S::kKeyTile * S::kKeyPitch;
        copy_async_wait<0>();
        __syncthreads();
        next = attention_next_key(p, first, S::kKeyTile);
        if (next < p.end) load_tile<S>(w, p, next, stages + (turn ^ 1) * S::kStage);
        copy_async_commit();
        if (!is_used) continue;
        tile_scores<S> score;
        float tile_max[S::kRowBlocks][2], shrink[S::kRowBlocks][2];
        multiply_keys<S>(query + warp_row * S::kKeyPitch, stage, score);
        if (first < common.begin || first + S::kKeyTile > common.end)
            hide_keys<S>(r, first, attention_sink_end(p, first), score);
        find_maxima<S>(score, tile_max);
        bool is_large = raise_maxima<S>(r, tile_max, w.score_scale, shrink);
        weigh<S>(r, score, w.score_scale, is_large, shrink);
        shrink_sums<S>(r, shrink);
        multiply_values<S>(r, score, value);
    }
    copy_async_wait<0>();
    if (!is_used) return;
    end_rows<S>(w, p, p.first_row + warp_row, r);
}

template <class S> enum status launch(struct backend *backend, const attention_work *work) {
    int64_t n_block = divide_up(work->n_row, S::kRowTile) * work->n_kv_head * work->n_split;
    TRY_CUDA(cudaFuncSetAttribute(attend<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  S::kSharedBytes));
    LAUNCH(backend, attend<S>, (unsigned)n_block, S::kThreads, S::kSharedBytes, *work);
    return OK;
}

} // namespace attention_mma

#endif
