// The lightning indexer's running top-k. A task is a block of queries against a part of the keys:
// it packs one tile of keys at a time, scores it against each of its queries, and adds the scores
// that pass a query's threshold to the query's list. Where there are fewer blocks of queries than
// threads, the keys are split as well and the lists of a query merged at the end.
#include <math.h>
#include <omp.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/index_list.h"
#include "kernels/cpu/index_tile.h"

enum {
    QUERY_BLOCK = 16,          // at most: packed, they stay in the second-level cache
    THREAD_PRODUCTS = 1 << 20, // of a thread at least: fewer are not worth waking it
};

struct shape {
    const struct index_tile *tile;
    int n_thread;
    int n_unit;              // of a packed row
    int64_t n_query, n_part; // of a task; parts of the keys
    int64_t n_block;         // of queries
    int64_t query_bytes;     // of one packed query
    int64_t list_room;
    // Offsets into one task's memory, and its size.
    int64_t rows_at, key_at, scale_at, score_at, query_at, visible_at, list_at, candidate_at, bytes;
};

struct task {
    const struct shape *shape;
    const struct index_args *args;
    void *rows;               // fp8 rows, expanded
    void *key;                // the packed tile
    float *key_scale, *score; // [INDEX_KEY_TILE]
    char *query;              // packed
    int64_t *visible;         // [n_query] each query sees the first so many keys
    struct index_list *list;  // [n_query]
    int64_t first_query, n_query, part;
    int64_t bad_query, bad_key; // the first query with a NaN, and its first key; else INT64_MAX
};

static void shape_layout(struct shape *s, int n_head, int head_dim, int k) {
    const struct index_tile *tile = s->tile;
    int64_t n_unit = (head_dim + tile->unit - 1) / tile->unit;
    s->n_unit = (int)round_up64(n_unit, tile->vec_width);
    s->query_bytes = round_up64(n_head, tile->head_block) * s->n_unit * 4;
    s->list_room = index_list_room(k);
    int64_t rows = max64(INDEX_KEY_TILE, n_head) * head_dim * 4;
    s->rows_at = 0;
    s->key_at = round_up64(rows, 64);
    s->scale_at = s->key_at + (int64_t)INDEX_KEY_TILE * s->n_unit * 4;
    s->score_at = s->scale_at + INDEX_KEY_TILE * 4;
    s->query_at = round_up64(s->score_at + INDEX_KEY_TILE * 4, 64);
    s->visible_at = s->query_at + s->n_query * s->query_bytes;
    s->list_at = s->visible_at + s->n_query * 8;
    s->candidate_at = s->list_at + s->n_query * (int64_t)sizeof(struct index_list);
    s->bytes = round_up64(s->candidate_at + s->n_query * s->list_room * 8, 64);
}

static const struct index_tile *choose_tile(const struct cpu_state *state, enum dtype dtype) {
    const struct index_tile *tile = state->isa == ISA_AVX512_BF16 ? &index_tile_avx512bf16
                                    : state->isa >= ISA_AVX512    ? &index_tile_avx512
                                    : state->isa >= ISA_AVX2      ? &index_tile_avx2
                                                                  : &index_tile_plain;
    return dtype == DTYPE_F32 ? tile->fp32 : tile;
}

static struct shape shape_make(const struct cpu_state *state, const struct index_args *args) {
    struct shape s = {.tile = choose_tile(state, args->dtype)};
    int64_t n_product = args->n_query * args->n_key * args->n_head * args->head_dim;
    s.n_thread = (int)max64(1, min64(state->n_thread, n_product / THREAD_PRODUCTS));
    s.n_query = max64(1, min64(QUERY_BLOCK, args->n_query / (2 * s.n_thread)));
    s.n_block = (args->n_query + s.n_query - 1) / s.n_query;
    s.n_part = max64(1, s.n_thread / s.n_block);
    shape_layout(&s, args->n_head, args->head_dim, args->k);
    return s;
}

static struct kv_rows expanded(const struct task *t, const void *data, int64_t first, int n_row) {
    const struct index_args *a = t->args;
    int64_t at = first * a->head_dim;
    struct kv_rows rows = {.data = (const char *)data + dtype_bytes(a->dtype, at),
                           .dtype = a->dtype,
                           .stride = a->head_dim,
                           .n_row = n_row,
                           .n_col = a->head_dim};
    if (a->dtype != DTYPE_F8_E4M3) return rows;
    const struct index_tile *tile = t->shape->tile;
    tile->expand_fp8((const uint8_t *)rows.data, (int64_t)n_row * a->head_dim, t->rows);
    rows.data = t->rows;
    rows.dtype = tile->fp8_as;
    return rows;
}

