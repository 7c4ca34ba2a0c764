#include "tests/common/attention_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// setjmp.h, stdarg.h and stdlib.h come before cmocka.h
#include <cmocka.h>

#include "tests/common/backends.h"

const struct attention_case attention_cases[] = {
    {"one query, one key", 1, 1, 1, 1, 16, 16, CAUSAL, LAST, RANDOM, 0, 0},
    {"no query", 0, 5, 4, 2, 16, 16, CAUSAL, LAST, RANDOM, 0, 0},
    {"no key", 3, 0, 4, 2, 16, 24, CAUSAL, LAST, RANDOM, 0, 0},
    {"no visible key", 7, 40, 4, 2, 16, 16, CAUSAL, BEFORE, RANDOM, 0, 0},
    {"all visible by position", 7, 40, 4, 2, 16, 16, CAUSAL, AFTER, RANDOM, 0, 0},
    {"one key, many rows", 13, 1, 4, 4, 32, 32, FULL, LAST, RANDOM, 0, 0},
    {"equal scores", 5, 300, 9, 3, 64, 64, CAUSAL, LAST, EQUAL, 0, 0},
    {"primes", 31, 127, 7, 7, 24, 40, CAUSAL, LAST, RANDOM, 0, 0},
    {"tile edge - 1", 9, 127, 4, 1, 64, 64, FULL, LAST, RANDOM, 0, 0},
    {"tile edge", 9, 128, 4, 1, 64, 64, CAUSAL, LAST, RANDOM, 0, 0},
    {"tile edge + 1", 9, 129, 4, 1, 64, 64, CAUSAL, LAST, RANDOM, 0, 0},
    {"square causal", 131, 131, 3, 1, 16, 16, CAUSAL, LAST, RANDOM, 0, 0},
    {"several row tiles", 151, 301, 9, 3, 16, 8, CAUSAL, LAST, RANDOM, 8, 0},
    {"split keys, many rows", 67, 1301, 2, 1, 16, 16, CAUSAL, LAST, RANDOM, 0, 0},
    {"9:3 of 64", 23, 211, 9, 3, 64, 64, CAUSAL, LAST, RANDOM, 16, 0},
    {"32:8 of 128", 5, 259, 32, 8, 128, 128, CAUSAL, LAST, RANDOM, 24, 0},
    {"8:1 of 80", 11, 190, 8, 1, 80, 80, CAUSAL, LAST, RANDOM, 0, 0},
    {"4:4 of 96", 11, 190, 4, 4, 96, 96, CAUSAL, LAST, RANDOM, 8, 0},
    {"2:2 of 256", 10, 140, 2, 2, 256, 256, CAUSAL, LAST, RANDOM, 0, 0},
    {"12:2 of 32, not causal", 12, 190, 12, 2, 32, 32, FULL, LAST, RANDOM, 8, 0},
    {"keys of 192, values of 128", 9, 150, 4, 2, 192, 128, CAUSAL, LAST, RANDOM, 8, 0},
    {"keys of 8, values of 256", 9, 150, 4, 2, 8, 256, CAUSAL, LAST, RANDOM, 0, 0},
    {"4:4, keys of 192, values of 128", 21, 260, 4, 4, 192, 128, CAUSAL, LAST, RANDOM, 8, 0},
    {"16:1, keys of 576, values of 512", 3, 150, 16, 1, 576, 512, CAUSAL, LAST, RANDOM, 16, 0},
    {"values in keys of 576", 3, 150, 16, 1, 576, 512, CAUSAL, LAST, VALUE_IN_KEY, 16, 0},
    {"values in keys, several row tiles", 10, 140, 16, 1, 576, 512, CAUSAL, LAST, VALUE_IN_KEY, 0,
     0},
    {"values in keys, decode", 1, 601, 16, 1, 576, 512, CAUSAL, LAST, VALUE_IN_KEY, 0, 0},
    {"values in keys, one tile of keys", 5, 40, 16, 1, 576, 512, CAUSAL, LAST, VALUE_IN_KEY, 8, 0},
    {"values in keys, two tiles of keys", 3, 128, 20, 1, 576, 512, FULL, LAST, VALUE_IN_KEY, 0, 0},
    {"values in keys, 63 rows", 7, 190, 9, 1, 576, 512, CAUSAL, LAST, VALUE_IN_KEY, 0, 0},
    {"values in keys, 65 rows", 5, 260, 13, 1, 576, 512, CAUSAL, SHARDS, VALUE_IN_KEY, 0, 0},
    {"NaN in keys that are values", 8, 141, 4, 1, 576, 512, CAUSAL, LAST, NAN_VALUE_IN_KEY, 0, 0},
    {"keys and values of 576", 7, 131, 2, 1, 576, 576, CAUSAL, LAST, NAN_VALUE, 0, 0},
    {"shards", 60, 333, 6, 2, 32, 32, CAUSAL, SHARDS, RANDOM, 8, 0},
    {"shards, odd counts", 37, 201, 3, 3, 16, 16, CAUSAL, SHARDS, RANDOM, 0, 0},
    {"decode", 1, 5003, 9, 3, 64, 64, CAUSAL, LAST, RANDOM, 0, 0},
    {"decode 32:8", 1, 1500, 32, 8, 128, 128, CAUSAL, AFTER, RANDOM, 0, 0},
    {"decode, many parts", 1, 2307, 2, 1, 40, 40, CAUSAL, LAST, RANDOM, 0, 0},
    {"decode of four", 4, 2049, 8, 1, 64, 64, CAUSAL, LAST, RANDOM, 8, 0},
    {"large scores", 17, 300, 6, 2, 64, 64, CAUSAL, LAST, LARGE, 0, 0},
    {"huge scores", 17, 300, 6, 2, 64, 64, CAUSAL, LAST, HUGE_SCORE, 0, 0},
    {"NaN in keys that some rows see", 20, 140, 6, 2, 32, 32, CAUSAL, LAST, NAN_KEY, 0, 0},
    {"NaN in values that some rows see", 20, 141, 6, 2, 32, 40, CAUSAL, LAST, NAN_VALUE, 0, 0},
    {"NaN in values, one head", 11, 128, 1, 1, 32, 32, CAUSAL, LAST, NAN_VALUE, 0, 0},
    {"NaN in values, whole blocks", 9, 128, 6, 1, 32, 32, CAUSAL, LAST, NAN_VALUE, 0, 0},
    {"infinite scores", 20, 140, 6, 2, 32, 32, CAUSAL, LAST, INF_KEY, 0, 0},
    {"infinite values", 20, 140, 6, 2, 32, 32, CAUSAL, LAST, INF_VALUE, 0, 0},
    // Whole tiles of rows of every kernel, and more keys than one tile has.
    {"long, 4:1 of 128", 150, 1030, 4, 1, 128, 128, CAUSAL, LAST, RANDOM, 8, 0},
    {"long, 2:2 of 128, shards", 150, 1100, 2, 2, 128, 128, CAUSAL, SHARDS, RANDOM, 0, 0},
    {"long, 3:1 of 128, not causal", 90, 1000, 3, 1, 128, 128, FULL, LAST, RANDOM, 8, 0},
    {"long, 2:1 of 128, few see keys", 300, 160, 2, 1, 128, 128, CAUSAL, LAST, RANDOM, 0, 0},
    {"long, 2:2 of 128, no visible key", 140, 200, 2, 2, 128, 128, CAUSAL, BEFORE, RANDOM, 0, 0},
    {"long, 3:3 of 64", 200, 1100, 3, 3, 64, 64, CAUSAL, LAST, RANDOM, 8, 0},
    {"long, 6:2 of 64, shards", 100, 900, 6, 2, 64, 64, CAUSAL, SHARDS, RANDOM, 0, 0},
    {"long, 2:1 of 96", 140, 1000, 2, 1, 96, 96, CAUSAL, LAST, RANDOM, 0, 0},
    {"long, 2:1 of 256", 70, 1000, 2, 1, 256, 256, CAUSAL, SHARDS, RANDOM, 0, 0},
    {"long, keys of 192, values of 128", 140, 1000, 2, 2, 192, 128, CAUSAL, LAST, RANDOM, 0, 0},
    {"long, values in keys of 576", 9, 1000, 16, 1, 576, 512, CAUSAL, LAST, VALUE_IN_KEY, 0, 0},
    {"long, values in keys, tiles and ranges", 10, 1300, 16, 1, 576, 512, CAUSAL, LAST,
     VALUE_IN_KEY, 0, 0},
    {"long, NaN in keys that are values", 10, 1030, 13, 1, 576, 512, CAUSAL, LAST, NAN_VALUE_IN_KEY,
     0, 0},
    {"large scores of 128", 80, 300, 4, 2, 128, 128, CAUSAL, LAST, LARGE, 0, 0},
    {"huge scores of 128", 80, 300, 4, 2, 128, 128, CAUSAL, LAST, HUGE_SCORE, 0, 0},
    {"NaN in keys of 128", 150, 300, 2, 1, 128, 128, CAUSAL, LAST, NAN_KEY, 0, 0},
    {"NaN in values of 128", 150, 300, 2, 1, 128, 128, CAUSAL, LAST, NAN_VALUE, 0, 0},
    {"NaN in values of 64", 150, 301, 2, 1, 64, 64, CAUSAL, LAST, NAN_VALUE, 0, 0},
    {"NaN in values of 256", 65, 150, 2, 1, 256, 256, CAUSAL, LAST, NAN_VALUE, 8, 0},
    {"infinite scores of 128", 150, 300, 2, 1, 128, 128, CAUSAL, LAST, INF_KEY, 0, 0},
    {"infinite values of 128", 150, 300, 2, 1, 128, 128, CAUSAL, LAST, INF_VALUE, 0, 0},
    {"window", 131, 131, 4, 4, 16, 16, WINDOW, LAST, RANDOM, 0, 40},
    {"window of 1", 131, 131, 3, 1, 16, 16, WINDOW, LAST, RANDOM, 0, 1},
    {"window of 2", 77, 131, 3, 3, 16, 24, WINDOW, LAST, RANDOM, 8, 2},
    {"window larger than all", 31, 131, 3, 1, 32, 32, WINDOW, LAST, RANDOM, 0, 1000},
    {"window of a key tile, 4:2 of 64", 300, 700, 4, 2, 64, 64, WINDOW, LAST, RANDOM, 8, 128},
    {"window, shards", 60, 333, 6, 2, 32, 32, WINDOW, SHARDS, RANDOM, 0, 50},
    {"window, keys apart", 201, 203, 4, 1, 64, 64, WINDOW, APART, RANDOM, 0, 100},
    {"window, decode", 1, 5003, 9, 3, 64, 64, WINDOW, LAST, RANDOM, 0, 1500},
    {"window, decode of four", 4, 2049, 8, 1, 64, 64, WINDOW, LAST, RANDOM, 0, 700},
    {"window, queries far behind", 7, 400, 4, 2, 16, 16, WINDOW, AFTER, RANDOM, 0, 40},
    {"window, queries before", 7, 400, 4, 2, 16, 16, WINDOW, BEFORE, RANDOM, 0, 40},
    {"window, one query", 1, 1, 2, 1, 16, 16, WINDOW, LAST, RANDOM, 0, 5},
    {"window, no key", 3, 0, 4, 2, 16, 24, WINDOW, LAST, RANDOM, 0, 5},
    {"symmetric, 12:12 of 64", 211, 211, 12, 12, 64, 64, SYMMETRIC, LAST, RANDOM, 0, 64},
    {"symmetric of 3, 6:2 of 40", 133, 133, 6, 2, 40, 40, SYMMETRIC, LAST, RANDOM, 8, 1},
    {"symmetric, long", 600, 600, 2, 2, 64, 64, SYMMETRIC, LAST, RANDOM, 0, 64},
    {"symmetric, shards", 61, 334, 3, 3, 32, 32, SYMMETRIC, SHARDS, RANDOM, 0, 33},
    {"far", 131, 131, 4, 4, 16, 16, FAR, LAST, RANDOM, 0, 40},
    {"far, 3:1 of 64", 290, 300, 3, 1, 64, 64, FAR, LAST, RANDOM, 8, 129},
    {"far, nothing", 30, 30, 2, 1, 32, 32, FAR, LAST, RANDOM, 0, 40},
    {"sinks", 260, 260, 4, 2, 32, 32, SINKS, LAST, RANDOM, 0, 24},
    {"sinks inside the window", 60, 60, 3, 3, 16, 16, SINKS, LAST, RANDOM, 0, 100},
    {"many sinks", 200, 700, 3, 1, 64, 64, SINKS, LAST, RANDOM, 0, 601},
    {"sinks, decode", 1, 3001, 6, 2, 64, 64, SINKS, LAST, RANDOM, 0, 800},
    {"sinks, shards", 60, 333, 6, 2, 32, 32, SINKS, SHARDS, RANDOM, 8, 50},
    {"sinks ahead", 7, 400, 4, 2, 16, 16, SINKS, BEFORE, RANDOM, 0, 40},
    {"documents", 301, 301, 4, 4, 32, 32, DOCUMENTS, LAST, RANDOM, 0, 47},
    {"documents, 3:1 of 64", 190, 300, 3, 1, 64, 64, DOCUMENTS, LAST, RANDOM, 8, 130},
    {"documents of 1", 131, 140, 2, 2, 16, 16, DOCUMENTS, LAST, RANDOM, 0, 1},
    {"window of 128, 2:1 of 128", 300, 520, 2, 1, 128, 128, WINDOW, LAST, RANDOM, 8, 129},
    {"symmetric, 2:2 of 128", 270, 270, 2, 2, 128, 128, SYMMETRIC, LAST, RANDOM, 0, 70},
    {"sinks, 3:1 of 128", 200, 600, 3, 1, 128, 128, SINKS, LAST, RANDOM, 0, 150},
    {"sinks, decode of 128", 1, 1801, 8, 2, 128, 128, SINKS, LAST, RANDOM, 0, 900},
    // More keys and values than ATTENTION_NEAR_BYTES: two heads at a time in bf16, one in fp32.
    {"window, heads in turn", 140, 15000, 3, 3, 128, 128, WINDOW, LAST, RANDOM, 0, 129},
    {"window, decode 32:8", 1, 1900, 32, 8, 128, 128, WINDOW, LAST, RANDOM, 24, 1200},
    {"documents, 2:2 of 96", 200, 300, 2, 2, 96, 96, DOCUMENTS, LAST, RANDOM, 0, 91},
    {"sinks, 2:1 of 256", 70, 500, 2, 1, 256, 256, SINKS, LAST, RANDOM, 0, 90},
    {"window, 192/128", 140, 500, 2, 2, 192, 128, WINDOW, LAST, RANDOM, 0, 200},
    {"window, values in keys", 9, 500, 16, 1, 576, 512, WINDOW, LAST, VALUE_IN_KEY, 0, 140},
    {"sinks, values in keys", 9, 500, 16, 1, 576, 512, SINKS, LAST, VALUE_IN_KEY, 0, 140},
    {"window, ranges, values in keys", 10, 1200, 13, 1, 576, 512, WINDOW, LAST, VALUE_IN_KEY, 0,
     790},
    {"sinks, ranges, values in keys", 7, 1500, 13, 1, 576, 512, SINKS, LAST, VALUE_IN_KEY, 0, 780},
    {"documents, values in keys", 30, 300, 7, 1, 576, 512, DOCUMENTS, LAST, VALUE_IN_KEY, 0, 70},
    {"window, NaN key", 150, 150, 4, 2, 32, 32, WINDOW, LAST, NAN_MIDDLE, 0, 30},
    {"window, NaN value", 150, 151, 3, 3, 32, 40, WINDOW, LAST, NAN_VALUE_MIDDLE, 0, 31},
    {"symmetric, NaN key", 211, 211, 3, 3, 64, 64, SYMMETRIC, LAST, NAN_MIDDLE, 0, 20},
    {"symmetric, NaN value", 211, 211, 3, 3, 64, 64, SYMMETRIC, LAST, NAN_VALUE_MIDDLE, 0, 20},
    {"symmetric, infinite key", 211, 211, 3, 3, 64, 64, SYMMETRIC, LAST, INF_KEY, 0, 6},
    {"symmetric, infinite value", 211, 211, 3, 3, 64, 64, SYMMETRIC, LAST, INF_VALUE, 0, 6},
    {"sinks, NaN key", 300, 300, 2, 1, 128, 128, SINKS, LAST, NAN_MIDDLE, 0, 60},
    {"sinks, NaN value", 300, 300, 2, 1, 128, 128, SINKS, LAST, NAN_VALUE_MIDDLE, 0, 60},
    {"window, NaN value of 192/128", 210, 210, 1, 1, 192, 128, WINDOW, LAST, NAN_VALUE_MIDDLE, 0,
     30},
    {"documents, NaN value", 211, 211, 2, 2, 64, 64, DOCUMENTS, LAST, NAN_VALUE_MIDDLE, 0, 25},
    {"documents of 1, NaN value", 51, 51, 3, 3, 32, 32, DOCUMENTS, LAST, NAN_VALUE_MIDDLE, 0, 1},
    {"window, ranges, NaN value", 200, 1500, 2, 1, 128, 128, WINDOW, LAST, NAN_VALUE_MIDDLE, 0,
     650},
    {"far, NaN value", 150, 150, 3, 3, 32, 32, FAR, LAST, NAN_VALUE_MIDDLE, 0, 40},
};
const int n_attention_case = sizeof attention_cases / sizeof *attention_cases;

