// Inner loops of the lightning indexer for one instruction set: a tile of packed keys against one
// query with all its heads. Keys lie side by side in the lanes, so that a score is the same
// sequence of operations in whichever lane, tile or call its key and query meet.
// A product unit is what one lane multiplies: a float, or two neighbouring bf16 (32 bits as well).
#ifndef HALKA_KERNELS_CPU_INDEX_TILE_H
#define HALKA_KERNELS_CPU_INDEX_TILE_H

#include "kernels/cpu/attention_tile.h"

enum { INDEX_KEY_TILE = 48 }; // keys whose scores exist at one time: whole panels everywhere

struct index_work {
    int n_head, n_unit;     // n_unit as packed: a multiple of the vector's width
    const void *query;      // packed by pack_query
    const float *weight;    // [n_head]
    const void *key;        // packed by pack_keys
    const float *key_scale; // [INDEX_KEY_TILE]
    const char *ahead;      // memory to bring near in the meantime: so many bytes for each
    int64_t ahead_bytes;    // head_block of heads; 0: none
    float threshold;        // scores below it are of no interest
    float *score;           // [INDEX_KEY_TILE] out; of absent keys: anything
};

struct index_tile {
    const struct index_tile *fp32; // the tile for F32 queries and keys: itself unless unit is 2
    enum dtype fp8_as;             // what expand_fp8 makes of F8_E4M3, exactly: F32 or BF16
    int unit;                      // elements in a product unit: 1 (float) or 2 (bf16)
    int vec_width;                 // units in a vector; packed rows are padded to it
    int head_block;                // heads whose sums are in registers at one time
    void (*expand_fp8)(const uint8_t *x, int64_t n, void *out);
    // At most INDEX_KEY_TILE keys, rows of F32 or BF16; absent ones become zeros.
    void (*pack_keys)(const struct kv_rows *rows, void *key);
    // The heads of one query: [head / head_block][n_unit][head % head_block] units.
    void (*pack_query)(const struct kv_rows *rows, void *query);
    // Whether any score, of absent keys too, is not below the threshold: NaN is not.
    bool (*score)(const struct index_work *work);
};

extern const struct index_tile index_tile_plain, index_tile_avx2, index_tile_avx512,
    index_tile_avx512bf16;

#endif
