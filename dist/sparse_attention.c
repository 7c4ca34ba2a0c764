// Which tokens are selected, by either exchange; attending them is pass-KV, pass-Q or decode with a
// selection (ring_internal.h).
#include "dist/sparse_attention.h"

#include <string.h>

#include "dist/ring_internal.h"

// One block of index keys, and queries with the candidates that they keep.
struct index_block {
    int64_t n_key;
    const void *key;
    const float *scale;
    const struct key_run *run; // [n_run] positions
    int n_run;
};
struct index_queries {
    int64_t n,
        first_position; // decode: positions from here on; else listed in ring->query_position
    const void *query;
    const float *weight;
    uint64_t *candidate;
    int32_t *n_candidate;
};

static int64_t key_bytes(const struct index_shape *index) {
    return (int64_t)index->head_dim * index->element_bytes;
}
static int64_t query_bytes(const struct index_shape *index) {
    return index->n_head * key_bytes(index);
}
static int64_t weight_bytes(const struct index_shape *index) {
    return index->n_head * (int64_t)sizeof(float);
}
static int64_t candidate_bytes(const struct index_shape *index) {
    return index->k * (int64_t)sizeof(uint64_t);
}

static int64_t queries_of(const struct sparse_ring_args *args, int rank) {
    const struct ring_attention_args *a = &args->attention;
    return sequence_count(a->sequence, rank, a->query_begin, a->query_end);
}

static int64_t keys_of(const struct sparse_ring_args *args, int rank) {
    return sequence_count(args->attention.sequence, rank, 0, args->attention.query_end);
}

// What stays in the workspace while a pass attends, and what selecting needs before. `all`
// candidates are those of every rank's queries, in rank order.
struct room {
    struct ring_selection selection; // its rows
    uint64_t *all;                   // scores: [n_all, k]
    int32_t *n_all;                  // [n_all]
    int64_t kept;                    // bytes so far
    void *key[2];                    // keys: two blocks on their way
    float *scale[2];
    void *query; // scores, by rank: [n_all, n_head, head_dim], [n_all, n_head]
    float *weight;
    uint64_t *other;     // [size, most queries, k] candidates from the ranks for one rank's queries
    int32_t *n_other;    // [most queries]
    uint64_t *threshold; // [n_all]
    uint64_t *own_threshold;
};

enum route { ROUTE_KEYS, ROUTE_SCORES, ROUTE_DECODE };

struct extent_of_call {
    enum route route;
    int size;
    int64_t n_shard, n_query, n_all; // keys of a rank, queries of a rank, queries of all ranks
    int64_t slice;                   // ring_slice
};

static struct room carve(struct ring_room *space, const struct index_shape *index,
                         const struct extent_of_call *call) {
    struct room r = {.selection = {.k = index->k}};
    int64_t n_all = call->n_all, n = call->n_query, rows = n < call->slice ? n : call->slice;
    r.selection.row = ring_take(space, rows * index->k * (int64_t)sizeof(int32_t));
    r.selection.n_selected = ring_take(space, rows * (int64_t)sizeof(int32_t));
    if (call->route == ROUTE_SCORES) {
        r.all = ring_take(space, n_all * candidate_bytes(index));
        r.n_all = ring_take(space, n_all * (int64_t)sizeof(int32_t));
    }
    r.kept = space->used;
    for (int i = 0; call->route == ROUTE_KEYS && i < 2 && i < call->size - 1; i++) {
        r.key[i] = ring_take(space, call->n_shard * key_bytes(index));
        r.scale[i] = ring_take(space, call->n_shard * index->scale_bytes);
    }
    if (call->route == ROUTE_KEYS || call->size == 1) return r;
    r.other = ring_take(space, call->size * n * candidate_bytes(index));
    r.n_other = ring_take(space, call->size * n * (int64_t)sizeof(int32_t));
    if (call->route == ROUTE_DECODE) {
        r.all = ring_take(space, n * candidate_bytes(index));
        r.n_all = ring_take(space, n * (int64_t)sizeof(int32_t));
        return r;
    }
    r.query = ring_take(space, n_all * query_bytes(index));
    r.weight = ring_take(space, n_all * weight_bytes(index));
    r.threshold = ring_take(space, n_all * (int64_t)sizeof(uint64_t));
    r.own_threshold = ring_take(space, n * (int64_t)sizeof(uint64_t));
    return r;
}

// The selection is made before the pass that uses the rest of the workspace.
static int64_t call_bytes(const struct index_shape *index, const struct extent_of_call *call,
                          int64_t pass_bytes) {
    struct ring_room space = {0};
    struct room r = carve(&space, index, call);
    return space.used > r.kept + pass_bytes ? space.used : r.kept + pass_bytes;
}

