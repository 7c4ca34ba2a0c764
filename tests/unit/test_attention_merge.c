// Attention over parts of the keys, merged afterwards or on the way, is attention over all of them;
// merging alone.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
// setjmp.h, stdarg.h and stdlib.h come before cmocka.h
#include <cmocka.h>

#include "tests/common/attention_cases.h"

// The keys [begin, end) of `a` as a block of their own.
static struct attention_args key_block(const struct attention_args *a, int64_t begin, int64_t end) {
    struct attention_args block = *a;
    block.n_key = end - begin;
    block.key = (const char *)a->key + dtype_bytes(a->kv_dtype, begin * a->key_stride);
    block.value = (const char *)a->value + dtype_bytes(a->kv_dtype, begin * a->value_stride);
    block.key_position = a->key_position + begin;
    return block;
}

// Results of n_row rows, each `stride` floats behind the one before. Behind the out and the lse of
// one is room for attention_attend's guards.
struct parts {
    int64_t n_row, stride;
    int value_dim;
    float *out, *lse; // of the first
};

static struct parts parts_open(int n, int64_t n_row, int value_dim) {
    struct parts parts = {n_row, n_row * (value_dim + 1) + 3, value_dim, NULL, NULL};
    parts.out = test_alloc(n * parts.stride * 4);
    parts.lse = parts.out + n_row * value_dim + 1;
    return parts;
}

static struct merge_args merge_of(const struct parts *parts, int first, int n, float *out,
                                  float *lse) {
    return (struct merge_args){.n_row = parts->n_row,
                               .value_dim = parts->value_dim,
                               .merge = first > 0,
                               .out = out,
                               .lse = lse,
                               .n_other = n,
                               .other_out = parts->out + first * parts->stride,
                               .other_lse = parts->lse + first * parts->stride,
                               .other_stride = parts->stride};
}

// All of them in one call, written or joined to the first: bit for bit what one by one has left.
static void check_at_once(struct backend *backend, const struct parts *parts, int n_part,
                          const float *out, const float *lse) {
    int64_t n_out = parts->n_row * parts->value_dim;
    float *got = test_alloc(n_out * 4), *got_lse = test_alloc(parts->n_row * 4);
    for (int first = 0; first < 2; first++) {
        memset(got, 0xff, (size_t)n_out * 4);
        memset(got_lse, 0xff, (size_t)parts->n_row * 4);
        if (first) {
            memcpy(got, parts->out, (size_t)n_out * 4);
            memcpy(got_lse, parts->lse, (size_t)parts->n_row * 4);
        }
        struct merge_args merge = merge_of(parts, first, n_part - first, got, got_lse);
        assert_int_equal(backend->ops->merge_partials(backend, &merge), OK);
        assert_memory_equal(got, out, (size_t)n_out * 4);
        assert_memory_equal(got_lse, lse, (size_t)parts->n_row * 4);
    }
    free(got);
    free(got_lse);
}

