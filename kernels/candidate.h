// A candidate of the indexer's top-k as one integer: the larger, the better. The order is (score
// descending, position ascending), total and the same everywhere, so that any split of the keys
// over blocks, ranks or chunks selects the same set. -0.0 counts as 0.0; positions are below 2^32
// - 1.
#ifndef HALKA_KERNELS_CANDIDATE_H
#define HALKA_KERNELS_CANDIDATE_H

#include <stdint.h>
#include <string.h>

#include "kernels/host_device.h"

HOST_DEVICE uint64_t candidate_make(float score, int64_t position) {
    uint32_t bits;
    score += 0.0f; // -0.0 becomes 0.0
    memcpy(&bits, &score, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (0xffffffffu - (uint32_t)position);
}

HOST_DEVICE int64_t candidate_position(uint64_t candidate) {
    return 0xffffffffu - (uint32_t)candidate;
}

HOST_DEVICE float candidate_score(uint64_t candidate) {
    uint32_t bits = (uint32_t)(candidate >> 32);
    float score;
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    memcpy(&score, &bits, sizeof score);
    return score;
}

#endif
