// Attention over selected rows on the tensor cores: bf16 products, fp32 sums. A block takes one
// query, ROWS of the heads that share a key head, and one part of the selection, in tiles of 64
// rows that asynchronous copies gather. Scores: each warp has 16 heads and some of the tile's rows;
// values: all heads and some of the columns. Vectors of 8 elements are moved by the low bits of
// their row, so that the 8 rows of a matrix lie in different banks.
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/sparse_attention.cuh"

namespace {

enum { KEYS = SPARSE_TILE };

template <int HEAD_DIM_, int VALUE_DIM_, int ROWS_, int WARPS_, int STAGES_, bool VALUE_IN_KEY_>
struct form {
    static constexpr int HEAD_DIM = HEAD_DIM_, VALUE_DIM = VALUE_DIM_, ROWS = ROWS_;
    static constexpr int WARPS = WARPS_, STAGES = STAGES_, THREADS = WARPS * WARP;
    static constexpr bool VALUE_IN_KEY = VALUE_IN_KEY_;
    static constexpr int KEY_VECTORS = HEAD_DIM / 8, VALUE_VECTORS = VALUE_DIM / 8;
    static constexpr int WARPS_M = ROWS / 16, WARPS_N = WARPS / WARPS_M; // of the scores
    static constexpr int SCORE_TILES = KEYS / WARPS_N / 8;               // of 8 keys, of a warp
    static constexpr int COLUMNS = VALUE_DIM / WARPS;                    // of a warp
    static constexpr int KEY_BYTES = KEYS * HEAD_DIM * 2;
    static constexpr int VALUE_BYTES = VALUE_IN_KEY ? 0 : KEYS * VALUE_DIM * 2;
    static constexpr int KEY_AT = ROWS * HEAD_DIM * 2, VALUE_AT = KEY_AT + STAGES * KEY_BYTES;
    static constexpr int WEIGHT_AT = VALUE_AT + STAGES * VALUE_BYTES;
    static constexpr int MAX_AT = WEIGHT_AT + ROWS * KEYS * 2;    // [WARPS_N, ROWS] fp32
    static constexpr int FACTOR_AT = MAX_AT + WARPS_N * ROWS * 4; // [ROWS] fp32
    static constexpr int HELD_AT = FACTOR_AT + ROWS * 4;          // [ROWS] fp32
    static constexpr int BYTES = HELD_AT + ROWS * 4;
    static_assert(KEY_VECTORS % 8 == 0 && VALUE_VECTORS % 8 == 0,
                  "moved vectors stay in their row");
    static_assert(WARPS % WARPS_M == 0 && SCORE_TILES % 2 == 0 && COLUMNS % 16 == 0, "whole tiles");
    static_assert(THREADS % KEYS == 0, "threads of a gathered row");
};

template <int VECTORS> __device__ inline int vector_at(int row, int vector) {
    return row * VECTORS + (vector ^ (row & 7));
}

template <typename F>
__device__ void load_query(const struct attention_args &a, const struct sparse_place &p,
                           uint4 *to) {
    const uint4 *from = (const uint4 *)((const __nv_bfloat16 *)a.query + p.query * a.query_stride +
                                        p.first_head * F::HEAD_DIM);
    for (int i = threadIdx.x; i < F::ROWS * F::KEY_VECTORS; i += F::THREADS) {
        int row = i / F::KEY_VECTORS;
        bool valid = row < p.n_head;
        copy_async_16(to + vector_at<F::KEY_VECTORS>(row, i % F::KEY_VECTORS),
                      from + (valid ? i : 0), valid);
    }
}

// One row of `VECTORS` vectors by the F::THREADS / KEYS threads that share it.
template <typename F, int VECTORS>
__device__ void gather_row(const void *base, int64_t element, bool valid, uint4 *to) {
    constexpr int kThreads = F::THREADS / KEYS;
    const uint4 *from = (const uint4 *)((const __nv_bfloat16 *)base + element);
    int row = threadIdx.x / kThreads;
#pragma unroll
    for (int i = 0; i < VECTORS; i += kThreads) {
        int vector = i + threadIdx.x % kThreads;
        copy_async_16(to + vector_at<VECTORS>(row, vector), from + vector, valid);
    }
}

template <typename F>
__device__ void load_tile(const struct sparse_attention_args &args, const struct sparse_place &p,
                          int first, unsigned char *shared, int stage) {
    const struct attention_args &a = args.attention;
    int i = first + threadIdx.x / (F::THREADS / KEYS);
    bool valid = i < p.end;
    int64_t row = valid ? args.row[p.query * args.k + i] : 0;
    gather_row<F, F::KEY_VECTORS>(a.key, row * a.key_stride + p.kv_head * F::HEAD_DIM, valid,
                                  (uint4 *)(shared + F::KEY_AT + stage * F::KEY_BYTES));
    if (!F::VALUE_IN_KEY)
        gather_row<F, F::VALUE_VECTORS>(a.value, row * a.value_stride + p.kv_head * F::VALUE_DIM,
                                        valid,
                                        (uint4 *)(shared + F::VALUE_AT + stage * F::VALUE_BYTES));
}

// score[tile]: of the warp's 16 heads and 8 keys, laid out as the tensor cores do.
template <typename F>
__device__ void score_tile(const uint4 *query, const uint4 *key, float score[F::SCORE_TILES][4]) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int head = warp % F::WARPS_M * 16 + lane % 16;
    int first_key = warp / F::WARPS_M * F::SCORE_TILES * 8 + lane / 16 * 8 + lane % 8;
#pragma unroll 4
    for (int k = 0; k < F::HEAD_DIM / 16; k++) {
        uint32_t a[4], b[4];
        load_matrix_x4(a, query + vector_at<F::KEY_VECTORS>(head, k * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < F::SCORE_TILES; n += 2) {
            load_matrix_x4(
                b, key + vector_at<F::KEY_VECTORS>(first_key + n * 8, k * 2 + lane / 8 % 2));
            mma_bf16(score[n], a, b);
            mma_bf16(score[n + 1], a, b + 2);
        }
    }
}

// The running softmax of the two heads whose scores a thread has: `lane / 4` of the warp's 16, and
// the eighth after it. The maxima are the heads', the totals this thread's.
struct softmax {
    float max[2], total[2];
};

// Scales scores to units of ln 2, strikes out those beyond the selection, and leaves the warp's
// largest of each head in `shared_max`.
template <typename F>
__device__ void scale_scores(float scale, int n_valid, float score[F::SCORE_TILES][4],
                             float *shared_max) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warp_n = warp / F::WARPS_M;
    int first = warp_n * F::SCORE_TILES * 8 + lane % 4 * 2;
    float max[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < F::SCORE_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            score[n][i] = first + n * 8 + i % 2 < n_valid ? score[n][i] * scale : -INFINITY;
            max[i / 2] = fmaxf(max[i / 2], score[n][i]);
        }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        max[i] = fmaxf(max[i], __shfl_xor_sync(FULL_WARP, max[i], 1));
        max[i] = fmaxf(max[i], __shfl_xor_sync(FULL_WARP, max[i], 2));
        if (lane % 4 == 0)
            shared_max[warp_n * F::ROWS + warp % F::WARPS_M * 16 + i * 8 + lane / 4] = max[i];
    }
}

