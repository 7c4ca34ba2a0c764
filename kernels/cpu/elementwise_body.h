// The body of elementwise_plain.c, _avx2.c and _avx512.c: plain loops that the compiler vectorises
// for the instruction set of the including file, which names its table ELEMENTWISE_OPS.
#include <math.h>

#include "kernels/cpu/elementwise.h"

#define INLINE static inline __attribute__((always_inline))
#define CHUNK 512 // fp32 results of a row wait on the stack for rounding to bf16

// e^x within 2 ulp for x in [-87, 88], clamped outside: x = n ln 2 + r, a degree 6 polynomial of r
// (Taylor's, |r| <= ln 2 / 2), and n added to the exponent. ln 2 is split as in Cody and Waite
// 1980.
INLINE float fast_exp(float x) {
    const float magic = 0x1.8p23f; // adding it rounds to an integer in the low bits
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 0x1.715476p+0f + magic;
    float n = shifted - magic;
    float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits, exponent;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&exponent, &shifted, sizeof exponent);
    bits += (int32_t)((uint32_t)exponent << 23);
    memcpy(&p, &bits, sizeof p);
    return p;
}

// erf within 2e-7: Abramowitz and Stegun 1964, equation 7.1.26.
INLINE float fast_erf(float x) {
    float a = fabsf(x);
    float t = 1.0f / (1.0f + 0.3275911f * a);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return copysignf(1.0f - p * t * fast_exp(-a * a), x);
}

INLINE float activate(enum activation activation, float x) {
    if (activation == ACTIVATION_GELU_ERF) return 0.5f * x * (1.0f + fast_erf(x * 0.70710678f));
    // (1 + tanh(z)) / 2 is the logistic function of 2 z.
    float z = activation == ACTIVATION_SILU ? x : 1.5957691f * (x + 0.044715f * x * x * x);
    return x / (1.0f + fast_exp(-z));
}

INLINE void round_row(const float *x, int64_t n, bf16 *out) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = bf16_from_float(x[i]);
}

INLINE float row_square_sum(const float *x, int64_t n, float mean) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return sum;
}

