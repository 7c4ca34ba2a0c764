// Each query's k best of a chunk of scores, added to what it has. One block a query reads its
// scores once and lists those that reach a threshold: the k-th best so far or, at first, what a
// sample of the row lets expect. A list that fills is cut back to the k best, which raises the
// threshold. Few queries of many keys are spread over the device first: two passes count the
// upper digits of all scores, a third gathers what lies above the k-th's digits, and what shares
// them; then the query's block only settles those. Grid there: (parts of a row, queries).
#include "kernels/cuda/index_select.cuh"

#include "kernels/cuda/candidate.cuh"

namespace {

enum { THREADS = 512, TILE = 4 * THREADS, TILES_AT_ONCE = 4, SAMPLES = 2 * TILE };
constexpr int kSpare = 8192; // of a list, beside what is kept
static_assert(TILE <= kSpare && SAMPLES <= kSpare, "they fit");
enum { SPREAD_THREADS = 256, SPREAD_WARPS = SPREAD_THREADS / WARP };
enum { PART = 8 * SPREAD_THREADS, LEAST_SPREAD_KEYS = 8192 };
enum { DIGIT_BITS = 11, N_BIN = 1 << DIGIT_BITS, BINS_A_THREAD = N_BIN / SPREAD_THREADS };
enum { MOST_TIED = 4096 }; // that share the k-th's two digits: more are selected from all scores
static_assert(SCORE_STRIDE_UNIT % 4 == 0, "rows of scores are read in vectors");

// A query's list: what is kept, and so much that it is cut back rarely.
__host__ __device__ inline int64_t list_room(int64_t k) {
    return k + kSpare;
}

// Of a query whose scores are spread; zeroed before.
struct digits {
    int histogram[2][N_BIN]; // of the first digit; of the second among the k-th's first
    int n_above, n_tied;     // gathered; n_tied may exceed MOST_TIED
};

struct spread_room {
    struct digits *digits; // [n_query], or NULL: nothing is spread
    uint64_t *above; // [n_query, k] of larger digits than the k-th's, and all when they are few
    uint64_t *tied;  // [n_query, MOST_TIED]
};

// Notes that the query's score of a key of the chunk is not a number.
__device__ inline void report(const struct select_chunk &c, int64_t t, int64_t key) {
    atomicMin(c.bad, (unsigned long long)(c.first_query + t) << 32 | (c.first_key + key));
}

// Calls visit(there, candidate's upper word, key or -1, candidate or 0) for each of a part's
// scores, in the first part also for what is kept already; all lanes of a warp at once. Scores that
// are not numbers are not there; `reports` tells c.bad of them.
template <typename Visit>
__device__ void visit_part(const struct select_chunk &c, bool reports, Visit visit) {
    int64_t t = blockIdx.y, n_key = min(c.n_key, c.visible[t] - c.first_key);
    int64_t first = (int64_t)blockIdx.x * PART + threadIdx.x * 4;
    const float *score = c.score + t * c.stride;
    for (int64_t key = first; key < first + PART; key += 4 * SPREAD_THREADS) {
        float4 vector = key < n_key ? *(const float4 *)(score + key) : float4{};
        const float x[4] = {vector.x, vector.y, vector.z, vector.w};
        for (int i = 0; i < 4; i++) {
            bool visible = key + i < n_key, number = !isnan(x[i]);
            if (reports && visible && !number) report(c, t, key + i);
            visit(visible && number, (uint32_t)(candidate_make(x[i], 0) >> 32), key + i,
                  (uint64_t)0);
        }
    }
    if (blockIdx.x > 0) return;
    int n_kept = c.n_candidate[t];
    for (int begin = 0; begin < n_kept; begin += SPREAD_THREADS) {
        int i = begin + threadIdx.x;
        uint64_t kept = i < n_kept ? c.candidate[t * c.k + i] : 0;
        visit(i < n_kept, (uint32_t)(kept >> 32), (int64_t)-1, kept);
    }
}

__device__ inline bool part_is_empty(const struct select_chunk &c) {
    int64_t first = (int64_t)blockIdx.x * PART;
    return blockIdx.x > 0 && first >= c.visible[blockIdx.y] - c.first_key;
}

// The digit at which the count from the largest on reaches `wanted`, -1 when all are wanted; *left:
// how many of that digit are. Every thread of the block calls it.
__device__ int find_digit(const int *histogram, int wanted, int *left) {
    __shared__ int sum_of_warp[SPREAD_WARPS], found[2];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, last = N_BIN - 1;
    int n[BINS_A_THREAD], sum = 0;
    last -= threadIdx.x * BINS_A_THREAD; // thread 0: the largest
    for (int i = 0; i < BINS_A_THREAD; i++) sum += n[i] = histogram[last - i];
    int upto = sum; // of this thread's bins and those above
    for (int step = 1; step < WARP; step *= 2) {
        int other = __shfl_up_sync(FULL_WARP, upto, step);
        if (lane >= step) upto += other;
    }
    if (lane == WARP - 1) sum_of_warp[warp] = upto;
    if (threadIdx.x == 0) found[0] = -1;
    __syncthreads();
    int total = 0;
    for (int i = 0; i < SPREAD_WARPS; i++) {
        if (i < warp) upto += sum_of_warp[i];
        total += sum_of_warp[i];
    }
    int above = upto - sum;
    if (total > wanted && above < wanted && upto >= wanted)
        for (int i = 0; i < BINS_A_THREAD; i++) {
            if (above + n[i] >= wanted) {
                found[0] = last - i;
                found[1] = wanted - above;
                break;
            }
            above += n[i];
        }
    __syncthreads();
    int digit = found[0];
    *left = found[1];
    __syncthreads(); // before the next call
    return digit;
}

__device__ inline int first_digit(uint32_t bits) {
    return bits >> (32 - DIGIT_BITS);
}
__device__ inline int second_digit(uint32_t bits) {
    return bits >> (32 - 2 * DIGIT_BITS) & (N_BIN - 1);
}

// Counts digits: pass 0 the first of all scores, pass 1 the second of those with the k-th's first.
template <int kPass>
__global__ void __launch_bounds__(SPREAD_THREADS)
    count_kernel(struct select_chunk c, struct digits *all) {
    __shared__ int own[N_BIN];
    if (part_is_empty(c)) return;
    struct digits *digits = all + blockIdx.y;
    int digit = 0, wanted;
    if (kPass == 1) digit = find_digit(digits->histogram[0], c.k, &wanted);
    if (digit < 0) return; // all are selected
    for (int i = threadIdx.x; i < N_BIN; i += SPREAD_THREADS) own[i] = 0;
    __syncthreads();
    visit_part(c, kPass == 0, [&](bool there, uint32_t bits, int64_t, uint64_t) {
        bool counted = there && (kPass == 0 || first_digit(bits) == digit);
        select_count(own, counted, kPass == 0 ? first_digit(bits) : second_digit(bits));
    });
    __syncthreads();
    for (int i = threadIdx.x; i < N_BIN; i += SPREAD_THREADS)
        if (own[i] > 0) atomicAdd(&digits->histogram[kPass][i], own[i]);
}

// Lists the candidates whose digits are above the k-th's, and those that share them.
__global__ void __launch_bounds__(SPREAD_THREADS)
    gather_kernel(struct select_chunk c, struct spread_room room) {
    if (part_is_empty(c)) return;
    int64_t t = blockIdx.y;
    struct digits *digits = room.digits + t;
    uint64_t *above = room.above + t * c.k, *tied = room.tied + t * MOST_TIED;
    int wanted, left;
    int first = find_digit(digits->histogram[0], c.k, &wanted);
    int second = first < 0 ? -1 : find_digit(digits->histogram[1], wanted, &left);
    // Without a second digit all of the first one are selected; without either everything is.
    uint32_t bound = (uint32_t)max(first, 0) << DIGIT_BITS | (uint32_t)max(second, 0);
    visit_part(c, false, [&](bool there, uint32_t bits, int64_t key, uint64_t candidate) {
        uint32_t digits_of = bits >> (32 - 2 * DIGIT_BITS);
        bool is_tied = there && second >= 0 && digits_of == bound;
        bool is_above = there && digits_of >= bound && !is_tied;
        if (!__any_sync(FULL_WARP, is_above || is_tied)) return;
        if (key >= 0 && (is_above || is_tied))
            candidate =
                (uint64_t)bits << 32 |
                (uint32_t)candidate_make(0, key_run_position(c.run, c.n_run, c.first_key + key));
        int at = select_place(&digits->n_above, is_above);
        if (is_above && at < c.k) above[at] = candidate;
        at = select_place(&digits->n_tied, is_tied);
        if (is_tied && at < MOST_TIED) tied[at] = candidate;
    });
}

// The candidates of one query while its scores are read.
struct list {
    uint64_t *candidate;
    int n_room;
    uint64_t threshold; // candidates below it are of no interest
    float score;        // nor are scores below this one
};

__device__ inline void list_raise(struct list *list, uint64_t threshold) {
    list->threshold = threshold;
    list->score = threshold ? candidate_score(threshold) : -INFINITY;
}

// Adds one score of each lane whose key is visible; all lanes of a warp call it.
__device__ inline void list_add(const struct select_chunk &c, const struct list &list, int64_t t,
                                int64_t key, bool visible, float score, int *n) {
    bool wanted = visible && !(score < list.score);
    if (!__any_sync(FULL_WARP, wanted)) return;
    uint64_t candidate = 0;
    if (wanted && isnan(score)) {
        report(c, t, key);
        wanted = false;
    }
    if (wanted) {
        candidate = candidate_make(score, key_run_position(c.run, c.n_run, c.first_key + key));
        wanted = candidate >= list.threshold;
    }
    int at = select_place(n, wanted);
    if (wanted) list.candidate[at] = candidate;
}

// Adds four scores of each lane, of keys from `key` on, that are visible and reach the list's: as
// score and key, the word of a candidate's upper half and the chunk's key. *n counts also what the
// list has no room for.
__device__ inline void list_add_four(const struct list &list, int key, int n_key, float4 score,
                                     int *n) {
    const float x[4] = {score.x, score.y, score.z, score.w};
    bool wanted[4];
    unsigned lanes[4];
    int lane = threadIdx.x % WARP, total = 0, at = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        wanted[i] = key + i < n_key && !(x[i] < list.score);
        lanes[i] = __ballot_sync(FULL_WARP, wanted[i]);
        total += __popc(lanes[i]);
    }
    if (total == 0) return;
    if (lane == 0) at = atomicAdd(n, total);
    at = __shfl_sync(FULL_WARP, at, 0);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int own = at + __popc(lanes[i] & ((1u << lane) - 1));
        if (wanted[i] && own < list.n_room)
            list.candidate[own] = candidate_make(x[i], 0xffffffffu - (uint32_t)(key + i));
        at += __popc(lanes[i]);
    }
}

