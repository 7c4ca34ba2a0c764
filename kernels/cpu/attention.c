// Attention on the processor. A task is one kv head, one tile of rows (query, head of the group)
// and one range of the keys that they see; it packs a key tile once and runs all its rows through
// it. Tasks go to threads as they become free, longest first. Few rows (decode) split their keys
// into ranges whose partials are merged; ranges follow from the shape and the visibility alone, so
// results do not depend on the thread count. Sparse attention is the same, one query after the
// other, with a list of rows for each.
#include <math.h>
#include <omp.h>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/cpu.h"
#include "kernels/merge_weights.h"
#include "kernels/visible_keys.h"

enum {
    MIN_TASK = 64,       // tasks below which keys are split
    MIN_SPLIT_KEY = 256, // fewest keys worth a task of their own: the first tile waits
    MAX_HEADS_ROW = 128, // most rows of all heads that share a task
    // Rows of a task, multiples of the row block: as many as keep query and sum within the L2
    // cache, but never so few that the 128 heads of latent attention need two packings of a key.
    MIN_ROW = 132,
    MAX_ROW = 384,
    ROW_FLOATS = 48 * 1024,
    MASS_KEY = 8 * ATTENTION_KEY_TILE // keys of an attention_mass task
};

struct shape {
    const struct attention_tile *tile;
    int group, n_task_row, n_task_head, n_split;
    int64_t n_row; // of one kv head: n_query * group; row r is query r / group, head r % group
    int64_t n_row_tile;
    int key_tile;
    bool in_place; // keys and values are read where they lie, not packed
    int unit_dim, query_units, unit_pad, value_width; // see struct tile_work
    // Offsets into one thread's scratch, and its size.
    int64_t query_at, key_at, value_at, sum_at, max_at, total_at;
    int64_t begin_at, end_at, row_begin_at, row_end_at, bytes;
};

static int64_t divide_up(int64_t n, int64_t by) {
    return (n + by - 1) / by;
}
static int64_t at_line(int64_t bytes) {
    return round_up64(bytes, 64);
}

static int task_rows(int head_dim, int value_width) {
    int n = ROW_FLOATS / (head_dim + value_width) / ATTENTION_ROW_BLOCK * ATTENTION_ROW_BLOCK;
    return n < MIN_ROW ? MIN_ROW : n < MAX_ROW ? n : MAX_ROW;
}

static void shape_slices(struct shape *s) {
    int64_t n_row = (int64_t)s->n_task_row * s->n_task_head;
    s->query_at = 0;
    s->key_at = s->query_at + at_line(n_row * s->query_units * 4);
    s->value_at = s->key_at + at_line((int64_t)ATTENTION_KEY_TILE * s->unit_pad * 4);
    s->sum_at = s->value_at + at_line((int64_t)ATTENTION_KEY_TILE * s->value_width * 4);
    s->max_at = s->sum_at + at_line(n_row * s->value_width * 4);
    s->total_at = s->max_at + at_line(n_row * 4);
    s->begin_at = s->total_at + at_line(n_row * s->tile->vec_width * 4);
    s->end_at = s->begin_at + at_line(n_row * 4);
    s->row_begin_at = s->end_at + at_line(n_row * 4);
    s->row_end_at = s->row_begin_at + at_line(n_row * 8);
    s->bytes = s->row_end_at + at_line(n_row * 8);
}

// Keys that are rounded on the way and not by the instructions of the product: packed ones are
// once.
static bool rounds_keys(const struct attention_args *a, const struct attention_tile *tile) {
    return tile->unit == 1 && a->query_dtype == DTYPE_BF16 && a->kv_dtype == DTYPE_F32;
}

