#include "model/weights.h"

#include <stdlib.h>

#include "model/tensor_names.h"
#include "partition/partition.h"

// Where a layer's tensor goes in struct layer_weights.
struct field {
    size_t offset;
    bool is_vector; // a float *, else a struct weight
};
#define VECTOR(role, field) [TENSOR_##role] = {offsetof(struct layer_weights, field), true}
#define MATRIX(role, field) [TENSOR_##role] = {offsetof(struct layer_weights, field), false}
static const struct field fields[N_TENSOR_ROLE] = {
    VECTOR(ATTENTION_NORM, attention_norm),
    VECTOR(ATTENTION_NORM_BIAS, attention_norm_bias),
    VECTOR(ATTENTION_OUT_NORM, attention_out_norm),
    MATRIX(QUERY, query),
    MATRIX(KEY, key),
    MATRIX(VALUE, value),
    MATRIX(OUTPUT, output),
    VECTOR(QUERY_BIAS, query_bias),
    VECTOR(KEY_BIAS, key_bias),
    VECTOR(VALUE_BIAS, value_bias),
    VECTOR(OUTPUT_BIAS, output_bias),
    VECTOR(QUERY_NORM, query_norm),
    VECTOR(KEY_NORM, key_norm),
    VECTOR(FEED_FORWARD_NORM, feed_forward_norm),
    VECTOR(FEED_FORWARD_NORM_BIAS, feed_forward_norm_bias),
    VECTOR(FEED_FORWARD_OUT_NORM, feed_forward_out_norm),
    VECTOR(GATE_BIAS, gate_bias),
    VECTOR(UP_BIAS, up_bias),
    VECTOR(DOWN_BIAS, down_bias),
    MATRIX(GATE, gate),
    MATRIX(UP, up),
    MATRIX(DOWN, down),
    MATRIX(QUERY_DOWN, query_down),
    VECTOR(QUERY_DOWN_NORM, query_down_norm),
    MATRIX(QUERY_UP, query),
    MATRIX(LATENT, key),
    VECTOR(LATENT_NORM, latent_norm),
    MATRIX(LATENT_UP, latent_up),
    MATRIX(INDEX_QUERY, index_query),
    MATRIX(INDEX_KEY, index_key),
    VECTOR(INDEX_KEY_NORM, index_key_norm),
    VECTOR(INDEX_KEY_BIAS, index_key_bias),
    MATRIX(INDEX_WEIGHT, index_weight),
    MATRIX(ROUTER, router),
    VECTOR(ROUTER_BIAS, router_bias),
    MATRIX(SHARED_GATE, gate),
    MATRIX(SHARED_UP, up),
    MATRIX(SHARED_DOWN, down),
};

static bool is_norm(enum tensor_role role) {
    switch (role) {
    case TENSOR_EMBEDDING_NORM:
    case TENSOR_FINAL_NORM:
    case TENSOR_ATTENTION_NORM:
    case TENSOR_ATTENTION_OUT_NORM:
    case TENSOR_QUERY_NORM:
    case TENSOR_KEY_NORM:
    case TENSOR_FEED_FORWARD_NORM:
    case TENSOR_FEED_FORWARD_OUT_NORM:
        return true;
    default:
        return false;
    }
}

static enum status upload_floats(struct backend *backend, const float *host, int64_t n,
                                 float **out) {
    void *data = NULL;
    int64_t bytes = n * (int64_t)sizeof *host;
    enum status status = backend->ops->alloc(backend, bytes, &data);
    *out = data;
    return status == OK ? backend->ops->upload(backend, data, host, bytes) : status;
}

static enum status load_vector(const struct checkpoint *checkpoint, struct backend *backend,
                               int layer, const struct tensor_need *need, float **out) {
    struct tensor tensor;
    TRY(checkpoint_require(checkpoint, need->role, layer, need->n_row, 0, &tensor));
    int64_t n = need->n_row;
    float offset = is_norm(need->role) ? checkpoint->spec.norm_offset : 0;
    float *host = malloc((size_t)n * sizeof *host);
    if (!host) FAIL(ERR_MEMORY, "no memory for %s", tensor.name);
    dtype_to_float(tensor.dtype, tensor.data, n, host);
    for (int64_t i = 0; i < n; i++) host[i] += offset;
    enum status status = upload_floats(backend, host, n, out);
    free(host);
    return status;
}

