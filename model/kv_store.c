#include "model/kv_store.h"

#include <stdlib.h>

#include "dist/cluster.h"

struct row_bytes {
    int64_t key, other_key, value, index_key, index_scale;
};

static struct row_bytes row_bytes(const struct model_spec *spec, int layer,
                                  const struct kv_shape *shape) {
    const struct layer_spec *l = &spec->layers[layer];
    struct row_bytes bytes = {.key =
                                  dtype_bytes(shape->dtype, (int64_t)l->n_kv_head * l->head_dim)};
    if (l->attention == ATTENTION_FULL) bytes.value = bytes.key;
    if (spec->n_key_set == 2) bytes.other_key = bytes.key; // and no layer has a window
    if (!shape->indexed || l->index.layout != INDEX_FULL) return bytes;
    bytes.index_key = dtype_bytes(shape->index_dtype, l->index.head_dim);
    if (shape->index_dtype == DTYPE_F8_E4M3) bytes.index_scale = (int64_t)sizeof(float);
    return bytes;
}

// How a layer is kept and in how many rows. A rank may own all of a window.
static struct kv_layer kept(const struct model_spec *spec, int layer,
                            const struct kv_shape *shape) {
    const struct layer_spec *l = &spec->layers[layer];
    bool selects = shape->indexed && l->index.layout != INDEX_NONE;
    if (shape->at_once) return (struct kv_layer){.keep = KEEP_NOTHING};
    int64_t rows = l->sinks + kv_window_positions(l, shape->max_forget);
    if (l->window > 0 && !selects && rows < shape->capacity)
        return (struct kv_layer){.keep = KEEP_WINDOW, .capacity = rows};
    return (struct kv_layer){.keep = KEEP_ALL, .capacity = shape->capacity};
}

// Rows of the block that queries of a chunk attend.
static int64_t block_rows(const struct model_spec *spec, int layer, const struct kv_shape *shape) {
    const struct layer_spec *l = &spec->layers[layer];
    enum kv_keep keep = kept(spec, layer, shape).keep;
    int64_t held = keep == KEEP_WINDOW ? l->sinks + l->window + shape->max_forget : 0;
    bool all = keep == KEEP_ALL || held + shape->n_token > shape->capacity;
    return all ? shape->capacity : held + shape->n_token;
}

int64_t kv_store_bytes(const struct model_spec *spec, const struct kv_shape *shape) {
    int64_t bytes = 0;
    for (int i = 0; i < spec->n_layer; i++) {
        struct row_bytes row = row_bytes(spec, i, shape);
        bytes += kept(spec, i, shape).capacity *
                 (row.key + row.other_key + row.value + row.index_key + row.index_scale);
    }
    return bytes;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Of the largest block that comes to the room.
static struct row_bytes measure_room(const struct model_spec *spec, const struct kv_shape *shape) {
    struct row_bytes room = {0};
    for (int i = 0; i < spec->n_layer; i++) {
        if (kept(spec, i, shape).keep == KEEP_ALL) continue;
        struct row_bytes row = row_bytes(spec, i, shape);
        int64_t n = block_rows(spec, i, shape);
        room.key = larger(room.key, n * row.key);
        room.other_key = larger(room.other_key, n * row.other_key);
        room.value = larger(room.value, n * row.value);
    }
    return room;
}

int64_t kv_store_room_bytes(const struct model_spec *spec, const struct kv_shape *shape) {
    struct row_bytes room = measure_room(spec, shape);
    return room.key + room.other_key + room.value;
}

int64_t kv_store_block_rows(const struct model_spec *spec, const struct kv_shape *shape) {
    int64_t most = 0;
    for (int i = 0; i < spec->n_layer; i++) {
        int64_t n = block_rows(spec, i, shape);
        if (n > most) most = n;
    }
    return most;
}

static enum status alloc_bytes(struct kv_store *store, int64_t bytes, void *out) {
    return bytes ? store->backend->ops->alloc(store->backend, bytes, out) : OK;
}

static enum status open_layer(struct kv_store *store, int layer) {
    struct kv_layer *l = &store->layers[layer];
    struct row_bytes row = row_bytes(store->spec, layer, &store->shape);
    *l = kept(store->spec, layer, &store->shape);
    TRY(alloc_bytes(store, l->capacity * row.key, &l->key));
    TRY(alloc_bytes(store, l->capacity * row.other_key, &l->other_key));
    TRY(alloc_bytes(store, l->capacity * row.value, &l->value));
    TRY(alloc_bytes(store, l->capacity * row.index_key, &l->index_key));
    return alloc_bytes(store, l->capacity * row.index_scale, &l->index_scale);
}

enum status kv_store_open(const struct model_spec *spec, struct backend *backend,
                          const struct kv_shape *shape, struct kv_store *out) {
    *out = (struct kv_store){
        .backend = backend, .shape = *shape, .n_layer = spec->n_layer, .spec = spec};
    enum status status = OK;
    struct row_bytes room = measure_room(spec, shape);
    out->layers = calloc((size_t)spec->n_layer, sizeof *out->layers);
    if (!out->layers) {
        FAIL_OR(failed, ERR_MEMORY, "no memory for the K/V table of %d layers", spec->n_layer);
    }
    for (int i = 0; i < spec->n_layer; i++) TRY_OR(failed, open_layer(out, i));
    TRY_OR(failed, alloc_bytes(out, room.key, &out->room_key));
    TRY_OR(failed, alloc_bytes(out, room.other_key, &out->room_other_key));
    TRY_OR(failed, alloc_bytes(out, room.value, &out->room_value));
    return OK;
failed:
    kv_store_close(out);
    return status;
}

struct kv_resident kv_store_resident(const struct kv_store *store) {
    struct kv_resident out = {0, 0};
    struct row_bytes room = measure_room(store->spec, &store->shape);
    for (int i = 0; i < store->n_layer; i++) {
        const struct kv_layer *l = &store->layers[i];
        struct row_bytes row = row_bytes(store->spec, i, &store->shape);
        out.kept += cluster_resident_bytes(l->key, l->capacity * row.key) +
                    cluster_resident_bytes(l->other_key, l->capacity * row.other_key) +
                    cluster_resident_bytes(l->value, l->capacity * row.value) +
                    cluster_resident_bytes(l->index_key, l->capacity * row.index_key) +
                    cluster_resident_bytes(l->index_scale, l->capacity * row.index_scale);
    }
    out.room = cluster_resident_bytes(store->room_key, room.key) +
               cluster_resident_bytes(store->room_other_key, room.other_key) +
               cluster_resident_bytes(store->room_value, room.value);
    return out;
}

static void free_parts(struct kv_store *store, void *const *parts, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (parts[i]) store->backend->ops->free(store->backend, parts[i]);
    }
}

