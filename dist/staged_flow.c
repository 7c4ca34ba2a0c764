#include "dist/staged_flow.h"

#include <stdlib.h>

#include "dist/patience.h"

enum { TAG_CHUNK = 1 };

static const struct copy_ops *copies_of(const struct flow *flow) {
    return flow->backend->ops->copies;
}

static struct slot *slot_of(struct pipe *pipe, int64_t chunk) {
    return &pipe->slots[chunk % FLOW_SLOTS];
}

enum status flow_open(struct flow *flow, struct backend *backend, const struct mpi_ranks *ranks,
                      MPI_Comm communicator) {
    *flow = (struct flow){.backend = backend, .ranks = ranks};
    TRY(copies_of(flow)->pin(backend, 2 * FLOW_SLOTS * (int64_t)FLOW_SLOT_BYTES, &flow->pinned));
    char *memory = flow->pinned;
    for (int i = 0; i < FLOW_SLOTS; i++) {
        struct lane lane = {.ranks = ranks, .communicator = communicator};
        flow->out.slots[i] = (struct slot){.memory = memory, .lane = lane};
        flow->in.slots[i] = (struct slot){.memory = memory + FLOW_SLOT_BYTES, .lane = lane};
        memory += 2 * FLOW_SLOT_BYTES;
    }
    return OK;
}

enum status flow_begin(struct flow *flow, const char *operation, int64_t most) {
    if (flow->operation)
        FAIL(ERR_INTERNAL, "%s on rank %d began before the %s before it ended", operation,
             flow->ranks->rank, flow->operation);
    flow->most = most < FLOW_SLOT_BYTES ? most : FLOW_SLOT_BYTES;
    TRY(copies_of(flow)->after_work(flow->backend));
    flow->operation = operation;
    return OK;
}

static enum status add(struct pipe *pipe, struct comm_buffer buffer, int peer) {
    if (buffer.bytes == 0) return OK;
    if (pipe->n == pipe->capacity) {
        int capacity = pipe->capacity ? 2 * pipe->capacity : 16;
        struct transfer *transfers = realloc(pipe->transfers, (size_t)capacity * sizeof *transfers);
        if (!transfers) FAIL(ERR_MEMORY, "no memory for %d transfers", capacity);
        pipe->transfers = transfers;
        pipe->capacity = capacity;
    }
    pipe->transfers[pipe->n++] = (struct transfer){buffer, peer};
    return OK;
}

enum status flow_send(struct flow *flow, struct comm_buffer buffer, int to) {
    return add(&flow->out, buffer, to);
}

enum status flow_receive(struct flow *flow, struct comm_buffer buffer, int from) {
    return add(&flow->in, buffer, from);
}

// Gives the next chunk a slot. NULL when no slot is free or no chunk is left.
static struct slot *next_chunk(struct pipe *pipe, int64_t most) {
    if (pipe->current == pipe->n || pipe->begun - pipe->ended == FLOW_SLOTS) return NULL;
    const struct transfer *whole = &pipe->transfers[pipe->current];
    struct slot *slot = slot_of(pipe, pipe->begun++);
    int64_t left = whole->buffer.bytes - pipe->offset, bytes = next_message(left, most, 1);
    char *at = (char *)whole->buffer.data + pipe->offset;
    slot->transfer = (struct transfer){{at, bytes}, whole->peer};
    pipe->offset += bytes;
    if (bytes == left) {
        pipe->current++;
        pipe->offset = 0;
    }
    return slot;
}

static struct comm_buffer memory_of(const struct slot *slot) {
    return (struct comm_buffer){slot->memory, slot->transfer.buffer.bytes};
}

static enum status advance_in(struct flow *flow) {
    struct pipe *pipe = &flow->in;
    struct backend *backend = flow->backend;
    bool done = true;
    for (; pipe->ended < pipe->moved; pipe->ended++) {
        int64_t ticket = slot_of(pipe, pipe->ended)->ticket;
        TRY(copies_of(flow)->ended(backend, ticket, &done));
        if (!done) break;
    }
    for (struct slot *slot; (slot = next_chunk(pipe, flow->most));)
        TRY(lane_receive(&slot->lane, memory_of(slot), FLOW_SLOT_BYTES, slot->transfer.peer,
                         TAG_CHUNK));
    for (; pipe->moved < pipe->begun; pipe->moved++) {
        struct slot *slot = slot_of(pipe, pipe->moved);
        struct comm_buffer to = slot->transfer.buffer;
        TRY(lane_poll(&slot->lane, flow->operation, &done));
        if (!done) break;
        TRY(copies_of(flow)->in(backend, to.data, slot->memory, to.bytes, &slot->ticket));
    }
    return OK;
}

