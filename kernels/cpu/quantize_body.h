// The body of quantize_plain.c, _avx2.c and _avx512.c: plain loops that the compiler vectorises for
// the instruction set of the including file, which names its function QUANTIZE_BLOCKS. Masks stand
// for choices: branches would keep the loops from being vectorised.
#include "kernels/cpu/quantize.h"
#include "kernels/fp8.h"

#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u
#define SMALLEST_NORMAL 0x3c800000u // 2^-6
#define LARGEST 0x43e00000u         // 448

// Of magnitudes the order is that of their bits; a NaN is passed over, as by fmaxf.
static float largest_magnitude(const float *x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= MAGNITUDE;
        bits &= -(uint32_t)(bits <= INFINITE);
        largest = bits > largest ? bits : largest;
    }
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

// Rounds to nearest even: normal numbers in the integer that their bits are, where the part that
// falls off is 20 bits wide; subnormal ones by an addition after which one unit in the last place
// is 2^-9, the spacing of theirs.
static void quantize_block(const float *restrict x, int64_t n, float scale, uint8_t *restrict out) {
    const float magic = 0x1p14f;
    uint32_t magic_bits;
    memcpy(&magic_bits, &magic, sizeof magic_bits);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits, sign, subnormal;
        memcpy(&bits, &x[i], sizeof bits);
        sign = bits >> 24 & 0x80;
        bits &= MAGNITUDE;
        float value, shifted;
        memcpy(&value, &bits, sizeof value);
        value /= scale;
        memcpy(&bits, &value, sizeof bits);
        bits &= MAGNITUDE; // a NaN that the division made may be negative
        shifted = value + magic;
        memcpy(&subnormal, &shifted, sizeof subnormal);
        subnormal -= magic_bits;
        uint32_t normal = ((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120u << 3);
        uint32_t is_small = -(uint32_t)(bits < SMALLEST_NORMAL);
        uint32_t is_large = -(uint32_t)(bits >= LARGEST), is_nan = bits > INFINITE;
        uint32_t code = (is_small & subnormal) | (~is_small & normal);
        out[i] = (uint8_t)(sign | (is_large & (0x7eu + is_nan)) | (~is_large & code));
    }
}

void QUANTIZE_BLOCKS(const struct quantize_args *args, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const float *x = args->x + i * args->block;
        float scale = fp8_block_scale(largest_magnitude(x, args->block), args->power_of_two);
        quantize_block(x, args->block, scale, args->out + i * args->block);
        args->scale[i] = scale;
    }
}
