// The experts' gate, grouped products and weighted sums on every backend against their definitions.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/experts.h"
#include "tests/common/backends.h"
#include "tests/common/cases.h"

struct gate_case {
    enum expert_scoring scoring;
    int n_expert, n_used, n_group, n_group_used;
    bool bias, normalise, ties;
};
static const struct gate_case gate_cases[] = {
    {EXPERT_SIGMOID, 256, 8, 8, 4, true, true, false}, // DeepSeek V3
    {EXPERT_SIGMOID, 256, 8, 1, 1, true, true, false}, // GLM
    {EXPERT_SIGMOID, 8, 3, 4, 2, true, false, false},
    {EXPERT_SOFTMAX, 64, 6, 1, 1, false, false, false},
    {EXPERT_SOFTMAX, 16, 16, 1, 1, false, true, false},
    {EXPERT_SIGMOID, 32, 8, 4, 2, true, true, true},
    {EXPERT_SIGMOID, 1, 1, 1, 1, false, true, false},
};
enum { N_GATE_CASE = sizeof gate_cases / sizeof *gate_cases, N_TOKEN = 37, MAX_EXPERT = 256 };

static void score_experts(const struct gate_case *c, const float *logit, double *score) {
    double total = 0;
    for (int e = 0; e < c->n_expert; e++) {
        score[e] =
            c->scoring == EXPERT_SIGMOID ? 1 / (1 + exp(-(double)logit[e])) : exp((double)logit[e]);
        total += score[e];
    }
    for (int e = 0; e < c->n_expert && c->scoring == EXPERT_SOFTMAX; e++) score[e] /= total;
}

// How many of the n values beat value i: larger ones, and equal ones before it.
static int rank_of(const double *value, int n, int i) {
    int rank = 0;
    for (int j = 0; j < n; j++) rank += value[j] > value[i] || (value[j] == value[i] && j < i);
    return rank;
}

// Marks what the definition chooses: experts ranked among those of the best groups.
static void choose(const struct gate_case *c, const double *choice, bool *chosen) {
    int width = c->n_expert / c->n_group;
    double group[MAX_EXPERT], allowed[MAX_EXPERT];
    for (int g = 0; g < c->n_group; g++) {
        group[g] = 0;
        for (int e = 0; e < width; e++)
            if (rank_of(choice + g * width, width, e) < 2) group[g] += choice[g * width + e];
    }
    for (int e = 0; e < c->n_expert; e++)
        allowed[e] =
            rank_of(group, c->n_group, e / width) < c->n_group_used ? choice[e] : -INFINITY;
    for (int e = 0; e < c->n_expert; e++)
        chosen[e] = allowed[e] > -INFINITY && rank_of(allowed, c->n_expert, e) < c->n_used;
}

static void check_token(const struct gate_case *c, const struct expert_gate_args *args, int64_t t) {
    const float *logit = args->logit + t * c->n_expert;
    double score[MAX_EXPERT], choice[MAX_EXPERT], total = 0;
    bool chosen[MAX_EXPERT];
    score_experts(c, logit, score);
    for (int e = 0; e < c->n_expert; e++)
        choice[e] = (double)((float)score[e] + (args->bias ? args->bias[e] : 0));
    choose(c, choice, chosen);
    for (int e = 0; e < c->n_expert; e++) total += chosen[e] ? score[e] : 0;
    for (int i = 0; i < c->n_used; i++) {
        int e = args->expert[t * c->n_used + i];
        assert_in_range(e, 0, c->n_expert - 1);
        if (!chosen[e]) fail_msg("token %d takes expert %d", (int)t, e);
        chosen[e] = false; // none twice
        double expected = score[e] / (c->normalise ? total : 1) * (double)args->scale;
        assert_true(fabs((double)args->weight[t * c->n_used + i] - expected) < 1e-5);
    }
}

