// Vectors, then products, then the loops over them.
#include "kernels/cpu/attention_vec_avx512.h"

#include "kernels/cpu/attention_product_avx512bf16.h"

#include "kernels/cpu/attention_body.h"

#include "kernels/cpu/attention_in_place_body.h"

const struct attention_tile attention_tile_avx512bf16 = {
    .name = "avx512bf16",
    .fp32 = &attention_tile_avx512,
    .unit = UNIT,
    .vec_width = VEC_WIDTH,
    .pack_keys = pack_keys,
    .pack_values = pack_values,
    .attend = attend,
    .column_mass = column_mass,
    .attend_in_place = attend_in_place,
    .column_mass_in_place = column_mass_in_place,
    .most_in_place = 8,
};
