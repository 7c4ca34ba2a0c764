// Ranks over NCCL, each on a device of its own. Collectives are queued on the backend's compute
// stream and shifts and gathers on its copy stream; the host waits for none of them. It looks at
// errors and at the deadline while the backend waits for its device (while_waiting), and before it
// is MOST_FLIGHTS operations ahead. Calls only queue work: comm_nccl_open.c made every connection.
#include "dist/comm_nccl.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/open.h"

// Stops what NCCL has under way on the device: nothing comes after it.
static void give_up(struct comm *comm) {
    struct nccl_state *state = nccl_state(comm);
    if (state->nccl) ncclCommAbort(state->nccl);
    state->nccl = NULL;
}

static enum status late(struct comm *comm, const char *operation, int source, int destination) {
    const char *advice = "see whether it still runs, or waits for another one; a longer deadline "
                         "helps only if it is slow";
    char other[HOST_BYTES + 32] = "";
    give_up(comm);
    if (source == NCCL_EVERY_RANK)
        FAIL(ERR_RANK, "%s on rank %d (%s): some rank did not take part within %g s: %s", operation,
             comm->rank, nccl_own_host(comm), comm->deadline_s, advice);
    if (destination != source)
        snprintf(other, sizeof other, " or rank %d (%s)", destination,
                 nccl_state(comm)->host[destination]);
    FAIL(ERR_RANK, "%s on rank %d (%s): rank %d (%s)%s did not answer within %g s: %s", operation,
         comm->rank, nccl_own_host(comm), source, nccl_state(comm)->host[source], other,
         comm->deadline_s, advice);
}

enum status nccl_check_cuda(const struct comm *comm, cudaError_t error, const char *operation) {
    if (error == cudaSuccess) return OK;
    FAIL(ERR_INTERNAL, "%s on rank %d (%s): %s", operation, comm->rank, nccl_own_host(comm),
         cudaGetErrorString(error));
}

// The outcome of a call.
static enum status settle(struct comm *comm, ncclResult_t result, const char *operation) {
    struct nccl_state *state = nccl_state(comm);
    if (result == ncclSuccess) return OK;
    (void)status_fail(
        ERR_RANK, __FILE__ ":" STATUS_TEXT(__LINE__), "%s on rank %d (%s): NCCL: %s: %s", operation,
        comm->rank, nccl_own_host(comm), ncclGetErrorString(result), ncclGetLastError(state->nccl));
    give_up(comm);
    return ERR_RANK;
}

static bool has_passed(cudaEvent_t event) {
    bool passed = cudaEventQuery(event) == cudaSuccess;
    if (!passed) (void)cudaGetLastError(); // not ready is no error; others the backend meets too
    return passed;
}

static enum status look_at(struct comm *comm, struct flights *flights) {
    for (; flights->first < flights->next; flights->first++) {
        const struct flight *flight = &flights->flight[flights->first % MOST_FLIGHTS];
        if (has_passed(flight->ended)) {
            flights->waits = false;
            continue;
        }
        if (!flights->waits && has_passed(flight->begun)) {
            flights->waits = true;
            flights->patience = patience_begin();
        }
        if (flights->waits &&
            patience_look(&flights->patience, false, comm->deadline_s) > comm->deadline_s)
            return late(comm, flight->operation, flight->source, flight->destination);
        return OK;
    }
    return OK;
}

static enum status nccl_progress(struct comm *comm) {
    struct nccl_state *state = nccl_state(comm);
    ncclResult_t result = ncclSuccess;
    if (!state->nccl)
        FAIL(ERR_RANK, "rank %d (%s) has given NCCL up", comm->rank, nccl_own_host(comm));
    ncclResult_t asked = ncclCommGetAsyncError(state->nccl, &result);
    if (asked != ncclSuccess) result = asked;
    TRY(settle(comm, result, "exchange"));
    TRY(look_at(comm, &state->copy));
    return look_at(comm, &state->compute);
}

