// ranks: 1 2 3 4
// Every operation of the mpi transport, whole and cut into tiny messages, and silent peers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/common/mpi_test.h"

static struct comm *const comm = &mpi_test_comm;
static const int64_t lengths[] = {0, 1, 6, 7, 8, 1000, 300001};
static const int64_t limits[] = {7, 64, 4 << 20}; // bytes of one message

static char pattern(int rank, int64_t i) {
    return (char)(rank * 31 + i * 7 + (i >> 8));
}

static char *filled(int rank, int64_t n) {
    char *data = malloc((size_t)n + 1);
    assert_non_null(data);
    for (int64_t i = 0; i < n; i++) data[i] = pattern(rank, i);
    return data;
}

static void check_pattern(const char *data, int rank, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (data[i] != pattern(rank, i)) fail_msg("byte %lld from rank %d", (long long)i, rank);
}

static bool too_many_messages(int64_t bytes) {
    return bytes / comm->message_bytes > 5000;
}

static void shift_moves_every_length(int64_t n) {
    for (int distance = 0; distance < comm->size; distance++) {
        int to = (comm->rank + distance) % comm->size;
        int from = (comm->rank - distance + comm->size) % comm->size;
        int64_t sent = comm->bytes_sent, received = comm->bytes_received;
        char *out = filled(comm->rank, 2 * n + 3), *in = calloc(1, (size_t)(2 * n + 4));
        struct shift_args args = {.destination = to,
                                  .source = from,
                                  .n_buffer = 2,
                                  .send = {{out, n}, {out, n + 3}},
                                  .receive = {{in, n}, {in + n, n + 3}}};
        assert_int_equal(comm->ops->shift_start(comm, &args), OK);
        assert_int_equal(comm->ops->progress(comm), OK);
        assert_int_equal(comm->ops->shift_wait(comm), OK);
        check_pattern(in, from, n);
        check_pattern(in + n, from, n + 3);
        assert_int_equal(comm->bytes_sent - sent, distance ? 2 * n + 3 : 0);
        assert_int_equal(comm->bytes_received - received, distance ? 2 * n + 3 : 0);
        free(out);
        free(in);
    }
}

static void gather_varies_by_rank(int64_t n) {
    int64_t bytes[8], total = 0; // rank r sends n + 2r bytes, rank 1 nothing
    for (int r = 0; r < comm->size; r++) total += bytes[r] = r == 1 ? 0 : n + 2 * r;
    int64_t received = comm->bytes_received;
    char *out = filled(comm->rank, bytes[comm->rank]), *in = calloc(1, (size_t)total + 1);
    assert_int_equal(comm->ops->all_gather(comm, out, in, bytes), OK);
    const char *at = in;
    for (int r = 0; r < comm->size; at += bytes[r++]) check_pattern(at, r, bytes[r]);
    assert_int_equal(comm->bytes_received - received, total - bytes[comm->rank]);
    free(out);
    free(in);
}

// Two gathers fly while a shift and an all-gather come and go.
static void gathers_fly_beside_the_rest(int64_t n) {
    int64_t bytes[2][8], total[2] = {0};
    char *out[2], *in[2];
    struct gather gathers[2];
    for (int g = 0; g < 2; g++) {
        for (int r = 0; r < comm->size; r++) total[g] += bytes[g][r] = r == g ? 0 : n + g + r;
        out[g] = filled(comm->rank, bytes[g][comm->rank]);
        in[g] = calloc(1, (size_t)total[g] + 1);
        gathers[g] = (struct gather){out[g], in[g], bytes[g]};
    }
    assert_int_equal(comm->ops->gather_start(comm, gathers, 2), OK);
    if (comm->size > 1) assert_int_equal(comm->ops->gather_start(comm, gathers, 2), ERR_INTERNAL);
    shift_moves_every_length(n);
    gather_varies_by_rank(n);
    assert_int_equal(comm->ops->progress(comm), OK);
    assert_int_equal(comm->ops->gather_wait(comm), OK);
    for (int g = 0; g < 2; g++) {
        const char *at = in[g];
        for (int r = 0; r < comm->size; at += bytes[g][r++]) check_pattern(at, r, bytes[g][r]);
        free(out[g]);
        free(in[g]);
    }
}

