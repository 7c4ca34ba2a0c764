// Arithmetic of reading a sequence, from the specification alone.
#ifndef HALKA_LAUNCHER_ESTIMATE_H
#define HALKA_LAUNCHER_ESTIMATE_H

#include "model/spec.h"

struct cost {
    double product_flop, attention_flop; // of one rank
};

struct estimate_case {
    const struct model_spec *spec;
    int size;           // ranks, which share the work evenly
    bool dense, scored; // although layers have an indexer; with every token's log-probability
};
// One sequence of n tokens.
struct cost estimate_cost(const struct estimate_case *of, int64_t n);

// Seconds within which a job that keeps what it reads reaches a place to stop.
enum { STOP_SECONDS = 30 };
// A power of two of tokens, of which the last of a sequence of n take about STOP_SECONDS or less
// where a rank does flop_per_s, but `least` or more (where those take longer). 0: all do.
int64_t estimate_chunk(const struct estimate_case *of, int64_t n, double flop_per_s, int64_t least);

#endif
