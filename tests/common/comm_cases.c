#include "tests/common/comm_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "dist/cluster.h"

enum { MOST_RANKS = 8 };
static const int64_t lengths[] = {0, 1, 7, 8, 1000, 1100001};
static const int64_t limits[] = {7, 4096, 4 << 20}; // bytes of one message

static struct comm_subject subject;
static struct comm *comm;

static void must(enum status status) {
    if (status != OK) fail_msg("%s", status_message());
}

// A buffer of the transport, and what the test puts there and finds there.
struct block {
    char *host;
    void *data; // host itself where the transport's memory is the host's
    int64_t bytes;
};

static struct block block_open(int64_t bytes) {
    struct block block = {.host = calloc(1, (size_t)bytes + 1), .bytes = bytes};
    assert_non_null(block.host);
    block.data = block.host;
    struct backend *device = subject.device;
    if (!device) return block;
    must(device->ops->alloc(device, bytes + 1, &block.data));
    must(device->ops->upload(device, block.data, block.host, bytes));
    return block;
}

static void block_put(const struct block *block) {
    struct backend *device = subject.device;
    if (!device) return;
    must(device->ops->upload(device, block->data, block->host, block->bytes));
}

static void block_get(const struct block *block) {
    struct backend *device = subject.device;
    if (!device) return;
    must(device->ops->download(device, block->host, block->data, block->bytes));
    must(device->ops->sync(device));
}

static void block_close(struct block *block) {
    if (subject.device) subject.device->ops->free(subject.device, block->data);
    free(block->host);
}

static char pattern(int rank, int64_t i) {
    return (char)(rank * 31 + i * 7 + (i >> 8));
}

static struct block filled(int rank, int64_t n) {
    struct block block = block_open(n);
    for (int64_t i = 0; i < n; i++) block.host[i] = pattern(rank, i);
    block_put(&block);
    return block;
}

static void check_pattern(const char *data, int rank, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (data[i] != pattern(rank, i)) fail_msg("byte %lld from rank %d", (long long)i, rank);
}

static bool too_many_messages(int64_t bytes) {
    return bytes / comm->message_bytes > 1000;
}

static char *at(const struct block *block, int64_t offset) {
    return (char *)block->data + offset;
}

static void shift_by_up_to(int most, int64_t n) {
    for (int distance = 0; distance <= most; distance++) {
        int to = (comm->rank + distance) % comm->size;
        int from = (comm->rank - distance + comm->size) % comm->size;
        int64_t sent = comm->bytes_sent, received = comm->bytes_received;
        struct block out = filled(comm->rank, 2 * n + 3), in = block_open(2 * n + 3);
        struct shift_args args = {.destination = to,
                                  .source = from,
                                  .n_buffer = 2,
                                  .send = {{out.data, n}, {out.data, n + 3}},
                                  .receive = {{in.data, n}, {at(&in, n), n + 3}}};
        must(comm->ops->shift_start(comm, &args));
        must(comm->ops->progress(comm));
        must(comm->ops->shift_wait(comm));
        block_get(&in);
        check_pattern(in.host, from, n);
        check_pattern(in.host + n, from, n + 3);
        assert_int_equal(comm->bytes_sent - sent, distance ? 2 * n + 3 : 0);
        assert_int_equal(comm->bytes_received - received, distance ? 2 * n + 3 : 0);
        block_close(&out);
        block_close(&in);
    }
}

static void gather_varies_by_rank(int64_t n) {
    int64_t bytes[MOST_RANKS], total = 0; // rank r sends n + 2r bytes, rank 1 nothing
    for (int r = 0; r < comm->size; r++) total += bytes[r] = r == 1 ? 0 : n + 2 * r;
    int64_t received = comm->bytes_received;
    struct block out = filled(comm->rank, bytes[comm->rank]), in = block_open(total);
    must(comm->ops->all_gather(comm, out.data, in.data, bytes));
    block_get(&in);
    const char *block = in.host;
    for (int r = 0; r < comm->size; block += bytes[r++]) check_pattern(block, r, bytes[r]);
    assert_int_equal(comm->bytes_received - received, total - bytes[comm->rank]);
    block_close(&out);
    block_close(&in);
}

