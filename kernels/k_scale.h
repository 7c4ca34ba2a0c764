// The packed scales of Q4_K and Q5_K blocks, shared by the plain and the vector expansions.
#ifndef HALKA_KERNELS_K_SCALE_H
#define HALKA_KERNELS_K_SCALE_H

#include <stdint.h>

// Six-bit scale and minimum of group 0..7 (32 elements each), packed into 12 bytes.
static inline void k_scale(const uint8_t *packed, int group, int *scale, int *low) {
    if (group < 4) {
        *scale = packed[group] & 63;
        *low = packed[group + 4] & 63;
    } else {
        *scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
        *low = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
    }
}

#endif
