// Operations on rows and single values, on every backend and instruction set against the reference,
// from tables of cases; memory. Products have test_matmul.c.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/common/backends.h"
#include "tests/common/output.h"

static void norms_rows(void **state) {
    (void)state;
    const int64_t sizes[][2] = {{0, 8}, {1, 1}, {1, 576}, {3, 67}, {130, 300}, {2, 1025}};
    for (int s = 0; s < 6; s++)
        for (int variant = 0; variant < 8; variant++) {
            int64_t n = sizes[s][0] * sizes[s][1];
            float *x = random_vector(DTYPE_F32, n, 3, 1);
            float *weight = random_vector(DTYPE_F32, sizes[s][1], 1, 2);
            float *bias = random_vector(DTYPE_F32, sizes[s][1], 1, 3);
            enum dtype out_dtype = variant & 1 ? DTYPE_BF16 : DTYPE_F32;
            bool in_place = !(variant & 1) && variant & 4;
            struct output out = output_open(out_dtype, n, true);
            struct norm_args args = {
                .kind = variant & 2 ? NORM_LAYER : NORM_RMS,
                .x = x,
                .n_row = sizes[s][0],
                .n_col = sizes[s][1],
                .weight = weight,
                .bias = variant & 4 ? bias : NULL,
                .eps = 1e-5f,
                .out = out.expected,
                .out_dtype = out_dtype,
            };
            succeed(backends[0].ops->norm(&backends[0], &args));
            for (int i = 1; i < N_BACKEND; i++) {
                args.out = output_renew(&out);
                if (in_place) args.x = memcpy(out.got, x, (size_t)n * sizeof(float));
                succeed(backends[i].ops->norm(&backends[i], &args));
                output_check(&out, rounding_tolerance(out_dtype), i, "norm");
            }
            output_close(&out);
            free(x), free(weight), free(bias);
        }
}

struct rope_case {
    int64_t n_token;
    int n_head, head_dim, rope_dim, pad;
};

static void rotates_heads(void **state) {
    (void)state;
    const struct rope_case cases[] = {
        {0, 2, 16, 16, 0}, {1, 1, 2, 2, 0},      {3, 3, 64, 64, 0},
        {5, 2, 80, 20, 7}, {200, 9, 64, 64, 64},
    };
    for (int s = 0; s < 5; s++)
        for (int variant = 0; variant < 16; variant++) {
            const struct rope_case *c = &cases[s];
            if (variant & 8 && c->head_dim & (c->head_dim - 1)) continue;
            int64_t stride = (int64_t)c->n_head * c->head_dim + c->pad, n = c->n_token * stride;
            int64_t n_angle = c->n_token * c->rope_dim / 2;
            float *x = random_vector(DTYPE_F32, n, 1, 1);
            float *angle = random_vector(DTYPE_F32, n_angle, 2, 2);
            float *cosine = test_alloc(n_angle * 4), *sine = test_alloc(n_angle * 4);
            for (int64_t i = 0; i < n_angle; i++)
                cosine[i] = cosf(angle[i]), sine[i] = sinf(angle[i]);
            enum dtype out_dtype = variant & 1 ? DTYPE_BF16 : DTYPE_F32;
            bool in_place = !(variant & 1) && variant & 4 && c->pad == 0;
            struct output out = output_open(out_dtype, n, true);
            struct rope_args args = {
                .x = x,
                .x_stride = stride,
                .n_token = c->n_token,
                .n_head = c->n_head,
                .head_dim = c->head_dim,
                .rope_dim = c->rope_dim,
                .interleaved = variant & 2,
                .cos = cosine,
                .sin = sine,
                .spread = variant & 8,
                .out = out.expected,
                .out_dtype = out_dtype,
                .out_stride = stride,
            };
            succeed(backends[0].ops->rope(&backends[0], &args));
            for (int i = 1; i < N_BACKEND; i++) {
                args.out = output_renew(&out);
                if (in_place) args.x = memcpy(out.got, x, (size_t)n * sizeof(float));
                succeed(backends[i].ops->rope(&backends[i], &args));
                output_check(&out, rounding_tolerance(out_dtype), i, "rope");
            }
            output_close(&out);
            free(x), free(angle), free(cosine), free(sine);
        }
}