// Equal blocks, each rank's already in its place.
static void gather_in_place(int64_t n) {
    int64_t bytes[MOST_RANKS];
    for (int r = 0; r < comm->size; r++) bytes[r] = n;
    struct block in = block_open(n * comm->size);
    for (int64_t i = 0; i < n; i++) in.host[comm->rank * n + i] = pattern(comm->rank, i);
    block_put(&in);
    must(comm->ops->all_gather(comm, at(&in, comm->rank * n), in.data, bytes));
    block_get(&in);
    for (int r = 0; r < comm->size; r++) check_pattern(in.host + r * n, r, n);
    block_close(&in);
}

// Two gathers fly while a shift and an all-gather come and go.
static void gathers_fly_beside_the_rest(int64_t n) {
    int64_t bytes[2][MOST_RANKS], total[2] = {0};
    struct block out[2], in[2];
    struct gather gathers[2];
    for (int g = 0; g < 2; g++) {
        for (int r = 0; r < comm->size; r++) total[g] += bytes[g][r] = r == g ? 0 : n + g + r;
        out[g] = filled(comm->rank, bytes[g][comm->rank]);
        in[g] = block_open(total[g]);
        gathers[g] = (struct gather){out[g].data, in[g].data, bytes[g]};
    }
    must(comm->ops->gather_start(comm, gathers, 2));
    if (comm->size > 1) assert_int_equal(comm->ops->gather_start(comm, gathers, 2), ERR_INTERNAL);
    shift_by_up_to(comm->size > 1, n);
    gather_varies_by_rank(n);
    must(comm->ops->progress(comm));
    must(comm->ops->gather_wait(comm));
    for (int g = 0; g < 2; g++) {
        block_get(&in[g]);
        const char *block = in[g].host;
        for (int r = 0; r < comm->size; block += bytes[g][r++])
            check_pattern(block, r, bytes[g][r]);
        block_close(&out[g]);
        block_close(&in[g]);
    }
}

static void exchange_varies_by_pair(int64_t n) {
    int64_t send[MOST_RANKS], receive[MOST_RANKS], n_out = 0, n_in = 0;
    for (int r = 0; r < comm->size; r++) {
        n_out += send[r] = comm->rank == 1 && r == 0 ? 0 : n + comm->rank + 3 * r;
        n_in += receive[r] = r == 1 && comm->rank == 0 ? 0 : n + r + 3 * comm->rank;
    }
    struct block out = block_open(n_out), in = block_open(n_in);
    char *to = out.host;
    for (int r = 0; r < comm->size; to += send[r++])
        for (int64_t i = 0; i < send[r]; i++) to[i] = pattern(comm->rank, i);
    block_put(&out);
    int64_t sent = comm->bytes_sent, received = comm->bytes_received;
    must(comm->ops->all_to_all(comm, out.data, send, in.data, receive));
    block_get(&in);
    const char *block = in.host;
    for (int r = 0; r < comm->size; block += receive[r++]) check_pattern(block, r, receive[r]);
    assert_int_equal(comm->bytes_sent - sent, n_out - send[comm->rank]);
    assert_int_equal(comm->bytes_received - received, n_in - receive[comm->rank]);
    block_close(&out);
    block_close(&in);
}

static void broadcast_from_each(int64_t n) {
    for (int root = 0; root < comm->size; root++) {
        struct block data = filled(comm->rank, n);
        must(comm->ops->broadcast(comm, data.data, n, root));
        block_get(&data);
        check_pattern(data.host, root, n);
        block_close(&data);
    }
}

static void bytes_arrive_whole_and_cut(void **state) {
    (void)state;
    int64_t limit = comm->message_bytes;
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            comm->message_bytes = limits[l];
            if (too_many_messages(lengths[i])) continue;
            if (!subject.cuts_messages && limits[l] < 4 << 20) continue;
            shift_by_up_to(comm->size - 1, lengths[i]);
            gather_varies_by_rank(lengths[i]);
            gather_in_place(lengths[i]);
            gathers_fly_beside_the_rest(lengths[i]);
            exchange_varies_by_pair(lengths[i]);
            broadcast_from_each(lengths[i]);
        }
    comm->message_bytes = limit;
    must(comm->ops->barrier(comm));
}

static void reduce_f64(int64_t n, enum reduce op, double expected(int64_t i)) {
    struct block block = block_open(n * (int64_t)sizeof(double));
    double *x = (double *)block.host;
    for (int64_t i = 0; i < n; i++) x[i] = 0.5 * comm->rank - (double)i;
    block_put(&block);
    must(comm->ops->all_reduce(comm, block.data, n, op));
    block_get(&block);
    for (int64_t i = 0; i < n; i++) assert_true(x[i] == expected(i));
    block_close(&block);
}

