// Attention by mma.sync, keys of 96.
#include "kernels/cuda/attention_mma.cuh"

enum status attention_mma_96(struct backend *backend, const struct attention_work *work) {
    using small = attention_mma::shape<96, 96, 1, 64, 2>;
    static_assert(small::kRowTile == ATTENTION_MMA_ROWS, "the table's");
    return attention_mma::launch<small>(backend, work);
}
