// Ownership of positions, for every length 0..600 on 1..9 ranks in every layout.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/visibility.h"

enum { MAX_LENGTH = 600, MAX_SIZE = 9, MAX_POSITION = 4096 };
static const enum layout layouts[] = {LAYOUT_ZIGZAG, LAYOUT_CONTIGUOUS, LAYOUT_ROUND_ROBIN};

// Walks every rank's list once; owner[p] is who lists p. Fails on overlap, holes, wrong order.
static void check_sequence(const struct sequence *sequence) {
    static int owner[MAX_POSITION];
    static int64_t list[MAX_POSITION];
    assert_true(sequence->length <= MAX_POSITION);
    memset(owner, -1, sizeof owner);
    int64_t total = 0;
    for (int rank = 0; rank < sequence->size; rank++) {
        int64_t count = sequence_count(sequence, rank, 0, sequence->length);
        for (int64_t i = 0; i < count; i++) list[i] = -1;
        sequence_positions(sequence, rank, 0, sequence->length, list);
        for (int64_t i = 0; i < count; i++) {
            assert_in_range(list[i], 0, sequence->length - 1);
            if (i) assert_true(list[i] > list[i - 1]);
            assert_int_equal(owner[list[i]], -1);
            owner[list[i]] = rank;
            int64_t offset = -1;
            assert_int_equal(sequence_owner(sequence, list[i], &offset), rank);
            assert_int_equal(offset, i);
        }
        total += count;
    }
    assert_int_equal(total, sequence->length);
}

static void pieces_cover_and_balance(void **state) {
    (void)state;
    for (int64_t length = 0; length <= MAX_LENGTH; length++)
        for (int n = 1; n <= 2 * MAX_SIZE; n++) {
            int64_t next = 0;
            for (int i = 0; i < n; i++) {
                struct span piece = partition_piece(length, n, i);
                assert_int_equal(piece.start, next);
                assert_in_range(piece.length, length / n, (length + n - 1) / n);
                next += piece.length;
            }
            assert_int_equal(next, length);
        }
}

static void every_length_rank_count_and_layout(void **state) {
    (void)state;
    for (int size = 1; size <= MAX_SIZE; size++)
        for (int64_t length = 0; length <= MAX_LENGTH; length++)
            for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
                struct sequence s;
                sequence_open(&s, size);
                assert_true(sequence_append(&s, layouts[l], length));
                assert_int_equal(s.length, length);
                check_sequence(&s);
                int pieces = layouts[l] == LAYOUT_ZIGZAG ? 2 : 1; // of a rank
                for (int rank = 0; rank < size; rank++) {
                    int64_t count = sequence_count(&s, rank, 0, length);
                    int64_t fair = length / (pieces * size) * pieces;
                    assert_in_range(count, fair, fair + pieces);
                }
                sequence_close(&s);
            }
}

static void zigzag_owns_mirrored_pieces(void **state) {
    (void)state;
    struct sequence s;
    sequence_open(&s, 3);
    assert_true(sequence_append(&s, LAYOUT_ZIGZAG, 14)); // pieces 3 3 2 2 2 2
    static const int expected[14] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 1, 1, 0, 0};
    for (int p = 0; p < 14; p++) {
        int64_t offset;
        assert_int_equal(sequence_owner(&s, p, &offset), expected[p]);
    }
    sequence_close(&s);
}

// Chunks, decode appends, truncations: the mixture that a session goes through.
static void build_mixture(struct sequence *s, int size, unsigned seed) {
    sequence_open(s, size);
    for (int step = 0; step < 8; step++) {
        seed = seed * 1103515245u + 12345u;
        enum layout layout = layouts[(seed >> 16) % 3];
        assert_true(sequence_append(s, layout, (seed >> 20) % 40));
        if ((seed >> 8) % 3 == 0) sequence_truncate(s, s->length - (seed >> 12) % 23);
    }
}

static void mixtures_stay_consistent(void **state) {
    (void)state;
    for (int size = 1; size <= MAX_SIZE; size++)
        for (unsigned seed = 0; seed < 100; seed++) {
            struct sequence s;
            build_mixture(&s, size, seed);
            check_sequence(&s);
            sequence_close(&s);
        }
}

