// Attention over latents by mma.sync: keys of 576, whose first 512 elements are the values. A block
// of eight warps takes 64 rows; a warp multiplies 32 of them, its half, with a quarter of a tile's
// keys, then, after the weights have met in shared memory, with a quarter of the value's columns.
// What values that a row does not see may spoil is marked (mark_spoiled).
#include "kernels/cuda/attention_rows.cuh"

namespace {

using namespace attention_rows;

constexpr int kHeadDim = 576, kValueDim = 512;
constexpr int kWarps = 8, kThreads = kWarps * WARP, kQuarters = 4;
constexpr int kRowTile = 64, kTileKeys = 64, kHalfRows = 32;
constexpr int kRowBytes = kHeadDim * 2, kStageBytes = kTileKeys * kRowBytes;
constexpr int kWeightPitch = kTileKeys + 8; // elements
constexpr int kSharedBytes = kRowTile * kRowBytes + 2 * kStageBytes + kRowTile * kWeightPitch * 2 +
                             kQuarters * kRowTile * (int)sizeof(float);
static_assert(kSharedBytes == ATTENTION_MMA_LATENT_BYTES, "the table's");
static_assert(kRowTile == ATTENTION_MMA_ROWS, "the table's");

struct shape { // a warp's part
    static constexpr int kRowBlocks = kHalfRows / 16, kKeyTile = kTileKeys / kQuarters;
    static constexpr int kValueDim = ::kValueDim / kQuarters;
};

// A row's 16-byte chunk c lies at chunk c ^ (row % 8): the 8 rows of a matrix in different banks.
__device__ inline unsigned char *chunk_at(unsigned char *rows, int row, int chunk) {
    return rows + row * kRowBytes + (chunk ^ row % 8) * 16;
}

__device__ inline void load_queries(const attention_work &w, const attention_place &p,
                                    unsigned char *to) {
    constexpr int kChunks = kHeadDim / 8;
    for (int i = threadIdx.x; i < kRowTile * kChunks; i += kThreads) {
        int64_t row = p.first_row + i / kChunks;
        bool valid = row < w.n_row;
        int64_t at = valid ? attention_query_at(w, p.kv_head, row) + i % kChunks * 8 : 0;
        copy_async_16(chunk_at(to, i / kChunks, i % kChunks), (const bf16_t *)w.query + at, valid);
    }
}

__device__ inline void load_keys(const attention_work &w, const attention_place &p, int first,
                                 unsigned char *to) {
    constexpr int kChunks = kHeadDim / 8;
    const bf16_t *key = (const bf16_t *)w.key + p.kv_head * kHeadDim;
    int end = attention_end_key(p, first);
    for (int i = threadIdx.x; i < kTileKeys * kChunks; i += kThreads) {
        int row = i / kChunks;
        bool valid = first + row < end;
        int64_t at = valid ? (first + row) * w.key_stride + i % kChunks * 8 : 0;
        copy_async_16(chunk_at(to, row, i % kChunks), key + at, valid);
    }
}

// Scores of the warp's 32 rows and 16 keys.
__device__ inline void multiply_keys(unsigned char *query, unsigned char *key,
                                     tile_scores<shape> &score) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < shape::kRowBlocks; m++)
#pragma unroll
        for (int n = 0; n < shape::kKeyTile / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) score[m][n][i] = 0;
#pragma unroll 12
    for (int chunk = 0; chunk < kHeadDim / 8; chunk += 2) {
        uint32_t a[4], b[4];
        load_matrix_x4(b, chunk_at(key, lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < shape::kRowBlocks; m++) {
            load_matrix_x4(a, chunk_at(query, m * 16 + lane % 16, chunk + lane / 16));
            mma_bf16(score[m][0], a, b);
            mma_bf16(score[m][1], a, b + 2);
        }
    }
}

// sum += weight value for the warp's 32 rows and 128 columns, which begin at chunk first_chunk.
__device__ inline void multiply_values(const bf16_t *weight, unsigned char *value, int first_chunk,
                                       rows<shape> &r) {
    int lane = threadIdx.x % WARP;
    weight += lane % 16 * kWeightPitch + lane / 16 * 8;
#pragma unroll
    for (int key = 0; key < kTileKeys; key += 16) {
        uint32_t a[shape::kRowBlocks][4];
#pragma unroll
        for (int m = 0; m < shape::kRowBlocks; m++)
            load_matrix_x4(a[m], weight + m * 16 * kWeightPitch + key);
#pragma unroll
        for (int n = 0; n < shape::kValueDim / 8; n += 2) {
            uint32_t b[4];
            load_matrix_x4_transposed(
                b, chunk_at(value, key + lane % 16, first_chunk + n + lane / 16));
#pragma unroll
            for (int m = 0; m < shape::kRowBlocks; m++) {
                mma_bf16(r.sum[m][n], a[m], b);
                mma_bf16(r.sum[m][n + 1], a[m], b + 2);
            }
        }
    }
}

