// Attention over latents by wgmma: what the forms over neighbouring and over selected keys share.
// Keys of 576, values their first 512 elements. A block takes 64 rows and its keys in tiles of 64,
// which the first warpgroup brings; the two others, the consumers, keep half of the value's columns
// each (64 x 512 sums fill half a multiprocessor's registers). They take turns with the scores of a
// tile, so that one multiplies while the other is on its weights, and hand the weights on to each
// other through shared memory: DeepSeek's FlashMLA, docs/20250422-new-kernel-deep-dive.md.
#ifndef HALKA_KERNELS_CUDA_LATENT_WGMMA_CUH
#define HALKA_KERNELS_CUDA_LATENT_WGMMA_CUH

#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace latent_wgmma {

using namespace attention_rows;

constexpr int kHeadDim = 576, kValueDim = 512, kRows = 64, kTileKeys = 64;
constexpr int kGroup = 4 * WARP, kConsumers = 2, kThreads = kGroup * (1 + kConsumers);
constexpr int kPanel = 64, kPanels = kHeadDim / kPanel; // columns of a panel: 128 bytes
constexpr int kHalfPanels = kValueDim / kConsumers / kPanel;
// Tile t lies in stage t % 2 and is consumer t % 2's own. It comes in two parts: the owner's half
// of the value's columns with the last panel, of keys only; the other consumer's half.
constexpr int kStages = kConsumers, kParts = 2;
enum part { OWN, OTHERS };
constexpr int kBarrierConsumers = 1; // barrier between warps; 0 is __syncthreads'

// A consumer's share of the rows: attention_rows.cuh.
struct share {
    static constexpr int kRowBlocks = 1, kKeyTile = kTileKeys;
    static constexpr int kValueDim = latent_wgmma::kValueDim / kConsumers;
};
constexpr int kPanelBytes = kTileKeys * kPanel * 2, kTileBytes = kPanels * kPanelBytes;
constexpr int kQueryPanelBytes = kRows * kPanel * 2, kQueryBytes = kPanels * kQueryPanelBytes;
constexpr int kWeights = kTileKeys / 16; // operands of 16 keys
constexpr int kWeightBytes = kWeights * kGroup * (int)sizeof(uint4);
constexpr int kMaxBytes = kGroup * (int)sizeof(float2);
constexpr int kAlign = 1024; // of panels
constexpr int kSharedBytes = kAlign + kQueryBytes + kStages * kTileBytes + kWeightBytes +
                             kMaxBytes + (2 * kParts + 1) * kStages * (int)sizeof(uint64_t) + 16;

// Shared memory of a block.
struct room {
    unsigned char *query, *key; // [kPanels], [kStages][kPanels] of panels
    uint4 (*weight)[kGroup];    // [kWeights] of a tile, as the threads of a consumer have them
    float2 *max;                // [kGroup] the rows' maxima with that tile
    uint64_t (*full)[kParts];   // [kStages] the part has come
    uint64_t (*free)[kParts];   // [kStages] its consumer is done with it
    uint64_t *given;            // [kStages] the tile's weights are there
    int *spoiled;
};

__device__ inline room find_room(unsigned char *shared) {
    room m;
    m.query = shared + (kAlign - shared_address(shared) % kAlign) % kAlign;
    m.key = m.query + kQueryBytes;
    m.weight = (uint4(*)[kGroup])(m.key + kStages * kTileBytes);
    m.max = (float2 *)(m.weight + kWeights);
    m.full = (uint64_t(*)[kParts])(m.max + kGroup);
    m.free = m.full + kStages;
    m.given = (uint64_t *)(m.free + kStages);
    m.spoiled = (int *)(m.given + kStages);
    return m;
}

// n_arrival: of the first warpgroup, for a part that has come. N_BLOCK: blocks that share tiles.
template <int N_BLOCK> __device__ inline void init_room(const room &m, int n_arrival) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; i++) {
            for (int part = 0; part < kParts; part++) {
                mbarrier_init(&m.full[i][part], n_arrival);
                mbarrier_init(&m.free[i][part], N_BLOCK * kGroup / WARP);
            }
            mbarrier_init(&m.given[i], kGroup);
        }
        *m.spoiled = 0;
        mbarrier_fence_init();
    }
    __syncthreads();
    if (N_BLOCK == 1) return;
    cluster_arrive();
    cluster_wait();
}

