// Ranks over MPI, buffers on devices: bytes pass through pinned host memory (staged_flow.h), so
// that ranks may share a device and MPI need not know of devices. Two flows, as shifts and gathers
// travel beside each other. Reductions are done by MPI on the host.
#include <stdlib.h>

#include "dist/mpi_messages.h"
#include "dist/staged_flow.h"

struct staged_state {
    struct backend *backend;
    struct comm mpi; // host memory, of these ranks: its communicators, its collectives
    struct flow flow, gathers;
};

static struct staged_state *staged_state(const struct comm *comm) {
    return comm->state;
}

static enum status copy(struct comm *comm, void *to, const void *from, int64_t bytes) {
    struct backend *backend = staged_state(comm)->backend;
    return bytes > 0 && to != from ? backend->ops->copy(backend, to, from, bytes) : OK;
}

static enum status send(struct comm *comm, struct flow *flow, struct comm_buffer buffer, int to) {
    comm->bytes_sent += buffer.bytes;
    return flow_send(flow, buffer, to);
}

static enum status receive(struct comm *comm, struct flow *flow, struct comm_buffer buffer,
                           int from) {
    comm->bytes_received += buffer.bytes;
    return flow_receive(flow, buffer, from);
}

static enum status staged_shift_start(struct comm *comm, const struct shift_args *args) {
    struct flow *flow = &staged_state(comm)->flow;
    TRY(flow_begin(flow, "shift", comm->message_bytes));
    for (int i = 0; i < args->n_buffer; i++) {
        if (args->destination == comm->rank)
            TRY(copy(comm, args->receive[i].data, args->send[i].data, args->send[i].bytes));
        else
            TRY(send(comm, flow, args->send[i], args->destination));
        if (args->source != comm->rank) TRY(receive(comm, flow, args->receive[i], args->source));
    }
    return flow_advance(flow);
}

static enum status staged_shift_wait(struct comm *comm) {
    return flow_wait(&staged_state(comm)->flow, comm->deadline_s);
}

static enum status staged_progress(struct comm *comm) {
    TRY(flow_advance(&staged_state(comm)->gathers));
    return flow_advance(&staged_state(comm)->flow);
}

// For the backend, while the host waits for the device.
static enum status while_waiting(void *comm) {
    return staged_progress(comm);
}

static char *block_of(const void *blocks, const int64_t *bytes, int rank) {
    char *at = (char *)blocks;
    for (int r = 0; r < rank; r++) at += bytes[r];
    return at;
}

// In round i with the ranks i before and i after this one.
static enum status add_gather(struct comm *comm, struct flow *flow, const struct gather *gather) {
    const int rank = comm->rank, size = comm->size;
    struct comm_buffer own = {(void *)gather->send, gather->bytes[rank]};
    TRY(copy(comm, block_of(gather->receive, gather->bytes, rank), own.data, own.bytes));
    for (int i = 1; i < size; i++) {
        int from = (rank - i + size) % size;
        char *to = block_of(gather->receive, gather->bytes, from);
        TRY(send(comm, flow, own, (rank + i) % size));
        TRY(receive(comm, flow, (struct comm_buffer){to, gather->bytes[from]}, from));
    }
    return OK;
}

static enum status staged_gather_start(struct comm *comm, const struct gather *gathers, int n) {
    struct flow *flow = &staged_state(comm)->gathers;
    TRY(flow_begin(flow, "gather", comm->message_bytes));
    for (int i = 0; i < n; i++) TRY(add_gather(comm, flow, &gathers[i]));
    return flow_advance(flow);
}

static enum status staged_gather_wait(struct comm *comm) {
    return flow_wait(&staged_state(comm)->gathers, comm->deadline_s);
}

static enum status staged_all_gather(struct comm *comm, const void *send, void *receive,
                                     const int64_t *bytes) {
    struct flow *flow = &staged_state(comm)->flow;
    TRY(flow_begin(flow, "all_gather", comm->message_bytes));
    TRY(add_gather(comm, flow, &(struct gather){send, receive, bytes}));
    return flow_wait(flow, comm->deadline_s);
}

static enum status staged_all_to_all(struct comm *comm, const void *from, const int64_t *send_bytes,
                                     void *to, const int64_t *receive_bytes) {
    struct flow *flow = &staged_state(comm)->flow;
    const int rank = comm->rank, size = comm->size;
    TRY(flow_begin(flow, "all_to_all", comm->message_bytes));
    TRY(copy(comm, block_of(to, receive_bytes, rank), block_of(from, send_bytes, rank),
             send_bytes[rank]));
    for (int i = 1; i < size; i++) {
        int after = (rank + i) % size, before = (rank - i + size) % size;
        struct comm_buffer out = {block_of(from, send_bytes, after), send_bytes[after]};
        struct comm_buffer in = {block_of(to, receive_bytes, before), receive_bytes[before]};
        TRY(send(comm, flow, out, after));
        TRY(receive(comm, flow, in, before));
    }
    return flow_wait(flow, comm->deadline_s);
}

// A collective of MPI on the chunks of a device's buffer; the next ones are copied out meanwhile.
struct host_collective {
    const char *name;
    int element_bytes;
    bool copy_out, copy_in;
    enum reduce op;
    int root; // of a broadcast; -1: a reduction
};

