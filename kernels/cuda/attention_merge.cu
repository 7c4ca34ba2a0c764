// Merges of partial results (out, lse) over different keys: two of the caller's, or all parts of
// one attention. A warp takes a row; the memory is the limit. A partial that saw no key (-inf)
// leaves the others bit for bit; its out is not read.
#include "kernels/cuda/attention.cuh"

namespace {

constexpr int kWarps = 8;

__global__ void merge_pair(struct merge_args m) {
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (row >= m.n_row) return;
    float other_lse = m.other_lse[row];
    if (other_lse == -INFINITY) return;
    struct merge_weights w = merge_weigh(m.lse[row], other_lse);
    float *out = m.out + row * m.value_dim;
    const float *other = m.other_out + row * m.value_dim;
    for (int i = lane; i < m.value_dim; i += WARP)
        out[i] = w.held < 0 ? other[i] : w.held * out[i] + w.added * other[i];
    __syncwarp();
    if (lane == 0) m.lse[row] = w.lse;
}

// The others are n results, [n, n_row]; merge: out and lse hold one more.
__global__ void merge_parts(struct merge_args m, int n, bool merge) {
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (row >= m.n_row) return;
    float held = merge ? m.lse[row] : -INFINITY, max = held, total = 0;
    for (int s = lane; s < n; s += WARP) max = fmaxf(max, m.other_lse[s * m.n_row + row]);
    max = warp_max(max);
    if (max == -INFINITY) max = 0;
    for (int s = lane; s < n; s += WARP) total += expf(m.other_lse[s * m.n_row + row] - max);
    total = warp_sum(total);
    if (merge && total == 0) return; // saw no key
    float held_weight = expf(held - max);
    total += held_weight;
    for (int i = lane; i < m.value_dim; i += WARP) {
        float *out = &m.out[row * m.value_dim + i], sum = 0;
        if (held != -INFINITY) sum = held_weight * *out;
        for (int s = 0; s < n; s++) {
            float part = m.other_lse[s * m.n_row + row];
            if (part == -INFINITY) continue;
            sum += expf(part - max) * m.other_out[(s * m.n_row + row) * m.value_dim + i];
        }
        *out = total == 0 ? 0 : sum / total;
    }
    if (lane == 0) m.lse[row] = total == 0 ? -INFINITY : max + logf(total);
}

} // namespace

enum status cuda_merge_partials(struct backend *backend, const struct merge_args *args) {
    LAUNCH(backend, merge_pair, (unsigned)divide_up(args->n_row, kWarps), kWarps * WARP, 0, *args);
    return OK;
}

enum status attention_merge_parts(struct backend *backend, const struct attention_args *args, int n,
                                  const float *out, const float *lse) {
    const struct merge_args merge = {
        args->n_query * args->n_head, args->value_dim, args->out, args->lse, out, lse};
    LAUNCH(backend, merge_parts, (unsigned)divide_up(merge.n_row, kWarps), kWarps * WARP, 0, merge,
           n, args->merge);
    return OK;
}
