#include "launcher/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "dist/cluster.h"

// Seconds between two lines.
static const double terminal_interval = 0.2, plain_interval = 10;

struct progress progress_begin(const struct job *job, const char *name, int64_t total) {
    struct beacon *beacon = job->profile.beacon;
    beacon_begin(beacon, &(struct beacon_task){ACTIVITY_READING, name, total, 0, 0});
    return (struct progress){.beacon = beacon,
                             .shown = job->comm.rank == 0,
                             .terminal = isatty(STDERR_FILENO),
                             .name = name,
                             .total = total,
                             .begun = cluster_seconds(),
                             .last_shown = cluster_seconds()};
}

void progress_update(void *user, int64_t tokens_done) {
    struct progress *p = user;
    double now = cluster_seconds();
    p->done = p->base + tokens_done;
    beacon_done(p->beacon, p->done);
    if (p->tell) p->tell(p->user, p->done);
    if (!p->shown || now - p->last_shown < (p->terminal ? terminal_interval : plain_interval))
        return;
    p->last_shown = now;
    double rate = (double)p->done / (now - p->begun);
    fprintf(stderr, "%s%s %s: %lld of %lld tokens, %.0f tokens/s, %.0f s left%s",
            p->terminal ? "\r" : "", activity_name[ACTIVITY_READING], p->name, (long long)p->done,
            (long long)p->total, rate, (double)(p->total - p->done) / rate,
            p->terminal ? "\033[K" : "\n");
}

void progress_end(struct progress *p) {
    if (!p->shown) return;
    double seconds = cluster_seconds() - p->begun;
    fprintf(stderr, "%s%s %s: %lld tokens in %.2f s, %.0f tokens/s%s\n", p->terminal ? "\r" : "",
            activity_name[ACTIVITY_READING], p->name, (long long)p->done, seconds,
            seconds > 0 ? (double)p->done / seconds : 0, p->terminal ? "\033[K" : "");
}
