// The one merge of partial results (out, lse) over different keys. A row costs two exponentials and
// a pass over its values for each that joins, which the compiler vectorises: memory is the limit.
#include "kernels/cpu/cpu.h"
#include "kernels/merge_weights.h"

enum { PARALLEL_FLOATS = 1 << 15 }; // fewer take one thread less time than waking the others

// A partial that saw no key (-inf) leaves the other bit for bit; its out is not read.
static void merge_row(int value_dim, float *restrict out, float *lse, const float *restrict other,
                      float other_lse) {
    if (other_lse == -INFINITY) return;
    struct merge_weights w = merge_weigh(*lse, other_lse);
    *lse = w.lse;
    if (w.held < 0)
        memcpy(out, other, (size_t)value_dim * sizeof *out);
    else
        for (int i = 0; i < value_dim; i++) out[i] = w.held * out[i] + w.added * other[i];
}

static void merge_others(const struct merge_args *args, int64_t row) {
    int64_t at = row * args->value_dim;
    float *out = args->out + at, *lse = &args->lse[row];
    if (!args->merge) *lse = -INFINITY;
    for (int other = 0; other < args->n_other; other++) {
        int64_t first = other * args->other_stride;
        merge_row(args->value_dim, out, lse, args->other_out + first + at,
                  args->other_lse[first + row]);
    }
    if (!args->merge && *lse == -INFINITY) memset(out, 0, (size_t)args->value_dim * sizeof *out);
}

enum status cpu_merge_partials(struct backend *backend, const struct merge_args *args) {
#pragma omp parallel for num_threads(                                                              \
    cpu_state(backend)->n_thread) if (args->n_row * args->value_dim * max64(args->n_other, 1) >=   \
                                      PARALLEL_FLOATS)
    for (int64_t row = 0; row < args->n_row; row++) merge_others(args, row);
    return OK;
}
