// Attention over selected rows: which form and how many parts. Forms for tensor cores mark blocks
// that the plain form attends again.
#include "kernels/cuda/sparse_attention.cuh"

namespace {

enum { LEAST_PART = 256 }; // rows
enum { MOST_ROWS = 64 };   // queries times heads of a block

// The first that takes the shape, in this order; the plain form takes all.
const struct {
    sparse_attention_rows *rows;
    sparse_attention_launch *launch;
} forms[] = {{sparse_attention_wgmma_rows, sparse_attention_wgmma},
             {sparse_attention_mma_rows, sparse_attention_mma}};

sparse_attention_launch *choose_form(const struct cuda_state *state, const struct attention_args *a,
                                     int *rows) {
    for (const auto &form : forms) {
        *rows = form.rows(state, a);
        if (*rows > 0) return form.launch;
    }
    return sparse_attention_plain;
}

// As many parts as fill the device twice, none of them tiny.
int count_parts(const struct cuda_state *state, int64_t n_block, int k) {
    int64_t wanted = 2 * state->n_multiprocessor / max(n_block, (int64_t)1);
    return (int)max((int64_t)1, min(wanted, (int64_t)k / LEAST_PART));
}

} // namespace

enum status cuda_sparse_attention(struct backend *backend,
                                  const struct sparse_attention_args *args) {
    const struct attention_args *a = &args->attention;
    int64_t n_row = a->n_query * a->n_head;
    if (n_row == 0) return OK;
    const struct cuda_state *state = cuda_state(backend);
    struct sparse_parts parts = {1, a->out, a->lse, false, NULL, 0};
    sparse_attention_launch *launch = choose_form(state, a, &parts.rows);
    int64_t n_block = parts.rows > 0 ? sparse_blocks(a, parts.rows) : n_row;
    parts.n_part = count_parts(state, n_block, args->k);
    int64_t n_float = parts.n_part > 1 ? parts.n_part * n_row * (a->value_dim + 1) : 0;
    void *scratch;
    TRY(cuda_scratch(backend, (n_float + parts.n_part * n_block) * 4, &scratch));
    parts.spoiled = (int *)scratch + n_float;
    parts.merge = a->merge && parts.n_part == 1;
    if (parts.n_part > 1) {
        parts.out = (float *)scratch;
        parts.lse = parts.out + parts.n_part * n_row * a->value_dim;
    }
    TRY(launch(backend, args, &parts));
    if (parts.rows > 0) TRY(sparse_attention_again(backend, args, &parts));
    if (parts.n_part == 1) return OK;
    return attention_merge_parts(backend, a, parts.n_part, parts.out, parts.lse);
}

int64_t sparse_attention_scratch_bytes(const struct cuda_state *state,
                                       const struct scratch_shape *s) {
    int64_t most = 0; // n_part * n_block is at most this, and n_part at most that
    int64_t blocks = 2 * state->n_multiprocessor, n_part = s->index_k / LEAST_PART;
    if (n_part > 1) most = min(blocks * MOST_ROWS, n_part * s->n_token * s->n_head);
    int64_t marks = max(blocks, s->n_token * s->n_head);
    return (most * (s->value_dim + 1) + marks) * 4;
}
