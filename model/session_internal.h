// A session's insides, shared by what appends (session.c) and what encodes (session_encode.c).
#ifndef HALKA_MODEL_SESSION_INTERNAL_H
#define HALKA_MODEL_SESSION_INTERNAL_H

#include "model/digest.h"
#include "model/plan.h"

struct session {
    struct forward forward;
    struct session_sizes sizes;
    struct session_options options;
    struct sequence sequence;
    void *arena;           // forward.buffers live in it
    int64_t *position;     // host, [most tokens of this rank's shard]
    int32_t *token;        // host, [n_token]
    float *gathered;       // host, [n_all]; NULL where sizes.encode_only
    int64_t last_position; // whose normed state buffers.last_hidden holds; -1: none
    int64_t n_zero;        // of forward.zeros
    bool mass_on;
    // The first n tokens are on disk as the context of this manifest (context_save.c); 0: none are.
    struct {
        char manifest[DIGEST_BYTES];
        int64_t n;
    } stored;
    struct selection_study study; // open when options.study and some layer selects
};

#define BACKEND(s) ((s)->forward.backend)

// Refuses tokens that do not fit behind what the session holds, or are none.
enum status session_check_tokens(const struct session *session, const int32_t *token, int64_t n);
// Who owns n tokens more, as if they were read: in chunks.
enum status session_place_chunks(struct session *session, int64_t n);
// Appends at most sizes.chunk tokens and runs all layers: buffers.x then holds this rank's tokens,
// session.position theirs. Of the chunk, score, n_document and document_end are given.
enum status session_prefill_chunk(struct session *session, const int32_t *token, int64_t n,
                                  struct forward_chunk *chunk);

#endif
