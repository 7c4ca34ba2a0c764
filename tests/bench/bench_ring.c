// What the transport and ring attention deliver on these ranks (mpirun -np 2 ...): GB/s of a shift,
// latency of small collectives, the share of ring attention that is exposed wait, how many queries
// make pass-Q slower than pass-KV, and what windows gain by the halo. Best of several short runs,
// slowest rank.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dist/cluster.h"
#include "dist/ring_attention.h"
#include "tests/common/cases.h"

enum { N_REPEAT = 7, N_HEAD = 9, N_KV_HEAD = 3, HEAD_DIM = 64, N_TOKEN = 8192 };

static struct cluster cluster;
static struct comm comm;

static void require(enum status status) {
    if (status == OK) return;
    fprintf(stderr, "%s\n", status_message());
    cluster_abort(&cluster, status);
}

static double slowest(double seconds) {
    require(comm.ops->all_reduce(&comm, &seconds, 1, REDUCE_MAX_F64));
    return seconds;
}

static void print_shift(int64_t bytes) {
    char *send = test_alloc(bytes), *receive = test_alloc(bytes);
    poison(send, bytes);
    struct shift_args args = {.destination = (comm.rank + 1) % comm.size,
                              .source = (comm.rank + comm.size - 1) % comm.size,
                              .n_buffer = 1,
                              .send = {{send, bytes}},
                              .receive = {{receive, bytes}}};
    double best = INFINITY;
    for (int i = 0; i < N_REPEAT; i++) {
        require(comm.ops->barrier(&comm));
        double begun = cluster_seconds();
        require(comm.ops->shift_start(&comm, &args));
        require(comm.ops->shift_wait(&comm));
        best = fmin(best, slowest(cluster_seconds() - begun));
    }
    if (comm.rank == 0)
        printf("ring %3d MiB %8.2f GB/s received by each rank\n", (int)(bytes >> 20),
               (double)bytes / best * 1e-9);
    free(send);
    free(receive);
}

// Mean of a batch, best of the batches.
static void print_latency(void) {
    enum { BATCH = 200, BYTES = 4096 };
    double best_reduce = INFINITY, best_exchange = INFINITY;
    float *data = test_alloc(BYTES);
    char *send = test_alloc((int64_t)comm.size * BYTES);
    char *receive = test_alloc((int64_t)comm.size * BYTES);
    int64_t *bytes = test_alloc(comm.size * (int64_t)sizeof *bytes);
    for (int r = 0; r < comm.size; r++) bytes[r] = BYTES;
    poison(send, (int64_t)comm.size * BYTES);
    for (int i = 0; i < BYTES / 4; i++) data[i] = 0;
    for (int i = 0; i < N_REPEAT; i++) {
        require(comm.ops->barrier(&comm));
        double begun = cluster_seconds();
        for (int k = 0; k < BATCH; k++)
            require(comm.ops->all_reduce(&comm, data, BYTES / 4, REDUCE_SUM_F32));
        best_reduce = fmin(best_reduce, slowest(cluster_seconds() - begun));
        begun = cluster_seconds();
        for (int k = 0; k < BATCH; k++)
            require(comm.ops->all_to_all(&comm, send, bytes, receive, bytes));
        best_exchange = fmin(best_exchange, slowest(cluster_seconds() - begun));
    }
    if (comm.rank == 0)
        printf("all_reduce 4 KiB %8.1f us\nall_to_all 4 KiB %8.1f us\n", best_reduce / BATCH * 1e6,
               best_exchange / BATCH * 1e6);
    free(data);
    free(send);
    free(receive);
    free(bytes);
}

// The last n_query of N_TOKEN tokens as one chunk after the rest.
struct run {
    double seconds;
    struct profile profile; // of the best run
    int64_t received;       // bytes, by this rank
};

struct how {
    enum pass pass;
    enum layout layout;
    struct visibility visibility;
};

