// Progress on standard error: a line that renews itself on a terminal, plain lines otherwise.
#ifndef HALKA_LAUNCHER_PROGRESS_H
#define HALKA_LAUNCHER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "dist/beacon.h"

struct progress {
    bool shown; // on rank 0
    bool terminal;
    const char *name; // of the document
    enum activity activity;
    struct beacon *beacon; // of every rank
    int64_t total, done;   // tokens
    int64_t base;          // done before the call in progress
    double begun, last_shown;
};

struct progress progress_begin(struct beacon *beacon, bool shown, const char *name,
                               enum activity activity, int64_t total);
// A struct append_args.progress: tokens done by the call in progress. user: struct progress.
void progress_update(void *user, int64_t tokens_done);
void progress_end(struct progress *progress);

#endif