static enum status shape_of(const struct cpu_state *state, const struct attention_args *a,
                            struct shape *s) {
    if (a->head_dim % 8 || a->head_dim < 8 || a->head_dim > ATTENTION_MAX_DIM || a->value_dim % 8 ||
        a->value_dim < 8 || a->value_dim > ATTENTION_MAX_DIM || a->n_head % a->n_kv_head)
        FAIL(ERR_INTERNAL, "attention of %d/%d heads, dimensions %d and %d is not supported",
             a->n_head, a->n_kv_head, a->head_dim, a->value_dim);
    s->tile = a->query_dtype == DTYPE_BF16 ? state->tile : state->tile->fp32;
    int width = s->tile->vec_width;
    s->group = a->n_head / a->n_kv_head;
    s->n_row = a->n_query * s->group;
    s->unit_dim = a->head_dim / s->tile->unit;
    s->unit_pad = (int)round_up64(s->unit_dim, width);
    s->in_place = s->n_row <= s->tile->most_in_place && !rounds_keys(a, s->tile);
    s->query_units = s->in_place ? s->unit_pad : s->unit_dim;
    s->key_tile = s->in_place ? ATTENTION_IN_PLACE_TILE : ATTENTION_KEY_TILE;
    s->value_width = (int)round_up64(a->value_dim, width);
    // Tiles of rows are of nearly equal length.
    s->n_row_tile = divide_up(s->n_row, task_rows(a->head_dim, s->value_width));
    int64_t n_task_row = s->n_row_tile ? divide_up(s->n_row, s->n_row_tile) : 0;
    s->n_task_row = (int)min64(round_up64(n_task_row, ATTENTION_ROW_BLOCK), s->n_row);
    // Few rows are bound by memory: a task then takes all heads of a key, which lie side by side.
    s->n_task_head = s->n_row * a->n_kv_head <= MAX_HEADS_ROW ? a->n_kv_head : 1;
    s->n_split = 1;
    shape_slices(s);
    return OK;
}

// What queries see of the block, as indices of keys: of those before `end` the first n_sink and all
// from `begin` on.
struct intervals {
    int64_t n_key, n_sink;
    const int64_t *begin, *end; // [n_query] ascending, begin >= n_sink; NULL: 0, n_key
};

static int64_t interval_begin(const struct intervals *v, int64_t query) {
    return v->begin ? v->begin[query] : 0;
}
static int64_t interval_end(const struct intervals *v, int64_t query) {
    return v->end ? v->end[query] : v->n_key;
}

static int64_t intervals_bytes(int64_t n_query) {
    return at_line(2 * n_query * 8);
}

// memory: intervals_bytes.
static struct intervals find_intervals(const struct attention_args *a, void *memory) {
    int64_t *begin = memory, *end = begin + a->n_query, n_sink = visible_sinks(a);
    int64_t last_begin = n_sink, last_end = 0;
    for (int64_t i = 0; i < a->n_query; i++) {
        begin[i] = last_begin = visible_begin(a, i, last_begin);
        end[i] = last_end = visible_end(a, i, last_end);
    }
    return (struct intervals){a->n_key, n_sink, begin, end};
}

// Few tasks are made more by cutting their keys into ranges.
static void shape_split(struct shape *s, const struct attention_args *a) {
    int64_t n_task = s->n_row_tile * a->n_kv_head / s->n_task_head;
    if (n_task == 0 || n_task >= MIN_TASK) return;
    int64_t most_key = visible_longest(a, s->n_task_row);
    int64_t n = min64(divide_up(MIN_TASK, n_task), most_key / MIN_SPLIT_KEY);
    if (n > 1) s->n_split = (int)n;
}

struct key_range {
    int64_t begin, end;
};

// One thread's buffers for one task.
struct task {
    struct tile_work work;
    int *begin, *end;             // those of work
    int64_t *row_begin, *row_end; // [n_row] the same of the whole block, without the sinks
    struct key_range sinks, keys; // of any row
    int64_t first_row;
    int first_head, head; // of keys and values
    const int32_t *index; // rows of the block that the query selected, or NULL
};

static void task_buffers(const struct shape *s, const struct attention_args *a, char *scratch,
                         struct task *t) {
    t->begin = (int *)(scratch + s->begin_at);
    t->end = (int *)(scratch + s->end_at);
    t->row_begin = (int64_t *)(scratch + s->row_begin_at);
    t->row_end = (int64_t *)(scratch + s->row_end_at);
    t->work = (struct tile_work){
        .unit_dim = s->unit_dim,
        .query_units = s->query_units,
        .value_width = s->value_width,
        .score_scale = (float)((double)a->scale * M_LOG2E),
        .begin = t->begin,
        .end = t->end,
        .key = scratch + s->key_at,
        .value = scratch + s->value_at,
    };
}

// Turns to the rows of one of the task's heads.
static void task_turn_to(const struct shape *s, char *scratch, struct task *t, int head) {
    int64_t row = (int64_t)(head - t->first_head) * s->n_task_row;
    t->head = head;
    t->work.query = scratch + s->query_at + row * s->query_units * 4;
    t->work.sum = (float *)(scratch + s->sum_at) + row * s->value_width;
    t->work.max = (float *)(scratch + s->max_at) + row;
    t->work.total = (float *)(scratch + s->total_at) + row * s->tile->vec_width;
}

