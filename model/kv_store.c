#include "model/kv_store.h"

#include <stdlib.h>

static int64_t row_bytes(const struct model_spec *spec, int layer, enum dtype dtype) {
    const struct layer_spec *l = &spec->layers[layer];
    return dtype_bytes(dtype, (int64_t)l->n_kv_head * l->head_dim);
}

int64_t kv_store_bytes(const struct model_spec *spec, enum dtype dtype, int64_t capacity) {
    int64_t bytes = 0;
    for (int i = 0; i < spec->n_layer; i++) bytes += 2 * capacity * row_bytes(spec, i, dtype);
    return bytes;
}

enum status kv_store_open(const struct model_spec *spec, struct backend *backend, enum dtype dtype,
                          int64_t capacity, struct kv_store *out) {
    *out = (struct kv_store){.backend = backend,
                             .dtype = dtype,
                             .capacity = capacity,
                             .n_layer = spec->n_layer,
                             .spec = spec};
    enum status status = OK;
    out->layers = calloc((size_t)spec->n_layer, sizeof *out->layers);
    if (!out->layers) {
        FAIL_OR(failed, ERR_MEMORY, "no memory for the K/V table of %d layers", spec->n_layer);
    }
    for (int i = 0; i < spec->n_layer; i++) {
        int64_t bytes = capacity * row_bytes(spec, i, dtype);
        TRY_OR(failed, backend->ops->alloc(backend, bytes, &out->layers[i].key));
        TRY_OR(failed, backend->ops->alloc(backend, bytes, &out->layers[i].value));
    }
    return OK;
failed:
    kv_store_close(out);
    return status;
}

void kv_store_close(struct kv_store *store) {
    for (int i = 0; store->layers && i < store->n_layer; i++) {
        struct kv_layer *l = &store->layers[i];
        if (l->key) store->backend->ops->free(store->backend, l->key);
        if (l->value) store->backend->ops->free(store->backend, l->value);
    }
    free(store->layers);
    *store = (struct kv_store){0};
}

void *kv_store_key(const struct kv_store *store, int layer, int64_t row) {
    return (char *)store->layers[layer].key + row * row_bytes(store->spec, layer, store->dtype);
}

void *kv_store_value(const struct kv_store *store, int layer, int64_t row) {
    return (char *)store->layers[layer].value + row * row_bytes(store->spec, layer, store->dtype);
}