static void exchange_varies_by_pair(int64_t n) {
    int64_t send[8], receive[8], n_out = 0, n_in = 0;
    for (int r = 0; r < comm->size; r++) {
        n_out += send[r] = comm->rank == 1 && r == 0 ? 0 : n + comm->rank + 3 * r;
        n_in += receive[r] = r == 1 && comm->rank == 0 ? 0 : n + r + 3 * comm->rank;
    }
    char *out = malloc((size_t)n_out + 1), *in = calloc(1, (size_t)n_in + 1);
    char *to = out;
    for (int r = 0; r < comm->size; to += send[r++])
        for (int64_t i = 0; i < send[r]; i++) to[i] = pattern(comm->rank, i);
    int64_t sent = comm->bytes_sent, received = comm->bytes_received;
    assert_int_equal(comm->ops->all_to_all(comm, out, send, in, receive), OK);
    const char *at = in;
    for (int r = 0; r < comm->size; at += receive[r++]) check_pattern(at, r, receive[r]);
    assert_int_equal(comm->bytes_sent - sent, n_out - send[comm->rank]);
    assert_int_equal(comm->bytes_received - received, n_in - receive[comm->rank]);
    free(out);
    free(in);
}

static void broadcast_from_each(int64_t n) {
    for (int root = 0; root < comm->size; root++) {
        char *data = filled(comm->rank, n);
        assert_int_equal(comm->ops->broadcast(comm, data, n, root), OK);
        check_pattern(data, root, n);
        free(data);
    }
}

static void bytes_arrive_whole_and_cut(void **state) {
    (void)state;
    int64_t limit = comm->message_bytes;
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            comm->message_bytes = limits[l];
            if (too_many_messages(lengths[i])) continue;
            shift_moves_every_length(lengths[i]);
            gather_varies_by_rank(lengths[i]);
            gathers_fly_beside_the_rest(lengths[i]);
            exchange_varies_by_pair(lengths[i]);
            broadcast_from_each(lengths[i]);
        }
    comm->message_bytes = limit;
    assert_int_equal(comm->ops->barrier(comm), OK);
}

static void reductions_are_exact_and_cut(void **state) {
    (void)state;
    int64_t limit = comm->message_bytes, p = comm->size;
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++) {
        comm->message_bytes = limits[l];
        for (int64_t n = 0; n <= 33; n += 11) {
            float f32[33];
            double f64[33], high[33], low[33];
            int64_t sum[33], top[33], bottom[33];
            for (int64_t i = 0; i < n; i++) {
                f32[i] = (float)(comm->rank + i);
                f64[i] = high[i] = low[i] = 0.5 * comm->rank - (double)i;
                sum[i] = top[i] = bottom[i] = ((int64_t)1 << 40) * (comm->rank + 1) - i;
            }
            assert_int_equal(comm->ops->all_reduce(comm, f32, n, REDUCE_SUM_F32), OK);
            assert_int_equal(comm->ops->all_reduce(comm, f64, n, REDUCE_SUM_F64), OK);
            assert_int_equal(comm->ops->all_reduce(comm, high, n, REDUCE_MAX_F64), OK);
            assert_int_equal(comm->ops->all_reduce(comm, low, n, REDUCE_MIN_F64), OK);
            assert_int_equal(comm->ops->all_reduce(comm, sum, n, REDUCE_SUM_I64), OK);
            assert_int_equal(comm->ops->all_reduce(comm, top, n, REDUCE_MAX_I64), OK);
            assert_int_equal(comm->ops->all_reduce(comm, bottom, n, REDUCE_MIN_I64), OK);
            for (int64_t i = 0; i < n; i++) {
                assert_true(f32[i] == (float)(p * (p - 1) / 2 + p * i));
                assert_true(f64[i] == 0.25 * (double)(p * (p - 1)) - (double)(p * i));
                assert_true(high[i] == 0.5 * (double)(p - 1) - (double)i);
                assert_true(low[i] == -(double)i);
                assert_int_equal(sum[i], ((int64_t)1 << 40) * (p * (p + 1) / 2) - p * i);
                assert_int_equal(top[i], ((int64_t)1 << 40) * p - i);
                assert_int_equal(bottom[i], ((int64_t)1 << 40) - i);
            }
        }
    }
    comm->message_bytes = limit;
}

