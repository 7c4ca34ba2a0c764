// Exact bytes that each exchange moves, and the choices made from them. Pure integer functions.
// Sources: the pass-KV / pass-Q volumes of Yang et al., Context Parallelism for Scalable
// Million-Token Inference, Algorithms 2 and 3.
#ifndef HALKA_PARTITION_VOLUME_H
#define HALKA_PARTITION_VOLUME_H

#include "partition/visibility.h"

struct attention_shape {
    int n_head, n_kv_head, head_dim, value_dim;
    int query_bytes;   // of one element of a travelling query: 4 or 2
    int kv_bytes;      // of one element of K or V: 4 or 2
    bool value_in_key; // a value is the first value_dim elements of its key: nothing more travels
};

// Bytes that `rank` receives in one layer:
// pass-KV: the other ranks' shards of what is held, in N-1 shifts.
int64_t volume_pass_kv(const struct visible_range *range, const struct attention_shape *shape,
                       int rank);
// pass-Q: the other ranks' queries, then their fp32 partials (out, lse) returned.
int64_t volume_pass_q(const struct visible_range *range, const struct attention_shape *shape,
                      int rank);
// pass-halo: the keys of other ranks that its queries see (visible_spans).
int64_t volume_pass_halo(const struct visible_range *range, const struct attention_shape *shape,
                         int rank);
// The most key rows that one rank receives at once by pass-halo, for queries of one extent; no rank
// holds more than `shard`.
int64_t volume_halo_rows(const struct visibility *visibility, enum layout layout, int64_t shard);

// decode: the other ranks' fp32 partials of this rank's heads, partition_piece(n_head, size, rank).
int64_t volume_decode(const struct attention_shape *shape, int size, int rank, int64_t n_query);

enum pass { PASS_KV, PASS_Q, PASS_HALO };
// The exchange with the fewest bytes over all ranks; when equal pass-KV, then pass-halo. Pass-Q
// only for `most_q` queries or fewer: for more there is no workspace. Pass-halo only where the
// first keys are hidden from some query: otherwise nearly all travels, and a ring asks its
// neighbours alone.
enum pass volume_choose_pass(const struct visible_range *range, const struct attention_shape *shape,
                             int64_t most_q);

// DeepSeek Sparse Attention: what the lightning indexer adds to attention's shape.
struct index_shape {
    int n_head, head_dim, k;
    int element_bytes; // of an index query or key: 1, 2 or 4
    int scale_bytes;   // of an index key's scale: 4 or 0
};
// keys:   index keys travel the ring (pass A), then K/V (pass B); every rank selects for its own
//         queries.
// scores: index queries go to every rank, each rank's k best candidates to the row's owner, the
//         thresholds and attention's queries to every rank, the partials home.
enum exchange { EXCHANGE_AUTO, EXCHANGE_KEYS, EXCHANGE_SCORES };
// Bytes that `rank` receives in one layer for queries [begin, end) of the sequence.
int64_t volume_sparse_keys(const struct sequence *sequence, const struct attention_shape *shape,
                           const struct index_shape *index, int rank, int64_t end);
int64_t volume_sparse_scores(const struct sequence *sequence, const struct attention_shape *shape,
                             const struct index_shape *index, int rank, int64_t begin, int64_t end);
// Decode: every rank has the queries; candidates go to all, partials of its heads to each rank.
int64_t volume_sparse_decode(const struct attention_shape *shape, const struct index_shape *index,
                             int size, int rank, int64_t n_query);
// The exchange with fewer bytes over all ranks (keys when equal).
enum exchange volume_choose_exchange(const struct sequence *sequence,
                                     const struct attention_shape *shape,
                                     const struct index_shape *index, int64_t begin, int64_t end);

#endif
