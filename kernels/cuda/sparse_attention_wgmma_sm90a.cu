// Attention over selected rows by wgmma, for latents: keys of 576, values their first 512 elements.
// A block takes one query, 64 heads and one part of the selection in tiles of 64 rows, which the
// first warpgroup gathers. The two others both multiply all scores and each one half of the value's
// columns (64 x 512 sums fill half a multiprocessor's registers), one on its weights while the
// other is on its products. A half of a tile is gathered anew as soon as both are done with it.
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/sparse_attention.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace {

using namespace attention_rows;

constexpr int kHeadDim = 576, kValueDim = 512, kRows = 64, kStages = 2;
constexpr int kGroup = 4 * WARP, kConsumers = 2, kThreads = kGroup * (1 + kConsumers);
constexpr int kPanel = 64, kPanels = kHeadDim / kPanel; // columns of a panel: 128 bytes
constexpr int kHalfPanels = kValueDim / kConsumers / kPanel;
// Registers of a thread: launch bounds give 168 to each; three warpgroups share 504.
constexpr int kProducerRegisters = 72, kConsumerRegisters = 216;
// Barriers between warps; 0 is __syncthreads'. Each consumer has its own turn.
constexpr int kBarrierConsumers = 1, kBarrierTurn = 2;

// A consumer's share of the rows: attention_rows.cuh.
struct share {
    static constexpr int kRowBlocks = 1, kKeyTile = SPARSE_TILE;
    static constexpr int kValueDim = ::kValueDim / kConsumers;
};
constexpr int kPanelBytes = SPARSE_TILE * kPanel * 2, kTileBytes = kPanels * kPanelBytes;
constexpr int kQueryPanelBytes = kRows * kPanel * 2, kQueryBytes = kPanels * kQueryPanelBytes;
constexpr int kAlign = 1024; // of panels
constexpr int kBarrierBytes = 4 * kStages * (int)sizeof(uint64_t);
constexpr int kSharedBytes = kAlign + kQueryBytes + kStages * kTileBytes + kBarrierBytes + 16;

// Shared memory of a block. Half 0 of a tile: the panels of the values' left half and the last
// panel, of keys only; half 1: those of the right half.
struct room {
    unsigned char *query, *key;   // [kPanels], [kStages][kPanels] of panels
    uint64_t (*full)[kConsumers]; // [kStages] the half has come
    uint64_t (*free)[kConsumers]; // [kStages] both consumers are done with it
    int *spoiled;
};

__device__ inline room find_room(unsigned char *shared) {
    room m;
    m.query = shared + (kAlign - shared_address(shared) % kAlign) % kAlign;
    m.key = m.query + kQueryBytes;
    m.full = (uint64_t(*)[kConsumers])(m.key + kStages * kTileBytes);
    m.free = m.full + kStages;
    m.spoiled = (int *)(m.free + kStages);
    return m;
}

// Eight lanes bring a row of a panel, a thread every 16th row of the tile.
constexpr int kGatherers = kGroup / 8, kGathered = SPARSE_TILE / kGatherers;
static_assert(kGatherers % 8 == 0, "a thread's rows have one swizzle");

// The thread's rows of a tile; -1 beyond the selection.
__device__ inline void find_selected(const struct sparse_attention_args &args,
                                     const struct sparse_place &p, int first,
                                     int (&row)[kGathered]) {
#pragma unroll
    for (int j = 0; j < kGathered; j++) {
        int i = first + threadIdx.x / 8 + j * kGatherers;
        row[j] = i < p.end ? args.row[p.query * args.k + i] : -1;
    }
}

// One panel of the thread's rows; zeros for those that are not selected.
__device__ inline void gather_panel(const struct attention_args &a, const int (&row)[kGathered],
                                    int panel, unsigned char *tile) {
    int lane = threadIdx.x % 8, first = threadIdx.x / 8;
    unsigned char *to = tile + panel * kPanelBytes + first * 128 + (lane ^ first % 8) * 16;
#pragma unroll
    for (int j = 0; j < kGathered; j++) {
        int64_t at = max(row[j], 0) * a.key_stride + panel * kPanel + lane * 8;
        copy_async_16(to + j * kGatherers * 128, (const bf16_t *)a.key + at, row[j] >= 0);
    }
}

__device__ inline void produce(const struct sparse_attention_args &args,
                               const struct sparse_place &p, const room &m) {
    int row[kGathered], turn = 0;
    find_selected(args, p, p.begin, row);
    for (int first = p.begin; first < p.end; first += SPARSE_TILE, turn++) {
        int stage = turn % kStages, parity = (turn / kStages + 1) % 2, next[kGathered];
        unsigned char *tile = m.key + stage * kTileBytes;
        find_selected(args, p, first + SPARSE_TILE, next);
        for (int half = 0; half < kConsumers; half++) {
            mbarrier_wait(&m.free[stage][half], parity); // the first round finds them free
#pragma unroll
            for (int i = 0; i < kHalfPanels; i++)
                gather_panel(args.attention, row, half * kHalfPanels + i, tile);
            if (half == 0) gather_panel(args.attention, row, kPanels - 1, tile);
            mbarrier_arrive_copies(&m.full[stage][half]);
        }
#pragma unroll
        for (int j = 0; j < kGathered; j++) row[j] = next[j];
    }
    copy_async_wait<0>();
}

// The heads' queries to their panels, by all consumers.
__device__ inline void load_queries(const struct attention_args &a, const struct sparse_place &p,
                                    unsigned char *to) {
    constexpr int kChunks = kHeadDim / 8, kLoaders = kConsumers * kGroup;
    const bf16_t *from =
        (const bf16_t *)a.query + p.query * a.query_stride + p.first_head * kHeadDim;
    for (int i = threadIdx.x - kGroup; i < kRows * kChunks; i += kLoaders) {
        int row = i / kChunks, chunk = i % kChunks;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (row < p.n_head) x = *(const uint4 *)(from + row * kHeadDim + chunk * 8);
        *(uint4 *)(to + chunk / 8 * kQueryPanelBytes + row * 128 + (chunk % 8 ^ row % 8) * 16) = x;
    }
    fence_async_proxy();
    barrier_sync(kBarrierConsumers, kLoaders);
}

// score = or += query key^T over one panel.
__device__ inline void multiply_panel(uint32_t query, uint32_t key, int panel, bool add,
                                      tile_scores<share> &score) {
#pragma unroll
    for (int inside = 0; inside < 128; inside += 32)
        wgmma_shared(score[0], wgmma_operand(query + panel * kQueryPanelBytes + inside, 16),
                     wgmma_operand(key + panel * kPanelBytes + inside, 16), add || inside > 0);
}

// Starts the part of the scores that half of a tile gives, once that has come. The copies were
// written by threads: the fence lets products see them.
template <int HALF>
__device__ inline void multiply_half(const room &m, int turn, tile_scores<share> &score) {
    int stage = turn % kStages;
    uint32_t query = wgmma_recompute(shared_address(m.query));
    uint32_t key = wgmma_recompute(shared_address(m.key) + stage * kTileBytes);
    mbarrier_wait(&m.full[stage][HALF], turn / kStages % 2);
    fence_async_proxy();
    wgmma_hold(score[0]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kHalfPanels; i++)
        multiply_panel(query, key, HALF * kHalfPanels + i, HALF > 0 || i > 0, score);
    if (HALF == 0) multiply_panel(query, key, kPanels - 1, true, score);
    wgmma_commit();
}

// Starts sum += weight value, for the consumer's columns.
__device__ inline void multiply_values(const room &m, int turn, int consumer,
                                       const uint32_t (&weight)[SPARSE_TILE / 16][4],
                                       rows<share> &r) {
    uint32_t value =
        shared_address(m.key) + turn % kStages * kTileBytes + consumer * kHalfPanels * kPanelBytes;
    wgmma_hold(r.sum[0]);
    wgmma_fence();
#pragma unroll
    for (int key = 0; key < SPARSE_TILE; key += 16)
        wgmma_registers(r.sum[0], weight[key / 16], wgmma_operand(value + key * 128, kPanelBytes),
                        true);
    wgmma_commit();
}

// Waits until at most N products are under way; `values` are the sums of those that ended.
template <int N, int N_BLOCK> __device__ inline void finish_products(float (&values)[N_BLOCK][4]) {
    wgmma_wait<N>();
    wgmma_hold(values);
}

// Frees half of a tile: one arrival of each warp.
__device__ inline void release(uint64_t *barrier) {
    if (threadIdx.x % WARP == 0) mbarrier_arrive(barrier);
}

// Weights of a tile from its scores, packed; earlier sums have shrunk. No product is under way.
__device__ inline void weigh_tile(int first, float scale, rows<share> &r, tile_scores<share> &score,
                                  uint32_t (&weight)[SPARSE_TILE / 16][4]) {
    float tile_max[1][2], shrink[1][2];
    if (first + SPARSE_TILE > r.visible[0][0].end) hide_keys<share>(r, first, 0, score);
    find_maxima<share>(score, tile_max);
    bool is_large = raise_maxima<share>(r, tile_max, scale, shrink);
    weigh<share>(r, score, scale, is_large, shrink);
    shrink_sums<share>(r, shrink);
#pragma unroll
    for (int i = 0; i < SPARSE_TILE / 16; i++) pack_weights<share>(score[0], i * 16, weight[i]);
}

// All tiles, at least one. The values of a tile and the scores of the next are multiplied in one
// turn, between which the consumers alternate.
__device__ inline void consume(const room &m, const struct sparse_place &p, int consumer,
                               float scale, rows<share> &r) {
    constexpr int kAll = kConsumers * kGroup;
    int n_tile = (p.end - p.begin + SPARSE_TILE - 1) / SPARSE_TILE;
    int own = kBarrierTurn + consumer, others = kBarrierTurn + 1 - consumer;
    tile_scores<share> score;
    uint32_t weight[SPARSE_TILE / 16][4];
    if (consumer == 1) barrier_sync(own, kAll);
    multiply_half<0>(m, 0, score);
    multiply_half<1>(m, 0, score);
    barrier_arrive(others, kAll);
    finish_products<0>(score[0]);
    release(&m.free[0][1 - consumer]);
    weigh_tile(p.begin, scale, r, score, weight);
    for (int turn = 1; turn < n_tile; turn++) {
        barrier_sync(own, kAll);
        multiply_values(m, turn - 1, consumer, weight, r);
        multiply_half<0>(m, turn, score);
        finish_products<1>(r.sum[0]);
        release(&m.free[(turn - 1) % kStages][consumer]);
        multiply_half<1>(m, turn, score);
        barrier_arrive(others, kAll);
        finish_products<0>(score[0]);
        release(&m.free[turn % kStages][1 - consumer]);
        weigh_tile(p.begin + turn * SPARSE_TILE, scale, r, score, weight);
    }
    if (consumer == 0) barrier_sync(own, kAll); // the last arrival's
    multiply_values(m, n_tile - 1, consumer, weight, r);
    finish_products<0>(r.sum[0]);
}

__device__ inline void begin(int end, rows<share> &r) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        r.visible[0][half] = {0, end};
        r.max[0][half] = -INFINITY;
        r.total[0][half] = 0;
    }
