// A wait is over at its deadline, but time in which nobody looked does not count.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "dist/patience.h"

#define DEADLINE_S 0.4

static void nap(double seconds) {
    nanosleep(&(struct timespec){.tv_nsec = (long)(1e9 * seconds)}, NULL);
}

// Naps of 20 ms, after each of which it looks.
static double watch(struct patience *patience, int naps) {
    double waited = 0;
    for (int i = 0; i < naps; i++) {
        nap(0.02);
        waited = patience_look(patience, false, DEADLINE_S);
    }
    return waited;
}

static void test_deadline(void **state) {
    (void)state;
    struct patience patience = patience_begin();
    assert_true(watch(&patience, 15) >= 0.3);
    assert_true(watch(&patience, 6) > DEADLINE_S);
    assert_true(patience_look(&patience, true, DEADLINE_S) == 0);
}

static void test_suspended(void **state) {
    (void)state;
    struct patience patience = patience_begin();
    watch(&patience, 15);
    nap(0.6);
    assert_true(patience_look(&patience, false, DEADLINE_S) == 0);
    assert_true(watch(&patience, 21) > DEADLINE_S);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_suspended),
    };
    return cmocka_run_group_tests_name("patience", tests, NULL, NULL);
}
