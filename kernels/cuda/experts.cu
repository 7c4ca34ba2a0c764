// Mixture of experts: the gate, one warp a token; products of rows grouped by expert; and the
// weighted sums of what the experts made of a token, one block a token.
#include <algorithm>
#include <vector>

#include "kernels/cuda/lanes.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"
#include "kernels/expert_group.h"

namespace {

enum { GATE_WARPS = 4, COMBINE_THREADS = 256 };

// The best of all lanes: the larger value, of equal ones the lower number.
__device__ void best_of_warp(float *value, int *number) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, *value, step);
        int other_number = __shfl_xor_sync(FULL_WARP, *number, step);
        if (other > *value || (other == *value && other_number < *number)) {
            *value = other;
            *number = other_number;
        }
    }
}

// The number of the best of n values, 0 when none exceeds -inf. Every lane gets it.
__device__ int find_best(const float *x, int n) {
    float value = -INFINITY;
    int number = 0;
    for (int i = threadIdx.x % WARP; i < n; i += WARP)
        if (x[i] > value) {
            value = x[i];
            number = i;
        }
    best_of_warp(&value, &number);
    return number;
}

__device__ void score_experts(const struct expert_gate_args &a, const float *logit, float *score) {
    int lane = threadIdx.x % WARP;
    if (a.scoring == EXPERT_SIGMOID) {
        for (int e = lane; e < a.n_expert; e += WARP) score[e] = 1 / (1 + expf(-logit[e]));
        return;
    }
    float max = -INFINITY, total = 0;
    for (int e = lane; e < a.n_expert; e += WARP) max = fmaxf(max, logit[e]);
    max = warp_max(max);
    for (int e = lane; e < a.n_expert; e += WARP) total += score[e] = expf(logit[e] - max);
    total = warp_sum(total);
    for (int e = lane; e < a.n_expert; e += WARP) score[e] /= total;
}

// Strikes out every expert outside the best groups.
__device__ void keep_groups(const struct expert_gate_args &a, float *choice, float *group_score) {
    int lane = threadIdx.x % WARP, width = a.n_expert / a.n_group;
    for (int g = lane; g < a.n_group; g += WARP)
        group_score[g] = expert_group_score(choice + g * width, width);
    __syncwarp();
    for (int kept = 0; kept < a.n_group_used; kept++) {
        int best = find_best(group_score, a.n_group);
        __syncwarp();
        if (lane == 0) group_score[best] = -INFINITY;
        __syncwarp();
    }
    for (int e = lane; e < a.n_expert; e += WARP)
        if (group_score[e / width] != -INFINITY) choice[e] = -INFINITY;
}

// Shared, for each warp: the scores, the choice among them, the groups' scores.
__global__ void gate_kernel(struct expert_gate_args a) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64_t t = (int64_t)blockIdx.x * GATE_WARPS + warp;
    if (t >= a.n_token) return;
    float *score = (float *)shared + warp * (2 * a.n_expert + a.n_group);
    float *choice = score + a.n_expert, *group_score = choice + a.n_expert;
    score_experts(a, a.logit + t * a.n_expert, score);
    for (int e = lane; e < a.n_expert; e += WARP) choice[e] = score[e] + (a.bias ? a.bias[e] : 0);
    __syncwarp();
    if (a.n_group > 1) keep_groups(a, choice, group_score);
    __syncwarp();
    float total = 1e-20f;
    int32_t *expert = a.expert + t * a.n_used;
    for (int i = 0; i < a.n_used; i++) {
        int best = find_best(choice, a.n_expert);
        total += score[best];
        __syncwarp();
        if (lane == 0) choice[best] = -INFINITY;
        if (lane == i % WARP) expert[i] = best; // read again by the same lane
        __syncwarp();
    }
    for (int i = lane; i < a.n_used; i += WARP)
        a.weight[t * a.n_used + i] = score[expert[i]] / (a.normalise ? total : 1) * a.scale;
}

