#include "partition/volume.h"

static int64_t kv_row_bytes(const struct attention_shape *shape) {
    int dims = shape->head_dim + (shape->value_in_key ? 0 : shape->value_dim);
    return (int64_t)shape->n_kv_head * dims * shape->kv_bytes;
}

static int64_t query_row_bytes(const struct attention_shape *shape) {
    return (int64_t)shape->n_head * shape->head_dim * shape->query_bytes;
}

static int64_t partial_head_bytes(const struct attention_shape *shape) { // fp32 out and lse
    return (int64_t)(shape->value_dim + 1) * (int64_t)sizeof(float);
}

int64_t volume_pass_kv(const struct visible_range *range, const struct attention_shape *shape,
                       int rank) {
    int64_t all = visible_sinks(range) + visible_key_end(range) - range->key_begin;
    return (all - visible_held(range, rank)) * kv_row_bytes(shape);
}

int64_t volume_pass_q(const struct visible_range *range, const struct attention_shape *shape,
                      int rank) {
    const struct sequence *sequence = range->sequence;
    int64_t own = sequence_count(sequence, rank, range->query_begin, range->query_end);
    int64_t partial_rows = own * (sequence->size - 1);
    return (range->query_end - range->query_begin - own) * query_row_bytes(shape) +
           partial_rows * shape->n_head * partial_head_bytes(shape);
}

int64_t volume_pass_halo(const struct visible_range *range, const struct attention_shape *shape,
                         int rank) {
    struct span spans[visible_max_spans(range)];
    int n_span = visible_spans(range, rank, spans);
    int64_t n = -visible_in_spans(range, rank, spans, n_span);
    for (int i = 0; i < n_span; i++) n += spans[i].length; // somebody holds each of them
    return n * kv_row_bytes(shape);
}

// A span begins and ends at most a window beyond the own queries, and so it may between two runs of
// them.
int64_t volume_halo_rows(const struct visibility *v, enum layout layout, int64_t shard) {
    if (v->block > 0 || v->back >= shard || v->ahead >= shard || layout == LAYOUT_ROUND_ROBIN)
        return shard;
    int64_t rows = 2 * (v->back + (v->ahead > 0 ? v->ahead : 0)) + visibility_sinks(v);
    return rows < shard ? rows : shard;
}

int64_t volume_decode(const struct attention_shape *shape, int size, int rank, int64_t n_query) {
    int64_t own_heads = partition_piece(shape->n_head, size, rank).length;
    return (size - 1) * n_query * own_heads * partial_head_bytes(shape);
}

enum pass volume_choose_pass(const struct visible_range *range, const struct attention_shape *shape,
                             int64_t most_q) {
    int64_t kv = 0, q = 0, halo = 0;
    for (int rank = 0; rank < range->sequence->size; rank++) {
        kv += volume_pass_kv(range, shape, rank);
        q += volume_pass_q(range, shape, rank);
        halo += volume_pass_halo(range, shape, rank);
    }
    if (!visibility_bounds_begin(&range->visibility)) halo = kv;
    if (range->query_end - range->query_begin <= most_q && q < kv && q < halo) return PASS_Q;
    return halo < kv ? PASS_HALO : PASS_KV;
}

enum { CANDIDATE_BYTES = 8 };

int64_t volume_sparse_keys(const struct sequence *sequence, const struct attention_shape *shape,
                           const struct index_shape *index, int rank, int64_t end) {
    int64_t own = sequence_count(sequence, rank, 0, end);
    int64_t row = (int64_t)index->head_dim * index->element_bytes + index->scale_bytes;
    const struct visible_range all = {.sequence = sequence, .query_end = end};
    return (end - own) * row + volume_pass_kv(&all, shape, rank);
}

int64_t volume_sparse_scores(const struct sequence *sequence, const struct attention_shape *shape,
                             const struct index_shape *index, int rank, int64_t begin,
                             int64_t end) {
    int64_t own = sequence_count(sequence, rank, begin, end), others = end - begin - own;
    int64_t query_row =
        (int64_t)index->n_head * (index->head_dim * index->element_bytes + (int)sizeof(float));
    int64_t candidates = own * (sequence->size - 1) * index->k * CANDIDATE_BYTES;
    int64_t thresholds = others * CANDIDATE_BYTES;
    const struct visible_range asked = {
        .sequence = sequence, .query_begin = begin, .query_end = end};
    return others * query_row + candidates + thresholds + volume_pass_q(&asked, shape, rank);
}

int64_t volume_sparse_decode(const struct attention_shape *shape, const struct index_shape *index,
                             int size, int rank, int64_t n_query) {
    int64_t candidates = (size - 1) * n_query * index->k * CANDIDATE_BYTES;
    return candidates + volume_decode(shape, size, rank, n_query);
}

enum exchange volume_choose_exchange(const struct sequence *sequence,
                                     const struct attention_shape *shape,
                                     const struct index_shape *index, int64_t begin, int64_t end) {
    int64_t keys = 0, scores = 0;
    for (int rank = 0; rank < sequence->size; rank++) {
        keys += volume_sparse_keys(sequence, shape, index, rank, end);
        scores += volume_sparse_scores(sequence, shape, index, rank, begin, end);
    }
    return scores < keys ? EXCHANGE_SCORES : EXCHANGE_KEYS;
}