// Rotations of one call, more than share a launch: lengths, widths, formats, some only rounded.
static void rotates_each(void **state) {
    (void)state;
    enum { N = 19, MOST = 3 * 5 * 256 };
    float *x = random_vector(DTYPE_F32, MOST, 1, 1), *angle = random_vector(DTYPE_F32, MOST, 1, 2);
    for (int n = 0; n <= N; n += n < 3 ? 1 : 8)
        for (int half = 0; half < 2; half++) {
            struct rope_args rope[N];
            struct output out = output_open(half ? DTYPE_BF16 : DTYPE_F32, N * MOST, true);
            for (int i = 0; i < n; i++) {
                int dim = (const int[]){64, 80, 256, 128}[i % 4];
                rope[i] = (struct rope_args){.x = x,
                                             .x_stride = 5 * dim,
                                             .n_token = i % 7 == 5 ? 0 : 1 + i % 3,
                                             .n_head = 1 + i % 5,
                                             .head_dim = dim,
                                             .rope_dim = i % 5 == 2 ? 0 : dim / 2,
                                             .cos = angle,
                                             .sin = angle + MOST / 2,
                                             .spread = i % 4 != 1 && i % 3 != 1,
                                             .out_dtype = out.dtype,
                                             .out_stride = 5 * dim};
            }
            const struct rope_each_args args = {rope, n};
            for (int b = 0; b < N_BACKEND; b++) {
                char *to = b ? output_renew(&out) : out.expected;
                for (int i = 0; i < n; i++) rope[i].out = to + dtype_bytes(out.dtype, i * MOST);
                succeed(backends[b].ops->rope_each(&backends[b], &args));
                if (b) output_check(&out, rounding_tolerance(out.dtype), b, "rotations");
            }
            output_close(&out);
        }
    free(x), free(angle);
}

// Without angles, against the definition.
static void spreads_heads(void **state) {
    (void)state;
    const int sizes[] = {1, 2, 64, 128, 256};
    for (int b = 0; b < N_BACKEND; b++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            int n = sizes[s];
            float x[2 * 256], y[2 * 256];
            for (int i = 0; i < 2 * n; i++) y[i] = x[i] = random_normal(7, (uint64_t)i);
            struct rope_args args = {.x = y, .x_stride = n, .n_token = 2, .n_head = 1};
            args.head_dim = n;
            args.spread = true;
            args.out = y;
            args.out_dtype = DTYPE_F32;
            args.out_stride = n;
            succeed(backends[b].ops->rope(&backends[b], &args));
            for (int row = 0; row < 2; row++)
                for (int i = 0; i < n; i++) {
                    double sum = 0;
                    for (int j = 0; j < n; j++)
                        sum += (__builtin_parity((unsigned)(i & j)) ? -1.0 : 1.0) * x[row * n + j];
                    assert_true(fabs(y[row * n + i] - sum / sqrt(n)) < 1e-5);
                }
        }
}

static void gates_values(void **state) {
    (void)state;
    const int64_t sizes[][3] = {{0, 8, 0}, {1, 1, 0}, {1, 1536, 0}, {3, 67, 5}, {40, 1025, 31}};
    for (int s = 0; s < 5; s++)
        for (int variant = 0; variant < 12; variant++) {
            int64_t n_token = sizes[s][0], n_col = sizes[s][1], stride = n_col + sizes[s][2];
            float *gate = random_vector(DTYPE_F32, n_token * stride, 4, 1);
            float *up = random_vector(DTYPE_F32, n_token * stride, 1, 2);
            const float edges[] = {0, -0.0f, 30, -30, 100, -100, 1e30f, -1e30f};
            for (int64_t i = 0; i < 8 && i < n_token * stride; i++) gate[i] = edges[i];
            enum dtype out_dtype = variant % 2 ? DTYPE_BF16 : DTYPE_F32;
            struct output out = output_open(out_dtype, n_token * n_col, true);
            struct gate_args args = {
                .activation = variant / 2 % 3,
                .gate = gate,
                .up = variant < 6 ? up : NULL,
                .gate_stride = stride,
                .up_stride = stride,
                .n_token = n_token,
                .n_col = n_col,
                .out = out.expected,
                .out_dtype = out_dtype,
            };
            succeed(backends[0].ops->gate(&backends[0], &args));
            for (int i = 1; i < N_BACKEND; i++) {
                args.out = output_renew(&out);
                succeed(backends[i].ops->gate(&backends[i], &args));
                output_check(&out, rounding_tolerance(out_dtype), i, "gate");
            }
            output_close(&out);
            free(gate), free(up);
        }
}

static void adds_values(void **state) {
    (void)state;
    for (int64_t n = 0; n < 40000; n = n * 13 + 1) {
        float *by = random_vector(DTYPE_F32, n, 2, 1);
        struct output out = output_open(DTYPE_F32, n, false);
        succeed(backends[0].ops->add(&backends[0], &(struct add_args){out.expected, n, by}));
        for (int i = 1; i < N_BACKEND; i++) {
            struct add_args args = {output_renew(&out), n, by};
            succeed(backends[i].ops->add(&backends[i], &args));
            output_check(&out, TOLERANCE_F32, i, "add");
        }
        output_close(&out);
        free(by);
    }
}