int64_t sparse_attention_workspace_bytes(const struct attention_shape *shape,
                                         const struct index_shape *index,
                                         const struct ring_extent *e) {
    int64_t own = e->query < e->all_query ? e->query : e->all_query;
    int64_t slice = ring_slice(e->memory, shape);
    const struct extent_of_call calls[3] = {
        {ROUTE_KEYS, e->size, e->shard, e->query, 0, slice},
        {ROUTE_SCORES, e->size, e->shard, own, e->all_query, slice},
        {ROUTE_DECODE, e->size, e->shard, e->decode_query, e->decode_query, slice},
    };
    const int64_t passes[3] = {ring_pass_kv_bytes(shape, e->size, e->shard),
                               ring_pass_q_bytes(shape, e->size, own, e->all_query),
                               decode_attention_bytes(shape, e->size, e->decode_query)};
    int64_t most = 0;
    for (int i = 0; i < 3; i++) {
        int64_t bytes = call_bytes(index, &calls[i], passes[i]);
        if (bytes > most) most = bytes;
    }
    return most;
}

static enum status upload_counts(struct ring_attention *ring, int32_t *to, const int32_t *host,
                                 int64_t n) {
    return ring->backend->ops->upload(ring->backend, to, host, n * (int64_t)sizeof *host);
}

static enum status clear_counts(struct ring_attention *ring, int32_t *n_candidate, int64_t n) {
    if (n == 0) return OK;
    TRY(ring_reserve_positions(&ring->key_position, n)); // zeros enough
    memset(ring->key_position.at, 0, (size_t)n * sizeof(int32_t));
    return upload_counts(ring, n_candidate, (const int32_t *)(const void *)ring->key_position.at,
                         n);
}

// The positions of a rank's keys, until those of another are listed.
static enum status list_keys(struct ring_attention *ring, const struct sparse_ring_args *args,
                             int rank, struct index_block *block) {
    struct ring_block keys = {0};
    TRY(ring_list_keys(ring, &args->attention, rank, true, &keys));
    block->run = keys.run;
    block->n_run = keys.n_run;
    return OK;
}

// Scores a block in slices, between which the transport makes progress. ring->query_position holds
// the queries' positions.
static enum status score_block(struct ring_attention *ring, const struct sparse_ring_args *args,
                               const struct index_queries *queries,
                               const struct index_block *block) {
    const struct index_shape *index = &args->index;
    struct attention_shape shape = ring_shape(&args->attention);
    int64_t step = ring_slice(ring->backend->memory, &shape);
    for (int64_t first = 0; first < queries->n && block->n_key > 0; first += step) {
        double begun = profile_begin(ring->profile, PHASE_INDEX);
        const struct index_args score = {
            .n_query = queries->n - first < step ? queries->n - first : step,
            .n_key = block->n_key,
            .n_head = index->n_head,
            .head_dim = index->head_dim,
            .dtype = args->index_dtype,
            .query = (const char *)queries->query + first * query_bytes(index),
            .weight = queries->weight + first * index->n_head,
            .key = block->key,
            .key_scale = block->scale,
            .query_position = ring->query_position.at + first,
            .run = block->run,
            .n_run = block->n_run,
            .k = index->k,
            .candidate = queries->candidate + first * index->k,
            .n_candidate = queries->n_candidate + first,
        };
        TRY(ring->backend->ops->index_top_k(ring->backend, &score));
        profile_end(ring->profile, PHASE_INDEX, begun);
        begun = profile_begin(ring->profile, PHASE_RING_WAIT);
        if (ring->comm->needs_progress) TRY(ring->comm->ops->progress(ring->comm));
        profile_end(ring->profile, PHASE_RING_WAIT, begun);
    }
    return OK;
}

static enum status all_gather(struct ring_attention *ring, const void *send, void *receive,
                              const int64_t *bytes) {
    double begun = profile_begin(ring->profile, PHASE_RING_WAIT);
    TRY(ring->comm->ops->all_gather(ring->comm, send, receive, bytes));
    profile_end(ring->profile, PHASE_RING_WAIT, begun);
    return OK;
}

