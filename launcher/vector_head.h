// From pooled states to vectors: what the model's folder does before and after its network
// (prompts, modules.json), as far as the options do not say otherwise. Dense layers are multiplied
// by rank 0's backend.
#ifndef HALKA_LAUNCHER_VECTOR_HEAD_H
#define HALKA_LAUNCHER_VECTOR_HEAD_H

#include "launcher/options.h"
#include "launcher/pool.h"
#include "model/sentence_prompts.h"

struct vector_head {
    struct sentence_modules modules;
    struct sentence_prompts prompts;
    bool late_chunking;                // passages are pooled from the states of the whole document
    const char *prefix, *query_prefix; // before documents and questions; NULL: nothing
    int64_t max_tokens;                // sentence-transformers cuts texts there; 0: nowhere
    bool normalise;                    // vectors have length 1 (L2), unless they are zero
    int64_t n_out, widest;             // elements of a vector, and of the widest on the way to it
    struct backend *backend; // rank 0, as all below, where there are Dense layers; else NULL
    struct weight weight[SENTENCE_MAX_MODULE]; // [modules.n_dense]
    void *x, *y;                               // [tile, widest] fp32 in the backend's memory
    float *host;                               // [tile, widest]
};

// On every rank. ERR_CONFIG where options and model do not go together.
enum status vector_head_open(const struct options *options, const struct checkpoint *checkpoint,
                             struct vector_head *out);
// Loads the Dense layers; rank 0. The backend outlives the head.
enum status vector_head_load(struct vector_head *head, struct backend *backend);
void vector_head_close(struct vector_head *head); // accepts a zeroed struct

// Bytes that loading takes in the backend's memory.
int64_t vector_head_bytes(const struct vector_head *head);
// Vectors worth asking for at once.
int64_t vector_head_tile(const struct vector_head *head);
// Vectors [begin, begin + n) of a pool, at most a tile of them, into out [n, n_out] on rank 0.
// Every rank calls it, as pool_rows.
enum status vector_head_rows(struct vector_head *head, struct pool *pool, struct comm *comm,
                             int64_t begin, int64_t n, float *out);

// Whether this pooling gives passages vectors that differ.
enum status vector_head_check(const struct options *options, enum pooling pooling);

#endif
