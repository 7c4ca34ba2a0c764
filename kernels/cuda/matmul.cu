// y = x W^T by cuBLAS, fp32 sums. Weights that it cannot take as they lie are expanded, a panel of
// rows at a time, to the type of x; bf16 results that need more than one rounding-free step (a
// bias, fp32 products) pass through a tile of fp32. Few tokens: matmul_short.cu.
#include "kernels/cuda/matmul.cuh"

#include <algorithm>
#include <vector>

#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/lanes.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int64_t kPanelBytes = 64 << 20;
constexpr int64_t kLaneBytes = 2 * kPanelBytes;
constexpr int64_t kPanelRowsAlign = 128;
constexpr int64_t kTileTokens = 4096, kTileRows = 4096; // of fp32 results on their way to bf16
constexpr int64_t kRoomAlign = 256;

int64_t element_bytes(enum dtype dtype) {
    return dtype_info[dtype].block_bytes;
}

// Grid: tokens along x, parts of the rows along y. out = bias, or out += bias.
__global__ void __launch_bounds__(kThreads)
    start_with_bias(float *out, int64_t out_stride, const float *bias, int64_t n_row, bool adds) {
    out += blockIdx.x * out_stride;
    for (int64_t i = (int64_t)blockIdx.y * kThreads + threadIdx.x; i < n_row;
         i += (int64_t)gridDim.y * kThreads)
        out[i] = adds ? out[i] + bias[i] : bias[i];
}

unsigned blocks_of_row(int64_t n) {
    return (unsigned)std::min<int64_t>(divide_up(n, 4 * kThreads), 1024);
}

// How a product is cut, and where its parts lie in the scratch.
struct plan {
    bool expands, rounds;
    int64_t n_row, n_token; // of a panel and of a tile of results
    int64_t tile, bytes;    // the tile of fp32 results begins at `tile`
};

struct plan make_plan(const struct matmul_args *args) {
    struct plan plan = {};
    const struct weight *w = &args->weight;
    plan.expands = !matmul_takes_weight(w, args->x_dtype);
    plan.rounds = args->out_dtype == DTYPE_BF16 && (args->bias || args->x_dtype == DTYPE_F32);
    plan.n_row = w->n_row;
    plan.n_token = args->n_token;
    if (plan.expands) plan.n_row = std::min(plan.n_row, matmul_panel_rows(w->n_col, args->x_dtype));
    if (plan.rounds) {
        plan.n_row = std::min(plan.n_row, kTileRows);
        plan.n_token = std::min(plan.n_token, kTileTokens);
    }
    int64_t panel = plan.expands ? plan.n_row * matmul_panel_stride(w->n_col) : 0;
    plan.tile = divide_up(panel * element_bytes(args->x_dtype), kRoomAlign) * kRoomAlign;
    plan.bytes = plan.tile + (plan.rounds ? plan.n_token * plan.n_row * (int64_t)sizeof(float) : 0);
    return plan;
}

// One call of cuBLAS: it counts columns first, so that y^T [n_row, n_token] = W x^T.
enum status multiply(struct backend *backend, const struct matmul_args *args) {
    const struct weight *w = &args->weight;
    int64_t weight_stride = w->row_bytes / element_bytes(w->dtype);
    // A stride that no row uses may be anything.
    if (w->n_row == 1) weight_stride = std::max(weight_stride, w->n_col);
    int64_t x_stride = std::max(args->x_stride, w->n_col);
    int64_t out_stride = std::max(args->out_stride, w->n_row);
    const float alpha = 1, beta = args->accumulate ? 1 : 0;
    cudaDataType in = args->x_dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    cudaDataType out = args->out_dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    cublasComputeType_t compute = backend->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    TRY_CUBLAS(cublasGemmEx(cuda_state(backend)->cublas, CUBLAS_OP_T, CUBLAS_OP_N, (int)w->n_row,
                            (int)args->n_token, (int)w->n_col, &alpha, w->data, in,
                            (int)weight_stride, args->x, in, (int)x_stride, &beta, args->out, out,
                            (int)out_stride, compute, CUBLAS_GEMM_DEFAULT));
    return OK;
}

// A product with fp32 results: the bias goes in first.
enum status multiply_with_bias(struct backend *backend, const struct matmul_args *args) {
    struct matmul_args product = *args;
    if (args->bias) {
        dim3 grid((unsigned)args->n_token, blocks_of_row(args->weight.n_row));
        LAUNCH(backend, start_with_bias, grid, kThreads, 0, (float *)args->out, args->out_stride,
               args->bias, args->weight.n_row, args->accumulate);
        product.accumulate = true;
    }
    return multiply(backend, &product);
}

// A panel whose weights cuBLAS takes, tile by tile of tokens through fp32.
enum status multiply_and_round(struct backend *backend, const struct matmul_args *args,
                               int64_t n_token, float *tile) {
    for (int64_t t = 0; t < args->n_token; t += n_token) {
        struct matmul_args part = *args;
        part.n_token = std::min(n_token, args->n_token - t);
        part.x = (const uint8_t *)args->x + t * args->x_stride * element_bytes(args->x_dtype);
        part.out = tile;
        part.out_dtype = DTYPE_F32;
        part.out_stride = args->weight.n_row;
        TRY(multiply_with_bias(backend, &part));
        const struct convert_args round = {
            .x = tile,
            .x_dtype = DTYPE_F32,
            .x_stride = part.out_stride,
            .row = NULL,
            .n_row = part.n_token,
            .n_col = args->weight.n_row,
            .out = (uint8_t *)args->out + t * args->out_stride * element_bytes(DTYPE_BF16),
            .out_dtype = DTYPE_BF16,
            .out_stride = args->out_stride,
        };
        TRY(cuda_convert(backend, &round));
    }
    return OK;
}

