// Reading a sequence into the session: what store.dir holds of it is restored, the rest is read and
// saved there. Every rank calls these with the same arguments.
#ifndef HALKA_LAUNCHER_READING_H
#define HALKA_LAUNCHER_READING_H

#include "launcher/job.h"
#include "launcher/progress.h"

struct reading {
    const char *name;     // of the document
    const int32_t *token; // [n] from the beginning of the sequence
    int64_t n;
    int64_t length; // that the sequence may come to have: session_set_length
    int64_t held;   // of them the session has already; 0: it forgets what it has
    bool kept;      // in store.dir, if the job has one, which is asked where held is 0
    float *logprob; // [n] or NULL, as session_append fills it
    int64_t chunk;  // tokens after which a stop, or a save, is possible; 0: at the end alone
    bool logits;    // after the last token, for session_sample
    struct progress *progress; // of the document
    int64_t base;              // its tokens before the sequence
};

// What contexts of this job are told apart by besides their tokens. Once, before the first reading.
enum status reading_open(struct job *job);
// The session holds these n tokens then, *n_restored of which came from store.dir.
enum status reading_run(struct job *job, const struct reading *reading, int64_t *n_restored);

#endif