// A score that somewhat more than k of a row's scores reach, if a sample of them is like the rest:
// eight neighbours a thread. NaN if they would be too many for the list, whose memory is
// overwritten.
__device__ float expect_threshold(const struct select_chunk &c, const float4 *score, int64_t n_key,
                                  const struct list &list, struct select_room *select) {
    float mean = (float)SAMPLES * c.k / n_key; // of them reach the k-th best score
    int rank = (int)(mean + 6 * sqrtf(mean)) + 8;
    if (rank > SAMPLES) return NAN;
    const float4 *own = score + threadIdx.x * (n_key / 8) / THREADS * 2;
    const float4 vector[2] = {own[0], own[1]};
    const float x[8] = {vector[0].x, vector[0].y, vector[0].z, vector[0].w,
                        vector[1].x, vector[1].y, vector[1].z, vector[1].w};
    for (int i = 0; i < 8; i++) {
        int at = i * THREADS + threadIdx.x;
        list.candidate[at] = candidate_make(x[i], at);
    }
    __syncthreads();
    float threshold =
        candidate_score(select_bound(list.candidate, SAMPLES, rank, select, 2 * SELECT_DIGIT_BITS));
    int n = 0;
    for (int i = 0; i < 8; i++) n += __syncthreads_count(!(x[i] < threshold));
    return (float)n * n_key > 0.75f * SAMPLES * kSpare ? NAN : threshold;
}

