#include "tests/common/backends.h"

#include <stdio.h>

static const struct backend_options options[N_BACKEND] = {
    {BACKEND_REFERENCE, ISA_AUTO, 1},
    {BACKEND_CPU, ISA_AUTO, 2},
    {BACKEND_CPU, ISA_AVX512, 2},
    [BACKEND_AVX2] = {BACKEND_CPU, ISA_AVX2, 2},
    [BACKEND_AVX2_5_THREADS] = {BACKEND_CPU, ISA_AVX2, 5},
    {BACKEND_CPU, ISA_PLAIN, 2},
};
struct backend backends[N_BACKEND];

int open_backends(void **state) {
    (void)state;
    for (int i = 0; i < N_BACKEND; i++) {
        if (backend_open(&options[i], &backends[i]) == OK) continue;
        fprintf(stderr, "%s\n", status_message());
        return -1;
    }
    return 0;
}

int close_backends(void **state) {
    (void)state;
    for (int i = 0; i < N_BACKEND; i++) backend_close(&backends[i]);
    return 0;
}
