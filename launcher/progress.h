// Progress of reading on rank 0's standard error, a line that renews itself on a terminal, plain
// lines otherwise; and in every rank's beacon.
#ifndef HALKA_LAUNCHER_PROGRESS_H
#define HALKA_LAUNCHER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "launcher/job.h"

struct progress {
    bool shown; // on rank 0
    bool terminal;
    const char *name; // of the document
    struct beacon *beacon;
    int64_t total, done; // tokens
    int64_t base;        // done before the call in progress
    double begun, last_shown;
    void (*tell)(void *user, int64_t done); // NULL, or told of each part
    void *user;
};

struct progress progress_begin(const struct job *job, const char *name, int64_t total);
// A struct append_args.progress: tokens done by the call in progress. user: struct progress.
void progress_update(void *user, int64_t tokens_done);
void progress_end(struct progress *progress);

#endif
