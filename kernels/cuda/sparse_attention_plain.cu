// Attention over selected rows for any shape and format, in fp32: one block a query, head and part
// of the selection. Each warp takes every eighth selected row, its lanes share the row's elements;
// the warps' sums are merged at the end.
#include "kernels/cuda/sparse_attention.cuh"

namespace {

enum { WARPS = 8, THREADS = WARPS * WARP, MAX_DIM = 576, LANE_ELEMENTS = MAX_DIM / WARP };

// As the products see an element: rounded to bf16 when the query is.
template <bool ROUND, typename T> __device__ inline float operand(const T *x) {
    float value = load_float(x);
    return ROUND ? __bfloat162float(__float2bfloat16_rn(value)) : value;
}

struct warp_sums {
    float max, total, out[LANE_ELEMENTS];
};

// One more row: `key` and `value` are the head's.
template <bool ROUND, typename KV>
__device__ void add_row(const struct attention_args &a, const float *query, const KV *key,
                        const KV *value, struct warp_sums *sums) {
    int lane = threadIdx.x % WARP;
    float score = 0;
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++)
        if (i * WARP + lane < a.head_dim)
            score = fmaf(query[i], operand<ROUND>(key + i * WARP + lane), score);
    score = warp_sum(score) * (a.scale * kLog2e);
    if (score == -INFINITY) return;
    if (score > sums->max) {
        float max = ceilf(score), factor = exp2f(sums->max - max); // 0 for the first
        sums->total *= factor;
#pragma unroll
        for (int i = 0; i < LANE_ELEMENTS; i++) sums->out[i] *= factor;
        sums->max = max;
    }
    float weight = exp2f(score - sums->max);
    sums->total += weight;
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++)
        if (i * WARP + lane < a.value_dim)
            sums->out[i] = fmaf(weight, operand<ROUND>(value + i * WARP + lane), sums->out[i]);
}

// `all` [WARPS, value_dim], then WARPS maxima and totals. `row`: where the result goes in the
// parts.
__device__ void merge_warps(const struct attention_args &a, const struct sparse_parts &parts,
                            int64_t row, const struct warp_sums &sums, float *all) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *max_of = all + WARPS * a.value_dim, *total_of = max_of + WARPS;
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++)
        if (i * WARP + lane < a.value_dim) all[warp * a.value_dim + i * WARP + lane] = sums.out[i];
    if (lane == 0) {
        max_of[warp] = sums.max;
        total_of[warp] = sums.total;
    }
    float held = sparse_held(parts, row);
    __syncthreads();
    float max = -INFINITY, total = 0, factor[WARPS];
    for (int w = 0; w < WARPS; w++) max = fmaxf(max, max_of[w]);
    for (int w = 0; w < WARPS; w++) {
        factor[w] = max_of[w] == -INFINITY ? 0 : exp2f(max_of[w] - max);
        total += max_of[w] == -INFINITY ? total_of[w] : factor[w] * total_of[w]; // NaN stays NaN
    }
    if (parts.merge && total == 0) return; // saw no key
    struct attention_end end = attention_finish(max, total, held);
    for (int i = threadIdx.x; i < a.value_dim; i += THREADS) {
        float *out = &parts.out[row * a.value_dim + i], sum = 0;
        for (int w = 0; w < WARPS; w++) sum = fmaf(factor[w], all[w * a.value_dim + i], sum);
        float x = total == 0 ? 0 : sum / total;
        if (!(end.held < 0)) x = fmaf(*out, end.held, sum * end.by);
        *out = x;
    }
    if (threadIdx.x == 0) parts.lse[row] = end.lse;
}

// One query and head against one part of the selection, by the whole block.
template <typename Q, typename KV>
__device__ void attend_head(const struct sparse_attention_args &args,
                            const struct sparse_parts &parts, int64_t t, int head, int part,
                            int tile, float *shared) {
    constexpr bool kRound = sizeof(Q) == 2;
    const struct attention_args &a = args.attention;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, begin, end;
    int64_t kv_head = head / (a.n_head / a.n_kv_head);
    part_range(args.n_selected[t], part, parts.n_part, tile, &begin, &end);
    const Q *query = (const Q *)a.query + t * a.query_stride + (int64_t)head * a.head_dim;
    float own[LANE_ELEMENTS];
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++)
        own[i] = i * WARP + lane < a.head_dim ? load_float(query + i * WARP + lane) : 0;
    struct warp_sums sums = {-INFINITY, 0, {}};
    for (int i = begin + warp; i < end; i += WARPS) {
        int64_t row = args.row[t * args.k + i];
        add_row<kRound>(a, own, (const KV *)a.key + row * a.key_stride + kv_head * a.head_dim,
                        (const KV *)a.value + row * a.value_stride + kv_head * a.value_dim, &sums);
    }
    merge_warps(a, parts, ((int64_t)part * a.n_query + t) * a.n_head + head, sums, shared);
}

template <typename Q, typename KV>
__global__ void attend_kernel(struct sparse_attention_args args, struct sparse_parts parts) {
    DYNAMIC_SHARED(shared);
    attend_head<Q, KV>(args, parts, blockIdx.x, blockIdx.y, blockIdx.z, WARPS, (float *)shared);
}

// Grid: as the form's that marked the blocks.
__global__ void attend_again_kernel(struct sparse_attention_args args, struct sparse_parts parts) {
    DYNAMIC_SHARED(shared);
    if (!parts.spoiled[blockIdx.y * gridDim.x + blockIdx.x]) return;
    struct sparse_place p = sparse_find_place(args, parts.n_part, parts.rows, SPARSE_TILE);
    for (int i = 0; i < p.n_head; i++) {
        attend_head<__nv_bfloat16, __nv_bfloat16>(args, parts, p.query, (int)p.first_head + i,
                                                  blockIdx.y, SPARSE_TILE, (float *)shared);
        __syncthreads(); // the next head uses the same room
    }
}

size_t shared_bytes(const struct attention_args *a) {
    return (size_t)WARPS * (a->value_dim + 2) * sizeof(float);
}

template <typename Q, typename KV>
enum status launch(struct backend *backend, const struct sparse_attention_args *args,
                   const struct sparse_parts *parts) {
    const struct attention_args *a = &args->attention;
    dim3 grid((unsigned)a->n_query, (unsigned)a->n_head, (unsigned)parts->n_part);
    LAUNCH(backend, (attend_kernel<Q, KV>), grid, THREADS, shared_bytes(a), *args, *parts);
    return OK;
}

} // namespace

enum status sparse_attention_plain(struct backend *backend,
                                   const struct sparse_attention_args *args,
                                   const struct sparse_parts *parts) {
    const struct attention_args *a = &args->attention;
    if (a->query_dtype == DTYPE_BF16)
        return a->kv_dtype == DTYPE_BF16
                   ? launch<__nv_bfloat16, __nv_bfloat16>(backend, args, parts)
                   : launch<__nv_bfloat16, float>(backend, args, parts);
    return a->kv_dtype == DTYPE_BF16 ? launch<float, __nv_bfloat16>(backend, args, parts)
                                     : launch<float, float>(backend, args, parts);
}

enum status sparse_attention_again(struct backend *backend,
                                   const struct sparse_attention_args *args,
                                   const struct sparse_parts *parts) {
    const struct attention_args *a = &args->attention;
    dim3 grid((unsigned)sparse_blocks(a, parts->rows), (unsigned)parts->n_part);
    LAUNCH(backend, attend_again_kernel, grid, THREADS, shared_bytes(a), *args, *parts);
    return OK;
}
