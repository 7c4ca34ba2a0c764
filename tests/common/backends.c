#include "tests/common/backends.h"

#include <stdio.h>

static const struct backend_options options[N_BACKEND] = {
    {.kind = BACKEND_REFERENCE, .isa = ISA_AUTO, .n_thread = 1},
    {.kind = BACKEND_CPU, .isa = ISA_AUTO, .n_thread = 2},
    {.kind = BACKEND_CPU, .isa = ISA_AVX512, .n_thread = 2},
    [BACKEND_AVX2] = {.kind = BACKEND_CPU, .isa = ISA_AVX2, .n_thread = 2},
    [BACKEND_AVX2_5_THREADS] = {.kind = BACKEND_CPU, .isa = ISA_AVX2, .n_thread = 5},
    {.kind = BACKEND_CPU, .isa = ISA_PLAIN, .n_thread = 2},
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
