// Every backend and instruction set of this machine, for tests of single operations.
#ifndef HALKA_TESTS_BACKENDS_H
#define HALKA_TESTS_BACKENDS_H

#include "kernels/kernels.h"

// backends[0] is the reference; instruction sets that the processor lacks appear as lesser ones.
// The last is a mirror of the device.
enum { BACKEND_AVX2 = 3, BACKEND_AVX2_5_THREADS, BACKEND_MIRROR = 6, N_BACKEND };
extern struct backend backends[N_BACKEND];

// Light tests (see case_is_wanted) leave out all but the reference and the device.
bool backend_is_wanted(int index);

// Set-up and tear-down of a cmocka group.
int open_backends(void **state);
int close_backends(void **state);

// Where HALKA_TEST_BACKEND asks tests over ranks to compute.
enum test_place { PLACE_HOST, PLACE_FAKE, PLACE_CUDA };
enum test_place test_place(void);

// Opens this machine's cuda device of that number, as HALKA_TEST_ARCHITECTURE (see struct
// backend_options) has it; a fake one where there is none, or asked for.
enum status open_device(int index, struct backend *out);
// A mirror of that device.
enum status open_mirror(int index, struct backend *out);

#endif