static enum status map_tensor(const struct checkpoint *checkpoint, const struct tensor *tensor,
                              struct weight *out) {
    *out = (struct weight){
        .data = tensor->data,
        .dtype = tensor->dtype,
        .n_row = tensor->shape[0],
        .n_col = tensor->shape[1],
        .row_bytes = dtype_bytes(tensor->dtype, tensor->shape[1]),
    };
    if (tensor->dtype != DTYPE_F8_E4M3) return OK;
    const struct tensor *scale = NULL;
    TRY(checkpoint_require_scale(checkpoint, tensor, &scale));
    out->scale = scale->data;
    out->scale_stride = scale->shape[1];
    return OK;
}

static enum status load_tensor(const struct checkpoint *checkpoint, struct backend *backend,
                               const struct tensor *tensor, struct weight *out) {
    struct weight host;
    TRY(map_tensor(checkpoint, tensor, &host));
    return backend->ops->load_weight(backend, &host, out);
}

// Whole, or this rank's shard of it. layer: n_layer for the vocabulary's matrices.
static enum status load_matrix(const struct checkpoint *checkpoint, struct weights *w, int layer,
                               const struct tensor_need *need, struct weight *out) {
    struct tensor tensor;
    TRY(checkpoint_require(checkpoint, need->role, layer, need->n_row, need->n_col, &tensor));
    struct shard_part *part = w->shards ? shards_find(&w->shards[layer], (int)need->role) : NULL;
    if (!part) return load_tensor(checkpoint, w->backend, &tensor, out);
    struct weight mapped;
    TRY(map_tensor(checkpoint, &tensor, &mapped));
    return shard_load(w->backend, &mapped, shard_span(part, w->owner.size, w->owner.rank), part,
                      out);
}

// One head's key rows [nope, rank] of the mapped matrix, transposed to [rank, nope].
static void transpose_head(const struct weight *up, const struct latent_spec *latent, int head,
                           float *row, float *out) {
    int64_t first = (int64_t)head * (latent->nope_dim + latent->value_dim);
    for (int i = 0; i < latent->nope_dim; i++) {
        weight_row_to_float(up, first + i, row);
        for (int c = 0; c < latent->rank; c++) out[(int64_t)c * latent->nope_dim + i] = row[c];
    }
}

// Of some heads, one after another.
static enum status upload_absorbed(const struct latent_spec *latent, const struct weight *up,
                                   struct span heads, struct backend *backend, float *to) {
    int64_t n = (int64_t)latent->rank * latent->nope_dim;
    enum status status = OK;
    float *row = malloc((size_t)(latent->rank + n) * sizeof *row);
    if (!row) FAIL(ERR_MEMORY, "no memory for the key rows of a head");
    for (int64_t h = 0; h < heads.length && status == OK; h++) {
        transpose_head(up, latent, (int)(heads.start + h), row, row + latent->rank);
        status =
            backend->ops->upload(backend, to + h * n, row + latent->rank, n * (int64_t)sizeof *row);
    }
    free(row);
    return status;
}

// The absorbed forms of the up-projection: see forward_latent.c.
static enum status load_absorbed(const struct checkpoint *checkpoint, struct weights *w, int layer,
                                 struct layer_weights *out) {
    const struct layer_spec *l = &checkpoint->spec.layers[layer];
    const struct latent_spec *latent = &l->latent;
    struct shard_part *part = w->shards ? shards_find(&w->shards[layer], ABSORBED_KEYS) : NULL;
    struct span all = {0, l->n_head};
    struct span heads = part ? shard_span(part, w->owner.size, w->owner.rank) : all;
    int64_t head_rows = latent->nope_dim + latent->value_dim;
    int64_t n = (int64_t)latent->rank * latent->nope_dim;
    struct tensor tensor;
    struct weight up;
    void *memory = NULL;
    TRY(checkpoint_require(checkpoint, TENSOR_LATENT_UP, layer, l->n_head * head_rows, latent->rank,
                           &tensor));
    TRY(map_tensor(checkpoint, &tensor, &up));
    out->absorb_key = calloc((size_t)l->n_head, sizeof *out->absorb_key);
    out->absorb_value = calloc((size_t)l->n_head, sizeof *out->absorb_value);
    if (!out->absorb_key || !out->absorb_value)
        FAIL(ERR_MEMORY, "no memory for the heads of layer %d", layer);
    TRY(w->backend->ops->alloc(w->backend, (heads.length * n + 1) * (int64_t)sizeof(float),
                               &memory));
    out->absorb = memory;
    TRY(upload_absorbed(latent, &up, heads, w->backend, out->absorb));
    if (part) part->own = memory;
    for (int h = 0; h < l->n_head; h++) {
        bool owned = h >= heads.start && h < heads.start + heads.length;
        out->absorb_key[h] =
            (struct weight){.data = owned ? out->absorb + (h - heads.start) * n : NULL,
                            .dtype = DTYPE_F32,
                            .n_row = latent->rank,
                            .n_col = latent->nope_dim,
                            .row_bytes = latent->nope_dim * (int64_t)sizeof(float)};
        out->absorb_value[h] =
            weight_rows(out->latent_up, h * head_rows + latent->nope_dim, latent->value_dim);
    }
    return OK;
}

