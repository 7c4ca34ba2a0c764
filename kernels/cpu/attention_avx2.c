// Vectors, then products, then the loops over them.
#include "kernels/cpu/attention_vec_avx2.h"

#include "kernels/cpu/attention_product_fp32.h"

#include "kernels/cpu/attention_body.h"

#include "kernels/cpu/attention_in_place_body.h"

const struct attention_tile attention_tile_avx2 = {
    .name = "avx2",
    .fp32 = &attention_tile_avx2,
    .unit = UNIT,
    .vec_width = VEC_WIDTH,
    .pack_keys = pack_keys,
    .pack_values = pack_values,
    .attend = attend,
    .column_mass = column_mass,
    .attend_in_place = attend_in_place,
    .column_mass_in_place = column_mass_in_place,
    .most_in_place = 36,
};
