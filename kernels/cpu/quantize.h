// Quantisation to fp8 e4m3 in blocks: the loops over blocks [begin, end) for one instruction set;
// quantize.c splits the blocks over the threads. Bit for bit what kernels/fp8.h defines.
#ifndef HALKA_KERNELS_CPU_QUANTIZE_H
#define HALKA_KERNELS_CPU_QUANTIZE_H

#include "kernels/sparse.h"

void quantize_blocks_plain(const struct quantize_args *args, int64_t begin, int64_t end);
void quantize_blocks_avx2(const struct quantize_args *args, int64_t begin, int64_t end);
void quantize_blocks_avx512(const struct quantize_args *args, int64_t begin, int64_t end);

#endif
