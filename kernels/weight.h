// Matrices of a checkpoint, in the format that they are stored in, and views of their parts.
#ifndef HALKA_KERNELS_WEIGHT_H
#define HALKA_KERNELS_WEIGHT_H

#include <stdint.h>

#include "kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

// A matrix [n_row, n_col] in any format, or a view of some rows or columns of one. y = x W^T.
struct weight {
    const void *data;
    enum dtype dtype;
    int64_t n_row, n_col;
    int64_t row_bytes; // from one row to the next
    // F8_E4M3 only, else NULL: a factor for each 128 x 128 block of the whole matrix, of which this
    // may be a view that begins at (first_row, first_col), as one of any format may: element
    // (r, c) times
    // scale[(first_row + r) / 128 * scale_stride + (first_col + c) / 128].
    const float *scale;
    int64_t scale_stride, first_row, first_col;
};
enum { WEIGHT_SCALE_BLOCK = 128 };

// Views; begin and n must be multiples of the format's block for columns.
struct weight weight_rows(struct weight w, int64_t begin, int64_t n);
struct weight weight_columns(struct weight w, int64_t begin, int64_t n);

// Expands a row of n_col elements, block scales applied. Host memory, plain C.
void weight_row_to_float(const struct weight *w, int64_t row, float *out);

#ifdef __cplusplus
}
#endif
#endif
