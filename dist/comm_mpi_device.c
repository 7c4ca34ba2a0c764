// Ranks over an MPI that reads and writes device memory itself: the host transport on device
// pointers. MPI knows nothing of the backend's queue, so the host waits for it before each
// exchange. Reductions and broadcasts pass through host memory, as not every such MPI has them for
// devices.
#include <mpi.h>
#if defined(OPEN_MPI)
#include <mpi-ext.h>
#endif
#include <stdlib.h>

#include "dist/comm.h"

struct device_state {
    struct backend *backend;
    struct comm mpi;
    char *host; // [host_bytes]
    int64_t host_bytes;
};

static struct device_state *device_state(const struct comm *comm) {
    return comm->state;
}

bool comm_mpi_reaches_devices(void) {
#if defined(MPIX_CUDA_AWARE_SUPPORT)
    return MPIX_Query_cuda_support() == 1;
#else
    return false;
#endif
}

// The transport below, once the work queued so far has ended.
static enum status below(struct comm *comm, struct comm **out) {
    struct device_state *state = device_state(comm);
    *out = &state->mpi;
    state->mpi.deadline_s = comm->deadline_s;
    state->mpi.message_bytes = comm->message_bytes;
    return state->backend->ops->sync(state->backend);
}

static enum status count(struct comm *comm, enum status status) {
    comm->bytes_sent = device_state(comm)->mpi.bytes_sent;
    comm->bytes_received = device_state(comm)->mpi.bytes_received;
    return status;
}

static enum status device_shift_start(struct comm *comm, const struct shift_args *args) {
    struct comm *mpi;
    TRY(below(comm, &mpi));
    return count(comm, mpi->ops->shift_start(mpi, args));
}

static enum status device_shift_wait(struct comm *comm) {
    struct comm *mpi = &device_state(comm)->mpi;
    mpi->deadline_s = comm->deadline_s;
    return mpi->ops->shift_wait(mpi);
}

static enum status device_progress(struct comm *comm) {
    struct comm *mpi = &device_state(comm)->mpi;
    return mpi->ops->progress(mpi);
}

static enum status while_waiting(void *comm) {
    return device_progress(comm);
}

// Puts the own block in its place, which the transport below then leaves alone.
static enum status place_own(struct comm *comm, struct gather *gather) {
    struct backend *backend = device_state(comm)->backend;
    int64_t bytes = gather->bytes[comm->rank];
    const void *send = gather->send;
    char *place = gather->receive;
    for (int r = 0; r < comm->rank; r++) place += gather->bytes[r];
    gather->send = place;
    return bytes > 0 && place != send ? backend->ops->copy(backend, place, send, bytes) : OK;
}

static enum status device_gather_start(struct comm *comm, const struct gather *gathers, int n) {
    struct gather placed[n];
    struct comm *mpi;
    for (int i = 0; i < n; i++) {
        placed[i] = gathers[i];
        TRY(place_own(comm, &placed[i]));
    }
    TRY(below(comm, &mpi));
    return count(comm, mpi->ops->gather_start(mpi, placed, n));
}

static enum status device_gather_wait(struct comm *comm) {
    struct comm *mpi = &device_state(comm)->mpi;
    mpi->deadline_s = comm->deadline_s;
    return mpi->ops->gather_wait(mpi);
}

static enum status device_all_gather(struct comm *comm, const void *send, void *receive,
                                     const int64_t *bytes) {
    struct gather gather = {send, receive, bytes};
    struct comm *mpi;
    TRY(place_own(comm, &gather));
    TRY(below(comm, &mpi));
    return count(comm, mpi->ops->all_gather(mpi, gather.send, receive, bytes));
}

static enum status device_all_to_all(struct comm *comm, const void *send, const int64_t *send_bytes,
                                     void *receive, const int64_t *receive_bytes) {
    struct comm *mpi;
    TRY(below(comm, &mpi));
    return count(comm, mpi->ops->all_to_all(mpi, send, send_bytes, receive, receive_bytes));
}

// A copy of a device's buffer in host memory.
static enum status bring(struct comm *comm, const void *data, int64_t bytes, struct comm **mpi) {
    struct device_state *state = device_state(comm);
    if (bytes > state->host_bytes) {
        free(state->host);
        state->host_bytes = 0;
        state->host = malloc((size_t)bytes);
        if (!state->host) FAIL(ERR_MEMORY, "no memory for %lld bytes", (long long)bytes);
        state->host_bytes = bytes;
    }
    TRY(state->backend->ops->download(state->backend, state->host, data, bytes));
    return below(comm, mpi);
}

static enum status device_all_reduce(struct comm *comm, void *data, int64_t n, enum reduce op) {
    struct device_state *state = device_state(comm);
    struct comm *mpi;
    int64_t bytes = n * reduce_element_bytes(op);
    TRY(bring(comm, data, bytes, &mpi));
    TRY(count(comm, mpi->ops->all_reduce(mpi, state->host, n, op)));
    return state->backend->ops->upload(state->backend, data, state->host, bytes);
}

static enum status device_broadcast(struct comm *comm, void *data, int64_t bytes, int root) {
    struct device_state *state = device_state(comm);
    struct comm *mpi;
    TRY(bring(comm, data, bytes, &mpi));
    TRY(count(comm, mpi->ops->broadcast(mpi, state->host, bytes, root)));
    return state->backend->ops->upload(state->backend, data, state->host, bytes);
}

static enum status device_barrier(struct comm *comm) {
    struct comm *mpi;
    TRY(below(comm, &mpi));
    return mpi->ops->barrier(mpi);
}

static void device_close(struct comm *comm) {
    struct device_state *state = device_state(comm);
    state->backend->while_waiting = NULL;
    comm_close(&state->mpi);
    free(state->host);
    free(state);
}

static const struct comm_ops device_ops = {
    .name = "mpi",
    .shift_start = device_shift_start,
    .shift_wait = device_shift_wait,
    .gather_start = device_gather_start,
    .gather_wait = device_gather_wait,
    .progress = device_progress,
    .all_gather = device_all_gather,
    .all_to_all = device_all_to_all,
    .all_reduce = device_all_reduce,
    .broadcast = device_broadcast,
    .barrier = device_barrier,
    .close = device_close,
};

enum status comm_mpi_device_open(struct comm *out, struct comm *host, struct backend *backend,
                                 double deadline_s) {
    *out = (struct comm){.ops = &device_ops, .memory = backend->memory, .host = host};
    struct device_state *state = calloc(1, sizeof *state);
    if (!state) FAIL(ERR_MEMORY, "no memory for the mpi transport");
    out->state = state;
    state->backend = backend;
    enum status status = comm_mpi_open(&state->mpi, deadline_s);
    if (status != OK) {
        comm_close(out);
        return status;
    }
    out->rank = state->mpi.rank;
    out->size = state->mpi.size;
    out->deadline_s = deadline_s;
    out->message_bytes = state->mpi.message_bytes;
    backend->while_waiting = while_waiting;
    backend->waiting_user = out;
    return OK;
}
