// In place of dist/comm_nccl.c in a build without CUDA.
#include "dist/comm.h"

enum status comm_nccl_open(struct comm *out, struct comm *host, struct backend *backend,
                           double deadline_s) {
    (void)out, (void)host, (void)backend, (void)deadline_s;
    FAIL(ERR_CONFIG, "this build has no NCCL: use the one of make CUDA=1, or set run.transport to "
                     "auto, mpi or mpi_staged");
}
