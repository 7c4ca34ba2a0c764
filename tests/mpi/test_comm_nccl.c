// ranks: 1 2 4
// The nccl transport, one device a rank; skipped where devices are fewer than ranks.
#include <stdio.h>

#include "tests/common/comm_cases.h"
#include "tests/common/mpi_test.h"

static struct backend device;

static enum status open_nccl(struct comm *out, double deadline_s) {
    return comm_nccl_open(out, &mpi_test_host_comm, &device, deadline_s);
}

// The ranks of one host: others have devices of their own.
static bool enough_devices(void) {
    const struct cluster *cluster = &mpi_test_cluster;
    struct comm *host = &mpi_test_host_comm;
    int64_t enough = backend_device_count(BACKEND_CUDA) >= cluster->local_size;
    return host->ops->all_reduce(host, &enough, 1, REDUCE_MIN_I64) == OK && enough;
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    if (!enough_devices()) {
        printf("skipped: %d GPU for %d ranks\n", backend_device_count(BACKEND_CUDA),
               mpi_test_cluster.local_size);
        mpi_test_stop(0);
        return 77;
    }
    struct comm comm;
    struct backend_options options = {
        .kind = BACKEND_CUDA, .n_thread = 1, .device = mpi_test_cluster.local_rank};
    if (backend_open(&options, &device) != OK || open_nccl(&comm, 20) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return mpi_test_stop(1);
    }
    const struct comm_subject subject = {.comm = &comm, .device = &device, .open = open_nccl};
    int n_failed = comm_cases_run(&subject);
    comm_close(&comm);
    backend_close(&device);
    return mpi_test_stop(n_failed);
}
