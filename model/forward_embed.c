// Embedding rows of tokens into the residual x.
#include <stdlib.h>

#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

// Where weights are sharded over devices no device holds the table: rows are read in the mapped
// checkpoint, a tile at a time.
static enum status embed_from_host(struct forward *f, const int32_t *token, int64_t n, float *x) {
    const struct weight *table = &f->weights.embedding;
    int64_t hidden = f->spec->n_hidden, tile = n < f->buffers.tile ? n : f->buffers.tile;
    enum status status = OK;
    float *rows = malloc((size_t)(tile * hidden) * sizeof *rows + 1);
    if (!rows) FAIL(ERR_MEMORY, "no memory for %lld embeddings", (long long)tile);
    for (int64_t first = 0; first < n && status == OK; first += tile) {
        int64_t count = n - first < tile ? n - first : tile;
#pragma omp parallel for if (count > FEW_TOKENS)
        for (int64_t i = 0; i < count; i++) {
            float *row = rows + i * hidden;
            weight_row_to_float(table, token[first + i], row);
            for (int64_t j = 0; j < hidden; j++) row[j] *= f->spec->embedding_scale;
        }
        status = OPS(f)->upload(f->backend, x + first * hidden, rows,
                                count * hidden * (int64_t)sizeof *rows);
        if (status == OK) status = OPS(f)->sync(f->backend);
    }
    free(rows);
    return status;
}

// x += the tokens' learned positions, a tile at a time.
static enum status add_positions(struct forward *f, int64_t n) {
    const struct forward_buffers *b = &f->buffers;
    int64_t hidden = f->spec->n_hidden;
    const struct weight table = {.data = f->weights.position,
                                 .dtype = DTYPE_F32,
                                 .n_row = f->spec->n_position,
                                 .n_col = hidden,
                                 .row_bytes = hidden * (int64_t)sizeof(float)};
    for (int64_t row = 0; row < n; row += b->tile) {
        int64_t count = n - row < b->tile ? n - row : b->tile;
        TRY(OPS(f)->embed(f->backend, &(struct embed_args){.table = table,
                                                           .token = b->position + row,
                                                           .n_token = count,
                                                           .scale = 1,
                                                           .out = b->branch}));
        TRY(forward_add(f, b->x + row * hidden, b->branch, count * hidden));
    }
    return OK;
}

enum status forward_embed(struct forward *f, const int32_t *token, int64_t n) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    if (f->weights.embedding_on_host)
        TRY(embed_from_host(f, token, n, f->buffers.x));
    else
        TRY(OPS(f)->embed(f->backend, &(struct embed_args){.table = f->weights.embedding,
                                                           .token = f->buffers.token,
                                                           .n_token = n,
                                                           .scale = f->spec->embedding_scale,
                                                           .out = f->buffers.x}));
    if (f->spec->n_position) TRY(add_positions(f, n));
    profile_end(f->profile, PHASE_OTHER, begun);
    return forward_hidden_norm(f, 0, f->buffers.x, n, f->weights.embedding_norm,
                               f->weights.embedding_norm_bias, f->buffers.x, DTYPE_F32);
}
