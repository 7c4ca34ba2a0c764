// Index scores on the tensor cores, products of bf16 with fp32 sums; fp8 becomes bf16 exactly. Each
// warp keeps 32 keys in registers while the block's queries pass through shared memory; keys are
// the rows of a product, heads its columns: of several queries where one has few. A thread sums its
// heads in order, then the threads of a row that hold heads of the query add up: one order for
// every score. The elements of a product are taken in an order that lets a thread read 8
// neighbouring ones at once: the same for queries and keys.
#include "kernels/cuda/index.cuh"
#include "kernels/cuda/index_select.cuh"
#include "kernels/cuda/mma.cuh"

namespace {

enum { WARPS = 8, THREADS = WARPS * WARP, WARP_KEYS = 32, KEYS = WARPS * WARP_KEYS };
enum { GROUP = 8, CHUNK_ELEMENTS = 32, MOST_CHUNKS = 4 }; // columns of a product
enum { ROWS = 64, STAGES = 3 }; // heads in a stage of shared memory: rows there, then weights
enum { LEAST_COLUMNS = (STAGES + 1) * ROWS }; // of a block
static_assert(SCORE_STRIDE_UNIT % KEYS == 0, "scores behind the last key have room");

// Columns of a query: its heads, and zeros where they divide neither a group nor into groups.
__host__ __device__ inline int padded_heads(int n_head) {
    return n_head > GROUP / 2 ? (n_head + GROUP - 1) / GROUP * GROUP : n_head == 3 ? 4 : n_head;
}

// The queries of a block.
struct batch {
    int64_t first;
    int n_query, n_column; // columns of one query
};

// Vectors of 8 elements are moved so that the 8 threads that read at a time meet different banks.
template <int CHUNKS> __device__ inline int vector_at(int row, int vector) {
    return row * CHUNKS * 4 + (CHUNKS % 2 == 0 ? vector ^ (row & 1) << 2 : vector);
}

// Queues the copy of one of the vectors of a stage's row, or of its weight behind the last: those
// of a head, counted from the chunk's first query on.
template <int CHUNKS>
__device__ inline void load_vector_of(const struct score_chunk &c, int64_t head, bool valid,
                                      int row, int vector, unsigned char *stage) {
    if (!valid) head = 0;
    if (vector < CHUNKS * 4)
        copy_async_16((uint4 *)stage + vector_at<CHUNKS>(row, vector),
                      (const uint4 *)c.query + head * CHUNKS * 4 + vector, valid);
    else
        copy_async_4((float *)(stage + ROWS * CHUNKS * 64) + row, c.weight + head, valid);
}

// Queues the copy of ROWS columns, from the batch's column `first` on, and their weights.
template <int CHUNKS>
__device__ void load_stage(const struct score_chunk &c, const struct batch &b, int first,
                           unsigned char *stage) {
    constexpr int kVectors = CHUNKS * 4;
    int n_row = b.n_query * b.n_column - first;
    if (b.n_column == c.n_head) {
        int64_t head = b.first * c.n_head + first;
#pragma unroll
        for (int i = 0; i < ROWS * kVectors; i += THREADS) {
            int row = (i + threadIdx.x) / kVectors, vector = (i + threadIdx.x) % kVectors;
            load_vector_of<CHUNKS>(c, head + row, row < n_row, row, vector, stage);
        }
        if (threadIdx.x < ROWS)
            load_vector_of<CHUNKS>(c, head + threadIdx.x, threadIdx.x < n_row, threadIdx.x,
                                   kVectors, stage);
        return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * (kVectors + 1); i += THREADS) {
        int row = i / (kVectors + 1), query = (first + row) / b.n_column;
        int head = first + row - query * b.n_column;
        load_vector_of<CHUNKS>(c, (b.first + query) * c.n_head + head,
                               row < n_row && head < c.n_head, row, i % (kVectors + 1), stage);
    }
}

// The fragments of 32 keys: key[tile][step] of 16 keys and 16 elements. A thread's rows, two of
// each tile, are four neighbouring keys.
template <int CHUNKS, bool FP8>
__device__ void load_keys(const struct score_chunk &c, int64_t first,
                          uint32_t key[2][CHUNKS * 2][4]) {
    int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t s = first + row * 4 + i;
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

// dot[i][j]: of the thread's key i with column j of its two of a group.
template <int CHUNKS>
__device__ inline void multiply(const unsigned char *stage, int first,
                                const uint32_t key[2][CHUNKS * 2][4], float dot[4][2]) {
    int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4;
    float sum[2][4] = {};
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        uint4 x = ((const uint4 *)stage)[vector_at<CHUNKS>(first + row, j * 4 + column)];
        const uint32_t query[2][2] = {{x.x, x.y}, {x.z, x.w}};
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int tile = 0; tile < 2; tile++)
                mma_bf16(sum[tile], key[tile][j * 2 + step], query[step]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) dot[i / 2][i % 2] = sum[i / 4][i % 4];
}

// Adds the sums of neighbouring threads of a row: each keeps half of the keys.
__device__ inline void exchange_halves(float sum[4]) {
    bool odd = threadIdx.x & 1;
    float other[2] = {odd ? sum[0] : sum[2], odd ? sum[1] : sum[3]};
#pragma unroll
    for (int i = 0; i < 2; i++)
        sum[i] = (odd ? sum[i + 2] : sum[i]) + __shfl_xor_sync(FULL_WARP, other[i], 1);
}
__device__ inline void exchange_quarters(float sum[4]) {
    bool second = threadIdx.x & 2;
    float other = second ? sum[0] : sum[1];
    sum[0] = (second ? sum[1] : sum[0]) + __shfl_xor_sync(FULL_WARP, other, 2);
}

// Which of the thread's four keys it has after the exchanges: neighbours from the first on.
template <int COLUMNS> __device__ inline int first_own() {
    int column = threadIdx.x % 4;
    return COLUMNS == 8 ? column % 2 * 2 + column / 2 : COLUMNS == 4 ? column % 2 * 2 : 0;
}
template <int COLUMNS> struct own {
    static constexpr int kKeys = COLUMNS == 8 ? 1 : COLUMNS == 4 ? 2 : 4;
};

// Adds and stores scores while the groups of a batch come one after the other. COLUMNS of a group
// are of one query.
struct writer {
    float *to;       // the score of the thread's first key and its query of this group
    int query, left; // in the batch; its groups that have not come
    bool is_head[2]; // whether the thread's columns of a query's last group stand for heads
    float scale[4];  // of the thread's own keys
    float sum[4];
};

template <int COLUMNS>
__device__ inline struct writer writer_open(const struct score_chunk &c, const struct batch &b,
                                            int64_t key) {
    int column = threadIdx.x % 4 * 2;
    struct writer w = {};
    key += threadIdx.x % WARP / 4 * 4 + first_own<COLUMNS>();
    w.query = column / COLUMNS;
    w.left = b.n_column / COLUMNS;
    w.to = c.score + (b.first + w.query) * c.stride + key;
    for (int i = 0; i < 2; i++)
        w.is_head[i] = b.n_column - COLUMNS + column % COLUMNS + i < c.n_head;
#pragma unroll
    for (int i = 0; i < own<COLUMNS>::kKeys; i++)
        w.scale[i] = key + i < c.n_key && c.key_scale ? c.key_scale[key + i] : 1;
    return w;
}

template <int COLUMNS>
__device__ inline void store_scores(float *to, const float scale[4], const float x[4]) {
    if (own<COLUMNS>::kKeys == 4)
        *(float4 *)to =
            make_float4(scale[0] * x[0], scale[1] * x[1], scale[2] * x[2], scale[3] * x[3]);
    else if (own<COLUMNS>::kKeys == 2)
        *(float2 *)to = make_float2(scale[0] * x[0], scale[1] * x[1]);
    else
        *to = scale[0] * x[0];
}

// Takes the products of a group. Columns that stand for no head count nothing, whatever the key.
template <int COLUMNS>
__device__ inline void writer_take(const struct score_chunk &c, const struct batch &b,
                                   float2 weight, float dot[4][2], struct writer *w) {
    bool last = COLUMNS < GROUP || --w->left == 0;
    if (last && b.n_column != c.n_head)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (!w->is_head[i % 2]) dot[i / 2][i % 2] = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w->sum[i] = fmaf(weight.x, positive_part(dot[i][0]), w->sum[i]);
        w->sum[i] = fmaf(weight.y, positive_part(dot[i][1]), w->sum[i]);
    }
    if (!last) return;
    if (COLUMNS >= 4) exchange_halves(w->sum);
    if (COLUMNS == 8) exchange_quarters(w->sum);
    if (w->query < b.n_query) store_scores<COLUMNS>(w->to, w->scale, w->sum);
    w->query += GROUP / COLUMNS;
    w->to += GROUP / COLUMNS * c.stride;
    w->left = b.n_column / COLUMNS;
#pragma unroll
    for (int i = 0; i < 4; i++) w->sum[i] = 0;
}
// Of one head: each column is a query.
template <>
__device__ inline void writer_take<1>(const struct score_chunk &c, const struct batch &b,
                                      float2 weight, float dot[4][2], struct writer *w) {
    float first[4], second[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        first[i] = weight.x * positive_part(dot[i][0]);
        second[i] = weight.y * positive_part(dot[i][1]);
    }
    if (w->query < b.n_query) store_scores<1>(w->to, w->scale, first);
    if (w->query + 1 < b.n_query) store_scores<1>(w->to + c.stride, w->scale, second);
    w->query += GROUP;
    w->to += GROUP * c.stride;
}