static enum status on_host(struct comm *comm, void *data, int64_t bytes,
                           const struct host_collective *c) {
    struct staged_state *state = staged_state(comm);
    struct flow *flow = &state->flow;
    struct comm *mpi = &state->mpi;
    const struct copy_ops *copies = state->backend->ops->copies;
    int64_t most = comm->message_bytes < FLOW_SLOT_BYTES ? comm->message_bytes : FLOW_SLOT_BYTES;
    int64_t chunk = next_message(INT64_MAX, most, c->element_bytes), copied = 0, last = 0;
    TRY(flow_begin(flow, c->name, most));
    mpi->deadline_s = comm->deadline_s;
    for (int64_t at = 0; at < bytes; at += chunk) {
        struct slot *slot = &flow->out.slots[at / chunk % FLOW_SLOTS];
        int64_t n = bytes - at < chunk ? bytes - at : chunk;
        for (; c->copy_out && copied < bytes && copied < at + FLOW_SLOTS * chunk; copied += chunk) {
            struct slot *next = &flow->out.slots[copied / chunk % FLOW_SLOTS];
            int64_t next_bytes = bytes - copied < chunk ? bytes - copied : chunk;
            TRY(copies->out(state->backend, next->memory, (char *)data + copied, next_bytes,
                            &next->ticket));
        }
        // The chunk is in the slot, or the one before it is no longer needed there.
        if (c->copy_out || at / chunk >= FLOW_SLOTS)
            TRY(flow_wait_copy(flow, slot->ticket, comm->deadline_s));
        if (c->root < 0)
            TRY(mpi->ops->all_reduce(mpi, slot->memory, n / c->element_bytes, c->op));
        else
            TRY(mpi->ops->broadcast(mpi, slot->memory, n, c->root));
        if (c->copy_in)
            TRY(copies->in(state->backend, (char *)data + at, slot->memory, n, &slot->ticket));
        last = slot->ticket;
    }
    if (bytes > 0) TRY(flow_wait_copy(flow, last, comm->deadline_s)); // the slots are free again
    return flow_wait(flow, comm->deadline_s);
}

static enum status staged_all_reduce(struct comm *comm, void *data, int64_t count, enum reduce op) {
    int element = reduce_element_bytes(op);
    int64_t volume = 2 * (comm->size - 1) * count * element / comm->size;
    comm->bytes_sent += volume;
    comm->bytes_received += volume;
    return on_host(comm, data, count * element,
                   &(struct host_collective){.name = "all_reduce",
                                             .element_bytes = element,
                                             .copy_out = true,
                                             .copy_in = true,
                                             .op = op,
                                             .root = -1});
}

static enum status staged_broadcast(struct comm *comm, void *data, int64_t bytes, int root) {
    bool is_root = comm->rank == root;
    if (is_root)
        comm->bytes_sent += bytes * (comm->size - 1);
    else
        comm->bytes_received += bytes;
    return on_host(comm, data, bytes,
                   &(struct host_collective){.name = "broadcast",
                                             .element_bytes = 1,
                                             .copy_out = is_root,
                                             .copy_in = !is_root,
                                             .root = root});
}

static enum status staged_barrier(struct comm *comm) {
    struct staged_state *state = staged_state(comm);
    TRY(flow_begin(&state->flow, "barrier", comm->message_bytes));
    state->mpi.deadline_s = comm->deadline_s;
    TRY(state->mpi.ops->barrier(&state->mpi));
    return flow_wait(&state->flow, comm->deadline_s);
}

static void staged_close(struct comm *comm) {
    struct staged_state *state = staged_state(comm);
    state->backend->while_waiting = NULL;
    flow_close(&state->gathers);
    flow_close(&state->flow);
    comm_close(&state->mpi);
    free(state);
}

static const struct comm_ops staged_ops = {
    .name = "mpi_staged",
    .shift_start = staged_shift_start,
    .shift_wait = staged_shift_wait,
    .gather_start = staged_gather_start,
    .gather_wait = staged_gather_wait,
    .progress = staged_progress,
    .all_gather = staged_all_gather,
    .all_to_all = staged_all_to_all,
    .all_reduce = staged_all_reduce,
    .broadcast = staged_broadcast,
    .barrier = staged_barrier,
    .close = staged_close,
};

enum status comm_mpi_staged_open(struct comm *out, struct comm *host, struct backend *backend,
                                 double deadline_s) {
    *out = (struct comm){
        .ops = &staged_ops,
        .memory = backend->memory,
        .host = host,
        .deadline_s = deadline_s,
        .message_bytes = FLOW_SLOT_BYTES,
    };
    enum status status = OK;
    struct staged_state *state = calloc(1, sizeof *state);
    if (!state) FAIL(ERR_MEMORY, "no memory for the mpi_staged transport");
    out->state = state;
    state->backend = backend;
    TRY_OR(failed, comm_mpi_open(&state->mpi, deadline_s));
    out->rank = state->mpi.rank;
    out->size = state->mpi.size;
    const struct mpi_ranks *ranks = comm_mpi_ranks(&state->mpi);
    TRY_OR(failed,
           flow_open(&state->flow, backend, ranks, comm_mpi_communicator(&state->mpi, false)));
    TRY_OR(failed,
           flow_open(&state->gathers, backend, ranks, comm_mpi_communicator(&state->mpi, true)));
    backend->while_waiting = while_waiting;
    backend->waiting_user = out;
    return OK;
failed:
    comm_close(out);
    return status;
}
