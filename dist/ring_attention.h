// Attention over a sequence sharded on P ranks, in exact forms of equal result (bytes: volume.h):
//   pass-KV    P steps; at step s rank r attends to the shard of rank (r - s) mod P while the next
//              is on its way; partials merge online. Two shards are received at most.
//   pass-Q     the queries travel; partials go home in one all-to-all. For few queries.
//   pass-halo  each rank receives only the keys that its queries see, from the ranks that hold
//              them, distance by distance. For windows and packed documents.
//   decode     every rank holds the same few queries and attends its shard; one all-to-all brings
//              each the partials of its heads (Helix). Shifts start before the work beside them.
#ifndef HALKA_DIST_RING_ATTENTION_H
#define HALKA_DIST_RING_ATTENTION_H

#include "dist/comm.h"
#include "dist/profile.h"
#include "kernels/sparse.h"
#include "partition/visibility.h"
#include "partition/volume.h"

struct ring_attention_args {
    const struct sequence *sequence; // includes the positions of the queries
    int64_t query_begin, query_end;  // global; this rank's queries are those it owns in there
    int n_head, n_kv_head, head_dim, value_dim;
    float scale;
    struct visibility visibility; // what each query sees, by global positions
    // Keys held by the ranks: positions [key_begin, key_end), and the sinks before them. Nothing
    // that is seen may be missing. key_end 0: query_end; others are for dense prefill.
    int64_t key_begin, key_end;
    enum pass pass;
    const void *query; // [n_query of this rank, n_head, head_dim]
    enum dtype query_dtype;
    const void *key;   // [n_key held by this rank, in the order of positions, n_kv_head, head_dim]
    const void *value; // [n_key, n_kv_head, value_dim]; NULL: the first value_dim elements of keys
    enum dtype kv_dtype;
    float *out; // [n_query, n_head, value_dim]; in decode of this rank's heads only
    float *lse; // [n_query, n_head]; in decode NULL: not wanted
    bool merge; // prefill: out and lse hold the result over other keys, which this call joins; a
                // query that sees no key of any rank keeps its own, bit for bit
};

// The largest calls that will be made, and where.
struct ring_extent {
    enum memory memory; // of the backend
    int size;           // ranks
    int64_t shard;      // keys that one rank holds
    int64_t query;      // queries that one rank owns in one call
    int64_t all_query;  // those of all ranks in a call that sends queries: pass-Q, exchange SCORES
    int64_t decode_query;
    int64_t halo; // keys that one rank receives at once by pass-halo: volume_halo_rows; 0: no such
                  // call
};
// Bytes of workspace for them; the same function sizes the plan.
int64_t ring_attention_workspace_bytes(const struct attention_shape *shape,
                                       const struct ring_extent *extent);

struct position_list {
    int64_t *at; // [capacity] host memory, owned; grows to the largest request
    int64_t capacity;
};

struct ring_attention {
    struct backend *backend;
    struct comm *comm;
    struct profile *profile; // seconds and FLOP are added here
    void *workspace;         // backend memory, owned
    int64_t workspace_bytes;
    int64_t reserved; // bytes of the workspace that sparse attention keeps while a pass runs
    struct position_list query_position, key_position;
    struct position_list query_first, query_end; // bounds of what the queries see
    struct position_run *runs; // host, owned: of the block that queries select from
    struct key_run *key_runs;  // the same, as kernels take them
    int runs_capacity;
    int64_t *rank_bytes; // [2 * size] host, owned: counts of one exchange, sent then received
};
enum status ring_attention_open(struct ring_attention *out, struct backend *backend,
                                struct comm *comm, struct profile *profile,
                                int64_t workspace_bytes);
void ring_attention_close(struct ring_attention *ring); // accepts a zeroed struct

// Into args->out and lse. Calls for the same queries, all but the first with `merge`, are one
// attention where together they show each key once, with queries or keys rotated otherwise.
enum status ring_attention_run(struct ring_attention *ring, const struct ring_attention_args *args);

// Decode: the same n_query queries [n_query, n_head, head_dim] are on every rank. Afterwards this
// rank has the merged result for its heads only, partition_piece(n_head, size, rank): `out`
// [n_query, n_my_head, value_dim]. `lse` receives that of all heads on every rank: for
// attention_mass. n_part attentions of the same queries, which show each key once, are one with one
// exchange; it ends where the first says.
enum status decode_attention_run(struct ring_attention *ring,
                                 const struct ring_attention_args *parts, int n_part);

#endif