static enum status while_waiting(void *comm) {
    return nccl_progress(comm);
}

// The host is as far ahead as it may be: a queue that fills up behind a rank that does not answer
// would block it for ever.
static enum status wait_for_room(struct comm *comm, const struct flights *flights) {
    while (flights->next - flights->first == MOST_FLIGHTS) {
        TRY(nccl_progress(comm));
        sched_yield();
    }
    return OK;
}

// An operation's start on a stream. *out is NULL when it goes unwatched: work captured into a graph
// has no time of its own.
static enum status take_off(struct comm *comm, struct flights *flights, const char *operation,
                            int source, struct flight **out) {
    enum cudaStreamCaptureStatus capture;
    *out = NULL;
    TRY(nccl_check_cuda(comm, cudaStreamIsCapturing(flights->stream, &capture), operation));
    if (capture != cudaStreamCaptureStatusNone) return OK;
    TRY(nccl_progress(comm));
    TRY(wait_for_room(comm, flights));
    *out = &flights->flight[flights->next % MOST_FLIGHTS];
    (*out)->operation = operation;
    (*out)->source = (*out)->destination = source;
    return nccl_check_cuda(comm, cudaEventRecord((*out)->begun, flights->stream), operation);
}

static enum status land(struct comm *comm, struct flights *flights, struct flight *flight) {
    if (!flight) return OK;
    TRY(nccl_check_cuda(comm, cudaEventRecord(flight->ended, flights->stream), flight->operation));
    flights->next++;
    return OK;
}

// Point-to-point transfers of one operation, which NCCL runs together.
struct group {
    struct comm *comm;
    struct flights *flights;
    struct flight *flight;
    const char *operation;
    ncclResult_t result; // the first that is no success
};

static enum status group_begin(struct comm *comm, struct flights *flights, const char *operation,
                               int source, struct group *out) {
    *out = (struct group){comm, flights, NULL, operation, ncclSuccess};
    TRY(take_off(comm, flights, operation, source, &out->flight));
    return settle(comm, ncclGroupStart(), operation);
}

static void note(struct group *group, ncclResult_t result) {
    if (group->result == ncclSuccess) group->result = result;
}

static void group_send(struct group *group, const void *data, int64_t bytes, int to) {
    if (to != group->comm->rank) group->comm->bytes_sent += bytes;
    if (bytes > 0)
        note(group, ncclSend(data, (size_t)bytes, ncclInt8, to, nccl_state(group->comm)->nccl,
                             group->flights->stream));
}

static void group_receive(struct group *group, void *data, int64_t bytes, int from) {
    if (from != group->comm->rank) group->comm->bytes_received += bytes;
    if (bytes > 0)
        note(group, ncclRecv(data, (size_t)bytes, ncclInt8, from, nccl_state(group->comm)->nccl,
                             group->flights->stream));
}

static enum status group_end(struct group *group) {
    ncclResult_t result = ncclGroupEnd();
    if (group->result != ncclSuccess) result = group->result;
    TRY(settle(group->comm, result, group->operation));
    return land(group->comm, group->flights, group->flight);
}

// A block that stays on its rank. A small one goes with the group of the others: a copy by itself
// takes as long to start as all of them.
static bool goes_along(const void *to, const void *from, int64_t bytes) {
    return bytes <= OWN_IN_GROUP_BYTES && to != from;
}

static enum status copy_own(struct comm *comm, const struct flights *flights, void *to,
                            const void *from, int64_t bytes) {
    if (to == from || goes_along(to, from, bytes)) return OK;
    cudaError_t error =
        cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, flights->stream);
    return nccl_check_cuda(comm, error, "copy of an own block");
}

static void group_own(struct group *group, void *to, const void *from, int64_t bytes) {
    if (!goes_along(to, from, bytes)) return;
    group_send(group, from, bytes, group->comm->rank);
    group_receive(group, to, bytes, group->comm->rank);
}

