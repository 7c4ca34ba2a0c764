// Index scores by wgmma, products of bf16 with fp32 sums; fp8 becomes bf16 exactly. Each of four
// warpgroups keeps 64 keys in registers, the rows of its products, while packed queries pass
// through shared memory: one thread of a fifth brings them by bulk copies. While one warpgroup
// weighs its products the others multiply. Within a query the elements are packed in the order in
// which a thread that reads 8 neighbouring elements of a key has them (index_score_mma.cu). A
// thread sums its even and its odd heads in order, then the four threads of a row add up: one order
// for all.
#include "kernels/cuda/index.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace {

enum { GROUPS = 4, GROUP_THREADS = 4 * WARP, CONSUMERS = GROUPS * GROUP_THREADS };
enum { THREADS = CONSUMERS + WARP, GROUP_KEYS = 64, KEYS = GROUPS * GROUP_KEYS, STAGES = 4 };
enum { PANEL_ELEMENTS = 64, PANEL_ROW_BYTES = 128, ALIGN = 1024, PACK_THREADS = 256 };

template <int N_HEAD_, int HEAD_DIM_> struct form {
    static constexpr int N_HEAD = N_HEAD_, HEAD_DIM = HEAD_DIM_;
    static constexpr int TILES = N_HEAD / 8, STEPS = HEAD_DIM / 16;
    static constexpr int PANEL_BYTES = N_HEAD * PANEL_ROW_BYTES;
    static constexpr int WEIGHT_AT = N_HEAD * HEAD_DIM * 2, COPY_BYTES = WEIGHT_AT + N_HEAD * 4;
    static constexpr int QUERY_BYTES = (COPY_BYTES + ALIGN - 1) / ALIGN * ALIGN;
    static constexpr int SHARED_BYTES = STAGES * (QUERY_BYTES + 2 * 8) + ALIGN;
    static_assert(HEAD_DIM % PANEL_ELEMENTS == 0 && PANEL_BYTES % ALIGN == 0, "whole panels");
};

template <typename T> __device__ inline uint32_t load_pair(const T *x, int64_t element);
template <> __device__ inline uint32_t load_pair(const uint8_t *x, int64_t element) {
    return fp8_pair_to_bf16(*(const uint16_t *)(x + element));
}
template <> __device__ inline uint32_t load_pair(const uint16_t *x, int64_t element) {
    return *(const uint32_t *)(x + element);
}

// Query blockIdx.x: panels [head_dim / 64][n_head][64] in the swizzle of 128 bytes, then weights.
template <typename T>
__global__ void pack_kernel(const T *query, const float *weight, int n_head, int head_dim,
                            int64_t query_bytes, unsigned char *to) {
    int64_t t = blockIdx.x;
    to += t * query_bytes;
    int n_vector = n_head * head_dim / 8;
    for (int i = threadIdx.x; i < n_vector; i += PACK_THREADS) {
        int vector = i % 8, head = i / 8 % n_head, panel = i / 8 / n_head;
        int step = panel * 4 + vector / 2;
        int64_t from =
            (t * n_head + head) * head_dim + step / 2 * 32 + step % 2 * 4 + vector % 2 * 2;
        uint4 x = make_uint4(load_pair(query, from), load_pair(query, from + 8),
                             load_pair(query, from + 16), load_pair(query, from + 24));
        int at = (panel * n_head + head) * PANEL_ROW_BYTES + (vector ^ (head & 7)) * 16;
        *(uint4 *)(to + at) = x;
    }
    for (int i = threadIdx.x; i < n_head; i += PACK_THREADS)
        ((float *)(to + n_head * head_dim * 2))[i] = weight[t * n_head + i];
}

// The fragments of the warp's 16 keys from `first` on.
template <class F, bool FP8>
__device__ void load_keys(const struct score_chunk &c, int64_t first,
                          uint32_t (&key)[F::STEPS][4]) {
    int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int64_t s = first + i * 8 + row;
#pragma unroll
        for (int j = 0; j < F::STEPS / 2; j++) {
            uint4 x = make_uint4(0, 0, 0, 0);
            if (s < c.n_key) x = load_vector<FP8>(c.key, (s * (F::STEPS / 2) + j) * 4 + column);
            key[j * 2][i] = x.x;
            key[j * 2][i + 2] = x.y;
            key[j * 2 + 1][i] = x.z;
            key[j * 2 + 1][i + 2] = x.w;
        }
    }
}

struct room {
    unsigned char *query; // [STAGES]
    uint64_t *full, *free;
};

template <class F>
__device__ void produce(const struct score_chunk &c, int64_t begin, int64_t end,
                        const struct room &room) {
    for (int64_t t = begin; t < end; t++) {
        int turn = (int)(t - begin), stage = turn % STAGES;
        mbarrier_wait(&room.free[stage], (turn / STAGES + 1) % 2); // at first all are free
        mbarrier_expect(&room.full[stage], F::COPY_BYTES);
        bulk_copy(room.query + stage * F::QUERY_BYTES,
                  (const unsigned char *)c.query + t * F::QUERY_BYTES, F::COPY_BYTES,
                  &room.full[stage]);
    }
}

// The weighted sums of this thread's heads for its two keys.
template <class F>
__device__ inline void weigh(const float (&dot)[F::TILES][4], const float *weight, float *low,
                             float *high) {
    float sum[4] = {};
#pragma unroll
    for (int n = 0; n < F::TILES; n++) {
        float2 w = *(const float2 *)(weight + n * 8 + threadIdx.x % 4 * 2);
        sum[0] = fmaf(w.x, positive_part(dot[n][0]), sum[0]);
        sum[1] = fmaf(w.y, positive_part(dot[n][1]), sum[1]);
        sum[2] = fmaf(w.x, positive_part(dot[n][2]), sum[2]);
        sum[3] = fmaf(w.y, positive_part(dot[n][3]), sum[3]);
    }
    *low = sum[0] + sum[1];
    *high = sum[2] + sum[3];
}

