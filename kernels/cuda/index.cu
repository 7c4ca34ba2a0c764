// The lightning indexer's running top-k. Chunks of queries are scored against chunks of keys into
// scratch, from where each query's best are selected. The first score that is not a number, by
// query and then by key, goes to the fault record at the end.
#include "kernels/cuda/candidate.cuh"
#include "kernels/cuda/index.cuh"
#include "kernels/cuda/index_select.cuh"
#include "kernels/cuda/sparse_attention.cuh"

#include <stdlib.h>
#include <string.h>

namespace {

enum { QUERY_CHUNK = 256 };
constexpr int64_t kScores = 32 << 20; // of a chunk at most

__global__ void report_kernel(const unsigned long long *bad, const int64_t *query_position,
                              const struct key_run *run, int n_run, struct cuda_fault *fault) {
    if (*bad == ~0ull) return;
    if (atomicCAS(&fault->kind, (int)CUDA_FAULT_NONE, (int)CUDA_FAULT_NAN_SCORE) != CUDA_FAULT_NONE)
        return;
    fault->query_position = query_position[*bad >> 32];
    fault->key_position = key_run_position(run, n_run, (int64_t)(*bad & 0xffffffffu));
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
    int64_t query_at, score_at, select_at, bytes;
};

inline int64_t round_up(int64_t n, int64_t to) {
    return divide_up(n, to) * to;
}

struct layout layout_make(const struct cuda_state *state, int64_t n_query, int64_t n_key,
                          int64_t query_bytes, int k) {
    struct layout l = {};
    l.n_query = min((int64_t)QUERY_CHUNK, n_query);
    l.n_key = min(round_up(n_key, SCORE_STRIDE_UNIT),
                  kScores / l.n_query / SCORE_STRIDE_UNIT * SCORE_STRIDE_UNIT);
    l.query_at = 1024; // behind `bad`
    l.score_at = l.query_at + l.n_query * query_bytes;
    l.select_at = l.score_at + l.n_query * l.n_key * 4;
    l.bytes = l.select_at + index_select_bytes(state, l.n_query, l.n_key, k);
    return l;
}

// What the kernels know of positions: host memory first, then its copy on the device.
struct tables {
    int64_t *visible, *query_position; // [n_query]
    struct key_run *run;               // [n_run]
    int64_t bytes;
};

struct tables tables_place(const struct index_args *args, void *memory) {
    struct tables t;
    t.visible = (int64_t *)memory;
    t.query_position = t.visible + args->n_query;
    t.run = (struct key_run *)(t.query_position + args->n_query);
    t.bytes = args->n_query * 16 + args->n_run * (int64_t)sizeof *t.run;
    return t;
}

void tables_fill(const struct tables *t, const struct index_args *args) {
    memcpy(t->query_position, args->query_position, args->n_query * sizeof *t->query_position);
    memcpy(t->run, args->run, args->n_run * sizeof *t->run);
    for (int64_t i = 0; i < args->n_query; i++)
        t->visible[i] = key_run_visible(args->run, args->n_run, args->query_position[i]);
}

// Brings queries to the form in which they are scored, in `to` where it differs from their own.
enum status prepare_queries(struct backend *backend, const struct index_args *args, void *to,
                            struct score_chunk *chunk) {
    const struct cuda_state *state = cuda_state(backend);
    if (index_score_sm90a_takes(state, args->dtype, args->n_head, args->head_dim)) {
        TRY(index_score_sm90a_pack(backend, chunk, args->dtype, to));
    } else if (args->dtype == DTYPE_F8_E4M3 && index_score_mma_takes(args->dtype, args->head_dim)) {
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
    if (index_score_mma_takes(args->dtype, args->head_dim))
        return index_score_mma(backend, chunk, args->dtype);
    return index_score_plain(backend, chunk, args->dtype);
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
        chosen.n_run = args->n_run;
        chosen.bad = (unsigned long long *)scratch;
        TRY(index_select(backend, &chosen, chunk.n_query, scratch + l->select_at));
    }
    return OK;
}

enum status run(struct backend *backend, const struct index_args *args, const struct tables *host) {
    const struct cuda_state *state = cuda_state(backend);
    struct layout l = layout_make(state, args->n_query, args->n_key,
                                  index_packed_bytes(args->n_head, args->head_dim), args->k);
    const void *staged;
    void *scratch;
    TRY(cuda_stage(backend, host->visible, host->bytes, &staged));
    const struct tables tables = tables_place(args, (void *)staged);
    TRY(cuda_scratch(backend, l.bytes, &scratch));
    TRY_CUDA(cudaMemsetAsync(scratch, 0xff, sizeof(unsigned long long), state->compute));
    for (int64_t first = 0; first < args->n_query; first += l.n_query) {
        int64_t last = min(first + l.n_query, args->n_query) - 1;
        TRY(run_queries(backend, args, &l, &tables, (char *)scratch, first, host->visible[last]));
    }
    LAUNCH(backend, report_kernel, 1, 1, 0, (const unsigned long long *)scratch,
           tables.query_position, tables.run, args->n_run, state->fault);
    return OK;
}

} // namespace

enum status cuda_index_top_k(struct backend *backend, const struct index_args *args) {
    if (args->n_query == 0 || args->n_key == 0) return OK;
    void *memory = malloc((size_t)tables_place(args, NULL).bytes);
    if (!memory)
        FAIL(ERR_MEMORY, "no memory for the positions of %lld queries and %d runs of keys",
             (long long)args->n_query, args->n_run);
    const struct tables tables = tables_place(args, memory);
    tables_fill(&tables, args);
    enum status status = run(backend, args, &tables);
    free(memory);
    return status;
}

int64_t cuda_index_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s) {
    if (s->index_k == 0) return 0;
    struct layout l = layout_make(state, QUERY_CHUNK, s->n_key,
                                  index_packed_bytes(s->n_index_head, s->index_dim), s->index_k);
    int64_t bytes = max(l.bytes, cuda_index_merge_scratch_bytes(s->index_k));
    return max(bytes, sparse_attention_scratch_bytes(state, s));
}
