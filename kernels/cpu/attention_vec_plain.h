// Vectors of 4 floats in plain C (vector extensions of gcc and clang, any processor).
#ifndef HALKA_KERNELS_CPU_ATTENTION_VEC_PLAIN_H
#define HALKA_KERNELS_CPU_ATTENTION_VEC_PLAIN_H

#include <math.h>

#include "kernels/dtype.h"

// SUMS: vectors that hold sums while others pass through the registers.
enum { VEC_WIDTH = 4, PANEL_VECS = 2, SUMS = 8 };

typedef float vec __attribute__((vector_size(16)));
typedef int32_t vec_int __attribute__((vector_size(16)));
typedef uint32_t vec_bits __attribute__((vector_size(16)));
typedef bf16 vec_bf16 __attribute__((vector_size(8)));

static inline vec vec_load(const float *x) {
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}
static inline vec vec_load_bf16(const bf16 *x) {
    vec_bf16 v;
    memcpy(&v, x, sizeof v);
    return (vec)(__builtin_convertvector(v, vec_bits) << 16);
}
static inline void vec_store(float *x, vec v) {
    memcpy(x, &v, sizeof v);
}
static inline vec vec_set(float x) {
    return (vec){x, x, x, x};
}
static inline vec vec_add(vec a, vec b) {
    return a + b;
}
static inline vec vec_sub(vec a, vec b) {
    return a - b;
}
static inline vec vec_mul(vec a, vec b) {
    return a * b;
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return a * b + c;
}
static inline vec vec_select(vec_int mask, vec a, vec b) {
    return (vec)((mask & (vec_int)a) | (~mask & (vec_int)b));
}
// b where either is NaN, as x86 does it
static inline vec vec_max(vec a, vec b) {
    return vec_select(a > b, a, b);
}
static inline vec vec_min(vec a, vec b) {
    return vec_select(a < b, a, b);
}
static inline float vec_reduce_max(vec v) {
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}
// The first n lanes of v, -inf in the others.
static inline vec vec_first(vec v, int n) {
    return vec_select((vec_int){0, 1, 2, 3} < (vec_int){n, n, n, n}, v, vec_set(-INFINITY));
}
// -inf in the first n lanes of v.
static inline vec vec_without_first(vec v, int n) {
    return vec_select((vec_int){0, 1, 2, 3} < (vec_int){n, n, n, n}, vec_set(-INFINITY), v);
}
// 2^n for whole n in [-127, 127] (2^-127 counts as 0), times x
static inline vec vec_scale_power(vec x, vec n) {
    vec_int exponent = __builtin_convertvector(n, vec_int) + 127;
    return x * (vec)(exponent << 23);
}
// Adding and subtracting 1.5 * 2^23 leaves the nearest whole number.
static inline vec vec_round(vec x) {
    vec magic = vec_set(12582912.0f);
    return x + magic - magic;
}
static inline void vec_transpose(vec v[VEC_WIDTH]) {
    vec a[VEC_WIDTH];
    for (int i = 0; i < VEC_WIDTH; i++) a[i] = (vec){v[0][i], v[1][i], v[2][i], v[3][i]};
    for (int i = 0; i < VEC_WIDTH; i++) v[i] = a[i];
}
// The sums of the lanes of four vectors.
static inline void vec_sum_four(const vec v[4], float out[4]) {
    vec a[VEC_WIDTH] = {v[0], v[1], v[2], v[3]};
    vec_transpose(a);
    vec_store(out, (a[0] + a[1]) + (a[2] + a[3]));
}

#include "kernels/cpu/attention_exp2.h"

#endif
