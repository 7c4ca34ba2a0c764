// Index scores of any shape and format in fp32: a block holds KEYS keys in shared memory, each warp
// takes one query, each lane two keys. A dot product runs over its elements in order, a score over
// its heads in order, as in the reference.
#include "kernels/cuda/index.cuh"

namespace {

enum { LANE_KEYS = 2, KEYS = LANE_KEYS * WARP, HEADS = 4, MAX_WARPS = 8 };

struct fp8 {
    uint8_t code;
};
__device__ inline float load_float(const fp8 *x) {
    return fp8_pair_to_float(x->code).x;
}
using ::load_float;

// Rows are padded to an odd number of float4: neighbouring lanes read different banks.
__host__ __device__ inline int row_vectors(int head_dim) {
    return (head_dim + 3) / 4 | 1;
}
inline int shared_bytes(int head_dim, int n_warp) {
    return (KEYS + n_warp * HEADS) * row_vectors(head_dim) * 16;
}

// Rows of [n_row, head_dim] as fp32, zeros behind the elements and the rows, by the threads
// first, first + step, ..
template <typename T>
__device__ void load_rows(const T *from, int n_row, int all_rows, int head_dim, float *to,
                          int first, int step) {
    int width = row_vectors(head_dim) * 4;
    for (int i = first; i < all_rows * width; i += step) {
        int row = i / width, col = i % width;
        to[i] =
            row < n_row && col < head_dim ? load_float(from + (int64_t)row * head_dim + col) : 0;
    }
}

__device__ inline float dot_on(float sum, float4 a, float4 b) {
    sum = fmaf(a.x, b.x, sum);
    sum = fmaf(a.y, b.y, sum);
    sum = fmaf(a.z, b.z, sum);
    return fmaf(a.w, b.w, sum);
}

// HEADS heads in `query` against the lane's keys: adds to their scores.
__device__ void add_heads(const float4 *query, const float4 *key, int n_vector, int width,
                          const float *weight, int n_head, float score[LANE_KEYS]) {
    float dot[HEADS][LANE_KEYS] = {};
    for (int d = 0; d < n_vector; d++)
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < LANE_KEYS; i++)
                dot[h][i] = dot_on(dot[h][i], query[h * width + d], key[i * WARP * width + d]);
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < LANE_KEYS; i++)
            if (h < n_head) score[i] = fmaf(weight[h], positive_part(dot[h][i]), score[i]);
}

template <typename T> __global__ void score_kernel(struct score_chunk c) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warp = blockDim.x / WARP;
    int width = row_vectors(c.head_dim), n_vector = (c.head_dim + 3) / 4;
    int64_t first_key = (int64_t)blockIdx.x * KEYS;
    int64_t last_query = min(c.n_query, ((int64_t)blockIdx.y + 1) * n_warp) - 1;
    if (c.visible[last_query] <= c.first_key + first_key) return;
    int n_key = (int)min((int64_t)KEYS, c.n_key - first_key);
    float4 *key = (float4 *)shared, *query = key + (KEYS + warp * HEADS) * width;
    load_rows((const T *)c.key + first_key * c.head_dim, n_key, KEYS, c.head_dim, (float *)key,
              threadIdx.x, blockDim.x);
    __syncthreads();
    int64_t t = (int64_t)blockIdx.y * n_warp + warp;
    if (t >= c.n_query) return;
    float score[LANE_KEYS] = {};
    for (int h = 0; h < c.n_head; h += HEADS) {
        int64_t head = t * c.n_head + h;
        int n = min(HEADS, c.n_head - h);
        load_rows((const T *)c.query + head * c.head_dim, n, HEADS, c.head_dim, (float *)query,
                  lane, WARP);
        __syncwarp();
        add_heads(query, key + lane * width, n_vector, width, c.weight + head, n, score);
        __syncwarp();
    }
    for (int i = 0; i < LANE_KEYS; i++) {
        int64_t s = first_key + i * WARP + lane;
        if (s >= c.n_key) continue;
        c.score[t * c.stride + s] = c.key_scale ? c.key_scale[s] * score[i] : score[i];
    }
}

template <typename T>
enum status launch(struct backend *backend, const struct score_chunk *c, int n_warp) {
    int bytes = shared_bytes(c->head_dim, n_warp);
    TRY_CUDA(
        cudaFuncSetAttribute(score_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)divide_up(c->n_key, KEYS), (unsigned)divide_up(c->n_query, n_warp));
    LAUNCH(backend, score_kernel<T>, grid, n_warp * WARP, bytes, *c);
    return OK;
}

} // namespace

enum status index_score_plain(struct backend *backend, const struct score_chunk *chunk,
                              enum dtype dtype) {
    int n_warp = MAX_WARPS, most = cuda_state(backend)->shared_bytes;
    while (n_warp > 1 && shared_bytes(chunk->head_dim, n_warp) > most) n_warp /= 2;
    if (shared_bytes(chunk->head_dim, n_warp) > most)
        FAIL(ERR_CONFIG, "index keys of %d elements are too long for this device", chunk->head_dim);
    switch (dtype) {
    case DTYPE_F8_E4M3:
        return launch<fp8>(backend, chunk, n_warp);
    case DTYPE_BF16:
        return launch<__nv_bfloat16>(backend, chunk, n_warp);
    default:
        return launch<float>(backend, chunk, n_warp);
    }
}