static void test_gate(void **state) {
    (void)state;
    for (int i = 0; i < N_GATE_CASE; i++) {
        const struct gate_case *c = &gate_cases[i];
        float *logit = random_vector(DTYPE_F32, N_TOKEN * c->n_expert, 1, 1);
        float *bias = random_vector(DTYPE_F32, c->n_expert, 0.2f, 2);
        for (int e = 0; c->ties && e < N_TOKEN * c->n_expert; e++) {
            logit[e] = roundf(logit[e]);
            bias[e % c->n_expert] = 0;
        }
        int32_t expert[N_TOKEN * 16];
        float weight[N_TOKEN * 16];
        for (int b = 0; b < N_BACKEND; b++) {
            const struct expert_gate_args args = {.scoring = c->scoring,
                                                  .logit = logit,
                                                  .bias = c->bias ? bias : NULL,
                                                  .n_token = N_TOKEN,
                                                  .n_expert = c->n_expert,
                                                  .n_used = c->n_used,
                                                  .n_group = c->n_group,
                                                  .n_group_used = c->n_group_used,
                                                  .normalise = c->normalise,
                                                  .scale = 2.5f,
                                                  .expert = expert,
                                                  .weight = weight};
            memset(expert, 0xff, sizeof expert);
            poison(weight, sizeof weight);
            assert_int_equal(backends[b].ops->expert_gate(&backends[b], &args), OK);
            for (int64_t t = 0; t < N_TOKEN; t++) check_token(c, &args, t);
        }
        free(bias);
        free(logit);
    }
}

enum { N_GROUP = 9, N_GROUP_OUT = 72, N_GROUP_IN = 256 };

// The products of groups against the definition, in a few places.
static void check_definition(const struct grouped_matmul_args *args, int64_t n_row) {
    int g = 0;
    for (int64_t row = 0; row < n_row; row += 7) {
        while (row >= args->first_row[g + 1]) g++;
        float w[N_GROUP_IN], input[N_GROUP_IN];
        double sum = 0;
        weight_row_to_float(&args->weight[g], row, w);
        dtype_to_float(args->x_dtype,
                       (char *)args->x + dtype_bytes(args->x_dtype, row * N_GROUP_IN), N_GROUP_IN,
                       input);
        for (int i = 0; i < N_GROUP_IN; i++)
            sum += (double)(args->x_dtype == DTYPE_BF16 ? bf16_to_float(bf16_from_float(w[i]))
                                                        : w[i]) *
                   (double)input[i];
        assert_true(fabs(sum - (double)args->out[row * N_GROUP_OUT + row]) < 1e-4);
    }
}

static void check_grouped(enum dtype dtype, enum dtype x_dtype, const int64_t *first_row) {
    const float scale[2] = {0.5f, 3};
    int64_t n_row = first_row[N_GROUP], n = n_row * N_GROUP_OUT;
    struct weight weight[N_GROUP];
    // Random sub-blocks of blocks of 256 differ so much in size that few terms make a sum.
    float x_scale = dtype_info[dtype].block_elements == 256 ? 0.5f : 1;
    void *x = random_vector(x_dtype, n_row * N_GROUP_IN, x_scale, 3);
    float *expected = test_alloc(n * 4), *got = test_alloc(n * 4);
    for (int g = 0; g < N_GROUP; g++) {
        weight[g] = random_weight(dtype, N_GROUP_OUT, N_GROUP_IN, 0, (uint64_t)g);
        if (dtype != DTYPE_F8_E4M3) continue;
        weight[g].scale = scale;
        weight[g].scale_stride = 2;
    }
    struct grouped_matmul_args args = {.n_group = N_GROUP,
                                       .first_row = first_row,
                                       .weight = weight,
                                       .x = x,
                                       .x_dtype = x_dtype,
                                       .out = expected};
    assert_int_equal(backends[0].ops->grouped_matmul(&backends[0], &args), OK);
    check_definition(&args, n_row);
    for (int b = 1; b < N_BACKEND; b++) {
        char message[200];
        poison(got, n * 4);
        args.out = got;
        assert_int_equal(backends[b].ops->grouped_matmul(&backends[b], &args), OK);
        struct tolerance tolerance = x_dtype == DTYPE_BF16 ? TOLERANCE_BF16_PRODUCT : TOLERANCE_F32;
        if (!is_close(DTYPE_F32, got, expected, n, tolerance, message, sizeof message))
            fail_msg("%s, backend %d: %s", dtype_info[dtype].name, b, message);
    }
    for (int g = 0; g < N_GROUP; g++) free((void *)weight[g].data);
    free(got);
    free(expected);
    free(x);
}