const struct attention_format attention_formats[N_ATTENTION_FORMAT] = {
    {DTYPE_F32, DTYPE_F32},
    {DTYPE_F32, DTYPE_BF16},
    {DTYPE_BF16, DTYPE_BF16},
    {DTYPE_BF16, DTYPE_F32},
};

bool attention_case_is_wanted(const struct attention_case *c, struct attention_format format) {
    bool is_bf16 = format.query == DTYPE_BF16 && format.kv == DTYPE_BF16;
    return case_is_wanted(c->n_query * c->n_key * c->n_head * (c->head_dim + c->value_dim),
                          is_bf16);
}

static struct backend mirror;

int attention_device_open(void **state) {
    (void)state;
    return open_mirror(0, &mirror) == OK ? 0 : -1;
}

int attention_device_close(void **state) {
    (void)state;
    backend_close(&mirror);
    return 0;
}

int attention_first_form(void) {
    return tests_are_light() ? FORM_DEVICE : FORM_PLAIN;
}

struct backend attention_backend_open(enum backend_kind kind, enum isa isa, int n_thread) {
    struct backend_options options = {.kind = kind, .isa = isa, .n_thread = n_thread};
    struct backend backend;
    if (kind == BACKEND_CUDA) return mirror;
    if (backend_open(&options, &backend) != OK) fail_msg("%s", status_message());
    return backend;
}