#pragma unroll
    for (int n = 0; n < share::kValueDim / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) r.sum[0][n][i] = 0;
}

// Writes or merges the consumer's columns, unless a sum of the block is NaN: true then.
__device__ inline bool finish(const struct attention_args &a, const struct sparse_parts &parts,
                              const struct sparse_place &p, int consumer, int *spoiled,
                              rows<share> &r) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x % kGroup / WARP;
    int first = warp * 16 + lane / 4; // head of the first half
    int64_t row = (blockIdx.y * a.n_query + p.query) * a.n_head + p.first_head + first;
    float held[2];
#pragma unroll
    for (int half = 0; half < 2; half++)
        held[half] = first + half * 8 < p.n_head ? sparse_held(parts, row + half * 8) : -INFINITY;
    if (has_nan<share>(r)) *spoiled = 1;
    add_totals<share>(r);
    barrier_sync(kBarrierConsumers, kConsumers * kGroup);
    if (*spoiled) return true;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (first + half * 8 >= p.n_head) continue;
        int64_t at = row + half * 8;
        float *out = parts.out + at * kValueDim + consumer * share::kValueDim + lane % 4 * 2;
        bool has_lse = consumer == 0 && lane % 4 == 0;
        finish_row<share>(r, 0, half, parts.merge, held[half], out,
                          has_lse ? parts.lse + at : NULL);
    }
    return false;
}

