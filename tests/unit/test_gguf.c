// The GGUF parser: what it reads, and what it refuses with which words.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "model/gguf.h"
#include "model/mapping.h"
#include "tests/common/make_files.h"

enum { F32 = 0, Q8_0 = 8, Q4_1 = 3 };

// Parses an exact copy, so that a read past the end is seen by the sanitizer; takes the buffer.
static void expect_refusal(struct buffer file, const char *fragment) {
    struct gguf *gguf = (struct gguf *)&file;
    uint8_t *exact = malloc(file.n ? file.n : 1);
    if (file.n) memcpy(exact, file.data, file.n);
    enum status status = gguf_parse(exact, file.n, "x.gguf", &gguf);
    if (status != ERR_INPUT || !strstr(status_message(), fragment) ||
        !strstr(status_message(), "x.gguf"))
        fail_msg("status %d, message \"%s\", expected \"%s\"", status, status_message(), fragment);
    assert_null(gguf);
    free(exact);
    buffer_close(&file);
}

static struct gguf *expect_success(const struct buffer *file) {
    struct gguf *gguf = NULL;
    if (gguf_parse(file->data, file->n, "x.gguf", &gguf) != OK) fail_msg("%s", status_message());
    return gguf;
}

static void put_u64(struct buffer *file, size_t at, uint64_t x) {
    memcpy(file->data + at, &x, sizeof x);
}

static void test_round_trip(void **state) {
    (void)state;
    const char *words[] = {"a", "", "\xc3\xa9"};
    float values[4] = {1, -2, 3.5f, 0};
    struct gguf_maker maker = {.version = 2, .alignment = 64};
    gguf_maker_u32(&maker, "z.count", 7);
    gguf_maker_f32(&maker, "rate", 0.5f);
    gguf_maker_string(&maker, "name", "Halka");
    gguf_maker_strings(&maker, "words", words, 3);
    gguf_maker_key(&maker, "flag", GGUF_BOOL);
    buffer_add(&maker.keys, "\1", 1);
    gguf_maker_key(&maker, "big", GGUF_UINT64);
    buffer_add_u64(&maker.keys, UINT64_MAX);
    gguf_maker_key(&maker, "small", GGUF_INT8);
    buffer_add(&maker.keys, "\xff", 1);
    gguf_maker_key(&maker, "types", GGUF_ARRAY);
    buffer_add_u32(&maker.keys, GGUF_INT16);
    buffer_add_u64(&maker.keys, 2);
    buffer_add(&maker.keys, "\x01\x00\xfe\xff", 4);
    gguf_maker_key(&maker, "nested", GGUF_ARRAY);
    buffer_add_u32(&maker.keys, GGUF_ARRAY);
    buffer_add_u64(&maker.keys, 1);
    buffer_add_u32(&maker.keys, GGUF_UINT8);
    buffer_add_u64(&maker.keys, 2);
    buffer_add(&maker.keys, "\5\6", 2);
    gguf_maker_tensor(&maker, "w", 32, 2, Q8_0, NULL, 68);
    gguf_maker_tensor(&maker, "b", 4, 0, F32, values, sizeof values);
    struct buffer file = gguf_maker_finish(&maker);
    struct gguf *gguf = expect_success(&file);

    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    struct gguf_string text;
    assert_int_equal(gguf->version, 2);
    assert_int_equal(gguf->n_value, 10);
    assert_true(gguf_get_int(gguf, "z.count", &integer) && integer == 7);
    assert_true(gguf_get_int(gguf, "small", &integer) && integer == -1);
    assert_true(gguf_get_float(gguf, "z.count", &number) && number == 7);
    assert_true(gguf_get_float(gguf, "rate", &number) && number == 0.5);
    assert_true(gguf_get_bool(gguf, "flag", &flag) && flag);
    assert_true(gguf_get_string(gguf, "name", &text) && text.bytes == 5);
    assert_memory_equal(text.data, "Halka", 5);
    assert_false(gguf_get_int(gguf, "big", &integer)); // past int64
    assert_false(gguf_get_int(gguf, "rate", &integer));
    assert_false(gguf_get_int(gguf, "absent", &integer));
    assert_false(gguf_get_bool(gguf, "small", &flag));
    assert_false(gguf_get_string(gguf, "words", &text));

    const struct gguf_value *value = gguf_find(gguf, "words");
    assert_int_equal(value->count, 3);
    assert_int_equal(value->strings[1].bytes, 0);
    assert_memory_equal(value->strings[2].data, "\xc3\xa9", 2);
    assert_false(gguf_array_int(value, 0, &integer));
    value = gguf_find(gguf, "types");
    assert_true(gguf_array_int(value, 1, &integer) && integer == -2);
    assert_true(gguf_array_float(value, 0, &number) && number == 1);
    assert_false(gguf_array_int(value, 2, &integer));
    assert_int_equal(gguf_find(gguf, "nested")->count, 1);

    assert_int_equal(gguf->n_tensor, 2);
    const struct gguf_tensor *b = &gguf->tensors[0], *w = &gguf->tensors[1];
    assert_string_equal(b->name, "b");
    assert_memory_equal(b->data, values, sizeof values);
    assert_int_equal(((const uint8_t *)b->data - file.data) % 64, 0);
    assert_true(w->n_dim == 2 && w->ne[0] == 32 && w->ne[1] == 2 && w->bytes == 68);
    gguf_close(&gguf);
    assert_null(gguf);
    buffer_close(&file);
}

