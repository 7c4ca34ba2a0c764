// Products with weights of every format, on every backend and instruction set against the
// reference: matrix products, embeddings, log-probabilities over the vocabulary.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/common/backends.h"
#include "tests/common/output.h"

struct matmul_case {
    int64_t n_token, n_row, n_col; // n_col is rounded up to whole blocks
    int pad;                       // elements after each row of x and of out
    bool bias, accumulate;
    enum dtype out_dtype;
};

static const struct matmul_case matmul_cases[] = {
    {0, 5, 32, 0, false, false, DTYPE_F32},    {1, 1, 1, 0, false, false, DTYPE_F32},
    {1, 7, 31, 3, true, false, DTYPE_F32},     {1, 67, 256, 0, false, true, DTYPE_F32},
    {2, 33, 67, 5, false, false, DTYPE_BF16},  {3, 16, 96, 0, true, true, DTYPE_F32},
    {5, 17, 288, 1, true, false, DTYPE_BF16},  {7, 40, 300, 0, false, true, DTYPE_F32},
    {8, 31, 64, 2, false, false, DTYPE_F32},   {9, 13, 67, 3, true, false, DTYPE_F32},
    {17, 64, 128, 0, false, true, DTYPE_F32},  {37, 61, 320, 5, true, true, DTYPE_F32},
    {61, 1, 31, 0, false, false, DTYPE_BF16},  {33, 129, 256, 4, true, false, DTYPE_BF16},
    {64, 96, 512, 0, false, false, DTYPE_F32},
};

static struct tolerance matmul_tolerance(enum dtype x_dtype, enum dtype out_dtype) {
    return x_dtype == DTYPE_BF16 ? TOLERANCE_BF16_PRODUCT : rounding_tolerance(out_dtype);
}

static void check_matmul(const struct matmul_case *c, struct weight weight, enum dtype x_dtype) {
    char what[160];
    if (!case_is_wanted(c->n_token * c->n_row * weight.n_col, x_dtype == DTYPE_BF16)) return;
    int64_t x_stride = weight.n_col + c->pad, out_stride = c->n_row + c->pad;
    void *x = random_vector(x_dtype, c->n_token * x_stride, 1, 1);
    float *bias = random_vector(DTYPE_F32, c->n_row, 1, 2);
    struct output out = output_open(c->out_dtype, c->n_token * out_stride, !c->accumulate);
    struct matmul_args args = {
        .x = x,
        .x_dtype = x_dtype,
        .x_stride = x_stride,
        .n_token = c->n_token,
        .weight = weight,
        .bias = c->bias ? bias : NULL,
        .accumulate = c->accumulate,
        .out = out.expected,
        .out_dtype = c->out_dtype,
        .out_stride = out_stride,
    };
    succeed(backends[0].ops->matmul(&backends[0], &args));
    snprintf(what, sizeof what, "matmul %lld x %lld x %lld %s by %s%s%s to %s",
             (long long)c->n_token, (long long)c->n_row, (long long)weight.n_col,
             dtype_info[x_dtype].name, dtype_info[weight.dtype].name, c->bias ? " bias" : "",
             c->accumulate ? " accumulate" : "", dtype_info[c->out_dtype].name);
    for (int i = 1; i < N_BACKEND; i++) {
        args.out = output_renew(&out);
        succeed(backends[i].ops->matmul(&backends[i], &args));
        succeed(backends[i].ops->sync(&backends[i]));
        output_check(&out, matmul_tolerance(x_dtype, c->out_dtype), i, what);
    }
    output_close(&out);
    free(x);
    free(bias);
}

static int64_t whole_blocks(enum dtype dtype, int64_t n) {
    int block = dtype_info[dtype].block_elements;
    return (n + block - 1) / block * block;
}

static void matmul_in_every_format(void **state) {
    (void)state;
    for (int d = 0; d < N_DTYPE; d++)
        for (size_t i = 0; i < sizeof matmul_cases / sizeof *matmul_cases; i++) {
            const struct matmul_case *c = &matmul_cases[i];
            struct weight w = random_weight(d, c->n_row, whole_blocks(d, c->n_col), 0, i);
            check_matmul(c, w, DTYPE_F32);
            check_matmul(c, w, DTYPE_BF16);
            free((void *)w.data);
        }
}

static void matmul_of_views(void **state) {
    (void)state;
    for (int d = 0; d < N_DTYPE; d++) {
        int block = dtype_info[d].block_elements;
        int64_t begin = block == 1 ? 5 : block, n_col = whole_blocks(d, 67);
        struct weight w = random_weight(d, 45, n_col + 2 * begin, 0, 7);
        struct weight view = weight_columns(weight_rows(w, 3, 29), begin, n_col);
        for (int64_t n_token = 1; n_token <= 35; n_token += 17) {
            const struct matmul_case c = {n_token, 29, n_col, 0, false, false, DTYPE_F32};
            check_matmul(&c, view, DTYPE_F32);
            check_matmul(&c, view, DTYPE_BF16);
        }
        free((void *)w.data);
    }
}

