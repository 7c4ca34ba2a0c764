// What is done with a document. Every rank calls these with the same arguments; rank 0 writes.
#ifndef HALKA_LAUNCHER_TASK_H
#define HALKA_LAUNCHER_TASK_H

#include "launcher/evidence.h"
#include "launcher/prompt.h"
#include "launcher/results.h"

// Lines still to be written for one document: finished[q] on every rank.
struct task {
    struct job *job;
    struct results *results; // rank 0
    int document;
    char (*ids)[RESULT_ID_BYTES]; // [n_line] rank 0
    const bool *finished;         // [n_line]
    int n_line;                   // 1, or the number of questions
};

enum status score_document(const struct task *task);
enum status answer_document(const struct task *task, const struct prompt *prompt);

bool task_is_finished(const struct task *task);

// After a document, or a window of one, was read: counts for the report.
void task_count_read(struct job *job, int64_t n_token, int64_t n_recomputed);

#endif
