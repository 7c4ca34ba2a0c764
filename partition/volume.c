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

int64_t volume_pass_kv(const struct sequence *sequence, const struct attention_shape *shape,
                       int rank, int64_t end) {
    int64_t own = sequence_count(sequence, rank, 0, end);
    return (end - own) * kv_row_bytes(shape);
}

int64_t volume_pass_q(const struct sequence *sequence, const struct attention_shape *shape,
                      int rank, int64_t begin, int64_t end) {
    int64_t own = sequence_count(sequence, rank, begin, end);
    int64_t partial_rows = own * (sequence->size - 1);
    return (end - begin - own) * query_row_bytes(shape) +
           partial_rows * shape->n_head * partial_head_bytes(shape);
}

int64_t volume_decode(const struct attention_shape *shape, int size, int rank, int64_t n_query) {
    int64_t own_heads = partition_piece(shape->n_head, size, rank).length;
    return (size - 1) * n_query * own_heads * partial_head_bytes(shape);
}

enum pass volume_choose_pass(const struct sequence *sequence, const struct attention_shape *shape,
                             int64_t begin, int64_t end) {
    int64_t pass_kv = 0, pass_q = 0;
    for (int rank = 0; rank < sequence->size; rank++) {
        pass_kv += volume_pass_kv(sequence, shape, rank, end);
        pass_q += volume_pass_q(sequence, shape, rank, begin, end);
    }
    return pass_q < pass_kv ? PASS_Q : PASS_KV;
}

enum { CANDIDATE_BYTES = 8 };

int64_t volume_sparse_keys(const struct sequence *sequence, const struct attention_shape *shape,
                           const struct index_shape *index, int rank, int64_t end) {
    int64_t own = sequence_count(sequence, rank, 0, end);
    int64_t row = (int64_t)index->head_dim * index->element_bytes + index->scale_bytes;
    return (end - own) * row + volume_pass_kv(sequence, shape, rank, end);
}

int64_t volume_sparse_scores(const struct sequence *sequence, const struct attention_shape *shape,
                             const struct index_shape *index, int rank, int64_t begin,
                             int64_t end) {
    int64_t own = sequence_count(sequence, rank, begin, end), others = end - begin - own;
    int64_t query_row =
        (int64_t)index->n_head * (index->head_dim * index->element_bytes + (int)sizeof(float));
    int64_t candidates = own * (sequence->size - 1) * index->k * CANDIDATE_BYTES;
    int64_t thresholds = others * CANDIDATE_BYTES;
    return others * query_row + candidates + thresholds +
           volume_pass_q(sequence, shape, rank, begin, end);
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