struct backend attention_form_open(int form, int n_thread) {
    return attention_backend_open(form == FORM_DEVICE ? BACKEND_CUDA : BACKEND_CPU, (enum isa)form,
                                  n_thread);
}

void attention_backend_close(struct backend *backend) {
    if (backend->state != mirror.state) backend_close(backend);
}

static void fill_rows(enum dtype dtype, void *rows, int64_t n_row, int n_col, int64_t stride,
                      float scale, uint64_t seed) {
    for (int64_t row = 0; row < n_row; row++)
        for (int i = 0; i < n_col; i++) {
            float x = scale * random_normal(seed, (uint64_t)(row * n_col + i));
            dtype_from_float(dtype, &x, 1, (char *)rows + dtype_bytes(dtype, row * stride + i));
        }
}

static void *new_rows(enum dtype dtype, int64_t n_row, int n_col, int64_t stride, float scale,
                      uint64_t seed) {
    int64_t bytes = dtype_bytes(dtype, (n_row + 1) * stride);
    void *rows = test_alloc(bytes);
    poison(rows, bytes);
    fill_rows(dtype, rows, n_row, n_col, stride, scale, seed);
    return rows;
}

static void spoil(enum dtype dtype, void *rows, int64_t first, int64_t end, int n_col,
                  int64_t stride, float x) {
    for (int64_t row = first < 0 ? 0 : first; row < end; row++)
        for (int i = 0; i < n_col; i++)
            dtype_from_float(dtype, &x, 1, (char *)rows + dtype_bytes(dtype, row * stride + i));
}

