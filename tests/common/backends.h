// Every backend and instruction set of this machine, for tests of single operations.
#ifndef HALKA_TESTS_BACKENDS_H
#define HALKA_TESTS_BACKENDS_H

#include "kernels/kernels.h"

// backends[0] is the reference; instruction sets that the processor lacks appear as lesser ones.
enum { BACKEND_AVX2 = 3, BACKEND_AVX2_5_THREADS, N_BACKEND = 6 };
extern struct backend backends[N_BACKEND];

// Set-up and tear-down of a cmocka group.
int open_backends(void **state);
int close_backends(void **state);

#endif