// Block (x, y): keys from x * KEYS on against n_query queries from y * n_query on.
template <int CHUNKS, bool FP8, int COLUMNS>
__global__ void __launch_bounds__(THREADS, 2) score_kernel(struct score_chunk c, int64_t n_query) {
    DYNAMIC_SHARED(shared);
    constexpr int kBytes = ROWS * (CHUNKS * 64 + 4);
    constexpr int kAtOnce = CHUNKS <= 2 ? 4 : 2; // groups, as registers allow
    static_assert(ROWS % (GROUP * kAtOnce) == 0, "a stage is whole groups");
    int64_t block_key = (int64_t)blockIdx.x * KEYS;
    int64_t first_key = block_key + threadIdx.x / WARP * WARP_KEYS;
    int64_t end = min(c.n_query, (blockIdx.y + 1) * n_query);
    int64_t begin = first_seeing(c, blockIdx.y * n_query, end, block_key);
    if (begin == end) return;
    const struct batch b = {begin, (int)(end - begin), padded_heads(c.n_head)};
    int n_row = b.n_query * b.n_column;
    for (int i = 0; i < STAGES - 1; i++) {
        if (i * ROWS < n_row) load_stage<CHUNKS>(c, b, i * ROWS, shared + i * kBytes);
        copy_async_commit();
    }
    uint32_t key[2][CHUNKS * 2][4];
    load_keys<CHUNKS, FP8>(c, first_key, key);
    struct writer writer = writer_open<COLUMNS>(c, b, first_key);
    for (int first = 0, stage = 0; first < n_row; first += ROWS, stage = (stage + 1) % STAGES) {
        int next = first + (STAGES - 1) * ROWS;
        const unsigned char *rows = shared + stage * kBytes;
        copy_async_wait<STAGES - 2>();
        __syncthreads(); // this stage has come, and the one before has been read, by all
        if (next < n_row)
            load_stage<CHUNKS>(c, b, next, shared + (stage + STAGES - 1) % STAGES * kBytes);
        copy_async_commit();
        const float2 *weight = (const float2 *)(rows + ROWS * CHUNKS * 64) + threadIdx.x % 4;
        for (int row = 0; row < min((int)ROWS, n_row - first); row += kAtOnce * GROUP) {
            float dot[kAtOnce][4][2];
#pragma unroll
            for (int i = 0; i < kAtOnce; i++) multiply<CHUNKS>(rows, row + i * GROUP, key, dot[i]);
#pragma unroll
            for (int i = 0; i < kAtOnce; i++)
                writer_take<COLUMNS>(c, b, weight[(row + i * GROUP) / 2], dot[i], &writer);
        }
    }
}