__global__ void __launch_bounds__(kThreads, 1)
    attend(const struct sparse_attention_args args, const struct sparse_parts parts) {
    DYNAMIC_SHARED(shared);
    room m = find_room(shared);
    struct sparse_place p = sparse_find_place(args, parts.n_part, kRows, SPARSE_TILE);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; i++)
            for (int half = 0; half < kConsumers; half++) {
                mbarrier_init(&m.full[i][half], kGroup);
                mbarrier_init(&m.free[i][half], kConsumers * kGroup / WARP);
            }
        *m.spoiled = 0;
        mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < kGroup) {
        registers_lower<kProducerRegisters>();
        produce(args, p, m);
        return;
    }
    registers_raise<kConsumerRegisters>();
    int consumer = threadIdx.x / kGroup - 1;
    rows<share> r;
    begin(p.end, r);
    load_queries(args.attention, p, m.query);
    if (p.begin < p.end) consume(m, p, consumer, args.attention.scale * kLog2e, r);
    bool spoiled = finish(args.attention, parts, p, consumer, m.spoiled, r);
    if (threadIdx.x == kGroup) parts.spoiled[blockIdx.y * gridDim.x + blockIdx.x] = spoiled;
}

} // namespace

int sparse_attention_wgmma_rows(const struct cuda_state *state, const struct attention_args *a) {
    bool fits = state->architecture == 90 && state->shared_bytes >= kSharedBytes &&
                a->query_dtype == DTYPE_BF16 && a->kv_dtype == DTYPE_BF16 &&
                a->head_dim == kHeadDim && a->value_dim == kValueDim && a->n_kv_head == 1 &&
                a->n_head > 16 && // else a form for few heads
                a->value == a->key && a->value_stride == a->key_stride &&
                sparse_is_aligned(a->query, a->query_stride) &&
                sparse_is_aligned(a->key, a->key_stride);
    return fits ? kRows : 0;
}

enum status sparse_attention_wgmma(struct backend *backend,
                                   const struct sparse_attention_args *args,
                                   const struct sparse_parts *parts) {
    const struct attention_args *a = &args->attention;
    TRY_CUDA(
        cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    dim3 grid((unsigned)sparse_blocks(a, kRows), (unsigned)parts->n_part);
    LAUNCH(backend, attend, grid, kThreads, kSharedBytes, *args, *parts);
    return OK;
}
