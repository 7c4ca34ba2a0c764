// Ranks over MPI, buffers in host memory. Everything after open is posted without blocking and
// finished by wait_lane, which polls the oldest unfinished message against the deadline.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dist/mpi_messages.h"
#include "dist/patience.h"

enum { MESSAGE_BYTES = 4 << 20 };
enum tag { TAG_GATHER = 1, TAG_EXCHANGE, TAG_SHIFT }; // a shift uses TAG_SHIFT + buffer index

struct mpi_state {
    struct mpi_ranks ranks;
    struct lane lane, gathers; // everything else; gather_start's
};

static struct mpi_state *mpi_state(const struct comm *comm) {
    return comm->state;
}

const struct mpi_ranks *comm_mpi_ranks(const struct comm *comm) {
    return &mpi_state(comm)->ranks;
}

MPI_Comm comm_mpi_communicator(const struct comm *comm, bool gathers) {
    return gathers ? mpi_state(comm)->gathers.communicator : mpi_state(comm)->lane.communicator;
}

static enum status post_send(struct comm *comm, struct lane *lane, struct comm_buffer buffer,
                             int to, int tag) {
    if (to != comm->rank) comm->bytes_sent += buffer.bytes;
    return lane_send(lane, buffer, comm->message_bytes, to, tag);
}

static enum status post_receive(struct comm *comm, struct lane *lane, struct comm_buffer buffer,
                                int from, int tag) {
    if (from != comm->rank) comm->bytes_received += buffer.bytes;
    return lane_receive(lane, buffer, comm->message_bytes, from, tag);
}

static enum status wait_lane(struct comm *comm, struct lane *lane, const char *operation) {
    struct patience patience = patience_begin();
    for (;;) {
        int next = lane->next;
        bool done;
        TRY(lane_poll(lane, operation, &done));
        if (done) return OK;
        double waited = patience_look(&patience, lane->next != next, comm->deadline_s);
        if (waited > comm->deadline_s) return lane_too_late(lane, operation, comm->deadline_s);
        mpi_give_way(lane->ranks, waited);
    }
}

static enum status wait_all(struct comm *comm, const char *operation) {
    return wait_lane(comm, &mpi_state(comm)->lane, operation);
}

static enum status begin(const struct comm *comm, const struct lane *lane, const char *operation) {
    if (lane->n != 0)
        FAIL(ERR_INTERNAL, "%s on rank %d began before the transfer before it ended", operation,
             comm->rank);
    return OK;
}

static enum status mpi_shift_start(struct comm *comm, const struct shift_args *args) {
    struct lane *lane = &mpi_state(comm)->lane;
    TRY(begin(comm, lane, "shift"));
    for (int i = 0; i < args->n_buffer; i++)
        TRY(post_receive(comm, lane, args->receive[i], args->source, TAG_SHIFT + i));
    for (int i = 0; i < args->n_buffer; i++)
        TRY(post_send(comm, lane, args->send[i], args->destination, TAG_SHIFT + i));
    return OK;
}

static enum status mpi_shift_wait(struct comm *comm) {
    return wait_all(comm, "shift");
}

static enum status mpi_progress(struct comm *comm) {
    struct mpi_state *state = mpi_state(comm);
    bool done;
    TRY(lane_poll(&state->gathers, "gather", &done));
    return lane_poll(&state->lane, "shift", &done);
}

// Block r comes from rank r; the own one is copied unless it is in its place.
static enum status post_gather(struct comm *comm, struct lane *lane, const struct gather *gather) {
    char *block = gather->receive;
    int64_t own = gather->bytes[comm->rank];
    for (int r = 0; r < comm->size; block += gather->bytes[r++]) {
        struct comm_buffer buffer = {block, gather->bytes[r]};
        if (r != comm->rank)
            TRY(post_receive(comm, lane, buffer, r, TAG_GATHER));
        else if (block != gather->send && own)
            memcpy(block, gather->send, (size_t)own);
    }
    struct comm_buffer send = {(void *)gather->send, own};
    for (int i = 1; i < comm->size; i++)
        TRY(post_send(comm, lane, send, (comm->rank + i) % comm->size, TAG_GATHER));
    return OK;
}

