// Rows of queries in the registers of a warp, between its products: hiding keys, weights from
// scores, sums, results. The layout is that of mma.sync's and wgmma's sums. S, a kernel's shape,
// has kRowBlocks (16 rows each, of a warp), kKeyTile and kValueDim.
#ifndef HALKA_KERNELS_CUDA_ATTENTION_ROWS_CUH
#define HALKA_KERNELS_CUDA_ATTENTION_ROWS_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

namespace attention_rows {

using bf16_t = __nv_bfloat16;
static_assert(ATTENTION_SPOILED_ROWS == 16, "a mark is for the 16 rows of a warp's block");

// What a warp keeps of its rows. Thread of lane 4 g + t holds rows g and g + 8 of each 16, columns
// 8 n + 2 t and the next: element [n][2 * half + column].
template <class S> struct rows {
    float sum[S::kRowBlocks][S::kValueDim / 8][4];
    float max[S::kRowBlocks][2];                  // whole numbers
    float total[S::kRowBlocks][2];                // of this thread's columns
    attention_interval visible[S::kRowBlocks][2]; // what the row sees besides the sinks
};
template <class S> using tile_scores = float[S::kRowBlocks][S::kKeyTile / 8][4];

__device__ inline uint32_t pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

// The operand that the product with values takes: weights of 16 keys from `key` on.
template <class S>
__device__ inline void pack_weights(const float (&weight)[S::kKeyTile / 8][4], int key,
                                    uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float *pair = weight[key / 8 + i / 2] + i % 2 * 2;
        a[i] = pack(pair[0], pair[1]);
    }
}

// Hides the keys, from `first` on, that a row does not see. sink_end: of a tile of sinks; else 0.
template <class S>
__device__ inline void hide_keys(const rows<S> &r, int first, int sink_end, tile_scores<S> &score) {
    int key = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            attention_interval v = r.visible[m][half];
            int begin = (sink_end ? 0 : v.begin) - key;
            int end = (sink_end ? min(v.end, sink_end) : v.end) - key;
#pragma unroll
            for (int n = 0; n < S::kKeyTile / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (n * 8 + i < begin || n * 8 + i >= end)
                        score[m][n][2 * half + i] = -INFINITY;
        }
}

// The largest score of each row, the same in the four threads that hold the row.
template <class S>
__device__ inline void find_maxima(const tile_scores<S> &score, float (&max)[S::kRowBlocks][2]) {
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = -INFINITY;
#pragma unroll
            for (int n = 0; n < S::kKeyTile / 8; n++)
                x = fmaxf(x, fmaxf(score[m][n][2 * half], score[m][n][2 * half + 1]));
            x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
            max[m][half] = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
        }
}

// Raises the rows' maxima to those of the tile, not scaled yet. Returns whether a score is so large
// that its product with the scale must be rounded before the maximum is subtracted (see weigh).
template <class S>
__device__ inline bool raise_maxima(rows<S> &r, const float (&tile_max)[S::kRowBlocks][2],
                                    float scale, float (&shrink)[S::kRowBlocks][2]) {
    float largest = 0;
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float new_max = attention_raise_max(r.max[m][half], tile_max[m][half] * scale);
            shrink[m][half] = attention_shrink(r.max[m][half], new_max);
            r.max[m][half] = new_max;
            if (new_max != -INFINITY) largest = fmaxf(largest, fabsf(new_max));
        }
    return __any_sync(FULL_WARP, largest > 0x1p20f);
}

// Scores to weights 2^(score * scale - max), and the totals. One fused multiply-add a score is
// right while the rounding of the product, which it skips, is far below 1.
template <class S>
__device__ inline void weigh(rows<S> &r, tile_scores<S> &score, float scale, bool is_large,
                             const float (&shrink)[S::kRowBlocks][2]) {
    if (is_large) {
#pragma unroll
        for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
            for (int n = 0; n < S::kKeyTile / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) score[m][n][i] = __fmul_rn(score[m][n][i], scale);
        scale = 1;
    }
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float max = r.max[m][half] == -INFINITY ? 0 : r.max[m][half], total = 0;
#pragma unroll
            for (int n = 0; n < S::kKeyTile / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    float p = exp2_approximate(fmaf(score[m][n][i], scale, -max));
                    score[m][n][i] = p;
                    total += p;
                }
            r.total[m][half] = r.total[m][half] * shrink[m][half] + total;
        }
}

