#include "dist/expert_exchange.h"

#include <stdlib.h>

#include "kernels/experts.h"

struct expert_room {
    // Backend memory, owned as one allocation. Rows leave from `away` and products arrive there;
    // rows arrive in `here` and products leave from there.
    void *memory;
    char *away;        // [max_tokens * n_used, widest row]
    char *here;        // [most rows received, widest row]
    char *grouped;     // [most rows received, row_bytes]
    int64_t *index;    // [most rows]: which row a copy takes
    int32_t *pair_row; // [max_tokens, n_used]
    // Host tables, owned as one allocation.
    void *host;
    int32_t *host_expert;                 // [max_tokens, n_used], then the place of each pair
    int64_t *host_index;                  // [most rows]
    int64_t *sent;                        // [n_expert] rows for each expert
    int64_t *received;                    // [size, owned] rows from each rank for each owned expert
    int64_t *at;                          // [n_expert + size * owned] cursors
    int64_t *sent_bytes, *received_bytes; // [size]
    int64_t n_token, n_sent, n_received;
};

struct limits {
    int owned;              // experts of one rank
    int64_t sent, received; // rows of one rank
    int64_t widest;         // bytes of a row or a product
};

static struct limits limits_of(const struct expert_exchange_shape *s, int size) {
    struct limits l = {.owned = (int)partition_piece(s->n_expert, size, 0).length};
    int most = s->n_used < l.owned ? s->n_used : l.owned; // pairs of a token at one owner
    l.sent = s->max_tokens * s->n_used;
    l.received = size * s->max_tokens * most;
    l.widest = s->n_col * (int64_t)sizeof(float);
    if (s->row_bytes > l.widest) l.widest = s->row_bytes;
    return l;
}

struct cursor {
    char *base;
    int64_t used;
};

static void *take(struct cursor *c, int64_t bytes) {
    void *at = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return at;
}

static int64_t carve_memory(const struct expert_exchange_shape *s, int size, void *memory,
                            struct expert_room *r) {
    struct limits l = limits_of(s, size);
    struct cursor c = {.base = memory};
    int64_t rows = l.sent > l.received ? l.sent : l.received;
    r->away = take(&c, l.sent * l.widest);
    r->here = take(&c, l.received * l.widest);
    r->grouped = take(&c, l.received * s->row_bytes);
    r->index = take(&c, rows * (int64_t)sizeof *r->index);
    r->pair_row = take(&c, l.sent * (int64_t)sizeof *r->pair_row);
    return c.used;
}

static int64_t carve_host(const struct expert_exchange_shape *s, int size, void *host,
                          struct expert_room *r) {
    struct limits l = limits_of(s, size);
    struct cursor c = {.base = host};
    int64_t rows = l.sent > l.received ? l.sent : l.received, word = sizeof(int64_t);
    r->host_expert = take(&c, l.sent * (int64_t)sizeof *r->host_expert);
    r->host_index = take(&c, rows * word);
    r->sent = take(&c, s->n_expert * word);
    r->received = take(&c, (int64_t)size * l.owned * word);
    r->at = take(&c, (s->n_expert + (int64_t)size * l.owned) * word);
    r->sent_bytes = take(&c, size * word);
    r->received_bytes = take(&c, size * word);
    return c.used;
}

int64_t expert_exchange_bytes(const struct expert_exchange_shape *shape, int size) {
    struct expert_room room;
    return carve_memory(shape, size, NULL, &room) + carve_host(shape, size, NULL, &room);
}

enum status expert_exchange_open(struct expert_exchange *out, struct backend *backend,
                                 struct comm *comm, struct profile *profile,
                                 const struct expert_exchange_shape *shape) {
    enum status status = OK;
    *out = (struct expert_exchange){
        .backend = backend, .comm = comm, .profile = profile, .shape = *shape};
    struct expert_room *r = out->room = calloc(1, sizeof *r);
    int owned = limits_of(shape, comm->size).owned;
    out->first_row = calloc((size_t)owned + 1, sizeof *out->first_row);
    if (!r || !out->first_row) FAIL_OR(failed, ERR_MEMORY, "no memory for the experts' tables");
    r->host = malloc((size_t)carve_host(shape, comm->size, NULL, r));
    if (!r->host) FAIL_OR(failed, ERR_MEMORY, "no memory for the experts' tables");
    carve_host(shape, comm->size, r->host, r);
    int64_t bytes = carve_memory(shape, comm->size, NULL, r);
    TRY_OR(failed, backend->ops->alloc(backend, bytes, &r->memory));
    carve_memory(shape, comm->size, r->memory, r);
    return OK;
failed:
    expert_exchange_close(out);
    return status;
}

