// A job whose last rank leaves in mid-ring, for tests/cli/rank_lost.sh: `lose_rank exit` ends that
// process with an error and no word to MPI, `lose_rank stay` lets it live on without taking part.
// The other ranks do what launcher/main.c does: one message, and the exit code of a lost rank.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dist/ring_attention.h"
#include "tests/common/cases.h"
#include "tests/common/mpi_test.h"

enum { N_TOKEN = 4096, N_HEAD = 4, DIM = 64, N_LAYER = 4 };
static const double kDeadline = 3; // rank_lost.sh counts on it

struct leaving_ops { // stands in for the transport's table
    struct comm_ops ops;
    const struct comm_ops *own;
    bool exits;
};

static enum status shift_once(struct comm *comm, const struct shift_args *args) {
    const struct leaving_ops *leaving = (const void *)comm->ops;
    if (comm->bytes_sent == 0) return leaving->own->shift_start(comm, args);
    if (leaving->exits) _exit(1);
    for (;;) pause();
}

static _Noreturn void end(enum status status) {
    (void)status_context(status, "rank %d (%s)", mpi_test_cluster.rank, mpi_test_cluster.host);
    fprintf(stderr, "lose_rank: error: %s\n", status_message());
    cluster_abort(&mpi_test_cluster, (int)status);
}

static void require(enum status status) {
    if (status != OK) end(status);
}

static void *on_device(struct backend *backend, int64_t n, uint64_t seed) {
    void *x = random_vector(DTYPE_F32, n, 1, seed), *out;
    require(backend->ops->alloc(backend, n * 4, &out));
    require(backend->ops->upload(backend, out, x, n * 4));
    require(backend->ops->sync(backend));
    free(x);
    return out;
}

static enum status run_layers(struct backend *backend, struct comm *comm,
                              const struct sequence *sequence) {
    const struct attention_shape shape = {N_HEAD, N_HEAD, DIM, DIM, 4, 4, false};
    const struct ring_extent extent = {
        .memory = backend->memory, .size = comm->size, .shard = N_TOKEN, .query = N_TOKEN};
    int64_t n = sequence_count(sequence, comm->rank, 0, N_TOKEN) * N_HEAD * DIM;
    struct profile profile = {.device = NULL};
    struct ring_attention ring;
    TRY(ring_attention_open(&ring, backend, comm, &profile,
                            ring_attention_workspace_bytes(&shape, &extent)));
    const struct ring_attention_args args = {.sequence = sequence,
                                             .query_end = N_TOKEN,
                                             .n_head = N_HEAD,
                                             .n_kv_head = N_HEAD,
                                             .head_dim = DIM,
                                             .value_dim = DIM,
                                             .scale = 0.125f,
                                             .visibility = VISIBILITY_CAUSAL,
                                             .pass = PASS_KV,
                                             .query = on_device(backend, n, 1),
                                             .query_dtype = DTYPE_F32,
                                             .key = on_device(backend, n, 2),
                                             .value = on_device(backend, n, 3),
                                             .kv_dtype = DTYPE_F32,
                                             .out = on_device(backend, n, 4),
                                             .lse = on_device(backend, n, 5)};
    for (int layer = 0; layer < N_LAYER; layer++) TRY(ring_attention_run(&ring, &args));
    return backend->ops->sync(backend);
}

int main(int argc, char **argv) {
    struct backend backend;
    struct sequence sequence;
    mpi_test_start_with(&argc, &argv, 1, kDeadline);
    mpi_test_open_backend(BACKEND_CPU, &backend);
    struct comm *comm = &mpi_test_comm;
    struct leaving_ops leaving = {.ops = *comm->ops, .own = comm->ops};
    leaving.ops.shift_start = shift_once;
    leaving.exits = argc > 1 && strcmp(argv[1], "exit") == 0;
    if (comm->rank == comm->size - 1) comm->ops = &leaving.ops;
    sequence_open(&sequence, comm->size);
    if (!sequence_append(&sequence, LAYOUT_ZIGZAG, N_TOKEN))
        require(status_fail(ERR_MEMORY, "", "no memory for a sequence"));
    require(run_layers(&backend, comm, &sequence));
    end(status_fail(ERR_INTERNAL, "", "all ranks took part"));
}
