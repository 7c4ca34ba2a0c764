// Vectors, then products, then the loops over them.
#include "kernels/cpu/attention_vec_avx512.h"

#include "kernels/cpu/attention_product_avx512bf16.h"

enum { INDEX_VECS = 3, HEAD_BLOCK = 8 };
#include "kernels/cpu/index_body.h"

// Normal numbers move to bf16's place and bias; subnormal ones and NaN, the codes 0..7 and 127,
// are looked up by their last 5 bits.
static __m512i fp8_to_bf16(__m256i x) {
    const __m512i table = _mm512_castsi256_si512(_mm256_setr_epi16(
        0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m512i special = _mm512_inserti64x4(table, _mm256_set1_epi16(0x7fc0), 1);
    __m512i wide = _mm512_cvtepu8_epi16(x);
    __m512i magnitude = _mm512_and_si512(wide, _mm512_set1_epi16(0x7f));
    __m512i bits = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    __mmask32 rare = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8)) |
                     _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    bits = _mm512_mask_permutexvar_epi16(bits, rare, magnitude, special);
    __m512i sign = _mm512_slli_epi16(_mm512_srli_epi16(wide, 7), 15);
    return _mm512_or_si512(bits, sign);
}

static void expand_fp8(const uint8_t *x, int64_t n, void *out) {
    bf16 *y = (bf16 *)out;
    for (int64_t i = 0; i < n; i += 32) {
        __mmask32 keep = n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1;
        _mm512_mask_storeu_epi16(y + i, keep, fp8_to_bf16(_mm256_maskz_loadu_epi8(keep, x + i)));
    }
}

const struct index_tile index_tile_avx512bf16 = {
    .fp32 = &index_tile_avx512,
    .fp8_as = DTYPE_BF16,
    .unit = UNIT,
    .vec_width = VEC_WIDTH,
    .head_block = HEAD_BLOCK,
    .expand_fp8 = expand_fp8,
    .pack_keys = pack_keys,
    .pack_query = pack_query,
    .score = score_tile,
};