static enum status load_experts(const struct checkpoint *checkpoint, struct backend *backend,
                                int layer, struct span owned, struct layer_weights *out) {
    out->first_expert = (int)owned.start;
    out->n_owned = (int)owned.length;
    for (int m = 0; m < N_EXPERT_MATRIX && owned.length; m++) {
        out->experts[m] = calloc((size_t)owned.length, sizeof *out->experts[m]);
        if (!out->experts[m]) FAIL(ERR_MEMORY, "no memory for the experts of layer %d", layer);
        for (int64_t e = 0; e < owned.length; e++) {
            const struct tensor *tensor = NULL;
            TRY(checkpoint_require_expert(checkpoint, (enum expert_matrix)m, layer,
                                          (int)(owned.start + e), &tensor));
            TRY(load_tensor(checkpoint, backend, tensor, &out->experts[m][e]));
        }
    }
    return OK;
}

static enum status load_layer(const struct checkpoint *checkpoint, struct weights *w, int layer) {
    struct layer_weights *out = &w->layers[layer];
    const struct layer_spec *l = &checkpoint->spec.layers[layer];
    struct tensor_need needs[LAYER_TENSORS];
    int n = tensor_layer_needs(&checkpoint->spec, layer, needs);
    for (int i = 0; i < n; i++) {
        const struct tensor_need *need = &needs[i];
        void *field = (char *)out + fields[need->role].offset;
        if (need->n_col)
            TRY(load_matrix(checkpoint, w, layer, need, field));
        else
            TRY(load_vector(checkpoint, w->backend, layer, need, field));
    }
    if (l->attention == ATTENTION_LATENT) TRY(load_absorbed(checkpoint, w, layer, out));
    if (l->feed_forward != FEED_FORWARD_EXPERTS) return OK;
    struct span owned = partition_piece(l->experts.n_expert, w->owner.size, w->owner.rank);
    return load_experts(checkpoint, w->backend, layer, owned, out);
}

static enum status load_embedding(const struct checkpoint *checkpoint, struct weights *w) {
    const struct model_spec *spec = &checkpoint->spec;
    struct tensor tensor;
    w->embedding_on_host = w->shards && w->backend->memory == MEMORY_DEVICE;
    TRY(checkpoint_require(checkpoint, TENSOR_EMBEDDING, 0, spec->n_vocab, spec->n_hidden,
                           &tensor));
    if (w->embedding_on_host) return map_tensor(checkpoint, &tensor, &w->embedding);
    return load_tensor(checkpoint, w->backend, &tensor, &w->embedding);
}

// Every token is of type 0: its row goes with each position's.
static enum status load_positions(const struct checkpoint *checkpoint, struct weights *w) {
    const struct model_spec *spec = &checkpoint->spec;
    int64_t hidden = spec->n_hidden, n = spec->n_position * hidden;
    struct tensor position, type;
    struct weight rows, types;
    TRY(checkpoint_require(checkpoint, TENSOR_POSITION, 0, spec->n_position, hidden, &position));
    TRY(checkpoint_require(checkpoint, TENSOR_TOKEN_TYPE, 0, spec->n_token_type, hidden, &type));
    TRY(map_tensor(checkpoint, &position, &rows));
    TRY(map_tensor(checkpoint, &type, &types));
    float *host = malloc((size_t)(n + hidden) * sizeof *host);
    if (!host) FAIL(ERR_MEMORY, "no memory for %lld positions", (long long)spec->n_position);
    weight_row_to_float(&types, 0, host + n);
    for (int64_t i = 0; i < spec->n_position; i++) {
        float *row = host + i * hidden;
        weight_row_to_float(&rows, i, row);
        for (int64_t j = 0; j < hidden; j++) row[j] += host[n + j];
    }
    enum status status = upload_floats(w->backend, host, n, &w->position);
    free(host);
    return status;
}

