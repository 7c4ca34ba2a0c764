#include "dist/mpi_messages.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

enum status lane_check(const struct lane *lane, int code, const char *operation) {
    if (code == MPI_SUCCESS) return OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int n;
    MPI_Error_string(code, text, &n);
    FAIL(ERR_RANK, "%s failed on rank %d (%s): %s", operation, lane->ranks->rank,
         lane->ranks->host[lane->ranks->rank], text);
}

static enum status reserve(struct lane *lane, MPI_Request **out, struct message message) {
    if (lane->n == lane->capacity) {
        int capacity = lane->capacity ? 2 * lane->capacity : 64;
        MPI_Request *requests = realloc(lane->requests, (size_t)capacity * sizeof *requests);
        if (requests) lane->requests = requests;
        struct message *posted = realloc(lane->posted, (size_t)capacity * sizeof *posted);
        if (posted) lane->posted = posted;
        if (!requests || !posted) FAIL(ERR_MEMORY, "no memory for %d messages", capacity);
        lane->capacity = capacity;
    }
    lane->posted[lane->n] = message;
    *out = &lane->requests[lane->n];
    **out = MPI_REQUEST_NULL;
    lane->n++;
    return OK;
}

enum status lane_reserve(struct lane *lane, MPI_Request **out) {
    return reserve(lane, out, (struct message){EVERY_RANK, -1});
}

void lane_close(struct lane *lane) {
    free(lane->posted);
    free(lane->requests);
    *lane = (struct lane){.communicator = MPI_COMM_NULL};
}

int next_message(int64_t left, int64_t most, int element_bytes) {
    int64_t limit = most < INT_MAX ? most : INT_MAX;
    limit = limit / element_bytes * element_bytes;
    if (limit < element_bytes) limit = element_bytes;
    return (int)(left < limit ? left : limit);
}

enum status lane_send(struct lane *lane, struct comm_buffer buffer, int64_t most, int to, int tag) {
    const char *at = buffer.data;
    for (int64_t left = buffer.bytes; left > 0;) {
        int n = next_message(left, most, 1);
        MPI_Request *request;
        TRY(reserve(lane, &request, (struct message){to, -1}));
        int code = MPI_Isend(at, n, MPI_BYTE, to, tag, lane->communicator, request);
        TRY(lane_check(lane, code, "send"));
        at += n;
        left -= n;
    }
    return OK;
}

enum status lane_receive(struct lane *lane, struct comm_buffer buffer, int64_t most, int from,
                         int tag) {
    char *at = buffer.data;
    for (int64_t left = buffer.bytes; left > 0;) {
        int n = next_message(left, most, 1);
        MPI_Request *request;
        TRY(reserve(lane, &request, (struct message){from, n}));
        int code = MPI_Irecv(at, n, MPI_BYTE, from, tag, lane->communicator, request);
        TRY(lane_check(lane, code, "receive"));
        at += n;
        left -= n;
    }
    return OK;
}

enum status lane_poll(struct lane *lane, const char *operation, bool *done) {
    *done = false;
    while (lane->next < lane->n) {
        const struct message *message = &lane->posted[lane->next];
        MPI_Status received;
        int finished;
        int code = MPI_Test(&lane->requests[lane->next], &finished, &received);
        TRY(lane_check(lane, code, operation));
        if (!finished) return OK;
        int n = message->expected;
        if (message->expected >= 0) MPI_Get_count(&received, MPI_BYTE, &n);
        if (n != message->expected)
            FAIL(ERR_INTERNAL, "%s: rank %d got %d of %d bytes from rank %d", operation,
                 lane->ranks->rank, n, message->expected, message->peer);
        lane->next++;
    }
    lane->n = lane->next = 0;
    *done = true;
    return OK;
}

enum status lane_too_late(const struct lane *lane, const char *operation, double deadline_s) {
    const struct mpi_ranks *ranks = lane->ranks;
    int peer = lane->posted[lane->next].peer;
    const char *own_host = ranks->host[ranks->rank];
    const char *advice = "see whether it still runs, or waits for another one; a longer deadline "
                         "helps only if it is slow";
    if (peer == EVERY_RANK)
        FAIL(ERR_RANK, "%s on rank %d (%s): some rank did not take part within %g s: %s", operation,
             ranks->rank, own_host, deadline_s, advice);
    FAIL(ERR_RANK, "%s on rank %d (%s): rank %d (%s) did not answer within %g s: %s", operation,
         ranks->rank, own_host, peer, ranks->host[peer], deadline_s, advice);
}

// At once by yielding, after a while by sleeps of a hundredth of what was waited.
void mpi_give_way(const struct mpi_ranks *ranks, double waited) {
    double patience = ranks->oversubscribed ? 50e-6 : 1e-3, nap = waited / 100;
    if (nap < 20e-6) nap = 20e-6;
    if (nap > 1e-3) nap = 1e-3;
    if (waited < patience)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = (long)(nap * 1e9)}, NULL);
}
