// Vectors, then products, then the loops over them.
#include "kernels/cpu/attention_vec_plain.h"

#include "kernels/cpu/attention_product_fp32.h"

enum { INDEX_VECS = 2, HEAD_BLOCK = 4 };
#include "kernels/cpu/fp8_expand.h"
#include "kernels/cpu/index_body.h"

const struct index_tile index_tile_plain = {
    .fp32 = &index_tile_plain,
    .fp8_as = DTYPE_F32,
    .unit = UNIT,
    .vec_width = VEC_WIDTH,
    .head_block = HEAD_BLOCK,
    .expand_fp8 = expand_fp8,
    .pack_keys = pack_keys,
    .pack_query = pack_query,
    .score = score_tile,
};
