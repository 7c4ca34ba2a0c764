// The tasks embed and locate: documents become units (embed_units.h), units are packed into batches
// without padding, and the states of a batch are pooled into rows as they come (pool.h), which go
// to embed_output.h in the order of the documents.
#ifndef HALKA_LAUNCHER_EMBED_H
#define HALKA_LAUNCHER_EMBED_H

#include "launcher/task.h"

// Planning, rank 0: tokens that the session must hold for this job's batches, and bytes that a rank
// needs in host memory besides.
enum status embed_plan(struct job *job, int64_t *longest, int64_t *bytes);
// Every document that is not finished. tasks: [job->documents.n]. Every rank calls it.
enum status embed_documents(struct job *job, const struct task *tasks);

#endif
