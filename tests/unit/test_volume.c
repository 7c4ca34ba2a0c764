// Bytes of each exchange against counting every transfer of a simulated run.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "partition/volume.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(volumes_match_counting),
        cmocka_unit_test(decode_returns_each_head_once),
        cmocka_unit_test(few_queries_travel_many_do_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
