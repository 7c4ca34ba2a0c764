// The lightning indexer's running top-k. Chunks of queries are scored against chunks of keys into
// scratch; then one block of each query reads its scores once, adds those that reach its threshold
// to a buffer, and cuts the buffer back to the k best when it is full. The first score that is not
// a number, by query and then by key, goes to the fault record at the end.
#include "kernels/cuda/candidate.cuh"
#include "kernels/cuda/index.cuh"
#include "kernels/cuda/sparse_attention.cuh"

#include <stdlib.h>

namespace {

enum { THREADS = 1024, TILE = 4 * THREADS, QUERY_CHUNK = 256, STRIDE_UNIT = 1024 };
constexpr int64_t kScores = 32 << 20; // of a chunk at most

// A query's buffer: what is kept, and two tiles, so that it is cut back rarely.
inline int64_t list_room(int64_t k) {
    return k + 2 * TILE;
}

struct select_chunk {
    int k;
    uint64_t *candidate; // [n_query, k], of the chunk's queries
    int32_t *n_candidate;
    const float *score; // [n_query, stride]
    int64_t stride, n_key, first_key, first_query;
    const int64_t *visible;    // [n_query]
    const struct key_run *run; // [n_run] of the block: first_row is the run's first key
    int n_run;
    uint64_t *room;          // [n_query, list_room(k)], or NULL where shared memory holds it
    unsigned long long *bad; // the first query << 32 | key with a score that is not a number
};

__device__ int64_t position_of_key(const struct key_run *run, int n_run, int64_t key) {
    int begin = 1, end = n_run; // the last run that begins at or before the key
    while (begin < end) {
        int middle = begin + (end - begin) / 2;
        if (run[middle].first_row <= key)
            begin = middle + 1;
        else
            end = middle;
    }
    run += begin - 1;
    return run->start + (key - run->first_row) * run->stride;
}

// The candidates of one query while its scores are read.
struct list {
    uint64_t *candidate;
    uint64_t threshold; // candidates below it are of no interest
    float score;        // the threshold's; -inf while there is none
};

__device__ inline void list_raise(struct list *list, uint64_t threshold) {
    list->threshold = threshold;
    list->score = threshold ? score_of(threshold) : -INFINITY;
}

// Adds one score of each lane whose key is visible; all lanes of a warp call it.
__device__ inline void list_add(const struct select_chunk &c, const struct list &list, int64_t t,
                                int64_t key, bool visible, float score, int *n) {
    bool wanted = visible && !(score < list.score);
    if (!__any_sync(FULL_WARP, wanted)) return;
    uint64_t candidate = 0;
    if (wanted && isnan(score)) {
        atomicMin(c.bad, (unsigned long long)(c.first_query + t) << 32 | (c.first_key + key));
        wanted = false;
    }
    if (wanted) {
        candidate = candidate_of(score, position_of_key(c.run, c.n_run, c.first_key + key));
        wanted = candidate >= list.threshold;
    }
    int at = select_place(n, wanted);
    if (wanted) list.candidate[at] = candidate;
}

__global__ void __launch_bounds__(THREADS) select_kernel(struct select_chunk c) {
    DYNAMIC_SHARED(shared);
    __shared__ struct select_room select;
    __shared__ int n; // in the list
    int64_t t = blockIdx.x, n_key = min(c.n_key, c.visible[t] - c.first_key);
    if (n_key <= 0) return;
    int room = c.k + 2 * TILE, n_kept = c.n_candidate[t];
    uint64_t *kept = c.candidate + t * c.k;
    struct list list = {c.room ? c.room + t * room : (uint64_t *)shared, 0, -INFINITY};
    for (int i = threadIdx.x; i < n_kept; i += THREADS) list.candidate[i] = kept[i];
    if (threadIdx.x == 0) n = n_kept;
    __syncthreads();
    if (n_kept == c.k) list_raise(&list, select_smallest(list.candidate, n_kept, &select));
    const float4 *score = (const float4 *)(c.score + t * c.stride);
    float4 next = {};
    if (threadIdx.x * 4 < c.stride) next = score[threadIdx.x];
    for (int64_t first = 0; first < n_key; first += TILE) {
        int64_t key = first + threadIdx.x * 4;
        const float x[4] = {next.x, next.y, next.z, next.w};
        if (key + TILE < c.stride) next = score[(key + TILE) / 4];
        for (int i = 0; i < 4; i++) list_add(c, list, t, key + i, key + i < n_key, x[i], &n);
        __syncthreads();
        int n_list = n;
        __syncthreads();
        if (n_list + TILE <= room) continue;
        list_raise(&list, select_bound(list.candidate, n_list, c.k, &select));
        n_list = select_keep(list.candidate, n_list, list.threshold, c.k, list.candidate, &select);
        if (threadIdx.x == 0) n = n_list;
        __syncthreads();
    }
    n_kept = n;
    __syncthreads();
    uint64_t bound = n_kept > c.k ? select_bound(list.candidate, n_kept, c.k, &select) : 0;
    n_kept = select_keep(list.candidate, n_kept, bound, c.k, kept, &select);
    if (threadIdx.x == 0) c.n_candidate[t] = n_kept;
}
static_assert(STRIDE_UNIT % 4 == 0, "rows of scores are read in vectors");

__global__ void report_kernel(const unsigned long long *bad, const int64_t *query_position,
                              const struct key_run *run, int n_run, struct cuda_fault *fault) {
    if (*bad == ~0ull) return;
    if (atomicCAS(&fault->kind, (int)CUDA_FAULT_NONE, (int)CUDA_FAULT_NAN_SCORE) != CUDA_FAULT_NONE)
        return;
    fault->query_position = query_position[*bad >> 32];
    fault->key_position = position_of_key(run, n_run, (int64_t)(*bad & 0xffffffffu));
}

// fp8 to bf16, 16 elements a thread.
__global__ void expand_kernel(const uint4 *from, int64_t n_vector, uint4 *to) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_vector) return;
    uint4 x = from[i];
    const uint32_t codes[4] = {x.x, x.y, x.z, x.w};
    uint32_t out[8];
    for (int j = 0; j < 4; j++) {
        out[j * 2] = fp8_pair_to_bf16(codes[j] & 0xffff);
        out[j * 2 + 1] = fp8_pair_to_bf16(codes[j] >> 16);
    }
    to[i * 2] = make_uint4(out[0], out[1], out[2], out[3]);
    to[i * 2 + 1] = make_uint4(out[4], out[5], out[6], out[7]);
}

