#include "launcher/stop.h"

#include <signal.h>

// The signals stay blocked: that one is pending is all that there is to know, and needs no handler.
static void list_signals(sigset_t *out) {
    sigemptyset(out);
    sigaddset(out, SIGUSR1);
    if (options_process_is_step()) sigaddset(out, SIGTERM);
}

void stop_watch(void) {
    sigset_t signals;
    list_signals(&signals);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGXFSZ, SIG_IGN); // beyond a limit on the length of files, the write says so
}

static bool is_asked(void) {
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, SIGUSR1) == 1 || sigismember(&pending, SIGTERM) == 1;
}

enum status stop_wanted(struct job *job, bool *out) {
    struct comm *host = comm_host(&job->comm);
    double limit = job->options->max_seconds;
    bool late = limit > 0 && cluster_seconds() - job->started > limit;
    int64_t wanted = late || is_asked();
    TRY(host->ops->all_reduce(host, &wanted, 1, REDUCE_MAX_I64));
    *out = wanted != 0;
    return OK;
}

enum status stop_here(struct job *job) {
    job->working = false; // every rank knows
    FAIL(STOPPED, "stopped by a signal or run.max_seconds: submit the same job again to go on");
}

enum status stop_if_wanted(struct job *job) {
    bool wanted;
    TRY(stop_wanted(job, &wanted));
    return wanted ? stop_here(job) : OK;
}
