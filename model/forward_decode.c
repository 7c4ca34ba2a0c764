// Decode on P ranks (Helix parallelism, Bhatia et al.): every rank holds the same residual x.
// Per layer: rows of q|k|v split, one all-gather; attention over sharded K/V, one all-to-all that
// leaves each rank its own heads; columns of the output split, one all-reduce; gate and up rows and
// down columns split, one all-reduce. Partial sums land in x: rank 0 adds to the residual, the
// others replace theirs, and the all-reduce makes them equal again.
#include "model/forward_internal.h"

#define OPS(f) ((f)->backend->ops)

static struct span my_piece(const struct forward *f, int64_t n) {
    return partition_piece(n, f->comm->size, f->comm->rank);
}

static enum status convert_rows(struct forward *f, const void *x, enum dtype x_dtype, void *out,
                                enum dtype out_dtype, int64_t n) {
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->convert(f->backend, &(struct convert_args){.x = x,
                                                           .x_dtype = x_dtype,
                                                           .x_stride = n,
                                                           .n_row = 1,
                                                           .n_col = n,
                                                           .out = out,
                                                           .out_dtype = out_dtype,
                                                           .out_stride = n}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

// out[0..piece.length) = rows `piece` of the weight times the normed token.
static struct matmul_args product_of(const struct forward *f, const void *normed,
                                     struct weight weight, const float *bias, struct span piece,
                                     float *out) {
    return (struct matmul_args){.x = normed,
                                .x_dtype = f->activation,
                                .x_stride = weight.n_col,
                                .n_token = piece.length ? 1 : 0,
                                .weight = weight_rows(weight, piece.start, piece.length),
                                .bias = bias ? bias + piece.start : NULL,
                                .out = out,
                                .out_dtype = DTYPE_F32,
                                .out_stride = piece.length};
}

static enum status all_gather(struct forward *f, const void *send, void *receive,
                              const int64_t *bytes) {
    double begun = profile_begin(f->profile, PHASE_RING_WAIT);
    TRY(f->comm->ops->all_gather(f->comm, send, receive, bytes));
    profile_end(f->profile, PHASE_RING_WAIT, begun);
    return OK;
}

// A vector of n_unit units of `width` elements of which each rank computes partition_piece(n_unit,
// size, rank) and all need the whole.
struct share {
    int64_t n_unit, width;
    float *out; // [n_unit * width]
};

// Where this rank's piece of a share is written: in place on one rank, else one after another in
// buffers.split, of which *used elements are taken.
static float *share_room(const struct forward *f, const struct share *share, int64_t *used) {
    if (f->comm->size == 1) return share->out;
    float *at = f->buffers.split + *used;
    *used += my_piece(f, share->n_unit).length * share->width;
    return at;
}

// Gathers the pieces that lie in buffers.split: every share whole on every rank.
static enum status gather_shares(struct forward *f, const struct share *shares, int n) {
    int size = f->comm->size;
    if (size == 1) return OK;
    int64_t bytes[size];
    for (int rank = 0; rank < size; rank++) {
        bytes[rank] = 0;
        for (int i = 0; i < n; i++)
            bytes[rank] +=
                partition_piece(shares[i].n_unit, size, rank).length * shares[i].width * 4;
    }
    TRY(all_gather(f, f->buffers.split, f->buffers.gathered, bytes));
    struct block_copy block[size * n];
    const float *from = f->buffers.gathered;
    for (int i = 0; i < size * n; i++) {
        const struct share *share = &shares[i % n];
        struct span piece = partition_piece(share->n_unit, size, i / n);
        int64_t length = piece.length * share->width;
        float *to = share->out + piece.start * share->width;
        block[i] = (struct block_copy){from, to, 1, length, length, length};
        from += length;
    }
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->copy_blocks(f->backend, &(struct copy_blocks_args){block, size * n}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return OK;
}

// A projection of the normed token, or of its query latent, whose rows the ranks share.
struct projection {
    struct weight weight;
    const float *bias;
    const void *input; // activation dtype
    float *out;        // [weight.n_row]
};
enum { MAX_PROJECTION = 8 };

static enum status project_shared(struct forward *f, const struct projection *list, int n) {
    struct share shares[MAX_PROJECTION];
    struct matmul_args products[MAX_PROJECTION];
    int64_t used = 0;
    for (int i = 0; i < n; i++) {
        const struct projection *p = &list[i];
        shares[i] = (struct share){p->weight.n_row, 1, p->out};
        float *room = share_room(f, &shares[i], &used);
        struct span piece = my_piece(f, p->weight.n_row);
        products[i] = product_of(f, p->input, p->weight, p->bias, piece, room);
    }
    TRY(forward_matmul_each(f, products, n));
    return gather_shares(f, shares, n);
}

// The indexer's projections of the normed token that this step needs; returns how many.
static int index_projections(const struct forward *f, int layer, bool selects,
                             struct projection *out) {
    const struct forward_buffers *b = &f->buffers;
    const struct index_spec *index = &f->spec->layers[layer].index;
    const struct layer_weights *w = &f->weights.layers[layer];
    int n = 0;
    if (!f->indexed || index->layout != INDEX_FULL) return 0;
    out[n++] = (struct projection){w->index_key, NULL, b->normed, b->index_row};
    if (!selects) return n;
    out[n++] = (struct projection){w->index_weight, NULL, b->normed, b->index_weight};
    if (!index->from_latent)
        out[n++] = (struct projection){w->index_query, NULL, b->normed, b->index_heads};
    return n;
}

// q, k and v of the token on every rank: buffers.projected, .key and .value.
static enum status project_full(struct forward *f, int layer, bool selects) {
    const struct forward_buffers *b = &f->buffers;
    const struct layer_weights *w = &f->weights.layers[layer];
    struct projection list[MAX_PROJECTION] = {
        {w->query, w->query_bias, b->normed, b->projected},
        {w->key, w->key_bias, b->normed, b->key},
        {w->value, w->value_bias, b->normed, b->value},
    };
    int n = 3 + index_projections(f, layer, selects, list + 3);
    return project_shared(f, list, n);
}

// Absorbed queries of the token on every rank in buffers.projected, its latent row in .latent and
// .rotated. Two rounds: the query's latent first, then the heads, of which each rank has its own.
static enum status project_latent(struct forward *f, int layer, bool selects) {
    const struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = &f->weights.layers[layer];
    struct projection list[MAX_PROJECTION] = {
        {weight_rows(w->key, 0, l->latent.rank), NULL, b->normed, b->latent},
        {weight_rows(w->key, l->latent.rank, l->latent.rope_dim), NULL, b->normed, b->rotated},
    };
    int n = 2;
    if (l->latent.query_rank)
        list[n++] = (struct projection){w->query_down, NULL, b->normed, b->query_down};
    n += index_projections(f, layer, selects, list + n);
    TRY(project_shared(f, list, n));
    TRY(forward_latent_norm(f, layer, 1));
    struct share shares[2] = {{l->n_head, l->head_dim, b->projected},
                              {w->index_query.n_row, 1, b->index_heads}};
    int64_t used = 0;
    float *room = share_room(f, &shares[0], &used);
    TRY(forward_latent_queries(f, layer, my_piece(f, l->n_head), 0, 1, room));
    if (!selects || l->index.layout != INDEX_FULL || !l->index.from_latent)
        return gather_shares(f, shares, 1);
    room = share_room(f, &shares[1], &used);
    struct matmul_args product = product_of(f, b->query_latent, w->index_query, NULL,
                                            my_piece(f, w->index_query.n_row), room);
    TRY(forward_matmul(f, &product));
    return gather_shares(f, shares, 2);
}

// Values pass with the heads that are rotated, by no angle.
static struct rope_args value_of(const struct forward *f, int layer) {
    const struct layer_spec *l = &f->spec->layers[layer];
    int64_t width = (int64_t)l->n_kv_head * l->head_dim;
    return (struct rope_args){.x = f->buffers.value,
                              .x_stride = width,
                              .n_token = 1,
                              .n_head = l->n_kv_head,
                              .head_dim = l->head_dim,
                              .out = kv_store_value(&f->kv, layer, 0),
                              .out_dtype = f->kv.shape.dtype,
                              .out_stride = width};
}

static enum status store_full(struct forward *f, int layer, const struct forward_chunk *chunk) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = &f->weights.layers[layer];
    struct rotation rotations[MODEL_MAX_PART];
    struct rope_args ropes[2 * MODEL_MAX_PART + 1];
    int n_rotation = forward_query_rotations(f, layer, 0, rotations), n = 0;
    if (w->query_norm)
        TRY(forward_norm(f, b->projected, l->n_head, l->head_dim, w->query_norm, b->projected,
                         DTYPE_F32));
    for (int i = 0; i < n_rotation; i++)
        ropes[n++] =
            forward_rope(f, layer, rotations[i], b->projected, 0, 1, l->n_head, f->query_dtype);
    if (chunk->n_token == 0) return forward_rope_each(f, ropes, n); // another rank stores the token
    if (w->key_norm)
        TRY(forward_norm(f, b->key, l->n_kv_head, l->head_dim, w->key_norm, b->key, DTYPE_F32));
    n_rotation = forward_key_rotations(f, layer, 0, rotations);
    for (int i = 0; i < n_rotation; i++)
        ropes[n++] =
            forward_rope(f, layer, rotations[i], b->key, 0, 1, l->n_kv_head, f->kv.shape.dtype);
    ropes[n++] = value_of(f, layer);
    return forward_rope_each(f, ropes, n);
}

static enum status store_latent(struct forward *f, int layer, const struct forward_chunk *chunk) {
    const struct layer_spec *l = &f->spec->layers[layer];
    TRY(convert_rows(f, f->buffers.projected, DTYPE_F32, f->buffers.query, f->query_dtype,
                     (int64_t)l->n_head * l->head_dim));
    return chunk->n_token ? forward_latent_store(f, layer, 0, 1) : OK;
}

// The token's queries in buffers.query and .index_query; its owner stores keys and values.
static enum status project_token(struct forward *f, int layer, const struct forward_chunk *chunk) {
    const struct layer_spec *l = &f->spec->layers[layer];
    bool selects = forward_selects(f, layer, chunk), latent = l->attention == ATTENTION_LATENT;
    TRY(latent ? project_latent(f, layer, selects) : project_full(f, layer, selects));
    TRY(latent ? store_latent(f, layer, chunk) : store_full(f, layer, chunk));
    if (!f->indexed || l->index.layout != INDEX_FULL) return OK;
    if (chunk->n_token) TRY(forward_index_keys(f, layer, 0, 1));
    return selects ? forward_index_queries(f, layer, 0, 1) : OK;
}

static enum status attend_token(struct forward *f, int layer, const struct forward_chunk *chunk,
                                bool add_mass) {
    struct ring_attention_args args = forward_attention_args(f, layer, chunk);
    bool adds = add_mass && forward_adds_mass(f, layer);
    args.out = f->buffers.attended;
    args.lse = adds ? f->buffers.lse : NULL;
    if (f->spec->n_part) {
        TRY(forward_attend_token_parts(f, layer, chunk, &args));
    } else if (forward_selects(f, layer, chunk)) {
        struct sparse_ring_args sparse = forward_sparse_args(f, layer, &args);
        enum status status = sparse_decode_run(&f->ring, &sparse);
        if (status != OK) return status_context(status, "layer %d", layer);
    } else {
        TRY(decode_attention_run(&f->ring, &args, 1));
    }
    return adds ? forward_add_mass(f, layer, chunk) : OK;
}

// Columns [start, start + length) of the weight times `input`, which holds the columns from `start`
// on: this rank's part of a sum over the ranks, to where the branch writes. What is there already
// rank 0 adds.
static enum status add_columns(struct forward *f, int layer, struct weight weight,
                               const float *bias, struct span columns, const void *input) {
    bool first = f->comm->rank == 0, accumulate;
    float *out = forward_branch_out(f, layer, 0, &accumulate);
    if (columns.length > 0) {
        TRY(forward_matmul(f, &(struct matmul_args){
                                  .x = input,
                                  .x_dtype = f->activation,
                                  .x_stride = columns.length,
                                  .n_token = 1,
                                  .weight = weight_columns(weight, columns.start, columns.length),
                                  .bias = first ? bias : NULL,
                                  .accumulate = first && accumulate,
                                  .out = out,
                                  .out_dtype = DTYPE_F32,
                                  .out_stride = weight.n_row}));
    } else if (!first || !accumulate) {
        TRY(OPS(f)->upload(f->backend, out, f->zeros, weight.n_row * 4));
    }
    return OK;
}

static enum status end_branch(struct forward *f, int layer, enum branch branch) {
    bool accumulate;
    float *out = forward_branch_out(f, layer, 0, &accumulate);
    if (f->comm->size > 1) {
        double begun = profile_begin(f->profile, PHASE_RING_WAIT);
        TRY(f->comm->ops->all_reduce(f->comm, out, f->spec->n_hidden, REDUCE_SUM_F32));
        profile_end(f->profile, PHASE_RING_WAIT, begun);
    }
    return forward_branch_end(f, layer, branch, 0, 1);
}

// Quantised rows can be cut only at blocks: the columns of this rank's heads are widened to whole
// blocks and the foreign elements of the input are zero.
static enum status project_heads_back(struct forward *f, int layer) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    struct weight output = f->weights.layers[layer].output;
    struct span heads = my_piece(f, l->n_head);
    bool latent = l->attention == ATTENTION_LATENT;
    const float *attended = latent ? b->heads : b->attended;
    int64_t head_dim = latent ? l->latent.value_dim : l->head_dim;
    int64_t begin = heads.start * head_dim, n = heads.length * head_dim;
    if (latent) TRY(forward_latent_values(f, layer, heads, 1, b->attended, b->heads));
    struct span columns = shard_whole_blocks((struct span){begin, n}, output.dtype);
    bool widened = columns.length != n, as_it_is = !widened && f->activation == DTYPE_F32;
    if (widened)
        TRY(OPS(f)->upload(f->backend, b->product_input, f->zeros,
                           dtype_bytes(f->activation, columns.length)));
    if (n && !as_it_is) {
        void *input = (char *)b->product_input + dtype_bytes(f->activation, begin - columns.start);
        TRY(convert_rows(f, attended, DTYPE_F32, input, f->activation, n));
    }
    TRY(add_columns(f, layer, output, f->weights.layers[layer].output_bias, columns,
                    as_it_is ? attended : b->product_input));
    return end_branch(f, layer, BRANCH_ATTENTION);
}

// Rows of gate and up and columns of down are shared; this rank's part of the sum is left in x.
static enum status gated_token(struct forward *f, int layer) {
    struct forward_buffers *b = &f->buffers;
    const struct layer_spec *l = &f->spec->layers[layer];
    const struct layer_weights *w = &f->weights.layers[layer];
    int64_t block = dtype_info[w->down.dtype].block_elements;
    struct span units = my_piece(f, l->n_feed_forward / block);
    struct span piece = {units.start * block, units.length * block};
    bool plain = l->feed_forward == FEED_FORWARD_PLAIN;
    struct matmul_args products[2] = {product_of(f, b->normed, w->up, w->up_bias, piece, b->up)};
    if (!plain) products[1] = product_of(f, b->normed, w->gate, w->gate_bias, piece, b->gate);
    TRY(forward_matmul_each(f, products, plain ? 1 : 2));
    double begun = profile_begin(f->profile, PHASE_OTHER);
    TRY(OPS(f)->gate(f->backend, &(struct gate_args){.activation = l->activation,
                                                     .gate = plain ? b->up : b->gate,
                                                     .up = plain ? NULL : b->up,
                                                     .gate_stride = piece.length,
                                                     .up_stride = piece.length,
                                                     .n_token = piece.length ? 1 : 0,
                                                     .n_col = piece.length,
                                                     .out = b->gated,
                                                     .out_dtype = f->activation}));
    profile_end(f->profile, PHASE_OTHER, begun);
    return add_columns(f, layer, w->down, w->down_bias, piece, b->gated);
}

static enum status experts_token(struct forward *f, int layer) {
    struct forward_buffers *b = &f->buffers;
    int64_t hidden = f->spec->n_hidden;
    TRY(forward_norm(f, b->x, 1, hidden, f->weights.layers[layer].feed_forward_norm,
                     b->router_input, DTYPE_F32));
    if (f->spec->layers[layer].experts.n_shared > 0)
        TRY(gated_token(f, layer));
    else if (f->comm->rank != 0)
        TRY(OPS(f)->upload(f->backend, b->x, f->zeros, hidden * 4));
    return forward_experts_token(f, layer);
}

static enum status feed_forward_token(struct forward *f, int layer) {
    bool experts = f->spec->layers[layer].feed_forward == FEED_FORWARD_EXPERTS;
    TRY(forward_branch_begin(f, layer, BRANCH_FEED_FORWARD, 0, 1));
    TRY(experts ? experts_token(f, layer) : gated_token(f, layer));
    return end_branch(f, layer, BRANCH_FEED_FORWARD);
}

// Everything but the embedding: the same for any token at this place of the sequence.
static enum status decode_layers(struct forward *f, const struct forward_chunk *chunk,
                                 bool add_mass) {
    int n_layer = f->spec->n_layer;
    for (int layer = 0; layer < n_layer; layer++) {
        beacon_layer(f->profile->beacon, layer + 1, n_layer);
        TRY(forward_branch_begin(f, layer, BRANCH_ATTENTION, 0, 1));
        TRY(project_token(f, layer, chunk));
        TRY(attend_token(f, layer, chunk, add_mass));
        TRY(project_heads_back(f, layer));
        TRY(feed_forward_token(f, layer));
    }
    beacon_layer(f->profile->beacon, 0, n_layer);
    return OK;
}

bool forward_decode_keeps(const struct forward *f) {
    return OPS(f)->steps && f->comm->ops->launch_step;
}

// What queueing counts: a kept step counts when it is launched.
static struct decode_counts counts_now(const struct forward *f) {
    return (struct decode_counts){f->comm->bytes_sent, f->comm->bytes_received,
                                  f->profile->attention_flop};
}

static void counts_set(struct forward *f, struct decode_counts counts) {
    f->comm->bytes_sent = counts.bytes_sent;
    f->comm->bytes_received = counts.bytes_received;
    f->profile->attention_flop = counts.attention_flop;
}

enum status forward_decode_ahead(struct forward *f, const struct forward_chunk *chunk,
                                 bool add_mass) {
    struct decode_counts before = counts_now(f);
    f->step.kept = false;
    TRY(OPS(f)->steps->begin(f->backend));
    enum status status = decode_layers(f, chunk, add_mass);
    if (status != OK) {
        (void)OPS(f)->steps->end(f->backend, false);
        return status;
    }
    TRY(OPS(f)->steps->end(f->backend, true));
    struct decode_counts after = counts_now(f);
    counts_set(f, before);
    f->step = (struct decode_step){
        .kept = true,
        .begin = chunk->begin,
        .add_mass = add_mass,
        .counts = {after.bytes_sent - before.bytes_sent,
                   after.bytes_received - before.bytes_received,
                   after.attention_flop - before.attention_flop},
        .n_launched = f->step.n_launched,
    };
    return OK;
}

static enum status launch_step(struct forward *f) {
    struct decode_counts counts = counts_now(f);
    double begun = profile_begin(f->profile, PHASE_DECODE);
    TRY(f->comm->ops->launch_step(f->comm));
    profile_end(f->profile, PHASE_DECODE, begun);
    counts.bytes_sent += f->step.counts.bytes_sent;
    counts.bytes_received += f->step.counts.bytes_received;
    counts.attention_flop += f->step.counts.attention_flop;
    counts_set(f, counts);
    f->step.n_launched++;
    return OK;
}

enum status forward_decode(struct forward *f, const struct forward_chunk *chunk, bool add_mass) {
    const struct decode_step *step = &f->step;
    TRY(forward_embed(f, chunk->token, 1));
    bool kept = step->kept && step->begin == chunk->begin && step->add_mass == add_mass;
    f->step.kept = false;
    return kept ? launch_step(f) : decode_layers(f, chunk, add_mass);
}

enum status forward_logits(struct forward *f, const void *normed) {
    struct forward_buffers *b = &f->buffers;
    int size = f->comm->size;
    int64_t n_vocab = f->spec->n_vocab, bytes[size];
    for (int rank = 0; rank < size; rank++) {
        bytes[rank] = partition_piece(n_vocab, size, rank).length * 4;
    }
    struct matmul_args product =
        product_of(f, normed, f->weights.head, NULL, my_piece(f, n_vocab), b->logits_split);
    TRY(forward_matmul(f, &product));
    return all_gather(f, b->logits_split, b->logits, bytes);
}