// Weights to shared memory as bf16, and by how much earlier sums shrink.
template <typename F>
__device__ void weigh(const float score[F::SCORE_TILES][4], const float *shared_max,
                      struct softmax *softmax, unsigned char *weight, float *factor) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warp_n = warp / F::WARPS_M;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int head = warp % F::WARPS_M * 16 + i * 8 + lane / 4;
        float max = softmax->max[i], total = 0;
        for (int n = 0; n < F::WARPS_N; n++)
            max = fmaxf(max, ceilf(shared_max[n * F::ROWS + head]));
        float shrink = softmax->max[i] == max ? 1 : exp2f(softmax->max[i] - max);
        float base = max == -INFINITY ? 0 : max;
#pragma unroll
        for (int n = 0; n < F::SCORE_TILES; n++) {
            float low = exp2f(score[n][i * 2] - base), high = exp2f(score[n][i * 2 + 1] - base);
            int vector = warp_n * F::SCORE_TILES + n;
            total += low + high;
            *(__nv_bfloat162 *)(weight + vector_at<KEYS / 8>(head, vector) * 16 + lane % 4 * 4) =
                __floats2bfloat162_rn(low, high);
        }
        softmax->max[i] = max;
        softmax->total[i] = softmax->total[i] * shrink + total;
        if (warp_n == 0 && lane % 4 == 0) factor[head] = shrink;
    }
}

template <typename F> using sums = float[F::ROWS / 16][F::COLUMNS / 8][4];

// sum = sum * factor, head by head; mostly all factors are 1.
template <typename F> __device__ void shrink_sums(const float *factor, sums<F> &sum) {
    int row = threadIdx.x % WARP / 4;
    bool changed = false;
    for (int m = 0; m < F::ROWS / 8; m++) changed |= factor[m * 8 + row] != 1;
    if (!__any_sync(FULL_WARP, changed)) return;
#pragma unroll
    for (int m = 0; m < F::ROWS / 16; m++) {
        float low = factor[m * 16 + row], high = factor[m * 16 + 8 + row];
#pragma unroll
        for (int n = 0; n < F::COLUMNS / 8; n++) {
            sum[m][n][0] *= low;
            sum[m][n][1] *= low;
            sum[m][n][2] *= high;
            sum[m][n][3] *= high;
        }
    }
}