static enum status start_key_shift(struct ring_attention *ring, const struct sparse_ring_args *args,
                                   const struct room *room, const struct index_block *held,
                                   int step, int next) {
    const struct comm *comm = ring->comm;
    int64_t n_next = keys_of(args, next);
    struct shift_args shift = {
        .destination = (comm->rank + 1) % comm->size,
        .source = (comm->rank + comm->size - 1) % comm->size,
        .n_buffer = args->index_key_scale ? 2 : 1,
        .send = {{(void *)held->key, held->n_key * key_bytes(&args->index)},
                 {(void *)held->scale, held->n_key * args->index.scale_bytes}},
        .receive = {{room->key[step % 2], n_next * key_bytes(&args->index)},
                    {room->scale[step % 2], n_next * args->index.scale_bytes}},
    };
    return ring_shift_start(ring, &shift);
}

// Pass A: index keys travel as K/V do in pass-KV; blocks that no query sees are passed on unread.
static enum status select_by_keys(struct ring_attention *ring, const struct sparse_ring_args *args,
                                  const struct room *room) {
    const struct comm *comm = ring->comm;
    const struct ring_attention_args *a = &args->attention;
    const struct index_queries queries = {.n = queries_of(args, comm->rank),
                                          .query = args->index_query,
                                          .weight = args->index_weight,
                                          .candidate = args->candidate,
                                          .n_candidate = args->n_candidate};
    struct index_block held = {.key = args->index_key, .scale = args->index_key_scale};
    TRY(clear_counts(ring, args->n_candidate, queries.n));
    TRY(ring_list_positions(&ring->query_position, a->sequence, comm->rank, a->query_begin,
                            a->query_end));
    for (int step = 0; step < comm->size; step++) {
        int holder = (comm->rank - step + comm->size) % comm->size;
        int next = (holder - 1 + comm->size) % comm->size;
        bool last = step == comm->size - 1;
        beacon_step(ring->profile->beacon, step + 1, comm->size);
        held.n_key = keys_of(args, holder);
        if (!last) TRY(start_key_shift(ring, args, room, &held, step, next));
        if (ring_pairs(a, comm->rank, holder) > 0) {
            TRY(list_keys(ring, args, holder, &held));
            TRY(score_block(ring, args, &queries, &held));
        }
        if (last) break;
        TRY(ring_shift_wait(ring));
        held.key = room->key[step % 2];
        if (args->index_key_scale) held.scale = room->scale[step % 2];
    }
    return OK;
}

// Index queries and head weights of all ranks, by rank.
static enum status gather_queries(struct ring_attention *ring, const struct sparse_ring_args *args,
                                  const struct room *room) {
    int64_t *bytes = ring->rank_bytes;
    for (int rank = 0; rank < ring->comm->size; rank++)
        bytes[rank] = queries_of(args, rank) * query_bytes(&args->index);
    TRY(all_gather(ring, args->index_query, room->query, bytes));
    for (int rank = 0; rank < ring->comm->size; rank++)
        bytes[rank] = queries_of(args, rank) * weight_bytes(&args->index);
    return all_gather(ring, args->index_weight, room->weight, bytes);
}

// The best of this rank's keys for every rank's queries, into room->all.
static enum status score_all_queries(struct ring_attention *ring,
                                     const struct sparse_ring_args *args, const struct room *room) {
    const struct ring_attention_args *a = &args->attention;
    struct index_block own = {.n_key = keys_of(args, ring->comm->rank),
                              .key = args->index_key,
                              .scale = args->index_key_scale};
    int64_t first = 0;
    TRY(clear_counts(ring, room->n_all, a->query_end - a->query_begin));
    TRY(list_keys(ring, args, ring->comm->rank, &own));
    for (int rank = 0; rank < ring->comm->size; rank++) {
        const struct index_queries queries = {
            .n = queries_of(args, rank),
            .query = (const char *)room->query + first * query_bytes(&args->index),
            .weight = room->weight + first * args->index.n_head,
            .candidate = room->all + first * args->index.k,
            .n_candidate = room->n_all + first,
        };
        TRY(ring_list_positions(&ring->query_position, a->sequence, rank, a->query_begin,
                                a->query_end));
        TRY(score_block(ring, args, &queries, &own));
        first += queries.n;
    }
    return OK;
}

// How many candidates each rank found for n queries at the given positions: its keys up to each, k
// at most. Host arithmetic, so that no count travels.
static enum status count_candidates(struct ring_attention *ring,
                                    const struct sparse_ring_args *args, int64_t n, int32_t *out) {
    const struct ring_attention_args *a = &args->attention;
    int64_t n_count = ring->comm->size * n;
    TRY(ring_reserve_positions(&ring->key_position, n_count));
    int32_t *count = (int32_t *)(void *)ring->key_position.at;
    for (int64_t i = 0; i < n_count; i++) {
        int64_t end = ring->query_position.at[i % n] + 1;
        int64_t visible = sequence_count(a->sequence, (int)(i / n), 0, end);
        count[i] = (int32_t)(visible < args->index.k ? visible : args->index.k);
    }
    return upload_counts(ring, out, count, n_count);
}

