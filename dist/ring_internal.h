// What the forms of ring attention share: carving the workspace, listing positions, and attending
// queries to one block in slices between which the transport makes progress.
#ifndef HALKA_DIST_RING_INTERNAL_H
#define HALKA_DIST_RING_INTERNAL_H

#include "dist/ring_attention.h"
#include "kernels/sparse.h"

// Queries attended at once where rows are listed or transfers need progress(): on a host few, so
// that the transport is called often; a device works on beside its transport and takes what fills
// it, within so many queries and bytes of results.
enum { RING_HOST_SLICE = 256, RING_DEVICE_SLICE = 16384, RING_DEVICE_RESULT = 256 << 20 };
int64_t ring_slice(enum memory memory, const struct attention_shape *shape);

struct ring_room { // cursor over the workspace; with base NULL it only measures
    char *base;
    int64_t used;
};
void *ring_take(struct ring_room *room, int64_t bytes);

// Sparse attention: what each query selected, and room for its rows of one block.
struct ring_selection {
    int k;
    const uint64_t *candidate;  // [n, k]
    const int32_t *n_candidate; // [n]
    int32_t *row, *n_selected;  // of a slice: [ring_slice, k], [ring_slice]
};

struct ring_queries {
    int64_t n;
    const void *query;               // [n, n_head, head_dim]
    const int64_t *position;         // [n]
    const int64_t *first, *end;      // [n] keys seen, besides the sinks; NULL: no such bound
    float *out;                      // [n, n_head, value_dim]
    float *lse;                      // [n, n_head]
    struct ring_selection selection; // k 0: every visible key
};
struct ring_block {
    int64_t n_key;
    const void *key, *value;   // value NULL: in the keys
    const int64_t *position;   // [n_key]; not read where queries select or have no bounds
    const struct key_run *run; // [n_run] the same positions; read only where queries select
    int n_run;
};
struct ring_blocks { // that are received in turn
    void *key[2], *value[2];
};
// n_block of n_row keys each.
struct ring_blocks ring_take_blocks(struct ring_room *room, const struct attention_shape *shape,
                                    int n_block, int64_t n_row);

struct attention_shape ring_shape(const struct ring_attention_args *args);
int64_t ring_query_row_bytes(const struct attention_shape *shape);
int64_t ring_key_row_bytes(const struct attention_shape *shape);
int64_t ring_value_row_bytes(const struct attention_shape *shape);
// fp32 out and lse of n_row queries, out first.
int64_t ring_partial_bytes(const struct attention_shape *shape, int64_t n_row);

enum status ring_check_room(const struct ring_attention *ring, const struct ring_room *room);
enum status ring_reserve_positions(struct position_list *list, int64_t n);
enum status ring_list_positions(struct position_list *list, const struct sequence *sequence,
                                int rank, int64_t begin, int64_t end);

struct visible_range ring_range(const struct ring_attention_args *args);
// FAILs where a query sees keys that no rank holds.
enum status ring_check_visible(const struct ring_attention_args *args);
// The positions of a rank's queries and what they see, into the ring's lists.
enum status ring_list_queries(struct ring_attention *ring, const struct ring_attention_args *args,
                              int rank, struct ring_queries *queries);
// The bounds of queries whose positions are known.
enum status ring_list_bounds(struct ring_attention *ring, const struct ring_attention_args *args,
                             struct ring_queries *queries);
// Positions of the keys that a rank holds: as the kernels need them, where they need them.
enum status ring_list_keys(struct ring_attention *ring, const struct ring_attention_args *args,
                           int rank, bool selected, struct ring_block *block);

// Visible pairs of one rank's queries and one rank's keys.
int64_t ring_pairs(const struct ring_attention_args *args, int query_rank, int key_rank);
// Queries [some.start, + some.length) of those.
struct ring_queries ring_some_queries(const struct ring_attention_args *args,
                                      const struct ring_queries *queries, struct span some);
// Attends and adds time and FLOP of `pairs` to the profile. The block's result is written to
// queries->out and lse, or merged into what they hold. Queries that see nothing of the block are
// skipped when merging: those before, those behind, and whole slices between.
enum status ring_attend(struct ring_attention *ring, const struct ring_attention_args *args,
                        const struct ring_queries *queries, const struct ring_block *block,
                        bool merge, int64_t pairs);

// Transport calls whose time counts as exposed wait.
enum status ring_shift_start(struct ring_attention *ring, const struct shift_args *args);
enum status ring_shift_wait(struct ring_attention *ring);
enum status ring_all_to_all(struct ring_attention *ring, const void *send,
                            const int64_t *send_bytes, void *receive, const int64_t *receive_bytes);

// ring_pass_kv.c, ring_pass_q.c, ring_pass_halo.c, decode_attention.c: workspace for the largest
// call, and the run.
int64_t ring_pass_kv_bytes(const struct attention_shape *shape, int size, int64_t n_shard);
int64_t ring_pass_q_bytes(const struct attention_shape *shape, int size, int64_t n_own,
                          int64_t n_all);
// n_row: key rows of the largest round.
int64_t ring_pass_halo_bytes(const struct attention_shape *shape, int size, int64_t n_row);
int64_t decode_attention_bytes(const struct attention_shape *shape, int size, int64_t n_query);
// `selection` is that of the own queries (pass-KV, decode of one part) or of all ranks' in rank
// order (pass-Q); NULL: dense. The workspace is used from ring->reserved on.
enum status ring_pass_kv_run(struct ring_attention *ring, const struct ring_attention_args *args,
                             const struct ring_selection *selection);
enum status ring_pass_q_run(struct ring_attention *ring, const struct ring_attention_args *args,
                            const struct ring_selection *selection);
enum status ring_pass_halo_run(struct ring_attention *ring, const struct ring_attention_args *args);
enum status ring_decode_run(struct ring_attention *ring, const struct ring_attention_args *parts,
                            int n_part, const struct ring_selection *selection);

#endif