// Lists the scores of query t that reach the list's, and returns how many there are in the list,
// what it began with included; more than its room: the rest of it is no good.
__device__ int list_reaching(const struct select_chunk &c, const struct list &list, int64_t t,
                             int n_key, const float4 *score, int *n) {
    int n_before = *n;
    __syncthreads();
    for (int first = 0; first < n_key; first += TILES_AT_ONCE * TILE) {
        int key = first + (int)threadIdx.x * 4;
        float4 vector[TILES_AT_ONCE];
#pragma unroll
        for (int i = 0; i < TILES_AT_ONCE; i++)
            vector[i] = key + i * TILE < n_key ? score[key / 4 + i * THREADS] : float4{};
#pragma unroll
        for (int i = 0; i < TILES_AT_ONCE; i++)
            list_add_four(list, key + i * TILE, n_key, vector[i], n);
    }
    __syncthreads();
    int n_list = *n;
    if (n_list > list.n_room) return n_list;
    for (int i = n_before + threadIdx.x; i < n_list; i += THREADS) {
        uint64_t candidate = list.candidate[i];
        int64_t key = (int64_t)(candidate & 0xffffffffu);
        if (isnan(candidate_score(candidate))) report(c, t, key);
        int64_t position = key_run_position(c.run, c.n_run, c.first_key + key);
        list.candidate[i] = (candidate | 0xffffffffu) - (uint64_t)position;
    }
    __syncthreads();
    return n_list;
}

