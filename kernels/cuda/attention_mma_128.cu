// Attention by mma.sync, keys of 128.
#include "kernels/cuda/attention_mma.cuh"

enum status attention_mma_128(struct backend *backend, const struct attention_work *work) {
    using small = attention_mma::shape<128, 128, 1, 64, 2>;
    static_assert(small::kRowTile == ATTENTION_MMA_ROWS, "the table's");
    return attention_mma::launch<small>(backend, work);
}