// On the copy stream, after the work queued so far.
static enum status begin_beside(struct comm *comm, bool *in_flight, const char *operation) {
    struct backend *backend = nccl_state(comm)->backend;
    if (*in_flight)
        FAIL(ERR_INTERNAL, "%s on rank %d began before the one before it ended", operation,
             comm->rank);
    TRY(backend->ops->copies->after_work(backend));
    *in_flight = true;
    return OK;
}

static enum status end_beside(struct comm *comm, bool *in_flight) {
    struct backend *backend = nccl_state(comm)->backend;
    if (!*in_flight) return OK;
    *in_flight = false;
    return backend->ops->copies->before_work(backend);
}

static enum status nccl_shift_start(struct comm *comm, const struct shift_args *args) {
    struct nccl_state *state = nccl_state(comm);
    struct group group;
    TRY(begin_beside(comm, &state->shifting, "shift"));
    TRY(group_begin(comm, &state->copy, "shift", args->source, &group));
    if (group.flight) group.flight->destination = args->destination;
    for (int i = 0; i < args->n_buffer; i++) {
        group_send(&group, args->send[i].data, args->send[i].bytes, args->destination);
        group_receive(&group, args->receive[i].data, args->receive[i].bytes, args->source);
    }
    return group_end(&group);
}

static enum status nccl_shift_wait(struct comm *comm) {
    return end_beside(comm, &nccl_state(comm)->shifting);
}

static enum status gather_own(struct comm *comm, const struct flights *flights,
                              const struct gather *gather) {
    char *own = gather->receive;
    for (int r = 0; r < comm->rank; r++) own += gather->bytes[r];
    return copy_own(comm, flights, own, gather->send, gather->bytes[comm->rank]);
}

static void group_gather(struct group *group, const struct gather *gather) {
    const struct comm *comm = group->comm;
    char *block = gather->receive;
    for (int r = 0; r < comm->size; block += gather->bytes[r++]) {
        if (r == comm->rank) {
            group_own(group, block, gather->send, gather->bytes[r]);
            continue;
        }
        group_send(group, gather->send, gather->bytes[comm->rank], r);
        group_receive(group, block, gather->bytes[r], r);
    }
}

static enum status nccl_gather_start(struct comm *comm, const struct gather *gathers, int n) {
    struct nccl_state *state = nccl_state(comm);
    struct group group;
    TRY(begin_beside(comm, &state->gathering, "gather"));
    for (int i = 0; i < n; i++) TRY(gather_own(comm, &state->copy, &gathers[i]));
    TRY(group_begin(comm, &state->copy, "gather", NCCL_EVERY_RANK, &group));
    for (int i = 0; i < n; i++) group_gather(&group, &gathers[i]);
    return group_end(&group);
}

static enum status nccl_gather_wait(struct comm *comm) {
    return end_beside(comm, &nccl_state(comm)->gathering);
}

static enum status gather_equal(struct comm *comm, const struct gather *gather) {
    struct nccl_state *state = nccl_state(comm);
    struct flight *flight;
    int64_t bytes = gather->bytes[0];
    TRY(take_off(comm, &state->compute, "all_gather", NCCL_EVERY_RANK, &flight));
    ncclResult_t result = ncclAllGather(gather->send, gather->receive, (size_t)bytes, ncclInt8,
                                        state->nccl, state->compute.stream);
    TRY(settle(comm, result, "all_gather"));
    comm->bytes_sent += bytes * (comm->size - 1);
    comm->bytes_received += bytes * (comm->size - 1);
    return land(comm, &state->compute, flight);
}

