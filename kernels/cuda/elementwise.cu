// Operations on rows without products between rows: norm, rope, gate, multiply, convert. All are
// bound by memory: a block (or a warp, for the rows of single heads) takes a row, its threads take
// the columns in turn.
#include <algorithm>

#include "kernels/cuda/launch.cuh"

namespace {

constexpr int kThreads = 256, kWarps = kThreads / WARP;
constexpr int kWarpColumns = 1024;  // up to here a warp takes a row by itself
constexpr int kSpreadColumns = 256; // of a head that is transformed
constexpr int kMostRopes = 8;       // of a launch
constexpr int kMostBlocks = 1 << 20;

// The sum over the threads that share a row: a warp's or the block's.
template <bool kOneWarp> __device__ float row_sum(float x, float *shared) {
    return kOneWarp ? warp_sum(x) : block_sum(x, shared);
}

// Grid: rows, kWarps of them to a block where a warp takes one. x and out may be the same.
template <bool kOneWarp, typename Out>
__global__ void __launch_bounds__(kThreads) norm_rows(struct norm_args a) {
    __shared__ float shared[kWarps];
    int64_t row = kOneWarp ? (int64_t)blockIdx.x * kWarps + threadIdx.x / WARP : blockIdx.x;
    if (row >= a.n_row) return; // a whole warp or none of the block
    int first = kOneWarp ? threadIdx.x % WARP : threadIdx.x, step = kOneWarp ? WARP : kThreads;
    const float *x = a.x + row * a.n_col;
    float mean = 0, square = 0;
    if (a.kind == NORM_LAYER) {
        for (int64_t i = first; i < a.n_col; i += step) mean += x[i];
        mean = row_sum<kOneWarp>(mean, shared) / (float)a.n_col;
    }
    for (int64_t i = first; i < a.n_col; i += step) square += (x[i] - mean) * (x[i] - mean);
    square = row_sum<kOneWarp>(square, shared) / (float)a.n_col;
    float scale = 1 / sqrtf(square + a.eps);
    Out *out = (Out *)a.out + row * a.n_col;
    for (int64_t i = first; i < a.n_col; i += step) {
        float y = (x[i] - mean) * scale * a.weight[i];
        store_float(out + i, a.bias ? y + a.bias[i] : y);
    }
}

template <typename Out>
enum status launch_norm(struct backend *backend, const struct norm_args *args) {
    if (args->n_col <= kWarpColumns)
        LAUNCH(backend, (norm_rows<true, Out>), (unsigned)divide_up(args->n_row, kWarps), kThreads,
               0, *args);
    else
        LAUNCH(backend, (norm_rows<false, Out>), (unsigned)args->n_row, kThreads, 0, *args);
    return OK;
}

// Part `i` of a head: a pair of elements, or one that is only copied. No element is read by two
// parts, so out may be x.
template <typename Out>
__device__ void rotate_part(const struct rope_args &a, const float *x, const float *cosine,
                            const float *sine, int i, Out *out) {
    int n_pair = a.rope_dim / 2;
    if (i >= n_pair) {
        int other = i - n_pair; // of the elements outside [first, first + rope_dim)
        int at = other < a.first ? other : other + a.rope_dim;
        store_float(out + at, x[at]);
        return;
    }
    int first = a.first + (a.interleaved ? 2 * i : i);
    int second = a.interleaved ? first + 1 : first + n_pair;
    float u = x[first], v = x[second];
    store_float(out + first, u * cosine[i] - v * sine[i]);
    store_float(out + second, v * cosine[i] + u * sine[i]);
}

// The butterflies are in the order of kernels/reference: sums round the same way. A warp calls it.
__device__ void spread_head(float *y, int n) {
    int lane = threadIdx.x % WARP;
    for (int half = 1; half < n; half *= 2) {
        __syncwarp();
        for (int pair = lane; pair < n / 2; pair += WARP) {
            int i = pair / half * 2 * half + pair % half;
            float u = y[i], v = y[i + half];
            y[i] = u + v;
            y[i + half] = u - v;
        }
    }
    __syncwarp();
}

// A warp's head of a token; `room` holds one that is transformed.
template <typename Out>
__device__ void rotate_head(const struct rope_args &a, int64_t token, int head, float *room) {
    int lane = threadIdx.x % WARP, n_pair = a.rope_dim / 2, n_part = a.head_dim - n_pair;
    const float *x = a.x + token * a.x_stride + (int64_t)head * a.head_dim;
    const float *cosine = a.cos + token * n_pair, *sine = a.sin + token * n_pair;
    Out *out = (Out *)a.out + token * a.out_stride + (int64_t)head * a.head_dim;
    if (!a.spread) {
        for (int i = lane; i < n_part; i += WARP) rotate_part(a, x, cosine, sine, i, out);
        return;
    }
    for (int i = lane; i < n_part; i += WARP) rotate_part(a, x, cosine, sine, i, room);
    spread_head(room, a.head_dim);
    float scale = 1.0f / sqrtf((float)a.head_dim);
    for (int i = lane; i < a.head_dim; i += WARP) store_float(out + i, room[i] * scale);
}

struct ropes {
    struct rope_args rope[kMostRopes];
};

// Grid: heads of all tokens along x, a warp each; rotations along y.
__global__ void __launch_bounds__(kThreads) rotate_heads(const __grid_constant__ struct ropes all) {
    __shared__ float rooms[kWarps][kSpreadColumns];
    const struct rope_args &a = all.rope[blockIdx.y];
    unsigned row = blockIdx.x * kWarps + threadIdx.x / WARP, token = row / a.n_head;
    float *room = rooms[threadIdx.x / WARP];
    if (token >= a.n_token) return;
    int head = (int)(row % a.n_head);
    if (a.out_dtype == DTYPE_BF16)
        rotate_head<__nv_bfloat16>(a, token, head, room);
    else
        rotate_head<float>(a, token, head, room);
}

template <enum activation kActivation> __device__ float activate(float x) {
    if (kActivation == ACTIVATION_SILU) return x / (1 + expf(-x));
    if (kActivation == ACTIVATION_GELU_TANH) { // Hendrycks and Gimpel 2016, section 2
        const float k = 0.7978845608028654f;   // sqrt(2 / pi)
        return 0.5f * x * (1 + tanhf(k * (x + 0.044715f * x * x * x)));
    }
    return 0.5f * x * erfcf(-0.7071067811865476f * x); // 1 + erf(y) = erfc(-y)
}

// Grid: tokens along x, parts of their columns along y.
template <enum activation kActivation, typename Out>
__global__ void __launch_bounds__(kThreads) gate_values(struct gate_args a) {
    int64_t token = blockIdx.x;
    const float *gate = a.gate + token * a.gate_stride;
    const float *up = a.up ? a.up + token * a.up_stride : nullptr;
    Out *out = (Out *)a.out + token * a.n_col;
    for (int64_t i = (int64_t)blockIdx.y * kThreads + threadIdx.x; i < a.n_col;
         i += (int64_t)gridDim.y * kThreads)
        store_float(out + i, activate<kActivation>(gate[i]) * (up ? up[i] : 1));
}

// Enough blocks along a row for a thread to take about four elements.
unsigned blocks_of_row(int64_t n_col) {
    return (unsigned)std::min<int64_t>(divide_up(n_col, 4 * kThreads), 1024);
}

template <typename Out>
enum status launch_gate(struct backend *backend, const struct gate_args *args) {
    dim3 grid((unsigned)args->n_token, blocks_of_row(args->n_col));
    switch (args->activation) {
    case ACTIVATION_SILU:
        LAUNCH(backend, (gate_values<ACTIVATION_SILU, Out>), grid, kThreads, 0, *args);
        return OK;
    case ACTIVATION_GELU_TANH:
        LAUNCH(backend, (gate_values<ACTIVATION_GELU_TANH, Out>), grid, kThreads, 0, *args);
        return OK;
    case ACTIVATION_GELU_ERF:
        LAUNCH(backend, (gate_values<ACTIVATION_GELU_ERF, Out>), grid, kThreads, 0, *args);
        return OK;
    }
    return OK;
}

// Grid-stride loops over the elements.
__global__ void __launch_bounds__(kThreads) add_values(struct add_args a) {
    for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < a.n;
         i += (int64_t)gridDim.x * kThreads)
        a.x[i] += a.by[i];
}