// Offsets into scratch, and its size.
struct layout {
    int64_t n_query, n_key; // of a chunk at most; n_key is the stride as well
    int64_t query_at, score_at, list_at, bytes;
    bool shared_lists;
};

inline int64_t round_up(int64_t n, int64_t to) {
    return divide_up(n, to) * to;
}

struct layout layout_make(const struct cuda_state *state, int64_t n_query, int64_t n_key,
                          int64_t query_bytes, int k) {
    struct layout l = {};
    l.n_query = min((int64_t)QUERY_CHUNK, n_query);
    l.n_key = min(round_up(n_key, STRIDE_UNIT), kScores / l.n_query / STRIDE_UNIT * STRIDE_UNIT);
    l.query_at = 1024; // behind `bad`
    l.score_at = l.query_at + l.n_query * query_bytes;
    l.list_at = l.score_at + l.n_query * l.n_key * 4;
    l.shared_lists =
        list_room(k) * 8 + (int64_t)sizeof(struct select_room) + 64 <= state->shared_bytes;
    l.bytes = l.list_at + (l.shared_lists ? 0 : l.n_query * list_room(k) * 8);
    return l;
}

// How many of ascending positions are at or before one.
int64_t count_visible(const int64_t *position, int64_t n, int64_t at) {
    int64_t begin = 0, end = n;
    while (begin < end) {
        int64_t middle = begin + (end - begin) / 2;
        if (position[middle] <= at)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

// The run of evenly spaced positions that begins at `first`. Ascending integers are neighbours when
// they span as much as they are many, so that long runs are found without reading them.
struct key_run run_at(const int64_t *position, int64_t n, int64_t first) {
    struct key_run run = {position[first], 1, 1, first};
    if (first + 1 == n) return run;
    run.stride = position[first + 1] - position[first];
    int64_t step = run.stride == 1 ? n - first : 2, last = first + 1; // is of the run
    while (step > 0) {
        if (last + step < n && position[last + step] - run.start == last + step - first)
            last += step;
        else
            step /= 2;
    }
    if (run.stride > 1)
        while (last + 1 < n && position[last + 1] - position[last] == run.stride) last++;
    run.count = last - first + 1;
    return run;
}

// What the kernels know of positions: host memory first, then its copy on the device.
struct tables {
    int64_t *visible, *query_position; // [n_query]
    struct key_run *run;               // [n_run]
    int64_t n_run, room, bytes;
};

void tables_place(struct tables *t, void *memory, int64_t n_query) {
    t->visible = (int64_t *)memory;
    t->query_position = t->visible + n_query;
    t->run = (struct key_run *)(t->query_position + n_query);
}

enum status tables_grow(struct tables *t, int64_t n_query) {
    int64_t room = 2 * t->room + 16, bytes = n_query * 16 + room * (int64_t)sizeof *t->run;
    void *memory = realloc(t->visible, (size_t)bytes);
    if (!memory) FAIL(ERR_MEMORY, "no memory for %lld runs of keys", (long long)room);
    t->room = room;
    tables_place(t, memory, n_query);
    return OK;
}

enum status tables_fill(struct tables *t, const struct index_args *args) {
    TRY(tables_grow(t, args->n_query));
    for (int64_t i = 0; i < args->n_query; i++) {
        t->query_position[i] = args->query_position[i];
        t->visible[i] = count_visible(args->key_position, args->n_key, args->query_position[i]);
    }
    for (int64_t first = 0; first < args->n_key; first += t->run[t->n_run - 1].count) {
        if (t->n_run == t->room) TRY(tables_grow(t, args->n_query));
        t->run[t->n_run++] = run_at(args->key_position, args->n_key, first);
    }
    t->bytes = args->n_query * 16 + t->n_run * (int64_t)sizeof *t->run;
    return OK;
}

// Brings queries to the form in which they are scored, in `to` where it differs from their own.
enum status prepare_queries(struct backend *backend, const struct index_args *args, void *to,
                            struct score_chunk *chunk) {
    const struct cuda_state *state = cuda_state(backend);
    if (index_score_sm90a_takes(state, args->dtype, args->n_head, args->head_dim)) {
        TRY(index_score_sm90a_pack(backend, chunk, args->dtype, to));
    } else if (args->dtype == DTYPE_F8_E4M3 &&
               index_score_mma_takes(state, args->dtype, args->n_head, args->head_dim)) {
        int64_t n = chunk->n_query * args->n_head * args->head_dim / 16;
        LAUNCH(backend, expand_kernel, (unsigned)divide_up(n, 256), 256, 0,
               (const uint4 *)chunk->query, n, (uint4 *)to);
    } else {
        return OK;
    }
    chunk->query = to;
    return OK;
}

enum status score(struct backend *backend, const struct index_args *args,
                  const struct score_chunk *chunk) {
    const struct cuda_state *state = cuda_state(backend);
    if (index_score_sm90a_takes(state, args->dtype, args->n_head, args->head_dim))
        return index_score_sm90a(backend, chunk, args->dtype);
    if (index_score_mma_takes(state, args->dtype, args->n_head, args->head_dim))
        return index_score_mma(backend, chunk, args->dtype);
    return index_score_plain(backend, chunk, args->dtype);
}

enum status select(struct backend *backend, const struct select_chunk *chunk, int64_t n_query) {
    int bytes = chunk->room ? 0 : (int)(list_room(chunk->k) * 8);
    TRY_CUDA(
        cudaFuncSetAttribute(select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    LAUNCH(backend, select_kernel, (unsigned)n_query, THREADS, bytes, *chunk);
    return OK;
}

// The queries from `first` on against all keys that the last of them sees.
enum status run_queries(struct backend *backend, const struct index_args *args,
                        const struct layout *l, const struct tables *tables, char *scratch,
                        int64_t first, int64_t n_visible) {
    int64_t width = (int64_t)args->n_head * args->head_dim;
    struct score_chunk chunk = {};
    chunk.n_head = args->n_head;
    chunk.head_dim = args->head_dim;
    chunk.n_query = min(l->n_query, args->n_query - first);
    chunk.query = (const char *)args->query + dtype_bytes(args->dtype, first * width);
    chunk.weight = args->weight + first * args->n_head;
    chunk.visible = tables->visible + first;
    chunk.score = (float *)(scratch + l->score_at);
    chunk.stride = l->n_key;
    TRY(prepare_queries(backend, args, scratch + l->query_at, &chunk));
    for (int64_t key = 0; key < n_visible; key += l->n_key) {
        chunk.n_key = min(l->n_key, n_visible - key);
        chunk.first_key = key;
        chunk.key = (const char *)args->key + dtype_bytes(args->dtype, key * args->head_dim);
        chunk.key_scale = args->key_scale ? args->key_scale + key : NULL;
        TRY(score(backend, args, &chunk));
        struct select_chunk chosen = {};
        chosen.k = args->k;
        chosen.candidate = args->candidate + first * args->k;
        chosen.n_candidate = args->n_candidate + first;
        chosen.score = chunk.score;
        chosen.stride = chunk.stride;
        chosen.n_key = chunk.n_key;
        chosen.first_key = key;
        chosen.first_query = first;
        chosen.visible = chunk.visible;
        chosen.run = tables->run;
        chosen.n_run = (int)tables->n_run;
        chosen.room = l->shared_lists ? NULL : (uint64_t *)(scratch + l->list_at);
        chosen.bad = (unsigned long long *)scratch;
        TRY(select(backend, &chosen, chunk.n_query));
    }
    return OK;
}

enum status run(struct backend *backend, const struct index_args *args, const struct tables *host) {
    const struct cuda_state *state = cuda_state(backend);
    struct layout l = layout_make(state, args->n_query, args->n_key,
                                  index_packed_bytes(args->n_head, args->head_dim), args->k);
    struct tables tables = *host;
    const void *staged;
    void *scratch;
    TRY(cuda_stage(backend, host->visible, host->bytes, &staged));
    tables_place(&tables, (void *)staged, args->n_query);
    TRY(cuda_scratch(backend, l.bytes, &scratch));
    TRY_CUDA(cudaMemsetAsync(scratch, 0xff, sizeof(unsigned long long), state->compute));
    for (int64_t first = 0; first < args->n_query; first += l.n_query) {
        int64_t last = min(first + l.n_query, args->n_query) - 1;
        TRY(run_queries(backend, args, &l, &tables, (char *)scratch, first, host->visible[last]));
    }
    LAUNCH(backend, report_kernel, 1, 1, 0, (const unsigned long long *)scratch,
           tables.query_position, tables.run, (int)tables.n_run, state->fault);
    return OK;
}

} // namespace

enum status cuda_index_top_k(struct backend *backend, const struct index_args *args) {
    if (args->n_query == 0 || args->n_key == 0) return OK;
    struct tables tables = {};
    enum status status = tables_fill(&tables, args);
    if (status == OK) status = run(backend, args, &tables);
    free(tables.visible);
    return status;
}

int64_t cuda_index_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s) {
    if (s->index_k == 0) return 0;
    struct layout l = layout_make(state, QUERY_CHUNK, s->n_key,
                                  index_packed_bytes(s->n_index_head, s->index_dim), s->index_k);
    int64_t bytes = max(l.bytes, cuda_index_merge_scratch_bytes(s->index_k));
    return max(bytes, sparse_attention_scratch_bytes(state, s));
}
