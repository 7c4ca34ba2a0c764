// Attention of few rows (decode), which the cpu backend reads where they lie: groups, lengths
// around its tiles, head dimensions that end inside a vector, and masks, against the reference.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
// setjmp.h and stdarg.h come before cmocka.h
#include <cmocka.h>

#include "tests/common/attention_cases.h"

#define COUNT(x) ((int)(sizeof(x) / sizeof *(x)))

static void check_formats(struct backend *reference, const struct attention_case *c) {
    char name[120];
    snprintf(name, sizeof name,
             "%d:%d heads of %d/%d, %d queries, %d keys, visibility %d, content %d", c->n_head,
             c->n_kv_head, c->head_dim, c->value_dim, (int)c->n_query, (int)c->n_key,
             (int)c->visibility, (int)c->content);
    struct attention_case named = *c;
    named.name = name;
    for (int f = 0; f < N_ATTENTION_FORMAT; f++)
        if (attention_case_is_wanted(&named, attention_formats[f]))
            attention_check_case(reference, &named, attention_formats[f]);
}

// What rows see differs from row to row, ends inside tiles, and hides keys and values that are NaN.
static const struct sight {
    enum visibility visibility;
    enum positions positions;
    enum content content;
    int window;
} sights[] = {
    {CAUSAL, LAST, RANDOM, 0},
    {CAUSAL, LAST, NAN_KEY, 0},
    {CAUSAL, LAST, NAN_VALUE, 0},
    {CAUSAL, LAST, INF_VALUE, 0},
    {CAUSAL, BEFORE, RANDOM, 0},
    {WINDOW, LAST, NAN_MIDDLE, 70},
    {WINDOW, LAST, NAN_VALUE_MIDDLE, 70},
    {WINDOW, LAST, RANDOM, 2},
    {SINKS, LAST, NAN_MIDDLE, 60},
    {SINKS, LAST, NAN_VALUE_MIDDLE, 60},
    {FAR, LAST, RANDOM, 101},
    {CAUSAL, SHARDS, RANDOM, 0},
    {FULL, LAST, INF_KEY, 0},
    {CAUSAL, LAST, HUGE_SCORE, 0},
};

static void test_groups(void **state) {
    (void)state;
    static const int groups[] = {1, 3, 4, 8, 16};
    struct backend reference = attention_backend_open(BACKEND_REFERENCE, ISA_AUTO, 1);
    for (int g = 0; g < COUNT(groups); g++)
        for (int n_query = 1; n_query <= 4; n_query++)
            for (int i = 0; i < COUNT(sights); i++) {
                const struct sight *s = &sights[i];
                check_formats(&reference, &(struct attention_case){
                                              "", n_query, 259, 2 * groups[g], 2, i % 2 ? 24 : 64,
                                              i % 3 ? 32 : 40, s->visibility, s->positions,
                                              s->content, i % 2 ? 0 : 8, s->window});
            }
    backend_close(&reference);
}

static void test_lengths_and_dimensions(void **state) {
    (void)state;
    static const int lengths[] = {0, 1, 15, 16, 17, 255, 4097};
    static const int dims[][2] = {{8, 8},     {64, 64},   {72, 72},  {96, 96},
                                  {128, 128}, {192, 128}, {576, 512}};
    struct backend reference = attention_backend_open(BACKEND_REFERENCE, ISA_AUTO, 1);
    for (int i = 0; i < COUNT(lengths); i++)
        for (int d = 0; d < COUNT(dims); d++) {
            bool is_latent = dims[d][0] == 576;
            check_formats(&reference,
                          &(struct attention_case){"", 1, lengths[i], 6, is_latent ? 1 : 2,
                                                   dims[d][0], dims[d][1], FULL, LAST,
                                                   is_latent ? VALUE_IN_KEY : RANDOM, 0, 0});
            check_formats(&reference,
                          &(struct attention_case){"", 2, lengths[i], 3, 3, dims[d][0], dims[d][1],
                                                   CAUSAL, LAST, RANDOM, 8, 0});
        }
    backend_close(&reference);
}

// Ranges of keys that are merged, with masks across them.
static void test_ranges(void **state) {
    (void)state;
    static const struct attention_case cases[] = {
        {"", 1, 4097, 9, 3, 64, 64, CAUSAL, LAST, RANDOM, 8, 0},
        {"", 4, 2500, 4, 4, 32, 32, CAUSAL, LAST, NAN_VALUE, 0, 0},
        {"", 3, 3000, 8, 2, 48, 48, WINDOW, LAST, RANDOM, 0, 1111},
        {"", 2, 2600, 16, 1, 128, 128, SINKS, LAST, RANDOM, 0, 1300},
        {"", 1, 2100, 8, 1, 576, 512, WINDOW, LAST, VALUE_IN_KEY, 0, 1999},
    };
    struct backend reference = attention_backend_open(BACKEND_REFERENCE, ISA_AUTO, 1);
    for (int i = 0; i < COUNT(cases); i++) check_formats(&reference, &cases[i]);
    backend_close(&reference);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_lengths_and_dimensions),
        cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests_name("attention of few rows", tests, attention_device_open,
                                       attention_device_close);
}
