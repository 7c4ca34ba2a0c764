// Layers that do not keep every token. With S sinks, window W and F tokens that may be forgotten at
// once, a layer of a window holds the rows [0, S) and, behind them, [begin, length) in order:
//     kept   | sinks | begin ............ length |  room  |
//     block  | sinks | what the chunk sees | chunk |          one for all layers, in store->room
// Every rank drops at the same position, whatever it owns of it: begin moves to length - W + 1 - F
// when the positions from begin on are more than there is room for. Decode writes in place.
#include "model/kv_store.h"

// Moving the rows together costs the more the longer the window: often enough for a quarter of it.
int64_t kv_window_positions(const struct layer_spec *layer, int64_t max_forget) {
    int64_t seen = layer->window + max_forget;
    return seen + seen / 4 + 16;
}

static int64_t count(const struct kv_chunk *c, int64_t begin, int64_t end) {
    return begin < end ? sequence_count(c->sequence, c->rank, begin, end) : 0;
}

// Rows of positions before `position` in a block of [begin, ..) and the sinks.
static int64_t rows_before(const struct kv_chunk *c, int64_t sinks, int64_t begin,
                           int64_t position) {
    if (begin == 0) return count(c, 0, position);
    return count(c, 0, sinks) + count(c, begin, position);
}

// The first position that is held where those before `position` can be dropped.
static int64_t drop_before(int64_t position, const struct layer_spec *l, int64_t begin) {
    if (position <= l->sinks) position = 0;
    return position > begin ? position : begin;
}

static enum status copy_rows(struct kv_store *store, int layer, char *to_key, char *to_value,
                             int64_t to, const char *key, const char *value, int64_t from,
                             int64_t n) {
    const struct layer_spec *l = &store->spec->layers[layer];
    const struct kernel_ops *ops = store->backend->ops;
    int64_t row = dtype_bytes(store->shape.dtype, (int64_t)l->n_kv_head * l->head_dim);
    if (n <= 0) return OK;
    TRY(ops->copy(store->backend, to_key + to * row, key + from * row, n * row));
    if (!to_value) return OK;
    return ops->copy(store->backend, to_value + to * row, value + from * row, n * row);
}

static enum status from_layer(struct kv_store *store, int layer, int64_t from, int64_t n,
                              int64_t to) {
    const struct kv_layer *l = &store->layers[layer];
    return copy_rows(store, layer, store->room_key, store->room_value, to, l->key, l->value, from,
                     n);
}

static enum status to_layer(struct kv_store *store, int layer, int64_t from, int64_t n,
                            int64_t to) {
    const struct kv_layer *l = &store->layers[layer];
    return copy_rows(store, layer, l->key, l->value, to, store->room_key, store->room_value, from,
                     n);
}

// Moves the rows of positions from `begin` on to the front, behind the sinks.
static enum status drop_rows(struct kv_store *store, int layer, int64_t begin) {
    const struct kv_chunk *c = &store->chunk;
    struct kv_layer *l = &store->layers[layer];
    int64_t sinks = store->spec->layers[layer].sinks, to = count(c, 0, sinks);
    int64_t from = rows_before(c, sinks, l->begin, begin), n = count(c, begin, c->begin);
    l->begin = begin;
    if (from == to) return OK;
    TRY(from_layer(store, layer, from, n, 0));
    return to_layer(store, layer, 0, n, to);
}

static enum status begin_window(struct kv_store *store, int layer) {
    const struct kv_chunk *c = &store->chunk;
    const struct layer_spec *spec = &store->spec->layers[layer];
    struct kv_layer *l = &store->layers[layer];
    int64_t forget = store->shape.max_forget, sinks = spec->sinks;
    bool fits = c->end - l->begin <= kv_window_positions(spec, forget);
    if (c->in_place) { // the token may also not come: what is before it must be forgettable
        int64_t begin = drop_before(c->begin - spec->window + 1 - forget, spec, l->begin);
        if (!fits && begin > l->begin) TRY(drop_rows(store, layer, begin));
        l->block = (struct kv_block){
            l->key, l->value, l->begin, rows_before(c, sinks, l->begin, c->begin), l->begin, NULL};
        return OK;
    }
    int64_t kept = drop_before(c->end - spec->window + 1 - forget, spec, l->begin);
    int64_t seen = drop_before(c->begin - spec->window + 1, spec, l->begin);
    if (fits) kept = l->begin;
    if (!fits && kept < seen) seen = kept; // both come from the block
    l->block = (struct kv_block){store->room_key,
                                 store->room_value,
                                 seen,
                                 rows_before(c, sinks, seen, c->begin),
                                 kept,
                                 NULL};
    return OK;
}

// Rows are counted once for all layers of a window. The first layer before this one that sees and
// holds what it does has its block; NULL: none.
static const struct kv_block *same_block(const struct kv_store *store, int layer) {
    const struct kv_layer *l = &store->layers[layer];
    const struct layer_spec *spec = store->spec->layers;
    for (int i = 0; i < layer; i++)
        if (store->layers[i].keep == KEEP_WINDOW && store->layers[i].begin == l->begin &&
            spec[i].window == spec[layer].window && spec[i].sinks == spec[layer].sinks)
            return &store->layers[i].block;
    return NULL;
}