// Chooses the rows of a task and finds the keys that each sees: the same in every head.
static void task_rows_begin(const struct shape *s, const struct intervals *v, int64_t row_tile,
                            struct task *t) {
    t->first_row = row_tile * s->n_task_row;
    t->work.n_row = (int)min64(s->n_task_row, s->n_row - t->first_row);
    int64_t query = t->first_row / s->group, member = t->first_row % s->group;
    for (int r = 0; r < t->work.n_row; r++) {
        t->row_begin[r] = interval_begin(v, query);
        t->row_end[r] = interval_end(v, query);
        if (++member < s->group) continue;
        member = 0;
        query++;
    }
    int64_t end = t->row_end[t->work.n_row - 1];
    t->keys = (struct key_range){t->row_begin[0], max64(t->row_begin[0], end)};
    t->sinks = (struct key_range){0, min64(v->n_sink, end)};
}

static int max_int(int a, int b) {
    return a > b ? a : b;
}
static int clip(int64_t n, int most) {
    return n < 0 ? 0 : (int)min64(n, most);
}

static void task_pack_queries(const struct shape *s, const struct attention_args *a,
                              struct task *t) {
    for (int r = 0; r < t->work.n_row; r++) {
        int64_t query = (t->first_row + r) / s->group, member = (t->first_row + r) % s->group;
        int64_t from = query * a->query_stride + (t->head * s->group + member) * a->head_dim;
        char *to = (char *)t->work.query + (int64_t)r * s->query_units * 4;
        memset(to + (int64_t)s->unit_dim * 4, 0, (size_t)(s->query_units - s->unit_dim) * 4);
        if (a->query_dtype == DTYPE_F32)
            memcpy(to, (const float *)a->query + from, (size_t)a->head_dim * sizeof(float));
        else if (s->tile->unit == 2)
            memcpy(to, (const bf16 *)a->query + from, (size_t)a->head_dim * sizeof(bf16));
        else
            dtype_to_float(DTYPE_BF16, (const bf16 *)a->query + from, a->head_dim, (float *)to);
    }
}

// The task's keys or values of a tile that begins with the first of `keys`.
static struct kv_rows kv_rows(const struct attention_args *a, const struct task *t,
                              const void *base, int64_t stride, int n_col, struct key_range keys) {
    int64_t at = (t->index ? 0 : keys.begin * stride) + (int64_t)t->head * n_col;
    return (struct kv_rows){
        .data = a->kv_dtype == DTYPE_BF16 ? (const void *)((const bf16 *)base + at)
                                          : (const void *)((const float *)base + at),
        .dtype = a->kv_dtype,
        .round = a->query_dtype == DTYPE_BF16 && a->kv_dtype == DTYPE_F32,
        .stride = stride,
        .index = t->index ? t->index + keys.begin : NULL,
        .n_row = t->work.n_key,
        .n_col = n_col,
        .n_ahead = keys.end - keys.begin - t->work.n_key,
    };
}

// Turns to a tile that begins with the first of `keys`, and to what each row sees of it.
static void task_turn_to_tile(const struct shape *s, const struct attention_args *a, struct task *t,
                              struct key_range keys) {
    int64_t first = keys.begin;
    int n_key = (int)min64(keys.end - first, s->key_tile);
    bool is_sink = first < t->sinks.end;
    t->work.n_key = n_key;
    for (int r = 0; r < t->work.n_row; r++) {
        t->begin[r] = is_sink ? 0 : clip(t->row_begin[r] - first, n_key);
        t->end[r] = max_int(t->begin[r], clip(t->row_end[r] - first, n_key));
    }
    t->work.keys = kv_rows(a, t, a->key, a->key_stride, a->head_dim, keys);
    if (a->value) // attention_mass reads none
        t->work.values = kv_rows(a, t, a->value, a->value_stride, a->value_dim, keys);
}

static void write_row(int value_dim, const struct merge_weights *w, const float *restrict sum,
                      float total, float *restrict out) {
    float by = w->added / total;
    if (w->held < 0)
        for (int i = 0; i < value_dim; i++) out[i] = sum[i] / total;
    else
        for (int i = 0; i < value_dim; i++) out[i] = w->held * out[i] + by * sum[i];
}