// Every part prunes by the candidates that came with the call; the first one holds them.
static void task_open(struct task *t, char *memory) {
    const struct shape *s = t->shape;
    const struct index_args *a = t->args;
    t->rows = memory + s->rows_at;
    t->key = memory + s->key_at;
    t->key_scale = (float *)(memory + s->scale_at);
    t->score = (float *)(memory + s->score_at);
    t->query = memory + s->query_at;
    t->visible = (int64_t *)(memory + s->visible_at);
    t->list = (struct index_list *)(memory + s->list_at);
    for (int i = 0; i < INDEX_KEY_TILE; i++) t->key_scale[i] = 1;
    for (int64_t i = 0; i < t->n_query; i++) {
        int64_t query = t->first_query + i;
        struct kv_rows rows = expanded(t, a->query, query * a->n_head, a->n_head);
        s->tile->pack_query(&rows, t->query + i * s->query_bytes);
        t->visible[i] = key_run_visible(a->run, a->n_run, a->query_position[query]);
        struct index_list *list = &t->list[i];
        const uint64_t *candidate = a->candidate + query * a->k;
        int32_t n = a->n_candidate[query];
        list->candidate = (uint64_t *)(memory + s->candidate_at) + i * s->list_room;
        list->k = a->k;
        list->n = t->part == 0 ? n : 0;
        memcpy(list->candidate, candidate, (size_t)list->n * sizeof *candidate);
        list->threshold = 0;
        list->score = -INFINITY;
        if (n == a->k) index_list_raise(list, index_smallest(candidate, n));
    }
}

static void add_scores(struct task *t, int64_t query, int64_t first_key, int64_t n_key) {
    struct index_list *list = &t->list[query];
    const struct index_args *a = t->args;
    for (int64_t i = 0; i < n_key; i++) {
        float score = t->score[i];
        if (score < list->score) continue;
        if (!isnan(score)) {
            int64_t position = key_run_position(a->run, a->n_run, first_key + i);
            index_list_add(list, candidate_make(score, position));
        } else if (t->first_query + query < t->bad_query) { // keys ascend: the first is the first
            t->bad_query = t->first_query + query;
            t->bad_key = first_key + i;
        }
    }
}

// A query alone is done with a tile sooner than memory brings the next one, unless it is asked for
// bit by bit in the meantime.
static void set_ahead(const struct task *t, int64_t first_key, int64_t end_key,
                      struct index_work *work) {
    const struct index_args *a = t->args;
    int head_block = t->shape->tile->head_block;
    int64_t bytes = dtype_bytes(a->dtype, min64(INDEX_KEY_TILE, end_key - first_key) * a->head_dim);
    work->ahead = (const char *)a->key + dtype_bytes(a->dtype, first_key * a->head_dim);
    work->ahead_bytes = bytes / ((a->n_head + head_block - 1) / head_block);
}

static void score_tile(struct task *t, int64_t first_key, int64_t end_key) {
    const struct index_args *a = t->args;
    const struct shape *s = t->shape;
    int64_t n_key = min64(INDEX_KEY_TILE, end_key - first_key);
    struct kv_rows rows = expanded(t, a->key, first_key, (int)n_key);
    s->tile->pack_keys(&rows, t->key);
    if (a->key_scale) memcpy(t->key_scale, a->key_scale + first_key, (size_t)n_key * 4);
    struct index_work work = {.n_head = a->n_head,
                              .n_unit = s->n_unit,
                              .key = t->key,
                              .key_scale = t->key_scale,
                              .score = t->score};
    set_ahead(t, first_key + n_key, end_key, &work);
    for (int64_t i = 0; i < t->n_query; i++) {
        int64_t n_visible = min64(n_key, t->visible[i] - first_key);
        if (n_visible <= 0) continue;
        work.query = t->query + i * s->query_bytes;
        work.weight = a->weight + (t->first_query + i) * a->n_head;
        work.threshold = t->list[i].score;
        if (s->tile->score(&work)) add_scores(t, i, first_key, n_visible);
        work.ahead_bytes = 0;
    }
}