static int64_t *new_positions(const struct attention_case *c, int64_t n, bool query) {
    int64_t *position = test_alloc((n + 1) * (int64_t)sizeof *position);
    for (int64_t i = 0; i < n; i++) {
        int64_t half = n / 2;
        switch (c->positions) {
        case LAST:
            position[i] = 1000 + (query ? c->n_key - c->n_query + i : i);
            break;
        case AFTER:
            position[i] = query ? 100000 + i : i;
            break;
        case BEFORE:
            position[i] = query ? i : 100000 + i;
            break;
        case APART:
            position[i] = query ? 1001 + 3 * (c->n_key - c->n_query) / 2 + 2 * i : 1000 + 3 * i;
            break;
        case SHARDS: // keys 0.. and 900.., queries 30.. and 905..
            if (query)
                position[i] = i < half ? 30 + 2 * i : 905 + 3 * (i - half);
            else
                position[i] = i < half ? i : 900 + (i - half);
            break;
        }
    }
    return position;
}

static void set_visibility(const struct attention_case *c, struct attention_args *a) {
    enum { ORIGIN = 1000 };
    if (c->visibility == FULL) return;
    int64_t *position = new_positions(c, c->n_query, true);
    int64_t *first = test_alloc((c->n_query + 1) * 8), *end = test_alloc((c->n_query + 1) * 8);
    for (int64_t i = 0; i < c->n_query; i++) {
        int64_t p = position[i], document = (p - ORIGIN) / (c->window + 1) * (c->window + 1);
        first[i] = c->visibility == DOCUMENTS   ? ORIGIN + document
                   : c->visibility == SYMMETRIC ? p - c->window
                                                : p - c->window + 1;
        end[i] = c->visibility == DOCUMENTS   ? first[i] + c->window + 1
                 : c->visibility == SYMMETRIC ? p + c->window + 1
                 : c->visibility == FAR       ? first[i]
                                              : p + 1;
    }
    free(position);
    a->end_visible = end;
    if (c->visibility == CAUSAL || c->visibility == FAR)
        free(first);
    else
        a->first_visible = first;
    if (c->visibility == SINKS && c->n_key > 0) a->sinks = a->key_position[0] + c->window / 4;
}

