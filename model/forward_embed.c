// Embedding rows of tokens into the residual x.
#include <stdlib.h>

#include "model/forward.h"

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
#pragma omp parallel for
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
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}
