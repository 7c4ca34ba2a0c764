// Attention on a GPU: describes the work, finds the keys that each query sees, chooses the kernel
// and cuts the keys into ranges where tiles of rows are too few to fill the device.
#include "kernels/cuda/attention.cuh"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/visible_keys.h"

// Best first; the first that fits is taken.
static const struct attention_kernel kernels[] = {
    {"wgmma 64", 90, 90, 64, 64, false, ATTENTION_WGMMA_ROWS, ATTENTION_WGMMA_ROWS,
     attention_wgmma_64},
    {"wgmma 128", 90, 90, 128, 128, false, ATTENTION_WGMMA_ROWS, ATTENTION_WGMMA_ROWS,
     attention_wgmma_128},
    {"wgmma 192/128", 90, 90, 192, 128, false, ATTENTION_WGMMA_ROWS, ATTENTION_WGMMA_ROWS,
     attention_wgmma_192},
    {"wgmma 256", 90, 90, 256, 256, false, ATTENTION_WGMMA_ROWS, ATTENTION_WGMMA_ROWS,
     attention_wgmma_256},
    {"wgmma latent, pairs", 90, 90, 576, 512, true, ATTENTION_WGMMA_LATENT_ROWS + 1,
     2 * ATTENTION_WGMMA_LATENT_ROWS, attention_wgmma_latent_pair, ATTENTION_WGMMA_LATENT_BYTES,
     ATTENTION_WGMMA_LATENT_WAVE / 2},
    {"wgmma latent", 90, 90, 576, 512, true, 1, ATTENTION_WGMMA_LATENT_ROWS, attention_wgmma_latent,
     ATTENTION_WGMMA_LATENT_BYTES, ATTENTION_WGMMA_LATENT_WAVE},
    {"mma 64", 80, 0, 64, 64, false, 1, ATTENTION_MMA_ROWS, attention_mma_64},
    {"mma 96", 80, 0, 96, 96, false, 1, ATTENTION_MMA_ROWS, attention_mma_96},
    {"mma 128", 80, 0, 128, 128, false, 1, ATTENTION_MMA_ROWS, attention_mma_128},
    {"mma 192/128", 80, 0, 192, 128, false, 1, ATTENTION_MMA_ROWS, attention_mma_192,
     ATTENTION_MMA_192_BYTES},
    {"mma 256", 80, 0, 256, 256, false, 1, ATTENTION_MMA_ROWS, attention_mma_256},
    {"mma latent", 90, 0, 576, 512, true, 1, ATTENTION_MMA_ROWS, attention_mma_latent,
     ATTENTION_MMA_LATENT_BYTES},
    {"plain", 0, 0, 0, 0, false, 1, ATTENTION_PLAIN_ROWS, attention_plain_launch},
};

static bool is_aligned(const void *base, int64_t stride) {
    return (uintptr_t)base % 16 == 0 && stride % 8 == 0;
}

static bool fits(const struct attention_kernel *k, const struct cuda_state *state,
                 const struct attention_args *a) {
    if (state->architecture < k->architecture) return false;
    if (k->most_architecture && state->architecture > k->most_architecture) return false;
    if (k->head_dim == 0) return true;
    if (k->shared_bytes > state->shared_bytes) return false;
    if (k->value_in_key && (a->value != a->key || a->value_stride != a->key_stride)) return false;
    return k->head_dim == a->head_dim && k->value_dim == a->value_dim && a->n_key > 0 &&
           a->n_query * (a->n_head / a->n_kv_head) >= k->fewest_row &&
           a->query_dtype == DTYPE_BF16 && a->kv_dtype == DTYPE_BF16 &&
           is_aligned(a->query, a->query_stride) && is_aligned(a->key, a->key_stride) &&
           is_aligned(a->value, a->value_stride);
}