struct attention_args attention_arguments_open(const struct attention_case *c,
                                               enum dtype query_dtype, enum dtype kv_dtype) {
    struct attention_args a = {.n_query = c->n_query,
                               .n_key = c->n_key,
                               .n_head = c->n_head,
                               .n_kv_head = c->n_kv_head,
                               .head_dim = c->head_dim,
                               .value_dim = c->value_dim,
                               .scale = 1 / sqrtf((float)c->head_dim),
                               .query_dtype = query_dtype,
                               .kv_dtype = kv_dtype};
    int n_query_col = c->n_head * c->head_dim, n_key_col = c->n_kv_head * c->head_dim;
    int n_value_col = c->n_kv_head * c->value_dim;
    a.query_stride = n_query_col + c->gap;
    a.key_stride = n_key_col + c->gap;
    a.value_stride = n_value_col + 2 * c->gap;
    float grow = c->content == LARGE ? 1e3f : c->content == HUGE_SCORE ? 1e15f : 1;
    float key_scale = c->content == EQUAL ? 0 : grow;
    a.query = new_rows(query_dtype, c->n_query, n_query_col, a.query_stride, grow, 1);
    void *key = new_rows(kv_dtype, c->n_key, n_key_col, a.key_stride, key_scale, 2);
    void *value = new_rows(kv_dtype, c->n_key, n_value_col, a.value_stride, 1, 3);
    if (c->content == VALUE_IN_KEY || c->content == NAN_VALUE_IN_KEY) {
        free(value);
        value = key;
        a.value_stride = a.key_stride;
    }
    int64_t n = c->n_key;
    if (c->content == NAN_KEY || c->content == NAN_VALUE_IN_KEY)
        spoil(kv_dtype, key, n - 3, n, n_key_col, a.key_stride, NAN);
    if (c->content == NAN_MIDDLE)
        spoil(kv_dtype, key, n / 2 - 1, n / 2 + 2, n_key_col, a.key_stride, NAN);
    if (c->content == NAN_VALUE_MIDDLE)
        spoil(kv_dtype, value, n / 2 - 1, n / 2 + 2, n_value_col, a.value_stride, NAN);
    if (c->content == NAN_VALUE) spoil(kv_dtype, value, n - 3, n, n_value_col, a.value_stride, NAN);
    if (c->content == INF_KEY) spoil(kv_dtype, key, n - 9, n - 8, 1, a.key_stride, INFINITY);
    if (c->content == INF_VALUE) spoil(kv_dtype, value, n - 9, n - 8, 5, a.value_stride, INFINITY);
    a.key = key;
    a.value = value;
    a.key_position = new_positions(c, c->n_key, false);
    set_visibility(c, &a);
    int64_t n_row = c->n_query * c->n_head;
    a.out = test_alloc((n_row * c->value_dim + 1) * 4);
    a.lse = test_alloc((n_row + 1) * 4);
    return a;
}

