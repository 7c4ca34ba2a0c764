// y = x W^T. Tiles of tokens outside, panels of weight rows inside; see product.h.
#include <omp.h>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/format.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/product.h"

#define SHORT_TOKENS 8          // measured: up to here the block products beat expansion and oneDNN
#define PARALLEL_ELEMENTS 16384 // less work than this is not worth waking the threads
#define ROWS_AT_ONCE 16         // a thread's share of rows is a multiple of this

enum dtype product_dtype(const struct backend *backend, enum dtype x_dtype) {
    return x_dtype == DTYPE_BF16 && backend->bf16_products ? DTYPE_BF16 : DTYPE_F32;
}

bool product_is_short(int64_t n_token) {
    return n_token <= SHORT_TOKENS;
}

int64_t product_panel_rows(int64_t n_col) {
    int64_t rows = PRODUCT_PANEL_BYTES / (int64_t)sizeof(float) / n_col / 64 * 64;
    return rows < 64 ? 64 : rows;
}

// The next stretch of a row from column `at` that shares one block scale; *scale is 1 without
// scales.
static int64_t scaled_stretch(const struct weight *w, int64_t row, int64_t at, float *scale) {
    *scale = 1;
    if (!w->scale) return w->n_col - at;
    int64_t col = w->first_col + at, block = WEIGHT_SCALE_BLOCK;
    *scale = w->scale[(w->first_row + row) / block * w->scale_stride + col / block];
    return min64(w->n_col - at, block - col % block);
}

static void expand_scaled_row(const struct cpu_state *state, const struct weight *w, int64_t row,
                              enum dtype dtype, void *out) {
    const uint8_t *data = (const uint8_t *)w->data + row * w->row_bytes;
    float scale = 1, stretch[WEIGHT_SCALE_BLOCK] = {0};
    for (int64_t at = 0, n; at < w->n_col; at += n) {
        n = scaled_stretch(w, row, at, &scale);
        state->format->to_float(w->dtype, data + at, n, stretch);
        for (int64_t i = 0; i < n; i++) {
            if (dtype == DTYPE_BF16)
                ((bf16 *)out)[at + i] = bf16_from_float(scale * stretch[i]);
            else
                ((float *)out)[at + i] = scale * stretch[i];
        }
    }
}

static void expand_row(const struct cpu_state *state, const struct weight *w, int64_t row,
                       enum dtype dtype, void *out) {
    const uint8_t *data = (const uint8_t *)w->data + row * w->row_bytes;
    if (w->scale)
        expand_scaled_row(state, w, row, dtype, out);
    else if (dtype == DTYPE_BF16)
        state->format->to_bf16(w->dtype, data, w->n_col, out);
    else
        state->format->to_float(w->dtype, data, w->n_col, out);
}

static void dot_row(const struct cpu_state *state, const struct weight *w, int64_t row,
                    const struct matmul_args *args, float *y) {
    const uint8_t *data = (const uint8_t *)w->data + row * w->row_bytes;
    int n_token = (int)args->n_token;
    if (!w->scale) {
        state->format->dot(w->dtype, data, w->n_col, args->x, args->x_stride, n_token, y);
        return;
    }
    for (int t = 0; t < n_token; t++) y[t] = 0;
    float scale, part[SHORT_TOKENS];
    for (int64_t at = 0, n; at < w->n_col; at += n) {
        n = scaled_stretch(w, row, at, &scale);
        state->format->dot(w->dtype, data + at, n, (const float *)args->x + at, args->x_stride,
                           n_token, part);
        for (int t = 0; t < n_token; t++) y[t] += scale * part[t];
    }
}

struct weight product_expand(const struct cpu_state *state, struct weight rows, enum dtype dtype,
                             void *room) {
    if (!product_needs_room(rows, dtype)) return rows;
    int64_t out_bytes = rows.n_col * dtype_info[dtype].block_bytes;
#pragma omp parallel for num_threads(state->n_thread)                                              \
    schedule(static) if (rows.n_row * rows.n_col > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows.n_row; r++) {
        expand_row(state, &rows, r, dtype, (uint8_t *)room + r * out_bytes);
    }
    return (struct weight){.data = room,
                           .dtype = dtype,
                           .n_row = rows.n_row,
                           .n_col = rows.n_col,
                           .row_bytes = out_bytes};
}

