#include "model/weight_gather.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256 };

static int64_t aligned(int64_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

// Of all ranks' pieces.
static int64_t part_bytes(const struct shard_part *part, int size) {
    int64_t bytes = 0;
    for (int rank = 0; rank < size; rank++) bytes += shard_bytes(part, size, rank);
    return bytes;
}

// Bytes of a stage in its buffer, and what the rank that has least receives of it.
static int64_t stage_bytes(const struct layer_shards *shards, int size, int64_t *received) {
    int64_t bytes = 0;
    *received = 0;
    for (int i = 0; i < shards->n; i++) {
        const struct shard_part *part = &shards->parts[i];
        bytes += aligned(part_bytes(part, size));
        *received += part_bytes(part, size) - shard_bytes(part, size, size - 1);
    }
    return bytes;
}

enum status weight_gather_measure(const struct checkpoint *checkpoint, int size,
                                  struct gather_extent *out) {
    *out = (struct gather_extent){0};
    for (int stage = 0; stage <= checkpoint->spec.n_layer; stage++) {
        struct layer_shards shards;
        int64_t received, *most = &out->buffer_bytes[stage % 2];
        TRY(shards_describe(checkpoint, stage, &shards));
        int64_t bytes = stage_bytes(&shards, size, &received);
        if (bytes > *most) *most = bytes;
        out->chunk_bytes += received;
    }
    return OK;
}

static enum status open_buffer(struct gather_buffer *buffer, char *data, int size, int n_head) {
    buffer->data = data;
    for (int i = 0; i < 2; i++) {
        buffer->columns[i] = calloc((size_t)size, sizeof *buffer->columns[i]);
        buffer->absorb[i] = calloc((size_t)n_head, sizeof *buffer->absorb[i]);
        if (!buffer->columns[i] || !buffer->absorb[i])
            FAIL(ERR_MEMORY, "no memory for the weights of %d ranks", size);
    }
    return OK;
}

enum status weight_gather_open(struct weight_gather *out, const struct weights *weights,
                               const struct checkpoint *checkpoint, struct comm *comm,
                               struct profile *profile) {
    enum status status = OK;
    struct gather_extent extent;
    int n_head = 1;
    *out = (struct weight_gather){
        .weights = weights, .backend = weights->backend, .comm = comm, .profile = profile};
    for (int i = 0; i < weights->n_layer; i++)
        if (checkpoint->spec.layers[i].n_head > n_head) n_head = checkpoint->spec.layers[i].n_head;
    out->bytes = calloc(MAX_SHARD_PARTS * (size_t)comm->size, sizeof *out->bytes);
    if (!out->bytes)
        FAIL_OR(failed, ERR_MEMORY, "no memory for the weights of %d ranks", comm->size);
    TRY_OR(failed, weight_gather_measure(checkpoint, comm->size, &extent));
    TRY_OR(failed,
           out->backend->ops->alloc(out->backend, extent.buffer_bytes[0] + extent.buffer_bytes[1],
                                    &out->memory));
    for (int i = 0; i < 2; i++)
        TRY_OR(failed,
               open_buffer(&out->buffers[i], (char *)out->memory + (i ? extent.buffer_bytes[0] : 0),
                           comm->size, n_head));
    return OK;
failed:
    weight_gather_close(out);
    return status;
}

void weight_gather_close(struct weight_gather *gather) {
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            free(gather->buffers[i].columns[j]);
            free(gather->buffers[i].absorb[j]);
        }
    }
    if (gather->memory) gather->backend->ops->free(gather->backend, gather->memory);
    free(gather->bytes);
    *gather = (struct weight_gather){0};
}

// Columns of a mapped matrix lie apart: they are brought together where the gather wants them.
static void pack_columns(const struct shard_part *part, int64_t row_bytes, char *to) {
    const char *from = part->own;
#pragma omp parallel for
    for (int64_t row = 0; row < part->whole.n_row; row++)
        memcpy(to + row * row_bytes, from + row * part->own_row_bytes, (size_t)row_bytes);
}

// What of a part goes from this rank, and where all of it arrives.
static struct gather describe_gather(struct weight_gather *g, const struct shard_part *part,
                                     char *receive, int64_t *bytes) {
    int size = g->comm->size, rank = g->comm->rank;
    struct gather gather = {part->own, receive, bytes};
    char *slot = receive;
    for (int r = 0; r < size; r++) {
        bytes[r] = shard_bytes(part, size, r);
        if (r < rank) slot += bytes[r];
        if (r != rank) g->received += bytes[r];
    }
    int64_t row_bytes = dtype_bytes(part->whole.dtype, shard_span(part, size, rank).length);
    if (part->columns && part->own_row_bytes != row_bytes) {
        pack_columns(part, row_bytes, slot);
        gather.send = slot;
    }
    return gather;
}

