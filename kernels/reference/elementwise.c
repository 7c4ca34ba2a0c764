// Operations on rows without products between rows: embed, norm, rope, gate, convert, copies.
#include <math.h>
#include <stdlib.h>

#include "kernels/reference/reference.h"

// Element `i` of a buffer in a plain format.
static float load(const void *x, enum dtype dtype, int64_t i) {
    return dtype == DTYPE_F32 ? ((const float *)x)[i] : bf16_to_float(((const bf16 *)x)[i]);
}

static void store(void *out, enum dtype dtype, int64_t i, float value) {
    if (dtype == DTYPE_F32)
        ((float *)out)[i] = value;
    else
        ((bf16 *)out)[i] = bf16_from_float(value);
}

enum status reference_embed(struct backend *backend, const struct embed_args *args) {
    (void)backend;
    int64_t n_col = args->table.n_col;
    for (int64_t t = 0; t < args->n_token; t++) {
        const uint8_t *row =
            (const uint8_t *)args->table.data + args->token[t] * args->table.row_bytes;
        dtype_to_float(args->table.dtype, row, n_col, args->out + t * n_col);
        for (int64_t i = 0; i < n_col; i++) args->out[t * n_col + i] *= args->scale;
    }
    return OK;
}

enum status reference_norm(struct backend *backend, const struct norm_args *args) {
    (void)backend;
    int64_t n = args->n_col;
    for (int64_t r = 0; r < args->n_row; r++) {
        const float *x = args->x + r * n;
        double mean = 0, square = 0;
        if (args->kind == NORM_LAYER) {
            for (int64_t i = 0; i < n; i++) mean += x[i];
            mean /= (double)n;
        }
        for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
        float scale = (float)(1 / sqrt(square / (double)n + args->eps));
        for (int64_t i = 0; i < n; i++) {
            float y = (x[i] - (float)mean) * scale * args->weight[i];
            store(args->out, args->out_dtype, r * n + i, args->bias ? y + args->bias[i] : y);
        }
    }
    return OK;
}

// x and out: one head each.
static void rotate_head(const struct rope_args *args, int64_t t, const float *x, float *out) {
    int n_pair = args->rope_dim / 2;
    for (int i = 0; i < n_pair; i++) {
        int first = args->first + (args->interleaved ? 2 * i : i);
        int second = args->interleaved ? first + 1 : first + n_pair;
        float a = x[first], b = x[second];
        float cosine = args->cos[t * n_pair + i], sine = args->sin[t * n_pair + i];
        out[first] = a * cosine - b * sine;
        out[second] = b * cosine + a * sine;
    }
    for (int i = 0; i < args->head_dim; i++)
        if (i < args->first || i >= args->first + args->rope_dim) out[i] = x[i];
}

static void spread_head(float *x, int n) {
    float scale = 1.0f / sqrtf((float)n);
    for (int half = 1; half < n; half *= 2) {
        for (int i = 0; i < n; i++) {
            if (i & half) continue;
            float a = x[i], b = x[i + half];
            x[i] = a + b;
            x[i + half] = a - b;
        }
    }
    for (int i = 0; i < n; i++) x[i] *= scale;
}

enum status reference_rope(struct backend *backend, const struct rope_args *args) {
    (void)backend;
    int dim = args->head_dim;
    float *head = calloc((size_t)dim, sizeof *head);
    if (!head) FAIL(ERR_MEMORY, "no memory for a head of %d elements", dim);
    for (int64_t t = 0; t < args->n_token; t++)
        for (int h = 0; h < args->n_head; h++) {
            rotate_head(args, t, args->x + t * args->x_stride + h * dim, head);
            if (args->spread) spread_head(head, dim);
            for (int i = 0; i < dim; i++)
                store(args->out, args->out_dtype, t * args->out_stride + h * dim + i, head[i]);
        }
    free(head);
    return OK;
}

// One after another, as any backend rotates.
enum status reference_rope_each(struct backend *backend, const struct rope_each_args *args) {
    for (int i = 0; i < args->n_rope; i++) TRY(backend->ops->rope(backend, &args->rope[i]));
    return OK;
}

static double activate(enum activation activation, double x) {
    switch (activation) {
    case ACTIVATION_SILU:
        return x / (1 + exp(-x));
    case ACTIVATION_GELU_TANH: // Hendrycks and Gimpel 2016, section 2
        return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACTIVATION_GELU_ERF:
        return 0.5 * x * (1 + erf(x / sqrt(2)));
    }
    return NAN;
}

enum status reference_gate(struct backend *backend, const struct gate_args *args) {
    (void)backend;
    for (int64_t t = 0; t < args->n_token; t++)
        for (int64_t i = 0; i < args->n_col; i++) {
            float gate = (float)activate(args->activation, args->gate[t * args->gate_stride + i]);
            float up = args->up ? args->up[t * args->up_stride + i] : 1;
            store(args->out, args->out_dtype, t * args->n_col + i, gate * up);
        }
    return OK;
}

enum status reference_add(struct backend *backend, const struct add_args *args) {
    (void)backend;
    for (int64_t i = 0; i < args->n; i++) args->x[i] += args->by[i];
    return OK;
}

enum status reference_multiply(struct backend *backend, const struct multiply_args *args) {
    (void)backend;
    for (int64_t i = 0; i < args->n; i++) args->x[i] *= args->factor * (args->by ? args->by[i] : 1);
    return OK;
}

enum status reference_convert(struct backend *backend, const struct convert_args *args) {
    (void)backend;
    for (int64_t r = 0; r < args->n_row; r++) {
        int64_t from = args->row ? args->row[r] : r;
        for (int64_t i = 0; i < args->n_col; i++)
            store(args->out, args->out_dtype, r * args->out_stride + i,
                  load(args->x, args->x_dtype, from * args->x_stride + i));
    }
    return OK;
}

enum status reference_copy_blocks(struct backend *backend, const struct copy_blocks_args *args) {
    (void)backend;
    for (int b = 0; b < args->n_block; b++) {
        const struct block_copy *block = &args->block[b];
        for (int64_t r = 0; r < block->n_row; r++)
            for (int64_t i = 0; i < block->n_col; i++)
                block->to[r * block->to_stride + i] = block->from[r * block->from_stride + i];
    }
    return OK;
}
