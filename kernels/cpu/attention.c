// Attention on the processor. A task is one kv head, one tile of rows (query, head of the group)
// and one range of keys; it packs a key tile once and runs all its rows through it. Tasks go to
// threads as they become free, longest first. Few rows (decode) split the keys into ranges whose
// partials are merged; ranges follow from the shape alone, so results do not depend on the thread
// count. Sparse attention is the same, one query after the other, with a list of rows for each.
#include <math.h>
#include <omp.h>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/cpu.h"

enum {
    MIN_TASK = 64,       // tasks below which keys are split
    MIN_SPLIT_KEY = 256, // fewest keys worth a task of their own
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
    int64_t n_row_tile, split_key;
    int unit_dim, unit_pad, value_width; // see struct tile_work
    // Offsets into one thread's scratch, and its size.
    int64_t query_at, key_at, value_at, sum_at, max_at, total_at, visible_at, row_visible_at, bytes;
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
    s->key_at = s->query_at + at_line(n_row * s->unit_dim * 4);
    s->value_at = s->key_at + at_line((int64_t)ATTENTION_KEY_TILE * s->unit_pad * 4);
    s->sum_at = s->value_at + at_line((int64_t)ATTENTION_KEY_TILE * s->value_width * 4);
    s->max_at = s->sum_at + at_line(n_row * s->value_width * 4);
    s->total_at = s->max_at + at_line(n_row * 4);
    s->visible_at = s->total_at + at_line(n_row * s->tile->vec_width * 4);
    s->row_visible_at = s->visible_at + at_line(n_row * 4);
    s->bytes = s->row_visible_at + at_line(n_row * 8);
}

static enum status shape_of(const struct cpu_state *state, const struct attention_args *a,
                            struct shape *s) {
    if (a->head_dim % 8 || a->head_dim < 8 || a->head_dim > ATTENTION_MAX_DIM || a->value_dim % 8 ||
        a->value_dim < 8 || a->value_dim > ATTENTION_MAX_DIM || a->n_head % a->n_kv_head)
        FAIL(ERR_INTERNAL, "attention of %d/%d heads, dimensions %d and %d is not supported",
             a->n_head, a->n_kv_head, a->head_dim, a->value_dim);
    if (a->first_visible) FAIL(ERR_INTERNAL, "attention over windows is not supported");
    s->tile = a->query_dtype == DTYPE_BF16 ? state->tile : state->tile->fp32;
    int width = s->tile->vec_width;
    s->group = a->n_head / a->n_kv_head;
    s->n_row = a->n_query * s->group;
    s->unit_dim = a->head_dim / s->tile->unit;
    s->unit_pad = (int)round_up64(s->unit_dim, width);
    s->value_width = (int)round_up64(a->value_dim, width);
    // Tiles of rows are of nearly equal length.
    s->n_row_tile = divide_up(s->n_row, task_rows(a->head_dim, s->value_width));
    int64_t n_task_row = s->n_row_tile ? divide_up(s->n_row, s->n_row_tile) : 0;
    s->n_task_row = (int)min64(round_up64(n_task_row, ATTENTION_ROW_BLOCK), s->n_row);
    // Few rows are bound by memory: a task then takes all heads of a key, which lie side by side.
    s->n_task_head = s->n_row * a->n_kv_head <= MAX_HEADS_ROW ? a->n_kv_head : 1;
    int64_t n_task = s->n_row_tile * a->n_kv_head / s->n_task_head;
    s->n_split = 1;
    if (n_task > 0 && n_task < MIN_TASK) {
        int64_t n = min64(divide_up(MIN_TASK, n_task), a->n_key / MIN_SPLIT_KEY);
        s->n_split = n > 1 ? (int)n : 1;
    }
    s->split_key = round_up64(divide_up(a->n_key, s->n_split), ATTENTION_KEY_TILE);
    shape_slices(s);
    return OK;
}

// One thread's buffers for one task.
struct task {
    struct tile_work work;
    int *visible;         // work.visible
    int64_t *row_visible; // [n_row] keys of the whole block that the row sees
    int64_t first_row;
    int first_head, head; // of keys and values
    const int32_t *index; // rows of the block that the query selected, or NULL
};

