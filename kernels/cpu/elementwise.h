// Operations on rows without products between rows. The table holds the loops over rows
// [begin, end) for one instruction set; elementwise.c splits the rows over the threads.
#ifndef HALKA_KERNELS_CPU_ELEMENTWISE_H
#define HALKA_KERNELS_CPU_ELEMENTWISE_H

#include "kernels/cpu/cpu.h"

#define ELEMENTWISE_HEAD_MAX 512 // largest head_dim of rope

struct elementwise_ops {
    void (*norm)(const struct norm_args *args, int64_t begin, int64_t end);
    void (*rope)(const struct rope_args *args, int64_t begin, int64_t end);
    void (*gate)(const struct gate_args *args, int64_t begin, int64_t end);
    void (*convert)(const struct convert_args *args, int64_t begin, int64_t end);
    float (*max)(const float *x, int64_t n);
    float (*exp_sum)(const float *x, int64_t n, float shift); // sum of exp(x[i] - shift)
};

extern const struct elementwise_ops elementwise_plain, elementwise_avx2, elementwise_avx512;

void elementwise_convert(const struct cpu_state *state, const struct convert_args *args);

#endif