// Groups of no, one, few and many rows, or of one at most; weights of every format.
static void test_grouped_matmul(void **state) {
    (void)state;
    const int64_t mixed[N_GROUP + 1] = {0, 0, 1, 1, 4, 12, 13, 22, 60, 60};
    const int64_t single[N_GROUP + 1] = {0, 1, 1, 2, 3, 3, 4, 5, 6, 6};
    for (int d = 0; d < N_DTYPE; d++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            check_grouped(d, bf16 ? DTYPE_BF16 : DTYPE_F32, mixed);
            check_grouped(d, bf16 ? DTYPE_BF16 : DTYPE_F32, single);
        }
}

// Which experts are chosen of [FIRST, FIRST + n_expert): some, repeated ones, others' at both ends,
// none.
enum { FIRST = 7, N_CHOICE = 6, N_CHOSEN_OUT = 37, MOST_OWNED = 500 };
struct chosen_case {
    int n_expert;
    int32_t expert[N_CHOICE];
};
static const struct chosen_case chosen_cases[] = {
    {4, {9, 7, 3, 10, 9, 11}},
    {1, {6, 8, 7, 0, 255, 7}},
    {4, {0, 6, 11, 12, -1, 1 << 30}},
    {MOST_OWNED, {7, 300, 506, 507, 246, 247}}, // more than one launch takes
};
enum { N_CHOSEN_CASE = sizeof chosen_cases / sizeof *chosen_cases };

struct chosen_format {
    enum dtype dtype, third; // of every third expert: mixtures of formats are allowed
    int64_t n_in;
};
static const struct chosen_format chosen_formats[] = {
    {DTYPE_F32, DTYPE_F32, 160},      {DTYPE_F32, DTYPE_F32, 24},
    {DTYPE_F32, DTYPE_F32, 7},        {DTYPE_BF16, DTYPE_BF16, 160},
    {DTYPE_BF16, DTYPE_F32, 24},      {DTYPE_F16, DTYPE_BF16, 33},
    {DTYPE_F16, DTYPE_F16, 160},      {DTYPE_F8_E4M3, DTYPE_F8_E4M3, 160},
    {DTYPE_F8_E4M3, DTYPE_BF16, 150}, {DTYPE_Q8_0, DTYPE_Q8_0, 160},
    {DTYPE_Q4_0, DTYPE_Q5_0, 160},    {DTYPE_Q4_1, DTYPE_Q5_1, 160},
    {DTYPE_Q4_K, DTYPE_Q6_K, 256},    {DTYPE_Q5_K, DTYPE_Q5_K, 512},
};
enum { N_CHOSEN_FORMAT = sizeof chosen_formats / sizeof *chosen_formats };

// The products one by one, with the reference's matmul.
static void multiply_chosen(const struct chosen_matmul_args *a, float *out, int64_t *n_product) {
    for (int j = 0; j < a->n_row; j++) {
        int owned = a->expert[j] - a->first_expert;
        struct matmul_args product = {.x = (const char *)a->x +
                                           dtype_bytes(a->x_dtype, j * a->x_stride),
                                      .x_dtype = a->x_dtype,
                                      .n_token = 1,
                                      .out = out + j * N_CHOSEN_OUT,
                                      .out_dtype = DTYPE_F32};
        memset(product.out, 0, N_CHOSEN_OUT * 4);
        if (owned < 0 || owned >= a->n_expert) continue;
        product.weight = a->weight[owned];
        ++*n_product;
        assert_int_equal(backends[0].ops->matmul(&backends[0], &product), OK);
    }
}

