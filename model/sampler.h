// The next token from logits: greedy, or temperature with min-p and top-p. Random numbers are
// counters of (seed, document, question, step), so any rank and any restart draws the same.
#ifndef HALKA_MODEL_SAMPLER_H
#define HALKA_MODEL_SAMPLER_H

#include <stdint.h>

#include "kernels/kernels.h"

struct sampler {
    double temperature; // 0: greedy (the lowest id of the largest logits)
    double top_p;       // keep the smallest set of tokens whose probability reaches this; 1: all
    double min_p;       // drop tokens below min_p times the largest probability; 0: none
    uint64_t seed;
};

// Uniform in [0, 1), a pure function of its arguments.
double sampler_uniform(uint64_t seed, uint64_t document, uint64_t question, uint64_t step);
// How a backend is to choose; logits and place of the token are left to the caller.
struct sample_args sampler_draw(const struct sampler *sampler, uint64_t document, uint64_t question,
                                uint64_t step);

#endif
