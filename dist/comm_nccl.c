// Ranks over NCCL, each on a device of its own. Collectives are queued on the backend's compute
// stream and shifts and gathers on its copy stream; the host waits for none of them. It looks at
// errors and at the deadline while the backend waits for its device (while_waiting). The
// communicator does not block: each call is followed until NCCL has queued its work.
#include <cuda_runtime.h>
#include <nccl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dist/cluster.h"
#include "dist/comm.h"
#include "kernels/cuda/open.h"

enum { MOST_FLIGHTS = 32, HOST_BYTES = 64, EVERY_RANK = -1 };

// An operation on a stream: under way from one event to the other.
struct flight {
    cudaEvent_t begun, ended;
    const char *operation;
    int source, destination; // ranks that it waits for; the source may be EVERY_RANK
};
// Of one stream, in order: [first, next) may not have ended. When all are taken, the operation
// after them goes unwatched.
struct flights {
    cudaStream_t stream;
    struct flight flight[MOST_FLIGHTS];
    int64_t first, next;
    double since; // when the first was first seen under way; 0: not yet
};

struct nccl_state {
    struct backend *backend;
    ncclComm_t nccl; // NULL: given up
    struct flights compute, copy;
    bool shifting, gathering;
    char (*host)[HOST_BYTES]; // [size]
};

static struct nccl_state *nccl_state(const struct comm *comm) {
    return comm->state;
}

static const char *own_host(const struct comm *comm) {
    return nccl_state(comm)->host[comm->rank];
}

// Stops what NCCL has under way on the device: nothing comes after it.
static void give_up(struct comm *comm) {
    struct nccl_state *state = nccl_state(comm);
    if (state->nccl) ncclCommAbort(state->nccl);
    state->nccl = NULL;
}

static enum status late(struct comm *comm, const char *operation, int source, int destination) {
    const char *advice = "see whether it still runs; a longer deadline helps only if it is slow";
    char other[HOST_BYTES + 32] = "";
    give_up(comm);
    if (source == EVERY_RANK)
        FAIL(ERR_RANK, "%s on rank %d (%s): some rank did not take part within %g s: %s", operation,
             comm->rank, own_host(comm), comm->deadline_s, advice);
    if (destination != source)
        snprintf(other, sizeof other, " or rank %d (%s)", destination,
                 nccl_state(comm)->host[destination]);
    FAIL(ERR_RANK, "%s on rank %d (%s): rank %d (%s)%s did not answer within %g s: %s", operation,
         comm->rank, own_host(comm), source, nccl_state(comm)->host[source], other,
         comm->deadline_s, advice);
}

static enum status check_cuda(const struct comm *comm, cudaError_t error, const char *operation) {
    if (error == cudaSuccess) return OK;
    FAIL(ERR_INTERNAL, "%s on rank %d (%s): %s", operation, comm->rank, own_host(comm),
         cudaGetErrorString(error));
}

// The outcome of a call, once NCCL has queued its work.
static enum status settle(struct comm *comm, ncclResult_t result, const char *operation,
                          int source) {
    struct nccl_state *state = nccl_state(comm);
    double begun = cluster_seconds();
    while (result == ncclInProgress) {
        ncclResult_t asked = ncclCommGetAsyncError(state->nccl, &result);
        if (asked != ncclSuccess) result = asked;
        if (result != ncclInProgress) break;
        if (cluster_seconds() - begun > comm->deadline_s)
            return late(comm, operation, source, source);
        sched_yield();
    }
    if (result == ncclSuccess) return OK;
    (void)status_fail(ERR_RANK, __FILE__ ":" STATUS_TEXT(__LINE__),
                      "%s on rank %d (%s): NCCL: %s: %s", operation, comm->rank, own_host(comm),
                      ncclGetErrorString(result), ncclGetLastError(state->nccl));
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
            flights->since = 0;
            continue;
        }
        double now = cluster_seconds();
        if (flights->since == 0 && has_passed(flight->begun)) flights->since = now;
        if (flights->since > 0 && now - flights->since > comm->deadline_s)
            return late(comm, flight->operation, flight->source, flight->destination);
        return OK;
    }
    return OK;
}