__global__ void __launch_bounds__(kThreads) multiply_values(struct multiply_args a) {
    for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < a.n;
         i += (int64_t)gridDim.x * kThreads)
        a.x[i] *= a.factor * (a.by ? a.by[i] : 1);
}

// Grid: rows along x, parts of their columns along y.
template <typename X, typename Out>
__global__ void __launch_bounds__(kThreads) convert_rows(struct convert_args a) {
    int64_t row = blockIdx.x, from = a.row ? a.row[row] : row;
    const X *x = (const X *)a.x + from * a.x_stride;
    Out *out = (Out *)a.out + row * a.out_stride;
    for (int64_t i = (int64_t)blockIdx.y * kThreads + threadIdx.x; i < a.n_col;
         i += (int64_t)gridDim.y * kThreads)
        store_float(out + i, load_float(x + i));
}

template <typename X, typename Out>
enum status launch_convert(struct backend *backend, const struct convert_args *args) {
    dim3 grid((unsigned)args->n_row, blocks_of_row(args->n_col));
    LAUNCH(backend, (convert_rows<X, Out>), grid, kThreads, 0, *args);
    return OK;
}

} // namespace

enum status cuda_norm(struct backend *backend, const struct norm_args *args) {
    return args->out_dtype == DTYPE_BF16 ? launch_norm<__nv_bfloat16>(backend, args)
                                         : launch_norm<float>(backend, args);
}