// Divides by the total and writes rows and lse where the partial of this range belongs; `merge`:
// into what they hold.
static void task_finish(const struct shape *s, const struct attention_args *a, const struct task *t,
                        bool merge, float *out, float *lse) {
    for (int r = 0; r < t->work.n_row; r++) {
        int64_t query = (t->first_row + r) / s->group, member = (t->first_row + r) % s->group;
        int64_t row = query * a->n_head + t->head * s->group + member;
        const float *sum = t->work.sum + (int64_t)r * s->value_width;
        float *to = out + row * a->value_dim, total = 0;
        for (int i = 0; i < s->tile->vec_width; i++)
            total += t->work.total[(int64_t)r * s->tile->vec_width + i];
        if (total == 0) {
            if (merge) continue;
            memset(to, 0, (size_t)a->value_dim * sizeof(float));
            lse[row] = -INFINITY;
            continue;
        }
        float own = (float)(((double)t->work.max[r] + log2((double)total)) * M_LN2);
        struct merge_weights w = merge_weigh(merge ? lse[row] : -INFINITY, own);
        write_row(a->value_dim, &w, sum, total, to);
        lse[row] = w.lse;
    }
}

struct place { // of a task in the work
    int64_t row_tile;
    int first_head, split;
    const int32_t *index; // see struct task
};

static void attend_keys(const struct shape *s, const struct attention_args *a, char *scratch,
                        struct key_range keys, struct task *t) {
    for (; keys.begin < keys.end; keys.begin += s->key_tile)
        for (int head = t->first_head; head < t->first_head + s->n_task_head; head++) {
            task_turn_to(s, scratch, t, head);
            task_turn_to_tile(s, a, t, keys);
            if (s->in_place) {
                s->tile->attend_in_place(&t->work);
            } else {
                s->tile->pack_keys(&t->work.keys, t->work.key);
                s->tile->pack_values(&t->work.values, s->value_width, t->work.value);
                s->tile->attend(&t->work);
            }
        }
}

// That part of a task's keys; every part but the last is whole tiles.
static struct key_range cut(const struct shape *s, struct key_range keys, int split) {
    int64_t each = round_up64(divide_up(keys.end - keys.begin, s->n_split), ATTENTION_KEY_TILE);
    int64_t begin = keys.begin + split * each;
    return (struct key_range){begin, min64(begin + each, keys.end)};
}

static void run_task(const struct shape *s, const struct attention_args *a,
                     const struct intervals *visible, const struct place *place, char *scratch,
                     float *out, float *lse) {
    int first_head = place->first_head;
    struct task t = {.first_head = first_head, .index = place->index};
    task_buffers(s, a, scratch, &t);
    task_rows_begin(s, visible, place->row_tile, &t);
    int end_head = first_head + s->n_task_head;
    for (int head = first_head; head < end_head; head++) {
        task_turn_to(s, scratch, &t, head);
        task_pack_queries(s, a, &t);
        memset(t.work.sum, 0, (size_t)t.work.n_row * (size_t)s->value_width * sizeof(float));
        memset(t.work.total, 0, (size_t)t.work.n_row * (size_t)s->tile->vec_width * sizeof(float));
        for (int r = 0; r < t.work.n_row; r++) t.work.max[r] = -INFINITY;
    }
    if (place->split == 0) attend_keys(s, a, scratch, t.sinks, &t);
    attend_keys(s, a, scratch, cut(s, t.keys, place->split), &t);
    for (int head = first_head; head < end_head; head++) {
        task_turn_to(s, scratch, &t, head);
        task_finish(s, a, &t, a->merge && place->split == 0, out, lse);
    }
}

// Bytes of the partial of a range after the first: like out, then like lse.
static int64_t split_out_bytes(const struct attention_args *a) {
    return at_line(a->n_query * a->n_head * a->value_dim * 4);
}
static int64_t split_bytes(const struct attention_args *a) {
    return split_out_bytes(a) + at_line(a->n_query * a->n_head * 4);
}

static enum status merge_splits(struct backend *backend, const struct attention_args *a,
                                int n_split, const char *partials) {
    if (n_split == 1) return OK;
    const float *out = (const float *)(const void *)partials;
    const int64_t word = sizeof *out;
    return cpu_merge_partials(backend,
                              &(struct merge_args){.n_row = a->n_query * a->n_head,
                                                   .value_dim = a->value_dim,
                                                   .merge = true,
                                                   .out = a->out,
                                                   .lse = a->lse,
                                                   .n_other = n_split - 1,
                                                   .other_out = out,
                                                   .other_lse = out + split_out_bytes(a) / word,
                                                   .other_stride = split_bytes(a) / word});
}

