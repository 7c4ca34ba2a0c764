// What is kept of this rank's tokens, a layer at a time: keys and values, or latents, and index
// keys where a layer selects. Rows in the order of the rank's positions (ascending). While a chunk
// is read, kv_store_begin .. kv_store_end, a layer's rows are those that its queries may see, held
// from before and of the chunk, in one block: see kv_window.c.
#ifndef HALKA_MODEL_KV_STORE_H
#define HALKA_MODEL_KV_STORE_H

#include "model/spec.h"
#include "partition/partition.h"

// ALL: every token's. WINDOW: layers of causal windows keep what later tokens, and those after
// max_forget are forgotten, can see. NOTHING: all tokens come at once, as an encoder's do.
enum kv_keep { KEEP_ALL, KEEP_WINDOW, KEEP_NOTHING };

struct kv_shape {
    enum dtype dtype;       // of keys and values: F32 or BF16
    bool indexed;           // keep index keys
    enum dtype index_dtype; // F32, BF16 or F8_E4M3
    int64_t capacity;       // rows of a layer that keeps all
    int64_t n_token;        // most rows of one chunk
    int64_t max_forget;     // most tokens that are forgotten at once, but for all
    bool at_once;           // one chunk has all tokens: nothing is kept
};

// The rows of the chunk that is read.
struct kv_block {
    char *key, *value;  // of all rows in the block
    int64_t key_begin;  // they are of positions [key_begin, end of chunk) and, before, the sinks
    int64_t n_held;     // rows from before the chunk; those of the chunk follow
    int64_t next_begin; // key_begin of what is kept after the chunk
    char *other_key;    // the keys in their second rotation; NULL: there is none
};

struct kv_layer {
    enum kv_keep keep;
    int64_t capacity;   // rows
    void *key;          // [capacity, n_kv_head, head_dim] of the store's dtype
    void *other_key;    // [capacity, n_kv_head, head_dim]; NULL unless model_spec.n_key_set is 2
    void *value;        // [capacity, n_kv_head, head_dim]; NULL: values are in the keys (latents)
    void *index_key;    // [capacity, index.head_dim] of the index dtype; NULL unless INDEX_FULL
    float *index_scale; // [capacity] with fp8 index keys, else NULL
    int64_t begin;      // positions held: from here on and, before, the sinks; 0: all
    int64_t lost;       // of a layer that keeps all: rows before here, but the sinks, are zeroes,
                        // since who saved them kept a window; else 0
    struct kv_block block;
};

struct kv_chunk {
    const struct sequence *sequence; // already includes [begin, end)
    int rank;
    int64_t begin, end;
    bool in_place; // decode: one token, written where it is kept
};

struct kv_store {
    struct backend *backend;
    struct kv_shape shape;
    int n_layer;
    struct kv_layer *layers; // [n_layer] owned
    const struct model_spec *spec;
    char *room_key, *room_other_key, *room_value; // owned: blocks of layers that do not keep all,
                                                  // one at a time
    struct kv_chunk chunk;
};

// Bytes of what is kept, and of the room in which chunks meet it.
int64_t kv_store_bytes(const struct model_spec *spec, const struct kv_shape *shape);
int64_t kv_store_room_bytes(const struct model_spec *spec, const struct kv_shape *shape);
// Rows of the largest block that a layer attends.
int64_t kv_store_block_rows(const struct model_spec *spec, const struct kv_shape *shape);

// Of these bytes, what is in physical memory so far. Where memory is the host's.
struct kv_resident {
    int64_t kept, room;
};
struct kv_resident kv_store_resident(const struct kv_store *store);

enum status kv_store_open(const struct model_spec *spec, struct backend *backend,
                          const struct kv_shape *shape, struct kv_store *out);
void kv_store_close(struct kv_store *store); // accepts a zeroed struct

// Begins a chunk: places its rows in every layer. Layers of a window move theirs together where
// there is no room for a token in place: what is queued earlier may hold addresses of rows, what is
// queued later must ask anew.
enum status kv_store_begin(struct kv_store *store, const struct kv_chunk *chunk);
// Around the layer's work on a chunk that is not in place: the held rows come in front of the
// chunk's before they are attended, and what is to be kept goes back.
enum status kv_store_enter(struct kv_store *store, int layer);
enum status kv_store_leave(struct kv_store *store, int layer);

// Whether every layer holds what tokens after `length` see; forgets what comes later.
bool kv_store_holds(const struct kv_store *store, int64_t length);
void kv_store_truncate(struct kv_store *store, int64_t length);

// Address of a layer's keys, values, index keys or their scales of the chunk's tokens from `row`.
void *kv_store_key(const struct kv_store *store, int layer, int64_t row);
void *kv_store_other_key(const struct kv_store *store, int layer, int64_t row);
void *kv_store_value(const struct kv_store *store, int layer, int64_t row);
void *kv_store_index_key(const struct kv_store *store, int layer, int64_t row);
float *kv_store_index_scale(const struct kv_store *store, int layer, int64_t row); // NULL: none

// The rows that the token in place sees of this rank's, without those of its own window's past:
// at most two runs of the block, and where they are among the rank's positions.
struct kv_run {
    int64_t block_row, position_row, n;
};
int kv_store_seen(const struct kv_store *store, int layer, struct kv_run out[2]);

// kv_window.c. Positions that a layer of a window has room for.
int64_t kv_window_positions(const struct layer_spec *layer, int64_t max_forget);

// Rows as they are saved and restored, between chunks. The parts of a layer's rows, in this order.
struct kv_part {
    const char *name;
    char *rows;    // [capacity of the layer, bytes], backend memory
    int64_t bytes; // of one row
};
enum { KV_MAX_PARTS = 5 };
int kv_store_parts(const struct kv_store *store, int layer, struct kv_part out[KV_MAX_PARTS]);
// The position from which on all are held; before it, only the sinks are.
int64_t kv_store_held_from(const struct kv_store *store, int layer);
// An empty layer takes positions [0, length) of which those before `held`, but the sinks, are lost.
void kv_store_adopt(struct kv_store *store, int layer, int64_t held, int64_t length);
// Of the positions of `slab`, the sinks and those from `held` on, in at most two runs: this rank's
// n rows from `row` on, where `held` is no less than what the layer holds.
struct kv_rows {
    int64_t begin, end; // positions
    int64_t row, n;
};
int kv_store_rows(const struct kv_store *store, int layer, const struct kv_chunk *slab,
                  int64_t held, struct kv_rows out[2]);

#endif
