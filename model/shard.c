#include "model/shard.h"

#include <stdlib.h>
#include <string.h>

#include "model/tensor_names.h"

enum unit { UNIT_NONE, UNIT_ROW, UNIT_HEAD, UNIT_GATED }; // NONE: whole on every rank

struct rule {
    enum unit unit;
    bool columns;
};
// As decode splits its products. GATED: blocks of the format of `down`, whose columns gate and up
// make.
static const struct rule rules[N_TENSOR_ROLE] = {
    [TENSOR_QUERY] = {UNIT_ROW, false},       [TENSOR_KEY] = {UNIT_ROW, false},
    [TENSOR_VALUE] = {UNIT_ROW, false},       [TENSOR_OUTPUT] = {UNIT_HEAD, true},
    [TENSOR_GATE] = {UNIT_GATED, false},      [TENSOR_UP] = {UNIT_GATED, false},
    [TENSOR_DOWN] = {UNIT_GATED, true},       [TENSOR_QUERY_DOWN] = {UNIT_ROW, false},
    [TENSOR_QUERY_UP] = {UNIT_HEAD, false},   [TENSOR_LATENT_UP] = {UNIT_HEAD, false},
    [TENSOR_INDEX_QUERY] = {UNIT_ROW, false}, [TENSOR_SHARED_GATE] = {UNIT_GATED, false},
    [TENSOR_SHARED_UP] = {UNIT_GATED, false}, [TENSOR_SHARED_DOWN] = {UNIT_GATED, true},
};

static struct shard_part make_part(int role, const struct tensor *tensor, int64_t n_unit,
                                   bool columns) {
    if (n_unit < 1) n_unit = 1; // nothing that could be cut: rank 0 has it
    struct weight whole = {.dtype = tensor->dtype,
                           .n_row = tensor->shape[0],
                           .n_col = tensor->shape[1],
                           .row_bytes = dtype_bytes(tensor->dtype, tensor->shape[1])};
    return (struct shard_part){.role = role,
                               .columns = columns,
                               .n_unit = n_unit,
                               .unit = (columns ? whole.n_col : whole.n_row) / n_unit,
                               .whole = whole};
}

static struct shard_part absorbed_part(const struct layer_spec *l) {
    int64_t n = (int64_t)l->latent.rank * l->latent.nope_dim;
    return (struct shard_part){.role = ABSORBED_KEYS,
                               .n_unit = l->n_head,
                               .unit = 1,
                               .whole = {.dtype = DTYPE_F32,
                                         .n_row = l->n_head,
                                         .n_col = n,
                                         .row_bytes = n * (int64_t)sizeof(float)}};
}

static enum status describe_head(const struct checkpoint *checkpoint, struct layer_shards *out) {
    const struct model_spec *spec = &checkpoint->spec;
    struct tensor tensor;
    if (!spec->causal) return OK;
    TRY(checkpoint_require(checkpoint, TENSOR_HEAD, 0, spec->n_vocab, spec->n_hidden, &tensor));
    out->parts[out->n++] = make_part(TENSOR_HEAD, &tensor, spec->n_vocab, false);
    return OK;
}

static int64_t count_units(const struct layer_spec *l, enum unit unit, const struct tensor *tensor,
                           int64_t down_block) {
    switch (unit) {
    case UNIT_ROW:
        return tensor->shape[0];
    case UNIT_HEAD:
        return l->n_head;
    case UNIT_GATED:
        return l->n_feed_forward / down_block;
    case UNIT_NONE:
        break;
    }
    return 0;
}

enum status shards_describe(const struct checkpoint *checkpoint, int layer,
                            struct layer_shards *out) {
    *out = (struct layer_shards){0};
    if (layer == checkpoint->spec.n_layer) return describe_head(checkpoint, out);
    const struct layer_spec *l = &checkpoint->spec.layers[layer];
    bool latent = l->attention == ATTENTION_LATENT;
    struct tensor tensors[LAYER_TENSORS] = {0};
    struct tensor_need needs[LAYER_TENSORS];
    int64_t down_block = 1;
    int n = tensor_layer_needs(&checkpoint->spec, layer, needs);
    for (int i = 0; i < n; i++) {
        if (rules[needs[i].role].unit == UNIT_NONE) continue;
        TRY(checkpoint_require(checkpoint, needs[i].role, layer, needs[i].n_row, needs[i].n_col,
                               &tensors[i]));
        if (needs[i].role == TENSOR_DOWN || needs[i].role == TENSOR_SHARED_DOWN)
            down_block = dtype_info[tensors[i].dtype].block_elements;
    }
    for (int i = 0; i < n; i++) {
        struct rule rule = rules[needs[i].role];
        if (!tensors[i].name) continue;
        if (latent && needs[i].role == TENSOR_QUERY) rule.unit = UNIT_HEAD;
        out->parts[out->n++] =
            make_part(needs[i].role, &tensors[i],
                      count_units(l, rule.unit, &tensors[i], down_block), rule.columns);
    }
    if (latent) out->parts[out->n++] = absorbed_part(l);
    return OK;
}

