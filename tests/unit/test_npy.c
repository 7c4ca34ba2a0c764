// The file of vectors: header, rows, and what a run finds that an earlier one left.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "launcher/npy.h"

static char path[] = "/tmp/halka-npy-XXXXXX";
enum { N_COLUMN = 3, N_ROW = 4 };
static const float rows[N_ROW][N_COLUMN] = {{1, 2, 3}, {4, 5, 6}, {7, 8, 9}, {10, 11, 12}};

static int set_up(void **state) {
    (void)state;
    int file = mkstemp(path);
    return file < 0 ? -1 : close(file);
}

static int tear_down(void **state) {
    (void)state;
    return unlink(path);
}

static void write_rows(int n) {
    struct npy npy;
    assert_int_equal(npy_create(path, N_COLUMN, &npy), OK);
    assert_int_equal(npy_append(&npy, rows[0], n), OK);
    assert_int_equal(npy_commit(&npy), OK);
    npy_close(&npy);
}

// The file holds the first n rows and nothing else.
static void check_file(int n) {
    char data[4096], dictionary[128];
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t bytes = fread(data, 1, sizeof data, file);
    fclose(file);
    assert_int_equal(bytes, NPY_HEADER_BYTES + (size_t)n * sizeof rows[0]);
    assert_int_equal(NPY_HEADER_BYTES % 64, 0);
    assert_memory_equal(data, "\x93NUMPY\x01\x00\x76\x00", 10);
    int length = snprintf(dictionary, sizeof dictionary,
                          "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 3), }", n);
    assert_memory_equal(data + 10, dictionary, (size_t)length);
    for (int i = 10 + length; i < NPY_HEADER_BYTES - 1; i++) assert_int_equal(data[i], ' ');
    assert_int_equal(data[NPY_HEADER_BYTES - 1], '\n');
    assert_memory_equal(data + NPY_HEADER_BYTES, rows, (size_t)n * sizeof rows[0]);
}

static void rows_are_appended(void **state) {
    (void)state;
    struct npy npy;
    write_rows(0);
    check_file(0);
    write_rows(3);
    check_file(3);
    assert_int_equal(npy_continue(path, N_COLUMN, 3, &npy), OK);
    assert_int_equal(npy_append(&npy, rows[3], 1), OK);
    assert_int_equal(npy_commit(&npy), OK);
    npy_close(&npy);
    check_file(4);
}

static void rows_that_no_line_names_are_cut(void **state) {
    (void)state;
    struct npy npy;
    write_rows(2);
    assert_int_equal(npy_continue(path, N_COLUMN, 2, &npy), OK);
    assert_int_equal(npy_append(&npy, rows[2], 2), OK); // and killed before they counted
    npy_close(&npy);
    assert_int_equal(npy_continue(path, N_COLUMN, 2, &npy), OK);
    npy_close(&npy);
    check_file(2);
    write_rows(4); // and killed before the lines were written
    assert_int_equal(npy_continue(path, N_COLUMN, 1, &npy), OK);
    npy_close(&npy);
    check_file(1);
}

static void refuse(int64_t n_column, int64_t n_row, const char *message) {
    struct npy npy;
    assert_int_equal(npy_continue(path, n_column, n_row, &npy), ERR_CREATE);
    if (!strstr(status_message(), message)) fail_msg("%s", status_message());
    npy_close(&npy);
}

static void other_files_are_refused(void **state) {
    (void)state;
    write_rows(2);
    refuse(N_COLUMN, 3, "holds 2 rows of 3, not the 3 of 3");
    refuse(4, 2, "holds 2 rows of 3");
    assert_int_equal(truncate(path, NPY_HEADER_BYTES + 20), 0);
    refuse(N_COLUMN, 2, "holds 2 rows");
    assert_int_equal(truncate(path, 20), 0);
    refuse(N_COLUMN, 0, "was not written by Halka");
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(truncate(path, 4000), 0);
    refuse(N_COLUMN, 0, "was not written by Halka");
    struct npy npy;
    assert_int_equal(npy_create("/dev/null/x", 3, &npy), ERR_CREATE);
    npy_close(&npy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_appended),
        cmocka_unit_test(rows_that_no_line_names_are_cut),
        cmocka_unit_test(other_files_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
