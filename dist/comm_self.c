// The transport of a job of one rank: every exchange is a copy, no byte leaves the rank. On a
// device copies are queued like other work.
#include <string.h>

#include "dist/comm.h"

static enum status copy(struct comm *comm, void *to, const void *from, int64_t bytes) {
    struct backend *device = comm->state;
    if (bytes <= 0 || to == from) return OK;
    if (device) return device->ops->copy(device, to, from, bytes);
    memmove(to, from, (size_t)bytes);
    return OK;
}

static enum status self_shift_start(struct comm *comm, const struct shift_args *args) {
    if (args->destination != 0 || args->source != 0)
        FAIL(ERR_INTERNAL, "shift from rank %d to rank %d in a job of one rank", args->source,
             args->destination);
    for (int i = 0; i < args->n_buffer; i++) {
        if (args->send[i].bytes != args->receive[i].bytes)
            FAIL(ERR_INTERNAL, "shift of %lld bytes into a buffer of %lld",
                 (long long)args->send[i].bytes, (long long)args->receive[i].bytes);
        TRY(copy(comm, args->receive[i].data, args->send[i].data, args->send[i].bytes));
    }
    return OK;
}

static enum status self_nothing(struct comm *comm) {
    (void)comm;
    return OK;
}

static enum status self_all_gather(struct comm *comm, const void *send, void *receive,
                                   const int64_t *bytes) {
    return copy(comm, receive, send, bytes[0]);
}

static enum status self_gather_start(struct comm *comm, const struct gather *gathers, int n) {
    for (int i = 0; i < n; i++)
        TRY(self_all_gather(comm, gathers[i].send, gathers[i].receive, gathers[i].bytes));
    return OK;
}

static enum status self_all_to_all(struct comm *comm, const void *send, const int64_t *send_bytes,
                                   void *receive, const int64_t *receive_bytes) {
    if (send_bytes[0] != receive_bytes[0])
        FAIL(ERR_INTERNAL, "all_to_all sends %lld bytes and receives %lld",
             (long long)send_bytes[0], (long long)receive_bytes[0]);
    return copy(comm, receive, send, send_bytes[0]);
}

static enum status self_all_reduce(struct comm *comm, void *data, int64_t count, enum reduce op) {
    (void)comm, (void)data, (void)count, (void)op;
    return OK;
}

static enum status self_broadcast(struct comm *comm, void *data, int64_t bytes, int root) {
    (void)comm, (void)data, (void)bytes, (void)root;
    return OK;
}

static enum status self_launch_step(struct comm *comm) {
    struct backend *device = comm->state;
    return device->ops->steps->launch(device);
}

static void self_close(struct comm *comm) {
    (void)comm;
}

static const struct comm_ops self_ops = {
    .name = "self",
    .shift_start = self_shift_start,
    .shift_wait = self_nothing,
    .gather_start = self_gather_start,
    .gather_wait = self_nothing,
    .progress = self_nothing,
    .all_gather = self_all_gather,
    .all_to_all = self_all_to_all,
    .all_reduce = self_all_reduce,
    .broadcast = self_broadcast,
    .barrier = self_nothing,
    .launch_step = self_launch_step,
    .close = self_close,
};

enum status comm_self_open(struct comm *out, struct backend *device) {
    *out = (struct comm){
        .ops = &self_ops,
        .memory = device ? device->memory : MEMORY_HOST,
        .size = 1,
        .state = device,
    };
    return OK;
}
