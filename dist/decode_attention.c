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

// Copies n_row rows of n_col floats between two strides.
static enum status copy_columns(struct backend *backend, const float *x, int64_t x_stride,
                                int64_t n_row, int64_t n_col, float *out, int64_t out_stride) {
    struct convert_args convert = {.x = x,
                                   .x_dtype = DTYPE_F32,
                                   .x_stride = x_stride,
                                   .n_row = n_row,
                                   .n_col = n_col,
                                   .out = out,
                                   .out_dtype = DTYPE_F32,
                                   .out_stride = out_stride};
    return n_row && n_col ? backend->ops->convert(backend, &convert) : OK;
}

static enum status attend_shard(struct ring_attention *ring, const struct ring_attention_args *args,
                                const struct ring_selection *selection, float *out, float *lse) {
    const struct comm *comm = ring->comm;
    int64_t n_query = args->query_end - args->query_begin;
    // One query at the end sees every key: then no positions of a long shard need be listed.
    struct ring_attention_args masked = *args;
    masked.causal = args->causal && n_query > 1 && !selection;
    if (masked.causal)
        TRY(ring_list_positions(&ring->key_position, args->sequence, comm->rank, 0,
                                args->query_end));
    struct ring_block own = {.n_key =
                                 sequence_count(args->sequence, comm->rank, 0, args->query_end),
                             .key = args->key,
                             .value = args->value,
                             .position = ring->key_position.at};
    if (selection) TRY(ring_list_runs(ring, args->sequence, comm->rank, args->query_end, &own));
    int64_t pairs = 0; // every rank's queries against the own keys
    for (int rank = 0; rank < comm->size; rank++) pairs += ring_pairs(args, rank, comm->rank);
    TRY(ring_reserve_positions(&ring->query_position, n_query));
    for (int64_t i = 0; i < n_query; i++) ring->query_position.at[i] = args->query_begin + i;
    struct ring_queries queries = {.n = n_query,
                                   .query = args->query,
                                   .position = ring->query_position.at,
                                   .out = out,
                                   .lse = lse};
    if (selection) queries.selection = *selection;
    return ring_attend(ring, &masked, &queries, &own, NULL, pairs);
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
    float *block = room->send;
    for (int rank = 0; rank < size; rank++) {
        struct span heads = partition_piece(args->n_head, size, rank);
        float *block_lse = block + n_query * heads.length * dim;
        TRY(copy_columns(backend, room->out + heads.start * dim, (int64_t)args->n_head * dim,
                         n_query, heads.length * dim, block, heads.length * dim));
        TRY(copy_columns(backend, room->lse + heads.start, args->n_head, n_query, heads.length,
                         block_lse, heads.length));
        send_bytes[rank] = n_query * heads.length * (dim + 1) * (int64_t)sizeof(float);
        receive_bytes[rank] = n_query * own_heads * (dim + 1) * (int64_t)sizeof(float);
        block = block_lse + n_query * heads.length;
    }
    profile_end(ring->profile, PHASE_MERGE, begun);
    return ring_all_to_all(ring, room->send, send_bytes, room->receive, receive_bytes);
}

static enum status merge_heads(struct ring_attention *ring, const struct ring_attention_args *args,
                               const struct decode_room *room, float *head_out) {
    struct backend *backend = ring->backend;
    const int size = ring->comm->size, dim = args->value_dim;
    const int64_t n_row =
        (args->query_end - args->query_begin) * heads_of(args->n_head, size, ring->comm->rank);
    double begun = profile_begin(ring->profile, PHASE_MERGE);
    TRY(copy_columns(backend, room->receive, dim, n_row, dim, head_out, dim));
    TRY(copy_columns(backend, room->receive + n_row * dim, 1, n_row, 1, room->head_lse, 1));
    for (int rank = 1; rank < size; rank++) {
        const float *block = room->receive + rank * n_row * (dim + 1);
        struct merge_args merge = {.n_row = n_row,
                                   .value_dim = dim,
                                   .out = head_out,
                                   .lse = room->head_lse,
                                   .other_out = block,
                                   .other_lse = block + n_row * dim};
        if (n_row) TRY(backend->ops->merge_partials(backend, &merge));
    }
    profile_end(ring->profile, PHASE_MERGE, begun);
    return OK;
}

static enum status gather_lse(struct ring_attention *ring, const struct ring_attention_args *args,
                              const struct decode_room *room, float *all_lse) {
    const int size = ring->comm->size;
    const int64_t n_query = args->query_end - args->query_begin;
    int64_t *bytes = ring->rank_bytes;
    for (int rank = 0; rank < size; rank++)
        bytes[rank] = n_query * heads_of(args->n_head, size, rank) * (int64_t)sizeof(float);
    double begun = profile_begin(ring->profile, PHASE_RING_WAIT);
    TRY(ring->comm->ops->all_gather(ring->comm, room->head_lse, room->gathered, bytes));
    profile_end(ring->profile, PHASE_RING_WAIT, begun);
    begun = profile_begin(ring->profile, PHASE_MERGE);
    const float *block = room->gathered;
    for (int rank = 0; rank < size; rank++) {
        struct span heads = partition_piece(args->n_head, size, rank);
        TRY(copy_columns(ring->backend, block, heads.length, n_query, heads.length,
                         all_lse + heads.start, args->n_head));
        block += n_query * heads.length;
    }
    profile_end(ring->profile, PHASE_MERGE, begun);
    return OK;
}

enum status decode_attention_run(struct ring_attention *ring,
                                 const struct ring_attention_args *args, float *head_out,
                                 float *all_lse) {
    return ring_decode_run(ring, args, NULL, head_out, all_lse);
}

enum status ring_decode_run(struct ring_attention *ring, const struct ring_attention_args *args,
                            const struct ring_selection *selection, float *head_out,
                            float *all_lse) {
    struct attention_shape shape = ring_shape(args);
    struct ring_room space = {.base = ring->workspace, .used = ring->reserved};
    struct decode_room room =
        carve(&space, &shape, ring->comm->size, args->query_end - args->query_begin);
    TRY(ring_check_room(ring, &space));
    if (ring->comm->size == 1)
        return attend_shard(ring, args, selection, head_out, all_lse ? all_lse : room.lse);
    TRY(attend_shard(ring, args, selection, room.out, room.lse));
    TRY(exchange_heads(ring, args, &room));
    TRY(merge_heads(ring, args, &room, head_out));
    return all_lse ? gather_lse(ring, args, &room, all_lse) : OK;
}
