// Attention of any dimensions and formats, fp32 products: the kernel for what no other fits. A
// block takes kRowTile rows of one kv head and one range of keys; a warp kWarpRows of the rows,
// whose scores it holds one key a lane and whose sums it holds one column a lane.
// Streaming softmax: Dao et al. 2022, algorithm 1. A row never multiplies a key that it does not
// see, so what lies there (even NaN) cannot reach it.
#include "kernels/cuda/attention_plain.cuh"

#include <algorithm>

namespace {

using namespace attention_plain;

constexpr int kMostSpoiledBlock = 512;                // there is rarely work for any
constexpr int kMostVector = ATTENTION_MAX_DIM / WARP; // columns of a lane
static_assert(ATTENTION_SPOILED_ROWS % kWarpRows == 0, "a warp's rows are of one mark");

// The keys [begin, end) of one row.
template <int kVector>
__device__ void add_row_values(const struct attention_work &w, const float *value,
                               const float *weight, int begin, int end, float sum[kVector]) {
    for (int key = begin; key < end; key++)
        for (int v = 0; v < kVector; v++) {
            int col = v * WARP + threadIdx.x % WARP;
            if (col < w.value_dim)
                sum[v] = fmaf(weight[key], value[key * pitch(w.value_dim) + col], sum[v]);
        }
}

// The keys that all rows of the warp see.
template <int kVector>
__device__ void add_values(const struct attention_work &w, const float *value, const float *weight,
                           struct attention_interval common, float sum[kWarpRows][kVector]) {
    int lane = threadIdx.x % WARP;
    for (int key = common.begin; key < common.end; key++) {
        float x[kVector];
#pragma unroll
        for (int v = 0; v < kVector; v++) {
            int col = v * WARP + lane;
            x[v] = col < w.value_dim ? value[key * pitch(w.value_dim) + col] : 0;
        }
#pragma unroll
        for (int r = 0; r < kWarpRows; r++) {
            float p = weight[r * kKeyTile + key];
#pragma unroll
            for (int v = 0; v < kVector; v++) sum[r][v] = fmaf(p, x[v], sum[r][v]);
        }
    }
}

template <int kVector>
__device__ void add_visible_values(const struct attention_work &w, const float *value,
                                   const float *weight,
                                   const struct attention_interval visible[kWarpRows],
                                   float sum[kWarpRows][kVector]) {
    struct attention_interval common = {visible[kWarpRows - 1].begin, visible[0].end};
    common.end = max(common.begin, common.end);
    add_values<kVector>(w, value, weight, common, sum);
#pragma unroll
    for (int r = 0; r < kWarpRows; r++) {
        const float *own = weight + r * kKeyTile;
        int begin = visible[r].begin, end = visible[r].end;
        add_row_values<kVector>(w, value, own, begin, min(end, common.begin), sum[r]);
        add_row_values<kVector>(w, value, own, max(begin, common.end), end, sum[r]);
    }
}

// Scores to weights in shared memory [kWarpRows, kKeyTile]; sums, totals and maxima follow.
// visible: what each row sees of the tile.
template <int kVector>
__device__ void weigh(const struct attention_interval visible[kWarpRows],
                      const float score[kWarpRows], float *weight, float max[kWarpRows],
                      float total[kWarpRows], float sum[kWarpRows][kVector]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < kWarpRows; r++) {
        bool sees = lane >= visible[r].begin && lane < visible[r].end;
        float s = sees ? score[r] : -INFINITY;
        float new_max = attention_raise_max(max[r], warp_max(s));
        float shrink = attention_shrink(max[r], new_max);
        max[r] = new_max;
        float p = exp2f(s - (new_max == -INFINITY ? 0 : new_max));
        total[r] = total[r] * shrink + p;
        weight[r * kKeyTile + lane] = p;
#pragma unroll
        for (int v = 0; v < kVector; v++) sum[r][v] *= shrink;
    }
    __syncwarp();
}

// Writes or merges the rows' results. Lane r works out what becomes of row r.
template <int kVector>
__device__ void finish(const struct attention_work &w, const struct attention_place &p,
                       int64_t first_row, const float max[kWarpRows], float total[kWarpRows],
                       float sum[kWarpRows][kVector]) {
    int lane = threadIdx.x % WARP;
    float own_max = -INFINITY, own_total = 0;
#pragma unroll
    for (int r = 0; r < kWarpRows; r++) {
        total[r] = warp_sum(total[r]);
        if (lane == r) own_max = max[r], own_total = total[r];
    }
    int64_t own_at = -1; // not written: a row that is none, or keeps what it has
    if (lane < kWarpRows && first_row + lane < w.n_row && !(w.merge && own_total == 0))
        own_at = attention_row_at(w, p, first_row + lane);
    struct attention_end own =
        attention_finish(own_max, own_total, w.merge && own_at >= 0 ? w.lse[own_at] : -INFINITY);
    if (own_at >= 0) w.lse[own_at] = own.lse;
#pragma unroll
    for (int r = 0; r < kWarpRows; r++) {
        int64_t at = __shfl_sync(FULL_WARP, own_at, r);
        float by = __shfl_sync(FULL_WARP, own.by, r), held = __shfl_sync(FULL_WARP, own.held, r);
        if (at < 0) continue;
#pragma unroll
        for (int v = 0; v < kVector; v++) {
            int col = v * WARP + lane;
            if (col >= w.value_dim) continue;
            float *out = &w.out[at * w.value_dim + col];
            float x = total[r] == 0 ? 0 : sum[r][v] / total[r];
            *out = held < 0 ? x : fmaf(*out, held, sum[r][v] * by);
        }
    }
}

