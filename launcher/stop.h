// Ends a job early at a place from which the same job goes on: by SIGUSR1 (also SIGTERM, which srun
// delivers while mpirun kills by it), or after run.max_seconds. Every rank asks, at the same
// places.
#ifndef HALKA_LAUNCHER_STOP_H
#define HALKA_LAUNCHER_STOP_H

#include "launcher/job.h"

// From here on these signals are wishes. Before any thread.
void stop_watch(void);
// Whether any rank was asked to stop, or the time is up.
enum status stop_wanted(struct job *job, bool *out);
// STOPPED, on every rank: what was reached is durable.
enum status stop_here(struct job *job);
// Both, between documents, questions and cells, whose results are.
enum status stop_if_wanted(struct job *job);

#endif
