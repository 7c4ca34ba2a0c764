// The safetensors parser: what it reads, and what it refuses with which words.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"
#include "tests/common/make_files.h"

// Parses an exact copy, so that a read past the end is seen by the sanitizer; takes the buffer.
static enum status parse(struct buffer file, struct tensor_list *list) {
    uint8_t *exact = malloc(file.n ? file.n : 1);
    if (file.n) memcpy(exact, file.data, file.n);
    enum status status = safetensors_parse(exact, file.n, "x.safetensors", list);
    if (status == OK) status = tensor_list_sort(list, "x.safetensors");
    free(exact);
    buffer_close(&file);
    return status;
}

static void expect_refusal(struct buffer file, const char *fragment) {
    struct tensor_list list = {0};
    enum status status = parse(file, &list);
    if (status != ERR_INPUT || !strstr(status_message(), fragment) ||
        !strstr(status_message(), "x.safetensors"))
        fail_msg("status %d, message \"%s\", expected \"%s\"", status, status_message(), fragment);
    tensor_list_close(&list);
}

static void test_reads(void **state) {
    (void)state;
    const char *header =
        "{\"__metadata__\": {\"format\": \"pt\"},"
        "\"b\": {\"dtype\": \"F32\", \"shape\": [2, 3], \"data_offsets\": [16, 40]},"
        "\"a\": {\"dtype\": \"BF16\", \"shape\": [8], \"data_offsets\": [0, 16]},"
        "\"c\": {\"dtype\": \"F16\", \"shape\": [], \"data_offsets\": [40, 42]},"
        "\"none\": {\"dtype\": \"F16\", \"shape\": [0], \"data_offsets\": [40, 40]}}  ";
    struct buffer file = make_safetensors(header, 42);
    struct tensor_list list = {0};
    char shape[96];
    file.data[8 + strlen(header) + 16] = 77;
    assert_int_equal(safetensors_parse(file.data, file.n, "x", &list), OK);
    assert_int_equal(tensor_list_sort(&list, "x"), OK);
    assert_int_equal(list.n, 4);
    assert_string_equal(list.tensors[0].name, "a");
    assert_int_equal(list.tensors[0].dtype, DTYPE_BF16);
    assert_int_equal(list.tensors[1].dtype, DTYPE_F32);
    assert_int_equal(list.tensors[1].bytes, 24);
    assert_int_equal(*(const uint8_t *)list.tensors[1].data, 77);
    assert_string_equal(tensor_shape_text(&list.tensors[1], shape), "[2, 3]");
    assert_int_equal(list.tensors[2].n_dim, 0);
    assert_int_equal(tensor_elements(&list.tensors[2]), 1);
    assert_int_equal(list.tensors[3].bytes, 0);
    tensor_list_close(&list);
    buffer_close(&file);
}

// Formats that Halka does not compute with stay in the table, also with names of block formats.
static void test_other_formats(void **state) {
    (void)state;
    const char *header = "{\"a\": {\"dtype\": \"I64\", \"shape\": [1], \"data_offsets\": [0, 8]},"
                         "\"b\": {\"dtype\": \"Q4_1\", \"shape\": [32], \"data_offsets\": [8, 9]},"
                         "\"c\": {\"dtype\": \"F32\", \"shape\": [1,2,1,1,2], "
                         "\"data_offsets\": [9, 25]},"
                         "\"d\": {\"dtype\": \"F8_E4M3\", \"shape\": [2], "
                         "\"data_offsets\": [25, 27]}}";
    struct tensor_list list = {0};
    char shape[96];
    assert_int_equal(parse(make_safetensors(header, 27), &list), OK);
    assert_int_equal(list.tensors[0].dtype, N_DTYPE);
    assert_string_equal(list.tensors[0].format, "I64");
    assert_int_equal(list.tensors[1].dtype, N_DTYPE);
    assert_string_equal(tensor_shape_text(&list.tensors[2], shape), "[2, 1, 1, 2]");
    assert_int_equal(list.tensors[3].dtype, DTYPE_F8_E4M3);
    tensor_list_close(&list);
}

