// DeepSeek Sparse Attention over a sharded sequence: the lightning indexer scores every earlier
// token for each query, the k best of all ranks are selected, and only those are attended. The same
// tokens, bit for bit, whatever travels and on any number of ranks. docs/dsa.md draws it; bytes:
// volume_sparse_keys, _scores, _decode. Source: DeepSeek-V3.2 technical report, section 2.
#ifndef HALKA_DIST_SPARSE_ATTENTION_H
#define HALKA_DIST_SPARSE_ATTENTION_H

#include "dist/ring_attention.h"
#include "kernels/sparse.h"

struct sparse_ring_args {
    struct ring_attention_args attention; // pass is not read
    // The indexer's side of the same queries and keys, in the backend's memory.
    struct index_shape index;
    enum dtype index_dtype;       // of index_query and index_key
    const void *index_query;      // [n_query, index.n_head, index.head_dim]
    const float *index_weight;    // [n_query, index.n_head]
    const void *index_key;        // [n_key of this rank in [0, query_end), index.head_dim]
    const float *index_key_scale; // [n_key] or NULL
    enum exchange exchange;       // KEYS or SCORES; decode does not read it
    // The selection of this rank's queries (decode: of the queries, on every rank), in backend
    // memory. Written, unless `reuse`: then it is that of an earlier layer and is only read.
    bool reuse;
    uint64_t *candidate;  // [n_query, index.k], see kernels/candidate.h
    int32_t *n_candidate; // [n_query]
};

// Bytes of ring workspace for the largest calls.
int64_t sparse_attention_workspace_bytes(const struct attention_shape *shape,
                                         const struct index_shape *index,
                                         const struct ring_extent *extent);

// By exchange:
//   keys    pass A: P - 1 shifts of (index keys, scales) while each rank keeps a running top-k of
//   its
//           queries; pass B: P - 1 shifts of K/V, of which each query attends what it selected.
//   scores  index queries to all; every rank's k best to the row's owner, who merges them and sends
//           the k-th best back as a threshold; each rank attends its tokens above it; partials
//           home.
enum status sparse_attention_run(struct ring_attention *ring, const struct sparse_ring_args *args);

// As decode_attention_run, over the selected tokens only: every rank holds the query, its k best
// are gathered by all, each attends its part of the selection.
enum status sparse_decode_run(struct ring_attention *ring, const struct sparse_ring_args *args);

#endif