// Merges the candidates that every rank found for n queries (room->other, by rank) into the
// arguments' selection. ring->query_position holds the queries' positions.
static enum status merge_candidates(struct ring_attention *ring,
                                    const struct sparse_ring_args *args, const struct room *room,
                                    int64_t n, uint64_t *threshold) {
    TRY(count_candidates(ring, args, n, room->n_other));
    double begun = profile_begin(ring->profile, PHASE_INDEX);
    TRY(ring->backend->ops->index_merge(ring->backend,
                                        &(struct index_merge_args){.n_query = n,
                                                                   .k = args->index.k,
                                                                   .candidate = args->candidate,
                                                                   .n_candidate = args->n_candidate,
                                                                   .n_list = ring->comm->size,
                                                                   .other = room->other,
                                                                   .n_other = room->n_other,
                                                                   .threshold = threshold}));
    profile_end(ring->profile, PHASE_INDEX, begun);
    return OK;
}

// Sends every rank the thresholds of all queries and drops what lies below them.
static enum status filter_all(struct ring_attention *ring, const struct sparse_ring_args *args,
                              const struct room *room) {
    int64_t *bytes = ring->rank_bytes, n_all = 0;
    for (int rank = 0; rank < ring->comm->size; rank++) {
        int64_t n = queries_of(args, rank);
        bytes[rank] = n * (int64_t)sizeof(uint64_t);
        n_all += n;
    }
    TRY(all_gather(ring, room->own_threshold, room->threshold, bytes));
    double begun = profile_begin(ring->profile, PHASE_INDEX);
    TRY(ring->backend->ops->index_filter(
        ring->backend, &(struct index_filter_args){.n_query = n_all,
                                                   .k = args->index.k,
                                                   .candidate = room->all,
                                                   .n_candidate = room->n_all,
                                                   .threshold = room->threshold}));
    profile_end(ring->profile, PHASE_INDEX, begun);
    return OK;
}

// Afterwards room->all holds the selected ones among this rank's keys, for every rank's queries.
static enum status select_by_scores(struct ring_attention *ring,
                                    const struct sparse_ring_args *args, const struct room *room) {
    const struct comm *comm = ring->comm;
    const struct ring_attention_args *a = &args->attention;
    int64_t n_own = queries_of(args, comm->rank);
    int64_t *send_bytes = ring->rank_bytes, *receive_bytes = ring->rank_bytes + comm->size;
    TRY(gather_queries(ring, args, room));
    TRY(score_all_queries(ring, args, room));
    for (int rank = 0; rank < comm->size; rank++) {
        send_bytes[rank] = queries_of(args, rank) * candidate_bytes(&args->index);
        receive_bytes[rank] = n_own * candidate_bytes(&args->index);
    }
    TRY(ring_all_to_all(ring, room->all, send_bytes, room->other, receive_bytes));
    TRY(ring_list_positions(&ring->query_position, a->sequence, comm->rank, a->query_begin,
                            a->query_end));
    TRY(merge_candidates(ring, args, room, n_own, room->own_threshold));
    return filter_all(ring, args, room);
}

// An earlier layer's selections of every rank's queries, whole: each rank finds its own keys there.
static enum status gather_selections(struct ring_attention *ring,
                                     const struct sparse_ring_args *args, const struct room *room) {
    int64_t *bytes = ring->rank_bytes;
    for (int rank = 0; rank < ring->comm->size; rank++)
        bytes[rank] = queries_of(args, rank) * candidate_bytes(&args->index);
    TRY(all_gather(ring, args->candidate, room->all, bytes));
    for (int rank = 0; rank < ring->comm->size; rank++)
        bytes[rank] = queries_of(args, rank) * (int64_t)sizeof(int32_t);
    return all_gather(ring, args->n_candidate, room->n_all, bytes);
}

// Selected pairs of n queries of which the i-th sees all positions up to its own.
static void count_flop(struct ring_attention *ring, const struct sparse_ring_args *args,
                       int query_rank) {
    const struct ring_attention_args *a = &args->attention;
    int64_t pairs = 0, begin = a->query_begin, k = args->index.k;
    int64_t full = begin > k ? begin : k; // queries from here on select k
    if (full < a->query_end)
        pairs += k * sequence_count(a->sequence, query_rank, full, a->query_end);
    const struct visible_range few = {.sequence = a->sequence,
                                      .visibility = VISIBILITY_CAUSAL,
                                      .query_begin = begin,
                                      .query_end = full < a->query_end ? full : a->query_end};
    for (int rank = 0; begin < few.query_end && rank < a->sequence->size; rank++)
        pairs += visible_pairs(&few, query_rank, rank);
    ring->profile->attention_flop += 2 * pairs * a->n_head * (a->head_dim + a->value_dim);
}

