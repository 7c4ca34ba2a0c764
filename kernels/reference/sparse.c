#include "kernels/sparse.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/fp8.h"
#include "kernels/reference/reference.h"

enum status reference_quantize(struct backend *backend, const struct quantize_args *args) {
    (void)backend;
    int n_block = args->n_col / args->block;
    for (int64_t i = 0; i < args->n_row * n_block; i++) {
        args->scale[i] = fp8_quantize_block(args->x + i * args->block, args->block,
                                            args->power_of_two, args->out + i * args->block);
    }
    return OK;
}

// query [n_head, head_dim] and key [head_dim] as fp32
static float index_score(const struct index_args *args, int64_t t, int64_t s, const float *query,
                         const float *key) {
    float score = 0;
    for (int h = 0; h < args->n_head; h++, query += args->head_dim) {
        float dot = 0;
        for (int d = 0; d < args->head_dim; d++) dot += query[d] * key[d];
        score += args->weight[t * args->n_head + h] * (dot < 0 ? 0 : dot); // NaN stays NaN
    }
    return args->key_scale ? args->key_scale[s] * score : score;
}

static int best_first(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

// Every visible key of query t in `all`, behind the n candidates that it holds already.
static enum status score_keys(const struct index_args *args, int64_t t, const float *query,
                              const float *key, uint64_t *all, int64_t *n) {
    for (int64_t s = 0; s < args->n_key; s++) {
        int64_t position = key_run_position(args->run, args->n_run, s);
        if (position > args->query_position[t]) break;
        float score = index_score(args, t, s, query, key + s * args->head_dim);
        if (isnan(score))
            FAIL(ERR_INPUT, "the indexer's score of query %lld on token %lld is not a number",
                 (long long)args->query_position[t], (long long)position);
        all[(*n)++] = candidate_make(score, position);
    }
    return OK;
}

enum status reference_index_top_k(struct backend *backend, const struct index_args *args) {
    (void)backend;
    int64_t n_query_col = (int64_t)args->n_head * args->head_dim;
    int64_t n_key_element = args->n_key * args->head_dim;
    uint64_t *all = malloc(((size_t)args->k + (size_t)args->n_key) * sizeof *all);
    float *key = malloc((size_t)(n_key_element + n_query_col) * sizeof *key);
    enum status status = OK;
    if (!all || !key)
        FAIL_OR(done, ERR_MEMORY, "no memory for %lld index keys", (long long)args->n_key);
    float *query = key + n_key_element;
    dtype_to_float(args->dtype, args->key, n_key_element, key);
    for (int64_t t = 0; t < args->n_query; t++) {
        uint64_t *kept = args->candidate + t * args->k;
        int64_t n = args->n_candidate[t];
        memcpy(all, kept, (size_t)n * sizeof *all);
        dtype_to_float(args->dtype,
                       (const char *)args->query + dtype_bytes(args->dtype, t * n_query_col),
                       n_query_col, query);
        TRY_OR(done, score_keys(args, t, query, key, all, &n));
        qsort(all, (size_t)n, sizeof *all, best_first);
        if (n > args->k) n = args->k;
        memcpy(kept, all, (size_t)n * sizeof *all);
        args->n_candidate[t] = (int32_t)n;
    }
done:
    free(key);
    free(all);
    return status;
}

enum status reference_index_merge(struct backend *backend, const struct index_merge_args *args) {
    (void)backend;
    uint64_t *all = malloc(2 * (size_t)args->k * sizeof *all);
    if (!all) FAIL(ERR_MEMORY, "no memory for %d candidates", 2 * args->k);
    for (int64_t t = 0; t < args->n_query; t++) {
        uint64_t *kept = args->candidate + t * args->k;
        int32_t n = args->merge ? args->n_candidate[t] : 0;
        for (int list = 0; list < args->n_list; list++) {
            int64_t row = list * args->n_query + t;
            memcpy(all, kept, (size_t)n * sizeof *all);
            memcpy(all + n, args->other + row * args->k, (size_t)args->n_other[row] * sizeof *all);
            n += args->n_other[row];
            qsort(all, (size_t)n, sizeof *all, best_first);
            if (n > args->k) n = args->k;
            memcpy(kept, all, (size_t)n * sizeof *all);
        }
        args->n_candidate[t] = n;
        if (!args->threshold) continue;
        args->threshold[t] = n < args->k ? 0 : UINT64_MAX;
        for (int32_t i = 0; i < n; i++)
            if (kept[i] < args->threshold[t]) args->threshold[t] = kept[i];
    }
    free(all);
    return OK;
}

enum status reference_index_filter(struct backend *backend, const struct index_filter_args *args) {
    (void)backend;
    for (int64_t t = 0; t < args->n_query; t++) {
        uint64_t *kept = args->candidate + t * args->k;
        int32_t n = 0;
        for (int32_t i = 0; i < args->n_candidate[t]; i++)
            if (kept[i] >= args->threshold[t]) kept[n++] = kept[i];
        args->n_candidate[t] = n;
    }
    return OK;
}

static int64_t row_of(const struct select_rows_args *args, int64_t position) {
    for (int i = 0; i < args->n_run; i++) {
        const struct key_run *run = &args->run[i];
        int64_t offset = position - run->start;
        if (offset >= 0 && offset % run->stride == 0 && offset / run->stride < run->count)
            return run->first_row + offset / run->stride;
    }
    return -1;
}

static int ascending(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

enum status reference_select_rows(struct backend *backend, const struct select_rows_args *args) {
    (void)backend;
    for (int64_t t = 0; t < args->n_query; t++) {
        int32_t *row = args->row + t * args->k, n = 0;
        for (int32_t i = 0; i < args->n_candidate[t]; i++) {
            int64_t at = row_of(args, candidate_position(args->candidate[t * args->k + i]));
            if (at >= 0) row[n++] = (int32_t)at;
        }
        qsort(row, (size_t)n, sizeof *row, ascending);
        args->n_selected[t] = n;
    }
    return OK;
}

// The selected rows, copied side by side, are attended like any block of keys.
enum status reference_sparse_attention(struct backend *backend,
                                       const struct sparse_attention_args *args) {
    struct attention_args one = args->attention;
    int64_t key_width = (int64_t)one.n_kv_head * one.head_dim;
    int64_t value_width = (int64_t)one.n_kv_head * one.value_dim;
    int64_t size = dtype_bytes(one.kv_dtype, 1), k = args->k;
    char *key = malloc((size_t)(k * (key_width + value_width) * size) + 1);
    if (!key) FAIL(ERR_MEMORY, "no memory for %lld selected keys", (long long)k);
    char *value = key + k * key_width * size;
    enum status status = OK;
    one.n_query = 1;
    one.first_visible = one.end_visible = NULL;
    one.key = key;
    one.value = value;
    one.key_stride = key_width;
    one.value_stride = value_width;
    for (int64_t t = 0; t < args->attention.n_query && status == OK; t++) {
        const struct attention_args *all = &args->attention;
        one.n_key = args->n_selected[t];
        for (int64_t i = 0; i < one.n_key; i++) {
            int64_t row = args->row[t * k + i];
            memcpy(key + i * key_width * size,
                   (const char *)all->key + row * all->key_stride * size,
                   (size_t)(key_width * size));
            memcpy(value + i * value_width * size,
                   (const char *)all->value + row * all->value_stride * size,
                   (size_t)(value_width * size));
        }
        one.query = (const char *)all->query + dtype_bytes(all->query_dtype, t * all->query_stride);
        one.out = all->out + t * all->n_head * all->value_dim;
        one.lse = all->lse + t * all->n_head;
        status = reference_attention(backend, &one);
    }
    free(key);
    return status;
}
