// y = x W^T, and ln softmax(x W^T)[target] on top of the same dot product.
#include <math.h>
#include <stdlib.h>

#include "kernels/reference/reference.h"

// Expands row `row` of the weights; rounded to bf16 when the products are bf16.
static void expand_row(struct weight w, int64_t row, enum dtype x_dtype, float *out) {
    weight_row_to_float(&w, row, out);
    if (x_dtype == DTYPE_BF16)
        for (int64_t i = 0; i < w.n_col; i++) out[i] = bf16_to_float(bf16_from_float(out[i]));
}

static float dot(const float *w, const void *x, enum dtype x_dtype, int64_t n) {
    float sum = 0;
    if (x_dtype == DTYPE_F32)
        for (int64_t i = 0; i < n; i++) sum += w[i] * ((const float *)x)[i];
    else
        for (int64_t i = 0; i < n; i++) sum += w[i] * bf16_to_float(((const bf16 *)x)[i]);
    return sum;
}

static enum status row_buffer(int64_t n, float **out) {
    *out = malloc(((size_t)n + 1) * sizeof **out);
    if (!*out) FAIL(ERR_MEMORY, "cannot allocate one row of %lld weights", (long long)n);
    return OK;
}

enum status reference_matmul(struct backend *backend, const struct matmul_args *args) {
    (void)backend;
    float *w;
    TRY(row_buffer(args->weight.n_col, &w));
    int64_t x_bytes = dtype_info[args->x_dtype].block_bytes * args->x_stride;
    for (int64_t r = 0; r < args->weight.n_row; r++) {
        expand_row(args->weight, r, args->x_dtype, w);
        for (int64_t t = 0; t < args->n_token; t++) {
            const void *x = (const uint8_t *)args->x + t * x_bytes;
            float y = dot(w, x, args->x_dtype, args->weight.n_col);
            int64_t at = t * args->out_stride + r;
            if (args->bias) y += args->bias[r];
            if (args->out_dtype == DTYPE_BF16)
                ((bf16 *)args->out)[at] = bf16_from_float(y);
            else if (args->accumulate)
                ((float *)args->out)[at] += y;
            else
                ((float *)args->out)[at] = y;
        }
    }
    free(w);
    return OK;
}

// One after another, as any backend multiplies.
enum status reference_matmul_each(struct backend *backend, const struct matmul_each_args *args) {
    for (int i = 0; i < args->n_product; i++) TRY(backend->ops->matmul(backend, &args->product[i]));
    return OK;
}

// Two passes over the vocabulary, the obvious way: the largest logit, then the sum of exponentials.
static float target_logprob(const struct logprob_args *args, int64_t t, float *w) {
    const void *x =
        (const uint8_t *)args->x + t * args->head.n_col * dtype_info[args->x_dtype].block_bytes;
    float max = -INFINITY, target = NAN;
    double sum = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t r = 0; r < args->head.n_row; r++) {
            expand_row(args->head, r, args->x_dtype, w);
            float logit = dot(w, x, args->x_dtype, args->head.n_col);
            if (pass == 0)
                max = fmaxf(max, logit);
            else
                sum += exp((double)logit - max);
            if (r == args->target[t]) target = logit;
        }
    return (float)(target - max - log(sum));
}

enum status reference_logprob(struct backend *backend, const struct logprob_args *args) {
    (void)backend;
    float *w;
    TRY(row_buffer(args->head.n_col, &w));
    for (int64_t t = 0; t < args->n_token; t++) args->logprob[t] = target_logprob(args, t, w);
    free(w);
    return OK;
}