// [n_query] begins, then ends.
static enum status stage_visible(struct backend *backend, const struct attention_args *a,
                                 struct attention_work *w) {
    int *begin = (int *)malloc(2 * (size_t)a->n_query * sizeof *begin), *end = begin + a->n_query;
    if (!begin)
        FAIL(ERR_MEMORY, "no memory for the visibility of %lld queries", (long long)a->n_query);
    int64_t last_begin = visible_sinks(a), last_end = 0;
    w->n_sink = (int)last_begin;
    for (int64_t i = 0; i < a->n_query; i++) {
        begin[i] = (int)(last_begin = visible_begin(a, i, last_begin));
        end[i] = (int)(last_end = visible_end(a, i, last_end));
    }
    const void *staged = NULL;
    enum status status =
        cuda_stage(backend, begin, 2 * a->n_query * (int64_t)sizeof *begin, &staged);
    w->begin = (const int *)staged;
    w->end = w->begin + a->n_query;
    free(begin);
    return status;
}

// Of one query, as in most steps of decoding: nothing is staged then.
static bool sees_every_key(const struct attention_args *a) {
    return a->n_query == 1 && visible_sinks(a) == 0 && visible_begin(a, 0, 0) == 0 &&
           visible_end(a, 0, 0) == a->n_key;
}

static int near_heads(const struct attention_args *a) {
    int64_t bytes = dtype_bytes(a->kv_dtype, a->n_key * (a->head_dim + a->value_dim)); // of a head
    if (bytes * a->n_kv_head <= ATTENTION_NEAR_BYTES) return a->n_kv_head;
    return bytes < ATTENTION_NEAR_BYTES ? (int)(ATTENTION_NEAR_BYTES / bytes) : 1;
}

enum status attention_describe(struct backend *backend, const struct attention_args *a,
                               struct attention_work *out) {
    if (a->head_dim % 8 || a->head_dim < 8 || a->head_dim > ATTENTION_MAX_DIM || a->value_dim % 8 ||
        a->value_dim < 8 || a->value_dim > ATTENTION_MAX_DIM || a->n_head % a->n_kv_head)
        FAIL(ERR_INTERNAL, "attention of %d/%d heads, dimensions %d and %d is not supported",
             a->n_head, a->n_kv_head, a->head_dim, a->value_dim);
    if (a->n_key > INT_MAX - ATTENTION_SPLIT_MULTIPLE)
        FAIL(ERR_INTERNAL, "attention of %lld keys in one block", (long long)a->n_key);
    struct attention_work w = {};
    w.query_dtype = a->query_dtype;
    w.kv_dtype = a->kv_dtype;
    w.query = a->query;
    w.key = a->key;
    w.value = a->value;
    w.query_stride = a->query_stride;
    w.key_stride = a->key_stride;
    w.value_stride = a->value_stride;
    w.n_key = (int)a->n_key;
    w.n_head = a->n_head;
    w.n_kv_head = a->n_kv_head;
    w.group = a->n_head / a->n_kv_head;
    w.near_heads = near_heads(a);
    w.head_dim = a->head_dim;
    w.value_dim = a->value_dim;
    w.n_query = a->n_query;
    w.n_row = a->n_query * w.group;
    w.score_scale = (float)((double)a->scale * M_LOG2E);
    w.out = a->out;
    w.lse = a->lse;
    w.merge = a->merge;
    w.n_split = 1;
    w.split_key = w.n_key;
    w.split_rows = 1;
    if ((a->first_visible || a->end_visible) && a->n_query > 0 && !sees_every_key(a))
        TRY(stage_visible(backend, a, &w));
    *out = w;
    return OK;
}

// Ranges of keys, so that there are blocks enough to fill any device, or just enough to fill the
// only one that the kernel is for.
static void split_keys(const struct attention_args *a, const struct attention_kernel *kernel,
                       struct attention_work *w) {
    int64_t n_block = divide_up(w->n_row, kernel->row_tile) * w->n_kv_head;
    w->split_rows = kernel->row_tile;
    if (n_block >= ATTENTION_MIN_BLOCK) return;
    int64_t longest = visible_longest(a, kernel->row_tile), n = longest / ATTENTION_MIN_SPLIT_KEY;
    int64_t most = divide_up(ATTENTION_MIN_BLOCK, n_block);
    if (2 * n_block <= kernel->wave) most = kernel->wave / n_block;
    if (n > most) n = most;
    if (n <= 1) return;
    w->split_key =
        (int)divide_up(divide_up(longest, n), ATTENTION_SPLIT_MULTIPLE) * ATTENTION_SPLIT_MULTIPLE;
    w->n_split = (int)divide_up(longest, w->split_key);
}

