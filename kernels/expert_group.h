// What a group of experts counts in the choice of groups, for every backend.
#ifndef HALKA_KERNELS_EXPERT_GROUP_H
#define HALKA_KERNELS_EXPERT_GROUP_H

#include <math.h>

#include "kernels/host_device.h"

// The sum of the two best of a group's `width` experts; of one alone its own.
HOST_DEVICE float expert_group_score(const float *choice, int width) {
    float first = -INFINITY, second = -INFINITY;
    for (int e = 0; e < width; e++) {
        if (choice[e] > first) {
            second = first;
            first = choice[e];
        } else if (choice[e] > second) {
            second = choice[e];
        }
    }
    return width > 1 ? first + second : first;
}

#endif
