// The next token by its logits, in one block. Weights lie in scratch. The set that top_p keeps and
// the draw from it, both in order of weight, are found by their shares of the sum: digit by digit
// of the logit's bits, so that nothing is sorted.
#include "kernels/cuda/launch.cuh"

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / WARP, kDigitBits = 4, kDigits = 1 << kDigitBits;

struct room {
    double sum[kDigits][kWarps];
    float value[kWarps];
    int id[kWarps];
    double digit[kDigits];
    int found;
};

// Bits of a logit that order as it does, above 0; equal logits have equal ones.
__device__ inline uint32_t key_of(float logit) {
    uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float logit_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ inline double warp_sum(double x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(FULL_WARP, x, lane);
    return x;
}

// The sum over the block, the same for every thread.
__device__ double block_total(room &m, double x) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) m.sum[0][threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < kWarps; i++) x += m.sum[0][i];
    __syncthreads();
    return x;
}

__device__ inline bool is_better(float value, int id, float than, int than_id) {
    return id >= 0 && (than_id < 0 || value > than || (value == than && id < than_id));
}

// The lowest id of the largest finite logit, or -1.
__device__ int largest_logit(room &m, const float *logits, int n) {
    float best = 0;
    int id = -1;
    for (int i = threadIdx.x; i < n; i += kThreads)
        if (isfinite(logits[i]) && is_better(logits[i], i, best, id)) {
            best = logits[i];
            id = i;
        }
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, best, lane);
        int other_id = __shfl_xor_sync(FULL_WARP, id, lane);
        if (is_better(other, other_id, best, id)) {
            best = other;
            id = other_id;
        }
    }
    if (threadIdx.x % WARP == 0) {
        m.value[threadIdx.x / WARP] = best;
        m.id[threadIdx.x / WARP] = id;
    }
    __syncthreads();
    for (int i = 0; i < kWarps; i++)
        if (is_better(m.value[i], m.id[i], best, id)) {
            best = m.value[i];
            id = m.id[i];
        }
    __syncthreads();
    return id;
}

// The largest key at and above which lies at least `mass`; *above receives what lies above it.
__device__ uint32_t find_key(room &m, const struct sample_args &a, const double *weight,
                             double mass, double *above) {
    uint32_t prefix = 0;
    *above = 0;
    for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
        double sum[kDigits] = {};
        for (int i = threadIdx.x; i < a.n; i += kThreads) {
            uint32_t key = key_of(a.logits[i]);
            bool inside = weight[i] > 0 && (uint64_t)key >> (shift + kDigitBits) ==
                                               (uint64_t)prefix >> (shift + kDigitBits);
            uint32_t digit = key >> shift & (kDigits - 1);
#pragma unroll
            for (int d = 0; d < kDigits; d++) sum[d] += inside && digit == d ? weight[i] : 0;
        }
#pragma unroll
        for (int d = 0; d < kDigits; d++) {
            sum[d] = warp_sum(sum[d]);
            if (threadIdx.x % WARP == 0) m.sum[d][threadIdx.x / WARP] = sum[d];
        }
        __syncthreads();
        if (threadIdx.x < kDigits) {
            double total = 0;
            for (int i = 0; i < kWarps; i++) total += m.sum[threadIdx.x][i];
            m.digit[threadIdx.x] = total;
        }
        __syncthreads();
        // Some digit has weight: the last of them is taken when rounding leaves none that reaches.
        int chosen = 0;
        double before = *above;
        for (int d = kDigits - 1; d >= 0; d--) {
            if (m.digit[d] <= 0) continue;
            chosen = d;
            *above = before;
            before += m.digit[d];
            if (before >= mass) break;
        }
        prefix |= (uint32_t)chosen << shift;
        __syncthreads();
    }
    return prefix;
}

__device__ double weight_of(const struct sample_args &a, float logit, float largest) {
    double weight = exp(((double)logit - (double)largest) / a.temperature);
    return weight < a.min_p ? 0 : weight;
}

