#include "partition/volume.h"

static int64_t kv_row_bytes(const struct attention_shape *shape) {
    return (int64_t)shape->n_kv_head * (shape->head_dim + shape->value_dim) * shape->kv_bytes;
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
