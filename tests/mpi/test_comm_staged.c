// ranks: 1 2 3 4
// The mpi_staged transport, over this machine's cuda device, or over a fake one where there is
// none.
#include <stdio.h>
#include <stdlib.h>

#include "tests/common/comm_cases.h"
#include "tests/common/fake_device.h"
#include "tests/common/mpi_test.h"

static struct backend device;

static enum status open_staged(struct comm *out, double deadline_s) {
    return comm_mpi_staged_open(out, &mpi_test_host_comm, &device, deadline_s);
}

static enum status open_device(void) {
    int n_device = backend_device_count(BACKEND_CUDA);
    struct backend_options options = {.kind = n_device ? BACKEND_CUDA : BACKEND_REFERENCE,
                                      .n_thread = 1,
                                      .device =
                                          mpi_test_cluster.local_rank % (n_device + !n_device)};
    TRY(backend_open(&options, &device));
    if (!n_device) fake_device_open(device, &device);
    return OK;
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    struct comm comm;
    if (open_device() != OK || open_staged(&comm, 20) != OK) {
        fprintf(stderr, "%s\n", status_message());
        return mpi_test_stop(1);
    }
    const struct comm_subject subject = {.comm = &comm,
                                         .device = &device,
                                         .open = open_staged,
                                         .cuts_messages = true,
                                         .host_sees = true};
    int n_failed = comm_cases_run(&subject);
    comm_close(&comm);
    backend_close(&device);
    return mpi_test_stop(n_failed);
}