enum status cuda_rope_each(struct backend *backend, const struct rope_each_args *args) {
    for (int done = 0; done < args->n_rope;) {
        struct ropes some = {};
        unsigned n = 0;
        int64_t n_row = 0;
        for (; done < args->n_rope && n < kMostRopes; done++) {
            const struct rope_args *rope = &args->rope[done];
            if (rope->spread && rope->head_dim > kSpreadColumns)
                FAIL(ERR_INTERNAL, "a Hadamard transform of %d elements; at most %d",
                     rope->head_dim, kSpreadColumns);
            some.rope[n++] = *rope;
            n_row = std::max(n_row, rope->n_token * rope->n_head);
        }
        dim3 grid((unsigned)divide_up(n_row, kWarps), n);
        LAUNCH(backend, rotate_heads, grid, kThreads, 0, some);
    }
    return OK;
}

enum status cuda_rope(struct backend *backend, const struct rope_args *args) {
    const struct rope_each_args one = {args, 1};
    return cuda_rope_each(backend, &one);
}

enum status cuda_gate(struct backend *backend, const struct gate_args *args) {
    return args->out_dtype == DTYPE_BF16 ? launch_gate<__nv_bfloat16>(backend, args)
                                         : launch_gate<float>(backend, args);
}

enum status cuda_add(struct backend *backend, const struct add_args *args) {
    int64_t blocks = std::min<int64_t>(divide_up(args->n, 4 * kThreads), kMostBlocks);
    LAUNCH(backend, add_values, (unsigned)blocks, kThreads, 0, *args);
    return OK;
}

enum status cuda_multiply(struct backend *backend, const struct multiply_args *args) {
    int64_t blocks = std::min<int64_t>(divide_up(args->n, 4 * kThreads), kMostBlocks);
    LAUNCH(backend, multiply_values, (unsigned)blocks, kThreads, 0, *args);
    return OK;
}

enum status cuda_convert(struct backend *backend, const struct convert_args *args) {
    bool from_bf16 = args->x_dtype == DTYPE_BF16, to_bf16 = args->out_dtype == DTYPE_BF16;
    if (from_bf16)
        return to_bf16 ? launch_convert<__nv_bfloat16, __nv_bfloat16>(backend, args)
                       : launch_convert<__nv_bfloat16, float>(backend, args);
    return to_bf16 ? launch_convert<float, __nv_bfloat16>(backend, args)
                   : launch_convert<float, float>(backend, args);
}