void kv_store_close(struct kv_store *store) {
    for (int i = 0; store->layers && i < store->n_layer; i++) {
        struct kv_layer *l = &store->layers[i];
        free_parts(store, (void *[]){l->key, l->other_key, l->value, l->index_key, l->index_scale},
                   5);
    }
    free_parts(store, (void *[]){store->room_key, store->room_other_key, store->room_value}, 3);
    free(store->layers);
    *store = (struct kv_store){0};
}

void *kv_store_key(const struct kv_store *store, int layer, int64_t row) {
    const struct kv_block *block = &store->layers[layer].block;
    return block->key + (block->n_held + row) * row_bytes(store->spec, layer, &store->shape).key;
}

void *kv_store_other_key(const struct kv_store *store, int layer, int64_t row) {
    const struct kv_block *block = &store->layers[layer].block;
    return block->other_key +
           (block->n_held + row) * row_bytes(store->spec, layer, &store->shape).other_key;
}

void *kv_store_value(const struct kv_store *store, int layer, int64_t row) {
    const struct kv_block *block = &store->layers[layer].block;
    return block->value +
           (block->n_held + row) * row_bytes(store->spec, layer, &store->shape).value;
}

void *kv_store_index_key(const struct kv_store *store, int layer, int64_t row) {
    const struct kv_layer *l = &store->layers[layer];
    return (char *)l->index_key +
           (l->block.n_held + row) * row_bytes(store->spec, layer, &store->shape).index_key;
}

float *kv_store_index_scale(const struct kv_store *store, int layer, int64_t row) {
    const struct kv_layer *l = &store->layers[layer];
    return l->index_scale ? l->index_scale + l->block.n_held + row : NULL;
}

int kv_store_parts(const struct kv_store *store, int layer, struct kv_part out[KV_MAX_PARTS]) {
    const struct kv_layer *l = &store->layers[layer];
    struct row_bytes row = row_bytes(store->spec, layer, &store->shape);
    const struct kv_part parts[KV_MAX_PARTS] = {
        {"key", l->key, row.key},
        {"other_key", l->other_key, row.other_key},
        {"value", l->value, row.value},
        {"index_key", l->index_key, row.index_key},
        {"index_scale", (char *)l->index_scale, row.index_scale},
    };
    int n = 0;
    for (int i = 0; i < KV_MAX_PARTS; i++)
        if (parts[i].bytes) out[n++] = parts[i];
    return n;
}
