#include <stdlib.h>

#include "model/session_internal.h"

// *length: tokens of a document, by which all of them are rotated.
static enum status check_documents(const struct model_spec *spec, const struct encode_args *args,
                                   int64_t *length) {
    int64_t begin = 0;
    *length = args->n_document ? args->document_end[0] : args->n;
    for (int i = 0; i < args->n_document; i++) {
        if (args->document_end[i] <= begin || args->document_end[i] > args->n)
            FAIL(ERR_INTERNAL, "packed document %d ends at token %lld of %lld", i,
                 (long long)args->document_end[i], (long long)args->n);
        int64_t n = args->document_end[i] - begin;
        if (!model_spec_rotates_alike(spec, n, *length))
            FAIL(ERR_CONFIG,
                 "documents of %lld and %lld tokens cannot be packed: this network rotates by a "
                 "document's length",
                 (long long)n, (long long)*length);
        begin = args->document_end[i];
    }
    if (args->n_document && begin != args->n)
        FAIL(ERR_INTERNAL, "the packed documents end at token %lld of %lld", (long long)begin,
             (long long)args->n);
    return OK;
}

// The states of the chunk's tokens, normed in place, to the caller. `tile`: where the host cannot
// read the backend's memory, room for a tile.
static enum status deliver_states(struct session *s, const struct encode_args *args,
                                  const struct forward_chunk *chunk, float *tile) {
    struct forward *f = &s->forward;
    int64_t n = chunk->n_token, hidden = f->spec->n_hidden, step = f->buffers.tile;
    for (int64_t row = 0; row < n; row += step) {
        int64_t count = n - row < step ? n - row : step;
        float *states = f->buffers.x + row * hidden;
        TRY(forward_final_norm(f, row, count, states, DTYPE_F32));
        if (tile) {
            TRY(BACKEND(s)->ops->download(BACKEND(s), tile, states,
                                          count * hidden * (int64_t)sizeof *states));
            TRY(profile_sync(s->forward.profile, BACKEND(s)));
        }
        TRY(args->states(args->user, s->position + row, count, tile ? tile : states));
    }
    return OK;
}

static enum status encode(struct session *s, const struct encode_args *args, float *tile) {
    for (int64_t done = 0; done < args->n;) {
        int64_t n = args->n - done < s->sizes.chunk ? args->n - done : s->sizes.chunk;
        struct forward_chunk chunk = {.n_document = args->n_document,
                                      .document_end = args->document_end};
        TRY(session_prefill_chunk(s, args->token + done, n, &chunk));
        TRY(deliver_states(s, args, &chunk, tile));
        TRY(profile_sync(s->forward.profile, BACKEND(s)));
        profile_sample_memory(s->forward.profile);
        done += n;
        if (args->progress) args->progress(args->user, done);
    }
    return OK;
}

// Sinks are the first tokens of the sequence, not of each document, an indexer's candidates are all
// tokens before, and parts of attention are by positions in the sequence.
bool session_packs(const struct session *s) {
    const struct model_spec *spec = s->forward.spec;
    if (s->forward.indexed) return false;
    for (int i = 0; i < spec->n_layer; i++)
        if (spec->layers[i].window > 0 && spec->layers[i].sinks > 0) return false;
    return spec->n_part == 0;
}

enum status session_encode(struct session *s, const struct encode_args *args) {
    float *tile = NULL;
    int64_t length;
    TRY(check_documents(s->forward.spec, args, &length));
    if (args->n_document > 1 && !session_packs(s))
        FAIL(ERR_CONFIG, "documents cannot be packed for this network: encode them one by one");
    TRY(session_truncate(s, 0));
    TRY(session_set_length(s, length));
    TRY(session_check_tokens(s, args->token, args->n));
    if (BACKEND(s)->memory == MEMORY_DEVICE) {
        tile = malloc((size_t)(s->sizes.tile * s->forward.spec->n_hidden) * sizeof *tile);
        if (!tile)
            FAIL(ERR_MEMORY, "no memory for the states of %lld tokens", (long long)s->sizes.tile);
    }
    enum status status = encode(s, args, tile);
    free(tile);
    s->last_position = -1;
    return status;
}
