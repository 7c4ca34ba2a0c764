// Operations on lists of candidates: merge, filter, and the rows of a block that they name. Queries
// are spread over the threads.
#include <omp.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/index_select.h"

#define THREAD_CANDIDATES 8192 // of a thread at least: fewer are not worth waking it

static int count_threads(const struct cpu_state *state, int64_t n_query, int64_t k) {
    return (int)max64(1, min64(min64(n_query, state->n_thread), n_query * k / THREAD_CANDIDATES));
}

// `all` has room for two lists.
static void merge_query(const struct index_merge_args *args, int64_t t, uint64_t *all) {
    uint64_t *kept = args->candidate + t * args->k;
    int32_t n = args->merge ? args->n_candidate[t] : 0;
    for (int list = 0; list < args->n_list; list++) {
        int64_t row = list * args->n_query + t;
        const uint64_t *other = args->other + row * args->k;
        int32_t n_other = args->n_other[row];
        if (n + n_other <= args->k) {
            memcpy(kept + n, other, (size_t)n_other * sizeof *all);
            n += n_other;
            continue;
        }
        memcpy(all, kept, (size_t)n * sizeof *all);
        memcpy(all + n, other, (size_t)n_other * sizeof *all);
        index_select(all, n + n_other, args->k);
        memcpy(kept, all, (size_t)args->k * sizeof *all);
        n = args->k;
    }
    args->n_candidate[t] = n;
    if (args->threshold) args->threshold[t] = n == args->k ? index_smallest(kept, n) : 0;
}

enum status cpu_index_merge(struct backend *backend, const struct index_merge_args *args) {
    int n_thread = count_threads(cpu_state(backend), args->n_query, args->k);
    void *all;
    TRY(cpu_scratch(backend, n_thread * cpu_index_merge_thread_bytes(args->k), &all));
#pragma omp parallel for num_threads(n_thread) schedule(static) if (n_thread > 1)
    for (int64_t t = 0; t < args->n_query; t++) {
        int64_t at = omp_get_thread_num() * cpu_index_merge_thread_bytes(args->k);
        merge_query(args, t, cpu_scratch_at(all, at));
    }
    return OK;
}

enum status cpu_index_filter(struct backend *backend, const struct index_filter_args *args) {
#pragma omp parallel for schedule(static)                                                          \
    num_threads(count_threads(cpu_state(backend), args->n_query, args->k))
    for (int64_t t = 0; t < args->n_query; t++) {
        uint64_t *kept = args->candidate + t * args->k, threshold = args->threshold[t];
        int32_t n = 0;
        for (int32_t i = 0; i < args->n_candidate[t]; i++) {
            uint64_t candidate = kept[i];
            kept[n] = candidate;
            n += candidate >= threshold;
        }
        args->n_candidate[t] = n;
    }
    return OK;
}

// `marked` has one bit for each row of the block, all 0 here and on return.
static void select_query(const struct select_rows_args *args, int64_t t, uint64_t *marked) {
    const uint64_t *candidate = args->candidate + t * args->k;
    int32_t *row = args->row + t * args->k, n = 0;
    int64_t first = args->n_row, last = 0;
    for (int32_t i = 0; i < args->n_candidate[t]; i++) {
        int64_t at = key_run_row(args->run, args->n_run, candidate_position(candidate[i]));
        if (at < 0) continue;
        marked[at / 64] |= (uint64_t)1 << at % 64;
        first = min64(first, at);
        last = max64(last, at);
    }
    for (int64_t word = first / 64; word <= last / 64; word++) {
        for (uint64_t bits = marked[word]; bits; bits &= bits - 1)
            row[n++] = (int32_t)(word * 64 + __builtin_ctzll(bits));
        marked[word] = 0;
    }
    args->n_selected[t] = n;
}

enum status cpu_select_rows(struct backend *backend, const struct select_rows_args *args) {
    int n_thread = count_threads(cpu_state(backend), args->n_query, args->k);
    int64_t thread_bytes = cpu_select_rows_thread_bytes(args->n_row);
    void *marked;
    TRY(cpu_scratch(backend, n_thread * thread_bytes, &marked));
    memset(marked, 0, (size_t)(n_thread * thread_bytes));
#pragma omp parallel for num_threads(n_thread) schedule(static) if (n_thread > 1)
    for (int64_t t = 0; t < args->n_query; t++)
        select_query(args, t, cpu_scratch_at(marked, omp_get_thread_num() * thread_bytes));
    return OK;
}
