// A context on disk: what a session keeps of tokens that it read, saved and restored on any ranks.
//   DIR/KEY/pages-G      what save G found new: of each layer the rows of keys, values, index keys,
//                        page by page of CONTEXT_PAGE positions (context_pages.c)
//   DIR/KEY/logprobs-G   fp32 by position, where the session scored
//   DIR/KEY/tokens, lock int32 ids of the whole document; what flock takes
//   DIR/KEY/manifest.json   geometry, digests, tokens done, last state: lists the G whose files are
// valid, one behind the other, none of which is changed again. (On KEY: context_key.)
#ifndef HALKA_MODEL_CONTEXT_STORE_H
#define HALKA_MODEL_CONTEXT_STORE_H

#include "model/digest.h"
#include "model/session.h"

enum { CONTEXT_PAGE = 256, CONTEXT_LIKE_BYTES = 200 };
#define CONTEXT_MANIFEST "manifest.json"
#define CONTEXT_TOKENS "tokens"
#define CONTEXT_FORMAT "halka context" // its "format"

struct context {
    const char *dir;      // store.dir
    const char *identity; // digest of the model and of all options that change keys and values
    const int32_t *token; // [n] of the whole document, on every rank
    int64_t n;
    const char *name; // of the document, for people; NULL: it has none
};

// Name of the context's folder below dir: half of it is a digest of the identity and the first
// CONTEXT_PAGE tokens, which documents that begin alike share; half one of all.
void context_key(const struct context *context, char out[DIGEST_BYTES]);

// Collective, as what follows is: every rank, same arguments. Saves all that the session holds, the
// first session_length(session) of the context's tokens, in place of an earlier state, which stays
// valid until this one is complete. What this session saved or restored before is not written again
// where nobody else has saved the context since. logprob: [n] or NULL, entries below the session's
// length. Jobs may save and restore one context at once: the last save holds. ERR_CREATE, on every
// rank: the folder or a file cannot be made; ERR_IO: nor written.
enum status context_save(struct session *session, const struct context *context,
                         const float *logprob);

// ERR_CREATE where it would find that it cannot, as far as permissions tell. On one rank.
enum status context_save_check(const struct context *context);

// Likewise, in two steps, between which the session may append, and context_save_end be called any
// number of times; what context and logprob point to stays as it is below the session's length. The
// first has handed all rows to the kernel when it returns (no copy of them is kept, but in the page
// cache). The second takes the state into use and sets *saving to NULL once the rows are on every
// rank's disk, for which it waits if told to; it fails like context_save, and *saving is NULL then.
struct context_saving; // opaque
enum status context_save_begin(struct session *session, const struct context *context,
                               const float *logprob, struct context_saving **out);
enum status context_save_end(struct context_saving **saving, bool wait);
// Gives the state up, on this rank; the earlier one stays. Accepts NULL in *saving.
void context_save_drop(struct context_saving **saving);

struct context_restored {
    int64_t n;        // tokens that the session holds now; 0: nothing was found
    int64_t n_probed; // of those, first ones that were computed to compare
    double disparity; // by which they differed from the saved ones, as a part of them
    double probe_s;   // seconds of that, in phases of their own
    int64_t n_scored; // entries of logprob that are known: n, or n + 1, the last of which an append
                      // behind the n tokens does not know
    char like[CONTEXT_LIKE_BYTES]; // of another context: its name, or else its key; "": of this one
};
// Into an empty session, from the context or another one of the same identity, of a page or more,
// that begins like it (and has log-probabilities where logprob [n] asks for them): whichever gives
// most tokens. None of them is computed, but that the first few are, to compare. Where the file has
// no state behind the last token in common, this token is left for the next append, which makes it.
// Layers of a window may have dropped what the beginning needs: then nothing is found. The session
// is empty after a failure: ERR_INPUT, on every rank, a manifest or a page is damaged, of another
// geometry, or not what this network computes; ERR_CONFIG, the tokens do not fit.
enum status context_restore(struct session *session, const struct context *context, float *logprob,
                            struct context_restored *out);

#endif
