// States of tokens on their way to vectors. Each rank adds the states of its own tokens; the rows
// are put together on rank 0, some at a time. Sums are in fp64, so that the number of ranks shows
// in no more than the last bit of a float. A rank keeps one sum for each row that its tokens touch,
// or, where every token is a row, its own states.
#ifndef HALKA_LAUNCHER_POOL_H
#define HALKA_LAUNCHER_POOL_H

#include "dist/comm.h"
#include "model/sentence_modules.h"
#include "partition/partition.h"

enum { POOL_TILE_BYTES = 1 << 20 };

struct pool_row { // a row's tokens, [begin, end)
    int64_t begin, end, row;
};

struct pool {
    enum pooling pooling; // not AUTO
    int64_t n_hidden, n_row;
    // mean, cls, last:
    struct pool_row *rows; // [n_row] ascending by begin
    int64_t *reach;        // [n_row] the largest end of rows[0 .. i]
    int64_t *length;       // [n_row] tokens of a row, in order of rows
    int64_t *slot;         // [n_row] where its sum is; -1: no token of this rank is in it
    double *sum;           // [n_slot, n_hidden]
    // none: the states of this rank's tokens, ascending
    int64_t *token;     // [n_slot]
    float *state;       // [n_slot, n_hidden]
    int64_t n_streamed; // that went to rank 0 already
    int64_t n_slot, capacity;
};

// spans: [n_row] tokens of each row, none empty; NULL with POOLING_NONE, whose rows are tokens.
// Copied. Close it even after a failure.
enum status pool_open(enum pooling pooling, int64_t n_hidden, const struct span *spans,
                      int64_t n_row, struct pool *out);
void pool_close(struct pool *pool); // accepts a zeroed struct

// state [n, n_hidden] of the tokens position[i] + shift, ascending. Each token is added once.
enum status pool_add(struct pool *pool, const int64_t *position, int64_t n, int64_t shift,
                     const float *state);
// Rows [begin, begin + n) into out [n, n_hidden] on rank 0; every rank calls it, with `begin`
// ascending where every token is a row. comm: in host memory.
enum status pool_rows(struct pool *pool, struct comm *comm, int64_t begin, int64_t n, float *out);

#endif