// Likewise whatever the scores: cuts the list back and raises the threshold on the way.
__device__ int list_cutting(const struct select_chunk &c, struct list list, int64_t t,
                            int64_t n_key, const float4 *score, int *n,
                            struct select_room *select) {
    for (int64_t first = 0; first < n_key; first += TILE) {
        int64_t key = first + threadIdx.x * 4;
        float4 vector = key < n_key ? score[key / 4] : float4{};
        const float x[4] = {vector.x, vector.y, vector.z, vector.w};
        for (int i = 0; i < 4; i++) list_add(c, list, t, key + i, key + i < n_key, x[i], n);
        __syncthreads();
        int n_list = *n;
        __syncthreads();
        if (n_list + TILE <= list.n_room) continue;
        list_raise(&list, select_bound(list.candidate, n_list, c.k, select));
        n_list = select_keep(list.candidate, n_list, list.threshold, c.k, list.candidate, select);
        if (threadIdx.x == 0) *n = n_list;
        __syncthreads();
    }
    return *n;
}

// Selects from all scores of query t. Its list lies in `room`.
__device__ void select_all(const struct select_chunk &c, int64_t t, int64_t n_key, uint64_t *room,
                           struct select_room *select) {
    __shared__ int n; // in the list
    int n_kept = c.n_candidate[t], n_list;
    uint64_t *kept = c.candidate + t * c.k;
    const float4 *score = (const float4 *)(c.score + t * c.stride);
    struct list list = {room, (int)list_room(c.k), 0, -INFINITY};
    bool expects = n_kept < c.k && n_kept + n_key > list.n_room;
    if (expects) list.score = expect_threshold(c, score, n_key, list, select);
    __syncthreads(); // the sample has been used
    for (int i = threadIdx.x; i < n_kept; i += THREADS) list.candidate[i] = kept[i];
    if (threadIdx.x == 0) n = n_kept;
    __syncthreads();
    if (n_kept == c.k) list_raise(&list, select_smallest(list.candidate, n_kept, select));
    bool failed = isnan(list.score);
    if (!failed) {
        n_list = list_reaching(c, list, t, (int)n_key, score, &n);
        failed = n_list > list.n_room || (expects && n_list - n_kept < c.k);
        __syncthreads();
    }
    if (failed) {
        if (expects) list_raise(&list, 0);
        if (threadIdx.x == 0) n = n_kept;
        __syncthreads();
        n_list = list_cutting(c, list, t, n_key, score, &n, select);
        __syncthreads();
    }
    uint64_t bound = n_list > c.k ? select_bound(list.candidate, n_list, c.k, select) : 0;
    n_list = select_keep(list.candidate, n_list, bound, c.k, kept, select);
    if (threadIdx.x == 0) c.n_candidate[t] = n_list;
}

// What was gathered of query t: all that is above, and the best of those tied.
__device__ void settle(const struct select_chunk &c, int64_t t, const struct spread_room &gathered,
                       struct select_room *select) {
    const struct digits *digits = gathered.digits + t;
    const uint64_t *above = gathered.above + t * c.k, *tied = gathered.tied + t * MOST_TIED;
    uint64_t *kept = c.candidate + t * c.k, bound = 0;
    int n_above = min(digits->n_above, c.k), n_tied = digits->n_tied;
    int wanted = min(c.k - n_above, n_tied);
    for (int i = threadIdx.x; i < n_above; i += THREADS) kept[i] = above[i];
    if (0 < wanted && wanted < n_tied) bound = select_bound(tied, n_tied, wanted, select);
    int n = select_keep(tied, n_tied, bound, wanted, kept + n_above, select);
    if (threadIdx.x == 0) c.n_candidate[t] = n_above + n;
}

