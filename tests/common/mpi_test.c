#include "tests/common/mpi_test.h"

#include <stdio.h>
#include <stdlib.h>

struct cluster mpi_test_cluster;
struct comm mpi_test_comm;

void mpi_test_start(int *argc, char ***argv) {
    if (cluster_start(argc, argv, 1, &mpi_test_cluster) != OK ||
        comm_mpi_open(&mpi_test_comm, 20.0) != OK) {
        fprintf(stderr, "%s\n", status_message());
        exit(1);
    }
    if (mpi_test_cluster.rank != 0 && !freopen("/dev/null", "w", stdout)) exit(1);
}

int mpi_test_stop(int n_failed) {
    if (n_failed) cluster_abort(&mpi_test_cluster, 1); // others may still wait for this rank
    comm_close(&mpi_test_comm);
    cluster_stop(&mpi_test_cluster);
    return 0;
}
