// Who owns which positions: pure integer functions, no MPI, no globals.
// A sequence is a list of extents in global order. An extent is cut over the ranks by a layout:
//   zigzag      2N pieces whose lengths differ by at most one; rank r owns pieces r and 2N-1-r
//   contiguous  N pieces; rank r owns piece r
//   round robin global position p belongs to rank p mod N   (decode appends)
// Every rank's positions, taken in order of extents and pieces, are ascending.
#ifndef HALKA_PARTITION_PARTITION_H
#define HALKA_PARTITION_PARTITION_H

#include <stdbool.h>
#include <stdint.h>

struct span {
    int64_t start, length; // [start, start + length)
};

enum layout { LAYOUT_ZIGZAG, LAYOUT_CONTIGUOUS, LAYOUT_ROUND_ROBIN };

static inline int64_t ceil_div(int64_t a, int64_t b) { // b > 0, any sign of a
    return a / b + (a % b > 0);
}

// Piece `index` of `length` cut into n_piece pieces; the first (length mod n_piece) are one longer.
struct span partition_piece(int64_t length, int n_piece, int index);

struct extent {
    enum layout layout;
    int64_t start, length; // as it was cut: ownership never changes after truncation
    int64_t kept;          // positions still held: [start, start + kept)
};

struct sequence {
    int size; // ranks
    int n_extent, capacity;
    struct extent *extents; // owned
    // [capacity, size] owned: positions that each rank owns before the extent, so that counting
    // takes no longer where there are many; NULL: extents that were put together by hand.
    int64_t *owned_before;
    int64_t length; // positions in all
};

// What a rank owns, as ascending arithmetic progressions that do not overlap: start, start +
// stride,
// ... The first belongs to row first_row of the rank's positions.
struct position_run {
    int64_t start, stride, count, first_row;
};

// Zeroes and sets the rank count. close accepts a zeroed struct.
void sequence_open(struct sequence *sequence, int size);
void sequence_close(struct sequence *sequence);
// Appends `length` positions; consecutive round-robin appends grow one extent.
// false when memory is short (the only failure).
bool sequence_append(struct sequence *sequence, enum layout layout, int64_t length);
// Forgets positions from `length` on.
void sequence_truncate(struct sequence *sequence, int64_t length);

// Positions that `rank` owns in [begin, end): count, and the list, ascending, into out[count].
int64_t sequence_count(const struct sequence *sequence, int rank, int64_t begin, int64_t end);
void sequence_positions(const struct sequence *sequence, int rank, int64_t begin, int64_t end,
                        int64_t *out);
// Rank that owns a position of the sequence, and (unless NULL) how many it owns before it.
int sequence_owner(const struct sequence *sequence, int64_t position, int64_t *offset);

// The runs of `rank` in [begin, end), none empty, into out[sequence_max_runs]; returns how many.
int sequence_runs(const struct sequence *sequence, int rank, int64_t begin, int64_t end,
                  struct position_run *out);
int sequence_max_runs(const struct sequence *sequence);

#endif
