// Selection among candidates (kernels/candidate.h) by one block: the k largest of a buffer in
// shared or global memory, found digit by digit from the top. No order of the input is bad.
#ifndef HALKA_KERNELS_CUDA_CANDIDATE_CUH
#define HALKA_KERNELS_CUDA_CANDIDATE_CUH

#include "kernels/candidate.h"
#include "kernels/cuda/launch.cuh"

enum { SELECT_DIGIT_BITS = 8, SELECT_N_DIGIT = 1 << SELECT_DIGIT_BITS };
// Shared by the threads of a block that select together.
struct select_room {
    int histogram[SELECT_N_DIGIT];
    int digit, wanted, in_digit; // of the last pass: where the k-th lies, and how many are in it
    int n_kept;
    unsigned long long smallest;
};

// Counts the digits of the lanes that are `counted`. Those equal to the first lane's are added at
// once: the upper digits of scores are mostly equal, and equal addresses wait for each other.
__device__ inline void select_count(int *histogram, bool counted, int digit) {
    unsigned lanes = __ballot_sync(FULL_WARP, counted);
    if (lanes == 0) return;
    int first = __ffs(lanes) - 1, common = __shfl_sync(FULL_WARP, digit, first);
    unsigned same = __ballot_sync(FULL_WARP, counted && digit == common);
    if (threadIdx.x % WARP == first)
        atomicAdd(&histogram[common], __popc(same));
    else if (counted && digit != common)
        atomicAdd(&histogram[digit], 1);
}

// Raises *n by the number of lanes that want a place, and gives each of them its own.
__device__ inline int select_place(int *n, bool wanted) {
    unsigned lanes = __ballot_sync(FULL_WARP, wanted);
    if (lanes == 0) return 0;
    int lane = threadIdx.x % WARP, first = __ffs(lanes) - 1, begin = 0;
    if (lane == first) begin = atomicAdd(n, __popc(lanes));
    begin = __shfl_sync(FULL_WARP, begin, first);
    return begin + __popc(lanes & ((1u << lane) - 1));
}

// Warp 0: the digit at which the count from the largest on reaches `wanted`.
__device__ inline void select_digit(struct select_room *room, int wanted) {
    constexpr int kPerLane = SELECT_N_DIGIT / WARP;
    if (threadIdx.x >= WARP) return;
    int lane = threadIdx.x, last = SELECT_N_DIGIT - 1 - lane * kPerLane, sum = 0; // lane 0: largest
    for (int i = 0; i < kPerLane; i++) sum += room->histogram[last - i];
    int above = sum;
    for (int step = 1; step < WARP; step *= 2) {
        int other = __shfl_up_sync(FULL_WARP, above, step);
        if (lane >= step) above += other;
    }
    above -= sum; // of the lanes before
    if (above >= wanted || above + sum < wanted) return;
    for (int i = 0; i < kPerLane; i++) {
        int n = room->histogram[last - i];
        if (above + n >= wanted) {
            room->digit = last - i;
            room->wanted = wanted - above;
            room->in_digit = n;
            return;
        }
        above += n;
    }
}

// The bound that exactly the k largest of n distinct candidates reach; 1 <= k <= n. It is one of
// them only when the digits run out. Of the first n_bit bits alone: perhaps more reach it. Every
// thread of the block calls it and gets the result.
__device__ inline uint64_t select_bound(const uint64_t *x, int n, int k, struct select_room *room,
                                        int n_bit = 64) {
    uint64_t bound = 0, mask = 0;
    for (int shift = 64 - SELECT_DIGIT_BITS; shift >= 64 - n_bit; shift -= SELECT_DIGIT_BITS) {
        for (int i = threadIdx.x; i < SELECT_N_DIGIT; i += blockDim.x) room->histogram[i] = 0;
        __syncthreads();
        for (int begin = 0; begin < n; begin += blockDim.x) {
            int i = begin + threadIdx.x;
            uint64_t candidate = i < n ? x[i] : 0;
            select_count(room->histogram, i < n && (candidate & mask) == bound,
                         (int)(candidate >> shift & (SELECT_N_DIGIT - 1)));
        }
        __syncthreads();
        select_digit(room, k);
        __syncthreads();
        bound |= (uint64_t)room->digit << shift;
        mask |= (uint64_t)(SELECT_N_DIGIT - 1) << shift;
        k = room->wanted;
        if (room->in_digit == k) break; // the same for every thread
    }
    __syncthreads(); // before the next call overwrites room
    return bound;
}

// Moves the candidates that reach the bound to the front of `to`, which may be x itself, and
// returns their number, at most `most`. Every thread of the block calls it.
__device__ inline int select_keep(const uint64_t *x, int n, uint64_t bound, int most, uint64_t *to,
                                  struct select_room *room) {
    if (threadIdx.x == 0) room->n_kept = 0;
    for (int begin = 0; begin < n; begin += blockDim.x) {
        int i = begin + threadIdx.x;
        uint64_t candidate = i < n ? x[i] : 0;
        __syncthreads(); // all of this tile have been read: the front may overwrite it
        bool wanted = i < n && candidate >= bound;
        int at = select_place(&room->n_kept, wanted);
        if (wanted && at < most) to[at] = candidate;
    }
    __syncthreads();
    int kept = min(room->n_kept, most);
    __syncthreads();
    return kept;
}

// The smallest of n candidates; all ones when there is none. Every thread of the block calls it.
__device__ inline uint64_t select_smallest(const uint64_t *x, int n, struct select_room *room) {
    unsigned long long smallest = ~0ull;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (x[i] < smallest) smallest = x[i];
    if (threadIdx.x == 0) room->smallest = ~0ull;
    __syncthreads();
    atomicMin(&room->smallest, smallest);
    __syncthreads();
    smallest = room->smallest;
    __syncthreads();
    return smallest;
}

// What index_merge needs of scratch for lists of k.
int64_t cuda_index_merge_scratch_bytes(int64_t k);

#endif