static struct buffer small_file(void) {
    struct gguf_maker maker = {0};
    const char *words[] = {"one", "two"};
    gguf_maker_string(&maker, "general.architecture", "llama");
    gguf_maker_strings(&maker, "words", words, 2);
    gguf_maker_tensor(&maker, "first", 32, 2, Q4_1, NULL, 40);
    gguf_maker_tensor(&maker, "second", 8, 0, F32, NULL, 32);
    return gguf_maker_finish(&maker);
}

// Every cut of a valid file is refused, without a read past its end.
static void test_truncated(void **state) {
    (void)state;
    struct buffer whole = small_file();
    for (size_t n = 0; n < whole.n; ++n) {
        struct buffer cut = {0};
        buffer_add(&cut, whole.data, n);
        expect_refusal(cut, "x.gguf");
    }
    struct gguf *gguf = expect_success(&whole);
    gguf_close(&gguf);
    buffer_close(&whole);
}

static void test_header(void **state) {
    (void)state;
    struct buffer file = small_file();
    file.data[0] = 'X';
    expect_refusal(file, "is not a GGUF file");
    file = small_file();
    file.data[4] = 1;
    expect_refusal(file, "GGUF version 1");
    file = small_file();
    memcpy(file.data + 4, "\0\0\0\3", 4);
    expect_refusal(file, "big-endian");
    file = small_file();
    put_u64(&file, 8, UINT64_MAX);
    expect_refusal(file, "cannot be in a file");
    file = small_file();
    put_u64(&file, 16, (uint64_t)1 << 60);
    expect_refusal(file, "cannot be in a file");
}

static void test_keys(void **state) {
    (void)state;
    struct gguf_maker maker = {0};
    gguf_maker_u32(&maker, "same", 1);
    gguf_maker_u32(&maker, "same", 2);
    expect_refusal(gguf_maker_finish(&maker), "key same occurs twice");
    gguf_maker_u32(&maker, "\xc0\x80", 1);
    expect_refusal(gguf_maker_finish(&maker), "not valid UTF-8");
    gguf_maker_u32(&maker, "", 1);
    expect_refusal(gguf_maker_finish(&maker), "has 0 bytes");
    gguf_maker_key(&maker, "odd", 13);
    buffer_add_u64(&maker.keys, 0);
    expect_refusal(gguf_maker_finish(&maker), "unknown type 13");
    // A string that claims the whole address space.
    gguf_maker_key(&maker, "text", GGUF_STRING);
    buffer_add_u64(&maker.keys, UINT64_MAX - 4);
    expect_refusal(gguf_maker_finish(&maker), "claims");
    // Arrays: a false count, an unknown type, nesting without end.
    gguf_maker_key(&maker, "list", GGUF_ARRAY);
    buffer_add_u32(&maker.keys, GGUF_FLOAT64);
    buffer_add_u64(&maker.keys, UINT64_MAX / 4);
    expect_refusal(gguf_maker_finish(&maker), "exceeds the file");
    gguf_maker_key(&maker, "list", GGUF_ARRAY);
    buffer_add_u32(&maker.keys, 99);
    buffer_add_u64(&maker.keys, 0);
    expect_refusal(gguf_maker_finish(&maker), "array of unknown type 99");
    gguf_maker_key(&maker, "list", GGUF_ARRAY);
    for (int depth = 0; depth < 100; ++depth) {
        buffer_add_u32(&maker.keys, GGUF_ARRAY);
        buffer_add_u64(&maker.keys, 1);
    }
    expect_refusal(gguf_maker_finish(&maker), "nested deeper");
}

static void test_alignment(void **state) {
    (void)state;
    const uint32_t wrong[] = {1, 12, 48, 1u << 31};
    for (int i = 0; i < 4; ++i) {
        struct gguf_maker maker = {0};
        gguf_maker_u32(&maker, "general.alignment", wrong[i]);
        expect_refusal(gguf_maker_finish(&maker), "no power of two");
    }
    struct gguf_maker maker = {0};
    gguf_maker_string(&maker, "general.alignment", "32");
    expect_refusal(gguf_maker_finish(&maker), "not an integer");
}

