// Every exchange of the transport, on sizes that differ from rank to rank and include none.
#include <string.h>

#include "launcher/verify.h"

enum { MOST_BYTES = 3 << 20 };

// In the transport's memory, as its images.
struct exchange_buffers {
    struct verify_memory memory;
    unsigned char *send, *receive, *send_image, *receive_image;
};

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

static enum status verify_shift(struct verify *v, struct exchange_buffers *b) {
    struct comm *comm = &v->job->comm;
    int source = (comm->rank + comm->size - 1) % comm->size;
    fill(b->send, MOST_BYTES, comm->rank);
    TRY(verify_push(&b->memory));
    TRY(comm->ops->shift_start(
        comm,
        &(struct shift_args){.destination = (comm->rank + 1) % comm->size,
                             .source = source,
                             .n_buffer = 2,
                             .send = {{b->send_image, MOST_BYTES}, {b->send_image, 0}},
                             .receive = {{b->receive_image, MOST_BYTES}, {b->receive_image, 0}}}));
    TRY(comm->ops->shift_wait(comm));
    TRY(verify_pull(&b->memory));
    return verify_exact(v, "shift", "3 MiB to the next rank",
                        matches(b->receive, MOST_BYTES, source));
}

static enum status verify_gather(struct verify *v, struct exchange_buffers *b) {
    struct comm *comm = &v->job->comm;
    int64_t bytes[comm->size], at = 0;
    bool right = true;
    for (int rank = 0; rank < comm->size; rank++) bytes[rank] = block_bytes(rank);
    fill(b->send, bytes[comm->rank], comm->rank);
    TRY(verify_push(&b->memory));
    TRY(comm->ops->all_gather(comm, b->send_image, b->receive_image, bytes));
    TRY(verify_pull(&b->memory));
    for (int rank = 0; rank < comm->size; at += bytes[rank++]) {
        right = right && matches(b->receive + at, bytes[rank], rank);
    }
    return verify_exact(v, "all-gather", "uneven blocks", right);
}

static enum status verify_all_to_all(struct verify *v, struct exchange_buffers *b) {
    struct comm *comm = &v->job->comm;
    int64_t send_bytes[comm->size], receive_bytes[comm->size], at = 0;
    bool right = true;
    for (int rank = 0; rank < comm->size; rank++) {
        send_bytes[rank] = block_bytes((comm->rank + 2 * rank) % 5);
        receive_bytes[rank] = block_bytes((rank + 2 * comm->rank) % 5);
        fill(b->send + at, send_bytes[rank], comm->rank + 3 * rank);
        at += send_bytes[rank];
    }
    TRY(verify_push(&b->memory));
    TRY(comm->ops->all_to_all(comm, b->send_image, send_bytes, b->receive_image, receive_bytes));
    TRY(verify_pull(&b->memory));
    at = 0;
    for (int rank = 0; rank < comm->size; at += receive_bytes[rank++]) {
        right = right && matches(b->receive + at, receive_bytes[rank], rank + 3 * comm->rank);
    }
    return verify_exact(v, "all-to-all", "uneven blocks", right);
}

static enum status verify_reduce(struct verify *v, struct exchange_buffers *b) {
    struct comm *comm = &v->job->comm;
    int64_t *sum = (int64_t *)(void *)b->send, n = comm->size;
    double *most = (double *)(void *)b->receive;
    *most = comm->rank;
    for (int i = 0; i < 3; i++) sum[i] = (int64_t)i + comm->rank;
    TRY(verify_push(&b->memory));
    TRY(comm->ops->all_reduce(comm, b->send_image, 3, REDUCE_SUM_I64));
    TRY(comm->ops->all_reduce(comm, b->receive_image, 1, REDUCE_MAX_F64));
    TRY(verify_pull(&b->memory));
    bool right = *most == (double)(n - 1);
    for (int i = 0; i < 3; i++) right = right && sum[i] == i * n + n * (n - 1) / 2;
    return verify_exact(v, "all-reduce", "sum, most", right);
}

static enum status verify_broadcast(struct verify *v, struct exchange_buffers *b) {
    struct comm *comm = &v->job->comm;
    bool right = true;
    for (int root = 0; root < comm->size; root++) {
        fill(b->send, 100003, comm->rank == root ? root : root + 1);
        TRY(verify_push(&b->memory));
        TRY(comm->ops->broadcast(comm, b->send_image, 100003, root));
        TRY(verify_pull(&b->memory));
        right = right && matches(b->send, 100003, root);
    }
    return verify_exact(v, "broadcast", "from each rank", right);
}

static enum status buffers_open(struct verify *v, struct exchange_buffers *b) {
    int64_t bytes = MOST_BYTES + (int64_t)v->job->comm.size * (1 << 20);
    TRY(verify_memory_open(&b->memory, &v->job->backend, 2 * bytes));
    b->send = verify_take(&b->memory, bytes);
    b->receive = verify_take(&b->memory, bytes);
    if (!b->receive) FAIL(ERR_MEMORY, "no memory for the transport's self-test");
    b->send_image = verify_image(&b->memory, b->send);
    b->receive_image = verify_image(&b->memory, b->receive);
    memset(b->send, 0, (size_t)bytes);
    memset(b->receive, 0, (size_t)bytes);
    return OK;
}

enum status verify_transport(struct verify *v) {
    struct exchange_buffers b = {0};
    enum status status = OK;
    TRY_OR(done, buffers_open(v, &b));
    TRY_OR(done, verify_shift(v, &b));
    TRY_OR(done, verify_gather(v, &b));
    TRY_OR(done, verify_all_to_all(v, &b));
    TRY_OR(done, verify_reduce(v, &b));
    TRY_OR(done, verify_broadcast(v, &b));
done:
    verify_memory_close(&b.memory);
    return status;
}
