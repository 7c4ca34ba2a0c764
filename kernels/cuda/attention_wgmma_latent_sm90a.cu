// Attention over latents by wgmma: latent_wgmma.cuh. A block takes 64 rows and one range of keys,
// of which one thread of the first warpgroup brings tiles by tensor copies. What values that a row
// does not see may spoil is marked (mark_spoiled).
#include "kernels/cuda/latent_wgmma.cuh"

namespace {

using namespace latent_wgmma;

// Registers of a thread: launch bounds give 168 to each; three warpgroups share 504.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kRows == ATTENTION_WGMMA_LATENT_ROWS, "the table's");
static_assert(kSharedBytes <= ATTENTION_WGMMA_LATENT_BYTES, "the table's");
static_assert(ATTENTION_SPLIT_MULTIPLE % kTileKeys == 0, "ranges are whole tiles");

// The tiles of a block.
struct tiles {
    static constexpr bool kWritten = false;
    const attention_place &p;
    attention_interval common; // keys that all its rows see
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

__device__ inline void produce(const room &m, const tiles &keys, int n_tile,
                               const CUtensorMap *map) {
    for (int turn = 0; turn < n_tile; turn++) {
        int stage = turn % kStages, first = keys.first_key(turn);
        for (int part = 0; part < kParts; part++) {
            uint64_t *full = &m.full[stage][part];
            auto bring = [&](int panel) {
                tensor_copy_3d(m.key + stage * kTileBytes + panel * kPanelBytes, map, full,
                               panel * kPanel, keys.p.kv_head, first);
            };
            wait_free(m, turn, part);
            mbarrier_expect(full, (kHalfPanels + (part == OWN)) * kPanelBytes);
            if (part == OWN) bring(kPanels - 1);
            for (int i = 0; i < kHalfPanels; i++) bring(first_panel(stage, part) + i);
        }
    }
}

__global__ void __launch_bounds__(kThreads, 1)
    attend(const attention_work w, const __grid_constant__ CUtensorMap map) {
    DYNAMIC_SHARED(shared);
    room m = find_room(shared);
    attention_place p = attention_find_place(w, kRows, blockIdx.x);
    tiles keys = {p, attention_common(w, p.first_row, kRows)};
    int n_tile = attention_tiles(p, kTileKeys);
    init_room(m, 1);
    if (threadIdx.x < kGroup) {
        registers_lower<kProducerRegisters>();
        if (threadIdx.x == 0) produce(m, keys, n_tile, &map);
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
    float held[1][2];
    load_held<share>(w, p, warp_row, held);
    bool is_bad = meet(m, consumer, r);
    if (w.spoiled && is_bad)
        mark_spoiled<share>(w, p, warp_row);
    else
        finish_rows<share>(w, p, warp_row, consumer * share::kValueDim, r, held);
}

} // namespace

enum status attention_wgmma_latent(struct backend *backend, const struct attention_work *w) {
    struct key_rows key = {w->key, w->key_stride, w->n_key, w->n_kv_head, kHeadDim};
    CUtensorMap map;
    TRY(tensor_map_keys(&key, kTileKeys, &map));
    int64_t n_block = divide_up(w->n_row, kRows) * w->n_kv_head * w->n_split;
    TRY_CUDA(
        cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    LAUNCH(backend, attend, (unsigned)n_block, kThreads, kSharedBytes, *w, map);
    return OK;
}
