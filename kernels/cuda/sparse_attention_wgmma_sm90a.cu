// Attention over selected rows by wgmma, for latents: latent_wgmma.cuh. A block takes one query, 64
// heads and one part of the selection, whose tiles the first warpgroup gathers.
#include "kernels/cuda/latent_wgmma.cuh"
#include "kernels/cuda/sparse_attention.cuh"

namespace {

using namespace latent_wgmma;

// Registers of a thread: launch bounds give 168 to each; three warpgroups share 504.
constexpr int kProducerRegisters = 72, kConsumerRegisters = 216;
static_assert(kTileKeys == SPARSE_TILE, "parts are whole tiles");

// The tiles of a block.
struct tiles {
    static constexpr bool kWritten = true;
    static constexpr int kBlocks = 1;
    int begin, end;
    __device__ void hide(int turn, const rows<share> &r, tile_scores<share> &score) const {
        int first = begin + turn * kTileKeys;
        if (first + kTileKeys > end) hide_keys<share>(r, first, 0, score);
    }
};

// Eight lanes bring a row of a panel, a thread every 16th row of the tile.
constexpr int kGatherers = kGroup / 8, kGathered = kTileKeys / kGatherers;
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

// A part of a tile: of each of the thread's rows all panels in turn; zeros for those that are not
// selected.
template <int PART>
__device__ inline void gather_part(const attention_args &a, const int (&row)[kGathered],
                                   const room &m, int turn) {
    int lane = threadIdx.x % 8, first = threadIdx.x / 8, stage = turn % kStages;
    int panel = first_panel(stage, PART);
    unsigned char *to = m.key + stage * kTileBytes + first * 128 + (lane ^ first % 8) * 16;
    wait_free(m, turn, PART);
#pragma unroll
    for (int j = 0; j < kGathered; j++) {
        const bf16_t *from = (const bf16_t *)a.key + max(row[j], 0) * a.key_stride + lane * 8;
        unsigned char *row_to = to + j * kGatherers * 128;
        auto copy = [&](int i) {
            copy_async_16(row_to + i * kPanelBytes, from + i * kPanel, row[j] >= 0);
        };
        if (PART == OWN) copy(kPanels - 1);
#pragma unroll
        for (int i = 0; i < kHalfPanels; i++) copy(panel + i);
    }
    mbarrier_arrive_copies(&m.full[stage][PART]);
}

__device__ inline void produce(const sparse_attention_args &args, const sparse_place &p,
                               const room &m) {
    int row[kGathered], turn = 0;
    find_selected(args, p, p.begin, row);
    for (int first = p.begin; first < p.end; first += kTileKeys, turn++) {
        int next[kGathered];
        find_selected(args, p, first + kTileKeys, next);
        gather_part<OWN>(args.attention, row, m, turn);
        gather_part<OTHERS>(args.attention, row, m, turn);
#pragma unroll
        for (int j = 0; j < kGathered; j++) row[j] = next[j];
    }
    copy_async_wait<0>();
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
__device__ inline bool finish(const attention_args &a, const sparse_parts &parts,
                              const sparse_place &p, const room &m, int consumer, rows<share> &r) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x % kGroup / WARP;
    int first = warp * 16 + lane / 4; // head of the first half
    int64_t row = (blockIdx.y * a.n_query + p.query) * a.n_head + p.first_head + first;
    float held[2];
#pragma unroll
    for (int half = 0; half < 2; half++)
        held[half] = first + half * 8 < p.n_head ? sparse_held(parts, row + half * 8) : -INFINITY;
    if (meet(m, consumer, r)) return true;
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
    sparse_place p = sparse_find_place(args, parts.n_part, kRows, kTileKeys);
    init_room<1>(m, kGroup);
    if (threadIdx.x < kGroup) {
        registers_lower<kProducerRegisters>();
        produce(args, p, m);
        return;
    }
    registers_raise<kConsumerRegisters>();
    int consumer = threadIdx.x / kGroup - 1, n_tile = (p.end - p.begin + kTileKeys - 1) / kTileKeys;
    const attention_args &a = args.attention;
    rows<share> r;
    begin(p.end, r);
    load_queries(m.query, [&](int i) -> const bf16_t * {
        if (i >= p.n_head) return NULL;
        return (const bf16_t *)a.query + p.query * a.query_stride + (p.first_head + i) * kHeadDim;
    });
    tiles keys = {p.begin, p.end};
    if (n_tile > 0) consume(m, keys, n_tile, consumer, a.scale * kLog2e, r);
    bool spoiled = finish(a, parts, p, m, consumer, r);
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