static void truncation_keeps_ownership(void **state) {
    (void)state;
    for (int size = 1; size <= MAX_SIZE; size++)
        for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++)
            for (int64_t kept = 0; kept <= 61; kept++) {
                struct sequence s, whole;
                sequence_open(&s, size);
                sequence_open(&whole, size);
                assert_true(sequence_append(&whole, layouts[l], 61));
                assert_true(sequence_append(&s, layouts[l], 61));
                sequence_truncate(&s, kept);
                assert_int_equal(s.length, kept);
                assert_true(sequence_append(&s, LAYOUT_CONTIGUOUS, 7));
                check_sequence(&s);
                for (int64_t p = 0; p < kept; p++) {
                    int64_t a, b;
                    assert_int_equal(sequence_owner(&s, p, &a), sequence_owner(&whole, p, &b));
                    assert_int_equal(a, b);
                }
                sequence_close(&s);
                sequence_close(&whole);
            }
}

static void round_robin_appends_grow_one_extent(void **state) {
    (void)state;
    struct sequence s;
    sequence_open(&s, 4);
    assert_true(sequence_append(&s, LAYOUT_ZIGZAG, 13));
    for (int i = 0; i < 100; i++) assert_true(sequence_append(&s, LAYOUT_ROUND_ROBIN, 1));
    sequence_truncate(&s, 50);
    assert_true(sequence_append(&s, LAYOUT_ROUND_ROBIN, 5));
    assert_int_equal(s.n_extent, 2);
    assert_int_equal(s.length, 55);
    for (int64_t p = 13; p < 55; p++) {
        int64_t offset;
        assert_int_equal(sequence_owner(&s, p, &offset), p % 4);
    }
    check_sequence(&s);
    sequence_truncate(&s, -1);
    assert_int_equal(s.length, 0);
    assert_int_equal(s.n_extent, 0);
    sequence_close(&s);
    sequence_close(&s);
}

static void ranges_match_brute_force(void **state) {
    (void)state;
    for (int size = 1; size <= 5; size++)
        for (unsigned seed = 0; seed < 12; seed++) {
            struct sequence s;
            build_mixture(&s, size, seed * 7919u + 13u);
            int64_t ranges[][2] = {{0, s.length},
                                   {s.length / 3, s.length},
                                   {s.length / 4, s.length - s.length / 3},
                                   {s.length, s.length}};
            for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
                int64_t begin = ranges[r][0], end = ranges[r][1];
                for (int rank = 0; rank < size; rank++) {
                    int64_t n = 0;
                    for (int64_t p = begin; p < end; p++) n += sequence_owner(&s, p, NULL) == rank;
                    assert_int_equal(sequence_count(&s, rank, begin, end), n);
                }
            }
            sequence_close(&s);
        }
}

static void zigzag_balances_causal_work(void **state) {
    (void)state;
    for (int size = 1; size <= MAX_SIZE; size++) {
        struct sequence s;
        sequence_open(&s, size);
        assert_true(sequence_append(&s, LAYOUT_ZIGZAG, 1 << 20));
        const struct visible_range all = {
            .sequence = &s, .visibility = VISIBILITY_CAUSAL, .query_end = 1 << 20};
        int64_t fair = ((int64_t)1 << 20) * ((1 << 20) + 1) / 2 / size;
        for (int query = 0; query < size; query++) {
            int64_t work = 0;
            for (int key = 0; key < size; key++) work += visible_pairs(&all, query, key);
            assert_in_range(work, fair - fair / 10000, fair + fair / 10000);
        }
        sequence_close(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_cover_and_balance),
        cmocka_unit_test(every_length_rank_count_and_layout),
        cmocka_unit_test(zigzag_owns_mirrored_pieces),
        cmocka_unit_test(mixtures_stay_consistent),
        cmocka_unit_test(truncation_keeps_ownership),
        cmocka_unit_test(round_robin_appends_grow_one_extent),
        cmocka_unit_test(ranges_match_brute_force),
        cmocka_unit_test(zigzag_balances_causal_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
