// Sampling. Random numbers: the four counters chained through SplitMix64's finaliser (Steele, Lea
// and Flood, "Fast splittable pseudorandom number generators", 2014).
#include "model/sampler.h"

static uint64_t mix(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

double sampler_uniform(uint64_t seed, uint64_t document, uint64_t question, uint64_t step) {
    uint64_t bits = mix(mix(mix(mix(seed) ^ document) ^ question) ^ step);
    return (double)(bits >> 11) * 0x1p-53;
}

struct sample_args sampler_draw(const struct sampler *sampler, uint64_t document, uint64_t question,
                                uint64_t step) {
    return (struct sample_args){
        .temperature = sampler->temperature,
        .top_p = sampler->top_p,
        .min_p = sampler->min_p,
        .uniform = sampler_uniform(sampler->seed, document, question, step),
    };
}
