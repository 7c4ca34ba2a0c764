#include "tests/common/op_memory.h"

#include <stdio.h>
#include <stdlib.h>

void *op_pointer_get(const struct op_pointer *pointer) {
    void *value;
    memcpy(&value, pointer->field, sizeof value);
    return value;
}

void op_pointer_set(const struct op_pointer *pointer, const void *value) {
    memcpy(pointer->field, &value, sizeof value);
}

int64_t op_pointer_bytes(const struct op_pointer *pointer) {
    if (!pointer->row_stride) return pointer->bytes;
    const char *table;
    memcpy(&table, pointer->rows, sizeof table);
    int64_t last = -1;
    for (int64_t i = 0; i < pointer->n_row; i++) {
        int64_t row = 0;
        int32_t short_row = 0;
        if (pointer->row_bytes == sizeof row)
            memcpy(&row, table + i * pointer->row_bytes, sizeof row);
        else
            memcpy(&short_row, table + i * pointer->row_bytes, sizeof short_row);
        row += short_row;
        if (row > last) last = row;
    }
    return last < 0 ? 0 : last * pointer->row_stride + pointer->bytes;
}

void op_memory_close(struct op_memory *memory) {
    free(memory->pointers);
    free(memory->table);
    *memory = (struct op_memory){0};
}

static struct op_memory open_list(int capacity) {
    struct op_memory out = {.pointers = calloc((size_t)capacity, sizeof *out.pointers)};
    if (!out.pointers) abort();
    return out;
}

static struct op_pointer *add(struct op_memory *m, const char *name, void *field, int64_t bytes,
                              enum op_access access) {
    m->pointers[m->n] = (struct op_pointer){.name = name,
                                            .field = field,
                                            .bytes = bytes > 0 ? bytes : 0,
                                            .access = access,
                                            .memory = MEMORY_DEVICE};
    return &m->pointers[m->n++];
}
#define ADD(m, args, name, bytes, access) add(m, #name, &(args)->name, bytes, access)

static void add_host(struct op_memory *m, const char *name, void *field, int64_t bytes) {
    add(m, name, field, bytes, OP_READ)->memory = MEMORY_HOST;
}
#define ADD_HOST(m, args, name, bytes) add_host(m, #name, &(args)->name, bytes)

// A copy of a host table, to be put in its place: pointers in it may be replaced.
static void *own_table(struct op_memory *m, const void *table, size_t bytes) {
    m->table = calloc(1, bytes + 1);
    if (!m->table) abort();
    if (bytes) memcpy(m->table, table, bytes);
    return m->table;
}

// n rows of n_col elements, `stride` elements apart.
static int64_t rows_bytes(enum dtype dtype, int64_t n, int64_t n_col, int64_t stride) {
    return n < 1 ? 0 : dtype_bytes(dtype, (n - 1) * stride) + dtype_bytes(dtype, n_col);
}

static int64_t floats(int64_t n) {
    return n * (int64_t)sizeof(float);
}

static void add_weight(struct op_memory *m, struct weight *w) {
    int64_t last_row = (w->first_row + w->n_row - 1) / WEIGHT_SCALE_BLOCK;
    int64_t last_column = (w->first_col + w->n_col - 1) / WEIGHT_SCALE_BLOCK;
    add(m, "weight data", &w->data, (w->n_row - 1) * w->row_bytes + dtype_bytes(w->dtype, w->n_col),
        OP_READ);
    add(m, "weight scale", &w->scale, floats(last_row * w->scale_stride + last_column + 1),
        OP_READ);
}

struct op_memory op_memory_embed(struct embed_args *a) {
    struct op_memory m = open_list(4);
    add_weight(&m, &a->table);
    ADD(&m, a, token, a->n_token * 4, OP_READ);
    ADD(&m, a, out, floats(a->n_token * a->table.n_col), OP_WRITE);
    return m;
}

struct op_memory op_memory_norm(struct norm_args *a) {
    struct op_memory m = open_list(4);
    ADD(&m, a, x, floats(a->n_row * a->n_col), OP_READ);
    ADD(&m, a, weight, floats(a->n_col), OP_READ);
    ADD(&m, a, bias, floats(a->n_col), OP_READ);
    ADD(&m, a, out, dtype_bytes(a->out_dtype, a->n_row * a->n_col), OP_WRITE);
    return m;
}

static void add_matmul(struct op_memory *m, struct matmul_args *a) {
    ADD(m, a, x, rows_bytes(a->x_dtype, a->n_token, a->weight.n_col, a->x_stride), OP_READ);
    add_weight(m, &a->weight);
    ADD(m, a, bias, floats(a->weight.n_row), OP_READ);
    ADD(m, a, out, rows_bytes(a->out_dtype, a->n_token, a->weight.n_row, a->out_stride),
        a->accumulate ? OP_UPDATE : OP_WRITE);
}

