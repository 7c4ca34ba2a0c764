// Prefill with sharded weights: while a layer is computed the shards of the next one are gathered
// from all ranks (comm's gather) into the other of two buffers. A stage is a layer, or the output
// matrix (stage n_layer). Rows arrive back to back: the matrix is whole. Columns arrive as one
// group a rank, whose products are summed. Each rank receives (P-1)/P of the weights for each
// chunk.
#ifndef HALKA_MODEL_WEIGHT_GATHER_H
#define HALKA_MODEL_WEIGHT_GATHER_H

#include "dist/comm.h"
#include "dist/profile.h"
#include "model/weights.h"

struct gather_buffer {
    char *data;
    struct layer_weights layer; // of the stage in it, borrowing what is not sharded
    struct weight head;
    struct weight *columns[2]; // [size] output's and down's groups
    struct weight *absorb[2];  // [most heads] absorbed keys and values
};

struct weight_gather {
    const struct weights *weights; // NULL: not sharded, all zero
    struct backend *backend;
    struct comm *comm;
    struct profile *profile;
    void *memory;
    struct gather_buffer buffers[2]; // of even and odd stages
    bool in_flight;
    int64_t *bytes;   // [MAX_SHARD_PARTS, size] of the stage in flight
    int64_t received; // bytes from other ranks so far
};

// Bytes of each buffer, and what one rank receives for one chunk, output matrix included.
struct gather_extent {
    int64_t buffer_bytes[2], chunk_bytes;
};
enum status weight_gather_measure(const struct checkpoint *checkpoint, int size,
                                  struct gather_extent *out);

// The weights are sharded and outlive the gather.
enum status weight_gather_open(struct weight_gather *out, const struct weights *weights,
                               const struct checkpoint *checkpoint, struct comm *comm,
                               struct profile *profile);
void weight_gather_close(struct weight_gather *gather); // accepts a zeroed struct

// One stage is in flight at most, after the work that is queued when it starts: on the stage that
// lay in buffers[stage % 2] before. What is queued after the wait finds it there.
enum status weight_gather_start(struct weight_gather *gather, int stage);
enum status weight_gather_wait(struct weight_gather *gather, int stage);

#endif