// Products of one call: alike and of one format, or some alike but for their rows and some of
// another format, width or length; more than share a launch.
struct product_list {
    int n;
    enum dtype x_dtype;
    bool alike;
    enum dtype format; // of those alike
};
enum { MOST_PRODUCT = 53, MOST_TOKEN = 3, MOST_ROW = 70 };

static struct matmul_args list_product(const struct product_list *list, int i, const void *x,
                                       const float *bias) {
    const enum dtype formats[] = {DTYPE_BF16, DTYPE_Q8_0, DTYPE_F32};
    int64_t n_row = i % 7 == 4 ? 0 : 1 + i * 31 % MOST_ROW, n_col = i % 5 == 3 ? 67 : 512;
    enum dtype format = formats[n_col == 67 ? 2 : i / 4 % 3];
    int64_t n_token = i % 11 == 0 ? MOST_TOKEN : i != 6;
    if (list->alike) n_row = 40, n_col = 512, format = list->format, n_token = 1;
    return (struct matmul_args){.x = x,
                                .x_dtype = list->x_dtype,
                                .x_stride = 512,
                                .n_token = n_token,
                                .weight = random_weight(format, n_row, n_col, 0, (uint64_t)i),
                                .bias = i % 3 == 2 ? bias : NULL,
                                .accumulate = i % 4 == 1,
                                .out_dtype = DTYPE_F32,
                                .out_stride = MOST_ROW};
}

static void check_products(const struct product_list *list) {
    struct matmul_args product[MOST_PRODUCT];
    void *x = random_vector(list->x_dtype, MOST_TOKEN * 512, 1, 1);
    float *bias = random_vector(DTYPE_F32, MOST_ROW, 1, 2);
    struct output out = output_open(DTYPE_F32, MOST_PRODUCT * MOST_TOKEN * MOST_ROW, false);
    for (int i = 0; i < list->n; i++) product[i] = list_product(list, i, x, bias);
    const struct matmul_each_args args = {product, list->n};
    for (int b = 0; b < N_BACKEND; b++) {
        float *to = b ? output_renew(&out) : out.expected;
        for (int i = 0; i < list->n; i++) product[i].out = to + i * MOST_TOKEN * MOST_ROW;
        succeed(backends[b].ops->matmul_each(&backends[b], &args));
        succeed(backends[b].ops->sync(&backends[b]));
        if (b) output_check(&out, matmul_tolerance(list->x_dtype, DTYPE_F32), b, "products");
    }
    for (int i = 0; i < list->n; i++) free((void *)product[i].weight.data);
    output_close(&out);
    free(x), free(bias);
}

static void products_at_once(void **state) {
    (void)state;
    const int n[] = {0, 1, 2, 3, 24, 25, MOST_PRODUCT};
    for (int half = 0; half < 2; half++) {
        enum dtype x_dtype = half ? DTYPE_BF16 : DTYPE_F32;
        for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
            check_products(&(struct product_list){n[i], x_dtype, false, N_DTYPE});
            check_products(&(struct product_list){n[i], x_dtype, true, DTYPE_BF16});
        }
        for (int d = 0; d < N_DTYPE; d++)
            check_products(&(struct product_list){3, x_dtype, true, d});
    }
}

// fp8 with a factor for each 128 x 128 block: the reference form against the definition, every
// other against the reference, in views that begin inside a block.
static void matmul_of_scaled_blocks(void **state) {
    (void)state;
    enum { N_ROW = 300, N_COL = 277, BLOCK = WEIGHT_SCALE_BLOCK };
    struct weight w = random_weight(DTYPE_F8_E4M3, N_ROW, N_COL, 3, 11);
    float scale[3 * 3], row[N_COL], plain[N_COL];
    for (int i = 0; i < 9; i++) scale[i] = (float)(i + 1) * 0.3f;
    w.scale = scale;
    w.scale_stride = 3;
    for (int r = 0; r < N_ROW; r += 37) {
        weight_row_to_float(&w, r, row);
        dtype_to_float(w.dtype, (const uint8_t *)w.data + r * w.row_bytes, N_COL, plain);
        for (int i = 0; i < N_COL; i++)
            assert_true(row[i] == plain[i] * scale[r / BLOCK * 3 + i / BLOCK]);
    }
    const struct weight views[] = {w, weight_rows(w, 100, 120),
                                   weight_columns(weight_rows(w, 250, 50), 65, 200)};
    for (int v = 0; v < 3; v++)
        for (int64_t n_token = 1; n_token <= 40; n_token = n_token * 2 + 1) {
            const struct matmul_case c = {n_token, views[v].n_row, 0, 2, v == 1, v == 2, DTYPE_F32};
            check_matmul(&c, views[v], DTYPE_F32);
            check_matmul(&c, views[v], DTYPE_BF16);
        }
    free((void *)w.data);
}

