// A cmocka program that runs on every rank of a job; rank 0 shows the output.
#ifndef HALKA_TESTS_COMMON_MPI_TEST_H
#define HALKA_TESTS_COMMON_MPI_TEST_H

#include "dist/cluster.h"
#include "dist/comm.h"

extern struct cluster mpi_test_cluster;
extern struct comm mpi_test_comm; // the mpi transport; a rank that stays away is noticed in 20 s

void mpi_test_start(int *argc, char ***argv);
// Ends MPI; returns the exit code for this rank's count of failed tests.
int mpi_test_stop(int n_failed);

#endif
