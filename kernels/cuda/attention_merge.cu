// Merges of partial results (out, lse) over different keys: the caller's, one after another, or all
// parts of one attention at once. A warp takes a row; the memory is the limit. A partial that saw
// no key (-inf) leaves the others bit for bit; its out is not read.
#include "kernels/cuda/attention.cuh"

namespace {

constexpr int kWarps = 8, kColumns = 4;

// A lane's columns in registers, a pass over the others for each so many. n_other may be 0.
__global__ void merge_others(struct merge_args m) {
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (row >= m.n_row) return;
    float *out = m.out + row * m.value_dim;
    const float *other = m.other_out + row * m.value_dim;
    float held_lse = m.merge ? m.lse[row] : -INFINITY, lse = held_lse;
    bool changes = !m.merge;
    for (int first = lane; first < m.value_dim; first += kColumns * WARP) {
        float x[kColumns] = {};
        lse = held_lse;
        for (int c = 0; c < kColumns; c++)
            if (lse != -INFINITY && first + c * WARP < m.value_dim) x[c] = out[first + c * WARP];
        for (int i = 0; i < m.n_other; i++) {
            float other_lse = m.other_lse[i * m.other_stride + row];
            if (other_lse == -INFINITY) continue;
            struct merge_weights w = merge_weigh(lse, other_lse);
            for (int c = 0; c < kColumns; c++) {
                int column = first + c * WARP;
                if (column >= m.value_dim) break;
                float y = other[i * m.other_stride + column];
                x[c] = w.held < 0 ? y : w.held * x[c] + w.added * y;
            }
            lse = w.lse;
            changes = true;
        }
        for (int c = 0; c < kColumns; c++)
            if (changes && first + c * WARP < m.value_dim) out[first + c * WARP] = x[c];
    }
    __syncwarp();
    if (lane == 0) m.lse[row] = lse;
}

// The others lie one behind another, apart for out and lse: no stride is read. N_WARP warps share a
// row's others: one token's are few rows with many of them.
template <int N_WARP> __global__ void merge_parts(struct merge_args m) {
    constexpr int kBatch = 4; // loads under way
    __shared__ float4 sums[kWarps][WARP];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, share = warp % N_WARP;
    int64_t row = (int64_t)blockIdx.x * (kWarps / N_WARP) + warp / N_WARP;
    if (row >= m.n_row) return; // as all warps of the row do
    float held = m.merge ? m.lse[row] : -INFINITY, max = held, total = 0;
    for (int s = lane; s < m.n_other; s += WARP) max = fmaxf(max, m.other_lse[s * m.n_row + row]);
    max = warp_max(max);
    if (max == -INFINITY) max = 0;
    for (int s = lane; s < m.n_other; s += WARP)
        total += expf(m.other_lse[s * m.n_row + row] - max);
    total = warp_sum(total);
    if (m.merge && total == 0) return; // saw no key
    float held_weight = expf(held - max);
    total += held_weight;
    for (int first = 0; first < m.value_dim; first += 4 * WARP) {
        int column = first + 4 * lane;
        bool has = column < m.value_dim;
        float4 sum = {};
        for (int s = share; s < m.n_other; s += N_WARP * kBatch) {
            float weight[kBatch];
            float4 part[kBatch] = {};
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                int other = s + b * N_WARP;
                weight[b] = 0;
                if (other < m.n_other) weight[b] = expf(m.other_lse[other * m.n_row + row] - max);
            }
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                int64_t at = ((s + b * N_WARP) * m.n_row + row) * m.value_dim + column;
                if (has && weight[b] != 0) part[b] = *(const float4 *)&m.other_out[at];
            }
#pragma unroll
            for (int b = 0; b < kBatch; b++) {
                sum.x += weight[b] * part[b].x;
                sum.y += weight[b] * part[b].y;
                sum.z += weight[b] * part[b].z;
                sum.w += weight[b] * part[b].w;
            }
        }
        if (N_WARP > 1) {
            __syncthreads();
            sums[warp][lane] = sum;
            __syncthreads();
        }
        if (!has || share != 0) continue;
        for (int i = 1; i < N_WARP; i++) {
            sum.x += sums[warp + i][lane].x;
            sum.y += sums[warp + i][lane].y;
            sum.z += sums[warp + i][lane].z;
            sum.w += sums[warp + i][lane].w;
        }
        const float columns[4] = {sum.x, sum.y, sum.z, sum.w};
        for (int c = 0; c < 4; c++) {
            float *out = &m.out[row * m.value_dim + column + c];
            float x = columns[c];
            if (held != -INFINITY) x += held_weight * *out;
            *out = total == 0 ? 0 : x / total;
        }
    }
    if (share == 0 && lane == 0) m.lse[row] = total == 0 ? -INFINITY : max + logf(total);
}

} // namespace

enum status cuda_merge_partials(struct backend *backend, const struct merge_args *args) {
    LAUNCH(backend, merge_others, (unsigned)divide_up(args->n_row, kWarps), kWarps * WARP, 0,
           *args);
    return OK;
}

enum status attention_merge_parts(struct backend *backend, const struct attention_args *args, int n,
                                  const float *out, const float *lse) {
    struct merge_args merge = {};
    merge.n_row = args->n_query * args->n_head;
    merge.value_dim = args->value_dim;
    merge.merge = args->merge;
    merge.out = args->out;
    merge.lse = args->lse;
    merge.n_other = n;
    merge.other_out = out;
    merge.other_lse = lse;
    if (n >= kWarps)
        LAUNCH(backend, merge_parts<kWarps>, (unsigned)merge.n_row, kWarps * WARP, 0, merge);
    else
        LAUNCH(backend, merge_parts<1>, (unsigned)divide_up(merge.n_row, kWarps), kWarps * WARP, 0,
               merge);
    return OK;
}
