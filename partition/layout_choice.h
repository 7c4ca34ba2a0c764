// Zigzag or contiguous, for networks that mix full and window layers: the seconds that attention
// and its exchanges take on the slowest rank. Zigzag balances full causal layers; contiguous sends
// one halo a window where zigzag sends two. Pure arithmetic, the same on every rank.
#ifndef HALKA_PARTITION_LAYOUT_CHOICE_H
#define HALKA_PARTITION_LAYOUT_CHOICE_H

#include "partition/volume.h"

struct layer_kind {
    struct visibility visibility;
    struct attention_shape shape;
    int n_layer;
};

struct attention_rates {
    double flop_per_s, bytes_per_s; // of one rank
};
extern const struct attention_rates rates_of_thread, rates_of_gpu;

struct layout_choice {
    enum layout layout;
    double zigzag_s, contiguous_s; // of all layers, the first chunk and the last
};
// A document of n_token, read in chunks, on `size` ranks. When equal: zigzag where a layer is
// causal without a window, otherwise contiguous.
struct layout_case {
    const struct layer_kind *kinds;
    int n_kind, size;
    int64_t n_token, chunk;
    struct attention_rates rates;
};
struct layout_choice layout_choose(const struct layout_case *args);

#endif