static void reduce_i64(int64_t n, enum reduce op, int64_t expected(int64_t i)) {
    struct block block = block_open(n * (int64_t)sizeof(int64_t));
    int64_t *x = (int64_t *)block.host;
    for (int64_t i = 0; i < n; i++) x[i] = ((int64_t)1 << 40) * (comm->rank + 1) - i;
    block_put(&block);
    must(comm->ops->all_reduce(comm, block.data, n, op));
    block_get(&block);
    for (int64_t i = 0; i < n; i++) assert_int_equal(x[i], expected(i));
    block_close(&block);
}

static double sum_f64(int64_t i) {
    return 0.25 * comm->size * (comm->size - 1) - (double)(comm->size * i);
}
static double most_f64(int64_t i) {
    return 0.5 * (comm->size - 1) - (double)i;
}
static double least_f64(int64_t i) {
    return -(double)i;
}
static int64_t sum_i64(int64_t i) {
    return ((int64_t)1 << 40) * (comm->size * (comm->size + 1) / 2) - comm->size * i;
}
static int64_t most_i64(int64_t i) {
    return ((int64_t)1 << 40) * comm->size - i;
}
static int64_t least_i64(int64_t i) {
    return ((int64_t)1 << 40) - i;
}

static void reduce_f32(int64_t n) {
    int64_t p = comm->size, volume = 2 * (p - 1) * n * (int64_t)sizeof(float) / p;
    int64_t sent = comm->bytes_sent;
    struct block block = block_open(n * (int64_t)sizeof(float));
    float *x = (float *)block.host;
    for (int64_t i = 0; i < n; i++) x[i] = (float)(comm->rank + i % 4096);
    block_put(&block);
    must(comm->ops->all_reduce(comm, block.data, n, REDUCE_SUM_F32));
    block_get(&block);
    for (int64_t i = 0; i < n; i++)
        if (x[i] != (float)(p * (p - 1) / 2 + p * (i % 4096))) fail_msg("sum %lld", (long long)i);
    assert_int_equal(comm->bytes_sent - sent, volume);
    block_close(&block);
}

static void reductions_are_exact_and_cut(void **state) {
    (void)state;
    int64_t limit = comm->message_bytes;
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++) {
        comm->message_bytes = limits[l];
        for (int64_t n = 0; n <= 33; n += 11) {
            reduce_f32(n);
            reduce_f64(n, REDUCE_SUM_F64, sum_f64);
            reduce_f64(n, REDUCE_MAX_F64, most_f64);
            reduce_f64(n, REDUCE_MIN_F64, least_f64);
            reduce_i64(n, REDUCE_SUM_I64, sum_i64);
            reduce_i64(n, REDUCE_MAX_I64, most_i64);
            reduce_i64(n, REDUCE_MIN_I64, least_i64);
        }
    }
    comm->message_bytes = limit;
    reduce_f32(3000001);
}

// Sums that round differently in every order must still be bitwise equal on all ranks.
static void reductions_agree_bitwise(void **state) {
    (void)state;
    enum { N = 40000, BYTES = N * sizeof(float) };
    struct block own = block_open(BYTES), all = block_open(comm->size * (int64_t)BYTES);
    float *x = (float *)own.host;
    for (int i = 0; i < N; i++)
        x[i] = (float)((i * 2654435761u + (unsigned)comm->rank * 40503u) % 100003u) / 7.0f;
    block_put(&own);
    must(comm->ops->all_reduce(comm, own.data, N, REDUCE_SUM_F32));
    int64_t bytes[MOST_RANKS];
    for (int r = 0; r < comm->size; r++) bytes[r] = BYTES;
    must(comm->ops->all_gather(comm, own.data, all.data, bytes));
    block_get(&own);
    block_get(&all);
    for (int r = 0; r < comm->size; r++)
        assert_memory_equal(all.host + r * (size_t)BYTES, own.host, BYTES);
    block_close(&own);
    block_close(&all);
}