// Which NaN a conversion makes is the backend's own; what it leaves alone must stay to the bit.
static void forgive_written_nan(struct output *out) {
    int64_t bytes = dtype_bytes(out->dtype, 1);
    for (int64_t i = 0; i < out->n * bytes; i += bytes) {
        char *got = (char *)out->got + i;
        const char *expected = (char *)out->expected + i;
        float a, b;
        dtype_to_float(out->dtype, got, 1, &a);
        dtype_to_float(out->dtype, expected, 1, &b);
        bool written = memcmp(expected, (char *)out->initial + i, (size_t)bytes) != 0;
        if (written && isnan(a) && isnan(b)) memcpy(got, expected, (size_t)bytes);
    }
}

static void converts_and_gathers(void **state) {
    (void)state;
    const int64_t rows[4] = {6, 0, 3, 3};
    for (int variant = 0; variant < 8; variant++)
        for (int64_t n_col = 1; n_col < 20000; n_col = n_col * 13 + 1) {
            enum dtype x_dtype = variant & 1 ? DTYPE_BF16 : DTYPE_F32;
            enum dtype out_dtype = variant & 2 ? DTYPE_BF16 : DTYPE_F32;
            void *x = random_vector(x_dtype, 7 * (n_col + 3), 1, 1);
            if (x_dtype == DTYPE_F32) ((float *)x)[0] = NAN;
            struct output out = output_open(out_dtype, 4 * (n_col + 1), true);
            struct convert_args args = {
                .x = x,
                .x_dtype = x_dtype,
                .x_stride = n_col + 3,
                .row = variant & 4 ? rows : NULL,
                .n_row = 4,
                .n_col = n_col,
                .out = out.expected,
                .out_dtype = out_dtype,
                .out_stride = n_col + 1,
            };
            succeed(backends[0].ops->convert(&backends[0], &args));
            for (int i = 1; i < N_BACKEND; i++) {
                args.out = output_renew(&out);
                succeed(backends[i].ops->convert(&backends[i], &args));
                forgive_written_nan(&out);
                assert_memory_equal(out.got, out.expected, dtype_bytes(out_dtype, out.n));
            }
            output_close(&out);
            free(x);
        }
}

struct blocks_case {
    int n_block;
    int64_t n_row, n_col, pad; // of the largest; the others are smaller, some empty
    int shift;                 // floats from a multiple of 16 bytes to the first
};
static const struct blocks_case blocks_cases[] = {
    {0, 1, 1, 0, 0},     {1, 1, 1, 0, 0},    {1, 1, 30000, 0, 0}, {3, 5, 64, 8, 0},
    {12, 1, 1024, 0, 0}, {7, 3, 65, 0, 1},   {41, 2, 32, 12, 0},  {100, 4, 17, 3, 2},
    {2, 700, 1, 0, 0},   {5, 1, 4096, 0, 1},
};

// Blocks lie one behind another in the source and in reverse in the target.
static void list_blocks(const struct blocks_case *c, const float *from, float *to,
                        struct block_copy *out) {
    int64_t room = c->n_row * (c->n_col + c->pad) + c->pad;
    for (int i = 0; i < c->n_block; i++) {
        int64_t n_col = c->n_col - i % 3 * c->n_col / 4;
        out[i] = (struct block_copy){.from = from + c->shift + i * room,
                                     .to = to + (c->n_block - 1 - i) * room,
                                     .n_row = i % 5 == 3 ? 0 : c->n_row - i % 2 * c->n_row / 2,
                                     .n_col = i % 7 == 5 ? 0 : n_col,
                                     .from_stride = n_col + c->pad / 2,
                                     .to_stride = c->n_col + c->pad};
    }
}

static void copies_blocks(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof blocks_cases / sizeof *blocks_cases; s++) {
        const struct blocks_case *c = &blocks_cases[s];
        int64_t n = c->n_block * (c->n_row * (c->n_col + c->pad) + c->pad);
        float *from = random_vector(DTYPE_F32, n + c->shift, 1, 1);
        struct block_copy block[128];
        struct output out = output_open(DTYPE_F32, n, true);
        const struct copy_blocks_args args = {block, c->n_block};
        list_blocks(c, from, out.expected, block);
        succeed(backends[0].ops->copy_blocks(&backends[0], &args));
        for (int i = 1; i < N_BACKEND; i++) {
            list_blocks(c, from, output_renew(&out), block);
            succeed(backends[i].ops->copy_blocks(&backends[i], &args));
            assert_memory_equal(out.got, out.expected, n * 4);
        }
        output_close(&out);
        free(from);
    }
}

// An address sanitizer build lets allocations fail instead of ending the program.
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}

