// Opening, workspace and the parts that pass-KV, pass-Q and decode share.
#include "dist/ring_attention.h"

#include <stdlib.h>

#include "dist/ring_internal.h"

void *ring_take(struct ring_room *room, int64_t bytes) {
    void *at = room->base ? room->base + room->used : NULL;
    room->used += (bytes + 63) / 64 * 64;
    return at;
}

struct attention_shape ring_shape(const struct ring_attention_args *args) {
    return (struct attention_shape){.n_head = args->n_head,
                                    .n_kv_head = args->n_kv_head,
                                    .head_dim = args->head_dim,
                                    .value_dim = args->value_dim,
                                    .query_bytes = (int)dtype_bytes(args->query_dtype, 1),
                                    .kv_bytes = (int)dtype_bytes(args->kv_dtype, 1),
                                    .value_in_key = !args->value};
}

int64_t ring_query_row_bytes(const struct attention_shape *shape) {
    return (int64_t)shape->n_head * shape->head_dim * shape->query_bytes;
}

int64_t ring_key_row_bytes(const struct attention_shape *shape) {
    return (int64_t)shape->n_kv_head * shape->head_dim * shape->kv_bytes;
}

int64_t ring_value_row_bytes(const struct attention_shape *shape) {
    return shape->value_in_key ? 0 : (int64_t)shape->n_kv_head * shape->value_dim * shape->kv_bytes;
}

int64_t ring_partial_bytes(const struct attention_shape *shape, int64_t n_row) {
    return n_row * shape->n_head * (shape->value_dim + 1) * (int64_t)sizeof(float);
}

int64_t ring_slice(enum memory memory, const struct attention_shape *shape) {
    if (memory == MEMORY_HOST) return RING_HOST_SLICE;
    int64_t n = RING_DEVICE_RESULT / ring_partial_bytes(shape, 1);
    if (n > RING_DEVICE_SLICE) n = RING_DEVICE_SLICE;
    return n > RING_HOST_SLICE ? n : RING_HOST_SLICE;
}

struct ring_blocks ring_take_blocks(struct ring_room *room, const struct attention_shape *shape,
                                    int n_block, int64_t n_row) {
    struct ring_blocks out = {{NULL}, {NULL}};
    for (int i = 0; i < n_block; i++) {
        out.key[i] = ring_take(room, n_row * ring_key_row_bytes(shape));
        out.value[i] = ring_take(room, n_row * ring_value_row_bytes(shape));
    }
    return out;
}

enum status ring_check_room(const struct ring_attention *ring, const struct ring_room *room) {
    if (room->used > ring->workspace_bytes)
        FAIL(ERR_INTERNAL, "attention needs %lld bytes of workspace and was opened with %lld",
             (long long)room->used, (long long)ring->workspace_bytes);
    return OK;
}

enum status ring_reserve_positions(struct position_list *list, int64_t n) {
    if (n <= list->capacity) return OK;
    int64_t capacity = n > 2 * list->capacity ? n : 2 * list->capacity;
    int64_t *grown = realloc(list->at, (size_t)capacity * sizeof *grown);
    if (!grown) FAIL(ERR_MEMORY, "no memory for %lld positions", (long long)capacity);
    list->at = grown;
    list->capacity = capacity;
    return OK;
}

enum status ring_list_positions(struct position_list *list, const struct sequence *sequence,
                                int rank, int64_t begin, int64_t end) {
    TRY(ring_reserve_positions(list, sequence_count(sequence, rank, begin, end)));
    sequence_positions(sequence, rank, begin, end, list->at);
    return OK;
}

struct visible_range ring_range(const struct ring_attention_args *args) {
    return (struct visible_range){.sequence = args->sequence,
                                  .visibility = args->visibility,
                                  .key_begin = args->key_begin,
                                  .query_begin = args->query_begin,
                                  .query_end = args->query_end,
                                  .key_end = args->key_end};
}

enum status ring_check_visible(const struct ring_attention_args *args) {
    struct visible_range range = ring_range(args);
    if (!visible_is_held(&range))
        FAIL(ERR_INTERNAL, "query %lld sees keys from position %lld, which are held from %lld on",
             (long long)args->query_begin,
             (long long)visibility_begin(&args->visibility, args->query_begin),
             (long long)args->key_begin);
    return OK;
}

