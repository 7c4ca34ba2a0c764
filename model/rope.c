// Rotary frequencies. Formulas: Hugging Face modeling_rope_utils; Su et al. 2021 (RoPE), Chen et
// al. 2023 (linear), Peng et al. 2023 (YaRN, eqs. 17-25), Llama 3.1's wavelength bands.
#include <math.h>

#include "model/spec.h"

static double clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

// The dimension pair that turns `n_turn` times within the original context.
static double yarn_dimension(const struct rope_spec *spec, double n_turn) {
    return spec->dim * log(spec->original_context / (n_turn * 2 * M_PI)) / (2 * log(spec->base));
}

// Fast pairs keep their frequency, slow ones are interpolated, a ramp lies between.
static void scale_yarn(const struct rope_spec *spec, double *inv_freq) {
    double low = yarn_dimension(spec, spec->beta_fast);
    double high = yarn_dimension(spec, spec->beta_slow);
    if (spec->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, spec->dim - 1);
    if (low == high) high += 0.001;
    for (int i = 0; i < spec->dim / 2; ++i) {
        double ramp = clamp((i - low) / (high - low), 0, 1);
        inv_freq[i] = inv_freq[i] / spec->factor * ramp + inv_freq[i] * (1 - ramp);
    }
}

static void scale_llama3(const struct rope_spec *spec, double *inv_freq) {
    double low = spec->low_freq_factor, high = spec->high_freq_factor;
    for (int i = 0; i < spec->dim / 2; ++i) {
        double n_turn = spec->original_context * inv_freq[i] / (2 * M_PI);
        double keep = clamp((n_turn - low) / (high - low), 0, 1);
        inv_freq[i] = (1 - keep) * inv_freq[i] / spec->factor + keep * inv_freq[i];
    }
}

void rope_frequencies(const struct rope_spec *spec, double *inv_freq, double *attention_factor) {
    *attention_factor = 1;
    for (int i = 0; i < spec->dim / 2; ++i) inv_freq[i] = pow(spec->base, -2.0 * i / spec->dim);
    switch (spec->method) {
    case ROPE_DEFAULT:
        break;
    case ROPE_LINEAR:
        for (int i = 0; i < spec->dim / 2; ++i) inv_freq[i] /= spec->factor;
        break;
    case ROPE_YARN:
        scale_yarn(spec, inv_freq);
        *attention_factor = spec->attention_factor;
        if (spec->attention_factor == 0)
            *attention_factor = spec->factor > 1 ? 0.1 * log(spec->factor) + 1 : 1;
        break;
    case ROPE_LLAMA3:
        scale_llama3(spec, inv_freq);
        break;
    }
    if (spec->has_divisors)
        for (int i = 0; i < spec->dim / 2; ++i) inv_freq[i] /= spec->divisor[i];
}
