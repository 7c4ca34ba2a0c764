// Index scores on the tensor cores, products of bf16 with fp32 sums; fp8 becomes bf16 exactly. Each
// warp keeps 32 keys in registers while the block's queries pass through shared memory; keys are
// the rows of a product, heads its columns. A thread sums its heads in order, then the four threads
// of a row add up: one order for every score. The elements of a product are taken in an order that
// lets a thread read 8 neighbouring ones at once: the same for queries and keys.
#include "kernels/cuda/index.cuh"
#include "kernels/cuda/mma.cuh"

namespace {

enum { WARPS = 8, THREADS = WARPS * WARP, WARP_KEYS = 32, KEYS = WARPS * WARP_KEYS };
enum { GROUP = 8, QUERIES = 32, CHUNK_ELEMENTS = 32 }; // heads of a product; queries of a block

inline int stage_bytes(int n_head, int head_dim) {
    return n_head * (head_dim * 2 + 4);
}

// Vectors of 8 elements are moved so that the 8 threads that read at a time meet different banks.
template <int CHUNKS> __device__ inline int vector_at(int row, int vector) {
    return row * CHUNKS * 4 + (CHUNKS % 2 == 0 ? vector ^ (row & 1) << 2 : vector);
}

// Queues the copy of one query's heads and weights.
template <int CHUNKS>
__device__ void load_query(const struct score_chunk &c, int64_t t, unsigned char *stage) {
    int n_vector = c.n_head * CHUNKS * 4;
    const uint4 *query = (const uint4 *)c.query + t * n_vector;
    for (int i = threadIdx.x; i < n_vector; i += THREADS)
        copy_async_16((uint4 *)stage + vector_at<CHUNKS>(i / (CHUNKS * 4), i % (CHUNKS * 4)),
                      query + i, true);
    const uint4 *weight = (const uint4 *)(c.weight + t * c.n_head);
    if (threadIdx.x < c.n_head / 4)
        copy_async_16((uint4 *)stage + n_vector + threadIdx.x, weight + threadIdx.x, true);
}

// The fragments of 32 keys: key[tile][step] of 16 keys and 16 elements.
template <int CHUNKS, bool FP8>
__device__ void load_keys(const struct score_chunk &c, int64_t first,
                          uint32_t key[2][CHUNKS * 2][4]) {
    int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t s = first + i * 8 + row;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            uint4 x = make_uint4(0, 0, 0, 0);
            if (s < c.n_key) x = load_vector<FP8>(c.key, (s * CHUNKS + j) * 4 + column);
            key[i / 2][j * 2][i % 2] = x.x;
            key[i / 2][j * 2][i % 2 + 2] = x.y;
            key[i / 2][j * 2 + 1][i % 2] = x.z;
            key[i / 2][j * 2 + 1][i % 2 + 2] = x.w;
        }
    }
}

// sum[i]: of this thread's heads, for key i * 8 + lane / 4 of the warp.
template <int CHUNKS>
__device__ void score_query(const unsigned char *stage, int n_head,
                            const uint32_t key[2][CHUNKS * 2][4], float sum[4]) {
    int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4;
    const float *weight = (const float *)(stage + n_head * CHUNKS * 64);
#pragma unroll 2
    for (int head = 0; head < n_head; head += GROUP) {
        float dot[2][4] = {};
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            uint4 x = ((const uint4 *)stage)[vector_at<CHUNKS>(head + row, j * 4 + column)];
            const uint32_t query[2][2] = {{x.x, x.y}, {x.z, x.w}};
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
                for (int tile = 0; tile < 2; tile++)
                    mma_bf16(dot[tile], key[tile][j * 2 + step], query[step]);
        }
        float2 w = *(const float2 *)(weight + head + column * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[i] = fmaf(w.x, positive_part(dot[i / 2][i % 2 * 2]), sum[i]);
            sum[i] = fmaf(w.y, positive_part(dot[i / 2][i % 2 * 2 + 1]), sum[i]);
        }
    }
}

template <int CHUNKS, bool FP8>
__global__ void __launch_bounds__(THREADS, 2) score_kernel(struct score_chunk c) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % WARP, bytes = c.n_head * (CHUNKS * 64 + 4);
    int64_t block_key = (int64_t)blockIdx.x * KEYS;
    int64_t first_key = block_key + threadIdx.x / WARP * WARP_KEYS;
    int64_t end = min(c.n_query, ((int64_t)blockIdx.y + 1) * QUERIES);
    int64_t t = first_seeing(c, (int64_t)blockIdx.y * QUERIES, end, block_key);
    if (t == end) return;
    load_query<CHUNKS>(c, t, shared);
    copy_async_commit();
    uint32_t key[2][CHUNKS * 2][4];
    load_keys<CHUNKS, FP8>(c, first_key, key);
    int64_t own_key = first_key + lane % 4 * 8 + lane / 4; // whose score this lane stores
    bool stores = own_key < c.n_key;
    float scale = stores && c.key_scale ? c.key_scale[own_key] : 1;
    for (int stage = 0; t < end; t++, stage ^= 1) {
        __syncthreads(); // the other stage has been read
        if (t + 1 < end) load_query<CHUNKS>(c, t + 1, shared + (stage ^ 1) * bytes);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        float sum[4] = {};
        score_query<CHUNKS>(shared + stage * bytes, c.n_head, key, sum);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], 1);
            sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], 2);
        }
        float low = lane & 1 ? sum[1] : sum[0], high = lane & 1 ? sum[3] : sum[2];
        if (stores) c.score[t * c.stride + own_key] = scale * (lane & 2 ? high : low);
    }
}

template <int CHUNKS, bool FP8>
enum status launch(struct backend *backend, const struct score_chunk *c) {
    int bytes = 2 * stage_bytes(c->n_head, c->head_dim);
    TRY_CUDA(cudaFuncSetAttribute(score_kernel<CHUNKS, FP8>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)divide_up(c->n_key, KEYS), (unsigned)divide_up(c->n_query, QUERIES));
    LAUNCH(backend, (score_kernel<CHUNKS, FP8>), grid, THREADS, bytes, *c);
    return OK;
}

template <bool FP8> enum status choose(struct backend *backend, const struct score_chunk *c) {
    switch (c->head_dim / CHUNK_ELEMENTS) {
    case 1:
        return launch<1, FP8>(backend, c);
    case 2:
        return launch<2, FP8>(backend, c);
    case 3:
        return launch<3, FP8>(backend, c);
    default:
        return launch<4, FP8>(backend, c);
    }
}

} // namespace

bool index_score_mma_takes(const struct cuda_state *state, enum dtype dtype, int n_head,
                           int head_dim) {
    return dtype != DTYPE_F32 && n_head % GROUP == 0 && head_dim % CHUNK_ELEMENTS == 0 &&
           head_dim <= 4 * CHUNK_ELEMENTS &&
           2 * stage_bytes(n_head, head_dim) <= state->shared_bytes && n_head / 4 <= THREADS;
}

enum status index_score_mma(struct backend *backend, const struct score_chunk *chunk,
                            enum dtype key_dtype) {
    return key_dtype == DTYPE_F8_E4M3 ? choose<true>(backend, chunk)
                                      : choose<false>(backend, chunk);
}
