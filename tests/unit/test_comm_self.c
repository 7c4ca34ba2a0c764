// The transport of one rank, and what the kernel tells about this process and node.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dist/cluster.h"
#include "dist/comm.h"
#include "dist/profile.h"
#include "tests/common/fake_device.h"

static void exchanges_are_copies(void **state) {
    (void)state;
    struct comm comm;
    assert_int_equal(comm_self_open(&comm, NULL), OK);
    assert_int_equal(comm.size, 1);
    assert_int_equal(comm.rank, 0);
    char from[] = "abcdefgh", to[9] = "";
    struct shift_args shift = {
        .n_buffer = 2, .send = {{from, 4}, {from + 4, 0}}, .receive = {{to, 4}, {to + 4, 0}}};
    assert_int_equal(comm.ops->shift_start(&comm, &shift), OK);
    assert_int_equal(comm.ops->progress(&comm), OK);
    assert_int_equal(comm.ops->shift_wait(&comm), OK);
    assert_string_equal(to, "abcd");
    int64_t bytes[1] = {8};
    assert_int_equal(comm.ops->all_gather(&comm, from, to, bytes), OK);
    assert_string_equal(to, from);
    memset(to, 0, sizeof to);
    assert_int_equal(comm.ops->all_to_all(&comm, from, bytes, to, bytes), OK);
    assert_string_equal(to, from);
    double x[2] = {1.5, -2.0};
    assert_int_equal(comm.ops->all_reduce(&comm, x, 2, REDUCE_SUM_F64), OK);
    assert_true(x[0] == 1.5 && x[1] == -2.0);
    assert_int_equal(comm.ops->broadcast(&comm, x, sizeof x, 0), OK);
    assert_true(x[0] == 1.5 && x[1] == -2.0);
    assert_int_equal(comm.ops->barrier(&comm), OK);
    assert_int_equal(comm.bytes_sent, 0);
    assert_int_equal(comm.bytes_received, 0);
    comm_close(&comm);
    comm_close(&comm);
}

static void mismatches_are_refused(void **state) {
    (void)state;
    struct comm comm;
    assert_int_equal(comm_self_open(&comm, NULL), OK);
    char a[8] = "", b[8] = "";
    struct shift_args shift = {.n_buffer = 1, .send = {{a, 4}}, .receive = {{b, 8}}};
    assert_int_equal(comm.ops->shift_start(&comm, &shift), ERR_INTERNAL);
    shift.destination = 1;
    assert_int_equal(comm.ops->shift_start(&comm, &shift), ERR_INTERNAL);
    int64_t four[1] = {4}, eight[1] = {8};
    assert_int_equal(comm.ops->all_to_all(&comm, a, four, b, eight), ERR_INTERNAL);
    comm_close(&comm);
}

static void agreement_alone_keeps_the_message(void **state) {
    (void)state;
    struct comm comm;
    assert_int_equal(comm_self_open(&comm, NULL), OK);
    assert_int_equal(comm_agree(&comm, OK), OK);
    enum status bad = status_fail(ERR_INPUT, "here", "tensor %d is short", 7);
    assert_int_equal(comm_agree(&comm, bad), ERR_INPUT);
    assert_string_equal(status_message(), "tensor 7 is short");
    comm_close(&comm);
}

static void memory_figures_are_plausible(void **state) {
    (void)state;
    const int64_t bytes = 64 << 20;
    int64_t before = cluster_pss_bytes(), available = cluster_available_bytes();
    char *block = malloc((size_t)bytes);
    assert_non_null(block);
    memset(block, 1, (size_t)bytes);
    assert_in_range(cluster_pss_bytes() - before, bytes * 9 / 10, bytes * 11 / 10);
    assert_true(cluster_peak_resident_bytes() >= bytes);
    assert_true(available > bytes);
    struct profile profile = {0};
    profile_sample_memory(&profile);
    assert_true(block[bytes - 1] == 1 && profile.peak_pss_bytes >= bytes);
    free(block);
    int64_t peak = profile.peak_pss_bytes;
    profile_sample_memory(&profile);
    assert_true(profile.peak_pss_bytes >= peak); // a smaller sample does not lower it
}

static void phases_add_up(void **state) {
    (void)state;
    struct profile profile = {0};
    double first = cluster_seconds();
    for (int i = 0; i < 100; i++) {
        double begun = profile_begin(&profile, i % 2 ? PHASE_MERGE : PHASE_IO);
        profile_end(&profile, i % 2 ? PHASE_MERGE : PHASE_IO, begun);
    }
    double sum = profile.seconds[PHASE_MERGE] + profile.seconds[PHASE_IO];
    assert_true(sum > 0 && sum <= cluster_seconds() - first);
    for (int i = 0; i < N_PHASE; i++) assert_non_null(phase_name[i]);
}

static void a_device_counts_its_phases(void **state) {
    (void)state;
    struct backend host, device;
    struct profile profile = {0};
    assert_int_equal(
        backend_open(&(struct backend_options){.kind = BACKEND_REFERENCE, .n_thread = 1}, &host),
        OK);
    fake_device_open(host, &device);
    profile_attach(&profile, &device);
    double begun = profile_begin(&profile, PHASE_MATMUL);
    profile_end(&profile, PHASE_MATMUL, begun);
    assert_true(profile.seconds[PHASE_MATMUL] == 0); // the work may not have begun
    assert_int_equal(device.ops->sync(&device), OK);
    assert_true(profile.seconds[PHASE_MATMUL] > 0);
    begun = profile_begin(&profile, PHASE_IO);
    profile_end(&profile, PHASE_IO, begun);
    assert_true(profile.seconds[PHASE_IO] > 0);
    struct beacon beacon = {.phase = DEVICE_PHASE};
    profile.beacon = &beacon;
    profile_begin(&profile, PHASE_MATMUL);
    assert_int_equal(beacon.phase, PHASE_MATMUL);
    assert_int_equal(profile_sync(&profile, &device), OK);
    assert_int_equal(beacon.phase, NO_PHASE);
    profile.beacon = NULL;
    profile_detach(&profile);
    profile_begin(&profile, PHASE_MERGE);
    assert_int_equal(device.ops->sync(&device), OK);
    assert_true(profile.seconds[PHASE_MERGE] == 0);
    backend_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exchanges_are_copies),
        cmocka_unit_test(mismatches_are_refused),
        cmocka_unit_test(agreement_alone_keeps_the_message),
        cmocka_unit_test(memory_figures_are_plausible),
        cmocka_unit_test(phases_add_up),
        cmocka_unit_test(a_device_counts_its_phases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