static struct run attend(struct backend *backend, int64_t n_query, enum dtype dtype,
                         const struct how *how) {
    struct sequence sequence;
    sequence_open(&sequence, comm.size);
    if (!sequence_append(&sequence, how->layout, N_TOKEN - n_query) ||
        !sequence_append(&sequence, how->layout, n_query))
        require(status_fail(ERR_MEMORY, "", "no memory for a sequence"));
    int64_t n_key = sequence_count(&sequence, comm.rank, 0, N_TOKEN);
    int64_t n_own = sequence_count(&sequence, comm.rank, N_TOKEN - n_query, N_TOKEN);
    struct attention_shape shape = {
        N_HEAD, N_KV_HEAD, HEAD_DIM, HEAD_DIM, (int)dtype_bytes(dtype, 1), 2, false};
    struct run best = {.seconds = INFINITY};
    struct profile profile;
    struct ring_attention ring;
    const struct ring_extent extent = {.memory = backend->memory,
                                       .size = comm.size,
                                       .shard = N_TOKEN,
                                       .query = n_query,
                                       .all_query = how->pass == PASS_Q ? n_query : 0,
                                       .halo = how->pass == PASS_HALO ? N_TOKEN : 0};
    int64_t bytes = ring_attention_workspace_bytes(&shape, &extent);
    require(ring_attention_open(&ring, backend, &comm, &profile, bytes));
    struct ring_attention_args args = {
        .sequence = &sequence,
        .query_begin = N_TOKEN - n_query,
        .query_end = N_TOKEN,
        .n_head = N_HEAD,
        .n_kv_head = N_KV_HEAD,
        .head_dim = HEAD_DIM,
        .value_dim = HEAD_DIM,
        .scale = 0.125f,
        .visibility = how->visibility,
        .pass = how->pass,
        .query = random_vector(dtype, n_own * N_HEAD * HEAD_DIM + 1, 1, 1),
        .query_dtype = dtype,
        .key = random_vector(DTYPE_BF16, n_key * N_KV_HEAD * HEAD_DIM, 1, 2),
        .value = random_vector(DTYPE_BF16, n_key * N_KV_HEAD * HEAD_DIM, 1, 3),
        .kv_dtype = DTYPE_BF16,
        .out = test_alloc((n_own + 1) * N_HEAD * HEAD_DIM * (int64_t)sizeof(float)),
        .lse = test_alloc((n_own + 1) * N_HEAD * (int64_t)sizeof(float)),
    };
    for (int i = 0; i < N_REPEAT; i++) {
        profile = (struct profile){0};
        require(comm.ops->barrier(&comm));
        int64_t received = comm.bytes_received;
        double begun = cluster_seconds();
        require(ring_attention_run(&ring, &args));
        double seconds = slowest(cluster_seconds() - begun);
        if (seconds < best.seconds)
            best = (struct run){seconds, profile, comm.bytes_received - received};
    }
    free((void *)args.query);
    free((void *)args.key);
    free((void *)args.value);
    free(args.out);
    free(args.lse);
    ring_attention_close(&ring);
    sequence_close(&sequence);
    return best;
}

static const struct how by_kv = {PASS_KV, LAYOUT_ZIGZAG, {.back = VISIBLE_ALL}};
static const struct how by_q = {PASS_Q, LAYOUT_ZIGZAG, {.back = VISIBLE_ALL}};

