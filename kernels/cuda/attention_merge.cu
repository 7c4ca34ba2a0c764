// Merges of partial results (out, lse) over different keys: two of the caller's, or all ranges of
// one attention. A warp takes a row; the memory is the limit. A partial that saw no key (-inf)
// leaves the others bit for bit; its out is not read.
#include "kernels/cuda/attention.cuh"

namespace {

constexpr int kWarps = 8;

__global__ void merge_pair(struct merge_args m) {
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (row >= m.n_row) return;
    float lse = m.lse[row], other_lse = m.other_lse[row];
    if (other_lse == -INFINITY) return;
    float *out = m.out + row * m.value_dim;
    const float *other = m.other_out + row * m.value_dim;
    if (lse == -INFINITY) {
        for (int i = lane; i < m.value_dim; i += WARP) out[i] = other[i];
    } else {
        float max = lse > other_lse ? lse : other_lse;
        float weight = expf(lse - max), other_weight = expf(other_lse - max);
        float total = weight + other_weight;
        weight /= total;
        other_weight /= total;
        for (int i = lane; i < m.value_dim; i += WARP)
            out[i] = weight * out[i] + other_weight * other[i];
        other_lse = max + logf(total);
    }
    __syncwarp();
    if (lane == 0) m.lse[row] = other_lse;
}

// n_row: rows of one range.
__global__ void merge_ranges(int n_split, int64_t n_row, int value_dim, const float *from,
                             const float *from_lse, float *out, float *lse) {
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (row >= n_row) return;
    float max = -INFINITY, total = 0;
    for (int s = lane; s < n_split; s += WARP) max = fmaxf(max, from_lse[s * n_row + row]);
    max = warp_max(max);
    if (max == -INFINITY) max = 0;
    for (int s = lane; s < n_split; s += WARP) total += expf(from_lse[s * n_row + row] - max);
    total = warp_sum(total);
    for (int i = lane; i < value_dim; i += WARP) {
        float sum = 0;
        for (int s = 0; s < n_split; s++) {
            float partial_lse = from_lse[s * n_row + row];
            if (partial_lse == -INFINITY) continue;
            sum += expf(partial_lse - max) * from[(s * n_row + row) * value_dim + i];
        }
        out[row * value_dim + i] = total == 0 ? 0 : sum / total;
    }
    if (lane == 0) lse[row] = total == 0 ? -INFINITY : max + logf(total);
}

} // namespace

enum status cuda_merge_partials(struct backend *backend, const struct merge_args *args) {
    LAUNCH(backend, merge_pair, (unsigned)divide_up(args->n_row, kWarps), kWarps * WARP, 0, *args);
    return OK;
}

enum status attention_merge_splits(struct backend *backend, const struct attention_work *work,
                                   float *out, float *lse) {
    int64_t n_row = work->n_query * work->n_head;
    LAUNCH(backend, merge_ranges, (unsigned)divide_up(n_row, kWarps), kWarps * WARP, 0,
           work->n_split, n_row, work->value_dim, work->out, work->lse, out, lse);
    return OK;
}