// Where a part of a stage's tiles begins, in panels.
__device__ inline int first_panel(int stage, int part) {
    return (stage ^ part) * kHalfPanels;
}
// Waits until a part of tile `turn` may be overwritten; the first round finds it free.
__device__ inline void wait_free(const room &m, int turn, int part) {
    mbarrier_wait(&m.free[turn % kStages][part], (turn / kStages + 1) % 2);
}

// Frees a part of tile `turn`, in all blocks that share it: one arrival of each warp.
template <int N_BLOCK> __device__ inline void release(const room &m, int turn, int part) {
    uint64_t *barrier = &m.free[turn % kStages][part];
    if (N_BLOCK == 1)
        mbarrier_arrive_warp(barrier);
    else if (threadIdx.x % WARP < N_BLOCK)
        mbarrier_arrive_at(barrier, threadIdx.x % WARP);
}

// Rows to the panels of queries, by all consumers, four threads a row; row_at(i) is NULL where
// there is none.
template <class ROW_AT> __device__ inline void load_queries(unsigned char *to, ROW_AT row_at) {
    constexpr int kLoaders = kConsumers * kGroup / kRows, kLoads = kHeadDim / 8 / kLoaders;
    int row = (threadIdx.x - kGroup) / kLoaders, first = threadIdx.x % kLoaders;
    const uint4 *from = (const uint4 *)row_at(row);
    uint4 x[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; i++)
        x[i] = from ? from[first + i * kLoaders] : make_uint4(0, 0, 0, 0);
    to += row * 128;
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
        int chunk = first + i * kLoaders;
        *(uint4 *)(to + chunk / 8 * kQueryPanelBytes + (chunk % 8 ^ row % 8) * 16) = x[i];
    }
    fence_async_proxy();
    barrier_sync(kBarrierConsumers, kConsumers * kGroup);
}

// score = or += query key^T over one panel.
__device__ inline void multiply_panel(uint32_t query, uint32_t key, int panel, bool add,
                                      tile_scores<share> &score) {
#pragma unroll
    for (int inside = 0; inside < 128; inside += 32)
        wgmma_shared(score[0], wgmma_operand(query + panel * kQueryPanelBytes + inside, 16),
                     wgmma_operand(key + panel * kPanelBytes + inside, 16), add || inside > 0);
}

// Starts what a part of the own tile adds to its scores, once that has come. WRITTEN: by stores
// of threads or their asynchronous copies; the fence lets products see them.
template <int PART, bool WRITTEN>
__device__ inline void multiply_keys(const room &m, int turn, tile_scores<share> &score) {
    int stage = turn % kStages, first = first_panel(stage, PART);
    mbarrier_wait(&m.full[stage][PART], turn / kStages % 2);
    if (WRITTEN) fence_async_proxy();
    uint32_t query = wgmma_recompute(shared_address(m.query));
    uint32_t key = wgmma_recompute(shared_address(m.key) + stage * kTileBytes);
    wgmma_hold(score[0]);
    wgmma_fence();
    if (PART == OWN) multiply_panel(query, key, kPanels - 1, false, score);
    query += first * kQueryPanelBytes;
    key += first * kPanelBytes;
#pragma unroll
    for (int i = 0; i < kHalfPanels; i++) multiply_panel(query, key, i, true, score);
    wgmma_commit();
}

// Starts sum += weight value for tile `turn` and the consumer's columns.
__device__ inline void multiply_values(const room &m, int turn, int consumer,
                                       const uint32_t (&weight)[kWeights][4], rows<share> &r) {
    uint32_t value =
        shared_address(m.key) + turn % kStages * kTileBytes + consumer * kHalfPanels * kPanelBytes;
    wgmma_hold(r.sum[0]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kWeights; i++)
        wgmma_registers(r.sum[0], weight[i], wgmma_operand(value + i * 16 * 128, kPanelBytes),
                        true);
    wgmma_commit();
}

// Weights of the own tile from its scores, packed. Sums are to shrink.
__device__ inline void weigh_tile(float scale, rows<share> &r, tile_scores<share> &score,
                                  uint32_t (&weight)[kWeights][4], float (&shrink)[1][2]) {
    float tile_max[1][2];
    find_maxima<share>(score, tile_max);
    bool is_large = raise_maxima<share>(r, tile_max, scale, shrink);
    weigh<share>(r, score, scale, is_large, shrink);
#pragma unroll
    for (int i = 0; i < kWeights; i++) pack_weights<share>(score[0], i * 16, weight[i]);
}

