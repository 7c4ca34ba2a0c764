#include "tests/common/measure_ranks.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/common/measure.h"

enum { N_REPEAT = 5, LONGEST = 1 << 20 };
static const double kLongSeconds = 1, kDeadline = 60;

void ranks_require(struct ranks *b, enum status status) {
    if (status == OK) return;
    fprintf(stderr, "%s\n", status_message());
    cluster_abort(&b->cluster, (int)status);
}

void *ranks_hold(struct ranks *b, void *p) {
    if (b->n_held == RANKS_HELD) abort();
    return b->held[b->n_held++] = p;
}
void *ranks_random(struct ranks *b, enum dtype dtype, int64_t n) {
    return ranks_hold(b, measure_random(&b->backend, dtype, n > 0 ? n : 1));
}
void *ranks_poisoned(struct ranks *b, int64_t bytes) {
    return ranks_hold(b, measure_poisoned(&b->backend, bytes > 0 ? bytes : 1));
}
void ranks_release(struct ranks *b) {
    while (b->n_held > 0) b->backend.ops->free(&b->backend, b->held[--b->n_held]);
}
int64_t ranks_scaled(const struct ranks *b, int64_t n) {
    return n / b->divisor > 0 ? n / b->divisor : 1;
}

double ranks_slowest(struct ranks *b, double x) {
    ranks_require(b, b->host.ops->all_reduce(&b->host, &x, 1, REDUCE_MAX_F64));
    return x;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double batch(struct ranks *b, ranks_call function, void *user, int n_call) {
    ranks_require(b, b->host.ops->barrier(&b->host));
    double begun = measure_now();
    for (int i = 0; i < n_call; i++) ranks_require(b, function(b, user));
    ranks_require(b, b->backend.ops->sync(&b->backend));
    return ranks_slowest(b, measure_now() - begun);
}

struct ranks_timing ranks_measure(struct ranks *b, ranks_call function, void *user, int n_call) {
    double seconds[N_REPEAT], all = 0;
    int n = 1;
    b->profile = (struct profile){.device = b->profile.device};
    seconds[0] = batch(b, function, user, n_call);
    if (seconds[0] < kLongSeconds) {
        b->profile = (struct profile){.device = b->profile.device};
        for (n = 0; n < N_REPEAT; n++) seconds[n] = batch(b, function, user, n_call);
    }
    for (int i = 0; i < n; i++) all += seconds[i];
    qsort(seconds, (size_t)n, sizeof *seconds, ascending);
    return (struct ranks_timing){seconds[n / 2] / n_call,
                                 ranks_slowest(b, b->profile.seconds[PHASE_RING_WAIT]) / all,
                                 ranks_slowest(b, b->profile.seconds[PHASE_MERGE]) / all};
}

void ranks_append(struct ranks *b, struct sequence *sequence, enum layout layout, int64_t length) {
    if (!sequence_append(sequence, layout, length))
        ranks_require(b, status_fail(ERR_MEMORY, "", "no memory for a sequence"));
}

static bool open_device(struct ranks *b, int argc, char **argv, const char *program) {
    int n_device = backend_device_count(BACKEND_CUDA);
    struct backend_options options = {.kind = n_device ? BACKEND_CUDA : BACKEND_AUTO,
                                      .n_thread = 1};
    bool distinct = false;
    b->longest = argc > 1 ? atoll(argv[1]) : LONGEST;
    b->divisor = argc > 2 ? atoll(argv[2]) : 1;
    if (b->divisor < 1) b->divisor = 1;
    if (!n_device && argc < 3) {
        if (b->cluster.rank == 0)
            printf("%s: no device; `%s LONGEST DIVISOR` rehearses\n", program, program);
        return false;
    }
    if (n_device) options.device = b->cluster.local_rank % n_device;
    ranks_require(b, backend_open(&options, &b->backend));
    b->comm = b->backend.memory == MEMORY_DEVICE ? &b->device : &b->host;
    if (b->comm == &b->host) return true;
    ranks_require(b, comm_devices_distinct(&b->host, &b->backend, &distinct));
    if (b->host.size == 1)
        ranks_require(b, comm_self_open(&b->device, &b->backend));
    else if (distinct)
        ranks_require(b, comm_nccl_open(&b->device, &b->host, &b->backend, b->host.deadline_s));
    else
        ranks_require(b,
                      comm_mpi_staged_open(&b->device, &b->host, &b->backend, b->host.deadline_s));
    profile_attach(&b->profile, &b->backend);
    return true;
}

bool ranks_open(int *argc, char ***argv, const char *program, struct ranks *b) {
    *b = (struct ranks){.n_held = 0};
    ranks_require(b, cluster_start(argc, argv, 1, &b->cluster));
    ranks_require(b, comm_mpi_open(&b->host, kDeadline));
    if (!open_device(b, *argc, *argv, program)) return false;
    if (b->comm->rank == 0)
        printf("# %d ranks, backend %s %s, transport %s\n", b->comm->size, b->backend.ops->name,
               b->backend.device_name, b->comm->ops->name);
    return true;
}

void ranks_close(struct ranks *b) {
    profile_detach(&b->profile);
    comm_close(&b->device);
    backend_close(&b->backend);
    comm_close(&b->host);
    cluster_stop(&b->cluster);
}
