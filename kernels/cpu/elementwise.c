// Splits rows over the threads; the loops are elementwise_body.h's.
#include "kernels/cpu/elementwise.h"

#include "kernels/cpu/format.h"

#define PART_ELEMENTS 8192 // of a thread at least: less is not worth waking it

// Rows [begin, end) of part `part` of `n_part`.
static int64_t part_begin(int64_t n_row, int64_t part, int64_t n_part) {
    return n_row / n_part * part + (n_row % n_part) * part / n_part;
}

static int count_parts(const struct cpu_state *state, int64_t n_row, int64_t n_col) {
    int64_t n = n_row * n_col / PART_ELEMENTS;
    if (n > state->n_thread) n = state->n_thread;
    if (n > n_row) n = n_row;
    return n < 1 ? 1 : (int)n;
}

// Calls `rows(args, begin, end)` with the rows in as many parts as are worth their threads.
#define RUN_ROWS(state, rows, args, n_row, n_col)                                                  \
    do {                                                                                           \
        int64_t n_row_ = (n_row);                                                                  \
        int n_part_ = count_parts(state, n_row_, n_col);                                           \
        _Pragma("omp parallel for num_threads(n_part_) schedule(static) if (n_part_ > 1)") for (   \
            int part_ = 0; part_ < n_part_; part_++)                                               \
            rows(args, part_begin(n_row_, part_, n_part_),                                         \
                 part_begin(n_row_, part_ + 1, n_part_));                                          \
    } while (0)

static void embed_rows(const struct cpu_state *state, const struct embed_args *args, int64_t begin,
                       int64_t end) {
    int64_t n = args->table.n_col;
    for (int64_t t = begin; t < end; t++) {
        const uint8_t *row =
            (const uint8_t *)args->table.data + args->token[t] * args->table.row_bytes;
        float *out = args->out + t * n;
        state->format->to_float(args->table.dtype, row, n, out);
        if (args->scale != 1)
            for (int64_t i = 0; i < n; i++) out[i] *= args->scale;
    }
}

enum status cpu_embed(struct backend *backend, const struct embed_args *args) {
    const struct cpu_state *state = cpu_state(backend);
#define EMBED_ROWS(args, begin, end) embed_rows(state, args, begin, end)
    RUN_ROWS(state, EMBED_ROWS, args, args->n_token, args->table.n_col);
    return OK;
}

enum status cpu_norm(struct backend *backend, const struct norm_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    RUN_ROWS(state, state->elementwise->norm, args, args->n_row, args->n_col);
    return OK;
}

enum status cpu_rope(struct backend *backend, const struct rope_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    if (args->head_dim > ELEMENTWISE_HEAD_MAX)
        FAIL(ERR_INTERNAL, "rope of heads of %d elements; at most %d", args->head_dim,
             ELEMENTWISE_HEAD_MAX);
    RUN_ROWS(state, state->elementwise->rope, args, args->n_token,
             (int64_t)args->n_head * args->head_dim);
    return OK;
}

static void add_values(const struct add_args *args, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; i++) args->x[i] += args->by[i];
}

enum status cpu_add(struct backend *backend, const struct add_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    RUN_ROWS(state, add_values, args, args->n, 1);
    return OK;
}

enum status cpu_gate(struct backend *backend, const struct gate_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    RUN_ROWS(state, state->elementwise->gate, args, args->n_token, args->n_col);
    return OK;
}

void elementwise_convert(const struct cpu_state *state, const struct convert_args *args) {
    RUN_ROWS(state, state->elementwise->convert, args, args->n_row, args->n_col);
}

enum status cpu_convert(struct backend *backend, const struct convert_args *args) {
    elementwise_convert(cpu_state(backend), args);
    return OK;
}

static void copy_rows(const struct block_copy *block, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
        memcpy(block->to + r * block->to_stride, block->from + r * block->from_stride,
               (size_t)block->n_col * sizeof *block->to);
}

enum status cpu_copy_blocks(struct backend *backend, const struct copy_blocks_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    for (int b = 0; b < args->n_block; b++)
        RUN_ROWS(state, copy_rows, &args->block[b], args->block[b].n_row, args->block[b].n_col);
    return OK;
}