static enum status nccl_all_gather(struct comm *comm, const void *send, void *receive,
                                   const int64_t *bytes) {
    struct nccl_state *state = nccl_state(comm);
    struct gather gather = {send, receive, bytes};
    struct group group;
    bool equal = bytes[0] > 0;
    for (int r = 1; r < comm->size; r++) equal = equal && bytes[r] == bytes[0];
    if (equal) return gather_equal(comm, &gather);
    TRY(gather_own(comm, &state->compute, &gather));
    TRY(group_begin(comm, &state->compute, "all_gather", NCCL_EVERY_RANK, &group));
    group_gather(&group, &gather);
    return group_end(&group);
}

static enum status nccl_all_to_all(struct comm *comm, const void *send, const int64_t *send_bytes,
                                   void *receive, const int64_t *receive_bytes) {
    struct nccl_state *state = nccl_state(comm);
    struct group group;
    const char *from = send;
    char *to = receive;
    for (int r = 0; r < comm->rank; r++) {
        from += send_bytes[r];
        to += receive_bytes[r];
    }
    TRY(copy_own(comm, &state->compute, to, from, send_bytes[comm->rank]));
    TRY(group_begin(comm, &state->compute, "all_to_all", NCCL_EVERY_RANK, &group));
    from = send;
    to = receive;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) {
            group_own(&group, to, from, send_bytes[r]);
        } else {
            group_send(&group, from, send_bytes[r], r);
            group_receive(&group, to, receive_bytes[r], r);
        }
        from += send_bytes[r];
        to += receive_bytes[r];
    }
    return group_end(&group);
}

static const struct {
    ncclDataType_t type;
    ncclRedOp_t op;
} reductions[] = {
    [REDUCE_SUM_F32] = {ncclFloat32, ncclSum}, [REDUCE_SUM_F64] = {ncclFloat64, ncclSum},
    [REDUCE_MAX_F64] = {ncclFloat64, ncclMax}, [REDUCE_MIN_F64] = {ncclFloat64, ncclMin},
    [REDUCE_SUM_I64] = {ncclInt64, ncclSum},   [REDUCE_MAX_I64] = {ncclInt64, ncclMax},
    [REDUCE_MIN_I64] = {ncclInt64, ncclMin},
};

static enum status nccl_all_reduce(struct comm *comm, void *data, int64_t count, enum reduce op) {
    struct nccl_state *state = nccl_state(comm);
    struct flight *flight;
    if (count == 0) return OK;
    TRY(take_off(comm, &state->compute, "all_reduce", NCCL_EVERY_RANK, &flight));
    ncclResult_t result = ncclAllReduce(data, data, (size_t)count, reductions[op].type,
                                        reductions[op].op, state->nccl, state->compute.stream);
    TRY(settle(comm, result, "all_reduce"));
    int64_t volume = 2 * (comm->size - 1) * count * reduce_element_bytes(op) / comm->size;
    comm->bytes_sent += volume;
    comm->bytes_received += volume;
    return land(comm, &state->compute, flight);
}

static enum status nccl_broadcast(struct comm *comm, void *data, int64_t bytes, int root) {
    struct nccl_state *state = nccl_state(comm);
    struct flight *flight;
    if (bytes == 0) return OK;
    TRY(take_off(comm, &state->compute, "broadcast", root, &flight));
    ncclResult_t result = ncclBroadcast(data, data, (size_t)bytes, ncclInt8, root, state->nccl,
                                        state->compute.stream);
    TRY(settle(comm, result, "broadcast"));
    if (comm->rank == root)
        comm->bytes_sent += bytes * (comm->size - 1);
    else
        comm->bytes_received += bytes;
    return land(comm, &state->compute, flight);
}

static enum status nccl_barrier(struct comm *comm) {
    return comm->host->ops->barrier(comm->host);
}

static enum status nccl_launch_step(struct comm *comm) {
    struct nccl_state *state = nccl_state(comm);
    struct flight *flight;
    TRY(take_off(comm, &state->compute, "step of decoding", NCCL_EVERY_RANK, &flight));
    TRY(state->backend->ops->steps->launch(state->backend));
    return land(comm, &state->compute, flight);
}

