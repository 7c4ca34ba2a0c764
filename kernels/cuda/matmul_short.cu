// y = x W^T for at most SHORT_TOKENS tokens: bound by the bytes of the weights, which are read once
// in their own format. A group of 1, 2 or 4 warps takes kRows rows; a thread takes chunks of 16
// elements of them in turn, expands them in registers and multiplies them with every token's x.
// Weights are not rounded to bf16: the products have fp32 inputs whatever x is. Groups of products
// of one shape share a launch.
#include <algorithm>

#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/matmul.cuh"

namespace {

constexpr int kRows = 2, kWarps = 4, kThreads = kWarps * WARP;
constexpr int kBlocks = 4;       // resident: up to 128 registers a thread
constexpr int kWarpsToFill = 24; // of a multiprocessor: below it rows are split over warps

struct short_product {
    struct matmul_args args;
    int n_split; // warps that share a row: 1, 2 or 4
};

__device__ void load_run(const float *x, float out[RUN]) {
    float4 a = ((const float4 *)x)[0], b = ((const float4 *)x)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
__device__ void load_run(const __nv_bfloat16 *x, float out[RUN]) {
    uint4 a = *(const uint4 *)x;
    const uint32_t word[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < RUN / 2; i++) {
        out[2 * i] = __uint_as_float(word[i] << 16);
        out[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}

// sum[r][t] += this thread's part of the product of row `row + r` and token t.
template <enum dtype kDtype, typename X, int kTokens>
__device__ void add_products(const struct matmul_args &a, int64_t row, int64_t begin, int64_t step,
                             float sum[kRows][kTokens]) {
    int64_t n_chunk = a.weight.n_col / CHUNK, last = a.weight.n_row - 1;
    for (int64_t chunk = begin; chunk < n_chunk; chunk += step) {
        float w[kRows][CHUNK];
#pragma unroll
        for (int r = 0; r < kRows; r++)
            expand_chunk<kDtype, true>(a.weight, min(row + r, last), chunk, w[r]);
        const X *x = (const X *)a.x + chunk_first<kDtype>(chunk);
#pragma unroll
        for (int t = 0; t < kTokens; t++) {
            if (t >= a.n_token) break;
            float values[CHUNK];
            load_run(x + t * a.x_stride, values);
            load_run(x + t * a.x_stride + format<kDtype>::kDistance, values + RUN);
#pragma unroll
            for (int r = 0; r < kRows; r++)
#pragma unroll
                for (int i = 0; i < CHUNK; i++) sum[r][t] = fmaf(w[r][i], values[i], sum[r][t]);
        }
    }
}

__device__ void put(const struct matmul_args &a, int64_t row, int64_t token, float y) {
    int64_t at = token * a.out_stride + row;
    if (a.bias) y += a.bias[row];
    if (a.out_dtype == DTYPE_BF16)
        store_float((__nv_bfloat16 *)a.out + at, y);
    else
        ((float *)a.out)[at] = a.accumulate ? ((float *)a.out)[at] + y : y;
}

// A block takes kRows * kWarps / n_split rows.
template <enum dtype kDtype, typename X, int kTokens>
__device__ void multiply_block(const struct matmul_args &a, int n_split) {
    __shared__ float part[kWarps][kRows][kTokens];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / n_split;
    int64_t row = ((int64_t)blockIdx.x * (kWarps / n_split) + group) * kRows;
    float sum[kRows][kTokens] = {};
    if (row < a.weight.n_row)
        add_products<kDtype, X, kTokens>(a, row, warp % n_split * WARP + lane, n_split * WARP, sum);
#pragma unroll
    for (int r = 0; r < kRows; r++)
#pragma unroll
        for (int t = 0; t < kTokens; t++) {
            float y = warp_sum(sum[r][t]);
            if (lane == 0) part[warp][r][t] = y;
        }
    __syncthreads();
    int r = lane / kTokens, t = lane % kTokens; // of the group's first warp
    if (warp % n_split != 0 || r >= kRows || t >= a.n_token) return;
    if (row + r >= a.weight.n_row) return;
    float y = part[warp][r][t];
    for (int i = 1; i < n_split; i++) y += part[warp + i][r][t];
    put(a, row + r, t, y);
}

template <enum dtype kDtype, typename X, int kTokens>
__global__ void __launch_bounds__(kThreads, kBlocks) multiply_rows(struct short_product p) {
    multiply_block<kDtype, X, kTokens>(p.args, p.n_split);
}

// Block row y: the product of that number.
template <enum dtype kDtype, typename X, int kTokens>
__global__ void __launch_bounds__(kThreads, kBlocks)
    multiply_each(const struct matmul_args *product, int n_split) {
    const struct matmul_args own = product[blockIdx.y];
    multiply_block<kDtype, X, kTokens>(own, n_split);
}

// Splits rows where there are too few to fill the device, as long as each warp has work.
int choose_split(const struct cuda_state *state, const struct weight *weight) {
    int64_t n_warp = divide_up(weight->n_row, kRows), enough = state->n_multiprocessor;
    int64_t n_chunk = weight->n_col / CHUNK;
    enough *= kWarpsToFill;
    int split = 1;
    while (split < kWarps && n_warp * split < enough && n_chunk >= 2 * WARP * split) split *= 2;
    return split;
}

// n_product of one shape; `table` holds them in device memory where there are several.
struct short_products {
    const struct matmul_args *first, *table;
    int n_product;
    bool one_token; // each
};

template <enum dtype kDtype, typename X, int kTokens>
enum status launch_tokens(struct backend *backend, const struct short_products *all) {
    const struct weight *weight = &all->first->weight;
    int n_split = choose_split(cuda_state(backend), weight);
    unsigned n_block = (unsigned)divide_up(weight->n_row, kRows * kWarps / n_split);
    if (all->table) {
        dim3 grid(n_block, (unsigned)all->n_product);
        LAUNCH(backend, (multiply_each<kDtype, X, kTokens>), grid, kThreads, 0, all->table,
               n_split);
        return OK;
    }
    const struct short_product p = {*all->first, n_split};
    LAUNCH(backend, (multiply_rows<kDtype, X, kTokens>), n_block, kThreads, 0, p);
    return OK;
}

template <enum dtype kDtype, typename X>
enum status launch_typed(struct backend *backend, const struct short_products *all) {
    return all->one_token ? launch_tokens<kDtype, X, 1>(backend, all)
                          : launch_tokens<kDtype, X, SHORT_TOKENS>(backend, all);
}

template <enum dtype kDtype>
enum status launch_short(struct backend *backend, const struct short_products *all) {
    return all->first->x_dtype == DTYPE_BF16 ? launch_typed<kDtype, __nv_bfloat16>(backend, all)
                                             : launch_typed<kDtype, float>(backend, all);
}

// In the order of enum dtype.
enum status (*const launchers[])(struct backend *, const struct short_products *) = {
    launch_short<DTYPE_F32>,  launch_short<DTYPE_F16>,  launch_short<DTYPE_BF16>,
    launch_short<DTYPE_Q8_0>, launch_short<DTYPE_Q4_0>, launch_short<DTYPE_Q4_1>,
    launch_short<DTYPE_Q5_0>, launch_short<DTYPE_Q5_1>, launch_short<DTYPE_Q4_K>,
    launch_short<DTYPE_Q5_K>, launch_short<DTYPE_Q6_K>, launch_short<DTYPE_F8_E4M3>,
};
static_assert(sizeof launchers / sizeof *launchers == N_DTYPE, "a format is missing");

} // namespace

bool matmul_is_short(const struct matmul_args *args) {
    int64_t stride_bytes = args->x_stride * dtype_info[args->x_dtype].block_bytes;
    bool x_is_aligned =
        (uintptr_t)args->x % 16 == 0 && (args->n_token == 1 || stride_bytes % 16 == 0);
    return args->n_token <= SHORT_TOKENS && args->weight.n_col % CHUNK == 0 && x_is_aligned &&
           dequantise_is_aligned(&args->weight);
}

enum status matmul_run_short(struct backend *backend, const struct matmul_args *args) {
    const struct short_products one = {args, NULL, 1, args->n_token == 1};
    return launchers[args->weight.dtype](backend, &one);
}

enum status matmul_run_each_short(struct backend *backend, const struct matmul_args *args,
                                  int n_product) {
    const void *table;
    TRY(cuda_stage(backend, args, n_product * (int64_t)sizeof *args, &table));
    struct short_products all = {args, (const struct matmul_args *)table, n_product, true};
    for (int i = 0; i < n_product; i++) all.one_token &= args[i].n_token == 1;
    return launchers[args->weight.dtype](backend, &all);
}