static enum status nccl_progress(struct comm *comm) {
    struct nccl_state *state = nccl_state(comm);
    ncclResult_t result = ncclSuccess;
    if (!state->nccl) FAIL(ERR_RANK, "rank %d (%s) has given NCCL up", comm->rank, own_host(comm));
    ncclResult_t asked = ncclCommGetAsyncError(state->nccl, &result);
    if (asked != ncclSuccess) result = asked;
    if (result != ncclInProgress) TRY(settle(comm, result, "exchange", EVERY_RANK));
    TRY(look_at(comm, &state->copy));
    return look_at(comm, &state->compute);
}

static enum status while_waiting(void *comm) {
    return nccl_progress(comm);
}

// An operation's start on a stream. *out is NULL when it goes unwatched: work captured into a graph
// has no time of its own.
static enum status take_off(struct comm *comm, struct flights *flights, const char *operation,
                            int source, struct flight **out) {
    enum cudaStreamCaptureStatus capture;
    *out = NULL;
    TRY(check_cuda(comm, cudaStreamIsCapturing(flights->stream, &capture), operation));
    if (capture == cudaStreamCaptureStatusNone) TRY(nccl_progress(comm));
    if (capture != cudaStreamCaptureStatusNone || flights->next - flights->first == MOST_FLIGHTS)
        return OK;
    *out = &flights->flight[flights->next % MOST_FLIGHTS];
    (*out)->operation = operation;
    (*out)->source = (*out)->destination = source;
    return check_cuda(comm, cudaEventRecord((*out)->begun, flights->stream), operation);
}

static enum status land(struct comm *comm, struct flights *flights, struct flight *flight) {
    if (!flight) return OK;
    TRY(check_cuda(comm, cudaEventRecord(flight->ended, flights->stream), flight->operation));
    flights->next++;
    return OK;
}

// Point-to-point transfers of one operation, which NCCL runs together.
struct group {
    struct comm *comm;
    struct flights *flights;
    struct flight *flight;
    const char *operation;
    int source;
    ncclResult_t result; // the first that is no success
};

static enum status group_begin(struct comm *comm, struct flights *flights, const char *operation,
                               int source, struct group *out) {
    *out = (struct group){comm, flights, NULL, operation, source, ncclSuccess};
    TRY(take_off(comm, flights, operation, source, &out->flight));
    return settle(comm, ncclGroupStart(), operation, source);
}

static void note(struct group *group, ncclResult_t result) {
    if (group->result == ncclSuccess && result != ncclInProgress) group->result = result;
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
    TRY(settle(group->comm, result, group->operation, group->source));
    return land(group->comm, group->flights, group->flight);
}

static enum status copy(struct comm *comm, const struct flights *flights, void *to,
                        const void *from, int64_t bytes) {
    if (bytes == 0 || to == from) return OK;
    cudaError_t error =
        cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, flights->stream);
    return check_cuda(comm, error, "copy of an own block");
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

static enum status copy_own(struct comm *comm, const struct flights *flights,
                            const struct gather *gather) {
    char *own = gather->receive;
    for (int r = 0; r < comm->rank; r++) own += gather->bytes[r];
    return copy(comm, flights, own, gather->send, gather->bytes[comm->rank]);
}

static void group_gather(struct group *group, const struct gather *gather) {
    const struct comm *comm = group->comm;
    char *block = gather->receive;
    for (int r = 0; r < comm->size; block += gather->bytes[r++]) {
        if (r == comm->rank) continue;
        group_send(group, gather->send, gather->bytes[comm->rank], r);
        group_receive(group, block, gather->bytes[r], r);
    }
}

