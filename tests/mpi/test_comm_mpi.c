// ranks: 1 2 3 4
// The mpi transport: what every transport must do (tests/common/comm_cases.c), agreement, hosts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/common/comm_cases.h"
#include "tests/common/mpi_test.h"

static struct comm *const comm = &mpi_test_comm;

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

// The form of the transport for device pointers, which here are a host's: no MPI of devices is at
// hand, and the reference backend shows the order of its calls.
static struct backend stand_in;

static enum status open_on_pointers(struct comm *out, double deadline_s) {
    return comm_mpi_device_open(out, comm, &stand_in, deadline_s);
}

static int run_on_pointers(void) {
    struct comm other;
    struct backend_options options = {.kind = BACKEND_REFERENCE, .n_thread = 1};
    if (backend_open(&options, &stand_in) != OK || open_on_pointers(&other, 20) != OK) return 1;
    const struct comm_subject subject = {.comm = &other,
                                         .device = &stand_in,
                                         .open = open_on_pointers,
                                         .cuts_messages = true,
                                         .host_sees = true};
    int n_failed = comm_cases_run(&subject);
    comm_close(&other);
    backend_close(&stand_in);
    return n_failed;
}

int main(int argc, char **argv) {
    mpi_test_start(&argc, &argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cluster_knows_its_node),
        cmocka_unit_test(ranks_agree_on_the_first_failure),
        cmocka_unit_test(overlapping_use_is_refused),
    };
    const struct comm_subject subject = {
        .comm = comm, .open = comm_mpi_open, .cuts_messages = true, .host_sees = true};
    int n_failed = comm_cases_run(&subject) + run_on_pointers();
    return mpi_test_stop(n_failed + cmocka_run_group_tests(tests, NULL, NULL));
}
