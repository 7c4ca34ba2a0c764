// Attention over latents by wgmma: latent_wgmma.cuh. A block takes 64 rows and one range of keys,
// of which one thread of the first warpgroup brings tiles by tensor copies. Two blocks of a
// cluster, where rows suffice, share their keys: each brings half of a tile's for both. What values
// that a row does not see may spoil is marked (mark_spoiled).
#include "kernels/cuda/latent_wgmma.cuh"

namespace {

using namespace latent_wgmma;

// Registers of a thread: launch bounds give 168 to each; three warpgroups share 504.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kRows == ATTENTION_WGMMA_LATENT_ROWS, "the table's");
static_assert(kSharedBytes <= ATTENTION_WGMMA_LATENT_BYTES, "the table's");
static_assert(ATTENTION_SPLIT_MULTIPLE % kTileKeys == 0, "ranges are whole tiles");

// The tiles of N_BLOCK blocks, as one of them sees them.
template <int N_BLOCK> struct tiles {
    static constexpr bool kWritten = false;
    static constexpr int kBlocks = N_BLOCK, kBrought = kTileKeys / N_BLOCK; // keys by one block
    const attention_place &p;
    attention_interval common; // keys that all the block's rows see
    __device__ int first_key(int turn) const {
        int n_sink = attention_sink_tiles(p, kTileKeys);
        return turn < n_sink ? turn * kTileKeys : p.begin + (turn - n_sink) * kTileKeys;
    }
    __device__ void hide(int turn, const rows<share> &r, tile_scores<share> &score) const {
        int first = first_key(turn);
        if (first < common.begin || first + kTileKeys > common.end)
            hide_keys<share>(r, first, attention_sink_end(p, first), score);
    }
};

template <int N_BLOCK>
__device__ inline void produce(const room &m, const tiles<N_BLOCK> &keys, int n_tile, int rank,
                               const CUtensorMap *map) {
    constexpr uint16_t kAll = (1 << N_BLOCK) - 1;
    unsigned char *to = m.key + rank * kPanelBytes / N_BLOCK;
    for (int turn = 0; turn < n_tile; turn++) {
        int stage = turn % kStages, first = keys.first_key(turn) + rank * keys.kBrought;
        for (int part = 0; part < kParts; part++) {
            uint64_t *full = &m.full[stage][part];
            auto bring = [&](int panel) {
                unsigned char *panel_to = to + stage * kTileBytes + panel * kPanelBytes;
                int column = panel * kPanel, head = keys.p.kv_head;
                if (N_BLOCK == 1)
                    tensor_copy_3d(panel_to, map, full, column, head, first);
                else
                    tensor_copy_3d_to(kAll, panel_to, map, full, column, head, first);
            };
            wait_free(m, turn, part);
            mbarrier_expect(full, (kHalfPanels + (part == OWN)) * kPanelBytes);
            if (part == OWN) bring(kPanels - 1);
            for (int i = 0; i < kHalfPanels; i++) bring(first_panel(stage, part) + i);
        }
    }
}

template <int N_BLOCK>
__global__ void __cluster_dims__(N_BLOCK, 1, 1) __launch_bounds__(kThreads, 1)
    attend(const attention_work w, const __grid_constant__ CUtensorMap map) {
    DYNAMIC_SHARED(shared);
    room m = find_room(shared);
    int rank = blockIdx.x % N_BLOCK;
    attention_place p = attention_find_place(w, N_BLOCK * kRows, blockIdx.x / N_BLOCK);
    p.first_row += rank * kRows;
    tiles<N_BLOCK> keys = {p, {0, 0}};
    if (p.first_row < w.n_row) keys.common = attention_common(w, p.first_row, kRows);
    int n_tile = attention_tiles(p, kTileKeys);
    init_room<N_BLOCK>(m, 1);
    if (threadIdx.x < kGroup) {
        registers_lower<kProducerRegisters>();
        if (threadIdx.x == 0) produce(m, keys, n_tile, rank, &map);
        return;
    }
    registers_raise<kConsumerRegisters>();
    int consumer = threadIdx.x / kGroup - 1;
    int64_t warp_row = p.first_row + threadIdx.x % kGroup / WARP * 16;
    rows<share> r;
    begin_rows<share>(w, warp_row, r);
    load_queries(m.query, [&](int i) -> const bf16_t * {
        if (p.first_row + i >= w.n_row) return NULL;
        return (const bf16_t *)w.query + attention_query_at(w, p.kv_head, p.first_row + i);
    });
    if (n_tile > 0) consume(m, keys, n_tile, consumer, w.score_scale, r);
    if (N_BLOCK > 1) cluster_arrive();
    float held[1][2];
    load_held<share>(w, p, warp_row, held);
    bool is_bad = meet(m, consumer, r);
    if (w.spoiled && is_bad)
        mark_spoiled<share>(w, p, warp_row);
    else
        finish_rows<share>(w, p, warp_row, consumer * share::kValueDim, r, held);
    if (N_BLOCK > 1) cluster_wait(); // the other may still arrive at this block's barriers
}

template <int N_BLOCK> enum status launch(struct backend *backend, const struct attention_work *w) {
    struct key_rows key = {w->key, w->key_stride, w->n_key, w->n_kv_head, kHeadDim};
    CUtensorMap map;
    TRY(tensor_map_keys(&key, tiles<N_BLOCK>::kBrought, &map));
    int64_t n_block = N_BLOCK * divide_up(w->n_row, N_BLOCK * kRows) * w->n_kv_head * w->n_split;
    TRY_CUDA(cudaFuncSetAttribute(attend<N_BLOCK>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  kSharedBytes));
    LAUNCH(backend, attend<N_BLOCK>, (unsigned)n_block, kThreads, kSharedBytes, *w, map);
    return OK;
}

} // namespace

enum status attention_wgmma_latent(struct backend *backend, const struct attention_work *work) {
    return launch<1>(backend, work);
}
enum status attention_wgmma_latent_pair(struct backend *backend,
                                        const struct attention_work *work) {
    return launch<2>(backend, work);
}
