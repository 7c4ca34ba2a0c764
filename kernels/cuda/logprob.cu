// ln softmax(x W^T)[target]: for each panel of vocabulary rows, expanded once, and each tile of
// tokens, the logits of panel x tile; per token a running maximum and sum of exponentials
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3).
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"

namespace {

constexpr int kThreads = 256, kWarps = kThreads / WARP;
constexpr int64_t kTileTokens = 1024, kTileRows = 8192; // a tile of logits is at most 32 MiB
constexpr int64_t kRoomAlign = 256;

struct running {
    double sum; // of exp(logit - max)
    float max, target;
};

__global__ void __launch_bounds__(kThreads) start_running(struct running *running, int64_t n) {
    int64_t token = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (token >= n) return;
    running[token] = {0, -INFINITY, NAN};
}

struct tile {
    const float *logits; // [n_token, n_row]: of vocabulary rows [first, first + n_row)
    int64_t first, n_row;
    const int32_t *target;   // [n_token]
    struct running *running; // [n_token]
};

// A block takes a token's logits of the tile into its running sum.
__global__ void __launch_bounds__(kThreads) take_logits(struct tile a) {
    __shared__ float shared[kWarps];
    const float *logits = a.logits + blockIdx.x * a.n_row;
    struct running *running = a.running + blockIdx.x;
    const float before = running->max;
    float max = before, sum = 0;
    for (int64_t i = threadIdx.x; i < a.n_row; i += kThreads) max = fmaxf(max, logits[i]);
    max = block_max(max, shared);
    for (int64_t i = threadIdx.x; i < a.n_row; i += kThreads) sum += expf(logits[i] - max);
    sum = block_sum(sum, shared);
    if (threadIdx.x != 0) return;
    double kept = running->sum > 0 ? running->sum * exp((double)before - max) : 0;
    running->sum = kept + sum;
    running->max = max;
    int64_t target = a.target[blockIdx.x] - a.first;
    if (target >= 0 && target < a.n_row) running->target = logits[target];
}

__global__ void __launch_bounds__(kThreads)
    finish_running(const struct running *running, int64_t n, float *logprob) {
    int64_t token = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (token >= n) return;
    const struct running r = running[token];
    logprob[token] = (float)((double)r.target - r.max - log(r.sum));
}

// Byte offsets into the scratch.
struct room {
    int64_t n_row, n_token; // of a panel and of a tile
    int64_t logits;         // fp32 [n_token, n_row]; before it, running sums [tokens]
    int64_t panel;          // expanded weights, or the scratch of a product
    int64_t bytes;
};

int64_t align(int64_t bytes) {
    return divide_up(bytes, kRoomAlign) * kRoomAlign;
}

struct room plan_room(int64_t n_token, int64_t n_vocab, int64_t n_col, enum dtype dtype) {
    struct room room = {};
    int64_t panel_rows = std::min(matmul_panel_rows(n_col, dtype), kTileRows);
    room.n_row = std::min(n_vocab, panel_rows);
    room.n_token = std::min(n_token, kTileTokens);
    room.logits = align(n_token * (int64_t)sizeof(struct running));
    room.panel = room.logits + align(room.n_token * room.n_row * (int64_t)sizeof(float));
    room.bytes =
        room.panel + room.n_row * matmul_panel_stride(n_col) * dtype_info[dtype].block_bytes;
    return room;
}

// The logits of tokens [begin, begin + n) against one panel, taken into their running sums.
enum status take_tile(struct backend *backend, const struct logprob_args *args, int64_t begin,
                      int64_t n, struct weight panel, int64_t first, uint8_t *scratch,
                      const struct room *room) {
    const int64_t n_col = args->head.n_col;
    float *logits = (float *)(scratch + room->logits);
    struct matmul_args product = {
        .x = (const uint8_t *)args->x + begin * n_col * dtype_info[args->x_dtype].block_bytes,
        .x_dtype = args->x_dtype,
        .x_stride = n_col,
        .n_token = n,
        .weight = panel,
        .out = logits,
    };
    product.out_dtype = DTYPE_F32;
    product.out_stride = panel.n_row;
    TRY(matmul_run(backend, &product, scratch + room->panel));
    const struct tile tile = {
        .logits = logits,
        .first = first,
        .n_row = panel.n_row,
        .target = args->target + begin,
        .running = (struct running *)scratch + begin,
    };
    LAUNCH(backend, take_logits, (unsigned)n, kThreads, 0, tile);
    return OK;
}

} // namespace

enum status cuda_logprob(struct backend *backend, const struct logprob_args *args) {
    if (args->n_token == 0) return OK;
    const struct weight *head = &args->head;
    struct room room = plan_room(args->n_token, head->n_row, head->n_col, args->x_dtype);
    void *scratch = NULL;
    TRY(cuda_scratch(backend, room.bytes, &scratch));
    struct running *running = (struct running *)scratch;
    unsigned grid = (unsigned)divide_up(args->n_token, kThreads);
    LAUNCH(backend, start_running, grid, kThreads, 0, running, args->n_token);
    // A panel is expanded once for all its tiles of tokens, unless products read it as it lies; a
    // product that has one tile may as well expand it itself.
    bool expands = args->n_token > room.n_token && !matmul_takes_weight(head, args->x_dtype);
    for (int64_t r = 0; r < head->n_row; r += room.n_row) {
        struct weight panel = weight_rows(*head, r, std::min(room.n_row, head->n_row - r));
        if (expands) {
            const struct weight rows = panel;
            TRY(matmul_expand(backend, &rows, args->x_dtype, (uint8_t *)scratch + room.panel,
                              &panel));
        }
        for (int64_t t = 0; t < args->n_token; t += room.n_token) {
            int64_t n = std::min(args->n_token - t, room.n_token);
            TRY(take_tile(backend, args, t, n, panel, r, (uint8_t *)scratch, &room));
        }
    }
    LAUNCH(backend, finish_running, grid, kThreads, 0, running, args->n_token, args->logprob);
    return OK;
}

int64_t cuda_logprob_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s) {
    (void)state;
    return plan_room(s->n_token, kTileRows, s->n_hidden, DTYPE_F32).bytes;
}