static enum status load_outer(const struct checkpoint *checkpoint, struct weights *w,
                              const struct tensor_need *need) {
    switch (need->role) {
    case TENSOR_EMBEDDING:
        return load_embedding(checkpoint, w);
    case TENSOR_POSITION:
        return load_positions(checkpoint, w);
    case TENSOR_EMBEDDING_NORM:
        return load_vector(checkpoint, w->backend, 0, need, &w->embedding_norm);
    case TENSOR_EMBEDDING_NORM_BIAS:
        return load_vector(checkpoint, w->backend, 0, need, &w->embedding_norm_bias);
    case TENSOR_FINAL_NORM:
        return load_vector(checkpoint, w->backend, 0, need, &w->final_norm);
    case TENSOR_FINAL_NORM_BIAS:
        return load_vector(checkpoint, w->backend, 0, need, &w->final_norm_bias);
    case TENSOR_HEAD:
        w->tied = checkpoint->spec.tied_head;
        if (!w->tied || w->shards) return load_matrix(checkpoint, w, w->n_layer, need, &w->head);
        w->head = w->embedding;
        return OK;
    default: // the token types went with the positions
        return OK;
    }
}

static enum status load_all(const struct checkpoint *checkpoint, struct weights *w) {
    w->layers = calloc((size_t)w->n_layer, sizeof *w->layers);
    if (w->owner.sharded) w->shards = calloc((size_t)w->n_layer + 1, sizeof *w->shards);
    if (!w->layers || (w->owner.sharded && !w->shards))
        FAIL(ERR_MEMORY, "no memory for the weights of %d layers", w->n_layer);
    for (int i = 0; w->shards && i <= w->n_layer; i++)
        TRY(shards_describe(checkpoint, i, &w->shards[i]));
    struct tensor_need needs[LAYER_TENSORS];
    int n = tensor_outer_needs(&checkpoint->spec, needs);
    for (int i = 0; i < n; i++) TRY(load_outer(checkpoint, w, &needs[i]));
    for (int i = 0; i < w->n_layer; i++) TRY(load_layer(checkpoint, w, i));
    return OK;
}

enum status weights_open(const struct checkpoint *checkpoint, struct backend *backend,
                         struct weights_owner owner, struct weights *out) {
    *out =
        (struct weights){.backend = backend, .owner = owner, .n_layer = checkpoint->spec.n_layer};
    enum status status = load_all(checkpoint, out);
    if (status != OK) weights_close(out);
    return status;
}

struct weight *weights_matrix(struct layer_weights *layer, enum tensor_role role) {
    return (struct weight *)((char *)layer + fields[role].offset);
}

// A shard in memory of its own goes with it, and what only looked whole is forgotten.
static void close_shards(struct weights *w, int layer) {
    struct layer_shards *shards = &w->shards[layer];
    for (int i = 0; i < shards->n; i++) {
        struct shard_part *part = &shards->parts[i];
        if (part->role == ABSORBED_KEYS) continue;
        struct weight *matrix =
            layer == w->n_layer ? &w->head : weights_matrix(&w->layers[layer], part->role);
        shard_unload(w->backend, part);
        *matrix = (struct weight){0};
    }
}

static void close_layer(struct backend *backend, struct layer_weights *l) {
    const struct kernel_ops *ops = backend->ops;
    for (int role = 0; role < N_TENSOR_ROLE; role++) {
        void *field = (char *)l + fields[role].offset;
        struct weight *matrix = field;
        float **vector = field;
        if (fields[role].is_vector && *vector) {
            ops->free(backend, *vector);
            *vector = NULL;
        } else if (!fields[role].is_vector && role > TENSOR_HEAD && matrix->data) {
            ops->unload_weight(backend, matrix);
            *matrix = (struct weight){0}; // two roles may share a field
        }
    }
    for (int m = 0; m < N_EXPERT_MATRIX; m++) {
        for (int e = 0; l->experts[m] && e < l->n_owned; e++)
            if (l->experts[m][e].data) ops->unload_weight(backend, &l->experts[m][e]);
        free(l->experts[m]);
    }
    if (l->absorb) ops->free(backend, l->absorb);
    free(l->absorb_key);
    free(l->absorb_value);
}

void weights_close(struct weights *w) {
    if (!w->backend) return;
    const struct kernel_ops *ops = w->backend->ops;
    for (int i = 0; w->layers && w->shards && i <= w->n_layer; i++) close_shards(w, i);
    for (int i = 0; w->layers && i < w->n_layer; i++) close_layer(w->backend, &w->layers[i]);
    if (w->head.data && !w->tied) ops->unload_weight(w->backend, &w->head);
    if (w->embedding.data && !w->embedding_on_host) ops->unload_weight(w->backend, &w->embedding);
    float *vectors[] = {w->position, w->embedding_norm, w->embedding_norm_bias, w->final_norm,
                        w->final_norm_bias};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        if (vectors[i]) ops->free(w->backend, vectors[i]);
    free(w->shards);
    free(w->layers);
    *w = (struct weights){0};
}