// One tensor whose row of the table is given field by field.
static struct buffer one_tensor(const char *name, uint32_t n_dim, uint64_t n, uint32_t type,
                                uint64_t offset) {
    struct gguf_maker maker = {.n_tensor = 1};
    buffer_add_string(&maker.table, name);
    buffer_add_u32(&maker.table, n_dim);
    for (uint32_t i = 0; i < n_dim && i < 8; ++i) buffer_add_u64(&maker.table, n);
    buffer_add_u32(&maker.table, type);
    buffer_add_u64(&maker.table, offset);
    buffer_add_zeros(&maker.data, 256);
    return gguf_maker_finish(&maker);
}

static void test_tensors(void **state) {
    (void)state;
    char long_name[300];
    memset(long_name, 'n', sizeof long_name);
    long_name[299] = 0;
    expect_refusal(one_tensor("t", 5, 1, F32, 0), "has 5 dimensions");
    expect_refusal(one_tensor("t", 1, 0, F32, 0), "impossible size in dimension 0");
    expect_refusal(one_tensor("t", 1, UINT64_MAX, F32, 0), "impossible size");
    expect_refusal(one_tensor("t", 4, 1 << 16, F32, 0), "impossible size in dimension 3");
    expect_refusal(one_tensor("t", 1, (uint64_t)1 << 62, F32, 0), "overflows");
    expect_refusal(one_tensor("t", 1, 33, Q8_0, 0), "no multiple of Q8_0's 32");
    expect_refusal(one_tensor("t", 1, 65, F32, 0), "beyond the file");
    expect_refusal(one_tensor("t", 1, 32, F32, 160), "beyond the file");
    expect_refusal(one_tensor("t", 1, 4, F32, UINT64_MAX - 31), "beyond the file");
    expect_refusal(one_tensor("t", 1, 4, F32, 16), "no multiple of the alignment");
    expect_refusal(one_tensor("t", 1, 4, 12345, 1 << 20), "beyond the file");
    expect_refusal(one_tensor(long_name, 1, 4, F32, 0), "1 to 255 are allowed");
    expect_refusal(one_tensor("\xed\xa0\x80", 1, 4, F32, 0), "not valid UTF-8");
    struct gguf_maker maker = {0};
    gguf_maker_tensor(&maker, "t", 4, 0, F32, NULL, 16);
    gguf_maker_tensor(&maker, "t", 4, 0, F32, NULL, 16);
    expect_refusal(gguf_maker_finish(&maker), "tensor t occurs twice");
    gguf_maker_tensor(&maker, "a", 16, 0, F32, NULL, 32); // 64 bytes by its shape
    gguf_maker_tensor(&maker, "b", 8, 0, F32, NULL, 32);
    expect_refusal(gguf_maker_finish(&maker), "tensors a and b overlap");
}

// A tensor of a type that nobody knows does not make the file unusable.
static void test_unknown_type(void **state) {
    (void)state;
    struct buffer file = one_tensor("t", 1, 4, 12345, 0);
    struct gguf *gguf = expect_success(&file);
    assert_null(gguf_format_find(gguf->tensors[0].type));
    assert_int_equal(gguf->tensors[0].bytes, 0);
    gguf_close(&gguf);
    buffer_close(&file);
    assert_null(gguf_format_find(4)); // a number that ggml withdrew
    assert_string_equal(gguf_format_find(12)->name, "Q4_K");
}

static void test_mapping(void **state) {
    (void)state;
    char *folder = folder_make();
    char *path = folder_write(folder, "empty", "", 0);
    struct mapping mapping;
    assert_int_equal(mapping_open(path, &mapping), OK);
    assert_true(mapping.data == NULL && mapping.bytes == 0);
    mapping_close(&mapping);
    free(path);
    path = folder_write(folder, "three", "abc", 3);
    assert_int_equal(mapping_open(path, &mapping), OK);
    assert_int_equal(mapping.bytes, 3);
    assert_memory_equal(mapping.data, "abc", 3);
    mapping_close(&mapping);
    mapping_close(&mapping); // accepts what it cleared
    free(path);
    assert_int_equal(mapping_open(folder, &mapping), ERR_NO_INPUT);
    assert_non_null(strstr(status_message(), "is a folder"));
    assert_int_equal(mapping_open("/nowhere/at/all", &mapping), ERR_NO_INPUT);
    assert_non_null(strstr(status_message(), "No such file"));
    assert_int_equal(mapping_open("/dev/null", &mapping), ERR_NO_INPUT);
    folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_header),       cmocka_unit_test(test_keys),
        cmocka_unit_test(test_alignment),    cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_unknown_type), cmocka_unit_test(test_mapping),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
