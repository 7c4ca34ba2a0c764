// Rotary frequencies. Formulas: Hugging Face modeling_rope_utils; Su et al. 2021 (RoPE), Chen et
// al. 2023 (linear), Peng et al. 2023 (NTK-aware, eq. 16; YaRN, eqs. 17-25), Ding et al. 2024
// (LongRoPE), Llama 3.1's wavelength bands.
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

// The base that stretches the slowest pair by `stretch` and leaves the fastest as it is.
static double ntk_base(const struct rope_spec *spec, double stretch) {
    return spec->base * pow(stretch, spec->dim / (spec->dim - 2.0));
}

static double base_of(const struct rope_spec *spec, double length) {
    double context = spec->original_context;
    if (spec->method == ROPE_NTK) return ntk_base(spec, spec->factor);
    if (spec->method != ROPE_DYNAMIC || length <= context) return spec->base;
    return ntk_base(spec, spec->factor * length / context - (spec->factor - 1));
}

static double attention_factor_of(const struct rope_spec *spec) {
    bool used = spec->method == ROPE_YARN || spec->method == ROPE_LONGROPE;
    if (!used) return 1;
    if (spec->attention_factor != 0) return spec->attention_factor;
    if (spec->factor <= 1) return 1;
    return spec->method == ROPE_YARN ? 0.1 * log(spec->factor) + 1
                                     : sqrt(1 + log(spec->factor) / log(spec->original_context));
}

const char *rope_method_name(enum rope_method method) {
    static const char *const names[N_ROPE_METHOD] = {"default", "linear", "ntk",     "dynamic",
                                                     "yarn",    "llama3", "longrope"};
    return names[method];
}

static enum status check_lists(const struct rope_spec *spec, const char *path) {
    if (spec->n_factor != spec->dim / 2)
        FAIL(ERR_INPUT, "%s: LongRoPE has %d factors for %d rotated elements", path, spec->n_factor,
             spec->dim);
    for (int i = 0; i < spec->n_factor; ++i)
        if (!(spec->short_factor[i] > 0 && isfinite(spec->short_factor[i]) &&
              spec->long_factor[i] > 0 && isfinite(spec->long_factor[i])))
            FAIL(ERR_INPUT, "%s: LongRoPE's factor %d is %g or %g", path, i,
                 (double)spec->short_factor[i], (double)spec->long_factor[i]);
    return OK;
}

enum status rope_check(const struct rope_spec *rope, const char *path) {
    enum rope_method method = rope->method;
    bool has_original = method == ROPE_DYNAMIC || method == ROPE_YARN || method == ROPE_LLAMA3 ||
                        method == ROPE_LONGROPE;
    if (!(rope->base > 1 && rope->base < 1e15))
        FAIL(ERR_INPUT, "%s: a rope base of %g is impossible", path, rope->base);
    if (method != ROPE_DEFAULT && !(rope->factor > 0 && rope->factor < 1e9))
        FAIL(ERR_INPUT, "%s: a rope factor of %g is impossible", path, rope->factor);
    if (has_original && !(rope->original_context >= (method == ROPE_LONGROPE ? 2 : 1) &&
                          rope->original_context < 1e15))
        FAIL(ERR_INPUT, "%s: an original context of %g is impossible", path,
             rope->original_context);
    if (method == ROPE_LLAMA3 &&
        !(rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor))
        FAIL(ERR_INPUT, "%s: rope's high_freq_factor %g must exceed its low_freq_factor %g", path,
             rope->high_freq_factor, rope->low_freq_factor);
    if (method == ROPE_YARN && !(rope->beta_slow > 0 && rope->beta_fast >= rope->beta_slow))
        FAIL(ERR_INPUT, "%s: rope's beta_fast %g must not be below its beta_slow %g", path,
             rope->beta_fast, rope->beta_slow);
    if (!(rope->attention_factor >= 0 && rope->attention_factor < 1e3))
        FAIL(ERR_INPUT, "%s: a rope attention_factor of %g is impossible", path,
             rope->attention_factor);
    if ((method == ROPE_NTK || method == ROPE_DYNAMIC) && rope->dim < 4)
        FAIL(ERR_INPUT, "%s: NTK scaling needs more than %d rotated elements", path, rope->dim);
    return method == ROPE_LONGROPE ? check_lists(rope, path) : OK;
}

int64_t rope_position(const struct position_map *map, int64_t position) {
    if (map->modulus > 0) position %= map->modulus;
    if (map->group > 0) position /= map->group;
    position += map->offset;
    return map->limit > 0 && position > map->limit ? map->limit : position;
}

bool rope_reads_length(const struct rope_spec *spec) {
    return spec->method == ROPE_DYNAMIC || spec->method == ROPE_LONGROPE;
}

bool rope_rotates_alike(const struct rope_spec *spec, int64_t length, int64_t other) {
    bool is_long = (double)length > spec->original_context;
    if (!rope_reads_length(spec) || length == other) return true;
    if (is_long != ((double)other > spec->original_context)) return false;
    return !is_long || spec->method == ROPE_LONGROPE;
}

void rope_frequencies(const struct rope_spec *spec, int64_t length, double *inv_freq,
                      double *attention_factor) {
    double base = base_of(spec, (double)length);
    bool is_long = (double)length > spec->original_context;
    const float *list = is_long ? spec->long_factor : spec->short_factor;
    *attention_factor = attention_factor_of(spec);
    for (int i = 0; i < spec->dim / 2; ++i) {
        inv_freq[i] = pow(base, -2.0 * i / spec->dim);
        if (spec->method == ROPE_LINEAR) inv_freq[i] /= spec->factor;
        if (spec->method == ROPE_LONGROPE) inv_freq[i] /= list[i];
    }
    if (spec->method == ROPE_YARN) scale_yarn(spec, inv_freq);
    if (spec->method == ROPE_LLAMA3) scale_llama3(spec, inv_freq);
    if (spec->has_divisors)
        for (int i = 0; i < spec->dim / 2; ++i) inv_freq[i] /= spec->divisor[i];
}