static void task_run(struct task *t) {
    int64_t n_part = t->shape->n_part;
    int64_t n_tile = (t->visible[t->n_query - 1] + INDEX_KEY_TILE - 1) / INDEX_KEY_TILE;
    int64_t end =
        min64(t->visible[t->n_query - 1], n_tile * (t->part + 1) / n_part * INDEX_KEY_TILE);
    for (int64_t key = n_tile * t->part / n_part * INDEX_KEY_TILE; key < end; key += INDEX_KEY_TILE)
        score_tile(t, key, end);
    for (int64_t i = 0; i < t->n_query; i++) index_list_cut(&t->list[i]);
}

static void task_store(const struct task *t) {
    for (int64_t i = 0; i < t->n_query; i++) {
        const struct index_list *list = &t->list[i];
        int64_t query = t->first_query + i;
        memcpy(t->args->candidate + query * list->k, list->candidate, (size_t)list->n * 8);
        t->args->n_candidate[query] = (int32_t)list->n;
    }
}

// The lists of a query's parts, two at a time, into the first part's.
static void merge_parts(struct task *task, const struct shape *s, int n_thread) {
    for (int64_t step = 1; step < s->n_part; step *= 2) {
#pragma omp parallel for collapse(2) num_threads(n_thread) schedule(static)
        for (int64_t i = 0; i < s->n_block * s->n_part; i++)
            for (int64_t query = 0; query < s->n_query; query++) {
                struct task *t = &task[i];
                if (t->part % (2 * step) || t->part + step >= s->n_part || query >= t->n_query)
                    continue;
                index_list_absorb(&t->list[query], &t[step].list[query]);
            }
    }
}

// The tasks of the split keys keep their lists until they are merged; others are run one after
// another in the memory of their thread.
static void run_tasks(const struct shape *s, const struct index_args *args, int n_slot,
                      struct task *task, char *memory) {
#pragma omp parallel for num_threads(n_slot) schedule(dynamic, 1) if (n_slot > 1)
    for (int64_t i = 0; i < s->n_block * s->n_part; i++) {
        int64_t slot = s->n_part > 1 ? i : omp_get_thread_num();
        struct task *t = &task[slot];
        int64_t block = s->n_block - 1 - i / s->n_part; // late queries see most: they go first
        t->first_query = block * s->n_query;
        t->n_query = min64(s->n_query, args->n_query - t->first_query);
        t->part = i % s->n_part;
        task_open(t, memory + slot * s->bytes);
        task_run(t);
        if (s->n_part == 1) task_store(t);
    }
    if (s->n_part == 1) return;
    merge_parts(task, s, n_slot);
    for (int64_t i = 0; i < s->n_block; i++) task_store(&task[i * s->n_part]);
}

static enum status check_scores(const struct index_args *args, const struct task *task, int n) {
    int64_t query = INT64_MAX, key = INT64_MAX;
    for (int i = 0; i < n; i++) {
        if (task[i].bad_query > query || (task[i].bad_query == query && task[i].bad_key >= key))
            continue;
        query = task[i].bad_query;
        key = task[i].bad_key;
    }
    if (query == INT64_MAX) return OK;
    FAIL(ERR_INPUT, "the indexer's score of query %lld on token %lld is not a number",
         (long long)args->query_position[query],
         (long long)key_run_position(args->run, args->n_run, key));
}

enum status cpu_index_top_k(struct backend *backend, const struct index_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    if (args->n_query == 0 || args->n_key == 0) return OK;
    struct shape s = shape_make(state, args);
    int n_slot = (int)(s.n_part > 1 ? s.n_block * s.n_part : min64(s.n_thread, s.n_block));
    void *memory;
    TRY(cpu_scratch(backend, n_slot * (s.bytes + (int64_t)sizeof(struct task)), &memory));
    struct task *task = cpu_scratch_at(memory, n_slot * s.bytes);
    for (int i = 0; i < n_slot; i++)
        task[i] =
            (struct task){.shape = &s, .args = args, .bad_query = INT64_MAX, .bad_key = INT64_MAX};
    run_tasks(&s, args, n_slot, task, memory);
    return check_scores(args, task, n_slot);
}

int64_t cpu_index_scratch_bytes(const struct cpu_state *state, const struct scratch_shape *shape) {
    if (shape->index_k == 0) return 0;
    struct shape s = {.tile = choose_tile(state, DTYPE_F32), .n_query = QUERY_BLOCK};
    shape_layout(&s, shape->n_index_head, shape->index_dim, shape->index_k);
    int64_t bytes = s.bytes + (int64_t)sizeof(struct task);
    bytes = max64(bytes, cpu_index_merge_thread_bytes(shape->index_k));
    bytes = max64(bytes, cpu_select_rows_thread_bytes(shape->n_key));
    return state->n_thread * bytes;
}
