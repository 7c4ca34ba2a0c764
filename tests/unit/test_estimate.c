// The chunk by which a job that keeps what it reads comes to a place to stop: by the arithmetic of
// networks whose sizes are known.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/estimate.h"

enum { N_LAYER = 32 };
static struct layer_spec layers[N_LAYER];
static const double gpu = 300e12, thread = 60e9; // FLOP/s

// Of the shape of Llama 3.1 8B.
static struct model_spec network(void) {
    memset(layers, 0, sizeof layers);
    for (int i = 0; i < N_LAYER; i++) {
        layers[i].feed_forward = FEED_FORWARD_GATED;
        layers[i].n_head = 32;
        layers[i].n_kv_head = 8;
        layers[i].head_dim = 128;
        layers[i].n_feed_forward = 14336;
    }
    return (struct model_spec){
        .n_layer = N_LAYER, .n_hidden = 4096, .n_vocab = 128256, .causal = true, .layers = layers};
}

static double seconds(const struct estimate_case *of, int64_t n, int64_t chunk, double rate) {
    struct cost all = estimate_cost(of, n), before = estimate_cost(of, n - chunk);
    return (all.product_flop - before.product_flop + all.attention_flop - before.attention_flop) /
           rate;
}

static void test_cost(void **state) {
    (void)state;
    struct model_spec spec = network();
    struct estimate_case one = {.spec = &spec, .size = 1}, scored = one, two = one;
    scored.scored = true;
    two.size = 2;
    struct cost cost = estimate_cost(&one, 1000);
    // 6.98e9 weights in layers, two operations each; 1000 * 1001 / 2 pairs.
    assert_true(cost.product_flop > 13.9e12 && cost.product_flop < 14.0e12);
    assert_true(cost.attention_flop == 4.0 * 500500 * 32 * 128 * N_LAYER);
    assert_true(estimate_cost(&scored, 1000).product_flop - cost.product_flop ==
                2.0 * 1000 * 128256 * 4096);
    assert_true(estimate_cost(&two, 1000).product_flop == cost.product_flop / 2);
    for (int i = 0; i < N_LAYER; i++)
        layers[i].index =
            (struct index_spec){.layout = INDEX_FULL, .n_head = 4, .head_dim = 64, .k = 100};
    double pairs = 100 * 101 / 2 + 900 * 100;
    assert_true(estimate_cost(&one, 1000).attention_flop ==
                (2.0 * 500500 * 4 * 64 + 4 * pairs * 32 * 128) * N_LAYER);
    one.dense = true;
    assert_true(estimate_cost(&one, 1000).attention_flop == cost.attention_flop);
}

static void test_chunk(void **state) {
    (void)state;
    struct model_spec spec = network();
    struct estimate_case of = {.spec = &spec, .size = 8};
    int64_t chunk = estimate_chunk(&of, 1 << 20, gpu, 8192);
    assert_int_equal(chunk & (chunk - 1), 0);
    assert_true(seconds(&of, 1 << 20, chunk, gpu) <= STOP_SECONDS);
    assert_true(seconds(&of, 1 << 20, 2 * chunk, gpu) > STOP_SECONDS);
    assert_int_equal(estimate_chunk(&of, 20000, gpu, 8192), 0);
    assert_int_equal(estimate_chunk(&of, 1, gpu, 8192), 0);
    of.size = 1;
    assert_true(estimate_chunk(&of, 1 << 20, gpu, 8192) < chunk);
    assert_int_equal(estimate_chunk(&of, 1 << 20, thread, 512), 512); // takes longer
    assert_int_equal(estimate_chunk(&of, 100, thread, 512), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost),
        cmocka_unit_test(test_chunk),
    };
    return cmocka_run_group_tests_name("estimate", tests, NULL, NULL);
}