INLINE float row_sum(const float *x, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

static void norm_rows(const struct norm_args *args, int64_t begin, int64_t end) {
    int64_t n = args->n_col;
    for (int64_t r = begin; r < end; r++) {
        const float *x = args->x + r * n;
        float mean = args->kind == NORM_LAYER ? row_sum(x, n) / (float)n : 0;
        float scale = 1 / sqrtf(row_square_sum(x, n, mean) / (float)n + args->eps);
        for (int64_t done = 0; done < n; done += CHUNK) {
            float chunk[CHUNK];
            int64_t m = n - done < CHUNK ? n - done : CHUNK;
            float *y = args->out_dtype == DTYPE_F32 ? (float *)args->out + r * n + done : chunk;
            const float *from = x + done, *weight = args->weight + done;
#pragma omp simd
            for (int64_t i = 0; i < m; i++) y[i] = (from[i] - mean) * scale * weight[i];
            if (args->bias)
                for (int64_t i = 0; i < m; i++) y[i] += args->bias[done + i];
            if (args->out_dtype == DTYPE_BF16)
                round_row(chunk, m, (bf16 *)args->out + r * n + done);
        }
    }
}

// In place is allowed: both elements of a pair are read before either is written.
INLINE void rotate_halves(const float *x, const float *cosine, const float *sine, int n_pair,
                          float *out) {
#pragma omp simd
    for (int i = 0; i < n_pair; i++) {
        float a = x[i], b = x[i + n_pair];
        out[i] = a * cosine[i] - b * sine[i];
        out[i + n_pair] = b * cosine[i] + a * sine[i];
    }
}

INLINE void rotate_pairs(const float *x, const float *cosine, const float *sine, int n_pair,
                         float *out) {
#pragma omp simd
    for (int i = 0; i < n_pair; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        out[2 * i] = a * cosine[i] - b * sine[i];
        out[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
}

INLINE void spread_head(float *restrict x, int n) {
    float scale = 1.0f / sqrtf((float)n);
    for (int half = 1; half < n; half *= 2)
        for (int pair = 0; pair < n; pair += 2 * half) {
#pragma omp simd
            for (int i = pair; i < pair + half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    for (int i = 0; i < n; i++) x[i] *= scale;
}

static void rope_rows(const struct rope_args *args, int64_t begin, int64_t end) {
    int n_pair = args->rope_dim / 2;
    for (int64_t t = begin; t < end; t++)
        for (int h = 0; h < args->n_head; h++) {
            float head[ELEMENTWISE_HEAD_MAX];
            const float *x = args->x + t * args->x_stride + (int64_t)h * args->head_dim;
            int64_t at = t * args->out_stride + (int64_t)h * args->head_dim;
            float *y = args->out_dtype == DTYPE_F32 ? (float *)args->out + at : head;
            const float *cosine = args->cos + t * n_pair, *sine = args->sin + t * n_pair;
            int first = args->first;
            for (int i = 0; i < first; i++) y[i] = x[i];
            if (args->interleaved)
                rotate_pairs(x + first, cosine, sine, n_pair, y + first);
            else
                rotate_halves(x + first, cosine, sine, n_pair, y + first);
            for (int i = first + args->rope_dim; i < args->head_dim; i++) y[i] = x[i];
            if (args->spread) spread_head(y, args->head_dim);
            if (args->out_dtype == DTYPE_BF16)
                round_row(head, args->head_dim, (bf16 *)args->out + at);
        }
}

INLINE void gate_rows_as(enum activation activation, const struct gate_args *args, int64_t begin,
                         int64_t end) {
    for (int64_t t = begin; t < end; t++)
        for (int64_t done = 0; done < args->n_col; done += CHUNK) {
            float chunk[CHUNK];
            int64_t m = args->n_col - done < CHUNK ? args->n_col - done : CHUNK;
            int64_t at = t * args->n_col + done;
            const float *gate = args->gate + t * args->gate_stride + done;
            const float *up = args->up ? args->up + t * args->up_stride + done : NULL;
            float *y = args->out_dtype == DTYPE_F32 ? (float *)args->out + at : chunk;
#pragma omp simd
            for (int64_t i = 0; i < m; i++) y[i] = activate(activation, gate[i]);
            if (up)
                for (int64_t i = 0; i < m; i++) y[i] *= up[i];
            if (args->out_dtype == DTYPE_BF16) round_row(chunk, m, (bf16 *)args->out + at);
        }
}

static void gate_rows(const struct gate_args *args, int64_t begin, int64_t end) {
    switch (args->activation) {
    case ACTIVATION_SILU:
        gate_rows_as(ACTIVATION_SILU, args, begin, end);
        break;
    case ACTIVATION_GELU_TANH:
        gate_rows_as(ACTIVATION_GELU_TANH, args, begin, end);
        break;
    case ACTIVATION_GELU_ERF:
        gate_rows_as(ACTIVATION_GELU_ERF, args, begin, end);
        break;
    }
}

static void convert_rows(const struct convert_args *args, int64_t begin, int64_t end) {
    int64_t n = args->n_col;
    for (int64_t r = begin; r < end; r++) {
        int64_t from = (args->row ? args->row[r] : r) * args->x_stride, to = r * args->out_stride;
        const float *x = (const float *)args->x + from;
        const bf16 *narrow = (const bf16 *)args->x + from;
        if (args->x_dtype == args->out_dtype)
            memmove((uint8_t *)args->out + to * dtype_info[args->out_dtype].block_bytes,
                    args->x_dtype == DTYPE_F32 ? (const void *)x : (const void *)narrow,
                    (size_t)(n * dtype_info[args->out_dtype].block_bytes));
        else if (args->out_dtype == DTYPE_BF16)
            round_row(x, n, (bf16 *)args->out + to);
        else
            for (int64_t i = 0; i < n; i++) ((float *)args->out)[to + i] = bf16_to_float(narrow[i]);
    }
}

static float row_max(const float *x, int64_t n) {
    float max = -INFINITY;
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static float row_exp_sum(const float *x, int64_t n, float shift) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += fast_exp(x[i] - shift);
    return sum;
}

const struct elementwise_ops ELEMENTWISE_OPS = {
    .norm = norm_rows,
    .rope = rope_rows,
    .gate = gate_rows,
    .convert = convert_rows,
    .max = row_max,
    .exp_sum = row_exp_sum,
};