static enum status mpi_gather_start(struct comm *comm, const struct gather *gathers, int n) {
    struct lane *lane = &mpi_state(comm)->gathers;
    TRY(begin(comm, lane, "gather"));
    for (int i = 0; i < n; i++) TRY(post_gather(comm, lane, &gathers[i]));
    return OK;
}

static enum status mpi_gather_wait(struct comm *comm) {
    return wait_lane(comm, &mpi_state(comm)->gathers, "gather");
}

static enum status mpi_all_gather(struct comm *comm, const void *send, void *receive,
                                  const int64_t *bytes) {
    struct lane *lane = &mpi_state(comm)->lane;
    TRY(begin(comm, lane, "all_gather"));
    TRY(post_gather(comm, lane, &(struct gather){send, receive, bytes}));
    return wait_all(comm, "all_gather");
}

static enum status mpi_all_to_all(struct comm *comm, const void *send, const int64_t *send_bytes,
                                  void *receive, const int64_t *receive_bytes) {
    struct lane *lane = &mpi_state(comm)->lane;
    TRY(begin(comm, lane, "all_to_all"));
    char *to = receive, *from = (char *)send;
    for (int r = 0; r < comm->size; to += receive_bytes[r++])
        TRY(post_receive(comm, lane, (struct comm_buffer){to, receive_bytes[r]}, r, TAG_EXCHANGE));
    for (int r = 0; r < comm->size; from += send_bytes[r++])
        TRY(post_send(comm, lane, (struct comm_buffer){from, send_bytes[r]}, r, TAG_EXCHANGE));
    return wait_all(comm, "all_to_all");
}

static void reduce_type(enum reduce op, MPI_Datatype *type, MPI_Op *mpi_op) {
    bool sum = op == REDUCE_SUM_F32 || op == REDUCE_SUM_F64 || op == REDUCE_SUM_I64;
    bool max = op == REDUCE_MAX_F64 || op == REDUCE_MAX_I64;
    *mpi_op = sum ? MPI_SUM : max ? MPI_MAX : MPI_MIN;
    bool f64 = op == REDUCE_SUM_F64 || op == REDUCE_MAX_F64 || op == REDUCE_MIN_F64;
    *type = op == REDUCE_SUM_F32 ? MPI_FLOAT : f64 ? MPI_DOUBLE : MPI_INT64_T;
}

static enum status mpi_all_reduce(struct comm *comm, void *data, int64_t count, enum reduce op) {
    struct lane *lane = &mpi_state(comm)->lane;
    TRY(begin(comm, lane, "all_reduce"));
    int element = reduce_element_bytes(op);
    MPI_Datatype type;
    MPI_Op mpi_op;
    reduce_type(op, &type, &mpi_op);
    char *at = data;
    for (int64_t left = count * element; left > 0;) {
        int n = next_message(left, comm->message_bytes, element);
        MPI_Request *request;
        TRY(lane_reserve(lane, &request));
        TRY(lane_check(lane,
                       MPI_Iallreduce(MPI_IN_PLACE, at, n / element, type, mpi_op,
                                      lane->communicator, request),
                       "all_reduce"));
        at += n;
        left -= n;
    }
    int64_t volume = 2 * (comm->size - 1) * count * element / comm->size;
    comm->bytes_sent += volume;
    comm->bytes_received += volume;
    return wait_all(comm, "all_reduce");
}

static enum status mpi_broadcast(struct comm *comm, void *data, int64_t bytes, int root) {
    struct lane *lane = &mpi_state(comm)->lane;
    TRY(begin(comm, lane, "broadcast"));
    char *at = data;
    for (int64_t left = bytes; left > 0;) {
        int n = next_message(left, comm->message_bytes, 1);
        MPI_Request *request;
        TRY(lane_reserve(lane, &request));
        TRY(lane_check(lane, MPI_Ibcast(at, n, MPI_BYTE, root, lane->communicator, request),
                       "broadcast"));
        at += n;
        left -= n;
    }
    if (comm->rank == root)
        comm->bytes_sent += bytes * (comm->size - 1);
    else
        comm->bytes_received += bytes;
    return wait_all(comm, "broadcast");
}

