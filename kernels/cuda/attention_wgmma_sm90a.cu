// Attention with bf16 products by wgmma, keys and values of 64, 128 or 256, or 192 and 128. A block
// takes 128 rows of one kv head and one range of keys: one thread of the first warpgroup brings
// tiles of keys and values by tensor copies, each of the two others works on 64 rows, one on its
// weights while the other is on its products (Shah et al. 2024, FlashAttention-3, sections 3.1
// and 3.2). What values that a row does not see may spoil is marked (mark_spoiled).
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace {

using namespace attention_rows;

constexpr int kGroup = 4 * WARP, kConsumers = 2, kThreads = kGroup * (1 + kConsumers);
constexpr int kGroupRows = 64, kStages = 2;
constexpr int kPanel = 64; // columns of a panel: 128 bytes
// Registers of a thread: launch bounds give 168 to each; three warpgroups share 504.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
// Barriers between warps; 0 is __syncthreads'. Each consumer has its own of both.
constexpr int kBarrierQueries = 1, kBarrierTurn = 3;

template <int HEAD_DIM, int VALUE_DIM, int KEY_TILE> struct shape {
    static constexpr int kHeadDim = HEAD_DIM, kValueDim = VALUE_DIM;
    static constexpr int kRowBlocks = 1, kKeyTile = KEY_TILE;
    static constexpr int kRowTile = kConsumers * kGroupRows;
    static constexpr int kPanelBytes = kKeyTile * kPanel * 2, kQueryPanelBytes = kGroupRows * 128;
    static constexpr int kKeyBytes = kKeyTile * HEAD_DIM * 2; // of a tile
    static constexpr int kValueBytes = kKeyTile * VALUE_DIM * 2;
    static constexpr int kQueryBytes = kGroupRows * HEAD_DIM * 2; // of a consumer
    static constexpr int kAlign = 1024;                           // of panels
    static constexpr int kSharedBytes = kConsumers * kQueryBytes +
                                        kStages * (kKeyBytes + kValueBytes) + kAlign +
                                        4 * kStages * (int)sizeof(uint64_t);
    static_assert(HEAD_DIM % kPanel == 0 && VALUE_DIM % kPanel == 0, "whole panels");
    static_assert(ATTENTION_SPLIT_MULTIPLE % kKeyTile == 0, "ranges are whole tiles");
};

// Shared memory of a block.
template <class S> struct room {
    unsigned char *query, *key, *value; // [kConsumers], [kStages], [kStages] of panels
    uint64_t *key_full, *value_full;    // [kStages] the tile has come
    uint64_t *key_free, *value_free;    // [kStages] both consumers are done with it
};

template <class S> __device__ inline room<S> find_room(unsigned char *shared) {
    room<S> m;
    m.query = shared + (S::kAlign - shared_address(shared) % S::kAlign) % S::kAlign;
    m.key = m.query + kConsumers * S::kQueryBytes;
    m.value = m.key + kStages * S::kKeyBytes;
    m.key_full = (uint64_t *)(m.value + kStages * S::kValueBytes);
    m.value_full = m.key_full + kStages;
    m.key_free = m.value_full + kStages;
    m.value_free = m.key_free + kStages;
    return m;
}

// A tile of keys (or values) of N_COL columns, once its stage is free.
template <class S, int N_COL>
__device__ inline void bring_tile(const CUtensorMap *map, unsigned char *stages, uint64_t *full,
                                  uint64_t *free, int kv_head, int first, int turn) {
    constexpr int kPanels = N_COL / kPanel, kBytes = kPanels * S::kPanelBytes;
    int stage = turn % kStages;
    mbarrier_wait(&free[stage], (turn / kStages + 1) % 2); // the first round finds them free
    mbarrier_expect(&full[stage], kBytes);
    for (int i = 0; i < kPanels; i++)
        tensor_copy_3d(stages + stage * kBytes + i * S::kPanelBytes, map, &full[stage], i * kPanel,
                       kv_head, first);
}

template <class S>
__device__ inline void produce(const room<S> &m, const attention_place &p, const CUtensorMap *keys,
                               const CUtensorMap *values) {
    int turn = 0;
    for (int first = attention_first_key(p); first < p.end; turn++) {
        bring_tile<S, S::kHeadDim>(keys, m.key, m.key_full, m.key_free, p.kv_head, first, turn);
        bring_tile<S, S::kValueDim>(values, m.value, m.value_full, m.value_free, p.kv_head, first,
                                    turn);
        first = attention_next_key(p, first, S::kKeyTile);
    }
}

// A consumer's rows to its panels.
template <class S>
__device__ inline void load_queries(const attention_work &w, int kv_head, int64_t first_row,
                                    unsigned char *to) {
    constexpr int kChunks = S::kHeadDim / 8;
    for (int i = threadIdx.x % kGroup; i < kGroupRows * kChunks; i += kGroup) {
        int row = i / kChunks, chunk = i % kChunks;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (first_row + row < w.n_row) {
            int64_t at = attention_query_at(w, kv_head, first_row + row) + chunk * 8;
            x = *(const uint4 *)((const bf16_t *)w.query + at);
        }
        *(uint4 *)(to + chunk / 8 * S::kQueryPanelBytes + row * 128 + (chunk % 8 ^ row % 8) * 16) =
            x;
    }
    fence_async_proxy();
}

// Starts score = query key^T.
template <class S>
__device__ inline void multiply_keys(uint32_t query, uint32_t key, tile_scores<S> &score) {
    wgmma_hold(score[0]);
    wgmma_fence();
#pragma unroll
    for (int col = 0; col < S::kHeadDim; col += 16) {
        int panel = col / kPanel, inside = col % kPanel * 2;
        wgmma_shared(score[0], wgmma_operand(query + panel * S::kQueryPanelBytes + inside, 16),
                     wgmma_operand(key + panel * S::kPanelBytes + inside, 16), col > 0);
    }
    wgmma_commit();
}

// Starts sum += weight value.
template <class S>
__device__ inline void multiply_values(const uint32_t (&weight)[S::kKeyTile / 16][4],
                                       uint32_t value, rows<S> &r) {
    wgmma_hold(r.sum[0]);
    wgmma_fence();
#pragma unroll
    for (int key = 0; key < S::kKeyTile; key += 16)
        wgmma_registers(r.sum[0], weight[key / 16],
                        wgmma_operand(value + key * 128, S::kPanelBytes), true);
    wgmma_commit();
}

template <class S>
__device__ inline void weigh_tile(const attention_work &w, const attention_place &p,
                                  attention_interval common, int first, rows<S> &r,
                                  tile_scores<S> &score, float (&shrink)[1][2]) {
    if (first < common.begin || first + S::kKeyTile > common.end)
        hide_keys<S>(r, first, attention_sink_end(p, first), score);
    float tile_max[1][2];
    find_maxima<S>(score, tile_max);
    bool is_large = raise_maxima<S>(r, tile_max, w.score_scale, shrink);
    weigh<S>(r, score, w.score_scale, is_large, shrink);
}

template <class S>
__device__ inline void pack_tile(const tile_scores<S> &score,
                                 uint32_t (&weight)[S::kKeyTile / 16][4]) {
#pragma unroll
    for (int i = 0; i < S::kKeyTile / 16; i++) pack_weights<S>(score[0], i * 16, weight[i]);
}

// The rows of one consumer against all tiles, at least one. The scores of a tile are multiplied
// beside the values of the tile before. common: keys that all its rows see.
template <class S>
__device__ inline void consume(const attention_work &w, const room<S> &m, const attention_place &p,
                               int consumer, attention_interval common, rows<S> &r) {
    uint32_t query = shared_address(m.query + consumer * S::kQueryBytes);
    uint32_t key = shared_address(m.key), value = shared_address(m.value);
    int n_tile = attention_tiles(p, S::kKeyTile), first = attention_first_key(p);
    tile_scores<S> score;
    uint32_t weight[S::kKeyTile / 16][4];
    float shrink[1][2];
    mbarrier_wait(&m.key_full[0], 0);
    if (consumer == 1) barrier_sync(kBarrierTurn + 1, kConsumers * kGroup);
    multiply_keys<S>(query, key, score);
    barrier_arrive(kBarrierTurn + 1 - consumer, kConsumers * kGroup);
    wgmma_finish<0>(score[0]);
    mbarrier_arrive_warp(&m.key_free[0]);
    weigh_tile<S>(w, p, common, first, r, score, shrink);
    pack_tile<S>(score, weight);
    for (int turn = 1; turn < n_tile; turn++) {
        int stage = turn % kStages, before = (turn - 1) % kStages;
        mbarrier_wait(&m.key_full[stage], turn / kStages % 2);
        barrier_sync(kBarrierTurn + consumer, kConsumers * kGroup);
        multiply_keys<S>(query, key + stage * S::kKeyBytes, score);
        mbarrier_wait(&m.value_full[before], (turn - 1) / kStages % 2);
        multiply_values<S>(weight, value + before * S::kValueBytes, r);
        barrier_arrive(kBarrierTurn + 1 - consumer, kConsumers * kGroup);
        wgmma_finish<1>(score[0]);
        mbarrier_arrive_warp(&m.key_free[stage]);
        first = attention_next_key(p, first, S::kKeyTile);
        weigh_tile<S>(w, p, common, first, r, score, shrink);
        wgmma_finish<0>(r.sum[0]);
        mbarrier_arrive_warp(&m.value_free[before]);
        shrink_sums<S>(r, shrink);
        pack_tile<S>(score, weight);
    }
    if (consumer == 0) barrier_sync(kBarrierTurn, kConsumers * kGroup); // the last arrival's
    int last = n_tile - 1;
    mbarrier_wait(&m.value_full[last % kStages], last / kStages % 2);
    multiply_values<S>(weight, value + last % kStages * S::kValueBytes, r);
    wgmma_finish<0>(r.sum[0]);
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    attend(const attention_work w, const __grid_constant__ CUtensorMap keys,
           const __grid_constant__ CUtensorMap values) {
    DYNAMIC_SHARED(shared);
    room<S> m = find_room<S>(shared);
    attention_place p = attention_find_place(w, S::kRowTile, blockIdx.x);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; i++) {
            mbarrier_init(&m.key_full[i], 1);
            mbarrier_init(&m.value_full[i], 1);
            mbarrier_init(&m.key_free[i], kConsumers * kGroup / WARP);
            mbarrier_init(&m.value_free[i], kConsumers * kGroup / WARP);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < kGroup) {
        registers_lower<kProducerRegisters>();
        if (threadIdx.x == 0) produce<S>(m, p, &keys, &values);
        return;
    }
    registers_raise<kConsumerRegisters>();
    int consumer = threadIdx.x / kGroup - 1;
    int64_t group_row = p.first_row + consumer * kGroupRows;
    int64_t warp_row = group_row + threadIdx.x % kGroup / WARP * 16;
    rows<S> r;
    begin_rows<S>(w, warp_row, r);
    if (attention_first_key(p) < p.end) {
        load_queries<S>(w, p.kv_head, group_row, m.query + consumer * S::kQueryBytes);
        barrier_sync(kBarrierQueries + consumer, kGroup);
        attention_interval common = {0, 0};
        if (group_row < w.n_row) common = attention_common(w, group_row, kGroupRows);
        consume<S>(w, m, p, consumer, common, r);
    }
    end_rows<S>(w, p, warp_row, r);
}

template <class S> enum status launch(struct backend *backend, const struct attention_work *w) {
    CUtensorMap keys, values;
    struct key_rows key = {w->key, w->key_stride, w->n_key, w->n_kv_head, S::kHeadDim};
    struct key_rows value = {w->value, w->value_stride, w->n_key, w->n_kv_head, S::kValueDim};
    TRY(tensor_map_keys(&key, S::kKeyTile, &keys));
    TRY(tensor_map_keys(&value, S::kKeyTile, &values));
    int64_t n_block = divide_up(w->n_row, S::kRowTile) * w->n_kv_head * w->n_split;
    TRY_CUDA(cudaFuncSetAttribute(attend<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  S::kSharedBytes));
    LAUNCH(backend, attend<S>, (unsigned)n_block, kThreads, S::kSharedBytes, *w, keys, values);
    return OK;
}

} // namespace

enum status attention_wgmma_64(struct backend *backend, const struct attention_work *work) {
    return launch<shape<64, 64, 128>>(backend, work);
}
enum status attention_wgmma_128(struct backend *backend, const struct attention_work *work) {
    return launch<shape<128, 128, 128>>(backend, work);
}
enum status attention_wgmma_192(struct backend *backend, const struct attention_work *work) {
    return launch<shape<192, 128, 128>>(backend, work);
}
enum status attention_wgmma_256(struct backend *backend, const struct attention_work *work) {
    return launch<shape<256, 256, 64>>(backend, work);
}