// The own tile's weights for the other consumer, whose threads have the same rows and columns of
// weights. A thread's place is free: it took from there what its fellow gave last.
__device__ inline void give(const room &m, int turn, const rows<share> &r,
                            const uint32_t (&weight)[kWeights][4]) {
    int i = threadIdx.x % kGroup;
    m.max[i] = make_float2(r.max[0][0], r.max[0][1]);
#pragma unroll
    for (int k = 0; k < kWeights; k++)
        m.weight[k][i] = make_uint4(weight[k][0], weight[k][1], weight[k][2], weight[k][3]);
    mbarrier_arrive(&m.given[turn % kStages]);
}

// Waits for the other consumer's weights of tile `turn` and its maxima; sums shrink to them.
__device__ inline void take(const room &m, int turn, rows<share> &r,
                            uint32_t (&weight)[kWeights][4]) {
    int i = threadIdx.x % kGroup;
    mbarrier_wait(&m.given[turn % kStages], turn / kStages % 2);
    float2 max = m.max[i];
    float shrink[1][2] = {{attention_shrink(r.max[0][0], max.x), //
                           attention_shrink(r.max[0][1], max.y)}};
    r.max[0][0] = max.x;
    r.max[0][1] = max.y;
#pragma unroll
    for (int k = 0; k < kWeights; k++) {
        uint4 x = m.weight[k][i];
        weight[k][0] = x.x;
        weight[k][1] = x.y;
        weight[k][2] = x.z;
        weight[k][3] = x.w;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) r.total[0][half] *= shrink[0][half];
    shrink_sums<share>(r, shrink);
}

// All tiles, at least one. KEYS says whether threads wrote the tiles and how many blocks share
// them, and hides, of a tile's scores, those that a row does not see.
template <class KEYS>
__device__ inline void consume(const room &m, const KEYS &keys, int n_tile, int consumer,
                               float scale, rows<share> &r) {
    constexpr bool kWritten = KEYS::kWritten;
    constexpr int kBlocks = KEYS::kBlocks;
    int turn = consumer; // the own tiles
    tile_scores<share> score;
    uint32_t weight[kWeights][4];
    float shrink[1][2];
    if (turn == 0) {
        multiply_keys<OWN, kWritten>(m, 0, score);
        multiply_keys<OTHERS, kWritten>(m, 0, score);
        wgmma_finish<0>(score[0]);
        keys.hide(0, r, score);
        weigh_tile(scale, r, score, weight, shrink);
        give(m, 0, r, weight);
        multiply_values(m, 0, consumer, weight, r);
        wgmma_finish<0>(r.sum[0]);
        release<kBlocks>(m, 0, OWN);
        turn += kConsumers;
    }
    for (; turn < n_tile; turn += kConsumers) {
        multiply_keys<OWN, kWritten>(m, turn, score);
        take(m, turn - 1, r, weight);
        multiply_values(m, turn - 1, consumer, weight, r);
        multiply_keys<OTHERS, kWritten>(m, turn, score);
        wgmma_finish<1>(r.sum[0]);
        release<kBlocks>(m, turn - 1, OTHERS);
        wgmma_finish<0>(score[0]);
        keys.hide(turn, r, score);
        weigh_tile(scale, r, score, weight, shrink);
        give(m, turn, r, weight);
        shrink_sums<share>(r, shrink);
        multiply_values(m, turn, consumer, weight, r);
        wgmma_finish<0>(r.sum[0]);
        release<kBlocks>(m, turn, OWN);
    }
    if (turn > n_tile) return; // the last tile was the own
    take(m, n_tile - 1, r, weight);
    multiply_values(m, n_tile - 1, consumer, weight, r);
    wgmma_finish<0>(r.sum[0]);
}

// The rows' totals over both consumers' tiles. Returns whether a sum of the block is NaN.
__device__ inline bool meet(const room &m, int consumer, rows<share> &r) {
    float2(*total)[kGroup] = (float2(*)[kGroup])m.weight;
    int i = threadIdx.x % kGroup;
    barrier_sync(kBarrierConsumers, kConsumers * kGroup); // all weights were taken
    add_totals<share>(r);
    total[consumer][i] = make_float2(r.total[0][0], r.total[0][1]);
    if (has_nan<share>(r)) *m.spoiled = 1;
    barrier_sync(kBarrierConsumers, kConsumers * kGroup);
    float2 others = total[1 - consumer][i];
    r.total[0][0] += others.x;
    r.total[0][1] += others.y;
    return *m.spoiled;
}

} // namespace latent_wgmma

#endif
