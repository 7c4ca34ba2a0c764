// Attention by mma.sync, keys of 192 with values of 128 (expanded latent attention).
#include "kernels/cuda/attention_mma.cuh"

enum status attention_mma_192(struct backend *backend, const struct attention_work *work) {
    using small = attention_mma::shape<192, 128, 1, 64, 2>;
    static_assert(small::kRowTile == ATTENTION_MMA_ROWS &&
                      small::kSharedBytes == ATTENTION_MMA_192_BYTES,
                  "the table's");
    return attention_mma::launch<small>(backend, work);
}
