// A context on disk: what a session keeps of the tokens that it read, in the order of their
// positions, whatever ranks hold them. Saved on any number of ranks, it is restored on any other.
//   DIR/KEY/pages-G      of each layer the rows of keys, values, index keys, page by page of
//                        CONTEXT_PAGE positions (context_pages.c)
//   DIR/KEY/logprobs-G   fp32 by position, where the session scored
//   DIR/KEY/manifest.json   geometry, digests, tokens done, last state: names the G whose files
// are valid, so that a save, to files of another G, is complete with its rename.
// KEY is the digest of what the context is of. Collective calls: every rank, same arguments.
#ifndef HALKA_MODEL_CONTEXT_STORE_H
#define HALKA_MODEL_CONTEXT_STORE_H

#include "model/digest.h"
#include "model/session.h"

enum { CONTEXT_PAGE = 256 };
#define CONTEXT_MANIFEST "manifest.json"
#define CONTEXT_FORMAT "halka context" // its "format"

struct context {
    const char *dir;      // store.dir
    const char *identity; // digest of the model and of all options that change keys and values
    const int32_t *token; // [n] of the whole document, on every rank
    int64_t n;
    const char *name; // of the document, for people; NULL: it has none
};

// Name of the context's folder below dir.
void context_key(const struct context *context, char out[DIGEST_BYTES]);

// Saves all that the session holds, the first session_length(session) of the context's tokens, in
// place of an earlier state, which stays valid until this one is complete. Between appends: within
// one (progress) the state behind the last token is not there yet, and who restores such a context
// cannot score the next token. logprob: [n] or NULL, entries below the session's length. Jobs may
// save and restore one context at once: the last save holds. ERR_CREATE, on every rank: the folder
// cannot be made; ERR_IO: nor written.
enum status context_save(struct session *session, const struct context *context,
                         const float *logprob);
// Into an empty session: the tokens that were saved, or none where there is no such context (or no
// log-probabilities, which logprob [n] asks for): *n_restored. Nothing of them is computed. The
// session is empty after a failure: ERR_INPUT, on every rank, a manifest or a page is damaged, or
// of another geometry; ERR_CONFIG, the tokens do not fit.
enum status context_restore(struct session *session, const struct context *context, float *logprob,
                            int64_t *n_restored);

#endif
