// Transfers between buffers on devices of different ranks, through pinned host memory. They are cut
// into chunks, which pass in order: outbound device -> slot -> message, inbound message -> slot ->
// device; so the copies out, the messages and the copies in of different chunks run at once, and
// beside the computation. Nothing waits but flow_wait; calls of flow_advance move things on.
#ifndef HALKA_DIST_STAGED_FLOW_H
#define HALKA_DIST_STAGED_FLOW_H

#include "dist/mpi_messages.h"

enum { FLOW_SLOTS = 8, FLOW_SLOT_BYTES = 1 << 20 };
struct transfer {
    struct comm_buffer buffer; // on the device
    int peer;
};

struct slot {
    char *memory; // pinned, FLOW_SLOT_BYTES
    int64_t ticket;
    struct lane lane;         // of the chunk's message
    struct transfer transfer; // the chunk
};

// One direction. Chunk i has slot i % FLOW_SLOTS; chunks are numbered over all transfers so far.
struct pipe {
    struct slot slots[FLOW_SLOTS];
    int64_t begun;              // chunks with a slot: a copy out or a receive was started
    int64_t moved;              // ... handed on: the send or the copy in was started
    int64_t ended;              // ... whose slot is free again
    struct transfer *transfers; // [capacity]
    int n, current, capacity;   // the next chunk begins at `offset` of transfer `current`
    int64_t offset;
};

struct flow {
    struct backend *backend;
    const struct mpi_ranks *ranks;
    const char *operation; // NULL: nothing is in flight
    int64_t most;          // bytes of a chunk of it
    void *pinned;
    struct pipe out, in;
};

// Messages travel on `communicator`, which stays the caller's.
enum status flow_open(struct flow *flow, struct backend *backend, const struct mpi_ranks *ranks,
                      MPI_Comm communicator);
// Begins after the work queued on the backend so far. Then come transfers: two ranks list those
// between them in the same order and cut them alike.
enum status flow_begin(struct flow *flow, const char *operation, int64_t most);
enum status flow_send(struct flow *flow, struct comm_buffer buffer, int to);
enum status flow_receive(struct flow *flow, struct comm_buffer buffer, int from);
enum status flow_advance(struct flow *flow);
// Work queued afterwards finds the data in place. After a missed deadline all is still in flight.
enum status flow_wait(struct flow *flow, double deadline_s);
// Waits until a copy has ended.
enum status flow_wait_copy(struct flow *flow, int64_t ticket, double deadline_s);
void flow_close(struct flow *flow); // accepts a zeroed struct

#endif