void attention_arguments_close(struct attention_args *a) {
    free((void *)a->query);
    free((void *)a->key);
    if (a->value != a->key) free((void *)a->value);
    free((void *)a->first_visible);
    free((void *)a->end_visible);
    free((void *)a->key_position);
    free(a->out);
    free(a->lse);
}

void attention_attend(struct backend *backend, const struct attention_args *a) {
    int64_t n_row = a->n_query * a->n_head;
    poison(a->out, (n_row * a->value_dim + 1) * 4);
    poison(a->lse, (n_row + 1) * 4);
    if (backend->ops->attention(backend, a) != OK) fail_msg("%s", status_message());
    uint32_t guard[2];
    memcpy(&guard[0], &a->out[n_row * a->value_dim], 4);
    memcpy(&guard[1], &a->lse[n_row], 4);
    assert_int_equal(guard[0], 0xffffffffu);
    assert_int_equal(guard[1], 0xffffffffu);
}

void attention_assert_close(const char *what, const float *got, const float *expected, int64_t n,
                            struct tolerance tolerance) {
    float *a = test_alloc(n * 4 + 4), *b = test_alloc(n * 4 + 4);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &got[i], 4);
        if (bits == 0xffffffffu) fail_msg("%s: element %lld was not written", what, (long long)i);
        if (isnan(got[i]) != isnan(expected[i]))
            fail_msg("%s: element %lld is %g, expected %g", what, (long long)i, (double)got[i],
                     (double)expected[i]);
        a[i] = isnan(got[i]) ? 0 : got[i];
        b[i] = isnan(got[i]) ? 0 : expected[i];
    }
    char message[160];
    if (!is_close(DTYPE_F32, a, b, n, tolerance, message, sizeof message))
        fail_msg("%s: %s", what, message);
    free(a);
    free(b);
}

