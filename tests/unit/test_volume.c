// Bytes of each exchange against counting every transfer of a simulated run.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "partition/layout_choice.h"

static const struct attention_shape shape = {
    .n_head = 9, .n_kv_head = 3, .head_dim = 64, .value_dim = 48, .query_bytes = 4, .kv_bytes = 2};
static const enum layout layouts[] = {LAYOUT_ZIGZAG, LAYOUT_CONTIGUOUS, LAYOUT_ROUND_ROBIN};

// Plays the ring shift by shift: who holds whose block, and what arrives.
static int64_t play_pass_kv(const struct sequence *s, int rank, int64_t end) {
    int64_t bytes = 0;
    for (int step = 1; step < s->size; step++) {
        int holder = (rank - step + s->size) % s->size;
        for (int64_t p = 0; p < end; p++) {
            int64_t offset;
            if (sequence_owner(s, p, &offset) == holder) bytes += 3 * (64 + 48) * 2;
        }
    }
    return bytes;
}

static int64_t play_pass_q(const struct sequence *s, int rank, int64_t begin, int64_t end) {
    int64_t bytes = 0;
    for (int other = 0; other < s->size; other++) {
        if (other == rank) continue;
        for (int64_t p = begin; p < end; p++) {
            int64_t offset;
            int owner = sequence_owner(s, p, &offset);
            if (owner == other) bytes += 9 * 64 * 4;        // its query comes here
            if (owner == rank) bytes += 9 * 48 * 4 + 9 * 4; // my partial comes back
        }
    }
    return bytes;
}

static void volumes_match_counting(void **state) {
    (void)state;
    static const int64_t lengths[] = {0, 1, 2, 7, 16, 17, 61, 97, 211};
    for (int size = 1; size <= 9; size++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
                struct sequence s;
                sequence_open(&s, size);
                assert_true(sequence_append(&s, layouts[l], lengths[i]));
                assert_true(sequence_append(&s, LAYOUT_ROUND_ROBIN, 5));
                int64_t end = s.length, begin = end / 3;
                struct visible_range range = {.sequence = &s,
                                              .visibility = VISIBILITY_CAUSAL,
                                              .query_begin = begin,
                                              .query_end = end};
                for (int rank = 0; rank < size; rank++) {
                    assert_int_equal(volume_pass_kv(&range, &shape, rank),
                                     play_pass_kv(&s, rank, end));
                    assert_int_equal(volume_pass_q(&range, &shape, rank),
                                     play_pass_q(&s, rank, begin, end));
                }
                sequence_close(&s);
            }
}

static void decode_returns_each_head_once(void **state) {
    (void)state;
    for (int size = 1; size <= 12; size++) { // more ranks than heads, too
        int64_t total = 0;
        for (int rank = 0; rank < size; rank++) total += volume_decode(&shape, size, rank, 5);
        assert_int_equal(total, (int64_t)5 * (size - 1) * 9 * (48 + 1) * 4);
    }
}

static enum pass choose(const struct sequence *s, int64_t begin, int64_t end) {
    const struct visible_range range = {
        .sequence = s, .visibility = VISIBILITY_CAUSAL, .query_begin = begin, .query_end = end};
    return volume_choose_pass(&range, &shape, end);
}

static void few_queries_travel_many_do_not(void **state) {
    (void)state;
    struct sequence s;
    sequence_open(&s, 4);
    assert_true(sequence_append(&s, LAYOUT_ZIGZAG, 10000));
    assert_int_equal(choose(&s, 9990, 10000), PASS_Q);
    assert_int_equal(choose(&s, 0, 10000), PASS_KV);
    // Per token of the sequence 672 bytes of K and V; per query 2304 + 1764: the border is 1651.97.
    assert_int_equal(choose(&s, 10000 - 1651, 10000), PASS_Q);
    assert_int_equal(choose(&s, 10000 - 1652, 10000), PASS_KV);
    sequence_close(&s);
    sequence_open(&s, 1); // nothing travels: a tie
    assert_true(sequence_append(&s, LAYOUT_ZIGZAG, 100));
    assert_int_equal(choose(&s, 99, 100), PASS_KV);
    sequence_close(&s);
}