enum status cpu_attention(struct backend *backend, const struct attention_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    struct shape s;
    TRY(shape_of(state, args, &s));
    if (args->n_query == 0) return OK;
    shape_split(&s, args);
    int64_t out_bytes = split_out_bytes(args), partial_bytes = split_bytes(args);
    void *memory;
    int64_t bytes = intervals_bytes(args->n_query) + state->n_thread * s.bytes;
    TRY(cpu_scratch(backend, bytes + (s.n_split - 1) * partial_bytes, &memory));
    const struct intervals visible = find_intervals(args, memory);
    char *slices = (char *)memory + intervals_bytes(args->n_query);
    char *partials = (char *)memory + bytes;
    int n_head_group = args->n_kv_head / s.n_task_head;
    int64_t n_task = s.n_row_tile * n_head_group * s.n_split;
#pragma omp parallel num_threads(state->n_thread)
    {
        char *scratch = slices + omp_get_thread_num() * s.bytes;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n_task; i++) {
            int split = (int)(i % s.n_split), head = (int)(i / s.n_split % n_head_group);
            const struct place place = {.row_tile = s.n_row_tile - 1 - i / s.n_split / n_head_group,
                                        .first_head = head * s.n_task_head,
                                        .split = split};
            char *partial = partials + (split - 1) * partial_bytes;
            run_task(&s, args, &visible, &place, scratch, split ? (float *)partial : args->out,
                     split ? (float *)(partial + out_bytes) : args->lse);
        }
    }
    return merge_splits(backend, args, s.n_split, partials);
}

// One query's share of the arguments: its selected rows are all the keys there are.
static struct attention_args one_query(const struct sparse_attention_args *args, int64_t t) {
    const struct attention_args *a = &args->attention;
    struct attention_args one = *a;
    one.n_query = 1;
    one.n_key = args->n_selected[t];
    one.first_visible = one.end_visible = NULL;
    one.query = (const char *)a->query + dtype_bytes(a->query_dtype, t * a->query_stride);
    return one;
}

enum status cpu_sparse_attention(struct backend *backend,
                                 const struct sparse_attention_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    const struct attention_args *a = &args->attention;
    struct attention_args one = *a;
    struct shape s;
    one.n_query = 1;
    one.n_key = args->k;
    one.first_visible = one.end_visible = NULL;
    TRY(shape_of(state, &one, &s));
    if (a->n_query < MIN_TASK) shape_split(&s, &one);
    int64_t out_bytes = split_out_bytes(a), partial_bytes = split_bytes(a);
    void *memory;
    TRY(cpu_scratch(backend, state->n_thread * s.bytes + (s.n_split - 1) * partial_bytes, &memory));
    char *partials = (char *)memory + state->n_thread * s.bytes;
    int64_t n_head_group = a->n_kv_head / s.n_task_head;
    int64_t n_each = s.n_row_tile * n_head_group * s.n_split; // tasks of a query
#pragma omp parallel num_threads(state->n_thread)
    {
        char *scratch = (char *)memory + omp_get_thread_num() * s.bytes;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < a->n_query * n_each; i++) {
            int64_t t = i / n_each, rest = i % n_each, row = t * a->n_head;
            const struct attention_args query = one_query(args, t);
            const struct intervals all = {.n_key = query.n_key};
            const struct place place = {.row_tile = rest / s.n_split / n_head_group,
                                        .first_head =
                                            (int)(rest / s.n_split % n_head_group) * s.n_task_head,
                                        .split = (int)(rest % s.n_split),
                                        .index = args->row + t * args->k};
            char *partial = partials + (place.split - 1) * partial_bytes;
            float *out = place.split ? (float *)(void *)partial : a->out;
            float *lse = place.split ? (float *)(void *)(partial + out_bytes) : a->lse;
            run_task(&s, &query, &all, &place, scratch, out + row * a->value_dim, lse + row);
        }
    }
    return merge_splits(backend, a, s.n_split, partials);
}

