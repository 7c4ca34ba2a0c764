#include "launcher/pool.h"

#include <stdlib.h>
#include <string.h>

static int compare_rows(const void *a, const void *b) {
    const struct pool_row *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

enum status pool_open(enum pooling pooling, int64_t n_hidden, const struct span *spans,
                      int64_t n_row, struct pool *out) {
    *out = (struct pool){.pooling = pooling, .n_hidden = n_hidden, .n_row = n_row};
    if (pooling == POOLING_NONE) return OK;
    size_t n = (size_t)(n_row > 0 ? n_row : 1);
    out->rows = malloc(n * sizeof *out->rows);
    out->reach = malloc(n * sizeof *out->reach);
    out->length = malloc(n * sizeof *out->length);
    out->slot = malloc(n * sizeof *out->slot);
    if (!out->rows || !out->reach || !out->length || !out->slot)
        FAIL(ERR_MEMORY, "no memory for %lld passages", (long long)n_row);
    for (int64_t i = 0; i < n_row; i++) {
        int64_t begin = spans[i].start, last = begin + spans[i].length - 1;
        if (pooling == POOLING_LAST) begin = last;
        if (pooling == POOLING_CLS) last = begin;
        out->rows[i] = (struct pool_row){begin, last + 1, i};
        out->length[i] = last + 1 - begin;
        out->slot[i] = -1;
    }
    qsort(out->rows, (size_t)n_row, sizeof *out->rows, compare_rows);
    for (int64_t i = 0, reach = 0; i < n_row; i++) {
        if (out->rows[i].end > reach) reach = out->rows[i].end;
        out->reach[i] = reach;
    }
    return OK;
}

void pool_close(struct pool *pool) {
    free(pool->rows);
    free(pool->reach);
    free(pool->length);
    free(pool->slot);
    free(pool->sum);
    free(pool->token);
    free(pool->state);
    *pool = (struct pool){0};
}

// Room for n more slots; it never exceeds what the rows of the pool can need by more than half.
static enum status make_room(struct pool *pool, int64_t n) {
    if (pool->n_slot + n <= pool->capacity) return OK;
    int64_t capacity = pool->n_slot + n + pool->capacity / 2;
    size_t n_value = (size_t)(capacity * pool->n_hidden);
    void *values;
    if (pool->pooling == POOLING_NONE) {
        void *token = realloc(pool->token, (size_t)capacity * sizeof *pool->token);
        if (token) pool->token = token;
        values = realloc(pool->state, n_value * sizeof *pool->state);
        if (values) pool->state = values;
        if (!token) values = NULL;
    } else {
        values = realloc(pool->sum, n_value * sizeof *pool->sum);
        if (values) pool->sum = values;
    }
    if (!values)
        FAIL(ERR_MEMORY, "no memory for %lld vectors of %lld", (long long)capacity,
             (long long)pool->n_hidden);
    pool->capacity = capacity;
    return OK;
}

static enum status keep_states(struct pool *pool, const int64_t *position, int64_t n, int64_t shift,
                               const float *state) {
    TRY(make_room(pool, n));
    for (int64_t i = 0; i < n; i++) pool->token[pool->n_slot + i] = position[i] + shift;
    memcpy(pool->state + pool->n_slot * pool->n_hidden, state,
           (size_t)(n * pool->n_hidden) * sizeof *state);
    pool->n_slot += n;
    return OK;
}

static enum status find_sum(struct pool *pool, int64_t row, double **out) {
    if (pool->slot[row] < 0) {
        TRY(make_room(pool, 1));
        pool->slot[row] = pool->n_slot++;
        memset(pool->sum + pool->slot[row] * pool->n_hidden, 0,
               (size_t)pool->n_hidden * sizeof *pool->sum);
    }
    *out = pool->sum + pool->slot[row] * pool->n_hidden;
    return OK;
}

// The first of the sorted rows that reaches beyond `token`.
static int64_t first_row(const struct pool *pool, int64_t token) {
    int64_t from = 0, to = pool->n_row;
    while (from < to) {
        int64_t middle = from + (to - from) / 2;
        if (pool->reach[middle] <= token) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

enum status pool_add(struct pool *pool, const int64_t *position, int64_t n, int64_t shift,
                     const float *state) {
    if (n == 0) return OK;
    if (pool->pooling == POOLING_NONE) return keep_states(pool, position, n, shift, state);
    int64_t last = position[n - 1] + shift;
    for (int64_t r = first_row(pool, position[0] + shift); r < pool->n_row; r++) {
        const struct pool_row *row = &pool->rows[r];
        if (row->begin > last) break;
        for (int64_t i = 0; i < n; i++) {
            int64_t token = position[i] + shift;
            if (token < row->begin || token >= row->end) continue;
            double *sum;
            TRY(find_sum(pool, row->row, &sum));
            const float *x = state + i * pool->n_hidden;
            for (int64_t j = 0; j < pool->n_hidden; j++) sum[j] += x[j];
        }
    }
    return OK;
}

static enum status gather_sums(struct pool *pool, struct comm *comm, int64_t begin, int64_t n,
                               float *out) {
    int64_t width = pool->n_hidden;
    double *tile = calloc((size_t)(n * width), sizeof *tile);
    if (!tile) FAIL(ERR_MEMORY, "no memory for %lld vectors", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        int64_t slot = pool->slot[begin + i];
        if (slot >= 0)
            memcpy(tile + i * width, pool->sum + slot * width, (size_t)width * sizeof *tile);
    }
    enum status status = comm->ops->all_reduce(comm, tile, n * width, REDUCE_SUM_F64);
    for (int64_t i = 0; status == OK && comm->rank == 0 && i < n; i++)
        for (int64_t j = 0; j < width; j++)
            out[i * width + j] = (float)(tile[i * width + j] / (double)pool->length[begin + i]);
    free(tile);
    return status;
}

// Every rank sends the states of its tokens in [begin, begin + n), and rank 0 puts them in order.
static enum status gather_states(struct pool *pool, struct comm *comm, int64_t begin, int64_t n,
                                 float *out) {
    int64_t width = pool->n_hidden, own = 0, size = comm->size, first = pool->n_streamed;
    int64_t count[size], bytes[size], send[size], receive[size];
    while (first + own < pool->n_slot && pool->token[first + own] < begin + n) own++;
    pool->n_streamed += own;
    for (int r = 0; r < size; r++) bytes[r] = sizeof *count;
    TRY(comm->ops->all_gather(comm, &own, count, bytes));
    int64_t *token = malloc((size_t)n * sizeof *token);
    float *state = malloc((size_t)(n * width) * sizeof *state);
    enum status status = OK;
    if (!token || !state) FAIL_OR(done, ERR_MEMORY, "no memory for %lld states", (long long)n);
    const void *from[2] = {pool->token + first, pool->state + first * width};
    void *to[2] = {token, state};
    int64_t item_bytes[2] = {sizeof *token, width * (int64_t)sizeof *state};
    int64_t n_received = 0;
    for (int r = 0; r < size; r++) n_received += count[r];
    if (n_received != n)
        FAIL_OR(done, ERR_INTERNAL, "%lld states of %lld tokens", (long long)n_received,
                (long long)n);
    for (int part = 0; part < 2; part++) {
        for (int r = 0; r < size; r++) {
            send[r] = r == 0 ? own * item_bytes[part] : 0;
            receive[r] = comm->rank == 0 ? count[r] * item_bytes[part] : 0;
        }
        TRY_OR(done, comm->ops->all_to_all(comm, from[part], send, to[part], receive));
    }
    for (int64_t i = 0; comm->rank == 0 && i < n; i++)
        memcpy(out + (token[i] - begin) * width, state + i * width, (size_t)width * sizeof *out);
done:
    free(token);
    free(state);
    return status;
}

enum status pool_rows(struct pool *pool, struct comm *comm, int64_t begin, int64_t n, float *out) {
    if (pool->pooling == POOLING_NONE) return gather_states(pool, comm, begin, n, out);
    return gather_sums(pool, comm, begin, n, out);
}
