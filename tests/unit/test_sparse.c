// Quantisation and attention over selected keys on every backend, against their definitions. The
// indexer has test_index.c and test_candidates.c.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/fp8.h"
#include "kernels/sparse.h"
#include "tests/common/backends.h"
#include "tests/common/cases.h"

// Values that quantise to every code and to every tie between codes, and their neighbours; blocks
// of zeros, tiny, huge, infinite and NaN elements; random ones. The scales of blocks of 128 that
// begin with 448 are 1.
static float quantize_input(int64_t i) {
    const float odd[] = {0, -0.0f, 1e-30f, 1e-42f, -1e-5f, 1e30f, INFINITY, -INFINITY, NAN, -NAN};
    int64_t code = i % 128, block = i / 128;
    if (block < 8) {
        float low = fp8_to_float((uint8_t)code), high = fp8_to_float((uint8_t)(code + 1));
        float tie = code < 0x7e ? (low + high) / 2 : 0, sign = block % 2 ? -1 : 1;
        if (code == 0 || code >= 0x7e) return 448;
        return sign * (block < 2   ? low
                       : block < 4 ? tie
                       : block < 6 ? nextafterf(tie, 0)
                                   : nextafterf(tie, INFINITY));
    }
    if (block < 16)
        return code < 100 ? random_normal(9, (uint64_t)i) : odd[i % (block < 12 ? 6 : 10)];
    if (block == 16) return 0;
    return ldexpf(random_normal(3, (uint64_t)i), (int)(block % 60) - 30);
}

static void check_quantize(struct backend *backend, const float *x, int64_t n_row, int n_col,
                           int block, bool power_of_two) {
    int64_t n = n_row * n_col, n_scale = n / block;
    uint8_t *out = test_alloc(n), expected[256];
    float *scale = test_alloc(n_scale * 4);
    memset(out, 0x55, (size_t)n);
    poison(scale, n_scale * 4);
    struct quantize_args args = {.x = x,
                                 .n_row = n_row,
                                 .n_col = n_col,
                                 .block = block,
                                 .power_of_two = power_of_two,
                                 .out = out,
                                 .scale = scale};
    assert_int_equal(backend->ops->quantize(backend, &args), OK);
    for (int64_t i = 0; i < n_scale; i++) {
        float s = fp8_quantize_block(x + i * block, block, power_of_two, expected);
        assert_memory_equal(&scale[i], &s, sizeof s);
        assert_memory_equal(out + i * block, expected, (size_t)block);
    }
    free(scale);
    free(out);
}

static void test_quantize(void **state) {
    (void)state;
    enum { N = 65536 };
    const struct {
        int64_t n_row;
        int n_col, block;
    } shapes[] = {{0, 128, 128},  {1, 1, 1},    {9, 21, 7},    {128, 128, 128}, {512, 128, 128},
                  {256, 256, 64}, {31, 96, 32}, {5, 200, 200}, {64, 192, 96}};
    float *x = test_alloc(N * 4);
    for (int64_t i = 0; i < N; i++) x[i] = quantize_input(i);
    for (int b = 0; b < N_BACKEND; b++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int power = 0; power < 2; power++)
                check_quantize(&backends[b], x, shapes[i].n_row, shapes[i].n_col, shapes[i].block,
                               power);
    free(x);
}

// Selecting every visible key is causal attention; selecting none gives 0 and -inf.
static void test_sparse_attention(void **state) {
    (void)state;
    enum { N_QUERY = 9, N_KEY = 33, N_HEAD = 6, N_KV_HEAD = 2, DIM = 32, K = 40 };
    const enum dtype kv_dtypes[] = {DTYPE_F32, DTYPE_BF16};
    int64_t position[N_KEY + 1];
    int32_t row[N_QUERY * K], n_selected[N_QUERY];
    float expected[N_QUERY * N_HEAD * DIM], expected_lse[N_QUERY * N_HEAD];
    float out[N_QUERY * N_HEAD * DIM], lse[N_QUERY * N_HEAD];
    for (int i = 0; i <= N_KEY; i++) position[i] = i;
    for (int t = 0; t < N_QUERY; t++) {
        n_selected[t] = N_KEY - N_QUERY + t + 1;
        for (int i = 0; i < n_selected[t]; i++) row[t * K + i] = i;
    }
    for (int b = 0; b < N_BACKEND; b++)
        for (int kv = 0; kv < 2; kv++) {
            enum dtype kv_dtype = kv_dtypes[kv];
            float *query = random_vector(DTYPE_F32, N_QUERY * N_HEAD * DIM, 1, 5);
            void *key = random_vector(kv_dtype, N_KEY * N_KV_HEAD * DIM, 1, 6);
            void *value = random_vector(kv_dtype, N_KEY * N_KV_HEAD * DIM, 1, 7);
            struct sparse_attention_args args = {
                .attention = {.n_query = N_QUERY,
                              .n_key = N_KEY,
                              .n_head = N_HEAD,
                              .n_kv_head = N_KV_HEAD,
                              .head_dim = DIM,
                              .value_dim = DIM,
                              .scale = 0.2f,
                              .query = query,
                              .query_dtype = DTYPE_F32,
                              .query_stride = N_HEAD * DIM,
                              .key = key,
                              .value = value,
                              .kv_dtype = kv_dtype,
                              .key_stride = N_KV_HEAD * DIM,
                              .value_stride = N_KV_HEAD * DIM,
                              .end_visible = position + N_KEY - N_QUERY + 1,
                              .key_position = position,
                              .out = expected,
                              .lse = expected_lse},
                .row = row,
                .n_selected = n_selected,
                .k = K};
            assert_int_equal(backends[0].ops->attention(&backends[0], &args.attention), OK);
            args.attention.out = out;
            args.attention.lse = lse;
            poison(out, sizeof out);
            poison(lse, sizeof lse);
            assert_int_equal(backends[b].ops->sparse_attention(&backends[b], &args), OK);
            char message[200];
            if (!is_close(DTYPE_F32, out, expected, N_QUERY * N_HEAD * DIM, TOLERANCE_F32, message,
                          sizeof message) ||
                !is_close(DTYPE_F32, lse, expected_lse, N_QUERY * N_HEAD, TOLERANCE_F32, message,
                          sizeof message))
                fail_msg("backend %d: %s", b, message);
            const int32_t none[N_QUERY] = {0};
            args.n_selected = none;
            poison(out, sizeof out);
            assert_int_equal(backends[b].ops->sparse_attention(&backends[b], &args), OK);
            for (int i = 0; i < N_QUERY * N_HEAD * DIM; i++) assert_true(out[i] == 0);
            for (int i = 0; i < N_QUERY * N_HEAD; i++) assert_true(lse[i] == -INFINITY);
            free(value);
            free(key);
            free(query);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_sparse_attention),
    };
    return cmocka_run_group_tests_name("sparse", tests, open_backends, close_backends);
}