// Adds what the task's rows read of the keys.
static void add_mass(const struct shape *s, const struct attention_mass_args *args,
                     struct key_range keys, struct task *t) {
    for (; keys.begin < keys.end; keys.begin += s->key_tile) {
        memset(t->work.mass, 0, ATTENTION_KEY_TILE * sizeof(float));
        task_turn_to_tile(s, &args->attention, t, keys);
        if (s->in_place) {
            s->tile->column_mass_in_place(&t->work);
        } else {
            s->tile->pack_keys(&t->work.keys, t->work.key);
            s->tile->column_mass(&t->work);
        }
        for (int k = 0; k < t->work.n_key; k++)
            args->mass[keys.begin + k] += args->factor * t->work.mass[k];
    }
}

static struct key_range overlap(struct key_range a, struct key_range b) {
    return (struct key_range){max64(a.begin, b.begin), min64(a.end, b.end)};
}

static void run_mass_task(const struct shape *s, const struct attention_mass_args *args,
                          const struct intervals *visible, struct key_range range, char *scratch) {
    const struct attention_args *a = &args->attention;
    _Alignas(64) float mass[ATTENTION_KEY_TILE];
    struct task t = {0};
    task_buffers(s, a, scratch, &t);
    t.work.mass = mass;
    for (int64_t i = 0; i < s->n_row_tile * a->n_kv_head; i++) {
        t.first_head = (int)(i % a->n_kv_head);
        task_rows_begin(s, visible, i / a->n_kv_head, &t);
        struct key_range sinks = overlap(t.sinks, range), keys = overlap(t.keys, range);
        if (sinks.begin >= sinks.end && keys.begin >= keys.end) continue;
        task_turn_to(s, scratch, &t, t.first_head);
        task_pack_queries(s, a, &t);
        for (int r = 0; r < t.work.n_row; r++) {
            int64_t query = (t.first_row + r) / s->group, member = (t.first_row + r) % s->group;
            double lse = a->lse[query * a->n_head + t.head * s->group + member];
            t.work.max[r] = (float)(lse * M_LOG2E);
        }
        add_mass(s, args, sinks, &t);
        add_mass(s, args, keys, &t);
    }
}

enum status cpu_attention_mass(struct backend *backend, const struct attention_mass_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    const struct attention_args *a = &args->attention;
    struct shape s;
    TRY(shape_of(state, a, &s));
    if (a->n_query == 0) return OK;
    int64_t before = intervals_bytes(a->n_query);
    void *memory;
    TRY(cpu_scratch(backend, before + state->n_thread * s.bytes, &memory));
    const struct intervals visible = find_intervals(a, memory);
#pragma omp parallel num_threads(state->n_thread)
    {
        char *scratch = (char *)memory + before + omp_get_thread_num() * s.bytes;
#pragma omp for schedule(dynamic, 1)
        for (int64_t key = 0; key < a->n_key; key += MASS_KEY) {
            const struct key_range range = {key, min64(key + MASS_KEY, a->n_key)};
            run_mass_task(&s, args, &visible, range, scratch);
        }
    }
    return OK;
}

int64_t cpu_attention_scratch_bytes(const struct cpu_state *state,
                                    const struct scratch_shape *shape) {
    int width = state->tile->fp32->vec_width;
    int value_width = (int)round_up64(shape->value_dim, width);
    struct shape s = {.tile = state->tile->fp32,
                      .unit_dim = shape->head_dim,
                      .query_units = (int)round_up64(shape->head_dim, width),
                      .unit_pad = (int)round_up64(shape->head_dim, width),
                      .value_width = value_width,
                      .n_task_row = task_rows(shape->head_dim, value_width),
                      .n_task_head = 1};
    shape_slices(&s);
    // Keys are split into ranges until there are MIN_TASK tasks; each range but the first keeps the
    // partial of its rows.
    int64_t n_row = min64(shape->n_token * shape->n_head * (shape->n_key / MIN_SPLIT_KEY),
                          MIN_TASK * (int64_t)s.n_task_row);
    return intervals_bytes(shape->n_token) + state->n_thread * s.bytes +
           n_row * (shape->value_dim + 1) * (int64_t)sizeof(float);
}

const struct attention_tile *cpu_attention_tile_choose(enum isa isa) {
    switch (isa) {
    case ISA_AVX512_BF16:
        return &attention_tile_avx512bf16;
    case ISA_AVX512:
        return &attention_tile_avx512;
    case ISA_AVX2:
        return &attention_tile_avx2;
    default:
        return &attention_tile_plain;
    }
}
