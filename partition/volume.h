// Exact bytes that each exchange moves, and the choices made from them. Pure integer functions.
// Sources: the pass-KV / pass-Q volumes of Yang et al., Context Parallelism for Scalable
// Million-Token Inference, Algorithms 2 and 3.
#ifndef HALKA_PARTITION_VOLUME_H
#define HALKA_PARTITION_VOLUME_H

#include "partition/partition.h"

struct attention_shape {
    int n_head, n_kv_head, head_dim, value_dim;
    int query_bytes; // of one element of a travelling query: 4 or 2
    int kv_bytes;    // of one element of K or V: 4 or 2
};

// Bytes that `rank` receives (it sends as many as its successor receives) in one layer:
// pass-KV: the other ranks' shards of [0, end), in N-1 shifts.
int64_t volume_pass_kv(const struct sequence *sequence, const struct attention_shape *shape,
                       int rank, int64_t end);
// pass-Q: the other ranks' queries of [begin, end), then their fp32 partials (out, lse) returned.
int64_t volume_pass_q(const struct sequence *sequence, const struct attention_shape *shape,
                      int rank, int64_t begin, int64_t end);

// decode: the other ranks' fp32 partials of this rank's heads, partition_piece(n_head, size, rank).
int64_t volume_decode(const struct attention_shape *shape, int size, int rank, int64_t n_query);

enum pass { PASS_KV, PASS_Q };
// The exchange with fewer bytes over all ranks (pass-KV when equal) for queries [begin, end) of the
// sequence.
enum pass volume_choose_pass(const struct sequence *sequence, const struct attention_shape *shape,
                             int64_t begin, int64_t end);

#endif
