// The inner loops of attention, once for every vector width and kind of product: included after an
// attention_vec_*.h and an attention_product_*.h. Each block of rows goes through one key tile at a
// time: scores of the keys it sees, running maximum, weights 2^(score - max), weighted values
// (streaming softmax: Dao et al. 2022, algorithm 1). A row never touches a key that it does not
// see, so what lies there (even NaN) cannot reach it.
#ifndef HALKA_KERNELS_CPU_ATTENTION_BODY_H
#define HALKA_KERNELS_CPU_ATTENTION_BODY_H

enum {
    PANEL = PANEL_VECS * VEC_WIDTH,            // keys side by side in a packed panel
    WEIGHT_STRIDE = ATTENTION_KEY_TILE / UNIT, // units from one row of weights to the next
    N_BLOCK_VEC = (ATTENTION_ROW_BLOCK - 1) / VEC_WIDTH + 1, // vectors that hold one float per row
};

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static int round_up(int n, int to) {
    return (n + to - 1) / to * to;
}
static int min_int(int a, int b) {
    return a < b ? a : b;
}
static int max_int(int a, int b) {
    return a > b ? a : b;
}

// Panels of PANEL keys: [panel][unit of head_dim][key], transposed a square of vectors at a time.
static void pack_keys(const struct kv_rows *rows, void *key) {
    int n_unit = round_up(rows->n_col / UNIT, VEC_WIDTH);
    for (int first = 0; first < round_up(rows->n_row, PANEL); first += VEC_WIDTH) {
        unit *panel = (unit *)key + (int64_t)(first / PANEL) * n_unit * PANEL + first % PANEL;
        for (int u = 0; u < n_unit; u += VEC_WIDTH) {
            vec square[VEC_WIDTH];
            for (int i = 0; i < VEC_WIDTH; i++)
                square[i] =
                    first + i < rows->n_row ? key_load(rows, first + i, u * UNIT) : vec_set(0);
            vec_transpose(square);
            for (int i = 0; i < VEC_WIDTH; i++)
                vec_store((float *)(panel + (int64_t)(u + i) * PANEL), square[i]);
        }
    }
}

// [key unit][value_width] units.
static void pack_values(const struct kv_rows *rows, int value_width, void *value) {
    for (int row = 0; row < rows->n_row; row += UNIT)
        for (int col = 0; col < value_width; col += VEC_WIDTH)
            value_pack(rows, row, col, (unit *)value + (int64_t)(row / UNIT) * value_width + col);
}

// sum[r][v] = sum over i < n of a[r * a_stride + i] * b[i * b_stride + v]: all of it in registers.
ALWAYS_INLINE void product(const int n_row, const int n_vec, int n, const unit *a, int64_t a_stride,
                           const unit *b, int64_t b_stride,
                           vec sum[ATTENTION_ROW_BLOCK][PANEL_VECS]) {
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 8
        for (int v = 0; v < n_vec; v++) sum[r][v] = vec_set(0);
    for (int i = 0; i < n; i++) {
        operand column[PANEL_VECS];
#pragma GCC unroll 8
        for (int v = 0; v < n_vec; v++) column[v] = operand_load(b + v * VEC_WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < n_row; r++) {
            operand x = operand_broadcast(a + r * a_stride + i);
#pragma GCC unroll 8
            for (int v = 0; v < n_vec; v++)
                sum[r][v] = operand_multiply_add(x, column[v], sum[r][v]);
        }
        b += b_stride;
    }
}

// Scaled scores of n_row rows against n_vec vectors of keys: [n_row, ATTENTION_KEY_TILE].
ALWAYS_INLINE void score_columns(const int n_row, const int n_vec, const struct tile_work *w,
                                 const unit *query, const unit *key, float *score) {
    vec sum[ATTENTION_ROW_BLOCK][PANEL_VECS], scale = vec_set(w->score_scale);
    product(n_row, n_vec, w->unit_dim, query, w->query_units, key, PANEL, sum);
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 8
        for (int v = 0; v < n_vec; v++)
            vec_store(score + r * ATTENTION_KEY_TILE + v * VEC_WIDTH, vec_mul(sum[r][v], scale));
}

// The tile's keys [begin, end) and those that share a vector with them.
ALWAYS_INLINE void score_rows(const int n_row, const struct tile_work *w, int first_row, int begin,
                              int end, float *score) {
    const unit *query = (const unit *)w->query + (int64_t)first_row * w->query_units;
    int64_t panel_units = (int64_t)round_up(w->unit_dim, VEC_WIDTH) * PANEL;
    for (int key = begin / VEC_WIDTH * VEC_WIDTH; key < end;) {
        const unit *at = (const unit *)w->key + key / PANEL * panel_units + key % PANEL;
        bool whole = key % PANEL == 0 && end - key > PANEL - VEC_WIDTH;
        if (whole)
            score_columns(n_row, PANEL_VECS, w, query, at, score + key);
        else
            score_columns(n_row, 1, w, query, at, score + key);
        key += whole ? PANEL : VEC_WIDTH;
    }
}

