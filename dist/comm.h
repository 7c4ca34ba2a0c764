// Ranks together: one table of transports (self, mpi, mpi_staged, nccl). Buffers are in the
// transport's memory, which must be the backend's. No call blocks for ever: each wait polls against
// the deadline and returns ERR_RANK, naming the operation and the peer. Counts may exceed INT_MAX.
// Collectives are entered by all ranks in the same order. Communicators are all made in open.
#ifndef HALKA_DIST_COMM_H
#define HALKA_DIST_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum reduce {
    REDUCE_SUM_F32,
    REDUCE_SUM_F64,
    REDUCE_MAX_F64,
    REDUCE_MIN_F64,
    REDUCE_SUM_I64,
    REDUCE_MAX_I64,
    REDUCE_MIN_I64
};

struct comm_buffer {
    void *data;
    int64_t bytes; // 0 is allowed
};

enum { SHIFT_BUFFERS = 4 };
// Sends some buffers to one rank while receiving as many from another (either may be this rank).
struct shift_args {
    int destination, source;
    int n_buffer;                              // at most SHIFT_BUFFERS
    struct comm_buffer send[SHIFT_BUFFERS];    // const in effect
    struct comm_buffer receive[SHIFT_BUFFERS]; // bytes agree with what the source sends
};

// Block r, of bytes[r], of every rank r back to back into receive; send is this rank's block and
// may be its place in receive.
struct gather {
    const void *send;
    void *receive;
    const int64_t *bytes; // [size]
};

struct comm_ops;
struct comm {
    const struct comm_ops *ops;
    enum memory memory;
    int rank, size;
    // The same ranks over host memory: for counts, messages and agreement. NULL: this one.
    struct comm *host;
    bool needs_progress;   // transfers advance only inside calls: long computations call progress()
    double deadline_s;     // of one wait, counted anew whenever a message completes
    int64_t message_bytes; // transfers are cut into messages of at most this, the same on all ranks
    // Counted by the transport: what leaves or enters this rank. An all-reduce counts as the least
    // that any algorithm moves, 2 (N-1)/N of the data.
    int64_t bytes_sent, bytes_received;
    void *state;
};

struct comm_ops {
    const char *name;
    // One shift is in flight at most; its buffers are untouched until shift_wait returns.
    enum status (*shift_start)(struct comm *, const struct shift_args *);
    // After a missed deadline the shift is still in flight: wait again, or end the job.
    enum status (*shift_wait)(struct comm *);
    // Some all-gathers at once, beside a shift and the collectives: they have a communicator of
    // their own. One such set is in flight at most; buffers and waits are a shift's, `bytes` may go
    // after the start.
    enum status (*gather_start)(struct comm *, const struct gather *, int n);
    enum status (*gather_wait)(struct comm *);
    enum status (*progress)(struct comm *); // of both
    // One gather, as above.
    enum status (*all_gather)(struct comm *, const void *send, void *receive, const int64_t *bytes);
    // Blocks back to back: send_bytes[r] go to rank r, receive_bytes[r] come from it.
    enum status (*all_to_all)(struct comm *, const void *send, const int64_t *send_bytes,
                              void *receive, const int64_t *receive_bytes);
    // In place; the result is bitwise the same on every rank.
    enum status (*all_reduce)(struct comm *, void *data, int64_t count, enum reduce op);
    enum status (*broadcast)(struct comm *, void *data, int64_t bytes, int root);
    enum status (*barrier)(struct comm *);
    // Launches the step that the backend keeps (kernel_ops.steps), watching its exchanges. NULL:
    // exchanges wait on the host and can be no part of a step.
    enum status (*launch_step)(struct comm *);
    void (*close)(struct comm *);
};

static inline struct comm *comm_host(struct comm *comm) {
    return comm->host ? comm->host : comm;
}

// One rank, no library: every exchange is a copy, queued on the device; NULL: in host memory.
enum status comm_self_open(struct comm *out, struct backend *device);
// The MPI job's ranks, host memory. MPI must be initialised (cluster_start).
enum status comm_mpi_open(struct comm *out, double deadline_s);
// Device memory. Operations are ordered like work queued on the backend: they begin after what was
// queued before, and what is queued after them (a shift: after shift_wait) sees their results.
// `host` joins the same ranks and outlives the transport, as `backend` does.
// mpi_staged: through pinned host memory; any ranks may share a device.
enum status comm_mpi_staged_open(struct comm *out, struct comm *host, struct backend *backend,
                                 double deadline_s);
// mpi on device pointers: only where MPI was built for them, which the second function tells.
enum status comm_mpi_device_open(struct comm *out, struct comm *host, struct backend *backend,
                                 double deadline_s);
bool comm_mpi_reaches_devices(void);
// NCCL, one rank a device. ERR_CONFIG in a build without it.
enum status comm_nccl_open(struct comm *out, struct comm *host, struct backend *backend,
                           double deadline_s);
void comm_close(struct comm *comm); // accepts a zeroed struct

int reduce_element_bytes(enum reduce op);

// Whether each rank computes on a device of its own. All ranks learn the same.
enum status comm_devices_distinct(struct comm *comm, const struct backend *backend, bool *out);

// All ranks learn the lowest failing rank's code and message, "rank R (host): ...".
// Only for loading and planning, where every rank reaches the same call.
enum status comm_agree(struct comm *comm, enum status status);

#endif
