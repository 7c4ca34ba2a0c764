// The start of NCCL. Its calls are quick only where the communicator blocks, and then a rank that
// does not answer blocks the one that meets it: so the ranks meet, and make every connection that
// later exchanges use, in a thread that is left behind at the deadline.
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "dist/comm_nccl.h"

// A start makes connections by the dozen: it may take what no exchange may.
static const double kStartSeconds = 30;

struct meeting { // outlives the wait for it
    int rank, size, device;
    ncclUniqueId id;
    cudaStream_t stream;
    float *room; // [size + 1] device memory
    ncclComm_t nccl;
    ncclResult_t result;
    _Atomic bool ended;
};

// One exchange of each kind: NCCL connects ranks where they first use a connection.
static ncclResult_t connect_all(const struct meeting *m) {
    ncclResult_t result = ncclGroupStart(), first = result;
    for (int r = 0; r < m->size; r++) {
        if (r == m->rank) continue;
        result = ncclSend(m->room, 1, ncclFloat32, r, m->nccl, m->stream);
        if (first == ncclSuccess) first = result;
        result = ncclRecv(m->room + 1 + r, 1, ncclFloat32, r, m->nccl, m->stream);
        if (first == ncclSuccess) first = result;
    }
    result = ncclGroupEnd();
    if (first == ncclSuccess) first = result;
    if (first == ncclSuccess)
        first = ncclAllReduce(m->room, m->room, 1, ncclFloat32, ncclMax, m->nccl, m->stream);
    if (first == ncclSuccess)
        first = ncclAllGather(m->room, m->room + 1, 1, ncclFloat32, m->nccl, m->stream);
    if (first == ncclSuccess)
        first = ncclBroadcast(m->room, m->room, 1, ncclFloat32, 0, m->nccl, m->stream);
    if (first == ncclSuccess && cudaStreamSynchronize(m->stream) != cudaSuccess)
        first = ncclUnhandledCudaError;
    return first;
}

static void *attend(void *meeting) {
    struct meeting *m = meeting;
    m->result = cudaSetDevice(m->device) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
    if (m->result == ncclSuccess) m->result = ncclCommInitRank(&m->nccl, m->size, m->id, m->rank);
    if (m->result == ncclSuccess) m->result = connect_all(m);
    m->ended = true;
    return NULL;
}

// All ranks learn rank 0's id.
static enum status share_id(struct comm *comm, ncclUniqueId *out) {
    struct {
        ncclResult_t result;
        ncclUniqueId id;
    } first = {.result = ncclSuccess};
    if (comm->rank == 0) first.result = ncclGetUniqueId(&first.id);
    TRY(comm->host->ops->broadcast(comm->host, &first, sizeof first, 0));
    if (first.result != ncclSuccess)
        FAIL(ERR_RANK, "NCCL does not start on rank 0 (%s): %s", nccl_state(comm)->host[0],
             ncclGetErrorString(first.result));
    *out = first.id;
    return OK;
}

static enum status hold(struct comm *comm, struct meeting *m) {
    pthread_t thread;
    const struct timespec pause = {.tv_nsec = 200000};
    if (pthread_create(&thread, NULL, attend, m))
        FAIL(ERR_INTERNAL, "no thread for the start of NCCL");
    double deadline_s = comm->deadline_s > kStartSeconds ? comm->deadline_s : kStartSeconds;
    struct patience patience = patience_begin();
    while (!m->ended) {
        if (patience_look(&patience, false, deadline_s) > deadline_s) {
            pthread_detach(thread);
            FAIL(ERR_RANK,
                 "start of NCCL on rank %d (%s): some rank did not take part within %g s: see "
                 "whether it still runs, and whether its GPU is reached (NCCL_DEBUG=WARN)",
                 comm->rank, nccl_own_host(comm), deadline_s);
        }
        nanosleep(&pause, NULL);
    }
    pthread_join(thread, NULL);
    if (m->result == ncclSuccess) {
        nccl_state(comm)->nccl = m->nccl;
        return OK;
    }
    enum status status = status_fail(
        ERR_RANK, __FILE__ ":" STATUS_TEXT(__LINE__), "start of NCCL on rank %d (%s): %s: %s",
        comm->rank, nccl_own_host(comm), ncclGetErrorString(m->result), ncclGetLastError(m->nccl));
    if (m->nccl) ncclCommAbort(m->nccl);
    return status;
}

enum status nccl_meet(struct comm *comm) {
    struct backend *backend = nccl_state(comm)->backend;
    ncclUniqueId id;
    void *room = NULL;
    setenv("NCCL_RUNTIME_CONNECT", "0", 0); // every algorithm's connections at the start
    TRY(share_id(comm, &id));
    TRY(backend->ops->alloc(backend, (comm->size + 1) * (int64_t)sizeof(float), &room));
    TRY(backend->ops->sync(backend)); // what the thread queues comes after it
    struct meeting *m = malloc(sizeof *m);
    if (!m) {
        backend->ops->free(backend, room);
        FAIL(ERR_MEMORY, "no memory for the start of NCCL");
    }
    *m = (struct meeting){.rank = comm->rank,
                          .size = comm->size,
                          .id = id,
                          .stream = nccl_state(comm)->compute.stream,
                          .room = room};
    enum status status = nccl_check_cuda(comm, cudaGetDevice(&m->device), "start of NCCL");
    if (status == OK) status = hold(comm, m);
    if (status != OK && !m->ended) return status; // the thread may still use both
    backend->ops->free(backend, room);
    free(m);
    return status;
}
