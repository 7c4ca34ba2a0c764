// Merges of partial results (out, lse) over different keys: the caller's, one after another, or all
// parts of one attention at once. A warp takes a row, or a block where parts are many; the memory
// is the limit. A partial that saw no key (-inf) leaves the others bit for bit; its out is not
// read.
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

// In these two the others lie one behind another, apart for out and lse: no stride is read.
// A row's largest lse, what it holds among them, the same in all threads of the warp; 0 if none is.
__device__ inline float largest_lse(const struct merge_args &m, int64_t row, float held) {
    float max = held;
    for (int s = threadIdx.x % WARP; s < m.n_other; s += WARP)
        max = fmaxf(max, m.other_lse[s * m.n_row + row]);
    max = warp_max(max);
    return max == -INFINITY ? 0 : max;
}

// The weighed sum of parts first, first + step, ... of four columns from `column` on.
template <class WEIGHT_OF>
__device__ inline float4 sum_parts(const struct merge_args &m, int64_t row, int column, int first,
                                   int step, WEIGHT_OF weight_of) {
    constexpr int kBatch = 8; // loads under way
    float4 sum = {};
    for (int s = first; s < m.n_other; s += step * kBatch) {
        float weight[kBatch];
        float4 part[kBatch] = {};
#pragma unroll
        for (int b = 0; b < kBatch; b++)
            weight[b] = s + b * step < m.n_other ? weight_of(s + b * step) : 0;
#pragma unroll
        for (int b = 0; b < kBatch; b++) {
            int64_t at = ((s + b * step) * m.n_row + row) * m.value_dim + column;
            if (weight[b] != 0) part[b] = *(const float4 *)&m.other_out[at];
        }
#pragma unroll
        for (int b = 0; b < kBatch; b++) {
            sum.x += weight[b] * part[b].x;
            sum.y += weight[b] * part[b].y;
            sum.z += weight[b] * part[b].z;
            sum.w += weight[b] * part[b].w;
        }
    }
    return sum;
}

// Writes four columns of a row: the sum and what it held, over the total of the weights.
__device__ inline void write_columns(const struct merge_args &m, int64_t row, int column,
                                     float4 sum, float held_weight, float total) {
    const float columns[4] = {sum.x, sum.y, sum.z, sum.w};
    for (int c = 0; c < 4; c++) {
        float *out = &m.out[row * m.value_dim + column + c];
        float x = columns[c];
        if (held_weight != 0) x += held_weight * *out;
        *out = total == 0 ? 0 : x / total;
    }
}

// A warp takes a row.
__global__ void merge_few(struct merge_args m) {
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    if (row >= m.n_row) return;
    int lane = threadIdx.x % WARP;
    float held = m.merge ? m.lse[row] : -INFINITY, max = largest_lse(m, row, held);
    auto weight_of = [&](int s) { return expf(m.other_lse[s * m.n_row + row] - max); };
    float total = 0;
    for (int s = lane; s < m.n_other; s += WARP) total += weight_of(s);
    total = warp_sum(total);
    if (m.merge && total == 0) return; // saw no key
    float held_weight = expf(held - max);
    total += held_weight;
    for (int column = 4 * lane; column < m.value_dim; column += 4 * WARP)
        write_columns(m, row, column, sum_parts(m, row, column, 0, 1, weight_of), held_weight,
                      total);
    if (lane == 0) m.lse[row] = total == 0 ? -INFINITY : max + logf(total);
}

// A block takes a row: one token's are few rows of many parts. kWarps warps share the parts, and
// there are so many for each piece of 128 columns, up to kMostPieces.
constexpr int kMostPieces = 4;
__global__ void __launch_bounds__(kMostPieces *kWarps *WARP, 1) merge_many(struct merge_args m) {
    DYNAMIC_SHARED(shared);
    __shared__ float4 sums[kMostPieces][kWarps][WARP];
    float *weight = (float *)shared; // [n_other]
    int lane = threadIdx.x % WARP, share = threadIdx.x / WARP % kWarps;
    int piece = threadIdx.x / WARP / kWarps, n_piece = blockDim.x / WARP / kWarps;
    int64_t row = blockIdx.x;
    float held = m.merge ? m.lse[row] : -INFINITY, max = largest_lse(m, row, held), total = 0;
    for (int s = threadIdx.x; s < m.n_other; s += blockDim.x)
        weight[s] = expf(m.other_lse[s * m.n_row + row] - max);
    __syncthreads();
    for (int s = lane; s < m.n_other; s += WARP) total += weight[s];
    total = warp_sum(total);
    if (m.merge && total == 0) return; // saw no key
    float held_weight = expf(held - max);
    total += held_weight;
    for (int first = 0; first < m.value_dim; first += n_piece * 4 * WARP) {
        int column = first + (piece * WARP + lane) * 4;
        bool has = column < m.value_dim;
        __syncthreads();
        if (has)
            sums[piece][share][lane] =
                sum_parts(m, row, column, share, kWarps, [&](int s) { return weight[s]; });
        __syncthreads();
        if (!has || share != 0) continue;
        float4 sum = sums[piece][0][lane];
        for (int i = 1; i < kWarps; i++) {
            float4 x = sums[piece][i][lane];
            sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
        }
        write_columns(m, row, column, sum, held_weight, total);
    }
    if (threadIdx.x == 0) m.lse[row] = total == 0 ? -INFINITY : max + logf(total);
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
    int64_t n_piece = divide_up(args->value_dim, 4 * WARP);
    if (n_piece > kMostPieces) n_piece = kMostPieces;
    if (n >= kWarps)
        LAUNCH(backend, merge_many, (unsigned)merge.n_row, (unsigned)n_piece * kWarps * WARP,
               n * (int)sizeof(float), merge);
    else
        LAUNCH(backend, merge_few, (unsigned)divide_up(merge.n_row, kWarps), kWarps * WARP, 0,
               merge);
    return OK;
}
