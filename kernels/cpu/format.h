// Rows of weights in any format: expansion and dot products, one table per instruction set.
#ifndef HALKA_KERNELS_CPU_FORMAT_H
#define HALKA_KERNELS_CPU_FORMAT_H

#include "kernels/dtype.h"

struct format_ops {
    void (*to_float)(enum dtype dtype, const void *row, int64_t n, float *out);
    void (*to_bf16)(enum dtype dtype, const void *row, int64_t n, bf16 *out);
    // out[t] = sum over i < n of row[i] * x[t * x_stride + i]; the row is read once per 4 tokens.
    void (*dot)(enum dtype dtype, const void *row, int64_t n, const float *x, int64_t x_stride,
                int n_token, float *out);
};

extern const struct format_ops format_plain, format_avx2, format_avx512;

#endif
