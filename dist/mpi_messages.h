// Messages between MPI ranks, posted without blocking in lanes that finish in order: what comm_mpi
// and comm_mpi_staged move bytes by. Messages between two ranks keep their order, so a transfer is
// cut into equal messages by both sides.
#ifndef HALKA_DIST_MPI_MESSAGES_H
#define HALKA_DIST_MPI_MESSAGES_H

#include <mpi.h>

#include "dist/comm.h"

enum { HOST_BYTES = MPI_MAX_PROCESSOR_NAME };
struct mpi_ranks {
    int rank, size;
    bool oversubscribed;      // more ranks than cores here: waiting ranks must give way early
    char (*host)[HOST_BYTES]; // [size]
};

enum { EVERY_RANK = -1 };
struct message {
    int peer;     // or EVERY_RANK for collectives
    int expected; // bytes to receive; -1 when nothing is to check
};

// Messages in flight on a communicator.
struct lane {
    const struct mpi_ranks *ranks;
    MPI_Comm communicator;
    MPI_Request *requests;  // [capacity], posted in [0, n), finished before `next`
    struct message *posted; // [capacity]
    int n, next, capacity;
};

// Each message has at most `most` bytes.
enum status lane_send(struct lane *lane, struct comm_buffer buffer, int64_t most, int to, int tag);
enum status lane_receive(struct lane *lane, struct comm_buffer buffer, int64_t most, int from,
                         int tag);
// A request for a collective to fill.
enum status lane_reserve(struct lane *lane, MPI_Request **out);
enum status lane_check(const struct lane *lane, int code, const char *operation);
// Finishes what can be finished now; *done when nothing is left.
enum status lane_poll(struct lane *lane, const char *operation, bool *done);
// ERR_RANK: whom the oldest unfinished message waits for.
enum status lane_too_late(const struct lane *lane, const char *operation, double deadline_s);
void lane_close(struct lane *lane); // not its communicator

// The one place where counts are cut: bytes of the next message, whole elements.
int next_message(int64_t left, int64_t most, int element_bytes);
// Gives the core away after `waited` seconds of waiting.
void mpi_give_way(const struct mpi_ranks *ranks, double waited);

// Of a transport that comm_mpi_open opened: its ranks, and the communicators of gather_start and
// of everything else.
const struct mpi_ranks *comm_mpi_ranks(const struct comm *comm);
MPI_Comm comm_mpi_communicator(const struct comm *comm, bool gathers);

#endif