enum status ring_list_bounds(struct ring_attention *ring, const struct ring_attention_args *args,
                             struct ring_queries *queries) {
    const struct visibility *visibility = &args->visibility;
    queries->first = queries->end = NULL;
    if (visibility_bounds_begin(visibility)) {
        TRY(ring_reserve_positions(&ring->query_first, queries->n));
        queries->first = ring->query_first.at;
    }
    if (visibility_bounds_end(visibility)) {
        TRY(ring_reserve_positions(&ring->query_end, queries->n));
        queries->end = ring->query_end.at;
    }
    visibility_bounds(visibility, queries->position, queries->n,
                      queries->first ? ring->query_first.at : NULL,
                      queries->end ? ring->query_end.at : NULL);
    return OK;
}

enum status ring_list_queries(struct ring_attention *ring, const struct ring_attention_args *args,
                              int rank, struct ring_queries *queries) {
    TRY(ring_list_positions(&ring->query_position, args->sequence, rank, args->query_begin,
                            args->query_end));
    queries->position = ring->query_position.at;
    return ring_list_bounds(ring, args, queries);
}

// The runs of a rank's positions in [0, end), for queries that select.
static enum status list_runs(struct ring_attention *ring, const struct sequence *sequence, int rank,
                             int64_t end, struct ring_block *block) {
    int most = sequence_max_runs(sequence);
    if (most > ring->runs_capacity) {
        struct position_run *runs = realloc(ring->runs, (size_t)most * sizeof *runs);
        if (runs) ring->runs = runs;
        struct key_run *key_runs = realloc(ring->key_runs, (size_t)most * sizeof *key_runs);
        if (key_runs) ring->key_runs = key_runs;
        if (!runs || !key_runs) FAIL(ERR_MEMORY, "no memory for %d runs of positions", most);
        ring->runs_capacity = most;
    }
    block->n_run = sequence_runs(sequence, rank, 0, end, ring->runs);
    for (int i = 0; i < block->n_run; i++) {
        const struct position_run *run = &ring->runs[i];
        ring->key_runs[i] = (struct key_run){run->start, run->stride, run->count, run->first_row};
    }
    block->run = ring->key_runs;
    return OK;
}

enum status ring_list_keys(struct ring_attention *ring, const struct ring_attention_args *args,
                           int rank, bool selected, struct ring_block *block) {
    const struct visibility *visibility = &args->visibility;
    if (selected) return list_runs(ring, args->sequence, rank, args->query_end, block);
    block->position = NULL;
    if (!visibility_bounds_begin(visibility) && !visibility_bounds_end(visibility)) return OK;
    struct visible_range range = ring_range(args);
    int64_t n = visible_held(&range, rank),
            n_sink = visible_held_before(&range, rank, range.key_begin);
    TRY(ring_reserve_positions(&ring->key_position, n));
    sequence_positions(args->sequence, rank, 0, visible_sinks(&range), ring->key_position.at);
    sequence_positions(args->sequence, rank, args->key_begin, visible_key_end(&range),
                       ring->key_position.at + n_sink);
    block->position = ring->key_position.at;
    return OK;
}

int64_t ring_pairs(const struct ring_attention_args *args, int query_rank, int key_rank) {
    struct visible_range range = ring_range(args);
    return visible_pairs(&range, query_rank, key_rank);
}

static enum status attend_selected(struct ring_attention *ring, const struct ring_queries *slice,
                                   const struct ring_block *block,
                                   const struct attention_args *attention) {
    const struct ring_selection *selection = &slice->selection;
    const struct select_rows_args rows = {.n_query = slice->n,
                                          .k = selection->k,
                                          .candidate = selection->candidate,
                                          .n_candidate = selection->n_candidate,
                                          .run = block->run,
                                          .n_run = block->n_run,
                                          .n_row = block->n_key,
                                          .row = selection->row,
                                          .n_selected = selection->n_selected};
    const struct sparse_attention_args sparse = {.attention = *attention,
                                                 .row = selection->row,
                                                 .n_selected = selection->n_selected,
                                                 .k = selection->k};
    TRY(ring->backend->ops->select_rows(ring->backend, &rows));
    return ring->backend->ops->sparse_attention(ring->backend, &sparse);
}

