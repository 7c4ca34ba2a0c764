// A cmocka program that runs on every rank of a job; rank 0 shows the output. HALKA_TEST_BACKEND
// says where its backends compute: cpu (or unset), fake (tests/common/fake_device.h) or cuda;
// HALKA_TEST_TRANSPORT = nccl takes that in place of self and mpi_staged.
#ifndef HALKA_TESTS_COMMON_MPI_TEST_H
#define HALKA_TESTS_COMMON_MPI_TEST_H

#include "dist/cluster.h"
#include "dist/comm.h"

extern struct cluster mpi_test_cluster;
extern struct comm mpi_test_host_comm; // the mpi transport; a rank that stays away is noticed
// The transport that reaches the open backend's memory: between the two calls below a device's,
// otherwise the host's.
extern struct comm mpi_test_comm;

void mpi_test_start(int *argc, char ***argv); // one thread a rank, 20 s to notice
void mpi_test_start_with(int *argc, char ***argv, int n_thread, double deadline_s);
// Ends MPI; returns the exit code for this rank's count of failed tests.
int mpi_test_stop(int n_failed);

// The cuda device of this rank.
int mpi_test_device(void);
// The backend of this kind, or a device in its place: a fake one over it, or cuda. Fails the
// program when it cannot be opened.
void mpi_test_open_backend(enum backend_kind kind, struct backend *out);
void mpi_test_close_backend(struct backend *backend);
// Whether a test of another kind of backend would only repeat what cuda did.
bool mpi_test_repeats(enum backend_kind kind);

// Host memory and its image in a backend's memory.
struct test_buffer {
    struct backend *backend;
    void *host, *image; // owned
    int64_t bytes;
};
struct test_buffer test_buffer_open(struct backend *backend, int64_t bytes); // both poisoned
// Takes the host memory over, and copies it to the backend.
struct test_buffer test_buffer_take(struct backend *backend, void *host, int64_t bytes);
void test_buffer_push(const struct test_buffer *buffer); // host to image
void test_buffer_pull(const struct test_buffer *buffer); // image to host
void test_buffer_poison(const struct test_buffer *buffer);
void test_buffer_close(struct test_buffer *buffer);

#endif
