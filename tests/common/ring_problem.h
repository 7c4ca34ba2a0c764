// A problem of attention over ranks, the same on every rank, with the answer of the reference; and
// the rows of it that this rank holds.
#ifndef HALKA_TESTS_COMMON_RING_PROBLEM_H
#define HALKA_TESTS_COMMON_RING_PROBLEM_H

#include "dist/ring_attention.h"
#include "tests/common/mpi_test.h"

struct shape {
    int n_head, n_kv_head, head_dim, value_dim;
    enum dtype query_dtype, kv_dtype;
};
// The whole problem, the same on every rank, and the answer of the reference.
struct problem {
    struct backend *backend; // of the ranks
    struct shape shape;
    struct sequence sequence;
    int64_t begin, end;
    int64_t key_begin; // keys before it are not held but for the sinks
    struct visibility visibility;
    void *query, *key, *value; // rows are global positions [0, end)
    float *out, *lse;          // rows are positions [begin, end)
};

int64_t query_row(const struct shape *s); // elements
int64_t key_row(const struct shape *s);
int64_t value_row(const struct shape *s);

// Takes the sequence over; queries are [begin, length).
void problem_open(struct problem *p, struct backend *backend, const struct shape *s,
                  struct sequence sequence, int64_t begin, struct visibility visibility);
void problem_close(struct problem *p);
struct visible_range problem_range(const struct problem *p);

// Positions of this rank's queries, or of the keys that it holds.
int64_t *own_positions(const struct problem *p, bool keys, int64_t *n);
// This rank's rows of those of all positions, packed.
struct test_buffer own_buffer(const struct problem *p, const void *rows, enum dtype dtype,
                              int64_t n_col, bool keys);
void check_rows(const float *got, const float *expected, int64_t n, const char *what);

#endif