// Plays pass-halo: every key of another rank that some own query sees arrives once.
static void halos_match_counting(void **state) {
    (void)state;
    static const struct visibility cases[] = {
        {.back = 5}, {.back = 40}, {.back = 4, .ahead = 4}, {.back = 12, .sinks = 7}};
    for (int size = 1; size <= 9; size++)
        for (int c = 0; c < 4; c++)
            for (int l = 0; l < 2; l++) {
                struct sequence s;
                sequence_open(&s, size);
                assert_true(sequence_append(&s, layouts[l], 61));
                assert_true(sequence_append(&s, layouts[l], 97));
                const struct visibility *v = &cases[c];
                const struct visible_range range = {
                    .sequence = &s, .visibility = *v, .query_begin = 61, .query_end = 158};
                int64_t most = volume_halo_rows(v, layouts[l], 158);
                for (int rank = 0; rank < size; rank++) {
                    int64_t n = 0;
                    for (int64_t k = 0; k < 158; k++) {
                        bool needed = false;
                        for (int64_t q = 61; q < 158 && sequence_owner(&s, k, NULL) != rank; q++)
                            needed |= sequence_owner(&s, q, NULL) == rank && k <= q + v->ahead &&
                                      (k >= q - v->back || k < v->sinks);
                        n += needed;
                    }
                    assert_int_equal(volume_pass_halo(&range, &shape, rank), n * 3 * 112 * 2);
                    struct span spans[8];
                    int n_span = visible_spans(&range, rank, spans);
                    for (int other = 0; other < size; other++)
                        for (int i = 0; i < n_span && other != rank; i++)
                            assert_true(visible_in_spans(&range, other, &spans[i], 1) <= most);
                }
                sequence_close(&s);
            }
}

static void windows_take_halos_and_full_attention_the_ring(void **state) {
    (void)state;
    struct sequence s;
    sequence_open(&s, 8);
    assert_true(sequence_append(&s, LAYOUT_CONTIGUOUS, 1 << 20));
    struct visible_range range = {
        .sequence = &s, .visibility = {.back = 4095}, .query_end = s.length};
    assert_int_equal(volume_choose_pass(&range, &shape, 512), PASS_HALO);
    assert_int_equal(volume_halo_rows(&range.visibility, LAYOUT_CONTIGUOUS, 1 << 17), 2 * 4095);
    range.visibility = VISIBILITY_CAUSAL;
    assert_int_equal(volume_choose_pass(&range, &shape, 512), PASS_KV);
    range.visibility = VISIBILITY_FULL;
    assert_int_equal(volume_choose_pass(&range, &shape, 512), PASS_KV);
    assert_int_equal(volume_halo_rows(&range.visibility, LAYOUT_CONTIGUOUS, 1 << 17), 1 << 17);
    range.visibility.back = range.visibility.ahead = 1 << 21; // everything is seen: no gain
    assert_int_equal(volume_choose_pass(&range, &shape, 512), PASS_KV);
    sequence_close(&s);
}

static enum layout choose_layout(const struct layer_kind *kinds, int n_kind, int64_t n_token) {
    const struct layout_case c = {.kinds = kinds,
                                  .n_kind = n_kind,
                                  .size = 4,
                                  .n_token = n_token,
                                  .chunk = 1 << 17,
                                  .rates = rates_of_gpu};
    return layout_choose(&c).layout;
}

static void layouts_follow_the_layers(void **state) {
    (void)state;
    const struct layer_kind kinds[] = {{{.back = 1023}, shape, 5},
                                       {VISIBILITY_CAUSAL, shape, 1},
                                       {VISIBILITY_FULL, shape, 1},
                                       {{.back = 64, .ahead = 64}, shape, 2}};
    const struct layer_kind narrow[] = {{{.back = 127}, shape, 24}, {VISIBILITY_CAUSAL, shape, 1}};
    assert_int_equal(choose_layout(kinds, 1, 1 << 20), LAYOUT_CONTIGUOUS);     // all windows
    assert_int_equal(choose_layout(kinds + 1, 1, 1 << 17), LAYOUT_ZIGZAG);     // full causal
    assert_int_equal(choose_layout(kinds + 2, 2, 1 << 16), LAYOUT_CONTIGUOUS); // an encoder
    assert_int_equal(choose_layout(kinds, 2, 1 << 17), LAYOUT_ZIGZAG); // long: the full layer rules
    assert_int_equal(choose_layout(narrow, 2, 2048), LAYOUT_CONTIGUOUS); // short: halos do
    assert_int_equal(choose_layout(kinds + 1, 1, 1), LAYOUT_ZIGZAG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(volumes_match_counting),
        cmocka_unit_test(decode_returns_each_head_once),
        cmocka_unit_test(few_queries_travel_many_do_not),
        cmocka_unit_test(halos_match_counting),
        cmocka_unit_test(windows_take_halos_and_full_attention_the_ring),
        cmocka_unit_test(layouts_follow_the_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
