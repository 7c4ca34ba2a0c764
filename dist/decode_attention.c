// Decode: every rank holds the same few queries and attends its own shard for all heads; one
// all-to-all then brings each rank the partials of its own heads, merged in rank order (Helix).
// Bytes: volume_decode, independent of the sequence's length.
#include "dist/ring_internal.h"

struct decode_room {
    float *out, *lse; // [n_query, n_head, value_dim], [n_query, n_head]: this shard's partial
    float *send;      // per rank [n_query, its heads, value_dim] then [n_query, its heads]
    float *receive;   // per rank the same for this rank's heads
    float *head_lse;  // [n_query, own heads] merged
    float *gathered;  // per rank [n_query, its heads]
};

static int64_t heads_of(int n_head, int size, int rank) {
    return partition_piece(n_head, size, rank).length;
}

static struct decode_room carve(struct ring_room *room, const struct attention_shape *shape,
                                int size, int64_t n_query) {
    const int64_t f32 = sizeof(float), most_heads = heads_of(shape->n_head, size, 0);
    struct decode_room out = {0};
    out.lse = ring_take(room, n_query * shape->n_head * f32);
    if (size == 1) return out;
    out.out = ring_take(room, n_query * shape->n_head * shape->value_dim * f32);
    out.send = ring_take(room, ring_partial_bytes(shape, n_query));
    out.receive = ring_take(room, size * n_query * most_heads * (shape->value_dim + 1) * f32);
    out.head_lse = ring_take(room, n_query * most_heads * f32);
    out.gathered = ring_take(room, n_query * shape->n_head * f32);
    return out;
}

int64_t decode_attention_bytes(const struct attention_shape *shape, int size, int64_t n_query) {
    struct ring_room room = {0};
    carve(&room, shape, size, n_query);
    return room.used;
}

// Rows of the own shard at positions [begin, end).
static struct ring_block own_block(const struct ring_attention_args *args, int rank, int64_t begin,
                                   int64_t end) {
    struct attention_shape shape = ring_shape(args);
    struct visible_range range = ring_range(args);
    int64_t row = visible_held_before(&range, rank, begin);
    struct ring_block block = {.n_key = visible_held_before(&range, rank, end) - row,
                               .key = (const char *)args->key + row * ring_key_row_bytes(&shape)};
    if (args->value) block.value = (const char *)args->value + row * ring_value_row_bytes(&shape);
    return block;
}

static int64_t held_between(const struct visible_range *range, int rank, int64_t begin,
                            int64_t end) {
    if (end <= begin) return 0;
    return visible_held_before(range, rank, end) - visible_held_before(range, rank, begin);
}

// Pairs of the few queries, which all ranks have, and the own keys among the positions.
static int64_t pairs_among(const struct ring_attention_args *args, int rank, struct span keys) {
    struct visible_range range = ring_range(args);
    int64_t sinks = visibility_sinks(&args->visibility), pairs = 0;
    for (int64_t p = args->query_begin; p < args->query_end; p++) {
        int64_t begin = visibility_begin(&args->visibility, p);
        int64_t end = visibility_end(&args->visibility, p);
        if (begin < sinks) begin = sinks;
        if (begin < keys.start) begin = keys.start;
        if (end > keys.start + keys.length) end = keys.start + keys.length;
        pairs += held_between(&range, rank, keys.start, end < sinks ? end : sinks) +
                 held_between(&range, rank, begin, end);
    }
    return pairs;
}

static enum status attend_positions(struct ring_attention *ring,
                                    const struct ring_attention_args *args,
                                    const struct ring_queries *queries, struct span keys,
                                    bool merge) {
    int rank = ring->comm->rank;
    struct ring_block own = own_block(args, rank, keys.start, keys.start + keys.length);
    if (merge && own.n_key == 0) return OK;
    if (queries->selection.k) {
        TRY(ring_list_keys(ring, args, rank, true, &own));
    } else if (queries->first || queries->end) {
        TRY(ring_list_positions(&ring->key_position, args->sequence, rank, keys.start,
                                keys.start + keys.length));
        own.position = ring->key_position.at;
    }
    return ring_attend(ring, args, queries, &own, merge, pairs_among(args, rank, keys));
}

// The rows that the queries see, and the sinks before them.
static enum status attend_part(struct ring_attention *ring, const struct ring_attention_args *args,
                               struct ring_queries queries, bool merge) {
    const struct visibility *visibility = &args->visibility;
    TRY(ring_check_visible(args));
    queries.query = args->query;
    // One query sees all of the rows: no positions of a long shard need be listed.
    if (queries.n > 1 && !queries.selection.k) TRY(ring_list_bounds(ring, args, &queries));
    int64_t begin = visibility_begin(visibility, args->query_begin);
    int64_t end = visibility_end(visibility, args->query_end - 1);
    if (end > args->query_end) end = args->query_end;
    struct span window = {begin, end > begin ? end - begin : 0};
    TRY(attend_positions(ring, args, &queries, window, merge));
    int64_t sinks = visibility_sinks(visibility);
    if (sinks > begin) sinks = begin;
    if (sinks > end) sinks = end;
    return attend_positions(ring, args, &queries, (struct span){0, sinks}, true);
}

