// The weights with which a result of attention joins one over other keys, which is held already.
#ifndef HALKA_KERNELS_MERGE_WEIGHTS_H
#define HALKA_KERNELS_MERGE_WEIGHTS_H

#include <math.h>

#include "kernels/host_device.h"

struct merge_weights {
    float held, added; // held < 0: nothing is held, and its out must not be read
    float lse;         // of both
};

// -inf means "saw no key": such a result is not to be added at all. NaN makes every weight NaN.
// Milakov and Gimelshein, Online normalizer calculation for softmax (2018), equation 4.
HOST_DEVICE struct merge_weights merge_weigh(float held_lse, float added_lse) {
    struct merge_weights w = {-1, 1, added_lse};
    if (held_lse == -INFINITY) return w;
    float max = held_lse > added_lse ? held_lse : added_lse;
    w.held = expf(held_lse - max);
    w.added = expf(added_lse - max);
    float total = w.held + w.added;
    w.held /= total;
    w.added /= total;
    w.lse = max + logf(total);
    return w;
}

#endif