// Keys cut into blocks in any way, in any order of merging, by itself and inside of attention: the
// same as one call.
static void check_split(struct backend *backend, const struct attention_case *c,
                        const int64_t *bound, int n_block, int first, int step) {
    struct attention_args a = attention_arguments_open(c, DTYPE_F32, DTYPE_F32);
    int64_t n_row = a.n_query * a.n_head, n_out = n_row * a.value_dim;
    attention_attend(backend, &a);
    float *out = test_alloc(n_out * 4), *lse = test_alloc(n_row * 4);
    memset(out, 0xff, (size_t)n_out * 4);
    struct parts parts = parts_open(n_block, n_row, a.value_dim);
    float *held = test_alloc(n_out * 4 + 4), *held_lse = test_alloc(n_row * 4 + 4);
    for (int i = 0; i < n_block; i++) {
        int b = (first + i * step) % n_block;
        struct attention_args joining = key_block(&a, bound[b], bound[b + 1]);
        joining.out = held;
        joining.lse = held_lse;
        joining.merge = i > 0;
        assert_int_equal(backend->ops->attention(backend, &joining), OK);
        struct attention_args block = key_block(&a, bound[b], bound[b + 1]);
        block.out = parts.out + i * parts.stride;
        block.lse = parts.lse + i * parts.stride;
        attention_attend(backend, &block);
        struct merge_args merge = merge_of(&parts, i, 1, out, lse);
        assert_int_equal(backend->ops->merge_partials(backend, &merge), OK);
    }
    check_at_once(backend, &parts, n_block, out, lse);
    attention_assert_close(c->name, out, a.out, n_out, TOLERANCE_F32);
    attention_assert_close(c->name, lse, a.lse, n_row, TOLERANCE_F32);
    attention_assert_close(c->name, held, a.out, n_out, TOLERANCE_F32);
    attention_assert_close(c->name, held_lse, a.lse, n_row, TOLERANCE_F32);
    void *all[] = {out, lse, parts.out, held, held_lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    attention_arguments_close(&a);
}

static void test_blocks_merge_to_one_call(void **state) {
    (void)state;
    static const struct attention_case split[] = {
        {"shards", 60, 333, 6, 2, 32, 40, CAUSAL, SHARDS, RANDOM, 0, 0},
        {"causal", 50, 333, 4, 4, 16, 16, CAUSAL, LAST, RANDOM, 0, 0},
        {"decode", 1, 333, 9, 3, 64, 64, FULL, LAST, RANDOM, 0, 0},
        {"large scores", 5, 333, 3, 1, 32, 32, CAUSAL, LAST, LARGE, 0, 0},
        {"window", 70, 333, 4, 2, 32, 32, WINDOW, LAST, RANDOM, 0, 60},
        {"symmetric", 333, 333, 2, 2, 32, 32, SYMMETRIC, LAST, RANDOM, 0, 20},
        {"sinks", 70, 333, 4, 2, 32, 32, SINKS, LAST, RANDOM, 0, 60},
    };
    static const int64_t halves[] = {0, 166, 333}, ragged[] = {0, 1, 1, 130, 131, 257, 330, 333};
    for (size_t i = 0; i < sizeof split / sizeof *split; i++)
        for (int kind = BACKEND_REFERENCE; kind <= BACKEND_CUDA; kind++) {
            struct backend backend = attention_backend_open((enum backend_kind)kind, ISA_AUTO,
                                                            kind == BACKEND_CPU ? 2 : 1);
            check_split(&backend, &split[i], halves, 2, 0, 1);
            check_split(&backend, &split[i], ragged, 7, 0, 1);
            check_split(&backend, &split[i], ragged, 7, 3, 2); // another order
            check_split(&backend, &split[i], ragged, 7, 6, 6); // backwards
            attention_backend_close(&backend);
        }
}

// A partial that saw no key changes nothing, bit for bit, whichever side it is on; its values are
// not read. Both empty stay empty. NaN stays in its row.
static void test_merge_knows_the_infinities(void **state) {
    (void)state;
    enum { N_ROW = 6, DIM = 19 };
    static const float lse[N_ROW] = {-INFINITY, 1.5f, -INFINITY, 700, -3e38f, 2};
    static const float other_lse[N_ROW] = {2.5f, -INFINITY, -INFINITY, 700, -3e38f, NAN};
    for (int kind = BACKEND_REFERENCE; kind <= BACKEND_CUDA; kind++) {
        struct backend backend = attention_backend_open((enum backend_kind)kind, ISA_AUTO, 1);
        float *out = random_vector(DTYPE_F32, N_ROW * DIM, 1, 1), got_lse[N_ROW];
        float *other = random_vector(DTYPE_F32, N_ROW * DIM, 1, 2);
        float before[N_ROW * DIM];
        memset(&out[2 * DIM], 0, 4 * DIM);
        for (int i = DIM; i < 3 * DIM; i++) other[i] = NAN;
        for (int i = 0; i < DIM; i++) out[i] = NAN;
        memcpy(before, out, sizeof before);
        memcpy(got_lse, lse, sizeof lse);
        struct merge_args merge = {N_ROW, DIM, true, out, got_lse, 1, other, other_lse, 0};
        assert_int_equal(backend.ops->merge_partials(&backend, &merge), OK);
        assert_memory_equal(out, other, 4 * DIM);
        assert_true(got_lse[0] == 2.5f);
        assert_memory_equal(&out[DIM], &before[DIM], 2 * 4 * DIM);
        assert_true(got_lse[1] == 1.5f && got_lse[2] == -INFINITY);
        for (int i = 3 * DIM; i < 5 * DIM; i++)
            assert_float_equal(out[i], (before[i] + other[i]) / 2, 1e-6);
        assert_float_equal(got_lse[3], 700 + logf(2), 1e-4);
        assert_true(got_lse[4] == -3e38f && isnan(got_lse[5]));
        free(out);
        free(other);
        attention_backend_close(&backend);
    }
}

// Nothing to merge, or only what saw no key: zeros and -inf where nothing is held, else as it was.
static void test_merge_of_nothing(void **state) {
    (void)state;
    enum { N_ROW = 9, DIM = 200, N = N_ROW * (DIM + 1) };
    for (int kind = BACKEND_REFERENCE; kind <= BACKEND_CUDA; kind++) {
        struct backend backend = attention_backend_open((enum backend_kind)kind, ISA_AUTO, 1);
        struct parts parts = parts_open(3, N_ROW, DIM);
        for (int64_t i = 0; i < 3 * parts.stride; i++)
            parts.out[i] = i % parts.stride < N_ROW * DIM ? NAN : -INFINITY;
        for (int form = 0; form < 4; form++) {
            float *out = random_vector(DTYPE_F32, N, 1, 5), before[N];
            memcpy(before, out, sizeof before);
            int n = form & 2 ? 2 : 0;
            struct merge_args merge = merge_of(&parts, form & 1, n, out, out + N_ROW * DIM);
            assert_int_equal(backend.ops->merge_partials(&backend, &merge), OK);
            for (int i = 0; i < N; i++)
                assert_true(out[i] == (form & 1 ? before[i] : i < N_ROW * DIM ? 0 : -INFINITY));
            free(out);
        }
        free(parts.out);
        attention_backend_close(&backend);
    }
}

// A result of n_row rows over some keys.
struct result {
    float *out, *lse;
};

static struct result result_copy(const struct attention_args *a) {
    int64_t n_row = a->n_query * a->n_head, n_out = n_row * a->value_dim;
    struct result r = {test_alloc(n_out * 4 + 4), test_alloc(n_row * 4 + 4)};
    memcpy(r.out, a->out, (size_t)n_out * 4);
    memcpy(r.lse, a->lse, (size_t)n_row * 4);
    return r;
}
static void result_free(struct result *r) {
    free(r->out);
    free(r->lse);
}

// Into a, results over other keys than its rows' own: none held (then out is NaN and must not be
// read), ones of about the same weight, and of far more or less.
static void hold_others(struct attention_args *a) {
    for (int64_t row = 0; row < a->n_query * a->n_head; row++) {
        float own = isfinite(a->lse[row]) ? a->lse[row] : 3, far = fmaxf(80, fabsf(own) / 100);
        // The rounding of a large lse is a factor of the weights by itself.
        bool is_large = fabsf(own) > 1000;
        const float by[] = {-INFINITY, is_large ? far : 0.5f, -far, far, is_large ? -far : 0};
        a->lse[row] = own + by[row % 5];
        float *out = a->out + row * a->value_dim;
        for (int i = 0; i < a->value_dim; i++)
            out[i] = row % 5 ? random_normal(17, (uint64_t)(row * a->value_dim + i)) : NAN;
    }
}

// Every row that sees no key keeps its bits.
static void assert_kept(const char *what, const struct attention_args *a, const struct result *own,
                        const struct result *held) {
    for (int64_t row = 0; row < a->n_query * a->n_head; row++) {
        if (own->lse[row] != -INFINITY) continue;
        int64_t at = row * a->value_dim;
        if (memcmp(&a->lse[row], &held->lse[row], 4) ||
            memcmp(a->out + at, held->out + at, (size_t)a->value_dim * 4))
            fail_msg("%s: row %lld sees no key and changed", what, (long long)row);
    }
}

// Forms before the first are the reference.
static void check_form(const struct attention_case *c, int form, struct attention_args *a,
                       const struct result *own, const struct result *held,
                       const struct result *expected) {
    int64_t n_row = a->n_query * a->n_head, n_out = n_row * a->value_dim;
    char what[200];
    snprintf(what, sizeof what, "%s, query %s, K/V %s, form %d", c->name,
             dtype_info[a->query_dtype].name, dtype_info[a->kv_dtype].name, form);
    struct backend backend = form < FORM_PLAIN
                                 ? attention_backend_open(BACKEND_REFERENCE, ISA_AUTO, 1)
                                 : attention_form_open(form, 2);
    bool rounds = form >= ISA_AVX512_BF16 && a->query_dtype == DTYPE_BF16;
    memcpy(a->out, held->out, (size_t)n_out * 4);
    memcpy(a->lse, held->lse, (size_t)n_row * 4);
    if (backend.ops->attention(&backend, a) != OK) fail_msg("%s", status_message());
    attention_backend_close(&backend);
    assert_kept(what, a, own, held);
    attention_assert_close(what, a->out, expected->out, n_out,
                           rounds ? TOLERANCE_BF16_WEIGHT : TOLERANCE_F32);
    attention_assert_close(what, a->lse, expected->lse, n_row, TOLERANCE_F32);
}

static void check_case(struct backend *reference, const struct attention_case *c,
                       struct attention_format format) {
    struct attention_args a = attention_arguments_open(c, format.query, format.kv);
    attention_attend(reference, &a);
    struct result own = result_copy(&a);
    hold_others(&a);
    struct result held = result_copy(&a), expected = result_copy(&a);
    const struct merge_args merge = {.n_row = a.n_query * a.n_head,
                                     .value_dim = a.value_dim,
                                     .merge = true,
                                     .out = expected.out,
                                     .lse = expected.lse,
                                     .n_other = 1,
                                     .other_out = own.out,
                                     .other_lse = own.lse};
    assert_int_equal(reference->ops->merge_partials(reference, &merge), OK);
    a.merge = true;
    check_form(c, FORM_PLAIN - 1, &a, &own, &held, &expected);
    for (int form = attention_first_form(); form <= FORM_DEVICE; form++)
        check_form(c, form, &a, &own, &held, &expected);
    result_free(&own);
    result_free(&held);
    result_free(&expected);
    attention_arguments_close(&a);
}

static void test_attention_merges_into_what_is_held(void **state) {
    (void)state;
    struct backend reference = attention_backend_open(BACKEND_REFERENCE, ISA_AUTO, 1);
    for (int i = 0; i < n_attention_case; i++)
        for (int f = 0; f < N_ATTENTION_FORMAT; f++)
            if (attention_case_is_wanted(&attention_cases[i], attention_formats[f]))
                check_case(&reference, &attention_cases[i], attention_formats[f]);
    backend_close(&reference);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_merge_to_one_call),
        cmocka_unit_test(test_merge_knows_the_infinities),
        cmocka_unit_test(test_merge_of_nothing),
        cmocka_unit_test(test_attention_merges_into_what_is_held),
    };
    return cmocka_run_group_tests_name("attention merge", tests, attention_device_open,
                                       attention_device_close);
}
