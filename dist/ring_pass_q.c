// Pass-Q: the queries travel, K/V stay. At step s rank r attends its own shard for the queries of
// rank (r - s) mod P while they are sent on to r + 1. P - 1 shifts; then one all-to-all takes every
// partial (fp32 out, lse) home, where those of the other ranks are merged in rank order.
#include "dist/ring_internal.h"

struct pass_q_room {
    void *query[2]; // queries of one rank each
    char *send; // partials for the other ranks, in rank order: [n, n_head, value_dim], [n, n_head]
    char *receive; // partials of the own queries from the other ranks, in rank order
};

// n_holder: the most queries that one rank owns; n_all: those of all ranks.
static struct pass_q_room carve(struct ring_room *room, const struct attention_shape *shape,
                                int size, int64_t n_holder, int64_t n_all) {
    struct pass_q_room out = {{NULL}, NULL, NULL};
    if (size == 1) return out;
    for (int i = 0; i < 2 && i < size - 1; i++)
        out.query[i] = ring_take(room, n_holder * ring_query_row_bytes(shape));
    out.send = ring_take(room, ring_partial_bytes(shape, n_all));
    out.receive = ring_take(room, (size - 1) * ring_partial_bytes(shape, n_holder));
    return out;
}

int64_t ring_pass_q_bytes(const struct attention_shape *shape, int size, int64_t n_own,
                          int64_t n_all) {
    struct ring_room room = {0};
    carve(&room, shape, size, n_own, n_all);
    return room.used;
}

static int64_t queries_of(const struct ring_attention_args *args, int rank) {
    return sequence_count(args->sequence, rank, args->query_begin, args->query_end);
}

static enum status start_shift(struct ring_attention *ring, const struct ring_attention_args *args,
                               const struct ring_queries *held, void *receive, int next) {
    const struct comm *comm = ring->comm;
    struct attention_shape shape = ring_shape(args);
    int64_t row_bytes = ring_query_row_bytes(&shape);
    struct shift_args shift = {
        .destination = (comm->rank + 1) % comm->size,
        .source = (comm->rank + comm->size - 1) % comm->size,
        .n_buffer = 1,
        .send = {{(void *)held->query, held->n * row_bytes}},
        .receive = {{receive, queries_of(args, next) * row_bytes}},
    };
    return ring_shift_start(ring, &shift);
}

// Where the partial for a rank's queries begins in the send area: the own rank has no block.
static char *block_for(const struct ring_attention *ring, const struct ring_attention_args *args,
                       char *send, int home) {
    struct attention_shape shape = ring_shape(args);
    for (int rank = 0; rank < home; rank++)
        if (rank != ring->comm->rank) send += ring_partial_bytes(&shape, queries_of(args, rank));
    return send;
}

// The part of all ranks' selection that belongs to a rank's queries.
static struct ring_selection selection_of(const struct ring_attention_args *args,
                                          const struct ring_selection *all, int rank) {
    struct ring_selection selection = *all;
    for (int i = 0; i < rank; i++) {
        selection.candidate += queries_of(args, i) * all->k;
        selection.n_candidate += queries_of(args, i);
    }
    return selection;
}

static enum status attend_all(struct ring_attention *ring, const struct ring_attention_args *args,
                              const struct ring_selection *selection,
                              const struct pass_q_room *room) {
    const struct comm *comm = ring->comm;
    struct visible_range range = ring_range(args);
    struct ring_block own = {
        .n_key = visible_held(&range, comm->rank), .key = args->key, .value = args->value};
    TRY(ring_check_visible(args));
    TRY(ring_list_keys(ring, args, comm->rank, selection != NULL, &own));
    struct ring_queries held = {.query = args->query, .out = args->out, .lse = args->lse};
    for (int step = 0; step < comm->size; step++) {
        int holder = (comm->rank - step + comm->size) % comm->size;
        int next = (holder - 1 + comm->size) % comm->size;
        bool last = step == comm->size - 1;
        beacon_step(ring->profile->beacon, step + 1, comm->size);
        held.n = queries_of(args, holder);
        if (selection) held.selection = selection_of(args, selection, holder);
        if (step) {
            held.out = (float *)block_for(ring, args, room->send, holder);
            held.lse = held.out + held.n * args->n_head * args->value_dim;
        }
        if (!last) TRY(start_shift(ring, args, &held, room->query[step % 2], next));
        TRY(ring_list_queries(ring, args, holder, &held));
        bool merge = args->merge && step == 0; // partials for other ranks are merged there
        TRY(ring_attend(ring, args, &held, &own, merge, ring_pairs(args, holder, comm->rank)));
        if (last) break;
        TRY(ring_shift_wait(ring));
        held.query = room->query[step % 2];
    }
    return OK;
}

static enum status merge_home(struct ring_attention *ring, const struct ring_attention_args *args,
                              const char *block, int64_t n_own) {
    struct attention_shape shape = ring_shape(args);
    const float *out = (const float *)block;
    double begun = profile_begin(ring->profile, PHASE_MERGE);
    struct merge_args merge = {.n_row = n_own * args->n_head,
                               .value_dim = args->value_dim,
                               .merge = true,
                               .out = args->out,
                               .lse = args->lse,
                               .n_other = ring->comm->size - 1,
                               .other_out = out,
                               .other_lse = out + n_own * args->n_head * args->value_dim,
                               .other_stride =
                                   ring_partial_bytes(&shape, n_own) / (int64_t)sizeof *out};
    TRY(ring->backend->ops->merge_partials(ring->backend, &merge));
    profile_end(ring->profile, PHASE_MERGE, begun);
    return OK;
}

enum status ring_pass_q_run(struct ring_attention *ring, const struct ring_attention_args *args,
                            const struct ring_selection *selection) {
    const struct comm *comm = ring->comm;
    struct attention_shape shape = ring_shape(args);
    int64_t n_own = queries_of(args, comm->rank), n_holder = 0;
    int64_t *send_bytes = ring->rank_bytes, *receive_bytes = ring->rank_bytes + comm->size;
    for (int rank = 0; rank < comm->size; rank++) {
        int64_t n = queries_of(args, rank);
        if (n > n_holder) n_holder = n;
        send_bytes[rank] = rank == comm->rank ? 0 : ring_partial_bytes(&shape, n);
        receive_bytes[rank] = rank == comm->rank ? 0 : ring_partial_bytes(&shape, n_own);
    }
    struct ring_room space = {.base = ring->workspace, .used = ring->reserved};
    struct pass_q_room room =
        carve(&space, &shape, comm->size, n_holder, args->query_end - args->query_begin);
    TRY(ring_check_room(ring, &space));
    TRY(attend_all(ring, args, selection, &room));
    TRY(ring_all_to_all(ring, room.send, send_bytes, room.receive, receive_bytes));
    return merge_home(ring, args, room.receive, n_own);
}