static enum status open_room(struct ring_attention *ring, const struct sparse_ring_args *args,
                             enum route route, struct room *out) {
    struct ring_room space = {.base = ring->workspace};
    struct attention_shape shape = ring_shape(&args->attention);
    struct extent_of_call call = {.route = route,
                                  .size = ring->comm->size,
                                  .slice = ring_slice(ring->backend->memory, &shape),
                                  .n_all = args->attention.query_end - args->attention.query_begin};
    for (int rank = 0; rank < call.size; rank++) {
        int64_t n_key = keys_of(args, rank), n = queries_of(args, rank);
        if (n_key > call.n_shard) call.n_shard = n_key;
        if (n > call.n_query) call.n_query = n;
    }
    if (route == ROUTE_DECODE) call.n_query = call.n_all;
    *out = carve(&space, &args->index, &call);
    return ring_check_room(ring, &space);
}

enum status sparse_attention_run(struct ring_attention *ring, const struct sparse_ring_args *args) {
    bool scores = args->exchange == EXCHANGE_SCORES && ring->comm->size > 1;
    struct room room;
    TRY(open_room(ring, args, scores ? ROUTE_SCORES : ROUTE_KEYS, &room));
    count_flop(ring, args, ring->comm->rank);
    if (scores) {
        TRY(args->reuse ? gather_selections(ring, args, &room)
                        : select_by_scores(ring, args, &room));
        room.selection.candidate = room.all;
        room.selection.n_candidate = room.n_all;
    } else {
        if (!args->reuse) TRY(select_by_keys(ring, args, &room));
        room.selection.candidate = args->candidate;
        room.selection.n_candidate = args->n_candidate;
    }
    ring->reserved = room.kept;
    enum status status = scores ? ring_pass_q_run(ring, &args->attention, &room.selection)
                                : ring_pass_kv_run(ring, &args->attention, &room.selection);
    ring->reserved = 0;
    return status;
}

// Every rank scores the queries against its own keys; all gather what all found.
static enum status select_in_decode(struct ring_attention *ring,
                                    const struct sparse_ring_args *args, const struct room *room) {
    const struct ring_attention_args *a = &args->attention;
    const struct comm *comm = ring->comm;
    int64_t n = a->query_end - a->query_begin;
    bool alone = comm->size == 1;
    const struct index_queries queries = {.n = n,
                                          .query = args->index_query,
                                          .weight = args->index_weight,
                                          .candidate = alone ? args->candidate : room->all,
                                          .n_candidate = alone ? args->n_candidate : room->n_all};
    struct index_block own = {
        .n_key = keys_of(args, comm->rank), .key = args->index_key, .scale = args->index_key_scale};
    TRY(clear_counts(ring, queries.n_candidate, n));
    TRY(ring_reserve_positions(&ring->query_position, n));
    for (int64_t i = 0; i < n; i++) ring->query_position.at[i] = a->query_begin + i;
    TRY(list_keys(ring, args, comm->rank, &own));
    TRY(score_block(ring, args, &queries, &own));
    if (alone) return OK;
    for (int rank = 0; rank < comm->size; rank++)
        ring->rank_bytes[rank] = n * candidate_bytes(&args->index);
    TRY(all_gather(ring, room->all, room->other, ring->rank_bytes));
    return merge_candidates(ring, args, room, n, NULL);
}

enum status sparse_decode_run(struct ring_attention *ring, const struct sparse_ring_args *args) {
    const struct ring_attention_args *a = &args->attention;
    struct room room;
    TRY(open_room(ring, args, ROUTE_DECODE, &room));
    for (int64_t p = a->query_begin; p < a->query_end; p++) {
        if (sequence_owner(a->sequence, p, NULL) == ring->comm->rank)
            count_flop(ring, args, ring->comm->rank);
    }
    if (!args->reuse) TRY(select_in_decode(ring, args, &room));
    room.selection.candidate = args->candidate;
    room.selection.n_candidate = args->n_candidate;
    ring->reserved = room.kept;
    enum status status = ring_decode_run(ring, a, 1, &room.selection);
    ring->reserved = 0;
    return status;
}
