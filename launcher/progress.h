// Progress on standard error: a line that renews itself on a terminal, plain lines otherwise.
#ifndef HALKA_LAUNCHER_PROGRESS_H
#define HALKA_LAUNCHER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool shown; // on rank 0
    bool terminal;
    const char *name;     // of the document
    const char *activity; // "reading", "answering"
    int64_t total, done;  // tokens
    int64_t base;         // done before the call in progress
    double begun, last_shown;
};

struct progress progress_begin(bool shown, const char *name, const char *activity, int64_t total);
// A struct append_args.progress: tokens done by the call in progress. user: struct progress.
void progress_update(void *user, int64_t tokens_done);
void progress_end(struct progress *progress);

#endif