// Products that share a launch: their arguments travel as parameters of the kernel; those of many
// of one shape in a table.
enum status run_joint(struct backend *backend, const std::vector<struct matmul_args> &all) {
    bool one_shape = true;
    for (const struct matmul_args &product : all)
        one_shape = one_shape && product.weight.n_row == all[0].weight.n_row;
    int n_all = (int)all.size();
    if (n_all > MOST_JOINT && one_shape) return matmul_run_each_short(backend, all.data(), n_all);
    for (int done = 0; done < n_all; done += MOST_JOINT)
        TRY(matmul_run_joint_short(backend, &all[done], std::min<int>(n_all - done, MOST_JOINT)));
    return OK;
}

} // namespace

bool matmul_takes_weight(const struct weight *weight, enum dtype x_dtype) {
    int64_t size = element_bytes(x_dtype);
    return weight->dtype == x_dtype && weight->row_bytes % size == 0 &&
           (uintptr_t)weight->data % size == 0;
}

int64_t matmul_panel_stride(int64_t n_col) {
    return divide_up(n_col, CHUNK) * CHUNK;
}

int64_t matmul_panel_rows(int64_t n_col, enum dtype dtype) {
    int64_t rows = kPanelBytes / (matmul_panel_stride(n_col) * element_bytes(dtype));
    return std::max(rows / kPanelRowsAlign * kPanelRowsAlign, kPanelRowsAlign);
}

enum status matmul_expand(struct backend *backend, const struct weight *rows, enum dtype dtype,
                          void *room, struct weight *out) {
    int64_t stride = matmul_panel_stride(rows->n_col);
    const struct expand_args expand = {
        .weight = *rows,
        .row = NULL,
        .n_row = rows->n_row,
        .factor = 1,
        .out = room,
        .out_dtype = dtype,
        .out_stride = stride,
    };
    *out = (struct weight){.data = room, .dtype = dtype, .n_row = rows->n_row};
    out->n_col = rows->n_col;
    out->row_bytes = stride * element_bytes(dtype);
    return cuda_expand(backend, &expand);
}

int64_t matmul_room_bytes(const struct matmul_args *args) {
    return matmul_is_short(args) ? 0 : make_plan(args).bytes;
}

int64_t matmul_lane_bytes(void) {
    return kLaneBytes;
}

enum status matmul_run(struct backend *backend, const struct matmul_args *args, void *room) {
    if (args->n_token == 0 || args->weight.n_row == 0) return OK;
    if (matmul_is_short(args)) return matmul_run_short(backend, args);
    struct plan plan = make_plan(args);
    for (int64_t r = 0; r < args->weight.n_row; r += plan.n_row) {
        struct matmul_args part = *args;
        part.weight = weight_rows(args->weight, r, std::min(plan.n_row, args->weight.n_row - r));
        part.out = (uint8_t *)args->out + r * element_bytes(args->out_dtype);
        part.bias = args->bias ? args->bias + r : NULL;
        if (plan.expands) {
            const struct weight rows = part.weight;
            TRY(matmul_expand(backend, &rows, args->x_dtype, room, &part.weight));
        }
        if (plan.rounds)
            TRY(multiply_and_round(backend, &part, plan.n_token,
                                   (float *)((uint8_t *)room + plan.tile)));
        else
            TRY(multiply_with_bias(backend, &part));
    }
    return OK;
}

enum status cuda_matmul(struct backend *backend, const struct matmul_args *args) {
    void *room = NULL;
    TRY(cuda_scratch(backend, matmul_room_bytes(args), &room));
    return matmul_run(backend, args, room);
}

enum status cuda_matmul_each(struct backend *backend, const struct matmul_each_args *args) {
    std::vector<bool> done(args->n_product);
    for (int first = 0; first < args->n_product; first++) {
        const struct matmul_args *product = &args->product[first];
        std::vector<struct matmul_args> joint;
        if (done[first]) continue;
        for (int i = first; i < args->n_product && matmul_joins(product, product); i++) {
            if (done[i] || !matmul_joins(&args->product[i], product)) continue;
            joint.push_back(args->product[i]);
            done[i] = true;
        }
        TRY(joint.size() > 1 ? run_joint(backend, joint) : cuda_matmul(backend, product));
    }
    return OK;
}

// The largest panel, and the tile of results on their way to bf16; or the panels of lanes.
int64_t cuda_matmul_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s) {
    (void)state;
    int64_t least = kPanelRowsAlign * matmul_panel_stride(s->widest_row);
    int64_t panel = std::min(std::max(kPanelBytes, least * (int64_t)sizeof(float)),
                             s->largest_weight * (int64_t)sizeof(float));
    int64_t tile = std::min(s->n_token, kTileTokens) * kTileRows * (int64_t)sizeof(float);
    int64_t lanes = std::min(kLaneBytes, N_LANE * s->largest_weight * (int64_t)sizeof(float));
    return std::max(panel + tile, lanes);
}
