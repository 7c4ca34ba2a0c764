// The sampler: random numbers, distributions, exact candidate sets, ties and infinities.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampler.h"

enum { N_DRAW = 100000 };

static struct backend backend;

static enum status pick(const struct sampler *sampler, const float *logits, int64_t n,
                        uint64_t document, uint64_t question, uint64_t step, int32_t *out) {
    struct sample_args args = sampler_draw(sampler, document, question, step);
    args.logits = logits;
    args.n = n;
    args.token = out;
    return backend.ops->sample(&backend, &args);
}

static void pick_many(const struct sampler *sampler, const float *logits, int n, int *count) {
    memset(count, 0, (size_t)n * sizeof(*count));
    for (int step = 0; step < N_DRAW; step++) {
        int32_t id = -1;
        assert_int_equal(pick(sampler, logits, n, 1, 2, (uint64_t)step, &id), OK);
        assert_in_range(id, 0, n - 1);
        count[id]++;
    }
}

// Counts within five standard deviations of n * p; the seeds are fixed, so the outcome is, too.
static void check_share(int count, double p) {
    assert_true(fabs(count - N_DRAW * p) <= 5 * sqrt(N_DRAW * p * (1 - p)));
}

static void test_uniform(void **state) {
    (void)state;
    double sum = 0;
    int tenth[10] = {0};
    for (uint64_t i = 0; i < N_DRAW; i++) {
        double u = sampler_uniform(7, i % 10, i / 10 % 10, i / 100);
        assert_true(u >= 0 && u < 1);
        sum += u;
        tenth[(int)(u * 10)]++;
    }
    assert_true(fabs(sum / N_DRAW - 0.5) < 5 * sqrt(1.0 / 12 / N_DRAW));
    for (int i = 0; i < 10; i++) check_share(tenth[i], 0.1);
    // A pure function in which each argument counts, and no two can be exchanged.
    double u = sampler_uniform(1, 2, 3, 4);
    assert_true(u == sampler_uniform(1, 2, 3, 4));
    assert_true(u != sampler_uniform(2, 1, 3, 4) && u != sampler_uniform(1, 3, 2, 4));
    assert_true(u != sampler_uniform(1, 2, 4, 3) && u != sampler_uniform(1, 2, 3, 5));
}

static void test_greedy(void **state) {
    (void)state;
    const struct sampler greedy = {.top_p = 1};
    int32_t id;
    const float ties[] = {1, 3, -INFINITY, 3, 2};
    assert_int_equal(pick(&greedy, ties, 5, 0, 0, 0, &id), OK);
    assert_int_equal(id, 1);
    const float holes[] = {NAN, -5, INFINITY, -4, -INFINITY};
    assert_int_equal(pick(&greedy, holes, 5, 0, 0, 0, &id), OK);
    assert_int_equal(id, 3);
    const float none[] = {NAN, -INFINITY, INFINITY};
    assert_int_equal(pick(&greedy, none, 3, 0, 0, 0, &id), OK);
    assert_int_equal(id, -1);
}

static void test_temperature(void **state) {
    (void)state;
    const float logits[] = {0, 1, NAN, 2, -INFINITY, -1};
    int count[6];
    for (double temperature = 0.5; temperature <= 2; temperature *= 2) {
        struct sampler sampler = {.temperature = temperature, .top_p = 1, .seed = 11};
        double total = 0;
        for (int i = 0; i < 6; i++) total += isfinite(logits[i]) ? exp(logits[i] / temperature) : 0;
        pick_many(&sampler, logits, 6, count);
        for (int i = 0; i < 6; i++)
            check_share(count[i], isfinite(logits[i]) ? exp(logits[i] / temperature) / total : 0);
    }
    // So cold that all other weights underflow.
    struct sampler cold = {.temperature = 1e-6, .top_p = 1};
    pick_many(&cold, logits, 6, count);
    assert_int_equal(count[3], N_DRAW);
}

// Logits of the probabilities 0.4, 0.3, 0.2, 0.1 in another order, halves and quarters exact.
static void test_top_p(void **state) {
    (void)state;
    const float logits[] = {logf(0.1f), logf(0.4f), logf(0.2f), logf(0.3f)};
    static const struct {
        double top_p;
        double share[4];
    } cases[] = {
        {0, {0, 1, 0, 0}},
        {0.39, {0, 1, 0, 0}},
        {0.41, {0, 4 / 7.0, 0, 3 / 7.0}},
        {0.69, {0, 4 / 7.0, 0, 3 / 7.0}},
        {0.71, {0, 4 / 9.0, 2 / 9.0, 3 / 9.0}},
        {0.95, {0.1, 0.4, 0.2, 0.3}},
        {1, {0.1, 0.4, 0.2, 0.3}},
    };
    int count[4];
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct sampler sampler = {.temperature = 1, .top_p = cases[i].top_p, .seed = i};
        pick_many(&sampler, logits, 4, count);
        for (int k = 0; k < 4; k++) check_share(count[k], cases[i].share[k]);
    }
    // Of equal tokens the lowest ids are kept: exactly half of four equal ones is two.
    const float equal[] = {2, 2, 2, 2};
    struct sampler half = {.temperature = 1, .top_p = 0.5, .seed = 3};
    pick_many(&half, equal, 4, count);
    assert_int_equal(count[0] + count[1], N_DRAW);
    check_share(count[0], 0.5);
}

static void test_min_p(void **state) {
    (void)state;
    const float logits[] = {logf(0.1f), logf(0.4f), logf(0.2f), logf(0.3f)};
    int count[4];
    struct sampler sampler = {.temperature = 1, .top_p = 1, .min_p = 0.6, .seed = 5};
    pick_many(&sampler, logits, 4, count); // 0.3 / 0.4 stays, 0.2 / 0.4 goes
    assert_int_equal(count[0] + count[2], 0);
    check_share(count[1], 4 / 7.0);
    sampler.top_p = 0.5; // of what min-p leaves: 4/7 reaches a half
    pick_many(&sampler, logits, 4, count);
    assert_int_equal(count[1], N_DRAW);
    sampler.min_p = 1.5; // nothing reaches it: the likeliest is left
    pick_many(&sampler, logits, 4, count);
    assert_int_equal(count[1], N_DRAW);
}

static void test_seeds(void **state) {
    (void)state;
    float logits[64] = {0};
    int same_seed = 0, same_document = 0;
    for (uint64_t step = 0; step < 1000; step++) {
        struct sampler sampler = {.temperature = 1, .top_p = 1, .seed = 1};
        int32_t first, again, other;
        assert_int_equal(pick(&sampler, logits, 64, 0, 0, step, &first), OK);
        assert_int_equal(pick(&sampler, logits, 64, 0, 0, step, &again), OK);
        assert_int_equal(first, again);
        assert_int_equal(pick(&sampler, logits, 64, 1, 0, step, &other), OK);
        same_document += first == other;
        sampler.seed = 2;
        assert_int_equal(pick(&sampler, logits, 64, 0, 0, step, &other), OK);
        same_seed += first == other;
    }
    assert_true(same_seed < 50 && same_document < 50); // 1000 / 64 = 16 by chance
}

int main(void) {
    const struct backend_options options = {.kind = BACKEND_REFERENCE, .n_thread = 1};
    if (backend_open(&options, &backend) != OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uniform),     cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_temperature), cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_min_p),       cmocka_unit_test(test_seeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