// The id of the index-th token of this key, by ascending ids.
__device__ int find_id(room &m, const struct sample_args &a, uint32_t key, int index) {
    for (int first = 0; first < a.n; first += kThreads) {
        int i = first + threadIdx.x;
        bool equal = i < a.n && isfinite(a.logits[i]) && key_of(a.logits[i]) == key;
        int n = __syncthreads_count(equal);
        if (index >= n) {
            index -= n;
            continue;
        }
        if (threadIdx.x == 0)
            for (int j = first; j < a.n; j++)
                if (isfinite(a.logits[j]) && key_of(a.logits[j]) == key && index-- == 0) {
                    m.found = j;
                    break;
                }
        break;
    }
    __syncthreads();
    return m.found;
}

// From the smallest set of likeliest tokens that reaches top_p, the least likely first.
__device__ int draw_from_top(room &m, const struct sample_args &a, const double *weight,
                             double total, float largest) {
    double above = 0, target = a.top_p * total;
    uint32_t lowest = find_key(m, a, weight, target, &above);
    double each = weight_of(a, logit_of(lowest), largest);
    double n_equal = 0;
    for (int i = threadIdx.x; i < a.n; i += kThreads)
        n_equal += weight[i] > 0 && key_of(a.logits[i]) == lowest;
    n_equal = block_total(m, n_equal);
    double n_kept = fmin(fmax(ceil((target - above) / each), 1.0), n_equal);
    double kept = above + n_kept * each, goal = a.uniform * kept;
    uint32_t key = find_key(m, a, weight, kept - goal, &above);
    if (key <= lowest) {
        double passed = fmin(fmax(floor(goal / each), 0.0), n_kept - 1);
        return find_id(m, a, lowest, (int)(n_kept - 1 - passed));
    }
    each = weight_of(a, logit_of(key), largest);
    n_equal = 0;
    for (int i = threadIdx.x; i < a.n; i += kThreads)
        n_equal += weight[i] > 0 && key_of(a.logits[i]) == key;
    n_equal = block_total(m, n_equal);
    double below = kept - above - n_equal * each;
    double passed = fmin(fmax(floor((goal - below) / each), 0.0), n_equal - 1);
    return find_id(m, a, key, (int)(n_equal - 1 - passed));
}

// From all tokens, by ascending ids; the last of a weight when rounding leaves the goal unreached.
__device__ int draw_from_all(room &m, const struct sample_args &a, const double *weight,
                             double total) {
    double passed = 0, goal = a.uniform * total;
    int last = 0; // part of the tokens that has the one
    bool reached = false;
    for (int first = 0; first < a.n && !reached; first += kThreads) {
        int i = first + threadIdx.x;
        double here = block_total(m, i < a.n ? weight[i] : 0);
        reached = passed + here > goal;
        if (here > 0) last = first;
        if (!reached) passed += here;
    }
    if (threadIdx.x == 0) {
        for (int i = last; i < a.n && i < last + kThreads; i++) {
            if (weight[i] == 0) continue;
            m.found = i;
            passed += weight[i];
            if (reached && passed > goal) break;
        }
    }
    __syncthreads();
    return m.found;
}

__global__ void __launch_bounds__(kThreads) sample_token(struct sample_args a, double *weight) {
    __shared__ room m;
    int best = largest_logit(m, a.logits, (int)a.n), token = best;
    if (best >= 0 && a.temperature > 0) {
        float largest = a.logits[best];
        double total = 0;
        for (int i = threadIdx.x; i < a.n; i += kThreads) {
            weight[i] = isfinite(a.logits[i]) ? weight_of(a, a.logits[i], largest) : 0;
            total += weight[i];
        }
        total = block_total(m, total);
        if (total > 0)
            token = a.top_p < 1 ? draw_from_top(m, a, weight, total, largest)
                                : draw_from_all(m, a, weight, total);
    }
    if (threadIdx.x == 0) *a.token = token;
}

} // namespace

enum status cuda_sample(struct backend *backend, const struct sample_args *args) {
    void *weight = NULL;
    if (args->temperature > 0)
        TRY(cuda_scratch(backend, args->n * (int64_t)sizeof(double), &weight));
    LAUNCH(backend, sample_token, 1, kThreads, 0, *args, (double *)weight);
    return OK;
}
