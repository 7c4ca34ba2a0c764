// ln softmax(x W^T)[target]: for each panel of vocabulary rows, expanded once, and each tile of
// tokens, the logits of panel x tile; per token a running maximum and sum of exponentials
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3).
#include <math.h>
#include <omp.h>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/product.h"

#define TILE_TOKENS 512
#define TILE_ROWS 2048 // of the vocabulary: a tile of logits is 4 MiB

struct running {
    double sum; // of exp(logit - max)
    float max, target;
};

// Byte offsets into the scratch.
struct room {
    int64_t running; // [n_token] struct running
    int64_t logits;  // fp32 [TILE_TOKENS, TILE_ROWS]
    int64_t x;       // fp32 [TILE_TOKENS, n_col]: bf16 inputs where products are fp32
    int64_t panel;   // [TILE_ROWS, n_col] expanded weights
    int64_t bytes;
};

static struct room plan_room(int64_t n_token, int64_t n_col) {
    const int64_t float_bytes = sizeof(float);
    int64_t n_tile = min64(n_token, TILE_TOKENS);
    struct room room = {0};
    room.logits = round_up64(n_token * (int64_t)sizeof(struct running), 64);
    room.x = room.logits + n_tile * TILE_ROWS * float_bytes;
    room.panel = room.x + round_up64(n_tile * n_col * float_bytes, 64);
    room.bytes = room.panel + TILE_ROWS * n_col * float_bytes;
    return room;
}

int64_t cpu_logprob_scratch_bytes(const struct scratch_shape *shape) {
    return plan_room(shape->n_token, shape->n_hidden).bytes;
}

// Takes the logits of one token against vocabulary rows [first, first + n) into its running sum.
static void take_logits(const struct elementwise_ops *ops, const float *logits, int64_t first,
                        int64_t n, int32_t target, struct running *running) {
    float max = fmaxf(running->max, ops->max(logits, n));
    double before = running->sum > 0 ? running->sum * exp((double)running->max - max) : 0;
    running->sum = before + ops->exp_sum(logits, n, max);
    running->max = max;
    if (target >= first && target < first + n) running->target = logits[target - first];
}

// Logits of one tile of tokens against one panel, [n_token, panel.n_row].
static enum status multiply_tile(struct backend *backend, const struct logprob_args *args,
                                 int64_t begin, int64_t n_token, struct weight panel,
                                 enum dtype product, float *x_room, float *logits) {
    const struct cpu_state *state = cpu_state(backend);
    int64_t n_col = args->head.n_col, stride;
    struct matmul_args tile = {
        .x = (const uint8_t *)args->x + begin * n_col * dtype_info[args->x_dtype].block_bytes,
        .x_dtype = args->x_dtype,
        .x_stride = n_col,
        .n_token = n_token,
        .weight = panel,
        .out = logits,
        .out_dtype = DTYPE_F32,
        .out_stride = panel.n_row,
    };
    tile.x = product_input(state, &tile, product, x_room, &stride);
    tile.x_dtype = product;
    if (product_is_short(args->n_token)) {
        product_short(state, &tile);
        return OK;
    }
    const struct gemm_args gemm = {
        .n_token = n_token,
        .n_row = panel.n_row,
        .n_col = n_col,
        .x_stride = stride,
        .weight_stride = panel.row_bytes / dtype_info[panel.dtype].block_bytes,
        .out_stride = panel.n_row,
        .dtype = product,
        .out_dtype = DTYPE_F32,
        .x = tile.x,
        .weight = panel.data,
        .out = logits,
    };
    return gemm_run(state->gemm, &gemm);
}

static enum status sum_logits(struct backend *backend, const struct logprob_args *args,
                              const struct room *room, void *scratch) {
    const struct cpu_state *state = cpu_state(backend);
    bool blocks = product_is_short(args->n_token);
    enum dtype product = blocks ? DTYPE_F32 : product_dtype(backend, args->x_dtype);
    struct running *running = cpu_scratch_at(scratch, room->running);
    float *logits = cpu_scratch_at(scratch, room->logits);
    for (int64_t r = 0; r < args->head.n_row; r += TILE_ROWS) {
        int64_t n_row = min64(args->head.n_row - r, TILE_ROWS);
        struct weight panel = weight_rows(args->head, r, n_row);
        if (!blocks)
            panel = product_expand(state, panel, product, cpu_scratch_at(scratch, room->panel));
        for (int64_t t = 0; t < args->n_token; t += TILE_TOKENS) {
            int64_t n = min64(args->n_token - t, TILE_TOKENS);
            TRY(multiply_tile(backend, args, t, n, panel, product, cpu_scratch_at(scratch, room->x),
                              logits));
#pragma omp parallel for num_threads(state->n_thread) schedule(static) if (n * n_row > 16384)
            for (int64_t i = 0; i < n; i++)
                take_logits(state->elementwise, logits + i * n_row, r, n_row, args->target[t + i],
                            &running[t + i]);
        }
    }
    return OK;
}

enum status cpu_logprob(struct backend *backend, const struct logprob_args *args) {
    if (args->n_token == 0) return OK;
    struct room room = plan_room(args->n_token, args->head.n_col);
    void *scratch;
    TRY(cpu_scratch(backend, room.bytes, &scratch));
    omp_set_num_threads(cpu_state(backend)->n_thread); // oneDNN asks OpenMP
    struct running *running = cpu_scratch_at(scratch, room.running);
    for (int64_t t = 0; t < args->n_token; t++)
        running[t] = (struct running){.max = -INFINITY, .target = NAN};
    TRY(sum_logits(backend, args, &room, scratch));
    for (int64_t t = 0; t < args->n_token; t++)
        args->logprob[t] =
            (float)((double)running[t].target - running[t].max - log(running[t].sum));
    return OK;
}