static enum status mpi_barrier(struct comm *comm) {
    struct lane *lane = &mpi_state(comm)->lane;
    TRY(begin(comm, lane, "barrier"));
    MPI_Request *request;
    TRY(lane_reserve(lane, &request));
    TRY(lane_check(lane, MPI_Ibarrier(lane->communicator, request), "barrier"));
    return wait_all(comm, "barrier");
}

static void close_lane(struct lane *lane, bool quiet) {
    // With messages still in flight the job is failing, and freeing could wait for them.
    if (quiet && lane->communicator != MPI_COMM_NULL) MPI_Comm_free(&lane->communicator);
    lane_close(lane);
}

static void mpi_close(struct comm *comm) {
    struct mpi_state *state = mpi_state(comm);
    bool quiet = state->lane.n == 0 && state->gathers.n == 0;
    close_lane(&state->gathers, quiet);
    close_lane(&state->lane, quiet);
    free(state->ranks.host);
    free(state);
}

static const struct comm_ops mpi_ops = {
    .name = "mpi",
    .shift_start = mpi_shift_start,
    .shift_wait = mpi_shift_wait,
    .gather_start = mpi_gather_start,
    .gather_wait = mpi_gather_wait,
    .progress = mpi_progress,
    .all_gather = mpi_all_gather,
    .all_to_all = mpi_all_to_all,
    .all_reduce = mpi_all_reduce,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .close = mpi_close,
};

static enum status learn_hosts(struct comm *comm) {
    struct mpi_state *state = mpi_state(comm);
    char own[HOST_BYTES] = "";
    int n;
    MPI_Get_processor_name(own, &n);
    int code = MPI_Allgather(own, HOST_BYTES, MPI_CHAR, state->ranks.host, HOST_BYTES, MPI_CHAR,
                             state->lane.communicator);
    TRY(lane_check(&state->lane, code, "start of the mpi transport"));
    int n_here = 0;
    for (int r = 0; r < comm->size; r++) n_here += strcmp(state->ranks.host[r], own) == 0;
    state->ranks.oversubscribed = n_here > sysconf(_SC_NPROCESSORS_ONLN);
    return OK;
}

static enum status open_lane(struct mpi_state *state, struct lane *lane) {
    lane->ranks = &state->ranks;
    if (MPI_Comm_dup(MPI_COMM_WORLD, &lane->communicator) != MPI_SUCCESS)
        FAIL(ERR_RANK, "MPI cannot make a communicator");
    MPI_Comm_set_errhandler(lane->communicator, MPI_ERRORS_RETURN);
    return OK;
}

enum status comm_mpi_open(struct comm *out, double deadline_s) {
    *out = (struct comm){
        .ops = &mpi_ops,
        .memory = MEMORY_HOST,
        .needs_progress = true,
        .deadline_s = deadline_s,
        .message_bytes = MESSAGE_BYTES,
    };
    struct mpi_state *state = calloc(1, sizeof *state);
    if (!state) FAIL(ERR_MEMORY, "no memory for the mpi transport");
    out->state = state;
    state->lane.communicator = state->gathers.communicator = MPI_COMM_NULL;
    enum status status = OK;
    TRY_OR(failed, open_lane(state, &state->lane));
    TRY_OR(failed, open_lane(state, &state->gathers));
    MPI_Comm_rank(MPI_COMM_WORLD, &out->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &out->size);
    state->ranks.rank = out->rank;
    state->ranks.size = out->size;
    state->ranks.host = calloc((size_t)out->size, HOST_BYTES);
    if (!state->ranks.host) FAIL_OR(failed, ERR_MEMORY, "no memory for %d host names", out->size);
    TRY_OR(failed, learn_hosts(out));
    return OK;
failed:
    comm_close(out);
    return status;
}