void expert_exchange_close(struct expert_exchange *exchange) {
    struct expert_room *r = exchange->room;
    if (r) {
        if (r->memory) exchange->backend->ops->free(exchange->backend, r->memory);
        free(r->host);
    }
    free(exchange->first_row);
    free(r);
    *exchange = (struct expert_exchange){0};
}

static struct span owned_by(const struct expert_exchange *x, int rank) {
    return partition_piece(x->shape.n_expert, x->comm->size, rank);
}

// out[i] = rows[index[i]], rows of `bytes` bytes; the table is host_index.
static enum status copy_rows(struct expert_exchange *x, const void *rows, int64_t bytes,
                             int64_t n_row, void *out) {
    struct expert_room *r = x->room;
    const struct kernel_ops *ops = x->backend->ops;
    int64_t n_col = bytes / (int64_t)sizeof(float);
    double begun = profile_begin(x->profile, PHASE_OTHER);
    if (n_row == 0) return OK;
    TRY(ops->upload(x->backend, r->index, r->host_index, n_row * (int64_t)sizeof *r->index));
    TRY(ops->convert(x->backend, &(struct convert_args){.x = rows,
                                                        .x_dtype = DTYPE_F32,
                                                        .x_stride = n_col,
                                                        .row = r->index,
                                                        .n_row = n_row,
                                                        .n_col = n_col,
                                                        .out = out,
                                                        .out_dtype = DTYPE_F32,
                                                        .out_stride = n_col}));
    profile_end(x->profile, PHASE_OTHER, begun);
    return OK;
}

static enum status all_to_all(struct expert_exchange *x, struct comm *comm, const void *send,
                              const int64_t *send_bytes, void *receive,
                              const int64_t *receive_bytes) {
    double begun = profile_begin(x->profile, PHASE_RING_WAIT);
    TRY(comm->ops->all_to_all(comm, send, send_bytes, receive, receive_bytes));
    profile_end(x->profile, PHASE_RING_WAIT, begun);
    return OK;
}

// Counts the pairs of each expert and gives each its place in `away`: by expert, then token.
static enum status place_pairs(struct expert_exchange *x, const int32_t *expert, int64_t n_token) {
    struct expert_room *r = x->room;
    const struct kernel_ops *ops = x->backend->ops;
    int n_expert = x->shape.n_expert;
    int64_t n_pair = n_token * x->shape.n_used, place = 0;
    TRY(ops->download(x->backend, r->host_expert, expert, n_pair * (int64_t)sizeof *expert));
    TRY(ops->sync(x->backend));
    for (int e = 0; e < n_expert; e++) r->sent[e] = 0;
    for (int64_t i = 0; i < n_pair; i++) {
        if (r->host_expert[i] < 0 || r->host_expert[i] >= n_expert)
            FAIL(ERR_INTERNAL, "a token is sent to expert %d of %d", r->host_expert[i], n_expert);
        r->sent[r->host_expert[i]]++;
    }
    for (int e = 0; e < n_expert; e++) {
        r->at[e] = place;
        place += r->sent[e];
    }
    for (int64_t i = 0; i < n_pair; i++) {
        int64_t at = r->at[r->host_expert[i]]++;
        r->host_index[at] = i / x->shape.n_used;
        r->host_expert[i] = (int32_t)at;
    }
    r->n_token = n_token;
    r->n_sent = n_pair;
    return ops->upload(x->backend, r->pair_row, r->host_expert, n_pair * (int64_t)sizeof *expert);
}

// How many rows each rank sends for each expert owned here.
static enum status exchange_counts(struct expert_exchange *x) {
    struct expert_room *r = x->room;
    struct comm *host = comm_host(x->comm);
    int64_t own = owned_by(x, x->comm->rank).length, word = sizeof(int64_t);
    for (int rank = 0; rank < x->comm->size; rank++) {
        r->sent_bytes[rank] = owned_by(x, rank).length * word;
        r->received_bytes[rank] = own * word;
    }
    return all_to_all(x, host, r->sent, r->sent_bytes, r->received, r->received_bytes);
}