enum status kv_store_begin(struct kv_store *store, const struct kv_chunk *chunk) {
    store->chunk = *chunk;
    int64_t n_before = count(chunk, 0, chunk->begin);
    for (int i = 0; i < store->n_layer; i++) {
        struct kv_layer *l = &store->layers[i];
        const struct kv_block *same = l->keep == KEEP_WINDOW ? same_block(store, i) : NULL;
        if (same) {
            l->block = *same;
            if (chunk->in_place) l->block.key = l->key, l->block.value = l->value;
        } else if (l->keep == KEEP_WINDOW) {
            TRY(begin_window(store, i));
        } else if (l->keep == KEEP_ALL) {
            l->block = (struct kv_block){l->key, l->value, 0, n_before, 0, l->other_key};
        } else {
            l->block = (struct kv_block){store->room_key,      store->room_value, 0, 0, 0,
                                         store->room_other_key};
        }
    }
    return OK;
}

enum status kv_store_enter(struct kv_store *store, int layer) {
    const struct kv_chunk *c = &store->chunk;
    const struct kv_layer *l = &store->layers[layer];
    int64_t sinks = store->spec->layers[layer].sinks, begin = l->block.key_begin;
    if (l->keep != KEEP_WINDOW || c->in_place) return OK;
    int64_t front = begin == 0 ? 0 : count(c, 0, sinks);
    TRY(from_layer(store, layer, 0, front, 0));
    return from_layer(store, layer, rows_before(c, sinks, l->begin, begin), l->block.n_held - front,
                      front);
}

enum status kv_store_leave(struct kv_store *store, int layer) {
    const struct kv_chunk *c = &store->chunk;
    struct kv_layer *l = &store->layers[layer];
    int64_t sinks = store->spec->layers[layer].sinks, old = l->begin, kept = l->block.next_begin;
    if (l->keep != KEEP_WINDOW || c->in_place) return OK;
    if (kept == old) // what is held stays where it is
        return to_layer(store, layer, l->block.n_held, count(c, c->begin, c->end),
                        rows_before(c, sinks, old, c->begin));
    l->begin = kept;
    int64_t front = count(c, 0, sinks);
    if (old == 0) TRY(to_layer(store, layer, 0, front, 0));
    return to_layer(store, layer, rows_before(c, sinks, l->block.key_begin, kept),
                    count(c, kept, c->end), front);
}

int kv_store_seen(const struct kv_store *store, int layer, struct kv_run out[2]) {
    const struct kv_chunk *c = &store->chunk;
    const struct layer_spec *spec = &store->spec->layers[layer];
    int64_t held = store->layers[layer].begin, sinks = spec->sinks;
    int64_t begin = spec->window ? drop_before(c->begin - spec->window + 1, spec, 0) : 0;
    out[0] = (struct kv_run){0, 0, begin ? count(c, 0, sinks) : count(c, 0, c->end)};
    out[1] = (struct kv_run){rows_before(c, sinks, held, begin), count(c, 0, begin),
                             count(c, begin, c->end)};
    return begin ? 2 : 1;
}

bool kv_store_holds(const struct kv_store *store, int64_t length) {
    for (int i = 0; length > 0 && i < store->n_layer; i++) {
        int64_t begin = kv_store_held_from(store, i);
        if (begin > 0 && length - store->spec->layers[i].window + 1 < begin) return false;
    }
    return true;
}

void kv_store_truncate(struct kv_store *store, int64_t length) {
    for (int i = 0; length == 0 && i < store->n_layer; i++)
        store->layers[i].begin = store->layers[i].lost = 0;
}

int64_t kv_store_held_from(const struct kv_store *store, int layer) {
    const struct kv_layer *l = &store->layers[layer];
    return l->begin > l->lost ? l->begin : l->lost;
}

void kv_store_adopt(struct kv_store *store, int layer, int64_t held, int64_t length) {
    const struct layer_spec *spec = &store->spec->layers[layer];
    struct kv_layer *l = &store->layers[layer];
    int64_t forget = store->shape.max_forget;
    bool window = l->keep == KEEP_WINDOW;
    l->lost = window ? 0 : held;
    l->begin = window ? held : 0;
    if (window && length - held > kv_window_positions(spec, forget))
        l->begin = drop_before(length - spec->window + 1 - forget, spec, held);
}

int kv_store_rows(const struct kv_store *store, int layer, const struct kv_chunk *slab,
                  int64_t held, struct kv_rows out[2]) {
    int64_t sinks = store->spec->layers[layer].sinks, begin = store->layers[layer].begin;
    int64_t end = slab->end, first = held ? sinks : end;
    struct kv_rows front = {.begin = slab->begin, .end = first < end ? first : end};
    struct kv_rows back = {.begin = held > slab->begin ? held : slab->begin, .end = end};
    int n = 0;
    front.row = count(slab, 0, front.begin);
    front.n = count(slab, front.begin, front.end);
    back.row = rows_before(slab, sinks, begin, back.begin);
    back.n = held ? count(slab, back.begin, back.end) : 0;
    if (front.n) out[n++] = front;
    if (back.n) out[n++] = back;
    return n;
}
