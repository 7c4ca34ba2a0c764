#include "tests/common/cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

bool tests_are_light(void) {
    return getenv("HALKA_TEST_LIGHT");
}

bool case_is_wanted(int64_t n_product, bool on_tensor_cores) {
    const char *millions = getenv("HALKA_TEST_LIGHT");
    if (!millions) return true;
    return (double)n_product <= strtod(millions, NULL) * 1e6 * (on_tensor_cores ? 8 : 1);
}

// Steele, Lea and Flood 2014, the finalizer of SplitMix64.
uint64_t random_bits(uint64_t seed, uint64_t index) {
    uint64_t z = (seed * 0x2545f4914f6cdd1du + index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

float random_normal(uint64_t seed, uint64_t index) {
    uint64_t bits = random_bits(seed, index);
    double u = ((double)(bits >> 32) + 1) * 0x1p-32, v = (double)(uint32_t)bits * 0x1p-32;
    return (float)(sqrt(-2 * log(u)) * cos(2 * M_PI * v)); // Box and Muller 1958
}

void *test_alloc(int64_t bytes) {
    void *p = malloc((size_t)bytes + 1);
    if (!p) {
        fprintf(stderr, "cannot allocate %lld bytes\n", (long long)bytes);
        abort();
    }
    return p;
}

void poison(void *p, int64_t bytes) {
    memset(p, 0xff, (size_t)bytes);
}

void *random_vector(enum dtype dtype, int64_t n, float scale, uint64_t seed) {
    uint8_t *out = test_alloc(dtype_bytes(dtype, n));
    for (int64_t i = 0; i < n; i++) {
        float value = scale * random_normal(seed, (uint64_t)i);
        dtype_from_float(dtype, &value, 1, out + dtype_bytes(dtype, i));
    }
    return out;
}

// Where a block's fp16 scales lie, and the scale that makes its elements of size about 1.
static const struct block_scales {
    int offset[2], n;
    float scale;
} block_scales[N_DTYPE] = {
    [DTYPE_Q8_0] = {{0}, 1, 1.0f / 64},     [DTYPE_Q4_0] = {{0}, 1, 1.0f / 5},
    [DTYPE_Q4_1] = {{0, 2}, 2, 1.0f / 8},   [DTYPE_Q5_0] = {{0}, 1, 1.0f / 9},
    [DTYPE_Q5_1] = {{0, 2}, 2, 1.0f / 16},  [DTYPE_Q4_K] = {{0, 2}, 2, 1.0f / 256},
    [DTYPE_Q5_K] = {{0, 2}, 2, 1.0f / 512}, [DTYPE_Q6_K] = {{208}, 1, 1.0f / 1024},
};

static void random_block(enum dtype dtype, float scale, uint64_t seed, uint64_t at, uint8_t *out) {
    const struct block_scales *scales = &block_scales[dtype];
    for (int i = 0; i < dtype_info[dtype].block_bytes; i++)
        out[i] = (uint8_t)random_bits(seed, at + (uint64_t)i);
    for (int i = 0; i < scales->n; i++) {
        float value = scale * scales->scale * random_normal(seed + 1, at + (uint64_t)i);
        uint16_t bits = f16_from_float(value);
        memcpy(out + scales->offset[i], &bits, sizeof bits);
    }
}

struct weight random_weight(enum dtype dtype, int64_t n_row, int64_t n_col, int64_t extra_bytes,
                            uint64_t seed) {
    int64_t row_bytes = dtype_bytes(dtype, n_col) + extra_bytes;
    uint8_t *data = test_alloc(n_row * row_bytes);
    float scale = 1 / sqrtf((float)n_col);
    int block_bytes = dtype_info[dtype].block_bytes;
    poison(data, n_row * row_bytes);
    for (int64_t r = 0; r < n_row; r++)
        for (int64_t p = 0; p < row_bytes - extra_bytes; p += block_bytes) {
            uint64_t at = (uint64_t)(r * row_bytes + p);
            if (dtype_is_block(dtype)) {
                random_block(dtype, scale, seed, at, data + at);
            } else {
                float value = scale * random_normal(seed, at);
                dtype_from_float(dtype, &value, 1, data + at);
            }
        }
    return (struct weight){
        .data = data, .dtype = dtype, .n_row = n_row, .n_col = n_col, .row_bytes = row_bytes};
}

bool is_close(enum dtype dtype, const void *got, const void *expected, int64_t n,
              struct tolerance tolerance, char *message, size_t message_bytes) {
    double dot = 0, got_square = 0, expected_square = 0, worst = -1;
    int64_t element_bytes = dtype_bytes(dtype, 1);
    snprintf(message, message_bytes, "equal");
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *g = (const uint8_t *)got + i * element_bytes;
        const uint8_t *e = (const uint8_t *)expected + i * element_bytes;
        float a, b;
        dtype_to_float(dtype, g, 1, &a);
        dtype_to_float(dtype, e, 1, &b);
        if (isnan(b) && !memcmp(g, e, (size_t)element_bytes)) continue;
        double excess =
            fabs((double)a - b) - tolerance.absolute - tolerance.relative * fabs((double)b);
        if (a == b) excess = -1; // equal infinities
        if (isnan(excess)) excess = INFINITY;
        dot += (double)a * b, got_square += (double)a * a, expected_square += (double)b * b;
        if (excess <= worst) continue;
        worst = excess;
        snprintf(message, message_bytes, "element %lld of %lld is %.9g, expected %.9g",
                 (long long)i, (long long)n, (double)a, (double)b);
    }
    if (worst > 0) return false;
    double cosine = dot / sqrt(got_square * expected_square);
    if (n < 2 || !isfinite(cosine) || cosine >= tolerance.cosine) return true;
    snprintf(message, message_bytes, "cosine %.9f", cosine);
    return false;
}
