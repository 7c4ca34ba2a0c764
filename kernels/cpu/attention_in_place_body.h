// Attention of few rows (decode): keys and values are read once, where they lie, as packing them
// would cost more than the products. Vectors run along a key's dimensions; four keys at a time
// share the reduction of their lanes. Weights stay fp32. Included after attention_body.h, whose
// streaming softmax and whose rule that a row never touches a key that it does not see hold here
// too.
#ifndef HALKA_KERNELS_CPU_ATTENTION_IN_PLACE_BODY_H
#define HALKA_KERNELS_CPU_ATTENTION_IN_PLACE_BODY_H

enum {
    QUAD = 4,                 // keys whose scores are found together
    SCORE_ROWS = SUMS / QUAD, // rows likewise
    HALF_BLOCK = ATTENTION_ROW_BLOCK / 2,
    // Vectors of values whose sums over so many rows fit the registers, at most 64 columns.
    HALF_BLOCK_VECS = SUMS / HALF_BLOCK < 4 ? SUMS / HALF_BLOCK : 4,
    CAN_END_INSIDE = UNIT * VEC_WIDTH > 8, // a row inside a vector: rows are of eights of elements
    CACHE_LINE = 64,
};

_Static_assert(ATTENTION_IN_PLACE_TILE + QUAD <= ATTENTION_KEY_TILE,
               "scores of keys that repeat the last stay in their row");

// Brings the row that takes the place of `row` in the next tile into the second-level cache: into
// the first, as many as a tile's would wait for one another.
ALWAYS_INLINE void read_ahead(const enum dtype dtype, const struct kv_rows *rows, int row) {
    int64_t next = row + (int64_t)ATTENTION_IN_PLACE_TILE;
    if (next >= rows->n_row + rows->n_ahead) return;
    const int element = dtype == DTYPE_BF16 ? 2 : 4;
    int64_t at = (rows->index ? rows->index[next] : next) * rows->stride;
    const char *data = (const char *)rows->data + at * element;
    for (int i = 0; i < rows->n_col * element; i += CACHE_LINE) __builtin_prefetch(data + i, 0, 2);
}

// Adds the products of one key's vector of units and those of n_row queries.
ALWAYS_INLINE void multiply_key(const int n_row, const struct tile_work *w, const unit *query,
                                operand key, const int k, vec sum[SCORE_ROWS][QUAD]) {
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++) {
        operand x = operand_load(query + r * w->query_units);
        sum[r][k] = operand_multiply_add(x, key, sum[r][k]);
    }
}

// Scaled scores of n_row rows against the keys first .. first + 3, of which those from `end` on
// repeat the last before it: [n_row, ATTENTION_KEY_TILE].
ALWAYS_INLINE void score_quad(const int n_row, const enum dtype dtype, const struct tile_work *w,
                              const unit *query, int first, int end, float *score) {
    const struct kv_rows *keys = &w->keys;
    int n_whole = keys->n_col / (UNIT * VEC_WIDTH) * VEC_WIDTH, row[QUAD];
    int64_t at[QUAD];
    vec sum[SCORE_ROWS][QUAD], scale = vec_set(w->score_scale);
#pragma GCC unroll 8
    for (int k = 0; k < QUAD; k++) {
        row[k] = min_int(first + k, end - 1);
        at[k] = kv_row_at(keys, row[k]);
#pragma GCC unroll 8
        for (int r = 0; r < n_row; r++) sum[r][k] = vec_set(0);
    }
    for (int u = 0; u < n_whole; u += VEC_WIDTH) {
#pragma GCC unroll 8
        for (int k = 0; k < QUAD; k++)
            multiply_key(n_row, w, query + u, key_load_whole(dtype, keys->data, at[k] + u * UNIT),
                         k, sum);
    }
    if (CAN_END_INSIDE && n_whole < w->unit_dim) {
#pragma GCC unroll 8
        for (int k = 0; k < QUAD; k++)
            multiply_key(n_row, w, query + n_whole,
                         as_operand(key_load(keys, row[k], n_whole * UNIT)), k, sum);
    }
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++) {
        for (int k = 0; k < QUAD; k++) sum[r][k] = vec_mul(sum[r][k], scale);
        vec_sum_four(sum[r], score + r * ATTENTION_KEY_TILE + first);
    }
}

ALWAYS_INLINE void score_in_place(const int n_row, const enum dtype dtype,
                                  const struct tile_work *w, int first_row, int begin, int end,
                                  float *score) {
    const unit *query = (const unit *)w->query + (int64_t)first_row * w->query_units;
    for (int key = begin; key < end; key += QUAD) {
        for (int k = 0; first_row == 0 && k < QUAD; k++) read_ahead(dtype, &w->keys, key + k);
#pragma GCC unroll 8
        for (int r = 0; r < n_row; r += SCORE_ROWS)
            score_quad(n_row - r < SCORE_ROWS ? n_row - r : SCORE_ROWS, dtype, w,
                       query + r * w->query_units, key, end, score + r * ATTENTION_KEY_TILE);
    }
}