// Sums that round differently in every order must still be bitwise equal on all ranks.
static void reductions_agree_bitwise(void **state) {
    (void)state;
    enum { N = 40000 };
    float *own = malloc(N * sizeof *own), *all = malloc((size_t)comm->size * N * sizeof *all);
    for (int i = 0; i < N; i++)
        own[i] = (float)((i * 2654435761u + (unsigned)comm->rank * 40503u) % 100003u) / 7.0f;
    assert_int_equal(comm->ops->all_reduce(comm, own, N, REDUCE_SUM_F32), OK);
    int64_t bytes[8];
    for (int r = 0; r < comm->size; r++) bytes[r] = N * (int64_t)sizeof *own;
    assert_int_equal(comm->ops->all_gather(comm, own, all, bytes), OK);
    for (int r = 0; r < comm->size; r++)
        assert_memory_equal(all + (size_t)r * N, own, N * sizeof *own);
    free(own);
    free(all);
}

static void ranks_agree_on_the_first_failure(void **state) {
    (void)state;
    assert_int_equal(comm_agree(comm, OK), OK);
    if (comm->size == 1) return;
    enum status own = OK;
    if (comm->rank >= 1) own = status_fail(ERR_INPUT + comm->rank, "here", "bad %d", comm->rank);
    assert_int_equal(comm_agree(comm, own), ERR_INPUT + 1);
    assert_non_null(strstr(status_message(), "rank 1 ("));
    assert_non_null(strstr(status_message(), "): bad 1"));
    assert_int_equal(comm_agree(comm, OK), OK);
}

static void silent_peer_is_named_in_time(void **state) {
    (void)state;
    if (comm->size == 1) return;
    int last = comm->size - 1;
    char out = 'x', in = 0;
    struct shift_args args = {.destination = (comm->rank + 1) % comm->size,
                              .source = (comm->rank + last) % comm->size,
                              .n_buffer = 1,
                              .send = {{&out, 1}},
                              .receive = {{&in, 1}}};
    assert_int_equal(comm->ops->barrier(comm), OK);
    double deadline = comm->deadline_s;
    if (comm->rank == last) usleep(1000000);
    assert_int_equal(comm->ops->shift_start(comm, &args), OK);
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
    assert_int_equal(comm->ops->shift_wait(comm), OK); // the late one came after all
    assert_int_equal(in, 'x');
}

static void overlapping_use_is_refused(void **state) {
    (void)state;
    char out[8] = "", in[8] = "";
    struct shift_args args = {.destination = comm->rank,
                              .source = comm->rank,
                              .n_buffer = 1,
                              .send = {{out, 8}},
                              .receive = {{in, 8}}};
    assert_int_equal(comm->ops->shift_start(comm, &args), OK);
    assert_int_equal(comm->ops->barrier(comm), ERR_INTERNAL);
    assert_int_equal(comm->ops->shift_wait(comm), OK);
    assert_int_equal(comm->ops->barrier(comm), OK);
}

static void silent_rank_ends_collectives_in_time(void **state) {
    (void)state;
    if (comm->size == 1) return;
    struct comm other; // left in an unfinished state
    assert_int_equal(comm_mpi_open(&other, 0.2), OK);
    int64_t x = 1;
    if (comm->rank != 0) {
        assert_int_equal(other.ops->all_reduce(&other, &x, 1, REDUCE_SUM_I64), ERR_RANK);
        assert_non_null(strstr(status_message(), "all_reduce on rank"));
    }
    comm_close(&other);
    assert_int_equal(comm->ops->barrier(comm), OK);
}

static void cluster_knows_its_node(void **state) {
    (void)state;
    const struct cluster *cluster = &mpi_test_cluster;
    assert_int_equal(cluster->rank, comm->rank);
    assert_int_equal(cluster->size, comm->size);
    assert_in_range(cluster->local_rank, 0, cluster->local_size - 1);
    assert_true(cluster->n_core >= 1 && cluster->n_core <= cluster->node_core);
    assert_int_equal(cluster->n_thread, 1);
    assert_true(cluster->host[0] != 0);
    cluster_pin_threads(cluster);
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cluster_knows_its_node),
        cmocka_unit_test(bytes_arrive_whole_and_cut),
        cmocka_unit_test(reductions_are_exact_and_cut),
        cmocka_unit_test(reductions_agree_bitwise),
        cmocka_unit_test(ranks_agree_on_the_first_failure),
        cmocka_unit_test(silent_peer_is_named_in_time),
        cmocka_unit_test(overlapping_use_is_refused),
        cmocka_unit_test(silent_rank_ends_collectives_in_time),
    };
    return mpi_test_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
