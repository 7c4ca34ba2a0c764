// Sharded weights: of each large matrix a rank holds the rows or columns that its part of decode
// reads (forward_decode.c), so decode needs no other; prefill gathers the rest (weight_gather.h).
// Vectors and small projections (router, latents, index keys) are whole on every rank.
#ifndef HALKA_MODEL_SHARD_H
#define HALKA_MODEL_SHARD_H

#include "model/checkpoint.h"
#include "partition/partition.h"

enum { ABSORBED_KEYS = N_TENSOR_ROLE }; // role of the absorbed key rows, one fp32 row a head

struct shard_part {
    int role;             // enum tensor_role or ABSORBED_KEYS
    bool columns;         // cut by columns, else by rows
    int64_t n_unit, unit; // rank r: partition_piece(n_unit, size, r), of `unit` rows or columns
    struct weight whole;  // of data, that of the mapped matrix; block scales are whole on each rank
    // This rank's piece, and from one of its rows to the next. On a host it lies in the mapping.
    const void *own;
    int64_t own_row_bytes;
    void *memory, *scale; // owned, on devices
};

enum { MAX_SHARD_PARTS = 12 };
struct layer_shards {
    int n;
    struct shard_part parts[MAX_SHARD_PARTS];
};

// The parts of a layer, or of the vocabulary's output matrix (layer n_layer), from shapes alone:
// neither data nor own.
enum status shards_describe(const struct checkpoint *checkpoint, int layer,
                            struct layer_shards *out);
struct shard_part *shards_find(struct layer_shards *shards, int role); // NULL: every rank's whole

// Columns widened to whole blocks of a format, which alone can be cut.
struct span shard_whole_blocks(struct span columns, enum dtype dtype);
// Rows or columns that a rank holds, and bytes of them. Columns of neighbours may share a block;
// shard_summed_columns leaves each to one rank: part of those it holds.
struct span shard_span(const struct shard_part *part, int size, int rank);
struct span shard_summed_columns(const struct shard_part *part, int size, int rank);
int64_t shard_bytes(const struct shard_part *part, int size, int rank);

// The piece of a mapped matrix, by which the rank's rows or columns can be used as if `out` were
// the whole: on devices only they are there.
enum status shard_load(struct backend *backend, const struct weight *mapped, struct span span,
                       struct shard_part *part, struct weight *out);
void shard_unload(struct backend *backend, struct shard_part *part);

#endif
