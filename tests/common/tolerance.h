// How far results may differ, with the reason for each number. Nowhere else in the tests.
#ifndef HALKA_TESTS_COMMON_TOLERANCE_H
#define HALKA_TESTS_COMMON_TOLERANCE_H

// Against Hugging Face transformers: logits and log-probabilities.
// fp32: float32 and float64 references differ by 5e-5 themselves; a wrong mask,
// rotation or head order moves logits by 0.1 and more.
#define PARITY_FP32_MAX 2e-3
// Products in bf16, or K/V in bf16: 8 bits of mantissa at each product's inputs.
#define PARITY_BF16_MAX 0.15
#define PARITY_BF16_MEAN 0.015

// Kernels against their reference: |got - expected| <= absolute + relative * |expected| for every
// element, and the cosine of the whole at least `cosine`.
struct tolerance {
    double absolute, relative, cosine;
};
// fp32 sums of about 1000 terms of size 1 in another order: sqrt(1000) * 2^-24 and some room.
static const struct tolerance TOLERANCE_F32 = {2e-5, 2e-5, 0.9999999};
// The same value rounded to bf16 (8 bits): fp32 differences may tip it to the neighbour, 2^-7.
static const struct tolerance TOLERANCE_BF16_OUT = {2e-5, 0x1p-7, 0.9999};
// Inputs or weights rounded to bf16 on one side only: 2^-9 each, averaged over the sum.
static const struct tolerance TOLERANCE_BF16_PRODUCT = {1.5e-2, 1e-2, 0.9999};
// One exponential, of 0 to -20: the polynomial's 1e-7 and the rounding of the exponent, 20 * 2^-23.
static const struct tolerance TOLERANCE_EXPONENTIAL = {0, 3e-6, 0.9999999};
// Attention with bf16 products against fp32 sums of the same products: each softmax weight is
// rounded to bf16, 2^-9 of it, and the mean of values of size 1 to 4 inherits that.
static const struct tolerance TOLERANCE_BF16_WEIGHT = {4e-3, 4e-3, 0.9999};

// Rotary frequencies, relative: the reference computes in fp32, with a few roundings of 6e-8 each.
#define ROPE_RELATIVE 1e-6

#endif