// `room` holds the lists where shared memory does not.
__global__ void __launch_bounds__(THREADS, 2)
    select_kernel(struct select_chunk c, struct spread_room gathered, uint64_t *room) {
    DYNAMIC_SHARED(shared);
    __shared__ struct select_room select;
    int64_t t = blockIdx.x, n_key = min(c.n_key, c.visible[t] - c.first_key);
    if (n_key <= 0) return;
    if (gathered.digits && gathered.digits[t].n_tied <= MOST_TIED)
        settle(c, t, gathered, &select);
    else
        select_all(c, t, n_key, room ? room + t * list_room(c.k) : (uint64_t *)shared, &select);
}

bool lists_are_shared(const struct cuda_state *state, int k) {
    return list_room(k) * 8 + (int64_t)sizeof(struct select_room) + 64 <= state->shared_bytes;
}

// Where one block a query leaves most of the device idle.
int64_t most_spread(const struct cuda_state *state) {
    return state->n_multiprocessor / 6;
}
bool is_spread(const struct cuda_state *state, int64_t n_query, int64_t n_key) {
    return n_query <= most_spread(state) && n_key >= LEAST_SPREAD_KEYS;
}

// Offsets into scratch, and its size, for n_query of which so many are spread at most.
struct select_layout {
    int64_t digits_at, above_at, tied_at, bytes; // the lists come first
};

struct select_layout layout_make(const struct cuda_state *state, int64_t n_query, int64_t n_spread,
                                 int k) {
    struct select_layout l;
    l.digits_at = lists_are_shared(state, k) ? 0 : n_query * list_room(k) * 8;
    l.above_at = l.digits_at + divide_up(n_spread * (int64_t)sizeof(struct digits), 8) * 8;
    l.tied_at = l.above_at + n_spread * k * 8;
    l.bytes = l.tied_at + n_spread * MOST_TIED * 8;
    return l;
}

enum status gather(struct backend *backend, const struct select_chunk *chunk, int64_t n_query,
                   const struct spread_room *room) {
    dim3 grid((unsigned)divide_up(chunk->n_key, PART), (unsigned)n_query);
    TRY_CUDA(cudaMemsetAsync(room->digits, 0, n_query * sizeof(struct digits),
                             cuda_state(backend)->compute));
    LAUNCH(backend, count_kernel<0>, grid, SPREAD_THREADS, 0, *chunk, room->digits);
    LAUNCH(backend, count_kernel<1>, grid, SPREAD_THREADS, 0, *chunk, room->digits);
    LAUNCH(backend, gather_kernel, grid, SPREAD_THREADS, 0, *chunk, *room);
    return OK;
}

} // namespace

int64_t index_select_bytes(const struct cuda_state *state, int64_t n_query, int64_t n_key, int k) {
    int64_t n_spread = n_key < LEAST_SPREAD_KEYS ? 0 : min(n_query, most_spread(state));
    return layout_make(state, n_query, n_spread, k).bytes;
}

enum status index_select(struct backend *backend, const struct select_chunk *chunk, int64_t n_query,
                         void *scratch) {
    const struct cuda_state *state = cuda_state(backend);
    bool shared = lists_are_shared(state, chunk->k),
         spread = is_spread(state, n_query, chunk->n_key);
    struct select_layout l = layout_make(state, n_query, spread ? n_query : 0, chunk->k);
    char *room = (char *)scratch;
    struct spread_room gathered = {};
    int bytes = shared ? (int)(list_room(chunk->k) * 8) : 0;
    if (spread) {
        gathered.digits = (struct digits *)(room + l.digits_at);
        gathered.above = (uint64_t *)(room + l.above_at);
        gathered.tied = (uint64_t *)(room + l.tied_at);
        TRY(gather(backend, chunk, n_query, &gathered));
    }
    TRY_CUDA(
        cudaFuncSetAttribute(select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    LAUNCH(backend, select_kernel, (unsigned)n_query, THREADS, bytes, *chunk, gathered,
           shared ? NULL : (uint64_t *)room);
    return OK;
}
