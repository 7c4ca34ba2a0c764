// The keys and values of this rank's tokens, a layer at a time, rows in the order of the rank's
// positions (ascending): row i belongs to the i-th position that the sequence gives this rank.
#ifndef HALKA_MODEL_KV_STORE_H
#define HALKA_MODEL_KV_STORE_H

#include "model/spec.h"

struct kv_layer {
    void *key;   // [capacity, n_kv_head, head_dim] of the store's dtype
    void *value; // [capacity, n_kv_head, head_dim]
};

struct kv_store {
    struct backend *backend;
    enum dtype dtype;
    int64_t capacity; // rows
    int n_layer;
    struct kv_layer *layers; // [n_layer] owned
    const struct model_spec *spec;
};

int64_t kv_store_bytes(const struct model_spec *spec, enum dtype dtype, int64_t capacity);
enum status kv_store_open(const struct model_spec *spec, struct backend *backend, enum dtype dtype,
                          int64_t capacity, struct kv_store *out);
void kv_store_close(struct kv_store *store); // accepts a zeroed struct
// Address of a row of a layer's keys or values.
void *kv_store_key(const struct kv_store *store, int layer, int64_t row);
void *kv_store_value(const struct kv_store *store, int layer, int64_t row);

#endif