// Longer than a tile of tokens; wider than a panel of weights.
static void matmul_in_tiles(void **state) {
    (void)state;
    const struct matmul_case cases[] = {
        {2051, 3, 32, 1, true, false, DTYPE_BF16},
        {4099, 2, 32, 0, false, true, DTYPE_F32},
        {9, 130, 131072, 0, true, false, DTYPE_F32},
        {9, 70, 131072, 0, false, true, DTYPE_F32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct weight w = random_weight(DTYPE_Q4_1, cases[i].n_row, cases[i].n_col, 0, i);
        // A sum of 131072 terms rounds 10 times more than those that TOLERANCE_F32 is made for:
        // zeros leave as many terms as that.
        if (cases[i].n_col > 1000)
            for (int64_t r = 0; r < w.n_row; r++)
                memset((uint8_t *)w.data + r * w.row_bytes + 100, 0, (size_t)w.row_bytes - 200);
        check_matmul(&cases[i], w, DTYPE_F32);
        check_matmul(&cases[i], w, DTYPE_BF16);
        free((void *)w.data);
    }
}

static void embed_every_format(void **state) {
    (void)state;
    const int32_t token[5] = {0, 10, 3, 3, 7};
    for (int d = 0; d < N_DTYPE; d++)
        for (int scaled = 0; scaled < 2; scaled++) {
            struct weight table = random_weight(d, 11, whole_blocks(d, 67), 6, 5);
            struct output out = output_open(DTYPE_F32, 5 * table.n_col, true);
            struct embed_args args = {table, token, 5, scaled ? 1.5f : 1.0f, out.expected};
            succeed(backends[0].ops->embed(&backends[0], &args));
            for (int i = 1; i < N_BACKEND; i++) {
                args.out = output_renew(&out);
                succeed(backends[i].ops->embed(&backends[i], &args));
                output_check(&out, TOLERANCE_F32, i, dtype_info[d].name);
            }
            output_close(&out);
            free((void *)table.data);
        }
}

static void logprob_over_tiles(void **state) {
    (void)state;
    const int64_t cases[][3] = {{0, 5, 32},    {1, 1, 32},  {1, 5000, 64},  {3, 2048, 32},
                                {9, 2049, 64}, {8, 50, 32}, {521, 2100, 32}};
    const enum dtype formats[] = {DTYPE_Q8_0, DTYPE_F32, DTYPE_BF16, DTYPE_Q5_1};
    for (int s = 0; s < 7; s++)
        for (int d = 0; d < (s == 6 ? 1 : 4); d++)
            for (int half = 0; half < 2; half++) {
                int64_t n_token = cases[s][0], n_vocab = cases[s][1], n_col = cases[s][2];
                enum dtype x_dtype = half ? DTYPE_BF16 : DTYPE_F32;
                if (!case_is_wanted(n_token * n_vocab * n_col, half)) continue;
                struct weight head = random_weight(formats[d], n_vocab, n_col, 2, 3);
                void *x = random_vector(x_dtype, n_token * n_col, 3, 4);
                int32_t *target = test_alloc(n_token * 4);
                for (int64_t t = 0; t < n_token; t++)
                    target[t] = (int32_t)(random_bits(5, (uint64_t)t) % (uint64_t)n_vocab);
                struct output out = output_open(DTYPE_F32, n_token, true);
                struct logprob_args args = {x, x_dtype, n_token, head, target, out.expected};
                succeed(backends[0].ops->logprob(&backends[0], &args));
                for (int i = 1; i < N_BACKEND; i++) {
                    args.logprob = output_renew(&out);
                    succeed(backends[i].ops->logprob(&backends[i], &args));
                    output_check(&out, half ? TOLERANCE_BF16_PRODUCT : TOLERANCE_F32, i, "logprob");
                }
                output_close(&out);
                free(x), free(target), free((void *)head.data);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_in_every_format),  cmocka_unit_test(matmul_of_views),
        cmocka_unit_test(matmul_of_scaled_blocks), cmocka_unit_test(matmul_in_tiles),
        cmocka_unit_test(embed_every_format),      cmocka_unit_test(logprob_over_tiles),
        cmocka_unit_test(products_at_once),
    };
    return cmocka_run_group_tests_name("matmul", tests, open_backends, close_backends);
}