static enum status attend_slice(struct ring_attention *ring, const struct ring_attention_args *args,
                                const struct ring_queries *slice, const struct ring_block *block,
                                bool merge) {
    struct attention_shape shape = ring_shape(args);
    double begun = profile_begin(ring->profile, PHASE_ATTENTION);
    struct attention_args attention = {
        .n_query = slice->n,
        .n_key = block->n_key,
        .n_head = args->n_head,
        .n_kv_head = args->n_kv_head,
        .head_dim = args->head_dim,
        .value_dim = args->value_dim,
        .scale = args->scale,
        .query = slice->query,
        .query_dtype = args->query_dtype,
        .query_stride = (int64_t)shape.n_head * shape.head_dim,
        .key = block->key,
        .value = block->value ? block->value : block->key,
        .kv_dtype = args->kv_dtype,
        .key_stride = (int64_t)shape.n_kv_head * shape.head_dim,
        .value_stride =
            (int64_t)shape.n_kv_head * (block->value ? shape.value_dim : shape.head_dim),
        .first_visible = slice->selection.k ? NULL : slice->first,
        .sinks = visibility_sinks(&args->visibility),
        .end_visible = slice->selection.k ? NULL : slice->end,
        .key_position = block->position,
        .out = slice->out,
        .lse = slice->lse,
        .merge = merge,
    };
    if (slice->selection.k)
        TRY(attend_selected(ring, slice, block, &attention));
    else
        TRY(ring->backend->ops->attention(ring->backend, &attention));
    profile_end(ring->profile, PHASE_ATTENTION, begun);
    return OK;
}

// The first of n ascending positions that is at least `bound`; n where none is.
static int64_t lower_bound(const int64_t *position, int64_t n, int64_t bound) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (position[middle] < bound)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Of the queries from the first on, those that may see keys of the block: a later query's keys
// begin and end later.
static struct span seeing(const struct ring_attention_args *args,
                          const struct ring_queries *queries, const struct ring_block *block) {
    int64_t from = 0, to = queries->n;
    if (queries->end) {
        int64_t first = queries->selection.k ? block->run[0].start : block->position[0];
        from = lower_bound(queries->end, queries->n, first + 1);
    }
    if (queries->first && !queries->selection.k &&
        block->position[0] >= visibility_sinks(&args->visibility))
        to = lower_bound(queries->first, queries->n, block->position[block->n_key - 1] + 1);
    return (struct span){from, to > from ? to - from : 0};
}

// Whether no query of the slice sees a key of the block.
static bool sees_nothing(const struct ring_attention_args *args, const struct ring_queries *slice,
                         const struct ring_block *block) {
    if (!slice->first || slice->selection.k) return false;
    if (block->position[0] < visibility_sinks(&args->visibility)) return false;
    int64_t next = lower_bound(block->position, block->n_key, slice->first[0]);
    if (next == block->n_key) return true;
    return slice->end && block->position[next] >= slice->end[slice->n - 1];
}

struct ring_queries ring_some_queries(const struct ring_attention_args *args,
                                      const struct ring_queries *queries, struct span some) {
    struct attention_shape shape = ring_shape(args);
    int64_t first = some.start, head_row = first * args->n_head;
    struct ring_queries slice = {
        .n = some.length,
        .query = (const char *)queries->query + first * ring_query_row_bytes(&shape),
        .position = queries->position + first,
        .first = queries->first ? queries->first + first : NULL,
        .end = queries->end ? queries->end + first : NULL,
        .out = queries->out + head_row * args->value_dim,
        .lse = queries->lse + head_row,
        .selection = queries->selection,
    };
    if (slice.selection.k) {
        slice.selection.candidate += first * slice.selection.k;
        slice.selection.n_candidate += first;
    }
    return slice;
}