__global__ void combine_kernel(struct expert_combine_args a) {
    int64_t t = blockIdx.x, column = (int64_t)blockIdx.y * COMBINE_THREADS + threadIdx.x;
    if (column >= a.n_col) return;
    float sum = a.out[t * a.n_col + column];
    for (int j = 0; j < a.n_used; j++) {
        int64_t row = a.row ? a.row[t * a.n_used + j] : t * a.n_used + j;
        if (row >= 0) sum = fmaf(a.weight[t * a.n_used + j], a.x[row * a.n_col + column], sum);
    }
    a.out[t * a.n_col + column] = sum;
}

struct matmul_args product_of_group(const struct grouped_matmul_args *args, int g) {
    const struct weight *w = &args->weight[g];
    int64_t first = args->first_row[g];
    struct matmul_args product = {};
    product.x = (const char *)args->x + dtype_bytes(args->x_dtype, first * w->n_col);
    product.x_dtype = args->x_dtype;
    product.x_stride = w->n_col;
    product.n_token = args->first_row[g + 1] - first;
    product.weight = *w;
    product.out = args->out + first * w->n_row;
    product.out_dtype = DTYPE_F32;
    product.out_stride = w->n_row;
    return product;
}

enum status run_in_lanes(struct backend *backend, const std::vector<struct matmul_args> &products,
                         char *room, int64_t room_bytes, int n_lane) {
    for (size_t i = 0; i < products.size(); i++) {
        int lane = (int)(i % n_lane);
        cuda_lanes_enter(backend, lane);
        TRY(matmul_run(backend, &products[i], room + lane * room_bytes));
    }
    return OK;
}

// Products that do not share a launch, in as many lanes as scratch has rooms for.
enum status multiply_many(struct backend *backend,
                          const std::vector<struct matmul_args> &products) {
    int64_t room_bytes = 0;
    for (const struct matmul_args &product : products)
        room_bytes = std::max(room_bytes, matmul_room_bytes(&product));
    int n_lane = (int)std::min({(int64_t)N_LANE, (int64_t)products.size(),
                                room_bytes ? matmul_lane_bytes() / room_bytes : (int64_t)N_LANE});
    if (n_lane <= 1) {
        for (const struct matmul_args &product : products) TRY(cuda_matmul(backend, &product));
        return OK;
    }
    void *room;
    TRY(cuda_scratch(backend, n_lane * room_bytes, &room));
    TRY(cuda_lanes_fork(backend));
    enum status status = run_in_lanes(backend, products, (char *)room, room_bytes, n_lane);
    enum status joined = cuda_lanes_join(backend);
    return status != OK ? status : joined;
}

} // namespace

enum status cuda_expert_gate(struct backend *backend, const struct expert_gate_args *args) {
    size_t bytes = (size_t)GATE_WARPS * (2 * args->n_expert + args->n_group) * sizeof(float);
    TRY_CUDA(
        cudaFuncSetAttribute(gate_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    LAUNCH(backend, gate_kernel, (unsigned)divide_up(args->n_token, GATE_WARPS), GATE_WARPS * WARP,
           bytes, *args);
    return OK;
}

enum status cuda_grouped_matmul(struct backend *backend, const struct grouped_matmul_args *args) {
    std::vector<struct matmul_args> few, many; // few: those that share a launch
    for (int g = 0; g < args->n_group; g++) {
        const struct matmul_args product = product_of_group(args, g);
        if (product.n_token == 0 || product.weight.n_row == 0) continue;
        bool joins = few.empty() || few[0].weight.dtype == product.weight.dtype;
        if (matmul_is_short(&product) && joins)
            few.push_back(product);
        else
            many.push_back(product);
    }
    if (!few.empty()) TRY(matmul_run_each_short(backend, few.data(), (int)few.size()));
    return multiply_many(backend, many);
}

enum status cuda_expert_combine(struct backend *backend, const struct expert_combine_args *args) {
    dim3 grid((unsigned)args->n_token, (unsigned)divide_up(args->n_col, COMBINE_THREADS));
    LAUNCH(backend, combine_kernel, grid, COMBINE_THREADS, 0, *args);
    return OK;
}