struct op_memory op_memory_matmul(struct matmul_args *a) {
    struct op_memory m = open_list(5);
    add_matmul(&m, a);
    return m;
}

struct op_memory op_memory_matmul_each(struct matmul_each_args *a) {
    struct op_memory m = open_list(5 * a->n_product + 1);
    struct matmul_args *product = own_table(&m, a->product, (size_t)a->n_product * sizeof *product);
    a->product = product;
    for (int i = 0; i < a->n_product; i++) add_matmul(&m, &product[i]);
    return m;
}

static void add_rope(struct op_memory *m, struct rope_args *a) {
    int64_t n_col = (int64_t)a->n_head * a->head_dim, n_angle = a->n_token * (a->rope_dim / 2);
    ADD(m, a, x, rows_bytes(DTYPE_F32, a->n_token, n_col, a->x_stride), OP_READ);
    ADD(m, a, cos, floats(n_angle), OP_READ);
    ADD(m, a, sin, floats(n_angle), OP_READ);
    ADD(m, a, out, rows_bytes(a->out_dtype, a->n_token, n_col, a->out_stride), OP_WRITE);
}

struct op_memory op_memory_rope(struct rope_args *a) {
    struct op_memory m = open_list(4);
    add_rope(&m, a);
    return m;
}

struct op_memory op_memory_rope_each(struct rope_each_args *a) {
    struct op_memory m = open_list(4 * a->n_rope + 1);
    struct rope_args *rope = own_table(&m, a->rope, (size_t)a->n_rope * sizeof *rope);
    a->rope = rope;
    for (int i = 0; i < a->n_rope; i++) add_rope(&m, &rope[i]);
    return m;
}

struct op_memory op_memory_gate(struct gate_args *a) {
    struct op_memory m = open_list(3);
    ADD(&m, a, gate, rows_bytes(DTYPE_F32, a->n_token, a->n_col, a->gate_stride), OP_READ);
    ADD(&m, a, up, rows_bytes(DTYPE_F32, a->n_token, a->n_col, a->up_stride), OP_READ);
    ADD(&m, a, out, dtype_bytes(a->out_dtype, a->n_token * a->n_col), OP_WRITE);
    return m;
}

struct op_memory op_memory_sample(struct sample_args *args) {
    struct op_memory m = open_list(2);
    ADD(&m, args, logits, args->n * 4, OP_READ);
    ADD(&m, args, token, 4, OP_WRITE);
    return m;
}

struct op_memory op_memory_add(struct add_args *a) {
    struct op_memory m = open_list(2);
    ADD(&m, a, x, floats(a->n), OP_UPDATE);
    ADD(&m, a, by, floats(a->n), OP_READ);
    return m;
}

struct op_memory op_memory_multiply(struct multiply_args *a) {
    struct op_memory m = open_list(2);
    ADD(&m, a, x, floats(a->n), OP_UPDATE);
    ADD(&m, a, by, floats(a->n), OP_READ);
    return m;
}

struct op_memory op_memory_convert(struct convert_args *a) {
    struct op_memory m = open_list(3);
    ADD(&m, a, row, a->n_row * 8, OP_READ);
    struct op_pointer *x =
        ADD(&m, a, x, rows_bytes(a->x_dtype, a->n_row, a->n_col, a->x_stride), OP_READ);
    if (a->row) {
        x->bytes = dtype_bytes(a->x_dtype, a->n_col);
        x->row_stride = dtype_bytes(a->x_dtype, a->x_stride);
        x->rows = &a->row;
        x->n_row = a->n_row;
        x->row_bytes = 8;
    }
    ADD(&m, a, out, rows_bytes(a->out_dtype, a->n_row, a->n_col, a->out_stride), OP_WRITE);
    return m;
}

struct op_memory op_memory_copy_blocks(struct copy_blocks_args *a) {
    struct op_memory m = open_list(2 * a->n_block + 1);
    struct block_copy *block = own_table(&m, a->block, (size_t)a->n_block * sizeof *block);
    a->block = block;
    for (int i = 0; i < a->n_block; i++) {
        struct block_copy *b = &block[i];
        if (b->n_row < 1 || b->n_col < 1) continue;
        ADD(&m, b, from, rows_bytes(DTYPE_F32, b->n_row, b->n_col, b->from_stride), OP_READ);
        ADD(&m, b, to, rows_bytes(DTYPE_F32, b->n_row, b->n_col, b->to_stride), OP_UPDATE);
    }
    return m;
}

