// y = x W^T for at most SHORT_TOKENS tokens: bound by the bytes of the weights, which are read once
// in their own format. A group of 1, 2 or 4 warps takes kRows rows; a thread takes chunks of 16
// elements of them in turn, expands them in registers and multiplies them with every token's x.
// Weights are not rounded to bf16: the products have fp32 inputs whatever x is. Groups of products
// of one shape share a launch, as do those of a token with matrices that read the same columns, or
// with the experts chosen for it.
#include <algorithm>

#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/matmul.cuh"

namespace {

constexpr int kRows = 2, kWarps = 4, kThreads = kWarps * WARP;
constexpr int kBlocks = 4;            // resident: up to 128 registers a thread
constexpr int kParameterBytes = 4096; // of a kernel, that every driver takes
constexpr int kWarpsToFill = 24;      // of a multiprocessor: below it rows are split over warps

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

// The same for one token whose row, or the weight's, lies anywhere or ends within a chunk.
template <enum dtype kDtype, typename X>
__device__ void add_any(const struct matmul_args &a, int64_t row, int64_t begin, int64_t step,
                        float sum[kRows][1]) {
    constexpr int kSize = format<kDtype>::kBytes / CHUNK; // of a plain element
    int64_t n_chunk = (a.weight.n_col + CHUNK - 1) / CHUNK, last = a.weight.n_row - 1;
    const X *x = (const X *)a.x;
    for (int64_t chunk = begin; chunk < n_chunk; chunk += step)
        for (int r = 0; r < kRows; r++) {
            int64_t at = min(row + r, last), first = chunk_first<kDtype>(chunk);
            if (format<kDtype>::kPlain) {
                const uint8_t *p = (const uint8_t *)a.weight.data + at * a.weight.row_bytes;
                for (int64_t i = first; i < min(first + CHUNK, a.weight.n_col); i++) {
                    float w = plain_element<kDtype>(p + i * kSize);
                    if (kDtype == DTYPE_F8_E4M3 && a.weight.scale)
                        w *= weight_scale(a.weight, at, i);
                    sum[r][0] = fmaf(w, load_float(x + i), sum[r][0]);
                }
                continue;
            }
            float w[CHUNK];
            expand_chunk<kDtype, false>(a.weight, at, chunk, w);
            for (int i = 0; i < CHUNK; i++) {
                int64_t col = first + i % RUN + i / RUN * format<kDtype>::kDistance;
                sum[r][0] = fmaf(w[i], load_float(x + col), sum[r][0]);
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

// A block takes kRows * kWarps / n_split rows. kAny: one token, whatever its layout.
template <enum dtype kDtype, typename X, int kTokens, bool kAny = false>
__device__ void multiply_block(const struct matmul_args &a, int n_split,
                               unsigned block = blockIdx.x) {
    __shared__ float part[kWarps][kRows][kTokens];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / n_split;
    int64_t row = ((int64_t)block * (kWarps / n_split) + group) * kRows;
    float sum[kRows][kTokens] = {};
    int64_t begin = warp % n_split * WARP + lane, step = n_split * WARP;
    if (row < a.weight.n_row) {
        if constexpr (kAny)
            add_any<kDtype, X>(a, row, begin, step, sum);
        else
            add_products<kDtype, X, kTokens>(a, row, begin, step, sum);
    }
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

// Products of a token with matrices of one format and as many columns. Block row x: the blocks of
// one after those of another.
struct joint_products {
    struct matmul_args product[MOST_JOINT];
    unsigned end[MOST_JOINT]; // the block behind its last
    int n_split;
};
static_assert(sizeof(struct joint_products) <= kParameterBytes, "kernels take no more");

template <enum dtype kDtype, typename X>
__global__ void __launch_bounds__(kThreads, kBlocks)
    multiply_joint(const __grid_constant__ struct joint_products p) {
    int i = 0;
    while (blockIdx.x >= p.end[i]) i++;
    const struct matmul_args own = p.product[i];
    multiply_block<kDtype, X, 1>(own, p.n_split, blockIdx.x - (i ? p.end[i - 1] : 0));
}

// Products with chosen experts: the matrices of one launch travel as parameters of the kernel, so
// that nothing is copied to the device first.
enum { MOST_CHOICES = 240 };
struct chosen_products {
    struct chosen_matmul_args args;
    struct weight shape; // of every matrix: all but its data and scale
    int begin, n;        // of the experts in args.weight: those of this launch
    int n_split;
    const void *data[MOST_CHOICES];
    const float *scale[MOST_CHOICES];
};
static_assert(sizeof(struct chosen_products) <= kParameterBytes, "kernels take no more");

// This block's rows of a product that no expert here makes.
__device__ void clear_block(const struct chosen_products &p, float *out) {
    int64_t n = kRows * kWarps / p.n_split, first = blockIdx.x * n;
    n = min(n, p.shape.n_row - first);
    for (int64_t i = threadIdx.x; i < n; i += kThreads) out[first + i] = 0;
}

// Block row y: row y of x. The first launch clears the rows of experts that are in none.
template <enum dtype kDtype, typename X, bool kAny>
__global__ void __launch_bounds__(kThreads, kBlocks)
    multiply_chosen(const __grid_constant__ struct chosen_products p) {
    int64_t row = blockIdx.y, owned = (int64_t)p.args.expert[row] - p.args.first_expert;
    float *out = p.args.out + row * p.shape.n_row;
    if (owned < p.begin || owned >= p.begin + p.n) {
        if (p.begin == 0 && (owned < 0 || owned >= p.args.n_expert)) clear_block(p, out);
        return;
    }
    struct matmul_args own = {};
    own.x = (const X *)p.args.x + row * p.args.x_stride;
    own.n_token = 1;
    own.weight = p.shape;
    own.weight.data = p.data[owned - p.begin];
    own.weight.scale = p.scale[owned - p.begin];
    own.out = out;
    own.out_dtype = DTYPE_F32;
    multiply_block<kDtype, X, 1, kAny>(own, p.n_split);
    if (p.args.n_product && blockIdx.x == 0 && threadIdx.x == 0)
        atomicAdd((unsigned long long *)p.args.n_product, 1ull);
}

// Splits rows where there are too few to fill the device, as long as each warp has work.
int choose_split(const struct cuda_state *state, int64_t n_row, int64_t n_col) {
    int64_t n_warp = divide_up(n_row, kRows), enough = state->n_multiprocessor;
    int64_t n_chunk = n_col / CHUNK;
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
    int n_split = choose_split(cuda_state(backend), weight->n_row, weight->n_col);
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

template <enum dtype kDtype>
enum status launch_joint(struct backend *backend, const struct joint_products *p,
                         unsigned n_block) {
    if (p->product[0].x_dtype == DTYPE_BF16)
        LAUNCH(backend, (multiply_joint<kDtype, __nv_bfloat16>), n_block, kThreads, 0, *p);
    else
        LAUNCH(backend, (multiply_joint<kDtype, float>), n_block, kThreads, 0, *p);
    return OK;
}

template <enum dtype kDtype, typename X>
enum status launch_chosen_typed(struct backend *backend, const struct chosen_products *p,
                                bool any) {
    dim3 grid((unsigned)divide_up(p->shape.n_row, kRows * kWarps / p->n_split),
              (unsigned)p->args.n_row);
    if (any)
        LAUNCH(backend, (multiply_chosen<kDtype, X, true>), grid, kThreads, 0, *p);
    else
        LAUNCH(backend, (multiply_chosen<kDtype, X, false>), grid, kThreads, 0, *p);
    return OK;
}

template <enum dtype kDtype>
enum status launch_chosen(struct backend *backend, const struct chosen_products *p, bool any) {
    return p->args.x_dtype == DTYPE_BF16
               ? launch_chosen_typed<kDtype, __nv_bfloat16>(backend, p, any)
               : launch_chosen_typed<kDtype, float>(backend, p, any);
}

struct format_launchers {
    enum status (*each)(struct backend *, const struct short_products *);
    enum status (*joint)(struct backend *, const struct joint_products *, unsigned n_block);
    enum status (*chosen)(struct backend *, const struct chosen_products *, bool any);
};
template <enum dtype kDtype> constexpr struct format_launchers entry() {
    return {launch_short<kDtype>, launch_joint<kDtype>, launch_chosen<kDtype>};
}
// In the order of enum dtype.
const struct format_launchers launchers[] = {
    entry<DTYPE_F32>(),  entry<DTYPE_F16>(),  entry<DTYPE_BF16>(), entry<DTYPE_Q8_0>(),
    entry<DTYPE_Q4_0>(), entry<DTYPE_Q4_1>(), entry<DTYPE_Q5_0>(), entry<DTYPE_Q5_1>(),
    entry<DTYPE_Q4_K>(), entry<DTYPE_Q5_K>(), entry<DTYPE_Q6_K>(), entry<DTYPE_F8_E4M3>(),
};
static_assert(sizeof launchers / sizeof *launchers == N_DTYPE, "a format is missing");

bool is_alike(const struct weight *a, const struct weight *b) {
    return a->dtype == b->dtype && a->row_bytes == b->row_bytes && !a->scale == !b->scale &&
           a->scale_stride == b->scale_stride && a->first_row == b->first_row &&
           a->first_col == b->first_col && dequantise_is_aligned(a) == dequantise_is_aligned(b);
}

// Products with as many experts from `begin` on as one launch takes.
struct chosen_products choose_from(const struct cuda_state *state,
                                   const struct chosen_matmul_args *args, int begin) {
    const struct weight *first = &args->weight[begin];
    struct chosen_products p = {};
    p.args = *args;
    p.shape = *first;
    p.begin = begin;
    p.n_split = choose_split(state, first->n_row, first->n_col);
    for (int e = begin; e < args->n_expert && p.n < MOST_CHOICES; e++) {
        if (!is_alike(&args->weight[e], first)) break;
        p.data[p.n] = args->weight[e].data;
        p.scale[p.n++] = args->weight[e].scale;
    }
    return p;
}

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
    return launchers[args->weight.dtype].each(backend, &one);
}

bool matmul_joins(const struct matmul_args *args, const struct matmul_args *first) {
    return args->n_token == 1 && args->weight.n_row > 0 && args->x_dtype == first->x_dtype &&
           args->weight.dtype == first->weight.dtype && args->weight.n_col == first->weight.n_col &&
           matmul_is_short(args);
}

enum status matmul_run_joint_short(struct backend *backend, const struct matmul_args *product,
                                   int n_product) {
    struct joint_products p = {};
    int64_t n_row = 0;
    unsigned n_block = 0;
    for (int i = 0; i < n_product; i++) n_row += product[i].weight.n_row;
    p.n_split = choose_split(cuda_state(backend), n_row, product[0].weight.n_col);
    for (int i = 0; i < n_product; i++) {
        p.product[i] = product[i];
        n_block += (unsigned)divide_up(product[i].weight.n_row, kRows * kWarps / p.n_split);
        p.end[i] = n_block;
    }
    return launchers[product[0].weight.dtype].joint(backend, &p, n_block);
}

enum status matmul_run_each_short(struct backend *backend, const struct matmul_args *args,
                                  int n_product) {
    const void *table;
    TRY(cuda_stage(backend, args, n_product * (int64_t)sizeof *args, &table));
    struct short_products all = {args, (const struct matmul_args *)table, n_product, true};
    for (int i = 0; i < n_product; i++) all.one_token &= args[i].n_token == 1;
    return launchers[args->weight.dtype].each(backend, &all);
}

enum status cuda_chosen_matmul(struct backend *backend, const struct chosen_matmul_args *args) {
    int64_t stride_bytes = args->x_stride * dtype_info[args->x_dtype].block_bytes;
    bool x_is_aligned = (uintptr_t)args->x % 16 == 0 && stride_bytes % 16 == 0;
    for (int begin = 0; begin < args->n_expert;) {
        const struct chosen_products p = choose_from(cuda_state(backend), args, begin);
        bool any = !x_is_aligned || p.shape.n_col % CHUNK != 0 || !dequantise_is_aligned(&p.shape);
        TRY(launchers[p.shape.dtype].chosen(backend, &p, any));
        begin += p.n;
    }
    return OK;
}