// Hides the scores outside [begin, end) in the vectors of its ends; returns the largest inside.
ALWAYS_INLINE float mask_and_max(float *score, int begin, int end) {
    if (begin == end) return -INFINITY;
    int first = begin / VEC_WIDTH * VEC_WIDTH, last = (end - 1) / VEC_WIDTH * VEC_WIDTH;
    vec_store(score + first, vec_without_first(vec_load(score + first), begin - first));
    vec max = vec_first(vec_load(score + last), end - last);
    vec_store(score + last, max);
    // vec_max gives its second operand on NaN: a NaN score leaves max alone and spoils the total
    max = vec_max(max, vec_set(-INFINITY));
    for (int key = first; key < last; key += VEC_WIDTH) max = vec_max(vec_load(score + key), max);
    return vec_reduce_max(max);
}

// Turns scores into weights 2^(score - max) and brings max and total up to date.
// weight: NULL leaves the weights where the scores were.
// shrink[r]: the factor of what the row had summed before this tile.
ALWAYS_INLINE void weigh_rows(int n_row, const struct tile_work *w, int first_row, float *score,
                              unit *weight, float *shrink) {
    float *max = w->max + first_row, reference[ATTENTION_ROW_BLOCK];
    float step[N_BLOCK_VEC * VEC_WIDTH] = {0};
    for (int r = 0; r < n_row; r++) {
        float tile_max = mask_and_max(score + r * ATTENTION_KEY_TILE, w->begin[first_row + r],
                                      w->end[first_row + r]);
        float new_max = tile_max > max[r] ? tile_max : max[r];
        reference[r] = new_max == -INFINITY ? 0 : new_max; // no visible key so far: avoid inf - inf
        step[r] = max[r] - reference[r];
        max[r] = new_max;
    }
    for (int v = 0; v < N_BLOCK_VEC; v++)
        vec_store(shrink + v * VEC_WIDTH, vec_exp2(vec_load(step + v * VEC_WIDTH)));
    for (int r = 0; r < n_row; r++) {
        float *row = score + r * ATTENTION_KEY_TILE;
        float *total = w->total + (int64_t)(first_row + r) * VEC_WIDTH;
        vec sum = vec_mul(vec_load(total), vec_set(shrink[r])), ref = vec_set(reference[r]);
        int begin = w->begin[first_row + r], end = w->end[first_row + r];
        for (int i = begin / VEC_WIDTH; begin < end && i * VEC_WIDTH < end; i++) {
            vec p = vec_exp2(vec_sub(vec_load(row + i * VEC_WIDTH), ref));
            sum = vec_add(sum, p);
            if (weight)
                weight_store(weight + r * WEIGHT_STRIDE, i, p);
            else
                vec_store(row + i * VEC_WIDTH, p);
        }
        vec_store(total, sum);
    }
}

// sum = sum * shrink + weight * value over n units of keys, n_vec vectors of columns.
ALWAYS_INLINE void add_columns(const int n_row, const int n_vec, const struct tile_work *w, int n,
                               const unit *weight, const unit *value, const float *shrink,
                               float *sum) {
    vec part[ATTENTION_ROW_BLOCK][PANEL_VECS];
    product(n_row, n_vec, n, weight, WEIGHT_STRIDE, value, w->value_width, part);
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 8
        for (int v = 0; v < n_vec; v++) {
            float *at = sum + (int64_t)r * w->value_width + v * VEC_WIDTH;
            vec_store(at, vec_fma(vec_load(at), vec_set(shrink[r]), part[r][v]));
        }
}

ALWAYS_INLINE void add_values(const int n_row, const struct tile_work *w, int first_row, int n,
                              const unit *weight, const unit *value, const float *shrink) {
    float *sum = w->sum + (int64_t)first_row * w->value_width;
    int col = 0;
    for (; col + PANEL <= w->value_width; col += PANEL)
        add_columns(n_row, PANEL_VECS, w, n, weight, value + col, shrink, sum + col);
    for (; col < w->value_width; col += VEC_WIDTH)
        add_columns(n_row, 1, w, n, weight, value + col, shrink, sum + col);
}

static const float keep_sum = 1;

// A unit of which one row sees key `visible` (0 or 1) alone: multiplies a copy without the other.
static void add_half_unit(const struct tile_work *w, int row, int index, int visible,
                          const unit *weight) {
    const uint32_t *from = (const uint32_t *)w->value + (int64_t)index * w->value_width;
    uint32_t pair[ATTENTION_MAX_DIM], keep = visible ? 0xffff0000u : 0xffffu;
    for (int i = 0; i < w->value_width; i++) pair[i] = from[i] & keep;
    add_values(1, w, row, 1, weight + index, (const unit *)(const void *)pair, &keep_sum);
}