static void check_chosen(const struct chosen_format *format, const struct chosen_case *c,
                         const struct weight *weight, enum dtype x_dtype, int64_t x_stride) {
    enum { N = N_CHOICE * N_CHOSEN_OUT };
    struct tolerance tolerance = x_dtype == DTYPE_BF16 ? TOLERANCE_BF16_PRODUCT : TOLERANCE_F32;
    void *x = random_vector(x_dtype, N_CHOICE * (format->n_in + 1), 1, 3);
    float expected[N], *got = test_alloc(N * 4);
    int64_t n_expected = 5, n_product;
    char message[200];
    struct chosen_matmul_args args = {.n_row = N_CHOICE,
                                      .expert = c->expert,
                                      .first_expert = FIRST,
                                      .n_expert = c->n_expert,
                                      .weight = weight,
                                      .x = x,
                                      .x_dtype = x_dtype,
                                      .x_stride = x_stride,
                                      .out = got};
    multiply_chosen(&args, expected, &n_expected);
    for (int b = 0; b < N_BACKEND; b++) {
        poison(got, N * 4);
        n_product = 5;
        args.n_product = b % 2 && x_stride == 0 ? NULL : &n_product;
        assert_int_equal(backends[b].ops->chosen_matmul(&backends[b], &args), OK);
        if (!is_close(DTYPE_F32, got, expected, N, tolerance, message, sizeof message))
            fail_msg("%s, %d experts, backend %d: %s", dtype_info[format->dtype].name, c->n_expert,
                     b, message);
        if (args.n_product) assert_int_equal(n_product, n_expected);
    }
    free(got);
    free(x);
}

static void test_chosen_matmul(void **state) {
    (void)state;
    const float scale[2] = {0.5f, 3};
    enum { N_MATRIX = 5 }; // different ones
    for (int i = 0; i < N_CHOSEN_FORMAT; i++) {
        const struct chosen_format *format = &chosen_formats[i];
        struct weight matrix[N_MATRIX], weight[MOST_OWNED];
        for (int m = 0; m < N_MATRIX; m++) {
            enum dtype dtype = m == 2 ? format->third : format->dtype;
            matrix[m] = random_weight(dtype, N_CHOSEN_OUT, format->n_in, 0, (uint64_t)m);
            if (dtype != DTYPE_F8_E4M3) continue;
            matrix[m].scale = scale;
            matrix[m].scale_stride = 2;
        }
        for (int e = 0; e < MOST_OWNED; e++) weight[e] = matrix[e < 16 ? e % N_MATRIX : e % 2];
        for (int c = 0; c < N_CHOSEN_CASE; c++)
            for (int bf16 = 0; bf16 < 2; bf16++)
                for (int s = 0; s < 3; s++) { // one row, rows of their own, unaligned ones
                    int64_t x_stride = s == 0 ? 0 : format->n_in + (s == 2);
                    check_chosen(format, &chosen_cases[c], weight, bf16 ? DTYPE_BF16 : DTYPE_F32,
                                 x_stride);
                }
        for (int m = 0; m < N_MATRIX; m++) free((void *)matrix[m].data);
    }
}

static void test_combine(void **state) {
    (void)state;
    enum { N_USED = 4, N_COL = 531, N_ROW = 50, N = N_TOKEN * N_COL };
    float *x = random_vector(DTYPE_F32, N_ROW * N_COL, 1, 4);
    float *weight = random_vector(DTYPE_F32, N_TOKEN * N_USED, 1, 5);
    float *before = random_vector(DTYPE_F32, N, 1, 6), *got = test_alloc(N * 4);
    int32_t row[N_TOKEN * N_USED];
    for (int i = 0; i < N_TOKEN * N_USED; i++)
        row[i] = i % 5 == 0 ? -1 : (int32_t)(random_bits(7, (uint64_t)i) % N_ROW);
    for (int b = 0; b < N_BACKEND; b++) {
        memcpy(got, before, N * 4);
        const struct expert_combine_args args = {.n_token = N_TOKEN,
                                                 .n_used = N_USED,
                                                 .n_col = N_COL,
                                                 .x = x,
                                                 .row = row,
                                                 .weight = weight,
                                                 .out = got};
        assert_int_equal(backends[b].ops->expert_combine(&backends[b], &args), OK);
        for (int64_t i = 0; i < N; i++) {
            double expected = (double)before[i];
            for (int j = 0; j < N_USED; j++) {
                int64_t at = i / N_COL * N_USED + j;
                if (row[at] >= 0)
                    expected += (double)weight[at] * (double)x[row[at] * N_COL + i % N_COL];
            }
            assert_true(fabs((double)got[i] - expected) < 1e-5);
        }
    }
    free(got);
    free(before);
    free(weight);
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_grouped_matmul),
        cmocka_unit_test(test_chosen_matmul),
        cmocka_unit_test(test_combine),
    };
    return cmocka_run_group_tests_name("experts", tests, open_backends, close_backends);
}
