// What the nccl transport's files share.
#ifndef HALKA_DIST_COMM_NCCL_H
#define HALKA_DIST_COMM_NCCL_H

#include <cuda_runtime.h>
#include <nccl.h>

#include "dist/comm.h"
#include "dist/patience.h"

enum {
    MOST_FLIGHTS = 32,
    HOST_BYTES = 64,
    NCCL_EVERY_RANK = -1,
    OWN_IN_GROUP_BYTES = 256 << 10 // longer ones the copy engine moves faster
};

// An operation on a stream: under way from one event to the other.
struct flight {
    cudaEvent_t begun, ended;
    const char *operation;
    int source, destination; // ranks that it waits for; the source may be NCCL_EVERY_RANK
};
// Of one stream, in order: [first, next) may not have ended.
struct flights {
    cudaStream_t stream;
    struct flight flight[MOST_FLIGHTS];
    int64_t first, next;
    bool waits; // the first was seen under way, for as long as this:
    struct patience patience;
};

struct nccl_state {
    struct backend *backend;
    ncclComm_t nccl; // NULL: given up
    struct flights compute, copy;
    bool shifting, gathering;
    char (*host)[HOST_BYTES]; // [size]
};

static inline struct nccl_state *nccl_state(const struct comm *comm) {
    return comm->state;
}
static inline const char *nccl_own_host(const struct comm *comm) {
    return nccl_state(comm)->host[comm->rank];
}

enum status nccl_check_cuda(const struct comm *comm, cudaError_t error, const char *operation);

// comm_nccl_open.c: the communicator, with every connection made.
enum status nccl_meet(struct comm *comm);

#endif
