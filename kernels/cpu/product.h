// What cpu_matmul and cpu_logprob share. Long inputs multiply through oneDNN, which wants plain
// weights: a panel of rows at a time is expanded into scratch. Short ones multiply the blocks.
#ifndef HALKA_KERNELS_CPU_PRODUCT_H
#define HALKA_KERNELS_CPU_PRODUCT_H

#include "kernels/cpu/cpu.h"

#define PRODUCT_PANEL_BYTES (32 << 20) // of expanded weights: oneDNN slows down below 1000 rows
#define PRODUCT_TOKENS 2048            // per oneDNN call: one cached shape however long the input

// BF16 only where the input is and the processor multiplies it; else F32.
enum dtype product_dtype(const struct backend *backend, enum dtype x_dtype);
// Whether so few tokens multiply the blocks directly. Such inputs must be fp32.
bool product_is_short(int64_t n_token);
int64_t product_panel_rows(int64_t n_col);

// `rows` itself when oneDNN can read it as it is, else expanded into `room` with all threads.
struct weight product_expand(const struct cpu_state *state, struct weight rows, enum dtype dtype,
                             void *room);
static inline bool product_needs_room(struct weight rows, enum dtype dtype) {
    return rows.dtype != dtype || rows.row_bytes % dtype_info[dtype].block_bytes != 0;
}
// BF16 rows to fp32 [n_token, n_col] in `room` where the product is fp32; otherwise x itself.
const void *product_input(const struct cpu_state *state, const struct matmul_args *args,
                          enum dtype product, float *room, int64_t *stride);
// out[n_token, rows of weight] for a short fp32 input.
void product_short(const struct cpu_state *state, const struct matmul_args *args);

#endif
