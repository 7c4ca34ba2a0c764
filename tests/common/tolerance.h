// How far results may differ, with the reason for each number. Nowhere else in the tests.
#ifndef HALKA_TESTS_COMMON_TOLERANCE_H
#define HALKA_TESTS_COMMON_TOLERANCE_H

// Against Hugging Face transformers: logits and log-probabilities.
// fp32, tiny models: float32 and float64 references differ by 5e-5 themselves; a wrong mask,
// rotation or head order moves logits by 0.1 and more.
#define PARITY_FP32_MAX 2e-3
// fp32, SmolLM2: thirty layers of fp32 sums in another order.
#define PARITY_FP32_REAL_MAX 1e-2
// Products in bf16, or K/V in bf16: 8 bits of mantissa at each product's inputs.
#define PARITY_BF16_MAX 0.15
#define PARITY_BF16_MEAN 0.015

#endif