// What was queued before a transfer comes before it, what is queued after it comes after it.
static void transfers_keep_the_queue_order(void **state) {
    (void)state;
    struct backend *device = subject.device;
    if (!device) return;
    enum { N = 8 << 20 };
    int to = (comm->rank + 1) % comm->size, from = (comm->rank - 1 + comm->size) % comm->size;
    struct block source = filled(comm->rank, N), out = block_open(N), in = block_open(N);
    struct block old = block_open(N), copy = block_open(N), sum = block_open(N);
    memset(in.host, 77, N);
    block_put(&in);
    for (int i = 0; i < 8; i++) // keeps the device busy
        must(device->ops->copy(device, copy.data, source.data, N));
    must(device->ops->copy(device, out.data, source.data, N));
    must(device->ops->copy(device, old.data, in.data, N));
    struct shift_args args = {.destination = to,
                              .source = from,
                              .n_buffer = 1,
                              .send = {{out.data, N}},
                              .receive = {{in.data, N}}};
    must(comm->ops->shift_start(comm, &args));
    assert_int_equal(comm->ops->shift_start(comm, &args), ERR_INTERNAL);
    must(comm->ops->shift_wait(comm));
    must(device->ops->copy(device, copy.data, in.data, N));
    must(device->ops->copy(device, in.data, old.data, N));
    must(device->ops->copy(device, sum.data, copy.data, N));
    must(comm->ops->all_reduce(comm, sum.data, 0, REDUCE_SUM_I64));
    must(comm->ops->broadcast(comm, sum.data, N, 0));
    block_get(&copy);
    block_get(&old);
    block_get(&sum);
    check_pattern(copy.host, from, N);
    check_pattern(sum.host, comm->size - 1, N);
    for (int64_t i = 0; i < N; i++)
        if (old.host[i] != 77) fail_msg("byte %lld was overwritten", (long long)i);
    struct block *blocks[] = {&source, &out, &in, &old, &copy, &sum};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) block_close(blocks[i]);
}

static void silent_peer_is_named_in_time(void **state) {
    (void)state;
    if (comm->size == 1 || !subject.host_sees) return;
    int last = comm->size - 1;
    struct block out = filled(7, 1), in = block_open(1);
    struct shift_args args = {.destination = (comm->rank + 1) % comm->size,
                              .source = (comm->rank + last) % comm->size,
                              .n_buffer = 1,
                              .send = {{out.data, 1}},
                              .receive = {{in.data, 1}}};
    must(comm->ops->barrier(comm));
    double deadline = comm->deadline_s;
    if (comm->rank == last) usleep(1000000);
    must(comm->ops->shift_start(comm, &args));
    if (comm->rank == 0) { // waits for the last rank
        comm->deadline_s = 0.2;
        double begun = cluster_seconds();
        assert_int_equal(comm->ops->shift_wait(comm), ERR_RANK);
        assert_true(cluster_seconds() - begun < 0.9);
        char expected[64];
        snprintf(expected, sizeof expected, "shift on rank 0 (");
        assert_non_null(strstr(status_message(), expected));
        snprintf(expected, sizeof expected, "rank %d (", last);
        assert_non_null(strstr(status_message(), expected));
        assert_non_null(strstr(status_message(), "did not answer within 0.2 s"));
        comm->deadline_s = deadline;
    }
    must(comm->ops->shift_wait(comm)); // the late one came after all
    block_get(&in);
    check_pattern(in.host, 7, 1);
    block_close(&out);
    block_close(&in);
}

// The last case: where the memory is a device's, the other transport takes its hook away.
static void silent_rank_ends_collectives_in_time(void **state) {
    (void)state;
    if (comm->size == 1) return;
    struct comm other;
    must(subject.open(&other, 0.5));
    struct block x = block_open(8);
    if (comm->rank != 0) {
        double begun = cluster_seconds();
        enum status status = other.ops->all_reduce(&other, x.data, 1, REDUCE_SUM_I64);
        if (status == OK && subject.device) status = subject.device->ops->sync(subject.device);
        assert_int_equal(status, ERR_RANK);
        assert_true(cluster_seconds() - begun < 5);
        assert_non_null(strstr(status_message(), "all_reduce on rank"));
    } else {
        usleep(1000000);
    }
    comm_close(&other);
    struct comm *host = comm_host(comm);
    must(host->ops->barrier(host));
    block_close(&x);
}

int comm_cases_run(const struct comm_subject *given) {
    subject = *given;
    comm = subject.comm;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_arrive_whole_and_cut),
        cmocka_unit_test(reductions_are_exact_and_cut),
        cmocka_unit_test(reductions_agree_bitwise),
        cmocka_unit_test(transfers_keep_the_queue_order),
        cmocka_unit_test(silent_peer_is_named_in_time),
        cmocka_unit_test(silent_rank_ends_collectives_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
