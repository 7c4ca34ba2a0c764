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

// The others lie one behind another, apart for out and lse: no stride is read.
__global__ void merge_parts(struct merge_args m) {
    int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP;
    if (row >= m.n_row) return;
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
    for (int i = lane; i < m.value_dim; i += WARP) {
        float *out = &m.out[row * m.value_dim + i], sum = 0;
        if (held != -INFINITY) sum = held_weight * *out;
        for (int s = 0; s < m.n_other; s++) {
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
    LAUNCH(backend, merge_parts, (unsigned)divide_up(merge.n_row, kWarps), kWarps * WARP, 0, merge);
    return OK;
}