static enum status nccl_gather_start(struct comm *comm, const struct gather *gathers, int n) {
    struct nccl_state *state = nccl_state(comm);
    struct group group;
    TRY(begin_beside(comm, &state->gathering, "gather"));
    for (int i = 0; i < n; i++) TRY(copy_own(comm, &state->copy, &gathers[i]));
    TRY(group_begin(comm, &state->copy, "gather", EVERY_RANK, &group));
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
    TRY(take_off(comm, &state->compute, "all_gather", EVERY_RANK, &flight));
    ncclResult_t result = ncclAllGather(gather->send, gather->receive, (size_t)bytes, ncclInt8,
                                        state->nccl, state->compute.stream);
    TRY(settle(comm, result, "all_gather", EVERY_RANK));
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
    TRY(copy_own(comm, &state->compute, &gather));
    TRY(group_begin(comm, &state->compute, "all_gather", EVERY_RANK, &group));
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
    TRY(copy(comm, &state->compute, to, from, send_bytes[comm->rank]));
    TRY(group_begin(comm, &state->compute, "all_to_all", EVERY_RANK, &group));
    from = send;
    to = receive;
    for (int r = 0; r < comm->size; r++) {
        if (r != comm->rank) {
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
    TRY(take_off(comm, &state->compute, "all_reduce", EVERY_RANK, &flight));
    ncclResult_t result = ncclAllReduce(data, data, (size_t)count, reductions[op].type,
                                        reductions[op].op, state->nccl, state->compute.stream);
    TRY(settle(comm, result, "all_reduce", EVERY_RANK));
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
    TRY(settle(comm, result, "broadcast", root));
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
    TRY(take_off(comm, &state->compute, "step of decoding", EVERY_RANK, &flight));
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
    state->backend->while_waiting = NULL;
    // Finalize lets what is under way end; a job that is failing does not wait for that.
    if (state->nccl && (state->shifting || state->gathering)) give_up(comm);
    if (state->nccl && settle(comm, ncclCommFinalize(state->nccl), "end", EVERY_RANK) == OK)
        ncclCommDestroy(state->nccl);
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
        TRY(check_cuda(comm, error, "start of NCCL"));
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

static enum status meet(struct comm *comm) {
    struct nccl_state *state = nccl_state(comm);
    struct {
        ncclResult_t result;
        ncclUniqueId id;
    } first = {.result = ncclSuccess};
    if (comm->rank == 0) first.result = ncclGetUniqueId(&first.id);
    TRY(comm->host->ops->broadcast(comm->host, &first, sizeof first, 0));
    if (first.result != ncclSuccess)
        FAIL(ERR_RANK, "NCCL does not start on rank 0 (%s): %s", state->host[0],
             ncclGetErrorString(first.result));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclResult_t result =
        ncclCommInitRankConfig(&state->nccl, comm->size, first.id, comm->rank, &config);
    return settle(comm, result, "start of NCCL", EVERY_RANK);
}

// NCCL connects ranks at their first exchange: better now, where a failure is one of the start.
static enum status connect(struct comm *comm) {
    struct backend *backend = nccl_state(comm)->backend;
    struct shift_args shift = {.destination = (comm->rank + 1) % comm->size,
                               .source = (comm->rank + comm->size - 1) % comm->size,
                               .n_buffer = 1};
    enum status status = OK;
    float *x = NULL, zero[2] = {0, 0};
    TRY(backend->ops->alloc(backend, sizeof zero, (void **)&x));
    shift.send[0] = (struct comm_buffer){&x[0], sizeof *x};
    shift.receive[0] = (struct comm_buffer){&x[1], sizeof *x};
    TRY_OR(done, backend->ops->upload(backend, x, zero, sizeof zero));
    TRY_OR(done, nccl_shift_start(comm, &shift));
    TRY_OR(done, nccl_shift_wait(comm));
    TRY_OR(done, nccl_all_reduce(comm, x, 2, REDUCE_SUM_F32));
    TRY_OR(done, backend->ops->sync(backend));
    comm->bytes_sent = comm->bytes_received = 0;
done:
    backend->ops->free(backend, x);
    return status;
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
    backend->while_waiting = while_waiting;
    backend->waiting_user = out;
    state->host = calloc((size_t)out->size, HOST_BYTES);
    if (!state->host) FAIL_OR(failed, ERR_MEMORY, "no memory for %d host names", out->size);
    TRY_OR(failed, learn_hosts(out));
    TRY_OR(failed, open_flights(out, &state->compute, cuda_stream_compute(backend)));
    TRY_OR(failed, open_flights(out, &state->copy, cuda_stream_copy(backend)));
    TRY_OR(failed, meet(out));
    TRY_OR(failed, connect(out));
    return OK;
failed:
    comm_close(out);
    return status;
}
