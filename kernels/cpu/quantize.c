// Splits blocks over the threads; the loops are quantize_body.h's.
#include "kernels/cpu/quantize.h"

#include "kernels/cpu/cpu.h"

#define PART_ELEMENTS 8192 // of a thread at least: less is not worth waking it

enum status cpu_quantize(struct backend *backend, const struct quantize_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    void (*blocks)(const struct quantize_args *, int64_t, int64_t) =
        state->isa >= ISA_AVX512 ? quantize_blocks_avx512
        : state->isa >= ISA_AVX2 ? quantize_blocks_avx2
                                 : quantize_blocks_plain;
    int64_t n_block = args->n_row * (args->n_col / args->block);
    int64_t n_worth = n_block * args->block / PART_ELEMENTS;
    int n_part = (int)max64(1, min64(n_worth, state->n_thread));
#pragma omp parallel for num_threads(n_part) schedule(static) if (n_part > 1)
    for (int part = 0; part < n_part; part++)
        blocks(args, n_block * part / n_part, n_block * (part + 1) / n_part);
    return OK;
}