// sum += weights times values; VECTORS of a value's row in shared memory.
template <typename F, int VECTORS>
__device__ void add_values(const uint4 *weight, const uint4 *value, sums<F> &sum) {
    int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * (F::COLUMNS / 8);
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        uint32_t a[F::ROWS / 16][4];
#pragma unroll
        for (int m = 0; m < F::ROWS / 16; m++)
            load_matrix_x4(a[m],
                           weight + vector_at<KEYS / 8>(m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < F::COLUMNS / 8; n += 2) {
            uint32_t b[4];
            load_matrix_x4_transposed(
                b, value + vector_at<VECTORS>(k * 16 + lane % 16, first + n + lane / 16));
#pragma unroll
            for (int m = 0; m < F::ROWS / 16; m++) {
                mma_bf16(sum[m][n], a[m], b);
                mma_bf16(sum[m][n + 1], a[m], b + 2);
            }
        }
    }
}

// Leaves what becomes of each head's sums (struct attention_end) in `factor` and `held`, and stores
// lse. row: of the block's first head in the parts.
template <typename F>
__device__ void finish(const struct sparse_parts &parts, const struct sparse_place &p, int64_t row,
                       const struct softmax &softmax, float *shared_total, float *factor,
                       float *held) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warp_n = warp / F::WARPS_M;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float total = softmax.total[i];
        total += __shfl_xor_sync(FULL_WARP, total, 1);
        total += __shfl_xor_sync(FULL_WARP, total, 2);
        if (lane % 4 == 0)
            shared_total[warp_n * F::ROWS + warp % F::WARPS_M * 16 + i * 8 + lane / 4] = total;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int head = warp % F::WARPS_M * 16 + i * 8 + lane / 4;
        float total = 0;
        for (int n = 0; n < F::WARPS_N; n++) total += shared_total[n * F::ROWS + head];
        if (warp_n > 0 || lane % 4 > 0 || head >= p.n_head) continue;
        struct attention_end end =
            attention_finish(softmax.max[i], total, sparse_held(parts, row + head));
        factor[head] = end.by;
        held[head] = end.held;
        if (!parts.merge || total != 0) parts.lse[row + head] = end.lse;
    }
    __syncthreads();
}

template <typename F> __device__ bool has_nan(const sums<F> &sum) {
    bool found = false;
#pragma unroll
    for (int m = 0; m < F::ROWS / 16; m++)
#pragma unroll
        for (int n = 0; n < F::COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) found |= isnan(sum[m][n][i]);
    return found;
}

// out: [ROWS, VALUE_DIM] of the block's first head on. A merged head that saw no key (its factor
// is 0) keeps its own.
template <typename F>
__device__ void store(const sums<F> &sum, const float *factor, const float *held, bool merge,
                      int n_head, float *out) {
    int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * F::COLUMNS + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < F::ROWS / 8; m++) {
        int head = m * 8 + lane / 4;
        if (head >= n_head) continue;
        if (merge && factor[head] == 0) continue;
        const struct attention_end end = {factor[head], held[head], 0};
        attention_write(sum[m / 2], m % 2, end, out + (int64_t)head * F::VALUE_DIM + first);
    }
}

