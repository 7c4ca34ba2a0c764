// The fake device itself: memory of the wrong side ends the program, downloads appear at sync(),
// copies of the transports happen late and in order. Its operations run behind the mirror in every
// other test of operations.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/common/cases.h"
#include "tests/common/fake_device.h"

static struct backend fake;
#define OPS fake.ops
enum { N = 16, BYTES = N * 4 };

static int open_fake(void **state) {
    (void)state;
    const struct backend_options options = {.kind = BACKEND_CPU, .n_thread = 1};
    struct backend host;
    if (backend_open(&options, &host) != OK) return -1;
    fake_device_open(host, &fake);
    return 0;
}

static int close_fake(void **state) {
    (void)state;
    backend_close(&fake);
    return 0;
}

static float *on_device(float first) {
    float host[N];
    void *out;
    for (int i = 0; i < N; i++) host[i] = first + (float)i;
    assert_int_equal(OPS->alloc(&fake, BYTES, &out), OK);
    assert_int_equal(OPS->upload(&fake, out, host, BYTES), OK);
    return out;
}

static void multiply(float *x, int64_t n) {
    OPS->multiply(&fake, &(struct multiply_args){.x = x, .n = n, .factor = 2});
}

// Whether a process that does this is killed.
enum misuse {
    TOUCH,
    HOST_FOR_DEVICE,
    TOO_LONG,
    DEVICE_FOR_HOST,
    FREED,
    FREED_TWICE,
    SYNC_IN_STEP,
    ALLOC_IN_STEP,
    DOWNLOAD_IN_STEP,
    LAUNCH_OF_NOTHING,
    NOTHING
};
static bool dies(enum misuse misuse) {
    pid_t child = fork();
    if (child == 0) {
        float *x = on_device(1), host[N] = {0};
        int64_t position[1] = {0};
        signal(SIGSEGV, SIG_DFL); // not cmocka's
        signal(SIGABRT, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        if (misuse == TOUCH) *(volatile float *)x = 1;
        if (misuse == HOST_FOR_DEVICE) multiply(host, N);
        if (misuse == TOO_LONG) multiply(x + 1, N);
        if (misuse == FREED || misuse == FREED_TWICE) OPS->free(&fake, x);
        if (misuse == FREED_TWICE) OPS->free(&fake, x);
        if (misuse == FREED) multiply(x, N);
        if (misuse == NOTHING) multiply(x + 1, N - 1);
        if (misuse == LAUNCH_OF_NOTHING) OPS->steps->launch(&fake);
        OPS->steps->begin(&fake);
        void *more;
        if (misuse == SYNC_IN_STEP) OPS->sync(&fake);
        if (misuse == ALLOC_IN_STEP) OPS->alloc(&fake, BYTES, &more);
        if (misuse == DOWNLOAD_IN_STEP) OPS->download(&fake, host, x, BYTES);
        OPS->steps->end(&fake, true);
        if (misuse == DEVICE_FOR_HOST)
            OPS->attention(&fake, &(struct attention_args){.n_query = 1,
                                                           .n_head = 1,
                                                           .n_kv_head = 1,
                                                           .head_dim = 8,
                                                           .value_dim = 8,
                                                           .query = x,
                                                           .query_stride = 8,
                                                           .end_visible = (int64_t *)(void *)x,
                                                           .key_position = position,
                                                           .out = x,
                                                           .lse = x + 8});
        _exit(0);
    }
    int status = 0;
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static void test_wrong_memory_dies(void **state) {
    (void)state;
    assert_false(dies(NOTHING));
    for (int misuse = TOUCH; misuse < NOTHING; misuse++) assert_true(dies((enum misuse)misuse));
}

static void test_download_waits_for_sync(void **state) {
    (void)state;
    float *x = on_device(1), host[N] = {0};
    assert_int_equal(OPS->download(&fake, host, x, BYTES), OK);
    multiply(x, N); // queued later: the download shows what was there before
    assert_false(host[0] == 1);
    assert_int_equal(OPS->sync(&fake), OK);
    for (int i = 0; i < N; i++) assert_true(host[i] == (float)(i + 1));
    OPS->free(&fake, x);
}

static void test_copies_end_by_tickets(void **state) {
    (void)state;
    const struct copy_ops *copies = OPS->copies;
    float *x = on_device(1), *y = on_device(0);
    int64_t out_ticket, in_ticket;
    bool ended;
    void *pinned;
    assert_int_equal(copies->pin(&fake, BYTES, &pinned), OK);
    float *host = pinned;
    memset(host, 0, BYTES);
    assert_int_equal(copies->after_work(&fake), OK);
    assert_int_equal(copies->out(&fake, host, x, BYTES, &out_ticket), OK);
    assert_int_equal(copies->in(&fake, y, host, BYTES, &in_ticket), OK);
    assert_true(host[0] == 0);
    assert_int_equal(copies->ended(&fake, out_ticket, &ended), OK);
    assert_false(ended);
    assert_int_equal(copies->ended(&fake, out_ticket, &ended), OK);
    assert_true(ended && host[0] == 1);
    assert_int_equal(copies->before_work(&fake), OK);
    assert_int_equal(copies->ended(&fake, in_ticket, &ended), OK);
    assert_true(ended);
    float back[N];
    assert_int_equal(OPS->download(&fake, back, y, BYTES), OK);
    assert_int_equal(OPS->sync(&fake), OK);
    assert_memory_equal(back, host, BYTES);
    for (int i = 0; i < 3 * COPY_TICKETS; i++)
        assert_int_equal(copies->out(&fake, host, x, BYTES, &out_ticket), OK);
    assert_int_equal(copies->ended(&fake, out_ticket - COPY_TICKETS, &ended), OK);
    assert_true(ended);
    copies->unpin(&fake, pinned);
    OPS->free(&fake, y);
    OPS->free(&fake, x);
}

// Work of a step is done at its launch, with the host's tables of when it was queued, and can be
// kept once more.
static void test_steps_wait_for_launch(void **state) {
    (void)state;
    const struct step_ops *steps = OPS->steps;
    float *x = on_device(1), *y = on_device(0), host[N] = {0}, back[N];
    for (int times = 0; times < 2; times++) {
        for (int i = 0; i < N; i++) host[i] = 5;
        assert_int_equal(steps->begin(&fake), OK);
        multiply(x, N);
        assert_int_equal(OPS->upload(&fake, y, host, BYTES / 2), OK);
        assert_int_equal(OPS->copy(&fake, y + N / 2, x, BYTES / 2), OK);
        assert_int_equal(steps->end(&fake, true), OK);
        for (int i = 0; i < N; i++) host[i] = 7 + (float)times;
        assert_int_equal(OPS->upload(&fake, x, host, BYTES), OK);
        assert_int_equal(steps->launch(&fake), OK);
        assert_int_equal(OPS->download(&fake, back, y, BYTES), OK);
        assert_int_equal(OPS->sync(&fake), OK);
        for (int i = 0; i < N; i++)
            assert_true(back[i] == (i < N / 2 ? 5 : 2 * (7 + (float)times)));
    }
    assert_int_equal(steps->begin(&fake), OK);
    multiply(x, N);
    assert_int_equal(steps->end(&fake, false), OK);
    assert_int_equal(OPS->download(&fake, back, x, BYTES), OK);
    assert_int_equal(OPS->sync(&fake), OK);
    assert_true(back[0] == 16);
    OPS->free(&fake, y);
    OPS->free(&fake, x);
}

static enum status give_up(void *user) {
    (void)user;
    return ERR_RANK;
}

static void test_sync_asks_who_waits(void **state) {
    (void)state;
    fake.while_waiting = give_up;
    assert_int_equal(OPS->sync(&fake), ERR_RANK);
    fake.while_waiting = NULL;
    assert_int_equal(OPS->sync(&fake), OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_memory_dies),
        cmocka_unit_test(test_download_waits_for_sync),
        cmocka_unit_test(test_copies_end_by_tickets),
        cmocka_unit_test(test_steps_wait_for_launch),
        cmocka_unit_test(test_sync_asks_who_waits),
    };
    return cmocka_run_group_tests_name("fake device", tests, open_fake, close_fake);
}
