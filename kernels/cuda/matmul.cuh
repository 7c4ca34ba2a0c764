// Products with the scratch handed in, for operations that need scratch of their own beside them.
#ifndef HALKA_KERNELS_CUDA_MATMUL_CUH
#define HALKA_KERNELS_CUDA_MATMUL_CUH

#include "kernels/cuda/cuda.cuh"

// Bytes of scratch that matmul_run needs for these arguments.
int64_t matmul_room_bytes(const struct matmul_args *args);
// `room` is 256-byte aligned. Queues the product; nothing is allocated.
enum status matmul_run(struct backend *backend, const struct matmul_args *args, void *room);
// Scratch that products side by side may take together, as planned.
int64_t matmul_lane_bytes(void);

// Whether cuBLAS takes the weight as it lies for inputs of this type: no expansion.
bool matmul_takes_weight(const struct weight *weight, enum dtype x_dtype);
// Rows of a panel of expanded weights: a multiple of 128 within the bytes of one.
int64_t matmul_panel_rows(int64_t n_col, enum dtype dtype);
// Elements from one row of a panel to the next, so that rows begin at multiples of 16 bytes.
int64_t matmul_panel_stride(int64_t n_col);
// Expands rows into `room`, [n_row, stride] of the product's type.
enum status matmul_expand(struct backend *backend, const struct weight *rows, enum dtype dtype,
                          void *room, struct weight *out);

// matmul_short.cu: few tokens, the weights read once in their own format.
enum { SHORT_TOKENS = 8 };
bool matmul_is_short(const struct matmul_args *args);
enum status matmul_run_short(struct backend *backend, const struct matmul_args *args);
// Up to so many of them in one launch, for one token each: `joins` says which go together.
enum { MOST_JOINT = 24 };
bool matmul_joins(const struct matmul_args *args, const struct matmul_args *first);
enum status matmul_run_joint_short(struct backend *backend, const struct matmul_args *product,
                                   int n_product);
// Several, at least one, whose weights have one shape and format and whose x has one type: one
// launch. Each is as matmul_run_short's.
enum status matmul_run_each_short(struct backend *backend, const struct matmul_args *args,
                                  int n_product);

#endif
