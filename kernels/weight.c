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

void weight_row_to_float(const struct weight *w, int64_t row, float *out) {
    dtype_to_float(w->dtype, (const uint8_t *)w->data + row * w->row_bytes, w->n_col, out);
    if (!w->scale) return;
    const float *scale = w->scale + (w->first_row + row) / WEIGHT_SCALE_BLOCK * w->scale_stride;
    for (int64_t i = 0; i < w->n_col; i++) out[i] *= scale[(w->first_col + i) / WEIGHT_SCALE_BLOCK];
}