enum status weight_gather_start(struct weight_gather *g, int stage) {
    const struct layer_shards *shards = &g->weights->shards[stage];
    struct gather gathers[MAX_SHARD_PARTS];
    char *at = g->buffers[stage % 2].data;
    double begun = profile_begin(g->profile, PHASE_GATHER_WAIT);
    if (g->in_flight) FAIL(ERR_INTERNAL, "weights of stage %d gathered too early", stage);
    for (int i = 0; i < shards->n; i++) {
        gathers[i] = describe_gather(g, &shards->parts[i], at, g->bytes + i * g->comm->size);
        at += aligned(part_bytes(&shards->parts[i], g->comm->size));
    }
    TRY(g->comm->ops->gather_start(g->comm, gathers, shards->n));
    g->in_flight = true;
    profile_end(g->profile, PHASE_GATHER_WAIT, begun);
    return OK;
}

// The ranks' groups of columns that lie one after another, as views of what each is to add.
static const struct weight *place_columns(const struct shard_part *part, int size, const char *at,
                                          struct weight *out) {
    for (int r = 0; r < size; r++) {
        struct span held = shard_span(part, size, r), summed = shard_summed_columns(part, size, r);
        struct weight group = part->whole;
        group.data = at;
        group.n_col = held.length;
        group.row_bytes = dtype_bytes(group.dtype, held.length);
        group.first_col = held.start;
        out[r] = weight_columns(group, summed.start - held.start, summed.length);
        at += shard_bytes(part, size, r);
    }
    return out;
}

static void place_heads(const struct weights *weights, int stage, const struct shard_part *part,
                        const struct weight *gathered, struct gather_buffer *to) {
    const struct layer_weights *layer = &weights->layers[stage];
    int n_head = (int)part->n_unit;
    if (part->role == ABSORBED_KEYS) {
        for (int h = 0; h < n_head; h++) {
            to->absorb[0][h] = layer->absorb_key[h];
            to->absorb[0][h].data = (const char *)gathered->data + h * gathered->row_bytes;
        }
        to->layer.absorb_key = to->absorb[0];
    } else {
        int64_t n_value = layer->absorb_value[0].n_row; // the last rows of each head
        for (int h = 0; h < n_head; h++)
            to->absorb[1][h] = weight_rows(*gathered, (h + 1) * part->unit - n_value, n_value);
        to->layer.absorb_value = to->absorb[1];
    }
}

static void place_part(const struct weight_gather *g, int stage, const struct shard_part *part,
                       const char *at, struct gather_buffer *to) {
    int size = g->comm->size;
    struct weight whole = part->whole;
    whole.data = at;
    if (part->role == TENSOR_HEAD) {
        to->head = whole;
    } else if (part->role == TENSOR_OUTPUT) {
        to->layer.output_columns = place_columns(part, size, at, to->columns[0]);
    } else if (part->columns) {
        to->layer.down_columns = place_columns(part, size, at, to->columns[1]);
    } else if (part->role == ABSORBED_KEYS || part->role == TENSOR_LATENT_UP) {
        place_heads(g->weights, stage, part, &whole, to);
    } else {
        *weights_matrix(&to->layer, (enum tensor_role)part->role) = whole;
    }
}

enum status weight_gather_wait(struct weight_gather *g, int stage) {
    const struct layer_shards *shards = &g->weights->shards[stage];
    struct gather_buffer *to = &g->buffers[stage % 2];
    const char *at = to->data;
    double begun = profile_begin(g->profile, PHASE_GATHER_WAIT);
    TRY(g->comm->ops->gather_wait(g->comm));
    profile_end(g->profile, PHASE_GATHER_WAIT, begun);
    g->in_flight = false;
    if (stage < g->weights->n_layer) to->layer = g->weights->layers[stage];
    to->layer.n_columns = g->comm->size;
    for (int i = 0; i < shards->n; i++) {
        place_part(g, stage, &shards->parts[i], at, to);
        at += aligned(part_bytes(&shards->parts[i], g->comm->size));
    }
    return OK;
}