// Layers of a window and encoders: the ring against what the queries see.
static void print_windows(struct backend *backend, enum dtype dtype) {
    static const struct {
        const char *name;
        struct how how;
    } rows[] = {
        {"causal window of 1024, ring", {PASS_KV, LAYOUT_CONTIGUOUS, {.back = 1023}}},
        {"causal window of 1024, halo", {PASS_HALO, LAYOUT_CONTIGUOUS, {.back = 1023}}},
        {"the same by zigzag, halo", {PASS_HALO, LAYOUT_ZIGZAG, {.back = 1023}}},
        {"512 either way, halo", {PASS_HALO, LAYOUT_CONTIGUOUS, {.back = 512, .ahead = 512}}},
        {"both ways, ring",
         {PASS_KV, LAYOUT_CONTIGUOUS, {.back = VISIBLE_ALL, .ahead = VISIBLE_ALL}}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct run run = attend(backend, N_TOKEN, dtype, &rows[i].how);
        double wait = slowest(run.profile.seconds[PHASE_RING_WAIT]);
        double received = slowest((double)run.received);
        if (comm.rank == 0)
            printf("%-28s %5d tokens: %8.2f ms, %8.2f KiB received at most, exposed wait %5.2f "
                   "%%\n",
                   rows[i].name, N_TOKEN, run.seconds * 1e3, received / 1024,
                   100 * wait / run.seconds);
    }
}

static void print_exposed(struct backend *backend, enum dtype dtype) {
    struct run run = attend(backend, N_TOKEN, dtype, &by_kv);
    double wait = slowest(run.profile.seconds[PHASE_RING_WAIT]);
    double rate = (double)run.profile.attention_flop / run.profile.seconds[PHASE_ATTENTION];
    if (comm.rank == 0)
        printf("ring attention, %d tokens, %s products: %7.2f ms, exposed wait %5.2f %%, "
               "%6.1f GFLOP/s of attention on rank 0\n",
               N_TOKEN, dtype_info[dtype].name, run.seconds * 1e3, 100 * wait / run.seconds,
               rate * 1e-9);
}

static void print_crossover(struct backend *backend, enum dtype dtype) {
    for (int64_t n_query = 16; n_query <= N_TOKEN / 2; n_query *= 4) {
        double kv = attend(backend, n_query, dtype, &by_kv).seconds;
        double q = attend(backend, n_query, dtype, &by_q).seconds;
        struct sequence sequence;
        sequence_open(&sequence, comm.size);
        if (!sequence_append(&sequence, LAYOUT_ZIGZAG, N_TOKEN))
            require(status_fail(ERR_MEMORY, "", "no memory for a sequence"));
        struct attention_shape shape = {
            N_HEAD, N_KV_HEAD, HEAD_DIM, HEAD_DIM, (int)dtype_bytes(dtype, 1), 2, false};
        const struct visible_range range = {.sequence = &sequence,
                                            .visibility = VISIBILITY_CAUSAL,
                                            .query_begin = N_TOKEN - n_query,
                                            .query_end = N_TOKEN};
        enum pass chosen = volume_choose_pass(&range, &shape, n_query);
        if (comm.rank == 0)
            printf("%4d queries after %4d tokens: pass-KV %7.2f ms, pass-Q %7.2f ms, "
                   "volume chooses %s\n",
                   (int)n_query, (int)(N_TOKEN - n_query), kv * 1e3, q * 1e3,
                   chosen == PASS_Q ? "pass-Q" : "pass-KV");
        sequence_close(&sequence);
    }
}

int main(int argc, char **argv) {
    require(cluster_start(&argc, &argv, 0, &cluster));
    cluster_pin_threads(&cluster);
    require(comm_mpi_open(&comm, 60));
    struct backend backend;
    require(backend_open(
        &(struct backend_options){.kind = BACKEND_CPU, .n_thread = cluster.n_thread}, &backend));
    enum dtype dtype = backend.bf16_products ? DTYPE_BF16 : DTYPE_F32;
    if (comm.rank == 0) printf("%d ranks, %d threads each\n", comm.size, cluster.n_thread);
    for (int64_t mib = 1; mib <= 64; mib *= 4) print_shift(mib << 20);
    print_latency();
    print_exposed(&backend, dtype);
    print_crossover(&backend, dtype);
    print_windows(&backend, dtype);
    backend_close(&backend);
    comm_close(&comm);
    cluster_stop(&cluster);
    return 0;
}
