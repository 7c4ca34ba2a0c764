#include "dist/comm.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

void comm_close(struct comm *comm) {
    if (comm->ops) comm->ops->close(comm);
    *comm = (struct comm){0};
}

int reduce_element_bytes(enum reduce op) {
    return op == REDUCE_SUM_F32 ? 4 : 8;
}

enum status comm_agree(struct comm *comm, enum status status) {
    struct {
        int32_t code;
        char text[1300]; // a status message and the name of its rank and host
    } verdict = {.code = (int32_t)status};
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
    FAIL((enum status)verdict.code, "%s", verdict.text);
}