struct shard_part *shards_find(struct layer_shards *shards, int role) {
    for (int i = 0; i < shards->n; i++)
        if (shards->parts[i].role == role) return &shards->parts[i];
    return NULL;
}

struct span shard_whole_blocks(struct span columns, enum dtype dtype) {
    int64_t block = dtype_info[dtype].block_elements, end = columns.start + columns.length;
    struct span whole = {.start = columns.start / block * block};
    if (columns.length) whole.length = (end + block - 1) / block * block - whole.start;
    return whole;
}

static struct span exact_span(const struct shard_part *part, int size, int rank) {
    struct span units = partition_piece(part->n_unit, size, rank);
    return (struct span){units.start * part->unit, units.length * part->unit};
}

struct span shard_span(const struct shard_part *part, int size, int rank) {
    struct span exact = exact_span(part, size, rank);
    return part->columns ? shard_whole_blocks(exact, part->whole.dtype) : exact;
}

struct span shard_summed_columns(const struct shard_part *part, int size, int rank) {
    struct span exact = exact_span(part, size, rank);
    int64_t block = dtype_info[part->whole.dtype].block_elements;
    int64_t begin = exact.start / block * block, end = exact.start + exact.length;
    return (struct span){begin, end / block * block - begin};
}

int64_t shard_bytes(const struct shard_part *part, int size, int rank) {
    const struct weight *whole = &part->whole;
    int64_t n = shard_span(part, size, rank).length;
    int64_t row_bytes = dtype_bytes(whole->dtype, part->columns ? n : whole->n_col);
    return part->columns ? whole->n_row * row_bytes : n * row_bytes;
}

static enum status upload_new(struct backend *backend, const void *host, int64_t bytes,
                              void **out) {
    TRY(backend->ops->alloc(backend, bytes > 0 ? bytes : 1, out));
    if (bytes > 0) TRY(backend->ops->upload(backend, *out, host, bytes));
    return backend->ops->sync(backend); // the host's copy may go
}

static enum status upload_columns(struct backend *backend, struct shard_part *part,
                                  int64_t row_bytes) {
    int64_t n_row = part->whole.n_row;
    char *packed = malloc((size_t)(n_row * row_bytes) + 1);
    if (!packed) FAIL(ERR_MEMORY, "no memory to load columns of %lld rows", (long long)n_row);
    for (int64_t row = 0; row < n_row; row++)
        memcpy(packed + row * row_bytes, (const char *)part->own + row * part->own_row_bytes,
               (size_t)row_bytes);
    enum status status = upload_new(backend, packed, n_row * row_bytes, &part->memory);
    free(packed);
    return status;
}

enum status shard_load(struct backend *backend, const struct weight *mapped, struct span span,
                       struct shard_part *part, struct weight *out) {
    int64_t offset =
        part->columns ? dtype_bytes(mapped->dtype, span.start) : span.start * mapped->row_bytes;
    part->whole = *out = *mapped;
    part->own = (const char *)mapped->data + offset;
    part->own_row_bytes = mapped->row_bytes;
    if (backend->memory == MEMORY_HOST) return OK;
    if (part->columns) {
        int64_t row_bytes = dtype_bytes(mapped->dtype, span.length);
        TRY(upload_columns(backend, part, row_bytes));
        part->own_row_bytes = out->row_bytes = row_bytes;
    } else {
        TRY(upload_new(backend, part->own, span.length * mapped->row_bytes, &part->memory));
    }
    if (mapped->scale) {
        int64_t n_scale_row = (mapped->n_row + WEIGHT_SCALE_BLOCK - 1) / WEIGHT_SCALE_BLOCK;
        TRY(upload_new(backend, mapped->scale,
                       n_scale_row * mapped->scale_stride * (int64_t)sizeof(float), &part->scale));
        part->whole.scale = out->scale = part->scale;
    }
    part->own = part->memory;
    out->data = (const char *)part->memory - offset; // where row 0 or column 0 would be
    return OK;
}

void shard_unload(struct backend *backend, struct shard_part *part) {
    if (part->memory) backend->ops->free(backend, part->memory);
    if (part->scale) backend->ops->free(backend, part->scale);
    part->memory = part->scale = NULL;
}
