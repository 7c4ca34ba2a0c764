// Products of plain matrices with oneDNN: out = x W^T. Creating a primitive is slow, so they are
// kept by shape. oneDNN must not see bf16 on a processor without bf16 products: it emulates them.
#ifndef HALKA_KERNELS_CPU_GEMM_H
#define HALKA_KERNELS_CPU_GEMM_H

#include "kernels/kernels.h"

struct gemm;

struct gemm_args {
    int64_t n_token, n_row, n_col;
    int64_t x_stride, weight_stride, out_stride; // elements between rows
    enum dtype dtype;                            // of x and weight: F32 or BF16
    enum dtype out_dtype;                        // F32, or BF16 when dtype is BF16
    bool accumulate;
    const void *x, *weight;
    const float *bias; // [n_row] or NULL
    void *out;
};

// `isa` limits oneDNN too, unless a product ran earlier in this process.
enum status gemm_open(enum isa isa, struct gemm **out);
bool gemm_has_bf16(void); // bf16 products within the limit
enum status gemm_run(struct gemm *gemm, const struct gemm_args *args);
void gemm_close(struct gemm **gemm);

#endif
