#include "tests/common/mpi_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/common/backends.h"
#include "tests/common/cases.h"
#include "tests/common/fake_device.h"

struct cluster mpi_test_cluster;
struct comm mpi_test_host_comm, mpi_test_comm;

static void demand(enum status status) {
    if (status == OK) return;
    fprintf(stderr, "%s\n", status_message());
    if (mpi_test_cluster.mpi) cluster_abort(&mpi_test_cluster, 1);
    exit(1);
}

void mpi_test_start_with(int *argc, char ***argv, int n_thread, double deadline_s) {
    demand(cluster_start(argc, argv, n_thread, &mpi_test_cluster));
    demand(comm_mpi_open(&mpi_test_host_comm, deadline_s));
    mpi_test_comm = mpi_test_host_comm;
    if (mpi_test_cluster.rank != 0 && !freopen("/dev/null", "w", stdout)) exit(1);
}

void mpi_test_start(int *argc, char ***argv) {
    mpi_test_start_with(argc, argv, 1, 20.0);
}

int mpi_test_stop(int n_failed) {
    if (n_failed) cluster_abort(&mpi_test_cluster, 1); // others may still wait for this rank
    comm_close(&mpi_test_host_comm);
    cluster_stop(&mpi_test_cluster);
    return 0;
}

static void open_device_comm(struct backend *backend) {
    const char *wish = getenv("HALKA_TEST_TRANSPORT");
    struct comm *host = &mpi_test_host_comm;
    if (wish && strcmp(wish, "nccl") == 0) {
        demand(comm_nccl_open(&mpi_test_comm, host, backend, host->deadline_s));
    } else if (host->size == 1) {
        demand(comm_self_open(&mpi_test_comm, backend));
        mpi_test_comm.host = host;
    } else {
        demand(comm_mpi_staged_open(&mpi_test_comm, host, backend, host->deadline_s));
    }
}

int mpi_test_device(void) {
    int n_device = backend_device_count(BACKEND_CUDA);
    return n_device ? mpi_test_cluster.local_rank % n_device : 0;
}

void mpi_test_open_backend(enum backend_kind kind, struct backend *out) {
    struct backend_options options = {.kind = kind, .n_thread = mpi_test_cluster.n_thread};
    enum test_place place = test_place();
    if (place == PLACE_CUDA) {
        options.kind = BACKEND_CUDA;
        options.device = mpi_test_device();
    }
    demand(backend_open(&options, out));
    if (place == PLACE_FAKE) fake_device_open(*out, out);
    if (out->memory == MEMORY_HOST) return;
    open_device_comm(out);
}

void mpi_test_close_backend(struct backend *backend) {
    if (backend->memory == MEMORY_DEVICE) comm_close(&mpi_test_comm);
    backend_close(backend);
    mpi_test_comm = mpi_test_host_comm;
}

bool mpi_test_repeats(enum backend_kind kind) {
    return test_place() == PLACE_CUDA && kind != BACKEND_CPU;
}

struct test_buffer test_buffer_open(struct backend *backend, int64_t bytes) {
    struct test_buffer buffer = test_buffer_take(backend, test_alloc(bytes), bytes);
    test_buffer_poison(&buffer);
    return buffer;
}

struct test_buffer test_buffer_take(struct backend *backend, void *host, int64_t bytes) {
    struct test_buffer buffer = {.backend = backend, .host = host, .bytes = bytes};
    demand(backend->ops->alloc(backend, bytes, &buffer.image));
    test_buffer_push(&buffer);
    return buffer;
}

void test_buffer_push(const struct test_buffer *buffer) {
    struct backend *backend = buffer->backend;
    demand(backend->ops->upload(backend, buffer->image, buffer->host, buffer->bytes));
}

void test_buffer_pull(const struct test_buffer *buffer) {
    struct backend *backend = buffer->backend;
    demand(backend->ops->download(backend, buffer->host, buffer->image, buffer->bytes));
    demand(backend->ops->sync(backend));
}

void test_buffer_poison(const struct test_buffer *buffer) {
    poison(buffer->host, buffer->bytes);
    test_buffer_push(buffer);
}

void test_buffer_close(struct test_buffer *buffer) {
    if (buffer->image) buffer->backend->ops->free(buffer->backend, buffer->image);
    free(buffer->host);
    *buffer = (struct test_buffer){0};
}
