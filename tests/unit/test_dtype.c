// Formats against fixtures that scripts/make_quant_fixtures.py wrote with another implementation,
// and the half formats against all of their bit patterns.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/dtype.h"

#define N_ELEMENT 512

static void read_fixture(const char *name, const char *suffix, void *out, int64_t bytes) {
    char path[128];
    snprintf(path, sizeof path, "tests/fixtures/quants/%s.%s", name, suffix);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("cannot open %s", path);
    size_t n = fread(out, 1, (size_t)bytes, file);
    int more = fgetc(file);
    fclose(file);
    if (n != (size_t)bytes || more != EOF)
        fail_msg("%s does not have %lld bytes", path, (long long)bytes);
}

static void expands_every_format_like_gguf(void **state) {
    (void)state;
    for (int d = DTYPE_F16; d <= DTYPE_Q6_K; d++) { // the formats GGUF has
        uint8_t blocks[N_ELEMENT * 4];
        float expected[N_ELEMENT], got[N_ELEMENT + 1];
        read_fixture(dtype_info[d].name, "blocks", blocks, dtype_bytes(d, N_ELEMENT));
        read_fixture(dtype_info[d].name, "f32", expected, sizeof expected);
        for (int i = 0; i <= N_ELEMENT; i++) got[i] = NAN;
        dtype_to_float(d, blocks, N_ELEMENT, got);
        for (int i = 0; i < N_ELEMENT; i++)
            if (got[i] != expected[i])
                fail_msg("%s[%d] is %.9g, not %.9g", dtype_info[d].name, i, got[i], expected[i]);
        assert_true(isnan(got[N_ELEMENT]));
    }
}

static void converts_every_f16_both_ways(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float x = f16_to_float((uint16_t)bits);
        uint16_t back = f16_from_float(x);
        if ((bits & 0x7fff) > 0x7c00)
            assert_true(isnan(x) && (back & 0x7fff) > 0x7c00);
        else
            assert_int_equal(back, bits);
    }
    assert_true(f16_to_float(0x3c00) == 1.0f);
    assert_true(f16_to_float(0x0001) == 0x1p-24f);
    assert_true(f16_to_float(0x7bff) == 65504.0f);
}

static void rounds_f16_to_nearest_even(void **state) {
    (void)state;
    for (uint16_t bits = 0; bits < 0x7bff; bits++) { // neighbours: the middle goes to the even one
        float low = f16_to_float(bits), high = f16_to_float((uint16_t)(bits + 1));
        float middle = low + (high - low) / 2;
        assert_int_equal(f16_from_float(middle), bits % 2 ? bits + 1 : bits);
        assert_int_equal(f16_from_float(nextafterf(middle, 0)), bits);
        assert_int_equal(f16_from_float(-nextafterf(middle, INFINITY)), 0x8000 | (bits + 1));
    }
    assert_int_equal(f16_from_float(65519.99f), 0x7bff);
    assert_int_equal(f16_from_float(65520.0f), 0x7c00);
    assert_int_equal(f16_from_float(-INFINITY), 0xfc00);
    assert_int_equal(f16_from_float(0x1p-25f), 0);
    assert_int_equal(f16_from_float(-0.0f), 0x8000);
}

static void rounds_bf16_to_nearest_even(void **state) {
    (void)state;
    assert_int_equal(bf16_from_float(1.0f), 0x3f80);
    assert_int_equal(bf16_from_float(1.00390625f), 0x3f80); // 1 + 2^-8: tie, even below
    assert_int_equal(bf16_from_float(1.01171875f), 0x3f82); // 1 + 3 * 2^-8: tie, even above
    assert_int_equal(bf16_from_float(1.00390637f), 0x3f81); // just over the tie
    assert_int_equal(bf16_from_float(INFINITY), 0x7f80);
    assert_int_equal(bf16_from_float(3.4e38f), 0x7f80);
    assert_true(isnan(bf16_to_float(bf16_from_float(NAN))));
    for (uint32_t bits = 0; bits < 0x7f80; bits++)
        assert_int_equal(bf16_from_float(bf16_to_float((bf16)bits)), bits);
}

static void rounds_rows_to_plain_formats(void **state) {
    (void)state;
    float in[3] = {1.0f, -2.5f, 1e-3f}, back[3];
    uint8_t buffer[12];
    for (int d = DTYPE_F32; d <= DTYPE_BF16; d++) {
        dtype_from_float(d, in, 3, buffer);
        dtype_to_float(d, buffer, 3, back);
        for (int i = 0; i < 3; i++) assert_true(fabsf(back[i] - in[i]) <= fabsf(in[i]) / 256);
    }
}

static void counts_bytes(void **state) {
    (void)state;
    assert_int_equal(dtype_bytes(DTYPE_Q4_1, 576), 360);
    assert_int_equal(dtype_bytes(DTYPE_Q6_K, 512), 420);
    assert_int_equal(dtype_bytes(DTYPE_F32, 3), 12);
    assert_true(dtype_is_block(DTYPE_Q8_0) && !dtype_is_block(DTYPE_BF16));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expands_every_format_like_gguf),
        cmocka_unit_test(converts_every_f16_both_ways),
        cmocka_unit_test(rounds_f16_to_nearest_even),
        cmocka_unit_test(rounds_bf16_to_nearest_even),
        cmocka_unit_test(rounds_rows_to_plain_formats),
        cmocka_unit_test(counts_bytes),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