// The four quarters' numbers of each of the warp's rows, by way of shared [kQuarters, kRowTile].
template <class OP>
__device__ inline void combine_quarters(float *shared, int quarter, int warp_row,
                                        float (&x)[shape::kRowBlocks][2], OP op) {
    int lane = threadIdx.x % WARP, row = warp_row + lane / 4;
#pragma unroll
    for (int m = 0; m < shape::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (lane % 4 == 0) shared[quarter * kRowTile + row + m * 16 + half * 8] = x[m][half];
    __syncthreads();
#pragma unroll
    for (int m = 0; m < shape::kRowBlocks; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float *from = shared + row + m * 16 + half * 8;
            x[m][half] =
                op(op(from[0], from[kRowTile]), op(from[2 * kRowTile], from[3 * kRowTile]));
        }
}

__device__ inline void store_weights(const tile_scores<shape> &weight, bf16_t *to) {
    int lane = threadIdx.x % WARP;
    to += lane / 4 * kWeightPitch + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < shape::kRowBlocks; m++)
#pragma unroll
        for (int n = 0; n < shape::kKeyTile / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(uint32_t *)(to + (m * 16 + half * 8) * kWeightPitch + n * 8) =
                    pack(weight[m][n][2 * half], weight[m][n][2 * half + 1]);
}

__global__ void __launch_bounds__(kThreads, 1) attend(attention_work w) {
    DYNAMIC_SHARED(shared);
    unsigned char *query = shared, *stages = query + kRowTile * kRowBytes;
    bf16_t *weight = (bf16_t *)(stages + 2 * kStageBytes);
    float *numbers = (float *)(weight + kRowTile * kWeightPitch);
    attention_place p = attention_find_place(w, kRowTile, blockIdx.x);
    int warp = threadIdx.x / WARP, warp_row = warp % 2 * kHalfRows, quarter = warp / 2;
    attention_interval common = attention_common(w, p.first_row, kRowTile);
    rows<shape> r;
    begin_rows<shape>(w, p.first_row + warp_row, r);
    load_queries(w, p, query);
    int first = attention_first_key(p), next;
    if (first < p.end) load_keys(w, p, first, stages);
    copy_async_commit();
    for (int turn = 0; first < p.end; first = next, turn ^= 1) {
        unsigned char *stage = stages + turn * kStageBytes;
        copy_async_wait<0>();
        __syncthreads();
        int first_key = quarter * shape::kKeyTile;
        next = attention_next_key(p, first, kTileKeys);
        if (next < p.end) load_keys(w, p, next, stages + (turn ^ 1) * kStageBytes);
        copy_async_commit();
        tile_scores<shape> score;
        float tile_max[shape::kRowBlocks][2], shrink[shape::kRowBlocks][2];
        multiply_keys(query + warp_row * kRowBytes, stage + first_key * kRowBytes, score);
        if (first < common.begin || first + kTileKeys > common.end)
            hide_keys<shape>(r, first + first_key, attention_sink_end(p, first), score);
        find_maxima<shape>(score, tile_max);
        combine_quarters(numbers, quarter, warp_row, tile_max,
                         [](float a, float b) { return fmaxf(a, b); });
        bool is_large = raise_maxima<shape>(r, tile_max, w.score_scale, shrink);
        weigh<shape>(r, score, w.score_scale, is_large, shrink);
        store_weights(score, weight + warp_row * kWeightPitch + first_key);
        shrink_sums<shape>(r, shrink);
        __syncthreads();
        multiply_values(weight + warp_row * kWeightPitch, stage, quarter * shape::kValueDim / 8, r);
    }
    copy_async_wait<0>();
    __syncthreads();
    add_totals<shape>(r);
    combine_quarters(numbers, quarter, warp_row, r.total, [](float a, float b) { return a + b; });
    float held[shape::kRowBlocks][2];
    load_held<shape>(w, p, p.first_row + warp_row, held);
    bool is_bad = __syncthreads_or(has_nan<shape>(r));
    if (w.spoiled && is_bad)
        mark_spoiled<shape>(w, p, p.first_row + warp_row);
    else
        finish_rows<shape>(w, p, p.first_row + warp_row, quarter * shape::kValueDim, r, held);
}

} // namespace

enum status attention_mma_latent(struct backend *backend, const struct attention_work *work) {
    int64_t n_block = divide_up(work->n_row, kRowTile) * work->n_kv_head * work->n_split;
    TRY_CUDA(
        cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    LAUNCH(backend, attend, (unsigned)n_block, kThreads, kSharedBytes, *work);
    return OK;
}