const void *product_input(const struct cpu_state *state, const struct matmul_args *args,
                          enum dtype product, float *room, int64_t *stride) {
    *stride = args->x_stride;
    if (args->x_dtype == product) return args->x;
    *stride = args->weight.n_col;
    const struct convert_args convert = {
        .x = args->x,
        .x_dtype = args->x_dtype,
        .x_stride = args->x_stride,
        .n_row = args->n_token,
        .n_col = args->weight.n_col,
        .out = room,
        .out_dtype = product,
        .out_stride = args->weight.n_col,
    };
    elementwise_convert(state, &convert);
    return room;
}

// Writes the products `y` [n_token] of one weight row where the arguments say.
static void put_row(const struct matmul_args *args, int64_t row, const float *y) {
    float bias = args->bias ? args->bias[row] : 0;
    for (int64_t t = 0; t < args->n_token; t++) {
        int64_t at = t * args->out_stride + row;
        if (args->out_dtype == DTYPE_BF16)
            ((bf16 *)args->out)[at] = bf16_from_float(y[t] + bias);
        else if (args->accumulate)
            ((float *)args->out)[at] += y[t] + bias;
        else
            ((float *)args->out)[at] = y[t] + bias;
    }
}

void product_short(const struct cpu_state *state, const struct matmul_args *args) {
    const struct weight w = args->weight;
    int64_t n_part = (w.n_row + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#pragma omp parallel for num_threads(state->n_thread)                                              \
    schedule(static) if (w.n_row * w.n_col > PARALLEL_ELEMENTS)
    for (int64_t part = 0; part < n_part; part++) {
        int64_t end = min64(w.n_row, (part + 1) * ROWS_AT_ONCE);
        for (int64_t r = part * ROWS_AT_ONCE; r < end; r++) {
            float y[SHORT_TOKENS];
            dot_row(state, &w, r, args, y);
            put_row(args, r, y);
        }
    }
}

// Where the parts of the scratch of one product begin; a part that is not needed has no bytes.
struct room {
    int64_t x, panel, out, bytes;
    int64_t n_token, n_row; // of a tile
};

static struct room plan_room(const struct backend *backend, const struct matmul_args *args) {
    enum dtype product = product_dtype(backend, args->x_dtype);
    struct room room = {.n_token = min64(args->n_token, PRODUCT_TOKENS)};
    bool expands = product_needs_room(args->weight, product);
    bool rounds = args->out_dtype == DTYPE_BF16 && product == DTYPE_F32;
    room.n_row = args->weight.n_row;
    if (expands || rounds) room.n_row = min64(room.n_row, product_panel_rows(args->weight.n_col));
    int64_t x_elements = args->x_dtype != product ? room.n_token * args->weight.n_col : 0;
    int64_t panel_elements = expands ? room.n_row * args->weight.n_col : 0;
    int64_t out_elements = rounds ? room.n_token * room.n_row : 0;
    room.panel = round_up64(x_elements * (int64_t)sizeof(float), 64);
    room.out = room.panel + round_up64(panel_elements * dtype_info[product].block_bytes, 64);
    room.bytes = room.out + out_elements * (int64_t)sizeof(float);
    return room;
}

// One tile of tokens times one panel of weights. `out_room` is set where oneDNN cannot write the
// output's format: bf16 results of fp32 products.
static enum status multiply_tile(const struct cpu_state *state, const struct matmul_args *args,
                                 const void *x, int64_t x_stride, struct weight panel,
                                 float *out_room) {
    bool rounds = args->out_dtype == DTYPE_BF16 && panel.dtype == DTYPE_F32;
    const struct gemm_args gemm = {
        .n_token = args->n_token,
        .n_row = panel.n_row,
        .n_col = panel.n_col,
        .x_stride = x_stride,
        .weight_stride = panel.row_bytes / dtype_info[panel.dtype].block_bytes,
        .out_stride = rounds ? panel.n_row : args->out_stride,
        .dtype = panel.dtype,
        .out_dtype = rounds ? DTYPE_F32 : args->out_dtype,
        .accumulate = args->accumulate,
        .x = x,
        .weight = panel.data,
        .bias = args->bias,
        .out = rounds ? out_room : args->out,
    };
    TRY(gemm_run(state->gemm, &gemm));
    if (!rounds) return OK;
    const struct convert_args convert = {
        .x = out_room,
        .x_dtype = DTYPE_F32,
        .x_stride = panel.n_row,
        .n_row = args->n_token,
        .n_col = panel.n_row,
        .out = args->out,
        .out_dtype = DTYPE_BF16,
        .out_stride = args->out_stride,
    };
    elementwise_convert(state, &convert);
    return OK;
}

static enum status multiply_tokens(struct backend *backend, const struct matmul_args *args,
                                   const struct room *room, void *scratch) {
    const struct cpu_state *state = cpu_state(backend);
    enum dtype product = product_dtype(backend, args->x_dtype);
    int64_t x_stride;
    const void *x =
        product_input(state, args, product, cpu_scratch_at(scratch, room->x), &x_stride);
    for (int64_t r = 0; r < args->weight.n_row; r += room->n_row) {
        struct matmul_args part = *args;
        part.weight = weight_rows(args->weight, r, min64(room->n_row, args->weight.n_row - r));
        part.out = (uint8_t *)args->out + r * dtype_info[args->out_dtype].block_bytes;
        part.bias = args->bias ? args->bias + r : NULL;
        struct weight panel =
            product_expand(state, part.weight, product, cpu_scratch_at(scratch, room->panel));
        TRY(multiply_tile(state, &part, x, x_stride, panel, cpu_scratch_at(scratch, room->out)));
    }
    return OK;
}

static enum status matmul_short(struct backend *backend, const struct matmul_args *args) {
    struct cpu_state *state = cpu_state(backend);
    struct matmul_args plain = *args;
    void *room = NULL;
    if (args->x_dtype != DTYPE_F32)
        TRY(cpu_scratch(backend, args->n_token * args->weight.n_col * (int64_t)sizeof(float),
                        &room));
    plain.x = product_input(state, args, DTYPE_F32, room, &plain.x_stride);
    plain.x_dtype = DTYPE_F32;
    product_short(state, &plain);
    return OK;
}

enum status cpu_matmul(struct backend *backend, const struct matmul_args *args) {
    if (args->n_token == 0 || args->weight.n_row == 0) return OK;
    if (product_is_short(args->n_token)) return matmul_short(backend, args);
    struct room room = plan_room(backend, args);
    void *scratch;
    TRY(cpu_scratch(backend, room.bytes, &scratch));
    omp_set_num_threads(cpu_state(backend)->n_thread); // oneDNN asks OpenMP
    for (int64_t t = 0; t < args->n_token; t += room.n_token) {
        struct matmul_args tile = *args;
        tile.n_token = min64(room.n_token, args->n_token - t);
        tile.x =
            (const uint8_t *)args->x + t * args->x_stride * dtype_info[args->x_dtype].block_bytes;
        tile.out =
            (uint8_t *)args->out + t * args->out_stride * dtype_info[args->out_dtype].block_bytes;
        TRY(multiply_tokens(backend, &tile, &room, scratch));
    }
    return OK;
}

// Layers ask for fp32 results; quantised weights are expanded.
int64_t cpu_matmul_scratch_bytes(const struct backend *backend, const struct scratch_shape *shape) {
    const struct matmul_args worst = {
        .x_dtype = backend->bf16_products ? DTYPE_F32 : DTYPE_BF16,
        .n_token = shape->n_token,
        .weight = {.dtype = DTYPE_Q8_0,
                   .n_row = (shape->largest_weight + shape->widest_row - 1) / shape->widest_row,
                   .n_col = shape->widest_row},
        .out_dtype = DTYPE_F32,
    };
    return plan_room(backend, &worst).bytes;
}