// Bytes for and from each rank, rows or products of `bytes` bytes each.
static void count_bytes(struct expert_exchange *x, int64_t bytes) {
    struct expert_room *r = x->room;
    int64_t own = owned_by(x, x->comm->rank).length;
    for (int rank = 0; rank < x->comm->size; rank++) {
        struct span theirs = owned_by(x, rank);
        r->sent_bytes[rank] = r->received_bytes[rank] = 0;
        for (int64_t e = 0; e < theirs.length; e++)
            r->sent_bytes[rank] += r->sent[theirs.start + e] * bytes;
        for (int64_t e = 0; e < own; e++)
            r->received_bytes[rank] += r->received[rank * own + e] * bytes;
    }
}

// Where the block of (rank, expert) begins in `here` (by rank, then expert) into at[], and where
// each expert's group begins into first_row.
static void place_groups(struct expert_exchange *x) {
    struct expert_room *r = x->room;
    int64_t own = owned_by(x, x->comm->rank).length, place = 0;
    for (int64_t i = 0; i < x->comm->size * own; i++) {
        r->at[i] = place;
        place += r->received[i];
    }
    r->n_received = place;
    x->rows_received += place;
    place = 0;
    for (int64_t e = 0; e < own; e++) {
        x->first_row[e] = place;
        for (int rank = 0; rank < x->comm->size; rank++) place += r->received[rank * own + e];
    }
    x->first_row[own] = place;
}

// host_index: for each grouped row its place in `here`; inverse: the other way round.
static void list_groups(struct expert_exchange *x, bool inverse) {
    struct expert_room *r = x->room;
    int64_t own = owned_by(x, x->comm->rank).length, row = 0;
    for (int64_t e = 0; e < own; e++)
        for (int rank = 0; rank < x->comm->size; rank++)
            for (int64_t i = 0; i < r->received[rank * own + e]; i++, row++) {
                int64_t place = r->at[rank * own + e] + i;
                r->host_index[inverse ? place : row] = inverse ? row : place;
            }
}

enum status expert_exchange_dispatch(struct expert_exchange *exchange, const void *rows,
                                     const int32_t *expert, int64_t n_token, const void **out) {
    struct expert_room *r = exchange->room;
    TRY(place_pairs(exchange, expert, n_token));
    TRY(copy_rows(exchange, rows, exchange->shape.row_bytes, r->n_sent, r->away));
    if (exchange->comm->size == 1) {
        for (int e = 0; e < exchange->shape.n_expert; e++) r->received[e] = r->sent[e];
        place_groups(exchange);
        *out = r->away;
        return OK;
    }
    TRY(exchange_counts(exchange));
    place_groups(exchange);
    count_bytes(exchange, exchange->shape.row_bytes);
    TRY(all_to_all(exchange, exchange->comm, r->away, r->sent_bytes, r->here, r->received_bytes));
    list_groups(exchange, false);
    TRY(copy_rows(exchange, r->here, exchange->shape.row_bytes, r->n_received, r->grouped));
    *out = r->grouped;
    return OK;
}

enum status expert_exchange_combine(struct expert_exchange *exchange, const float *product,
                                    const float *weight, float *out) {
    struct expert_room *r = exchange->room;
    int64_t bytes = exchange->shape.n_col * (int64_t)sizeof(float);
    const float *home = product;
    if (exchange->comm->size > 1) {
        list_groups(exchange, true);
        TRY(copy_rows(exchange, product, bytes, r->n_received, r->here));
        count_bytes(exchange, bytes);
        TRY(all_to_all(exchange, exchange->comm, r->here, r->received_bytes, r->away,
                       r->sent_bytes));
        home = (const float *)(const void *)r->away;
    }
    double begun = profile_begin(exchange->profile, PHASE_OTHER);
    TRY(exchange->backend->ops->expert_combine(
        exchange->backend, &(struct expert_combine_args){.n_token = r->n_token,
                                                         .n_used = exchange->shape.n_used,
                                                         .n_col = exchange->shape.n_col,
                                                         .x = home,
                                                         .row = r->pair_row,
                                                         .weight = weight,
                                                         .out = out}));
    profile_end(exchange->profile, PHASE_OTHER, begun);
    return OK;
}