static void task_buffers(const struct shape *s, const struct attention_args *a, char *scratch,
                         struct task *t) {
    t->visible = (int *)(scratch + s->visible_at);
    t->row_visible = (int64_t *)(scratch + s->row_visible_at);
    t->work = (struct tile_work){
        .unit_dim = s->unit_dim,
        .value_width = s->value_width,
        .score_scale = (float)((double)a->scale * M_LOG2E),
        .visible = t->visible,
        .key = scratch + s->key_at,
        .value = scratch + s->value_at,
    };
}

// Turns to the rows of one of the task's heads.
static void task_turn_to(const struct shape *s, char *scratch, struct task *t, int head) {
    int64_t row = (int64_t)(head - t->first_head) * s->n_task_row;
    t->head = head;
    t->work.query = scratch + s->query_at + row * s->unit_dim * 4;
    t->work.sum = (float *)(scratch + s->sum_at) + row * s->value_width;
    t->work.max = (float *)(scratch + s->max_at) + row;
    t->work.total = (float *)(scratch + s->total_at) + row * s->tile->vec_width;
}

// Keys with a position before `position`: they ascend.
static int64_t count_visible(const struct attention_args *a, int64_t position) {
    int64_t low = 0, high = a->n_key;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (a->key_position[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Chooses the rows of a task and counts the keys that each sees: the same in every head.
static void task_rows_begin(const struct shape *s, const struct attention_args *a, int64_t row_tile,
                            struct task *t) {
    t->first_row = row_tile * s->n_task_row;
    t->work.n_row = (int)min64(s->n_task_row, s->n_row - t->first_row);
    for (int r = 0; r < t->work.n_row; r++) {
        int64_t query = (t->first_row + r) / s->group, member = (t->first_row + r) % s->group;
        if (r > 0 && member > 0)
            t->row_visible[r] = t->row_visible[r - 1];
        else
            t->row_visible[r] = a->end_visible ? count_visible(a, a->end_visible[query]) : a->n_key;
    }
}

static void task_pack_queries(const struct shape *s, const struct attention_args *a,
                              struct task *t) {
    for (int r = 0; r < t->work.n_row; r++) {
        int64_t query = (t->first_row + r) / s->group, member = (t->first_row + r) % s->group;
        int64_t from = query * a->query_stride + (t->head * s->group + member) * a->head_dim;
        char *to = (char *)t->work.query + (int64_t)r * s->unit_dim * 4;
        if (a->query_dtype == DTYPE_F32)
            memcpy(to, (const float *)a->query + from, (size_t)a->head_dim * sizeof(float));
        else if (s->tile->unit == 2)
            memcpy(to, (const bf16 *)a->query + from, (size_t)a->head_dim * sizeof(bf16));
        else
            dtype_to_float(DTYPE_BF16, (const bf16 *)a->query + from, a->head_dim, (float *)to);
    }
}

// The task's keys or values from `first` on, as they are packed.
static struct kv_rows kv_rows(const struct attention_args *a, const struct task *t,
                              const void *base, int64_t stride, int n_col, int64_t first) {
    int64_t at = (t->index ? 0 : first * stride) + (int64_t)t->head * n_col;
    return (struct kv_rows){
        .data = a->kv_dtype == DTYPE_BF16 ? (const void *)((const bf16 *)base + at)
                                          : (const void *)((const float *)base + at),
        .dtype = a->kv_dtype,
        .round = a->query_dtype == DTYPE_BF16 && a->kv_dtype == DTYPE_F32,
        .stride = stride,
        .index = t->index ? t->index + first : NULL,
        .n_row = t->work.n_key,
        .n_col = n_col,
    };
}

// Packs the keys from `first` (and values, if with_values) that any row sees, at most a tile.
static void task_load_tile(const struct shape *s, const struct attention_args *a, struct task *t,
                           int64_t first, int64_t end, bool with_values) {
    int n_key = (int)min64(end - first, ATTENTION_KEY_TILE);
    t->work.n_key = n_key;
    for (int r = 0; r < t->work.n_row; r++) {
        int64_t n = min64(t->row_visible[r] - first, n_key);
        t->visible[r] = n > 0 ? (int)n : 0;
    }
    struct kv_rows rows = kv_rows(a, t, a->key, a->key_stride, a->head_dim, first);
    s->tile->pack_keys(&rows, t->work.key);
    if (!with_values) return;
    rows = kv_rows(a, t, a->value, a->value_stride, a->value_dim, first);
    s->tile->pack_values(&rows, s->value_width, t->work.value);
}

// Divides by the total and writes rows and lse where the partial of this range belongs.
static void task_finish(const struct shape *s, const struct attention_args *a, const struct task *t,
                        float *out, float *lse) {
    for (int r = 0; r < t->work.n_row; r++) {
        int64_t query = (t->first_row + r) / s->group, member = (t->first_row + r) % s->group;
        int64_t row = query * a->n_head + t->head * s->group + member;
        const float *sum = t->work.sum + (int64_t)r * s->value_width;
        float *to = out + row * a->value_dim, total = 0;
        for (int i = 0; i < s->tile->vec_width; i++)
            total += t->work.total[(int64_t)r * s->tile->vec_width + i];
        if (total == 0) {
            memset(to, 0, (size_t)a->value_dim * sizeof(float));
            lse[row] = -INFINITY;
            continue;
        }
        for (int i = 0; i < a->value_dim; i++) to[i] = sum[i] / total;
        lse[row] = (float)(((double)t->work.max[r] + log2((double)total)) * M_LN2);
    }
}

struct place { // of a task in the work
    int64_t row_tile;
    int first_head, split;
    const int32_t *index; // see struct task
};

static void run_task(const struct shape *s, const struct attention_args *a,
                     const struct place *place, char *scratch, float *out, float *lse) {
    int first_head = place->first_head, split = place->split;
    struct task t = {.first_head = first_head, .index = place->index};
    task_buffers(s, a, scratch, &t);
    task_rows_begin(s, a, place->row_tile, &t);
    int end_head = first_head + s->n_task_head;
    for (int head = first_head; head < end_head; head++) {
        task_turn_to(s, scratch, &t, head);
        task_pack_queries(s, a, &t);
        memset(t.work.sum, 0, (size_t)t.work.n_row * (size_t)s->value_width * sizeof(float));
        memset(t.work.total, 0, (size_t)t.work.n_row * (size_t)s->tile->vec_width * sizeof(float));
        for (int r = 0; r < t.work.n_row; r++) t.work.max[r] = -INFINITY;
    }
    int64_t end = min64((split + 1) * s->split_key, t.row_visible[t.work.n_row - 1]);
    for (int64_t key = split * s->split_key; key < end; key += ATTENTION_KEY_TILE)
        for (int head = first_head; head < end_head; head++) {
            task_turn_to(s, scratch, &t, head);
            task_load_tile(s, a, &t, key, end, true);
            s->tile->attend(&t.work);
        }
    for (int head = first_head; head < end_head; head++) {
        task_turn_to(s, scratch, &t, head);
        task_finish(s, a, &t, out, lse);
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
    for (int split = 1; split < n_split; split++) {
        const char *partial = partials + (split - 1) * split_bytes(a);
        struct merge_args merge = {.n_row = a->n_query * a->n_head,
                                   .value_dim = a->value_dim,
                                   .out = a->out,
                                   .lse = a->lse,
                                   .other_out = (const float *)(const void *)partial,
                                   .other_lse =
                                       (const float *)(const void *)(partial + split_out_bytes(a))};
        TRY(cpu_merge_partials(backend, &merge));
    }
    return OK;
}

enum status cpu_attention(struct backend *backend, const struct attention_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    struct shape s;
    TRY(shape_of(state, args, &s));
    if (args->n_query == 0) return OK;
    int64_t out_bytes = split_out_bytes(args), partial_bytes = split_bytes(args);
    void *memory;
    TRY(cpu_scratch(backend, state->n_thread * s.bytes + (s.n_split - 1) * partial_bytes, &memory));
    char *partials = (char *)memory + state->n_thread * s.bytes;
    int n_head_group = args->n_kv_head / s.n_task_head;
    int64_t n_task = s.n_row_tile * n_head_group * s.n_split;
#pragma omp parallel num_threads(state->n_thread)
    {
        char *scratch = (char *)memory + omp_get_thread_num() * s.bytes;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n_task; i++) {
            int split = (int)(i % s.n_split), head = (int)(i / s.n_split % n_head_group);
            const struct place place = {.row_tile = s.n_row_tile - 1 - i / s.n_split / n_head_group,
                                        .first_head = head * s.n_task_head,
                                        .split = split};
            char *partial = partials + (split - 1) * partial_bytes;
            run_task(&s, args, &place, scratch, split ? (float *)partial : args->out,
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
    TRY(shape_of(state, &one, &s));
    if (a->n_query >= MIN_TASK) { // tasks enough without ranges
        s.n_split = 1;
        s.split_key = round_up64(args->k, ATTENTION_KEY_TILE);
    }
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
            const struct place place = {.row_tile = rest / s.n_split / n_head_group,
                                        .first_head =
                                            (int)(rest / s.n_split % n_head_group) * s.n_task_head,
                                        .split = (int)(rest % s.n_split),
                                        .index = args->row + t * args->k};
            char *partial = partials + (place.split - 1) * partial_bytes;
            float *out = place.split ? (float *)(void *)partial : a->out;
            float *lse = place.split ? (float *)(void *)(partial + out_bytes) : a->lse;
            run_task(&s, &query, &place, scratch, out + row * a->value_dim, lse + row);
        }
    }
    return merge_splits(backend, a, s.n_split, partials);
}

static void run_mass_task(const struct shape *s, const struct attention_mass_args *args,
                          int64_t first_key, char *scratch) {
    const struct attention_args *a = &args->attention;
    _Alignas(64) float mass[ATTENTION_KEY_TILE];
    struct task t = {0};
    task_buffers(s, a, scratch, &t);
    t.work.mass = mass;
    int64_t range_end = min64(first_key + MASS_KEY, a->n_key);
    for (int64_t i = 0; i < s->n_row_tile * a->n_kv_head; i++) {
        t.first_head = (int)(i % a->n_kv_head);
        task_rows_begin(s, a, i / a->n_kv_head, &t);
        task_turn_to(s, scratch, &t, t.first_head);
        task_pack_queries(s, a, &t);
        for (int r = 0; r < t.work.n_row; r++) {
            int64_t query = (t.first_row + r) / s->group, member = (t.first_row + r) % s->group;
            double lse = a->lse[query * a->n_head + t.head * s->group + member];
            t.work.max[r] = (float)(lse * M_LOG2E);
        }
        int64_t end = min64(range_end, t.row_visible[t.work.n_row - 1]);
        for (int64_t key = first_key; key < end; key += ATTENTION_KEY_TILE) {
            memset(mass, 0, sizeof mass);
            task_load_tile(s, a, &t, key, end, false);
            s->tile->column_mass(&t.work);
            for (int k = 0; k < t.work.n_key; k++) args->mass[key + k] += args->factor * mass[k];
        }
    }
}

enum status cpu_attention_mass(struct backend *backend, const struct attention_mass_args *args) {
    const struct cpu_state *state = cpu_state(backend);
    struct shape s;
    TRY(shape_of(state, &args->attention, &s));
    if (args->attention.n_query == 0) return OK;
    void *memory;
    TRY(cpu_scratch(backend, state->n_thread * s.bytes, &memory));
#pragma omp parallel num_threads(state->n_thread)
    {
        char *scratch = (char *)memory + omp_get_thread_num() * s.bytes;
#pragma omp for schedule(dynamic, 1)
        for (int64_t key = 0; key < args->attention.n_key; key += MASS_KEY)
            run_mass_task(&s, args, key, scratch);
    }
    return OK;
}

int64_t cpu_attention_scratch_bytes(const struct cpu_state *state,
                                    const struct scratch_shape *shape) {
    int width = state->tile->fp32->vec_width;
    int value_width = (int)round_up64(shape->value_dim, width);
    struct shape s = {.tile = state->tile->fp32,
                      .unit_dim = shape->head_dim,
                      .unit_pad = (int)round_up64(shape->head_dim, width),
                      .value_width = value_width,
                      .n_task_row = task_rows(shape->head_dim, value_width),
                      .n_task_head = 1};
    shape_slices(&s);
    // Keys are split into ranges until there are MIN_TASK tasks; each range but the first keeps the
    // partial of its rows.
    int64_t n_row = min64(shape->n_token * shape->n_head * (shape->n_key / MIN_SPLIT_KEY),
                          MIN_TASK * (int64_t)s.n_task_row);
    return state->n_thread * s.bytes + n_row * (shape->value_dim + 1) * (int64_t)sizeof(float);
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
