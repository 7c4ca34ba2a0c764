// A backend of MEMORY_HOST over one whose memory is a device's: each operation's arguments are
// copied to fresh device memory of their exact size, and what it may have written comes back, what
// lay there before included. So tests of operations on host memory run on any backend unchanged.
#ifndef HALKA_TESTS_COMMON_MIRROR_H
#define HALKA_TESTS_COMMON_MIRROR_H

#include "kernels/kernels.h"

// Takes `device` over: it is closed with the mirror.
void mirror_open(struct backend device, struct backend *out);

#endif