static int64_t partial_bytes(int64_t n_row, int value_dim) {
    return n_row * (value_dim + 1) * (int64_t)sizeof(float);
}
static int64_t n_spoiled_tile(const struct attention_work *w) {
    return divide_up(w->n_row, ATTENTION_SPOILED_ROWS) * w->n_kv_head * w->n_split;
}

// Whether a tile may hold values of keys that one of its rows does not see. Those of a single query
// begin where it begins to see, and end at its end or with the keys.
static bool may_be_spoiled(const struct attention_args *a, const struct attention_work *w) {
    return w->end && (a->n_query > 1 || w->n_sink > 0 || visible_end(a, 0, 0) < a->n_key);
}

// Runs the kernel, then the plain one on the tiles that hidden values spoiled.
static enum status launch_both(struct backend *backend, const struct attention_args *a,
                               const struct attention_kernel *kernel, struct attention_work *w,
                               void *marks) {
    if (kernel->launch == attention_plain_launch || !may_be_spoiled(a, w))
        return kernel->launch(backend, w);
    w->spoiled = (int *)marks;
    TRY_CUDA(cudaMemsetAsync(marks, 0, (size_t)n_spoiled_tile(w) * sizeof(int),
                             cuda_state(backend)->compute));
    TRY(kernel->launch(backend, w));
    w->only_spoiled = true;
    return attention_plain_launch(backend, w);
}

enum status cuda_attention(struct backend *backend, const struct attention_args *args) {
    struct attention_work work;
    TRY(attention_describe(backend, args, &work));
    if (args->n_query == 0) return OK;
    const struct attention_kernel *kernel = kernels;
    while (!fits(kernel, cuda_state(backend), args)) kernel++;
    split_keys(args, kernel, &work);
    int64_t n_partial = work.n_split > 1 ? work.n_split * args->n_query * args->n_head : 0;
    int64_t partials_bytes = partial_bytes(n_partial, args->value_dim);
    int64_t marks_bytes = n_spoiled_tile(&work) * (int64_t)sizeof(int);
    void *room = NULL;
    TRY(cuda_scratch(backend, partials_bytes + marks_bytes, &room));
    void *marks = (char *)room + partials_bytes;
    if (work.n_split == 1) return launch_both(backend, args, kernel, &work, marks);
    work.out = (float *)room;
    work.lse = work.out + n_partial * args->value_dim;
    work.merge = false;
    TRY(launch_both(backend, args, kernel, &work, marks));
    return attention_merge_parts(backend, args, work.n_split, work.out, work.lse);
}

// Ranges exist while there are fewer than ATTENTION_MIN_BLOCK blocks of rows, and at most twice
// that many blocks come of it.
int64_t cuda_attention_scratch_bytes(const struct cuda_state *state,
                                     const struct scratch_shape *shape) {
    (void)state;
    int64_t n_split = shape->n_key / ATTENTION_MIN_SPLIT_KEY;
    if (n_split > ATTENTION_MIN_BLOCK) n_split = ATTENTION_MIN_BLOCK;
    int64_t n_row = shape->n_token * shape->n_head * n_split;
    int64_t most = 2 * ATTENTION_MIN_BLOCK * (int64_t)ATTENTION_MOST_ROW_TILE;
    int64_t n_mark = shape->n_token * shape->n_head / ATTENTION_SPOILED_ROWS + shape->n_head +
                     most / ATTENTION_SPOILED_ROWS;
    return partial_bytes(n_row < most ? n_row : most, shape->value_dim) +
           n_mark * (int64_t)sizeof(int);
}
