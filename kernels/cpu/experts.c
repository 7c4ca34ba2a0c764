// Experts on the processor: each group of rows is a product of its own; sums keep the reference's
// order, tokens are shared by the threads.
#include "kernels/experts.h"

#include "kernels/cpu/cpu.h"

enum { PARALLEL_ELEMENTS = 16384 }; // less work than this is not worth waking the threads

enum status cpu_grouped_matmul(struct backend *backend, const struct grouped_matmul_args *args) {
    for (int g = 0; g < args->n_group; g++) {
        const struct weight *w = &args->weight[g];
        int64_t first = args->first_row[g];
        const struct matmul_args product = {.x = (const char *)args->x +
                                                 dtype_bytes(args->x_dtype, first * w->n_col),
                                            .x_dtype = args->x_dtype,
                                            .x_stride = w->n_col,
                                            .n_token = args->first_row[g + 1] - first,
                                            .weight = *w,
                                            .out = args->out + first * w->n_row,
                                            .out_dtype = DTYPE_F32,
                                            .out_stride = w->n_row};
        if (product.n_token > 0) TRY(cpu_matmul(backend, &product));
    }
    return OK;
}

static void combine_token(const struct expert_combine_args *args, int64_t t) {
    float *out = args->out + t * args->n_col;
    for (int j = 0; j < args->n_used; j++) {
        int64_t row = args->row ? args->row[t * args->n_used + j] : t * args->n_used + j;
        float weight = args->weight[t * args->n_used + j];
        if (row < 0) continue;
        const float *x = args->x + row * args->n_col;
        for (int64_t i = 0; i < args->n_col; i++) out[i] += weight * x[i];
    }
}

enum status cpu_expert_combine(struct backend *backend, const struct expert_combine_args *args) {
#pragma omp parallel for num_threads(cpu_state(backend)->n_thread)                                 \
    schedule(static) if (args->n_token * args->n_used * args->n_col > PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < args->n_token; t++) combine_token(args, t);
    return OK;
}
