// Tokens for sparse attention over ranks, the same on every rank, with what one process selects of
// them and makes of that: sets that must be the same bit for bit, results within rounding.
#ifndef HALKA_TESTS_COMMON_SPARSE_DATA_H
#define HALKA_TESTS_COMMON_SPARSE_DATA_H

#include "dist/sparse_attention.h"
#include "tests/common/mpi_test.h"

enum { SPARSE_TOKENS = 331 };

struct sparse_shape {
    const char *name;
    int n_head, n_kv_head, head_dim, value_dim; // elements are F32
    bool value_in_key;
    struct index_shape index;
    enum dtype index_dtype;
    bool exact; // small integers: every score is exact and most are equal
};

// Rows are positions.
struct sparse_data {
    const struct sparse_shape *shape;
    float *query, *key, *value; // value NULL where keys hold it
    void *index_query, *index_key;
    float *index_weight, *index_scale;
    uint64_t *candidate; // [SPARSE_TOKENS, k] what one process selects
    int32_t *n_candidate;
    float *out, *lse;
};

int64_t sparse_key_row(const struct sparse_shape *s); // elements

// `reference` and `selecting` compute in host memory. Exact scores have one answer, the
// reference's; of rounded ones `selecting` gives its own.
struct sparse_data sparse_data_open(const struct sparse_shape *s, struct backend *reference,
                                    struct backend *selecting);
void sparse_data_close(struct sparse_data *d);

// A selection, or the out or lse of n elements, of the query at a position.
void check_selection(const struct sparse_data *d, int64_t position, const uint64_t *candidate,
                     int32_t n);
void check_result(const struct sparse_data *d, const float *got, const float *expected, int64_t n,
                  int64_t position);

#endif