template <class S>
__device__ inline void shrink_sums(rows<S> &r, const float (&shrink)[S::kRowBlocks][2]) {
    bool changed = false;
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++) changed |= shrink[m][0] != 1 || shrink[m][1] != 1;
    if (!__any_sync(FULL_WARP, changed)) return; // most tiles: maxima are whole numbers
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int n = 0; n < S::kValueDim / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) r.sum[m][n][i] *= shrink[m][i / 2];
}

template <class S>
__device__ inline void begin_rows(const attention_work &w, int64_t first_row, rows<S> &r) {
    int64_t row = first_row + threadIdx.x % WARP / 4;
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t at = row + m * 16 + half * 8;
            r.visible[m][half] = {0, 0};
            if (at < w.n_row) r.visible[m][half] = attention_sees(w, at);
            r.max[m][half] = -INFINITY;
            r.total[m][half] = 0;
        }
#pragma unroll
        for (int n = 0; n < S::kValueDim / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) r.sum[m][n][i] = 0;
    }
}

// Totals of whole rows, in each of the four threads that hold the row.
template <class S> __device__ inline void add_totals(rows<S> &r) {
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = r.total[m][half];
            total += __shfl_xor_sync(FULL_WARP, total, 1);
            r.total[m][half] = total + __shfl_xor_sync(FULL_WARP, total, 2);
        }
}

// The lse that the rows hold, for their results to be merged into; -inf where they are not. Comes
// before a barrier of all warps of the rows, behind which finish_rows writes others.
template <class S>
__device__ inline void load_held(const attention_work &w, const attention_place &p,
                                 int64_t first_row, float (&held)[S::kRowBlocks][2]) {
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t row = first_row + m * 16 + half * 8 + threadIdx.x % WARP / 4;
            bool is_held = w.merge && row < w.n_row;
            held[m][half] = is_held ? w.lse[attention_row_at(w, p, row)] : -INFINITY;
        }
}

// Writes or merges one row's result. out: where the thread's first two columns go; lse: NULL where
// another thread writes it.
template <class S>
__device__ inline void finish_row(const rows<S> &r, int m, int half, bool merge, float held_lse,
                                  float *out, float *lse) {
    float total = r.total[m][half];
    if (merge && total == 0) return; // saw no key
    attention_end end = attention_finish(r.max[m][half], total, held_lse);
    attention_write(r.sum[m], half, end, out);
    if (lse) *lse = end.lse;
}

// Writes or merges the rows' results, columns from first_col on. held: load_held's.
template <class S>
__device__ inline void finish_rows(const attention_work &w, const attention_place &p,
                                   int64_t first_row, int first_col, const rows<S> &r,
                                   const float (&held)[S::kRowBlocks][2]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t row = first_row + m * 16 + half * 8 + lane / 4;
            if (row >= w.n_row) continue;
            int64_t at = attention_row_at(w, p, row);
            float *out = w.out + at * w.value_dim + first_col + lane % 4 * 2;
            bool has_lse = first_col == 0 && lane % 4 == 0;
            finish_row<S>(r, m, half, w.merge, held[m][half], out, has_lse ? w.lse + at : NULL);
        }
}

template <class S> __device__ inline bool has_nan(const rows<S> &r) {
    bool found = false;
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++)
#pragma unroll
        for (int n = 0; n < S::kValueDim / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) found |= isnan(r.sum[m][n][i]);
    return found;
}

// Marks the warp's rows: a sum is NaN, maybe for a key that its row does not see. The weight of
// such a key is 0, which does not silence a value of NaN or infinity. The plain kernel attends the
// rows again, and alone writes them.
template <class S>
__device__ inline void mark_spoiled(const attention_work &w, const attention_place &p,
                                    int64_t first_row) {
#pragma unroll
    for (int m = 0; m < S::kRowBlocks; m++) {
        int64_t row = first_row + m * ATTENTION_SPOILED_ROWS;
        if (row < w.n_row) w.spoiled[attention_spoiled_at(w, p, row)] = 1;
    }
}

// The end of a warp whose rows, all columns of them, no other warp has.
template <class S>
__device__ inline void end_rows(const attention_work &w, const attention_place &p,
                                int64_t first_row, rows<S> &r) {
    float held[S::kRowBlocks][2];
    load_held<S>(w, p, first_row, held);
    if (w.spoiled && __any_sync(FULL_WARP, has_nan<S>(r))) {
        mark_spoiled<S>(w, p, first_row);
        return;
    }
    add_totals<S>(r);
    __syncwarp();
    finish_rows<S>(w, p, first_row, 0, r, held);
}

} // namespace attention_rows

#endif