static void test_header(void **state) {
    (void)state;
    struct buffer file = {0};
    expect_refusal(file, "has 0 bytes");
    buffer_add(&file, "1234567", 7);
    expect_refusal(file, "has 7 bytes");
    file = make_safetensors("{}", 0);
    memset(file.data, 0xff, 8);
    expect_refusal(file, "exceeds the limit");
    file = make_safetensors("{}", 0);
    file.data[0] = 3;
    expect_refusal(file, "truncated within its header");
    expect_refusal(make_safetensors("", 0), "line 1");
    expect_refusal(make_safetensors("[]", 0), "object was expected");
    expect_refusal(make_safetensors("{\"a\": 1} x", 0), "end of file expected");
    expect_refusal(make_safetensors("{\"a\": {}, \"a\": {}}", 0), "duplicate");
    expect_refusal(make_safetensors("{\"\xff\": {}}", 0), "unable to decode byte");
    file = (struct buffer){0}; // nesting without end must not exhaust the stack
    buffer_add_u64(&file, 100000);
    for (int i = 0; i < 100000; ++i) buffer_add(&file, "[", 1);
    expect_refusal(file, "depth");
}

static void test_tensors(void **state) {
    (void)state;
    const struct {
        const char *entry, *fragment;
    } cases[] = {
        {"\"a\": 1", "not described by an object"},
        {"\"a\": {}", "has no dtype"},
        {"\"a\": {\"dtype\": 3}", "not a string"},
        {"\"a\": {\"dtype\": \"0123456789abcdef\"}", "has no dtype"},
        {"\"a\": {\"dtype\": \"F32\"}", "has no shape"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}",
         "has no shape"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [-1]}", "impossible size"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [1.5]}", "impossible size"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296]}", "impossible size"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [99999999999999999999]}", "too big integer"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4]}", "no pair of data_offsets"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0]}", "no pair"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0, 15]}",
         "of F32 [4] cannot have 15 bytes"},
        {"\"a\": {\"dtype\": \"F16\", \"shape\": [4], \"data_offsets\": [0, 16]}",
         "cannot have 16 bytes"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [16, 0]}",
         "lies at 16 to 0"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [-16, 0]}", "lies at -16"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [24, 40]}",
         "truncated or damaged"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4611686018427387904], \"data_offsets\": [0, 0]}",
         "cannot have 0 bytes"},
        {"\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0, 16]},"
         "\"b\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [12, 28]}",
         "tensors a and b overlap"},
        {"\"\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0, 16]}", "has 0 bytes"},
        {"\"a\\u0000b\": {}", "\\u0000"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct buffer header = {0};
        buffer_add(&header, "{", 1);
        buffer_add(&header, cases[i].entry, strlen(cases[i].entry));
        buffer_add(&header, "}", 2);
        expect_refusal(make_safetensors((const char *)header.data, 32), cases[i].fragment);
        buffer_close(&header);
    }
}

static void test_no_tensors(void **state) {
    (void)state;
    struct tensor_list list = {0};
    assert_int_equal(parse(make_safetensors("{}", 0), &list), OK);
    assert_int_equal(list.n, 0);
    tensor_list_close(&list);
}

// The same name in two files of one checkpoint.
static void test_twice(void **state) {
    (void)state;
    const char *header = "{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}";
    struct tensor_list list = {0};
    assert_int_equal(parse(make_safetensors(header, 4), &list), OK);
    assert_int_equal(parse(make_safetensors(header, 4), &list), ERR_INPUT);
    assert_non_null(strstr(status_message(), "tensor a occurs twice"));
    tensor_list_close(&list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),      cmocka_unit_test(test_other_formats),
        cmocka_unit_test(test_header),     cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_no_tensors), cmocka_unit_test(test_twice),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
