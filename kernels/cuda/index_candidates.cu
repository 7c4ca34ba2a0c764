// Lists of candidates: merge, filter, and the rows of a block that they name. One block a query.
#include "kernels/cuda/candidate.cuh"

namespace {

enum { THREADS = 256, SHARED_BYTES = 96 * 1024, ROW_WINDOW = 1 << 17, QUERIES_AT_ONCE = 1024 };
constexpr int kWindowWords = ROW_WINDOW / 32;

// `room` holds 2k candidates of each block: NULL where shared memory does.
__global__ void merge_kernel(struct index_merge_args a, int64_t first_query, uint64_t *room) {
    DYNAMIC_SHARED(shared);
    __shared__ struct select_room select;
    int64_t t = first_query + blockIdx.x;
    uint64_t *all = room ? room + (int64_t)blockIdx.x * 2 * a.k : (uint64_t *)shared;
    uint64_t *kept = a.candidate + t * a.k, threshold = 0;
    int n = a.merge ? a.n_candidate[t] : 0;
    for (int list = 0; list < a.n_list; list++) {
        int64_t row = list * a.n_query + t;
        const uint64_t *other = a.other + row * a.k;
        int n_other = a.n_other[row];
        if (n + n_other <= a.k) {
            for (int i = threadIdx.x; i < n_other; i += THREADS) kept[n + i] = other[i];
            n += n_other;
        } else {
            for (int i = threadIdx.x; i < n; i += THREADS) all[i] = kept[i];
            for (int i = threadIdx.x; i < n_other; i += THREADS) all[n + i] = other[i];
            __syncthreads();
            uint64_t bound = select_bound(all, n + n_other, a.k, &select);
            n = select_keep(all, n + n_other, bound, a.k, kept, &select);
        }
        __syncthreads();
    }
    if (a.threshold && n == a.k) threshold = select_smallest(kept, n, &select);
    if (threadIdx.x > 0) return;
    a.n_candidate[t] = n;
    if (a.threshold) a.threshold[t] = threshold;
}

__global__ void filter_kernel(struct index_filter_args a) {
    __shared__ struct select_room select;
    int64_t t = blockIdx.x;
    uint64_t *kept = a.candidate + t * a.k;
    int n = a.n_candidate[t];
    n = select_keep(kept, n, a.threshold[t], n, kept, &select);
    if (threadIdx.x == 0) a.n_candidate[t] = n;
}

// How many the threads before this one count; `total` is the count of all.
__device__ int count_before(int n, int *shared, int *total) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = n;
    for (int step = 1; step < WARP; step *= 2) {
        int other = __shfl_up_sync(FULL_WARP, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == WARP - 1) shared[warp] = sum;
    __syncthreads();
    int before = sum - n, all = 0;
    for (int i = 0; i < THREADS / WARP; i++) {
        if (i < warp) before += shared[i];
        all += shared[i];
    }
    __syncthreads();
    *total = all;
    return before;
}

// A bit for each row of a window; each thread lists those of neighbouring words.
__global__ void rows_kernel(struct select_rows_args a, const struct key_run *run) {
    __shared__ uint32_t marked[kWindowWords];
    __shared__ int shared[THREADS / WARP];
    int64_t t = blockIdx.x;
    const uint64_t *candidate = a.candidate + t * a.k;
    int32_t *row = a.row + t * a.k;
    int n_candidate = a.n_candidate[t], n = 0;
    for (int64_t first = 0; first < a.n_row; first += ROW_WINDOW) {
        int n_row = (int)min((int64_t)ROW_WINDOW, a.n_row - first);
        int per_thread = ((n_row + 31) / 32 + THREADS - 1) / THREADS;
        for (int i = threadIdx.x; i < per_thread * THREADS; i += THREADS) marked[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n_candidate; i += THREADS) {
            int64_t at = key_run_row(run, a.n_run, candidate_position(candidate[i])) - first;
            if (at >= 0 && at < n_row) atomicOr(&marked[at / 32], 1u << at % 32);
        }
        __syncthreads();
        const uint32_t *own = marked + threadIdx.x * per_thread;
        int count = 0, total;
        for (int i = 0; i < per_thread; i++) count += __popc(own[i]);
        int at = n + count_before(count, shared, &total);
        for (int i = 0; i < per_thread; i++)
            for (uint32_t bits = own[i]; bits; bits &= bits - 1)
                row[at++] =
                    (int32_t)(first + (threadIdx.x * per_thread + i) * 32 + __ffs(bits) - 1);
        n += total;
        __syncthreads();
    }
    if (threadIdx.x == 0) a.n_selected[t] = n;
}
static_assert(kWindowWords % THREADS == 0, "per_thread rounded up stays in the window");

} // namespace

int64_t cuda_index_merge_scratch_bytes(int64_t k) {
    int64_t bytes = 2 * k * 8;
    return bytes <= SHARED_BYTES ? 0 : QUERIES_AT_ONCE * bytes;
}

enum status cuda_index_merge(struct backend *backend, const struct index_merge_args *args) {
    int64_t shared_bytes = 2 * (int64_t)args->k * 8, n = args->n_query;
    void *room = NULL;
    if (cuda_index_merge_scratch_bytes(args->k) > 0) {
        n = QUERIES_AT_ONCE;
        TRY(cuda_scratch(backend, min(args->n_query, n) * shared_bytes, &room));
        shared_bytes = 0;
    }
    TRY_CUDA(cudaFuncSetAttribute(merge_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  SHARED_BYTES));
    for (int64_t first = 0; first < args->n_query; first += n)
        LAUNCH(backend, merge_kernel, (unsigned)min(args->n_query - first, n), THREADS,
               shared_bytes, *args, first, (uint64_t *)room);
    return OK;
}

enum status cuda_index_filter(struct backend *backend, const struct index_filter_args *args) {
    LAUNCH(backend, filter_kernel, (unsigned)args->n_query, THREADS, 0, *args);
    return OK;
}

enum status cuda_select_rows(struct backend *backend, const struct select_rows_args *args) {
    const void *run;
    TRY(cuda_stage(backend, args->run, args->n_run * (int64_t)sizeof *args->run, &run));
    LAUNCH(backend, rows_kernel, (unsigned)args->n_query, THREADS, 0, *args,
           (const struct key_run *)run);
    return OK;
}
