// Inner loops of attention for one instruction set: a tile of keys against rows of queries, packed
// for many rows, where they lie for few.
// A row is one (query, head) pair; the heads of a group share their keys and lie side by side.
// A product unit is what one lane multiplies: a float, or two neighbouring bf16 (32 bits as well).
// Scores are in base 2: score * scale * log2(e).
#ifndef HALKA_KERNELS_CPU_ATTENTION_TILE_H
#define HALKA_KERNELS_CPU_ATTENTION_TILE_H

#include "kernels/dtype.h"

enum {
    ATTENTION_KEY_TILE = 128,     // keys whose scores exist at one time
    ATTENTION_IN_PLACE_TILE = 32, // the same where they are not packed
    ATTENTION_ROW_BLOCK = 6,      // rows whose sums fit the registers
    ATTENTION_MAX_DIM = 576,      // of keys and of values
};

// Rows of one kv head: row i begins at data + i * stride elements, or at index[i] * stride where
// rows were selected.
struct kv_rows {
    const void *data;
    enum dtype dtype; // F32 or BF16
    bool round;       // the products are of values rounded to bf16, and dtype is F32
    int64_t stride;
    const int32_t *index; // [n_row] or NULL
    int n_row, n_col;
    int64_t n_ahead; // rows that will be read after these n_row
};

static inline int64_t kv_row_at(const struct kv_rows *rows, int row) {
    return (rows->index ? rows->index[row] : row) * rows->stride;
}

struct tile_work {
    int n_row;              // rows of queries
    int n_key;              // keys of the tile, at most ATTENTION_KEY_TILE
    int unit_dim;           // head_dim in product units
    int query_units;        // from one row of queries to the next; in place: whole vectors, zeros
                            // behind unit_dim
    int value_width;        // value_dim rounded up to whole vectors
    float score_scale;      // scale * log2(e)
    const int *begin, *end; // [n_row] ascending: row r sees the tile's keys [begin[r], end[r])
    const void *query;      // [n_row, query_units] units
    struct kv_rows keys, values; // of attend_in_place
    void *key;                   // packed by pack_keys: ATTENTION_KEY_TILE * padded unit_dim units
    void *value;  // packed by pack_values: ATTENTION_KEY_TILE / unit * value_width units
    float *sum;   // [n_row, value_width] sum of 2^(score - max) * value so far
    float *max;   // [n_row] largest score so far, base 2
    float *total; // [n_row, vec_width] lane sums of 2^(score - max)
    float *mass;  // [ATTENTION_KEY_TILE] column_mass: sum over rows of 2^(score - max)
};

struct attention_tile {
    const char *name;
    const struct attention_tile *fp32; // the tile for F32 queries: itself unless unit is 2
    int unit;                          // elements in a product unit: 1 (float) or 2 (bf16)
    int vec_width;                     // floats in a vector; packed rows are padded to it
    void (*pack_keys)(const struct kv_rows *rows, void *key);
    void (*pack_values)(const struct kv_rows *rows, int value_width, void *value);
    void (*attend)(const struct tile_work *work);
    void (*column_mass)(const struct tile_work *work); // max holds each row's lse, base 2
    // The same without packing, and the rows of a kv head up to which that is the faster.
    void (*attend_in_place)(const struct tile_work *work);
    void (*column_mass_in_place)(const struct tile_work *work);
    int most_in_place;
};

extern const struct attention_tile attention_tile_plain, attention_tile_avx2, attention_tile_avx512,
    attention_tile_avx512bf16;

#endif