static enum status advance_out(struct flow *flow) {
    struct pipe *pipe = &flow->out;
    struct backend *backend = flow->backend;
    bool done = true;
    for (; pipe->ended < pipe->moved; pipe->ended++) {
        TRY(lane_poll(&slot_of(pipe, pipe->ended)->lane, flow->operation, &done));
        if (!done) break;
    }
    for (struct slot *slot; (slot = next_chunk(pipe, flow->most));) {
        struct comm_buffer from = slot->transfer.buffer;
        TRY(copies_of(flow)->out(backend, slot->memory, from.data, from.bytes, &slot->ticket));
    }
    for (; pipe->moved < pipe->begun; pipe->moved++) {
        struct slot *slot = slot_of(pipe, pipe->moved);
        TRY(copies_of(flow)->ended(backend, slot->ticket, &done));
        if (!done) break;
        TRY(lane_send(&slot->lane, memory_of(slot), FLOW_SLOT_BYTES, slot->transfer.peer,
                      TAG_CHUNK));
    }
    return OK;
}

enum status flow_advance(struct flow *flow) {
    if (!flow->operation) return OK;
    TRY(advance_in(flow));
    return advance_out(flow);
}

static enum status too_late(const struct flow *flow, double deadline_s) {
    struct pipe *in = (struct pipe *)&flow->in, *out = (struct pipe *)&flow->out;
    if (in->moved < in->begun)
        return lane_too_late(&slot_of(in, in->moved)->lane, flow->operation, deadline_s);
    if (out->ended < out->moved)
        return lane_too_late(&slot_of(out, out->ended)->lane, flow->operation, deadline_s);
    FAIL(ERR_RANK, "%s on rank %d (%s): the device did not finish its work within %g s",
         flow->operation, flow->ranks->rank, flow->ranks->host[flow->ranks->rank], deadline_s);
}

// The last copies in may still be under way: their slots keep what they need.
static bool finished(const struct flow *flow) {
    const struct pipe *in = &flow->in, *out = &flow->out;
    return in->current == in->n && in->moved == in->begun && out->current == out->n &&
           out->ended == out->begun;
}

static int64_t steps(const struct flow *flow) {
    const struct pipe *in = &flow->in, *out = &flow->out;
    return in->moved + in->ended + out->moved + out->ended;
}

enum status flow_wait(struct flow *flow, double deadline_s) {
    if (!flow->operation) return OK;
    struct patience patience = patience_begin();
    for (;;) {
        int64_t before = steps(flow);
        TRY(flow_advance(flow));
        if (finished(flow)) break;
        double waited = patience_look(&patience, steps(flow) != before, deadline_s);
        if (waited > deadline_s) return too_late(flow, deadline_s);
        mpi_give_way(flow->ranks, waited);
    }
    flow->operation = NULL;
    flow->in.n = flow->in.current = flow->out.n = flow->out.current = 0;
    return copies_of(flow)->before_work(flow->backend);
}

enum status flow_wait_copy(struct flow *flow, int64_t ticket, double deadline_s) {
    struct patience patience = patience_begin();
    for (bool done;;) {
        TRY(copies_of(flow)->ended(flow->backend, ticket, &done));
        if (done) return OK;
        double waited = patience_look(&patience, false, deadline_s);
        if (waited > deadline_s) return too_late(flow, deadline_s);
        mpi_give_way(flow->ranks, waited);
    }
}

void flow_close(struct flow *flow) {
    bool quiet = !flow->operation;
    for (int i = 0; i < FLOW_SLOTS; i++) {
        lane_close(&flow->out.slots[i].lane);
        lane_close(&flow->in.slots[i].lane);
    }
    free(flow->in.transfers);
    free(flow->out.transfers);
    // With messages still in flight the job is failing, and they may yet arrive in this memory.
    if (quiet && flow->pinned) copies_of(flow)->unpin(flow->backend, flow->pinned);
    *flow = (struct flow){0};
}