static void memory_is_aligned_and_refused(void **state) {
    (void)state;
    for (int i = 1; i < N_BACKEND; i++) {
        const struct kernel_ops *ops = backends[i].ops;
        uint8_t in[3] = {1, 2, 3}, back[3] = {0};
        void *p;
        succeed(ops->alloc(&backends[i], 3, &p));
        assert_int_equal((uintptr_t)p % 64, 0);
        succeed(ops->upload(&backends[i], p, in, 3));
        succeed(ops->download(&backends[i], back, p, 3));
        assert_memory_equal(in, back, 3);
        ops->free(&backends[i], p);
        succeed(ops->alloc(&backends[i], 0, &p));
        ops->free(&backends[i], p);
        assert_int_equal(ops->alloc(&backends[i], INT64_MAX / 2, &p), ERR_MEMORY);
        assert_non_null(strstr(status_message(), "4611686018427387903 bytes"));
        assert_null(p);
    }
}

static void opens_what_exists(void **state) {
    (void)state;
    struct backend backend = {0};
    backend_close(&backend);
    const struct backend_options cuda = {.kind = BACKEND_CUDA, .isa = ISA_AUTO, .n_thread = 1};
    assert_int_equal(backend_open(&cuda, &backend),
                     backend_device_count(BACKEND_CUDA) > 0 ? OK : ERR_CONFIG);
    backend_close(&backend);
    const struct backend_options no_thread = {.kind = BACKEND_CPU, .isa = ISA_AUTO, .n_thread = 0};
    assert_int_equal(backend_open(&no_thread, &backend), ERR_CONFIG);
    assert_null(backend.ops);
    backend_close(&backend);
}

struct sample_case {
    int64_t n;
    int n_distinct; // logits of so many values; 0: no two alike
    double temperature, top_p, min_p;
};
static const struct sample_case sample_cases[] = {
    {1, 0, 1, 0.5, 0},        {7, 0, 0, 1, 0},          {1500, 3, 0, 1, 0},
    {1500, 0, 1, 1, 0},       {1500, 3, 1, 1, 0},       {1500, 0, 0.7, 0.9, 0},
    {1500, 3, 1, 0.4, 0},     {4099, 0, 1.5, 0.95, 0},  {4099, 5, 2, 0.7, 0},
    {4099, 0, 1, 1, 0.05},    {4099, 0, 0.8, 0.8, 0.1}, {4099, 0, 1, 0, 0},
    {4099, 0, 1, 0.999, 1.5}, {4099, 0, 1e-3, 0.9, 0},
};

static void check_sample(const struct sample_case *c, bool holes, double uniform) {
    float *logits = random_vector(DTYPE_F32, c->n, 3, 7);
    for (int64_t i = 0; i < c->n; i++) {
        if (c->n_distinct)
            logits[i] = (float)(random_bits(8, (uint64_t)i) % (uint64_t)c->n_distinct);
        if (holes && i % 3 == 1) logits[i] = i % 2 ? NAN : INFINITY;
    }
    int32_t expected, got;
    struct sample_args args = {.logits = logits,
                               .n = c->n,
                               .temperature = c->temperature,
                               .top_p = c->top_p,
                               .min_p = c->min_p,
                               .uniform = uniform,
                               .token = &expected};
    succeed(backends[0].ops->sample(&backends[0], &args));
    args.token = &got;
    for (int b = 1; b < N_BACKEND; b++) {
        got = -2;
        succeed(backends[b].ops->sample(&backends[b], &args));
        succeed(backends[b].ops->sync(&backends[b]));
        if (got != expected)
            fail_msg("sample of %d, top_p %g, uniform %g, backend %d: %d, not %d", (int)c->n,
                     c->top_p, uniform, b, got, expected);
    }
    free(logits);
}

static void samples_tokens(void **state) {
    (void)state;
    const double uniforms[] = {0, 0.1, 0.31, 0.5, 0.77, 0.93, 1 - 0x1p-53};
    const size_t n_uniform = sizeof uniforms / sizeof *uniforms;
    for (size_t i = 0; i < sizeof sample_cases / sizeof *sample_cases; i++)
        for (size_t u = 0; u < n_uniform; u++)
            for (int holes = 0; holes < 2; holes++) {
                if (tests_are_light() && (i + u) % n_uniform) continue; // one of each case
                check_sample(&sample_cases[i], holes, uniforms[u]);
            }
    check_sample(&(struct sample_case){.n = 2, .temperature = 1, .top_p = 1}, true, 0.5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_rows),           cmocka_unit_test(rotates_heads),
        cmocka_unit_test(rotates_each),         cmocka_unit_test(spreads_heads),
        cmocka_unit_test(gates_values),         cmocka_unit_test(adds_values),
        cmocka_unit_test(converts_and_gathers), cmocka_unit_test(copies_blocks),
        cmocka_unit_test(samples_tokens),       cmocka_unit_test(memory_is_aligned_and_refused),
        cmocka_unit_test(opens_what_exists),
    };
    return cmocka_run_group_tests_name("kernels", tests, open_backends, close_backends);
}