// sum = sum * shrink + weight * value over the keys [begin, end), n_vec vectors of columns.
// whole: of which all exist.
ALWAYS_INLINE void add_columns_in_place(const int n_row, const int n_vec, const bool whole,
                                        const enum dtype dtype, const struct tile_work *w,
                                        int begin, int end, int col, bool ahead,
                                        const float *weight, const float *shrink, float *sum) {
    vec part[ATTENTION_ROW_BLOCK][SUMS];
    const struct kv_rows *values = &w->values;
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 8
        for (int v = 0; v < n_vec; v++) part[r][v] = vec_set(0);
    for (int key = begin; key < end; key++) {
        int64_t at = kv_row_at(values, key) + col;
        if (ahead) read_ahead(dtype, values, key);
        vec value[SUMS];
#pragma GCC unroll 8
        for (int v = 0; v < n_vec; v++)
            value[v] = whole ? value_load_whole(dtype, values->data, at + v * VEC_WIDTH)
                             : value_load(values, key, col);
#pragma GCC unroll 8
        for (int r = 0; r < n_row; r++) {
            vec x = vec_set(weight[r * ATTENTION_KEY_TILE + key]);
#pragma GCC unroll 8
            for (int v = 0; v < n_vec; v++) part[r][v] = vec_fma(x, value[v], part[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 8
        for (int v = 0; v < n_vec; v++) {
            float *to = sum + (int64_t)r * w->value_width + col + v * VEC_WIDTH;
            vec_store(to, vec_fma(vec_load(to), vec_set(shrink[r]), part[r][v]));
        }
}

ALWAYS_INLINE void add_in_place(const int n_row, const enum dtype dtype, const struct tile_work *w,
                                int first_row, int begin, int end, const float *weight,
                                const float *shrink) {
    const int n_vec = n_row > HALF_BLOCK ? SUMS / ATTENTION_ROW_BLOCK : HALF_BLOCK_VECS;
    float *sum = w->sum + (int64_t)first_row * w->value_width;
    int col = 0, n_col = w->values.n_col;
    bool ahead = first_row == 0;
    for (; col + n_vec * VEC_WIDTH <= n_col; col += n_vec * VEC_WIDTH, ahead = false)
        add_columns_in_place(n_row, n_vec, true, dtype, w, begin, end, col, ahead, weight, shrink,
                             sum);
    for (; col + VEC_WIDTH <= n_col; col += VEC_WIDTH, ahead = false)
        add_columns_in_place(n_row, 1, true, dtype, w, begin, end, col, ahead, weight, shrink, sum);
    if (CAN_END_INSIDE && col < n_col)
        add_columns_in_place(n_row, 1, false, dtype, w, begin, end, col, ahead, weight, shrink,
                             sum);
}

// BLOCK(name, ...): name(n_row, dtype, ...) with both known to the compiler.
#define BLOCK_TYPED(name, dtype, ...)                                                              \
    switch (n_row) {                                                                               \
    case 1:                                                                                        \
        name(1, dtype, __VA_ARGS__);                                                               \
        break;                                                                                     \
    case 2:                                                                                        \
        name(2, dtype, __VA_ARGS__);                                                               \
        break;                                                                                     \
    case 3:                                                                                        \
        name(3, dtype, __VA_ARGS__);                                                               \
        break;                                                                                     \
    case 4:                                                                                        \
        name(4, dtype, __VA_ARGS__);                                                               \
        break;                                                                                     \
    case 5:                                                                                        \
        name(5, dtype, __VA_ARGS__);                                                               \
        break;                                                                                     \
    default:                                                                                       \
        name(ATTENTION_ROW_BLOCK, dtype, __VA_ARGS__);                                             \
    }
#define BLOCK(name, ...)                                                                           \
    if (w->keys.dtype == DTYPE_BF16)                                                               \
        BLOCK_TYPED(name, DTYPE_BF16, __VA_ARGS__)                                                 \
    else                                                                                           \
        BLOCK_TYPED(name, DTYPE_F32, __VA_ARGS__)

static void score_block(int n_row, const struct tile_work *w, int first_row, float *score) {
    int begin = w->begin[first_row], end = w->end[first_row + n_row - 1];
    BLOCK(score_in_place, w, first_row, begin, end, score)
}

static void add_block(int n_row, const struct tile_work *w, int first_row, int begin, int end,
                      const float *weight, const float *shrink) {
    BLOCK(add_in_place, w, first_row, begin, end, weight, shrink)
}

// Keys that not all rows of a block see.
static void add_row_keys(const struct tile_work *w, int row, int begin, int end,
                         const float *weight) {
    if (begin < end) add_block(1, w, row, begin, end, weight, &keep_sum);
}

static void attend_in_place(const struct tile_work *w) {
    _Alignas(64) float score[ATTENTION_ROW_BLOCK * ATTENTION_KEY_TILE + QUAD];
    float shrink[N_BLOCK_VEC * VEC_WIDTH];
    for (int row = 0; row < w->n_row; row += ATTENTION_ROW_BLOCK) {
        int n_row = min_int(w->n_row - row, ATTENTION_ROW_BLOCK);
        const int *begin = w->begin + row, *end = w->end + row;
        if (begin[0] >= end[n_row - 1]) continue;
        score_block(n_row, w, row, score);
        weigh_rows(n_row, w, row, score, NULL, shrink);
        int first = begin[n_row - 1], last = max_int(end[0], first); // what all rows see
        add_block(n_row, w, row, first, last, score, shrink);
        for (int r = 0; r < n_row; r++) {
            const float *weight = score + r * ATTENTION_KEY_TILE;
            add_row_keys(w, row + r, begin[r], min_int(end[r], first), weight);
            add_row_keys(w, row + r, max_int(begin[r], last), end[r], weight);
        }
    }
}

static void column_mass_in_place(const struct tile_work *w) {
    _Alignas(64) float score[ATTENTION_ROW_BLOCK * ATTENTION_KEY_TILE + QUAD];
    for (int row = 0; row < w->n_row; row += ATTENTION_ROW_BLOCK) {
        int n_row = min_int(w->n_row - row, ATTENTION_ROW_BLOCK);
        if (w->begin[row] < w->end[row + n_row - 1]) score_block(n_row, w, row, score);
        add_mass(n_row, w, row, score);
    }
}

#undef BLOCK
#undef BLOCK_TYPED

#endif
