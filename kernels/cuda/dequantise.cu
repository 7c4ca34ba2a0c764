// Expansion of weights of any format to rows of fp32 or bf16: embeddings, and panels for products.
// Grid: a block takes a row, its threads the row's chunks of 16 elements in turn.
#include "kernels/cuda/dequantise.cuh"

#include <algorithm>

namespace {

constexpr int kMostThreads = 256;

template <typename Out>
__device__ void store_run(Out *out, const float x[RUN], float factor, bool aligned) {
    if (!aligned) {
        for (int i = 0; i < RUN; i++) store_float(out + i, x[i] * factor);
        return;
    }
    alignas(16) Out run[RUN];
#pragma unroll
    for (int i = 0; i < RUN; i++) store_float(run + i, x[i] * factor);
#pragma unroll
    for (int i = 0; i < (int)sizeof run / 16; i++) ((uint4 *)out)[i] = ((const uint4 *)run)[i];
}

// A chunk of a plain format that is cut off by the row's end or lies at any address.
template <enum dtype kDtype, typename Out>
__device__ void expand_elements(const struct expand_args &a, int64_t row, int64_t chunk, Out *out) {
    constexpr int kSize = format<kDtype>::kBytes / CHUNK;
    const uint8_t *p = (const uint8_t *)a.weight.data + row * a.weight.row_bytes;
    int64_t end = min((chunk + 1) * CHUNK, a.weight.n_col);
    for (int64_t i = chunk * CHUNK; i < end; i++) {
        float x = plain_element<kDtype>(p + i * kSize);
        if (kDtype == DTYPE_F8_E4M3 && a.weight.scale) x *= weight_scale(a.weight, row, i);
        store_float(out + i, x * a.factor);
    }
}

template <enum dtype kDtype, typename Out>
__global__ void __launch_bounds__(kMostThreads)
    expand_rows(struct expand_args a, bool is_aligned, bool out_is_aligned) {
    int64_t row = a.row ? a.row[blockIdx.x] : blockIdx.x;
    int64_t n_chunk = (a.weight.n_col + CHUNK - 1) / CHUNK;
    Out *out = (Out *)a.out + (int64_t)blockIdx.x * a.out_stride;
    for (int64_t chunk = threadIdx.x; chunk < n_chunk; chunk += blockDim.x) {
        bool is_whole = (chunk + 1) * CHUNK <= a.weight.n_col;
        if (format<kDtype>::kPlain && !(is_aligned && is_whole)) {
            expand_elements<kDtype>(a, row, chunk, out);
            continue;
        }
        float x[CHUNK];
        if (is_aligned)
            expand_chunk<kDtype, true>(a.weight, row, chunk, x);
        else
            expand_chunk<kDtype, false>(a.weight, row, chunk, x);
        int64_t first = chunk_first<kDtype>(chunk);
        store_run(out + first, x, a.factor, out_is_aligned);
        store_run(out + first + format<kDtype>::kDistance, x + RUN, a.factor, out_is_aligned);
    }
}

template <enum dtype kDtype>
enum status launch_expand(struct backend *backend, const struct expand_args *args) {
    int64_t n_chunk = divide_up(args->weight.n_col, CHUNK);
    unsigned threads = (unsigned)std::min<int64_t>(divide_up(n_chunk, WARP) * WARP, kMostThreads);
    int64_t out_bytes = args->out_stride * dtype_info[args->out_dtype].block_bytes;
    bool is_aligned = dequantise_is_aligned(&args->weight);
    bool out_is_aligned = (uintptr_t)args->out % 16 == 0 && out_bytes % 16 == 0;
    if (args->out_dtype == DTYPE_BF16)
        LAUNCH(backend, (expand_rows<kDtype, __nv_bfloat16>), (unsigned)args->n_row, threads, 0,
               *args, is_aligned, out_is_aligned);
    else
        LAUNCH(backend, (expand_rows<kDtype, float>), (unsigned)args->n_row, threads, 0, *args,
               is_aligned, out_is_aligned);
    return OK;
}

struct format_entry {
    int align;
    enum status (*expand)(struct backend *, const struct expand_args *);
};
template <enum dtype kDtype> constexpr struct format_entry entry() {
    return {format<kDtype>::kAlign, launch_expand<kDtype>};
}
// In the order of enum dtype.
const struct format_entry formats[] = {
    entry<DTYPE_F32>(),  entry<DTYPE_F16>(),  entry<DTYPE_BF16>(), entry<DTYPE_Q8_0>(),
    entry<DTYPE_Q4_0>(), entry<DTYPE_Q4_1>(), entry<DTYPE_Q5_0>(), entry<DTYPE_Q5_1>(),
    entry<DTYPE_Q4_K>(), entry<DTYPE_Q5_K>(), entry<DTYPE_Q6_K>(), entry<DTYPE_F8_E4M3>(),
};
static_assert(sizeof formats / sizeof *formats == N_DTYPE, "a format is missing");

} // namespace

bool dequantise_is_aligned(const struct weight *weight) {
    int align = formats[weight->dtype].align;
    return (uintptr_t)weight->data % align == 0 && weight->row_bytes % align == 0 &&
           (!weight->scale || weight->first_col % RUN == 0);
}

enum status cuda_expand(struct backend *backend, const struct expand_args *args) {
    return formats[args->weight.dtype].expand(backend, args);
}

enum status cuda_embed(struct backend *backend, const struct embed_args *args) {
    const struct expand_args expand = {
        .weight = args->table,
        .row = args->token,
        .n_row = args->n_token,
        .factor = args->scale,
        .out = args->out,
        .out_dtype = DTYPE_F32,
        .out_stride = args->table.n_col,
    };
    return cuda_expand(backend, &expand);
}
