// The inner loops of the indexer, once for every vector width and kind of product: included after
// an attention_vec_*.h, an attention_product_*.h, and INDEX_VECS and HEAD_BLOCK, the vectors of
// keys and the heads whose sums fill the registers.
#ifndef HALKA_KERNELS_CPU_INDEX_BODY_H
#define HALKA_KERNELS_CPU_INDEX_BODY_H

#include "kernels/cpu/index_tile.h"

enum { CACHE_LINE = 64, PANEL = INDEX_VECS * VEC_WIDTH }; // keys side by side in a packed panel
_Static_assert(INDEX_KEY_TILE % PANEL == 0, "a tile is whole panels");

static int padded_units(const struct kv_rows *rows) {
    return (rows->n_col + UNIT * VEC_WIDTH - 1) / (UNIT * VEC_WIDTH) * VEC_WIDTH;
}

// VEC_WIDTH units of a row; those that memory holds as they are need no conversion.
static inline vec units_load(const struct kv_rows *rows, int row, int u) {
    if (rows->dtype != (UNIT == 2 ? DTYPE_BF16 : DTYPE_F32) || (u + VEC_WIDTH) * UNIT > rows->n_col)
        return key_load(rows, row, u * UNIT);
    const char *data = (const char *)rows->data + row * rows->stride * (4 / UNIT);
    return vec_load((const float *)(data + (int64_t)u * 4));
}

// [panel][unit][key in the panel], transposed a square of vectors at a time.
static void pack_keys(const struct kv_rows *rows, void *key) {
    int n_unit = padded_units(rows);
    for (int first = 0; first < INDEX_KEY_TILE; first += VEC_WIDTH) {
        unit *panel = (unit *)key + (int64_t)(first / PANEL) * n_unit * PANEL + first % PANEL;
        for (int u = 0; u < n_unit; u += VEC_WIDTH) {
            vec square[VEC_WIDTH];
            for (int i = 0; i < VEC_WIDTH; i++)
                square[i] = first + i < rows->n_row ? units_load(rows, first + i, u) : vec_set(0);
            vec_transpose(square);
            for (int i = 0; i < VEC_WIDTH; i++)
                vec_store((float *)(panel + (int64_t)(u + i) * PANEL), square[i]);
        }
    }
}

static void pack_query(const struct kv_rows *rows, void *query) {
    int n_unit = padded_units(rows);
    for (int head = 0; head < (rows->n_row + HEAD_BLOCK - 1) / HEAD_BLOCK * HEAD_BLOCK; head++) {
        unit *out = (unit *)query + (int64_t)(head / HEAD_BLOCK) * n_unit * HEAD_BLOCK;
        for (int u = 0; u < n_unit; u += VEC_WIDTH) {
            unit x[VEC_WIDTH] = {0};
            if (head < rows->n_row) vec_store((float *)x, units_load(rows, head, u));
            for (int i = 0; i < VEC_WIDTH; i++)
                out[(u + i) * HEAD_BLOCK + head % HEAD_BLOCK] = x[i];
        }
    }
}

// sum[h][v] = dot products of HEAD_BLOCK heads and a panel of keys, in the order of the units.
static inline __attribute__((always_inline)) void
panel_products(const unit *query, const unit *key, int n_unit, vec sum[HEAD_BLOCK][INDEX_VECS]) {
#pragma GCC unroll 8
    for (int h = 0; h < HEAD_BLOCK; h++)
#pragma GCC unroll 8
        for (int v = 0; v < INDEX_VECS; v++) sum[h][v] = vec_set(0);
    for (int u = 0; u < n_unit; u++, query += HEAD_BLOCK, key += PANEL) {
        operand column[INDEX_VECS];
#pragma GCC unroll 8
        for (int v = 0; v < INDEX_VECS; v++) column[v] = operand_load(key + v * VEC_WIDTH);
#pragma GCC unroll 8
        for (int h = 0; h < HEAD_BLOCK; h++) {
            operand x = operand_broadcast(query + h);
#pragma GCC unroll 8
            for (int v = 0; v < INDEX_VECS; v++)
                sum[h][v] = operand_multiply_add(x, column[v], sum[h][v]);
        }
    }
}

static void score_panel(const struct index_work *w, const unit *key, int first,
                        int64_t ahead_bytes) {
    const float *key_scale = w->key_scale + first;
    float *out = w->score + first;
    const char *ahead = w->ahead;
    const unit *query = w->query;
    vec score[INDEX_VECS], zero = vec_set(0);
#pragma GCC unroll 8
    for (int v = 0; v < INDEX_VECS; v++) score[v] = zero;
    for (int head = 0; head < w->n_head; head += HEAD_BLOCK, query += w->n_unit * HEAD_BLOCK) {
        vec sum[HEAD_BLOCK][INDEX_VECS];
        for (int64_t at = 0; at < ahead_bytes; at += CACHE_LINE) __builtin_prefetch(ahead + at);
        ahead += ahead_bytes;
        panel_products(query, key, w->n_unit, sum);
#pragma GCC unroll 8
        for (int h = 0; h < HEAD_BLOCK; h++) {
            if (head + h == w->n_head) break;
            vec weight = vec_set(w->weight[head + h]);
#pragma GCC unroll 8
            for (int v = 0; v < INDEX_VECS; v++) // vec_max hands on a NaN that comes second
                score[v] = vec_fma(weight, vec_max(zero, sum[h][v]), score[v]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < INDEX_VECS; v++)
        vec_store(out + v * VEC_WIDTH, vec_mul(vec_load(key_scale + v * VEC_WIDTH), score[v]));
}

static bool score_tile(const struct index_work *w) {
    const unit *key = w->key;
    for (int i = 0; i < INDEX_KEY_TILE; i += PANEL, key += w->n_unit * PANEL)
        score_panel(w, key, i, i == 0 ? w->ahead_bytes : 0);
    int n_passing = 0;
    for (int i = 0; i < INDEX_KEY_TILE; i++) n_passing += !(w->score[i] < w->threshold);
    return n_passing > 0;
}

#endif