// What the warp's rows see of n_key keys from `first` on, counted from there. Rows past the last
// one do as it does.
__device__ void find_visible(const struct attention_work &w, const struct attention_place &p,
                             int64_t first_row, int first, int n_key,
                             struct attention_interval visible[kWarpRows]) {
#pragma unroll
    for (int r = 0; r < kWarpRows; r++) {
        struct attention_interval v = attention_sees(w, min(first_row + r, w.n_row - 1));
        if (attention_sink_end(p, first)) v.begin = 0;
        visible[r].begin = min(max(v.begin - first, 0), n_key);
        visible[r].end = max(visible[r].begin, min(v.end - first, n_key));
    }
}

template <int kVector>
__device__ void attend_tile(const struct attention_work &w, const struct attention_place &p,
                            unsigned char *shared) {
    float *query = (float *)shared, *weight = query + kRowTile * pitch(w.head_dim);
    float *tile = weight + kRowTile * kKeyTile; // keys, then values
    int warp_row = threadIdx.x / WARP * kWarpRows;
    load_queries(w, p.kv_head, p.first_row, query);
    weight += warp_row * kKeyTile;
    float score[kWarpRows], max[kWarpRows], total[kWarpRows] = {}, sum[kWarpRows][kVector] = {};
    for (int r = 0; r < kWarpRows; r++) max[r] = -INFINITY;
    for (int first = attention_first_key(p); first < p.end;
         first = attention_next_key(p, first, kKeyTile)) {
        int n_key = min(attention_end_key(p, first) - first, kKeyTile);
        struct attention_interval visible[kWarpRows];
        find_visible(w, p, p.first_row + warp_row, first, n_key, visible);
        __syncthreads();
        load_tile(w, w.key, w.key_stride, w.head_dim, p.kv_head, first, n_key, tile);
        __syncthreads();
        score_tile(w, query + warp_row * pitch(w.head_dim), tile, score);
        weigh<kVector>(visible, score, weight, max, total, sum);
        __syncthreads();
        load_tile(w, w.value, w.value_stride, w.value_dim, p.kv_head, first, n_key, tile);
        __syncthreads();
        add_visible_values<kVector>(w, tile, weight, visible, sum);
    }
    if (!w.only_spoiled || attention_is_spoiled(w, p, p.first_row + warp_row))
        finish<kVector>(w, p, p.first_row + warp_row, max, total, sum);
}

template <int kVector>
__global__ void __launch_bounds__(kThreads) attend(struct attention_work w, int64_t n_tile) {
    DYNAMIC_SHARED(shared);
    for (int64_t i = blockIdx.x; i < n_tile; i += gridDim.x) {
        struct attention_place p = attention_find_place(w, kRowTile, i);
        bool is_wanted = !w.only_spoiled;
        for (int row = 0; row < kRowTile && !is_wanted; row += ATTENTION_SPOILED_ROWS)
            is_wanted = attention_is_spoiled(w, p, p.first_row + row);
        if (!is_wanted) continue;
        __syncthreads();
        attend_tile<kVector>(w, p, shared);
    }
}

template <int kVector>
enum status launch(struct backend *backend, const struct attention_work *work) {
    int widest = work->head_dim > work->value_dim ? work->head_dim : work->value_dim;
    int n_float = kRowTile * (work->head_dim + kPad + kKeyTile) + kKeyTile * (widest + kPad);
    int bytes = n_float * (int)sizeof(float);
    int64_t n_tile = divide_up(work->n_row, kRowTile) * work->n_kv_head * work->n_split;
    int64_t n_block = work->only_spoiled ? std::min<int64_t>(n_tile, kMostSpoiledBlock) : n_tile;
    TRY(reserve_shared(backend, attend<kVector>, bytes));
    LAUNCH(backend, attend<kVector>, (unsigned)n_block, kThreads, bytes, *work, n_tile);
    return OK;
}

} // namespace

enum status attention_plain_launch(struct backend *backend, const struct attention_work *work) {
    if (work->value_dim <= 2 * WARP) return launch<2>(backend, work);
    if (work->value_dim <= 4 * WARP) return launch<4>(backend, work);
    if (work->value_dim <= 8 * WARP) return launch<8>(backend, work);
    return launch<kMostVector>(backend, work);
}