template <class F, bool FP8>
__device__ void consume(const struct score_chunk &c, int64_t first_key, int64_t begin, int64_t end,
                        const struct room &room) {
    int lane = threadIdx.x % WARP;
    uint32_t key[F::STEPS][4];
    first_key += threadIdx.x / WARP * 16;
    load_keys<F, FP8>(c, first_key, key);
    int64_t own_key = first_key + lane / 4 + lane % 4 * 8; // whose score lanes 0 and 1 of 4 store
    bool stores = lane % 4 < 2 && own_key < c.n_key;
    float scale = stores && c.key_scale ? c.key_scale[own_key] : 1;
    uint32_t query_at = shared_address(room.query);
    for (int64_t t = begin; t < end; t++) {
        int turn = (int)(t - begin), stage = turn % STAGES;
        float dot[F::TILES][4], low, high;
        mbarrier_wait(&room.full[stage], turn / STAGES % 2);
        wgmma_hold(dot);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < F::STEPS; step++) {
            uint32_t at = query_at + stage * F::QUERY_BYTES + step / 4 * F::PANEL_BYTES;
            wgmma_registers_rows(dot, key[step], wgmma_operand(at + step % 4 * 32, 0), step > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(dot);
        weigh<F>(dot, (const float *)(room.query + stage * F::QUERY_BYTES + F::WEIGHT_AT), &low,
                 &high);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&room.free[stage]);
        low += __shfl_xor_sync(FULL_WARP, low, 1);
        high += __shfl_xor_sync(FULL_WARP, high, 1);
        low += __shfl_xor_sync(FULL_WARP, low, 2);
        high += __shfl_xor_sync(FULL_WARP, high, 2);
        if (stores) c.score[t * c.stride + own_key] = scale * (lane % 4 ? high : low);
    }
}

// Block (x, y): keys from x * KEYS on against n_query queries from y * n_query on.
template <class F, bool FP8>
__global__ void __launch_bounds__(THREADS, 1) score_kernel(struct score_chunk c, int64_t n_query) {
    DYNAMIC_SHARED(shared);
    int64_t first_key = (int64_t)blockIdx.x * KEYS,
            end = min(c.n_query, (blockIdx.y + 1) * n_query);
    int64_t begin = first_seeing(c, blockIdx.y * n_query, end, first_key);
    if (begin == end) return;
    struct room room;
    room.query = shared + (ALIGN - shared_address(shared) % ALIGN) % ALIGN;
    room.full = (uint64_t *)(room.query + STAGES * F::QUERY_BYTES);
    room.free = room.full + STAGES;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&room.full[i], 1);
            mbarrier_init(&room.free[i], CONSUMERS / WARP);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < CONSUMERS)
        consume<F, FP8>(c, first_key, begin, end, room);
    else if (threadIdx.x == CONSUMERS)
        produce<F>(c, begin, end, room);
}

// Queries of a block: few enough that the blocks fill the device several times.
int64_t block_queries(const struct cuda_state *state, const struct score_chunk *c) {
    int64_t wanted = divide_up(4 * state->n_multiprocessor, divide_up(c->n_key, KEYS));
    return divide_up(c->n_query, min(wanted, c->n_query));
}

template <class F, bool FP8>
enum status launch(struct backend *backend, const struct score_chunk *c) {
    int64_t n_query = block_queries(cuda_state(backend), c);
    TRY_CUDA(cudaFuncSetAttribute(score_kernel<F, FP8>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  F::SHARED_BYTES));
    dim3 grid((unsigned)divide_up(c->n_key, KEYS), (unsigned)divide_up(c->n_query, n_query));
    LAUNCH(backend, (score_kernel<F, FP8>), grid, THREADS, F::SHARED_BYTES, *c, n_query);
    return OK;
}

template <bool FP8> enum status choose(struct backend *backend, const struct score_chunk *c) {
    if (c->n_head == 64)
        return c->head_dim == 128 ? launch<form<64, 128>, FP8>(backend, c)
                                  : launch<form<64, 64>, FP8>(backend, c);
    return c->head_dim == 128 ? launch<form<32, 128>, FP8>(backend, c)
                              : launch<form<32, 64>, FP8>(backend, c);
}

} // namespace

enum status index_score_sm90a_pack(struct backend *backend, const struct score_chunk *chunk,
                                   enum dtype dtype, void *to) {
    int64_t bytes = index_packed_bytes(chunk->n_head, chunk->head_dim);
    unsigned n_query = (unsigned)chunk->n_query;
    if (dtype == DTYPE_F8_E4M3)
        LAUNCH(backend, pack_kernel<uint8_t>, n_query, PACK_THREADS, 0,
               (const uint8_t *)chunk->query, chunk->weight, chunk->n_head, chunk->head_dim, bytes,
               (unsigned char *)to);
    else
        LAUNCH(backend, pack_kernel<uint16_t>, n_query, PACK_THREADS, 0,
               (const uint16_t *)chunk->query, chunk->weight, chunk->n_head, chunk->head_dim, bytes,
               (unsigned char *)to);
    return OK;
}

enum status index_score_sm90a(struct backend *backend, const struct score_chunk *chunk,
                              enum dtype key_dtype) {
    return key_dtype == DTYPE_F8_E4M3 ? choose<true>(backend, chunk)
                                      : choose<false>(backend, chunk);
}
