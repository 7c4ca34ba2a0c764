// e4m3 against its definition: all 256 codes, every tie, subnormals, saturation, block scales.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/fp8.h"

static bool is_nan_code(int code) {
    return (code & 0x7f) == 0x7f;
}

// The definition, written out: (-1)^s 2^(e-7) (1 + m/8), or (-1)^s 2^-6 m/8 for e = 0.
static double definition(int code) {
    int s = code >> 7, e = code >> 3 & 15, m = code & 7;
    double value = e ? pow(2, e - 7) * (1 + m / 8.0) : pow(2, -6) * m / 8.0;
    return s ? -value : value;
}

static void test_all_codes(void **state) {
    (void)state;
    for (int code = 0; code < 256; code++) {
        float value = fp8_to_float((uint8_t)code);
        if (is_nan_code(code)) {
            assert_true(isnan(value));
            assert_int_equal(fp8_from_float(value), code);
            continue;
        }
        assert_true((double)value == definition(code));
        assert_int_equal(fp8_from_float(value), code); // also keeps -0.0
    }
}

static void test_between_neighbours(void **state) {
    (void)state;
    for (int code = 0; code < 0x7e; code++) {
        float low = fp8_to_float((uint8_t)code), high = fp8_to_float((uint8_t)(code + 1));
        float middle = (low + high) / 2; // exact in fp32
        int even = code & 1 ? code + 1 : code;
        assert_int_equal(fp8_from_float(middle), even);
        assert_int_equal(fp8_from_float(nextafterf(middle, 0)), code);
        assert_int_equal(fp8_from_float(nextafterf(middle, INFINITY)), code + 1);
        assert_int_equal(fp8_from_float(-middle), even | 0x80);
    }
}

static void test_saturation(void **state) {
    (void)state;
    const float large[] = {448, 449, 464, 480, 1e30f, INFINITY};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        assert_int_equal(fp8_from_float(large[i]), 0x7e);
        assert_int_equal(fp8_from_float(-large[i]), 0xfe);
    }
    assert_int_equal(fp8_from_float(1e-30f), 0);
    assert_int_equal(fp8_from_float(0x1p-10f), 0); // half of the smallest: tie to even
    assert_int_equal(fp8_from_float(0x1.8p-10f), 1);
}

static void test_block_scales(void **state) {
    (void)state;
    assert_true(fp8_block_scale(448, false) == 1.0f);
    assert_true(fp8_block_scale(448, true) == 1.0f);
    assert_true(fp8_block_scale(449, true) == 2.0f);
    assert_true(fp8_block_scale(224, true) == 0.5f);
    assert_true(fp8_block_scale(0, false) == 1e-4f / 448);
    srand(1);
    for (int i = 0; i < 10000; i++) {
        float amax = ldexpf((float)rand() / (float)RAND_MAX + 0.5f, rand() % 40 - 13);
        float scale = fp8_block_scale(amax, true);
        float exact = fmaxf(amax, 1e-4f) / 448;
        int exponent;
        assert_true(frexpf(scale, &exponent) == 0.5f); // a power of two
        assert_true(scale >= exact && scale / 2 < exact);
    }
}

static void test_quantize_block(void **state) {
    (void)state;
    float x[128];
    uint8_t out[128];
    srand(2);
    for (int i = 0; i < 128; i++) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    x[17] = -7.0f;
    float scale = fp8_quantize_block(x, 128, false, out);
    assert_true(scale == 7.0f / 448);
    assert_int_equal(out[17], 0xfe);
    for (int i = 0; i < 128; i++) assert_int_equal(out[i], fp8_from_float(x[i] / scale));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_codes),      cmocka_unit_test(test_between_neighbours),
        cmocka_unit_test(test_saturation),     cmocka_unit_test(test_block_scales),
        cmocka_unit_test(test_quantize_block),
    };
    return cmocka_run_group_tests_name("fp8", tests, NULL, NULL);
}