static void close_flights(struct flights *flights) {
    for (int i = 0; i < MOST_FLIGHTS; i++) {
        if (flights->flight[i].begun) cudaEventDestroy(flights->flight[i].begun);
        if (flights->flight[i].ended) cudaEventDestroy(flights->flight[i].ended);
    }
}

static void nccl_close(struct comm *comm) {
    struct nccl_state *state = nccl_state(comm);
    // What is under way ends, or the deadline passes; a job that is failing does not wait.
    if (state->nccl && (state->shifting || state->gathering)) give_up(comm);
    if (state->nccl && state->backend->ops->sync(state->backend) != OK) give_up(comm);
    state->backend->while_waiting = NULL;
    if (state->nccl) ncclCommDestroy(state->nccl);
    close_flights(&state->copy);
    close_flights(&state->compute);
    free(state->host);
    free(state);
}

static const struct comm_ops nccl_ops = {
    .name = "nccl",
    .shift_start = nccl_shift_start,
    .shift_wait = nccl_shift_wait,
    .gather_start = nccl_gather_start,
    .gather_wait = nccl_gather_wait,
    .progress = nccl_progress,
    .all_gather = nccl_all_gather,
    .all_to_all = nccl_all_to_all,
    .all_reduce = nccl_all_reduce,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .launch_step = nccl_launch_step,
    .close = nccl_close,
};

static enum status open_flights(struct comm *comm, struct flights *flights, void *stream) {
    flights->stream = stream;
    for (int i = 0; i < MOST_FLIGHTS; i++) {
        struct flight *flight = &flights->flight[i];
        cudaError_t error = cudaEventCreateWithFlags(&flight->begun, cudaEventDisableTiming);
        if (error == cudaSuccess)
            error = cudaEventCreateWithFlags(&flight->ended, cudaEventDisableTiming);
        TRY(nccl_check_cuda(comm, error, "start of NCCL"));
    }
    return OK;
}

static enum status learn_hosts(struct comm *comm) {
    char own[HOST_BYTES] = "";
    gethostname(own, sizeof own - 1);
    int64_t bytes[comm->size];
    for (int r = 0; r < comm->size; r++) bytes[r] = HOST_BYTES;
    return comm->host->ops->all_gather(comm->host, own, nccl_state(comm)->host, bytes);
}

enum status comm_nccl_open(struct comm *out, struct comm *host, struct backend *backend,
                           double deadline_s) {
    *out = (struct comm){
        .ops = &nccl_ops,
        .memory = MEMORY_DEVICE,
        .rank = host->rank,
        .size = host->size,
        .host = host,
        .deadline_s = deadline_s,
        .message_bytes = INT64_MAX,
    };
    enum status status = OK;
    bool distinct = false;
    TRY(comm_devices_distinct(host, backend, &distinct));
    if (!distinct)
        FAIL(ERR_CONFIG,
             "run.transport = nccl needs a device for each rank, and some of the %d ranks share "
             "one: use mpi_staged",
             host->size);
    struct nccl_state *state = calloc(1, sizeof *state);
    if (!state) FAIL(ERR_MEMORY, "no memory for the nccl transport");
    out->state = state;
    state->backend = backend;
    state->host = calloc((size_t)out->size, HOST_BYTES);
    if (!state->host) FAIL_OR(failed, ERR_MEMORY, "no memory for %d host names", out->size);
    TRY_OR(failed, learn_hosts(out));
    TRY_OR(failed, open_flights(out, &state->compute, cuda_stream_compute(backend)));
    TRY_OR(failed, open_flights(out, &state->copy, cuda_stream_copy(backend)));
    TRY_OR(failed, nccl_meet(out));
    backend->while_waiting = while_waiting;
    backend->waiting_user = out;
    return OK;
failed:
    comm_close(out);
    return status;
}