enum status ring_attend(struct ring_attention *ring, const struct ring_attention_args *args,
                        const struct ring_queries *queries, const struct ring_block *block,
                        bool merge, int64_t pairs) {
    if (merge && block->n_key == 0) return OK;
    struct attention_shape shape = ring_shape(args);
    bool sliced = ring->comm->needs_progress || queries->selection.k;
    int64_t step = sliced ? ring_slice(ring->backend->memory, &shape) : queries->n;
    struct span some = {0, queries->n};
    if (merge) some = seeing(args, queries, block);
    int64_t end = some.start + some.length;
    for (int64_t first = some.start; first < end; first += step) {
        struct ring_queries slice = ring_some_queries(
            args, queries, (struct span){first, end - first < step ? end - first : step});
        if (merge && sees_nothing(args, &slice, block)) continue;
        TRY(attend_slice(ring, args, &slice, block, merge));
        double begun = profile_begin(ring->profile, PHASE_RING_WAIT);
        if (ring->comm->needs_progress) TRY(ring->comm->ops->progress(ring->comm));
        profile_end(ring->profile, PHASE_RING_WAIT, begun);
    }
    if (!queries->selection.k)
        ring->profile->attention_flop +=
            2 * pairs * args->n_head * (args->head_dim + args->value_dim);
    return OK;
}

enum status ring_shift_start(struct ring_attention *ring, const struct shift_args *args) {
    double begun = profile_begin(ring->profile, PHASE_RING_WAIT);
    TRY(ring->comm->ops->shift_start(ring->comm, args));
    profile_end(ring->profile, PHASE_RING_WAIT, begun);
    return OK;
}

enum status ring_shift_wait(struct ring_attention *ring) {
    double begun = profile_begin(ring->profile, PHASE_RING_WAIT);
    TRY(ring->comm->ops->shift_wait(ring->comm));
    profile_end(ring->profile, PHASE_RING_WAIT, begun);
    return OK;
}

enum status ring_all_to_all(struct ring_attention *ring, const void *send,
                            const int64_t *send_bytes, void *receive,
                            const int64_t *receive_bytes) {
    double begun = profile_begin(ring->profile, PHASE_RING_WAIT);
    TRY(ring->comm->ops->all_to_all(ring->comm, send, send_bytes, receive, receive_bytes));
    profile_end(ring->profile, PHASE_RING_WAIT, begun);
    return OK;
}

int64_t ring_attention_workspace_bytes(const struct attention_shape *shape,
                                       const struct ring_extent *e) {
    int64_t own = e->query < e->all_query ? e->query : e->all_query;
    int64_t kv = ring_pass_kv_bytes(shape, e->size, e->shard);
    int64_t q = ring_pass_q_bytes(shape, e->size, own, e->all_query);
    int64_t decode = decode_attention_bytes(shape, e->size, e->decode_query);
    int64_t halo = e->halo ? ring_pass_halo_bytes(shape, e->size, e->halo) : 0;
    int64_t most = kv > q ? kv : q;
    if (halo > most) most = halo;
    return most > decode ? most : decode;
}

enum status ring_attention_open(struct ring_attention *out, struct backend *backend,
                                struct comm *comm, struct profile *profile,
                                int64_t workspace_bytes) {
    *out = (struct ring_attention){.backend = backend, .comm = comm, .profile = profile};
    if (comm->size > 1 && comm->memory != backend->memory)
        FAIL(ERR_CONFIG,
             "transport %s cannot reach the memory of backend %s: choose another run.transport",
             comm->ops->name, backend->ops->name);
    if (workspace_bytes > 0) TRY(backend->ops->alloc(backend, workspace_bytes, &out->workspace));
    out->workspace_bytes = workspace_bytes;
    out->rank_bytes = calloc(2 * (size_t)comm->size, sizeof *out->rank_bytes);
    if (!out->rank_bytes) {
        ring_attention_close(out);
        FAIL(ERR_MEMORY, "no memory for the counts of %d ranks", comm->size);
    }
    return OK;
}

void ring_attention_close(struct ring_attention *ring) {
    free(ring->key_runs);
    free(ring->runs);
    free(ring->rank_bytes);
    free(ring->key_position.at);
    free(ring->query_position.at);
    free(ring->query_first.at);
    free(ring->query_end.at);
    if (ring->workspace) ring->backend->ops->free(ring->backend, ring->workspace);
    *ring = (struct ring_attention){0};
}

enum status ring_attention_run(struct ring_attention *ring,
                               const struct ring_attention_args *args) {
    if (args->pass == PASS_Q && ring->comm->size > 1) return ring_pass_q_run(ring, args, NULL);
    if (args->pass == PASS_HALO && ring->comm->size > 1) return ring_pass_halo_run(ring, args);
    return ring_pass_kv_run(ring, args, NULL);
}