// Keys [begin, end) of one row, where the rows of its block see different ones.
static void add_row_values(const struct tile_work *w, int row, int begin, int end,
                           const unit *weight) {
    if (begin >= end) return;
    if (begin % UNIT) add_half_unit(w, row, begin / UNIT, 1, weight);
    int first = (begin + UNIT - 1) / UNIT, last = end / UNIT;
    const unit *value = (const unit *)w->value + (int64_t)first * w->value_width;
    if (first < last) add_values(1, w, row, last - first, weight + first, value, &keep_sum);
    if (end % UNIT) add_half_unit(w, row, last, 0, weight);
}

ALWAYS_INLINE void attend_rows(const int n_row, const struct tile_work *w, int first_row) {
    _Alignas(64) float score[ATTENTION_ROW_BLOCK * ATTENTION_KEY_TILE];
    _Alignas(64) unit weight[ATTENTION_ROW_BLOCK * WEIGHT_STRIDE];
    float shrink[N_BLOCK_VEC * VEC_WIDTH];
    const int *begin = w->begin + first_row, *end = w->end + first_row;
    if (begin[0] >= end[n_row - 1]) return;
    score_rows(n_row, w, first_row, begin[0], end[n_row - 1], score);
    weigh_rows(n_row, w, first_row, score, weight, shrink);
    // What all rows see; to the end of the tile, a last odd key is paired with packed zeros.
    int first = round_up(begin[n_row - 1], UNIT);
    int last = end[0] == w->n_key ? round_up(end[0], UNIT) : end[0] / UNIT * UNIT;
    if (last < first) last = first;
    add_values(n_row, w, first_row, (last - first) / UNIT, weight + first / UNIT,
               (const unit *)w->value + (int64_t)(first / UNIT) * w->value_width, shrink);
    for (int r = 0; r < n_row; r++) {
        const unit *row_weight = weight + r * WEIGHT_STRIDE;
        add_row_values(w, first_row + r, begin[r], min_int(end[r], first), row_weight);
        add_row_values(w, first_row + r, max_int(begin[r], last), end[r], row_weight);
    }
}

static void attend(const struct tile_work *w) {
    for (int row = 0; row < w->n_row; row += ATTENTION_ROW_BLOCK) {
        switch (w->n_row - row) {
        case 1:
            attend_rows(1, w, row);
            break;
        case 2:
            attend_rows(2, w, row);
            break;
        case 3:
            attend_rows(3, w, row);
            break;
        case 4:
            attend_rows(4, w, row);
            break;
        case 5:
            attend_rows(5, w, row);
            break;
        default:
            attend_rows(ATTENTION_ROW_BLOCK, w, row);
            break;
        }
    }
}

// Adds 2^(score - max) of each row that sees the key to the key's mass.
static void add_mass(int n_row, const struct tile_work *w, int first_row, float *score) {
    const int *begin = w->begin + first_row, *end = w->end + first_row;
    for (int r = 0; r < n_row; r++) {
        float *row = score + r * ATTENTION_KEY_TILE;
        if (begin[r] == end[r] || w->max[first_row + r] == -INFINITY) continue;
        if (isnan(w->max[first_row + r])) { // keys that share a vector with its own stay clean
            for (int key = begin[r]; key < end[r]; key++)
                if (row[key] != -INFINITY) w->mass[key] = NAN;
            continue;
        }
        mask_and_max(row, begin[r], end[r]);
        vec lse = vec_set(w->max[first_row + r]);
        for (int key = begin[r] / VEC_WIDTH * VEC_WIDTH; key < end[r]; key += VEC_WIDTH)
            vec_store(w->mass + key, vec_add(vec_load(w->mass + key),
                                             vec_exp2(vec_sub(vec_load(row + key), lse))));
    }
}

ALWAYS_INLINE void mass_rows(const int n_row, const struct tile_work *w, int first_row) {
    _Alignas(64) float score[ATTENTION_ROW_BLOCK * ATTENTION_KEY_TILE];
    score_rows(n_row, w, first_row, w->begin[first_row], w->end[first_row + n_row - 1], score);
    add_mass(n_row, w, first_row, score);
}

static void column_mass(const struct tile_work *w) {
    int row = 0;
    for (; row + ATTENTION_ROW_BLOCK <= w->n_row; row += ATTENTION_ROW_BLOCK)
        mass_rows(ATTENTION_ROW_BLOCK, w, row);
    for (; row < w->n_row; row++) mass_rows(1, w, row);
}

#endif