// Queries of a block: few enough that the blocks fill the device several times, if they are worth
// the keys.
int64_t block_queries(const struct cuda_state *state, const struct score_chunk *c) {
    int64_t wanted = divide_up(8 * state->n_multiprocessor, divide_up(c->n_key, KEYS));
    int64_t n =
        max(divide_up(c->n_query, wanted), divide_up(LEAST_COLUMNS, padded_heads(c->n_head)));
    return divide_up(n, GROUP) * GROUP;
}

template <int CHUNKS, bool FP8, int COLUMNS>
enum status launch(struct backend *backend, const struct score_chunk *c) {
    int64_t n_query = block_queries(cuda_state(backend), c);
    int bytes = STAGES * ROWS * (CHUNKS * 64 + 4);
    auto kernel = score_kernel<CHUNKS, FP8, COLUMNS>;
    TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)divide_up(c->n_key, KEYS), (unsigned)divide_up(c->n_query, n_query));
    LAUNCH(backend, kernel, grid, THREADS, bytes, *c, n_query);
    return OK;
}

template <int CHUNKS, bool FP8>
enum status choose_columns(struct backend *backend, const struct score_chunk *c) {
    switch (padded_heads(c->n_head)) {
    case 1:
        return launch<CHUNKS, FP8, 1>(backend, c);
    case 2:
        return launch<CHUNKS, FP8, 2>(backend, c);
    case 4:
        return launch<CHUNKS, FP8, 4>(backend, c);
    default:
        return launch<CHUNKS, FP8, 8>(backend, c);
    }
}

template <bool FP8> enum status choose(struct backend *backend, const struct score_chunk *c) {
    switch (c->head_dim / CHUNK_ELEMENTS) {
    case 1:
        return choose_columns<1, FP8>(backend, c);
    case 2:
        return choose_columns<2, FP8>(backend, c);
    case 3:
        return choose_columns<3, FP8>(backend, c);
    default:
        return choose_columns<4, FP8>(backend, c);
    }
}

} // namespace

bool index_score_mma_takes(enum dtype dtype, int head_dim) {
    return dtype != DTYPE_F32 && head_dim % CHUNK_ELEMENTS == 0 &&
           head_dim <= MOST_CHUNKS * CHUNK_ELEMENTS;
}

enum status index_score_mma(struct backend *backend, const struct score_chunk *chunk,
                            enum dtype key_dtype) {
    return key_dtype == DTYPE_F8_E4M3 ? choose<true>(backend, chunk)
                                      : choose<false>(backend, chunk);
}