// Queries, keys and values; the positions are host tables.
static void add_attention(struct op_memory *m, struct attention_args *a) {
    ADD(m, a, query,
        rows_bytes(a->query_dtype, a->n_query, (int64_t)a->n_head * a->head_dim, a->query_stride),
        OP_READ);
    ADD(m, a, key,
        rows_bytes(a->kv_dtype, a->n_key, (int64_t)a->n_kv_head * a->head_dim, a->key_stride),
        OP_READ);
    ADD(m, a, value,
        rows_bytes(a->kv_dtype, a->n_key, (int64_t)a->n_kv_head * a->value_dim, a->value_stride),
        OP_READ);
}

static void add_positions(struct op_memory *m, struct attention_args *a) {
    if (a->first_visible) ADD_HOST(m, a, first_visible, a->n_query * 8);
    if (a->end_visible) ADD_HOST(m, a, end_visible, a->n_query * 8);
    if (!a->first_visible && !a->end_visible) return;
    ADD_HOST(m, a, key_position, a->n_key * 8);
}

static void add_attended(struct op_memory *m, struct attention_args *a) {
    enum op_access access = a->merge ? OP_UPDATE : OP_WRITE;
    ADD(m, a, out, floats(a->n_query * a->n_head * a->value_dim), access);
    ADD(m, a, lse, floats(a->n_query * a->n_head), access);
}

struct op_memory op_memory_attention(struct attention_args *a) {
    struct op_memory m = open_list(8);
    add_attention(&m, a);
    add_positions(&m, a);
    add_attended(&m, a);
    return m;
}

struct op_memory op_memory_merge_partials(struct merge_args *a) {
    struct op_memory m = open_list(4);
    enum op_access access = a->merge ? OP_UPDATE : OP_WRITE;
    int64_t n_out = a->n_row * a->value_dim;
    ADD(&m, a, out, floats(n_out), access);
    ADD(&m, a, lse, floats(a->n_row), access);
    ADD(&m, a, other_out, rows_bytes(DTYPE_F32, a->n_other, n_out, a->other_stride), OP_READ);
    ADD(&m, a, other_lse, rows_bytes(DTYPE_F32, a->n_other, a->n_row, a->other_stride), OP_READ);
    return m;
}

struct op_memory op_memory_attention_mass(struct attention_mass_args *a) {
    struct op_memory m = open_list(8);
    struct attention_args *attention = &a->attention;
    add_attention(&m, attention);
    add_positions(&m, attention);
    ADD(&m, attention, lse, floats(attention->n_query * attention->n_head), OP_READ);
    ADD(&m, a, mass, floats(attention->n_key), OP_UPDATE);
    return m;
}

struct op_memory op_memory_logprob(struct logprob_args *a) {
    struct op_memory m = open_list(5);
    ADD(&m, a, x, dtype_bytes(a->x_dtype, a->n_token * a->head.n_col), OP_READ);
    add_weight(&m, &a->head);
    ADD(&m, a, target, a->n_token * 4, OP_READ);
    ADD(&m, a, logprob, floats(a->n_token), OP_WRITE);
    return m;
}

struct op_memory op_memory_quantize(struct quantize_args *a) {
    struct op_memory m = open_list(3);
    ADD(&m, a, x, floats(a->n_row * a->n_col), OP_READ);
    ADD(&m, a, out, a->n_row * a->n_col, OP_WRITE);
    ADD(&m, a, scale, floats(a->n_row * (a->n_col / a->block)), OP_WRITE);
    return m;
}

// Lists of candidates that the operation may change.
#define ADD_CANDIDATES(m, a)                                                                       \
    do {                                                                                           \
        ADD(m, a, candidate, (a)->n_query *(a)->k * 8, OP_UPDATE);                                 \
        ADD(m, a, n_candidate, (a)->n_query * 4, OP_UPDATE);                                       \
    } while (0)

struct op_memory op_memory_index_top_k(struct index_args *a) {
    struct op_memory m = open_list(8);
    ADD(&m, a, query, dtype_bytes(a->dtype, a->n_query * a->n_head * a->head_dim), OP_READ);
    ADD(&m, a, weight, floats(a->n_query * a->n_head), OP_READ);
    ADD(&m, a, key, dtype_bytes(a->dtype, a->n_key * a->head_dim), OP_READ);
    ADD(&m, a, key_scale, floats(a->n_key), OP_READ);
    ADD_HOST(&m, a, query_position, a->n_query * 8);
    ADD_HOST(&m, a, run, a->n_run * (int64_t)sizeof *a->run);
    ADD_CANDIDATES(&m, a);
    return m;
}

