#include "model/kv_store.h"

#include <stdlib.h>

struct row_bytes {
    int64_t key, value, index_key, index_scale;
};

static struct row_bytes row_bytes(const struct model_spec *spec, int layer,
                                  const struct kv_shape *shape) {
    const struct layer_spec *l = &spec->layers[layer];
    struct row_bytes bytes = {.key =
                                  dtype_bytes(shape->dtype, (int64_t)l->n_kv_head * l->head_dim)};
    if (l->attention == ATTENTION_FULL) bytes.value = bytes.key;
    if (!shape->indexed || l->index.layout != INDEX_FULL) return bytes;
    bytes.index_key = dtype_bytes(shape->index_dtype, l->index.head_dim);
    if (shape->index_dtype == DTYPE_F8_E4M3) bytes.index_scale = (int64_t)sizeof(float);
    return bytes;
}

int64_t kv_store_bytes(const struct model_spec *spec, const struct kv_shape *shape) {
    int64_t bytes = 0;
    for (int i = 0; i < spec->n_layer; i++) {
        struct row_bytes row = row_bytes(spec, i, shape);
        bytes += shape->capacity * (row.key + row.value + row.index_key + row.index_scale);
    }
    return bytes;
}

static enum status alloc_rows(struct kv_store *store, int64_t bytes_of_row, void **out) {
    if (bytes_of_row == 0) return OK;
    return store->backend->ops->alloc(store->backend, store->shape.capacity * bytes_of_row, out);
}

enum status kv_store_open(const struct model_spec *spec, struct backend *backend,
                          const struct kv_shape *shape, struct kv_store *out) {
    *out = (struct kv_store){
        .backend = backend, .shape = *shape, .n_layer = spec->n_layer, .spec = spec};
    enum status status = OK;
    out->layers = calloc((size_t)spec->n_layer, sizeof *out->layers);
    if (!out->layers) {
        FAIL_OR(failed, ERR_MEMORY, "no memory for the K/V table of %d layers", spec->n_layer);
    }
    for (int i = 0; i < spec->n_layer; i++) {
        struct kv_layer *l = &out->layers[i];
        struct row_bytes row = row_bytes(spec, i, shape);
        void *scale = NULL;
        TRY_OR(failed, alloc_rows(out, row.key, &l->key));
        TRY_OR(failed, alloc_rows(out, row.value, &l->value));
        TRY_OR(failed, alloc_rows(out, row.index_key, &l->index_key));
        TRY_OR(failed, alloc_rows(out, row.index_scale, &scale));
        l->index_scale = scale;
    }
    return OK;
failed:
    kv_store_close(out);
    return status;
}

void kv_store_close(struct kv_store *store) {
    for (int i = 0; store->layers && i < store->n_layer; i++) {
        struct kv_layer *l = &store->layers[i];
        void *parts[] = {l->key, l->value, l->index_key, l->index_scale};
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            if (parts[p]) store->backend->ops->free(store->backend, parts[p]);
        }
    }
    free(store->layers);
    *store = (struct kv_store){0};
}

void *kv_store_key(const struct kv_store *store, int layer, int64_t row) {
    return (char *)store->layers[layer].key +
           row * row_bytes(store->spec, layer, &store->shape).key;
}

void *kv_store_value(const struct kv_store *store, int layer, int64_t row) {
    return (char *)store->layers[layer].value +
           row * row_bytes(store->spec, layer, &store->shape).value;
}

void *kv_store_index_key(const struct kv_store *store, int layer, int64_t row) {
    return (char *)store->layers[layer].index_key +
           row * row_bytes(store->spec, layer, &store->shape).index_key;
}