static struct tolerance out_tolerance(int form, enum dtype query_dtype) {
    return form >= ISA_AVX512_BF16 && query_dtype == DTYPE_BF16 ? TOLERANCE_BF16_WEIGHT
                                                                : TOLERANCE_F32;
}

void attention_check_case(struct backend *reference, const struct attention_case *c,
                          struct attention_format format) {
    struct attention_args a = attention_arguments_open(c, format.query, format.kv);
    int64_t n_row = a.n_query * a.n_head, n_out = n_row * a.value_dim;
    attention_attend(reference, &a);
    float *expected = a.out, *expected_lse = a.lse;
    a.out = test_alloc((n_out + 1) * 4);
    a.lse = test_alloc((n_row + 1) * 4);
    float *first_out = test_alloc(n_out * 4 + 4);
    for (int form = attention_first_form(); form <= FORM_DEVICE; form++) {
        char what[200];
        snprintf(what, sizeof what, "%s, query %s, K/V %s, form %d", c->name,
                 dtype_info[format.query].name, dtype_info[format.kv].name, form);
        int most_threads = form == FORM_DEVICE && tests_are_light() ? 1 : 3;
        for (int n_thread = 1; n_thread <= most_threads; n_thread += 2) {
            struct backend backend = attention_form_open(form, n_thread);
            attention_attend(&backend, &a);
            attention_backend_close(&backend);
            attention_assert_close(what, a.out, expected, n_out, out_tolerance(form, format.query));
            attention_assert_close(what, a.lse, expected_lse, n_row, TOLERANCE_F32);
            // The number of threads changes no bit.
            if (n_thread > 1 && memcmp(first_out, a.out, (size_t)n_out * 4) != 0)
                fail_msg("%s: 1 and %d threads differ", what, n_thread);
            memcpy(first_out, a.out, (size_t)n_out * 4);
        }
    }
    free(first_out);
    free(expected);
    free(expected_lse);
    attention_arguments_close(&a);
}