struct op_memory op_memory_index_merge(struct index_merge_args *a) {
    struct op_memory m = open_list(5);
    int64_t n_row = a->n_list * a->n_query;
    ADD_CANDIDATES(&m, a);
    ADD(&m, a, other, n_row * a->k * 8, OP_READ);
    ADD(&m, a, n_other, n_row * 4, OP_READ);
    ADD(&m, a, threshold, a->n_query * 8, OP_WRITE);
    return m;
}

struct op_memory op_memory_index_filter(struct index_filter_args *a) {
    struct op_memory m = open_list(3);
    ADD_CANDIDATES(&m, a);
    ADD(&m, a, threshold, a->n_query * 8, OP_READ);
    return m;
}

struct op_memory op_memory_select_rows(struct select_rows_args *a) {
    struct op_memory m = open_list(5);
    ADD(&m, a, candidate, a->n_query * a->k * 8, OP_READ);
    ADD(&m, a, n_candidate, a->n_query * 4, OP_READ);
    ADD_HOST(&m, a, run, a->n_run * (int64_t)sizeof *a->run);
    ADD(&m, a, row, a->n_query * a->k * 4, OP_WRITE);
    ADD(&m, a, n_selected, a->n_query * 4, OP_WRITE);
    return m;
}

struct op_memory op_memory_sparse_attention(struct sparse_attention_args *a) {
    struct op_memory m = open_list(8);
    add_attention(&m, &a->attention);
    add_attended(&m, &a->attention);
    ADD(&m, a, row, a->attention.n_query * a->k * 4, OP_READ);
    ADD(&m, a, n_selected, a->attention.n_query * 4, OP_READ);
    return m;
}

struct op_memory op_memory_expert_gate(struct expert_gate_args *a) {
    struct op_memory m = open_list(4);
    ADD(&m, a, logit, floats(a->n_token * a->n_expert), OP_READ);
    ADD(&m, a, bias, floats(a->n_expert), OP_READ);
    ADD(&m, a, expert, a->n_token * a->n_used * 4, OP_WRITE);
    ADD(&m, a, weight, floats(a->n_token * a->n_used), OP_WRITE);
    return m;
}

static const struct weight *add_weights(struct op_memory *m, const struct weight **table, int n) {
    struct weight *weights = own_table(m, *table, (size_t)n * sizeof *weights);
    *table = weights;
    for (int i = 0; i < n; i++) add_weight(m, &weights[i]);
    return weights;
}

struct op_memory op_memory_grouped_matmul(struct grouped_matmul_args *a) {
    struct op_memory m = open_list(3 + 2 * a->n_group);
    int64_t n_row = a->n_group ? a->first_row[a->n_group] : 0;
    ADD_HOST(&m, a, first_row, (a->n_group + 1) * 8);
    const struct weight *weights = add_weights(&m, &a->weight, a->n_group);
    if (n_row) {
        ADD(&m, a, x, dtype_bytes(a->x_dtype, n_row * weights[0].n_col), OP_READ);
        ADD(&m, a, out, floats(n_row * weights[0].n_row), OP_WRITE);
    }
    return m;
}

struct op_memory op_memory_chosen_matmul(struct chosen_matmul_args *a) {
    struct op_memory m = open_list(4 + 2 * a->n_expert);
    ADD(&m, a, expert, a->n_row * 4, OP_READ);
    const struct weight *weights = add_weights(&m, &a->weight, a->n_expert);
    ADD(&m, a, x, rows_bytes(a->x_dtype, a->n_row, weights[0].n_col, a->x_stride), OP_READ);
    ADD(&m, a, out, floats(a->n_row * weights[0].n_row), OP_WRITE);
    ADD(&m, a, n_product, 8, OP_UPDATE);
    return m;
}

struct op_memory op_memory_expert_combine(struct expert_combine_args *a) {
    struct op_memory m = open_list(4);
    ADD(&m, a, row, a->n_token * a->n_used * 4, OP_READ);
    struct op_pointer *x =
        ADD(&m, a, x, floats((a->row ? 1 : a->n_token * a->n_used) * a->n_col), OP_READ);
    if (a->row) {
        x->row_stride = floats(a->n_col);
        x->rows = &a->row;
        x->n_row = a->n_token * a->n_used;
        x->row_bytes = 4;
    }
    ADD(&m, a, weight, floats(a->n_token * a->n_used), OP_READ);
    ADD(&m, a, out, floats(a->n_token * a->n_col), OP_UPDATE);
    return m;
}