template <typename F>
__global__ void __launch_bounds__(F::THREADS, 1)
    attend_kernel(struct sparse_attention_args args, struct sparse_parts parts) {
    DYNAMIC_SHARED(shared);
    const struct attention_args &a = args.attention;
    const struct sparse_place p = sparse_find_place(args, parts.n_part, F::ROWS, KEYS);
    float *shared_max = (float *)(shared + F::MAX_AT), *factor = (float *)(shared + F::FACTOR_AT);
    struct softmax softmax = {{-INFINITY, -INFINITY}, {0, 0}};
    sums<F> sum = {};
    load_query<F>(a, p, (uint4 *)shared);
    if (p.begin < p.end) load_tile<F>(args, p, p.begin, shared, 0);
    copy_async_commit();
    int stage = 0;
    for (int first = p.begin; first < p.end; first += KEYS) {
        bool more = first + KEYS < p.end;
        if (F::STAGES == 2) {
            if (more) load_tile<F>(args, p, first + KEYS, shared, stage ^ 1);
            copy_async_commit();
        }
        copy_async_wait<F::STAGES - 1>();
        __syncthreads();
        const unsigned char *key = shared + F::KEY_AT + stage * F::KEY_BYTES;
        const unsigned char *value = shared + F::VALUE_AT + stage * F::VALUE_BYTES;
        float score[F::SCORE_TILES][4] = {};
        score_tile<F>((const uint4 *)shared, (const uint4 *)key, score);
        scale_scores<F>(a.scale * kLog2e, p.end - first, score, shared_max);
        __syncthreads();
        weigh<F>(score, shared_max, &softmax, shared + F::WEIGHT_AT, factor);
        __syncthreads();
        shrink_sums<F>(factor, sum);
        add_values<F, F::VALUE_IN_KEY ? F::KEY_VECTORS : F::VALUE_VECTORS>(
            (const uint4 *)(shared + F::WEIGHT_AT), (const uint4 *)(F::VALUE_IN_KEY ? key : value),
            sum);
        __syncthreads(); // the tile has been read
        if (F::STAGES == 1) {
            if (more) load_tile<F>(args, p, first + KEYS, shared, 0);
            copy_async_commit();
        } else {
            stage ^= 1;
        }
    }
    copy_async_wait<0>();
    int64_t at = (blockIdx.y * a.n_query + p.query) * a.n_head + p.first_head;
    int spoiled = __syncthreads_or(has_nan<F>(sum));
    if (threadIdx.x == 0) parts.spoiled[blockIdx.y * gridDim.x + blockIdx.x] = spoiled;
    if (spoiled) return;
    float *held = (float *)(shared + F::HELD_AT);
    finish<F>(parts, p, at, softmax, shared_max, factor, held);
    store<F>(sum, factor, held, parts.merge, p.n_head, parts.out + at * F::VALUE_DIM);
}

template <typename F>
enum status launch(struct backend *backend, const struct sparse_attention_args *args,
                   const struct sparse_parts *parts) {
    const struct attention_args *a = &args->attention;
    TRY_CUDA(cudaFuncSetAttribute(attend_kernel<F>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  F::BYTES));
    dim3 grid((unsigned)sparse_blocks(a, F::ROWS), (unsigned)parts->n_part);
    LAUNCH(backend, attend_kernel<F>, grid, F::THREADS, F::BYTES, *args, *parts);
    return OK;
}

struct variant {
    int head_dim, value_dim, rows, bytes;
    bool value_in_key;
    enum status (*launch)(struct backend *, const struct sparse_attention_args *,
                          const struct sparse_parts *);
};
template <int HEAD_DIM, int VALUE_DIM, int ROWS, int WARPS, int STAGES, bool VALUE_IN_KEY>
constexpr struct variant variant_of() {
    using F = form<HEAD_DIM, VALUE_DIM, ROWS, WARPS, STAGES, VALUE_IN_KEY>;
    return {HEAD_DIM, VALUE_DIM, ROWS, F::BYTES, VALUE_IN_KEY, launch<F>};
}
// The first that fits is taken: many heads before few.
const struct variant variants[] = {
    variant_of<576, 512, 64, 8, 2, true>(),  variant_of<576, 512, 64, 8, 1, true>(),
    variant_of<576, 512, 16, 4, 2, true>(),  variant_of<576, 512, 16, 4, 1, true>(),
    variant_of<64, 64, 16, 4, 2, false>(),   variant_of<128, 128, 16, 4, 2, false>(),
    variant_of<192, 128, 16, 4, 2, false>(),
};

const struct variant *choose(const struct cuda_state *state, const struct attention_args *a) {
    int group = a->n_head / a->n_kv_head;
    if (a->query_dtype != DTYPE_BF16 || a->kv_dtype != DTYPE_BF16) return NULL;
    if (!sparse_is_aligned(a->query, a->query_stride) ||
        !sparse_is_aligned(a->key, a->key_stride) || !sparse_is_aligned(a->value, a->value_stride))
        return NULL;
    bool value_in_key = a->value == a->key && a->value_stride == a->key_stride && a->n_kv_head == 1;
    for (const struct variant &v : variants)
        if (v.head_dim == a->head_dim && v.value_dim == a->value_dim &&
            v.value_in_key == value_in_key && v.bytes <= state->shared_bytes &&
            (v.rows == 16 || group > 16))
            return &v;
    return NULL;
}

} // namespace

int sparse_attention_mma_rows(const struct cuda_state *state, const struct attention_args *args) {
    const struct variant *v = choose(state, args);
    return v ? v->rows : 0;
}

enum status sparse_attention_mma(struct backend *backend, const struct sparse_attention_args *args,
                                 const struct sparse_parts *parts) {
    return choose(cuda_state(backend), &args->attention)->launch(backend, args, parts);
}
