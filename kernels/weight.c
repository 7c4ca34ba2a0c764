#include "kernels/kernels.h"

struct weight weight_rows(struct weight w, int64_t begin, int64_t n) {
    w.data = (const uint8_t *)w.data + begin * w.row_bytes;
    w.first_row += begin;
    w.n_row = n;
    return w;
}

struct weight weight_columns(struct weight w, int64_t begin, int64_t n) {
    w.data = (const uint8_t *)w.data + dtype_bytes(w.dtype, begin);
    w.first_col += begin;
    w.n_col = n;
    return w;
}
