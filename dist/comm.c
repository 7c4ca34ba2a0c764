#include "dist/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void comm_close(struct comm *comm) {
    if (comm->ops) comm->ops->close(comm);
    *comm = (struct comm){0};
}

int reduce_element_bytes(enum reduce op) {
    return op == REDUCE_SUM_F32 ? 4 : 8;
}

enum status comm_devices_distinct(struct comm *comm, const struct backend *backend, bool *out) {
    enum { ID_BYTES = sizeof backend->device_id };
    enum status status = OK;
    struct comm *host = comm_host(comm);
    unsigned char(*id)[ID_BYTES] = calloc((size_t)host->size, sizeof *id);
    int64_t *bytes = calloc((size_t)host->size, sizeof *bytes);
    if (!id || !bytes) FAIL_OR(done, ERR_MEMORY, "no memory to compare devices");
    for (int r = 0; r < host->size; r++) bytes[r] = ID_BYTES;
    TRY_OR(done, host->ops->all_gather(host, backend->device_id, id, bytes));
    *out = true;
    for (int r = 0; r < host->size; r++)
        for (int other = 0; other < r; other++)
            if (memcmp(id[r], id[other], ID_BYTES) == 0) *out = false;
done:
    free(bytes);
    free(id);
    return status;
}

enum status comm_agree(struct comm *comm, enum status status) {
    struct {
        int32_t code;
        char text[1300]; // a status message and the name of its rank and host
    } verdict = {.code = (int32_t)status};
    comm = comm_host(comm);
    if (comm->size == 1) return status;
    int64_t failing = status == OK ? comm->size : comm->rank;
    TRY(comm->ops->all_reduce(comm, &failing, 1, REDUCE_MIN_I64));
    if (failing == comm->size) return OK;
    if (failing == comm->rank) {
        char host[256] = "";
        gethostname(host, sizeof host - 1);
        snprintf(verdict.text, sizeof verdict.text, "rank %d (%s): %s", comm->rank, host,
                 status_message());
    }
    TRY(comm->ops->broadcast(comm, &verdict, sizeof verdict, (int)failing));
    return status_share(status_fail((enum status)verdict.code, __FILE__ ":" STATUS_TEXT(__LINE__),
                                    "%s", verdict.text));
}
