// Pass-halo: each rank receives only the keys that its queries see. At distance d = 1..P-1 rank r
// sends to r + d what that rank needs of it and receives what it needs of r - d, one span of
// positions a round: rows of a span are one run wherever they are held, so nothing is packed.
// What needs sending follows from the sequence alone; rounds that move nothing are left out.
// The own keys are attended during the first two rounds, what came before during the later ones.
#include <stdlib.h>

#include "dist/ring_internal.h"

static struct ring_blocks carve(struct ring_room *room, const struct attention_shape *shape,
                                int size, int64_t n_row) {
    return ring_take_blocks(room, shape, size == 1 ? 0 : 2, n_row);
}

int64_t ring_pass_halo_bytes(const struct attention_shape *shape, int size, int64_t n_row) {
    struct ring_room room = {0};
    carve(&room, shape, size, n_row);
    return room.used;
}

struct halo {
    const struct visible_range *range;
    int rank, size;
    struct span *own, *other; // what this rank needs, and the rank that it sends to
    int n_own, n_other;
    int distance, index;       // of the round
    struct span send, receive; // rows held by this rank, and by the rank that it receives from
};

static struct span rows_of(const struct visible_range *range, int rank, struct span positions) {
    int64_t first = visible_held_before(range, rank, positions.start);
    int64_t end = visible_held_before(range, rank, positions.start + positions.length);
    return (struct span){first, end - first};
}

static int halo_source(const struct halo *halo) {
    return (halo->rank - halo->distance + halo->size) % halo->size;
}

static int halo_destination(const struct halo *halo) {
    return (halo->rank + halo->distance) % halo->size;
}

static void halo_rewind(struct halo *halo) {
    halo->distance = halo->n_other = 0;
    halo->index = halo->n_own;
}

// The next round in which this rank sends or receives. A rank's rounds are in the order of the
// ranks that it meets there.
static bool halo_next(struct halo *halo) {
    while (halo->distance < halo->size) {
        int n_index = halo->n_own > halo->n_other ? halo->n_own : halo->n_other;
        if (++halo->index >= n_index) {
            halo->index = -1;
            if (++halo->distance < halo->size)
                halo->n_other = visible_spans(halo->range, halo_destination(halo), halo->other);
            continue;
        }
        const struct span nothing = {0, 0};
        halo->send = halo->index < halo->n_other
                         ? rows_of(halo->range, halo->rank, halo->other[halo->index])
                         : nothing;
        halo->receive = halo->index < halo->n_own
                            ? rows_of(halo->range, halo_source(halo), halo->own[halo->index])
                            : nothing;
        if (halo->send.length || halo->receive.length) return true;
    }
    return false;
}

// Sends rows of the own keys, received ones go to buffer `slot`.
static enum status start_round(struct ring_attention *ring, const struct ring_attention_args *args,
                               const struct halo *halo, const struct ring_blocks *room, int slot) {
    struct attention_shape shape = ring_shape(args);
    int64_t key_bytes = ring_key_row_bytes(&shape), value_bytes = ring_value_row_bytes(&shape);
    struct shift_args shift = {
        .destination = halo_destination(halo),
        .source = halo_source(halo),
        .n_buffer = shape.value_in_key ? 1 : 2,
        .send = {{(char *)args->key + halo->send.start * key_bytes, halo->send.length * key_bytes},
                 {NULL, halo->send.length * value_bytes}},
        .receive = {{room->key[slot], halo->receive.length * key_bytes},
                    {room->value[slot], halo->receive.length * value_bytes}},
    };
    if (args->value) shift.send[1].data = (char *)args->value + halo->send.start * value_bytes;
    return ring_shift_start(ring, &shift);
}

// The rows of a round, and whose they are.
struct received {
    struct ring_block block;
    struct span positions;
    int holder;
};

static enum status attend_received(struct ring_attention *ring,
                                   const struct ring_attention_args *args,
                                   const struct ring_queries *queries, struct received *received) {
    if (received->block.n_key == 0) return OK;
    int64_t begin = received->positions.start, end = begin + received->positions.length;
    TRY(ring_list_positions(&ring->key_position, args->sequence, received->holder, begin, end));
    received->block.position = ring->key_position.at;
    return ring_attend(ring, args, queries, &received->block, true, 0);
}

// The own keys against part `part` of n_part of the queries. The pairs of all keys are counted with
// the first.
static enum status attend_own(struct ring_attention *ring, const struct ring_attention_args *args,
                              const struct ring_queries *queries, int n_part, int part) {
    struct visible_range range = ring_range(args);
    int rank = ring->comm->rank;
    struct ring_block own = {
        .n_key = visible_held(&range, rank), .key = args->key, .value = args->value};
    int64_t pairs = 0;
    for (int holder = 0; part == 0 && holder < ring->comm->size; holder++)
        pairs += visible_pairs(&range, rank, holder);
    TRY(ring_list_keys(ring, args, rank, false, &own));
    struct span some = partition_piece(queries->n, n_part, part);
    struct ring_queries slice = ring_some_queries(args, queries, some);
    return ring_attend(ring, args, &slice, &own, args->merge, pairs);
}

static enum status exchange(struct ring_attention *ring, const struct ring_attention_args *args,
                            struct halo *halo, const struct ring_queries *queries) {
    struct attention_shape shape = ring_shape(args);
    int64_t most = 0;
    int n_round = 0;
    for (halo_rewind(halo); halo_next(halo); n_round++)
        if (halo->receive.length > most) most = halo->receive.length;
    struct ring_room space = {.base = ring->workspace, .used = ring->reserved};
    struct ring_blocks room = carve(&space, &shape, halo->size, most);
    TRY(ring_check_room(ring, &space));
    if (n_round == 0) return attend_own(ring, args, queries, 1, 0);
    int n_part = n_round == 1 ? 1 : 2;
    struct received received = {0};
    halo_rewind(halo);
    for (int round = 0; halo_next(halo); round++) {
        TRY(start_round(ring, args, halo, &room, round % 2));
        if (round < n_part) TRY(attend_own(ring, args, queries, n_part, round));
        TRY(attend_received(ring, args, queries, &received));
        TRY(ring_shift_wait(ring));
        received = (struct received){.block = {.n_key = halo->receive.length,
                                               .key = room.key[round % 2],
                                               .value = args->value ? room.value[round % 2] : NULL},
                                     .holder = halo_source(halo)};
        if (halo->index < halo->n_own) received.positions = halo->own[halo->index];
    }
    return attend_received(ring, args, queries, &received);
}

enum status ring_pass_halo_run(struct ring_attention *ring,
                               const struct ring_attention_args *args) {
    const struct comm *comm = ring->comm;
    struct visible_range range = ring_range(args);
    struct ring_queries queries = {
        .n = sequence_count(args->sequence, comm->rank, args->query_begin, args->query_end),
        .query = args->query,
        .out = args->out,
        .lse = args->lse};
    TRY(ring_check_visible(args));
    TRY(ring_list_queries(ring, args, comm->rank, &queries));
    int most = visible_max_spans(&range);
    struct span *spans = malloc(2 * (size_t)most * sizeof *spans);
    if (!spans) FAIL(ERR_MEMORY, "no memory for %d spans of positions", 2 * most);
    struct halo halo = {.range = &range,
                        .rank = comm->rank,
                        .size = comm->size,
                        .own = spans,
                        .other = spans + most,
                        .n_own = visible_spans(&range, comm->rank, spans)};
    enum status status = exchange(ring, args, &halo, &queries);
    free(spans);
    return status;
}
