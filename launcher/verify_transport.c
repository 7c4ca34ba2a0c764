// Every exchange of the transport, on sizes that differ from rank to rank and include none.
#include <stdlib.h>

#include "launcher/verify.h"

enum { MOST_BYTES = 3 << 20 };

static unsigned char pattern(int rank, int64_t i) {
    return (unsigned char)(i * 31 + rank * 17 + 5);
}

static void fill(unsigned char *data, int64_t bytes, int rank) {
    for (int64_t i = 0; i < bytes; i++) data[i] = pattern(rank, i);
}

static bool matches(const unsigned char *data, int64_t bytes, int rank) {
    for (int64_t i = 0; i < bytes; i++) {
        if (data[i] != pattern(rank, i)) return false;
    }
    return true;
}

static int64_t block_bytes(int rank) {
    return rank % 2 ? 1000003 % (rank * 7919 + 1) : 65537 + rank;
}

static enum status verify_shift(struct verify *v, unsigned char *send, unsigned char *receive) {
    struct comm *comm = &v->job->comm;
    int source = (comm->rank + comm->size - 1) % comm->size;
    fill(send, MOST_BYTES, comm->rank);
    TRY(comm->ops->shift_start(
        comm, &(struct shift_args){.destination = (comm->rank + 1) % comm->size,
                                   .source = source,
                                   .n_buffer = 2,
                                   .send = {{send, MOST_BYTES}, {send, 0}},
                                   .receive = {{receive, MOST_BYTES}, {receive, 0}}}));
    TRY(comm->ops->shift_wait(comm));
    return verify_exact(v, "shift", "3 MiB to the next rank", matches(receive, MOST_BYTES, source));
}

static enum status verify_gather(struct verify *v, unsigned char *send, unsigned char *receive) {
    struct comm *comm = &v->job->comm;
    int64_t bytes[comm->size], at = 0;
    bool right = true;
    for (int rank = 0; rank < comm->size; rank++) bytes[rank] = block_bytes(rank);
    fill(send, bytes[comm->rank], comm->rank);
    TRY(comm->ops->all_gather(comm, send, receive, bytes));
    for (int rank = 0; rank < comm->size; at += bytes[rank++]) {
        right = right && matches(receive + at, bytes[rank], rank);
    }
    return verify_exact(v, "all-gather", "uneven blocks", right);
}

static enum status verify_all_to_all(struct verify *v, unsigned char *send,
                                     unsigned char *receive) {
    struct comm *comm = &v->job->comm;
    int64_t send_bytes[comm->size], receive_bytes[comm->size], at = 0;
    bool right = true;
    for (int rank = 0; rank < comm->size; rank++) {
        send_bytes[rank] = block_bytes((comm->rank + 2 * rank) % 5);
        receive_bytes[rank] = block_bytes((rank + 2 * comm->rank) % 5);
        fill(send + at, send_bytes[rank], comm->rank + 3 * rank);
        at += send_bytes[rank];
    }
    TRY(comm->ops->all_to_all(comm, send, send_bytes, receive, receive_bytes));
    at = 0;
    for (int rank = 0; rank < comm->size; at += receive_bytes[rank++]) {
        right = right && matches(receive + at, receive_bytes[rank], rank + 3 * comm->rank);
    }
    return verify_exact(v, "all-to-all", "uneven blocks", right);
}

static enum status verify_reduce(struct verify *v) {
    struct comm *comm = &v->job->comm;
    int64_t sum[3], n = comm->size;
    double most = comm->rank;
    for (int i = 0; i < 3; i++) sum[i] = (int64_t)i + comm->rank;
    TRY(comm->ops->all_reduce(comm, sum, 3, REDUCE_SUM_I64));
    TRY(comm->ops->all_reduce(comm, &most, 1, REDUCE_MAX_F64));
    bool right = most == (double)(n - 1);
    for (int i = 0; i < 3; i++) right = right && sum[i] == i * n + n * (n - 1) / 2;
    return verify_exact(v, "all-reduce", "sum, most", right);
}

static enum status verify_broadcast(struct verify *v, unsigned char *data) {
    struct comm *comm = &v->job->comm;
    bool right = true;
    for (int root = 0; root < comm->size; root++) {
        fill(data, 100003, comm->rank == root ? root : root + 1);
        TRY(comm->ops->broadcast(comm, data, 100003, root));
        right = right && matches(data, 100003, root);
    }
    return verify_exact(v, "broadcast", "from each rank", right);
}

enum status verify_transport(struct verify *v) {
    size_t bytes = (size_t)MOST_BYTES + (size_t)v->job->comm.size * (1 << 20);
    unsigned char *send = malloc(bytes), *receive = calloc(bytes, 1);
    enum status status = OK;
    if (!send || !receive) FAIL_OR(done, ERR_MEMORY, "no memory for the transport's self-test");
    TRY_OR(done, verify_shift(v, send, receive));
    TRY_OR(done, verify_gather(v, send, receive));
    TRY_OR(done, verify_all_to_all(v, send, receive));
    TRY_OR(done, verify_reduce(v));
    TRY_OR(done, verify_broadcast(v, send));
done:
    free(receive);
    free(send);
    return status;
}
