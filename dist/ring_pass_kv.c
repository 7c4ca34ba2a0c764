// Pass-KV: at step s rank r attends to the shard of rank (r - s) mod P while it sends that shard to
// r + 1 and receives the next one from r - 1. P - 1 shifts. The own shard is read in place, the
// others alternate between two buffers: what is attended is sent on and never overwritten.
#include "dist/ring_internal.h"

// The second buffer only with three ranks or more.
static struct ring_blocks carve(struct ring_room *room, const struct attention_shape *shape,
                                int size, int64_t n_shard) {
    return ring_take_blocks(room, shape, size < 3 ? size - 1 : 2, n_shard);
}

int64_t ring_pass_kv_bytes(const struct attention_shape *shape, int size, int64_t n_shard) {
    struct ring_room room = {0};
    carve(&room, shape, size, n_shard);
    return room.used;
}

static int64_t largest_shard(const struct ring_attention_args *args) {
    struct visible_range range = ring_range(args);
    int64_t largest = 0;
    for (int rank = 0; rank < args->sequence->size; rank++) {
        int64_t n = visible_held(&range, rank);
        if (n > largest) largest = n;
    }
    return largest;
}

// Sends the held block on and receives rank `next`'s into buffer (step mod 2).
static enum status start_shift(struct ring_attention *ring, const struct ring_attention_args *args,
                               const struct ring_blocks *room, const struct ring_block *held,
                               int step, int next) {
    const struct comm *comm = ring->comm;
    struct attention_shape shape = ring_shape(args);
    int64_t key_bytes = ring_key_row_bytes(&shape), value_bytes = ring_value_row_bytes(&shape);
    struct visible_range range = ring_range(args);
    int64_t n_next = visible_held(&range, next);
    struct shift_args shift = {
        .destination = (comm->rank + 1) % comm->size,
        .source = (comm->rank + comm->size - 1) % comm->size,
        .n_buffer = shape.value_in_key ? 1 : 2,
        .send = {{(void *)held->key, held->n_key * key_bytes},
                 {(void *)held->value, held->n_key * value_bytes}},
        .receive = {{room->key[step % 2], n_next * key_bytes},
                    {room->value[step % 2], n_next * value_bytes}},
    };
    return ring_shift_start(ring, &shift);
}

enum status ring_pass_kv_run(struct ring_attention *ring, const struct ring_attention_args *args,
                             const struct ring_selection *selection) {
    const struct comm *comm = ring->comm;
    struct attention_shape shape = ring_shape(args);
    struct visible_range range = ring_range(args);
    int64_t n_query =
        sequence_count(args->sequence, comm->rank, args->query_begin, args->query_end);
    struct ring_room space = {.base = ring->workspace, .used = ring->reserved};
    struct ring_blocks room = carve(&space, &shape, comm->size, largest_shard(args));
    TRY(ring_check_room(ring, &space));
    TRY(ring_check_visible(args));
    struct ring_queries queries = {
        .n = n_query, .query = args->query, .out = args->out, .lse = args->lse};
    TRY(ring_list_queries(ring, args, comm->rank, &queries));
    if (selection) queries.selection = *selection;
    struct ring_block held = {.key = args->key, .value = args->value};
    for (int step = 0; step < comm->size; step++) {
        int holder = (comm->rank - step + comm->size) % comm->size;
        int next = (holder - 1 + comm->size) % comm->size;
        bool last = step == comm->size - 1;
        beacon_step(ring->profile->beacon, step + 1, comm->size);
        held.n_key = visible_held(&range, holder);
        if (!last) TRY(start_shift(ring, args, &room, &held, step, next));
        int64_t pairs = visible_pairs(&range, comm->rank, holder);
        bool merge = args->merge || step > 0;
        if (!merge || pairs > 0) {
            TRY(ring_list_keys(ring, args, holder, selection != NULL, &held));
            TRY(ring_attend(ring, args, &queries, &held, merge, pairs));
        }
        if (last) break;
        TRY(ring_shift_wait(ring));
        held.key = room.key[step % 2];
        if (args->value) held.value = room.value[step % 2];
    }
    return OK;
}