// Bytes of a tensor and of its scales; the products' largest sizes.
static enum status measure_tensor(const struct checkpoint *checkpoint, const struct tensor *tensor,
                                  int64_t *bytes, struct weights_extent *extent) {
    *bytes += tensor->bytes;
    if (tensor->n_dim < 2) return OK;
    if (tensor->dtype == DTYPE_F8_E4M3) {
        const struct tensor *scale = NULL;
        TRY(checkpoint_require_scale(checkpoint, tensor, &scale));
        *bytes += scale->bytes;
    }
    int64_t elements = tensor->shape[0] * tensor->shape[1];
    if (elements > extent->largest_elements) extent->largest_elements = elements;
    if (tensor->shape[1] > extent->widest_row) extent->widest_row = tensor->shape[1];
    return OK;
}

// Pieces of one layer's parts, of the rank that holds most.
static int64_t measure_shards(const struct layer_shards *shards, int size) {
    int64_t most = 0;
    for (int rank = 0; rank < size; rank++) {
        int64_t bytes = 0;
        for (int i = 0; i < shards->n; i++) bytes += shard_bytes(&shards->parts[i], size, rank);
        if (bytes > most) most = bytes;
    }
    return most;
}

static enum status measure_layer(const struct checkpoint *checkpoint, int layer, int size,
                                 bool sharded, struct weights_extent *out) {
    const struct layer_spec *l = &checkpoint->spec.layers[layer];
    struct tensor tensor;
    struct tensor_need needs[LAYER_TENSORS];
    struct layer_shards shards = {0};
    if (sharded) TRY(shards_describe(checkpoint, layer, &shards));
    int n = tensor_layer_needs(&checkpoint->spec, layer, needs);
    for (int i = 0; i < n; i++) {
        int64_t bytes = 0;
        TRY(checkpoint_require(checkpoint, needs[i].role, layer, needs[i].n_row, needs[i].n_col,
                               &tensor));
        TRY(measure_tensor(checkpoint, &tensor, &bytes, out));
        // Of a sharded matrix every rank has the block scales.
        out->bytes += shards_find(&shards, (int)needs[i].role) ? bytes - tensor.bytes : bytes;
    }
    out->shard_bytes += measure_shards(&shards, size);
    if (l->attention == ATTENTION_LATENT && !sharded)
        out->own_bytes +=
            (int64_t)l->n_head * l->latent.rank * l->latent.nope_dim * (int64_t)sizeof(float);
    if (l->feed_forward != FEED_FORWARD_EXPERTS) return OK;
    int64_t expert = 0; // all experts of a layer are alike
    for (int m = 0; m < N_EXPERT_MATRIX; m++) {
        const struct tensor *matrix;
        TRY(checkpoint_require_expert(checkpoint, (enum expert_matrix)m, layer, 0, &matrix));
        TRY(measure_tensor(checkpoint, matrix, &expert, out));
    }
    out->expert_bytes += expert * partition_piece(l->experts.n_expert, size, 0).length;
    return OK;
}

// The vocabulary's matrices never pass through a product whole.
static enum status measure_vocabulary(const struct checkpoint *checkpoint, int size, bool sharded,
                                      struct weights_extent *out) {
    const struct model_spec *spec = &checkpoint->spec;
    struct tensor tensor;
    TRY(checkpoint_require(checkpoint, TENSOR_EMBEDDING, 0, spec->n_vocab, spec->n_hidden,
                           &tensor));
    out->own_bytes += spec->n_position * spec->n_hidden * (int64_t)sizeof(float);
    if (sharded) {
        struct layer_shards shards;
        TRY(shards_describe(checkpoint, spec->n_layer, &shards));
        out->shard_bytes += measure_shards(&shards, size);
        out->embedding_bytes = tensor.bytes;
        out->embedding_row_bytes = tensor.bytes / spec->n_vocab;
        return OK;
    }
    out->bytes += tensor.bytes;
    if (spec->tied_head || !spec->causal) return OK;
    TRY(checkpoint_require(checkpoint, TENSOR_HEAD, 0, spec->n_vocab, spec->n_hidden, &tensor));
    out->bytes += tensor.bytes;
    return OK;
}

enum status weights_measure(const struct checkpoint *checkpoint, int size, bool sharded,
                            struct weights_extent *out) {
    *out = (struct weights_extent){0};
    TRY(measure_vocabulary(checkpoint, size, sharded, out));
    for (int layer = 0; layer < checkpoint->spec.n_layer; layer++)
        TRY(measure_layer(checkpoint, layer, size, sharded, out));
    return OK;
}