// All parts against the own shard, into out and lse of all heads.
static enum status attend_shard(struct ring_attention *ring,
                                const struct ring_attention_args *parts, int n_part,
                                struct ring_queries queries) {
    queries.n = parts->query_end - parts->query_begin;
    TRY(ring_reserve_positions(&ring->query_position, queries.n));
    for (int64_t i = 0; i < queries.n; i++) ring->query_position.at[i] = parts->query_begin + i;
    queries.position = ring->query_position.at;
    for (int i = 0; i < n_part; i++) TRY(attend_part(ring, &parts[i], queries, i > 0));
    return OK;
}

static enum status exchange_heads(struct ring_attention *ring,
                                  const struct ring_attention_args *args,
                                  const struct decode_room *room) {
    struct backend *backend = ring->backend;
    const int size = ring->comm->size, dim = args->value_dim;
    const int64_t n_query = args->query_end - args->query_begin;
    const int64_t own_heads = heads_of(args->n_head, size, ring->comm->rank);
    int64_t *send_bytes = ring->rank_bytes, *receive_bytes = ring->rank_bytes + size;
    double begun = profile_begin(ring->profile, PHASE_MERGE);
    struct block_copy block[2 * size];
    float *out = room->send;
    for (int rank = 0; rank < size; rank++) {
        struct span heads = partition_piece(args->n_head, size, rank);
        int64_t width = heads.length * dim;
        float *lse = out + n_query * width;
        block[2 * rank] = (struct block_copy){room->out + heads.start * dim, out,  n_query, width,
                                              (int64_t)args->n_head * dim,   width};
        block[2 * rank + 1] = (struct block_copy){
            room->lse + heads.start, lse, n_query, heads.length, args->n_head, heads.length};
        send_bytes[rank] = n_query * heads.length * (dim + 1) * (int64_t)sizeof(float);
        receive_bytes[rank] = n_query * own_heads * (dim + 1) * (int64_t)sizeof(float);
        out = lse + n_query * heads.length;
    }
    TRY(backend->ops->copy_blocks(backend, &(struct copy_blocks_args){block, 2 * size}));
    profile_end(ring->profile, PHASE_MERGE, begun);
    return ring_all_to_all(ring, room->send, send_bytes, room->receive, receive_bytes);
}

static enum status merge_heads(struct ring_attention *ring, const struct ring_attention_args *args,
                               const struct decode_room *room) {
    struct backend *backend = ring->backend;
    const int size = ring->comm->size, dim = args->value_dim;
    const int64_t n_row =
        (args->query_end - args->query_begin) * heads_of(args->n_head, size, ring->comm->rank);
    double begun = profile_begin(ring->profile, PHASE_MERGE);
    struct merge_args merge = {.n_row = n_row,
                               .value_dim = dim,
                               .out = args->out,
                               .lse = room->head_lse,
                               .n_other = size,
                               .other_out = room->receive,
                               .other_lse = room->receive + n_row * dim,
                               .other_stride = n_row * (dim + 1)};
    TRY(backend->ops->merge_partials(backend, &merge));
    profile_end(ring->profile, PHASE_MERGE, begun);
    return OK;
}

static enum status gather_lse(struct ring_attention *ring, const struct ring_attention_args *args,
                              const struct decode_room *room) {
    const int size = ring->comm->size;
    const int64_t n_query = args->query_end - args->query_begin;
    int64_t *bytes = ring->rank_bytes;
    struct block_copy block[size];
    for (int rank = 0; rank < size; rank++)
        bytes[rank] = n_query * heads_of(args->n_head, size, rank) * (int64_t)sizeof(float);
    double begun = profile_begin(ring->profile, PHASE_RING_WAIT);
    TRY(ring->comm->ops->all_gather(ring->comm, room->head_lse, room->gathered, bytes));
    profile_end(ring->profile, PHASE_RING_WAIT, begun);
    begun = profile_begin(ring->profile, PHASE_MERGE);
    const float *from = room->gathered;
    for (int rank = 0; rank < size; rank++) {
        struct span heads = partition_piece(args->n_head, size, rank);
        block[rank] = (struct block_copy){
            from, args->lse + heads.start, n_query, heads.length, heads.length, args->n_head};
        from += n_query * heads.length;
    }
    TRY(ring->backend->ops->copy_blocks(ring->backend, &(struct copy_blocks_args){block, size}));
    profile_end(ring->profile, PHASE_MERGE, begun);
    return OK;
}

enum status decode_attention_run(struct ring_attention *ring,
                                 const struct ring_attention_args *parts, int n_part) {
    return ring_decode_run(ring, parts, n_part, NULL);
}

enum status ring_decode_run(struct ring_attention *ring, const struct ring_attention_args *parts,
                            int n_part, const struct ring_selection *selection) {
    struct attention_shape shape = ring_shape(parts);
    struct ring_room space = {.base = ring->workspace, .used = ring->reserved};
    struct decode_room room =
        carve(&space, &shape, ring->comm->size, parts->query_end - parts->query_begin);
    TRY(ring_check_room(ring, &space));
    struct ring_queries queries = {.out = room.out, .lse = room.lse};
    if (selection) queries.selection = *selection;
    if (ring->comm->size == 1) {
        queries.out = parts->out;
        if (parts->lse) queries.lse = parts->lse;
        return attend_shard(ring, parts, n_part, queries);
    }
    TRY(attend_shard(ring, parts, n_part, queries));
    TRY(exchange_heads(ring, parts, &room));
    TRY(merge_heads(ring, parts, &room));
    return parts->lse ? gather_lse(ring, parts, &room) : OK;
}
