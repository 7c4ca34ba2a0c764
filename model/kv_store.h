// What is kept of this rank's tokens, a layer at a time: keys and values, or latents, and index
// keys where a layer selects. Rows in the order of the rank's positions (ascending): row i belongs
// to the i-th position that the sequence gives this rank.
#ifndef HALKA_MODEL_KV_STORE_H
#define HALKA_MODEL_KV_STORE_H

#include "model/spec.h"

struct kv_layer {
    void *key;          // [capacity, n_kv_head, head_dim] of the store's dtype
    void *value;        // [capacity, n_kv_head, head_dim]; NULL: values are in the keys (latents)
    void *index_key;    // [capacity, index.head_dim] of the index dtype; NULL unless INDEX_FULL
    float *index_scale; // [capacity] with fp8 index keys, else NULL
};

struct kv_shape {
    enum dtype dtype;       // of keys and values: F32 or BF16
    bool indexed;           // keep index keys
    enum dtype index_dtype; // F32, BF16 or F8_E4M3
    int64_t capacity;       // rows
};

struct kv_store {
    struct backend *backend;
    struct kv_shape shape;
    int n_layer;
    struct kv_layer *layers; // [n_layer] owned
    const struct model_spec *spec;
};

int64_t kv_store_bytes(const struct model_spec *spec, const struct kv_shape *shape);
enum status kv_store_open(const struct model_spec *spec, struct backend *backend,
                          const struct kv_shape *shape, struct kv_store *out);
void kv_store_close(struct kv_store *store); // accepts a zeroed struct
// Address of a row of a layer's keys, values or index keys.
void *kv_store_key(const struct kv_store *store, int layer, int64_t row);
void *kv_store_value(const struct kv_store *store, int layer, int64_t row);
void *kv_store_index_key(const struct kv_store *store, int layer, int64_t row);

#endif
