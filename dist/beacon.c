#include "dist/beacon.h"

#include <stdatomic.h>
#include <string.h>

#include "dist/cluster.h"

const char *const activity_name[N_ACTIVITY] = {
    [ACTIVITY_LOADING] = "loading",
    [ACTIVITY_READING] = "reading",
    [ACTIVITY_ANSWERING] = "answering",
    [ACTIVITY_REPORTING] = "reporting",
    [ACTIVITY_WAITING] = "waiting for requests",
};

// What fits, without the half of a character at its end.
static void copy_name(char *out, size_t room, const char *name) {
    size_t n = strlen(name);
    if (n >= room) {
        n = room - 1;
        while (n > 0 && ((unsigned char)name[n] & 0xc0) == 0x80) n--;
    }
    memcpy(out, name, n);
}

void beacon_begin(struct beacon *beacon, const struct beacon_task *task) {
    if (!beacon) return;
    uint32_t next = beacon->current + 1;
    struct beacon_work *work = &beacon->work[next % 2];
    memset(work, 0, sizeof *work);
    work->activity = (int32_t)task->activity;
    work->question = task->question;
    work->n_question = task->n_question;
    work->n_token = task->n_token;
    if (task->document) copy_name(work->document, sizeof work->document, task->document);
    atomic_thread_fence(memory_order_release);
    beacon->current = next;
    beacon->updated = cluster_seconds();
}

void beacon_end(struct beacon *beacon, enum beacon_end end, int code) {
    if (!beacon) return;
    beacon->updated = cluster_seconds();
    beacon->code = code;
    beacon->end = (int32_t)end;
}

void beacon_done(struct beacon *beacon, int64_t n_token) {
    if (!beacon) return;
    beacon->work[beacon->current % 2].done = n_token;
    beacon->updated = cluster_seconds();
}
