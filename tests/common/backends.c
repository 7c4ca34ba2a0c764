#include "tests/common/backends.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/common/cases.h"
#include "tests/common/fake_device.h"
#include "tests/common/mirror.h"

static const struct backend_options options[BACKEND_MIRROR] = {
    {.kind = BACKEND_REFERENCE, .isa = ISA_AUTO, .n_thread = 1},
    {.kind = BACKEND_CPU, .isa = ISA_AUTO, .n_thread = 2},
    {.kind = BACKEND_CPU, .isa = ISA_AVX512, .n_thread = 2},
    [BACKEND_AVX2] = {.kind = BACKEND_CPU, .isa = ISA_AVX2, .n_thread = 2},
    [BACKEND_AVX2_5_THREADS] = {.kind = BACKEND_CPU, .isa = ISA_AVX2, .n_thread = 5},
    {.kind = BACKEND_CPU, .isa = ISA_PLAIN, .n_thread = 2},
};
struct backend backends[N_BACKEND];

enum test_place test_place(void) {
    const char *name = getenv("HALKA_TEST_BACKEND");
    if (!name || strcmp(name, "cpu") == 0) return PLACE_HOST;
    if (strcmp(name, "fake") == 0) return PLACE_FAKE;
    if (strcmp(name, "cuda") == 0) return PLACE_CUDA;
    fprintf(stderr, "HALKA_TEST_BACKEND is %s, not cpu, fake or cuda\n", name);
    abort();
}

// HALKA_TEST_ARCHITECTURE: the kernels that such a device would take; 0: its own.
static int test_architecture(void) {
    const char *name = getenv("HALKA_TEST_ARCHITECTURE");
    return name ? atoi(name) : 0;
}

enum status open_device(int index, struct backend *out) {
    struct backend_options device = {
        .kind = BACKEND_CUDA, .n_thread = 1, .device = index, .architecture = test_architecture()};
    bool has_device = test_place() != PLACE_FAKE && backend_device_count(BACKEND_CUDA) > 0;
    if (!has_device) device.kind = BACKEND_CPU;
    TRY(backend_open(&device, out));
    if (!has_device) fake_device_open(*out, out);
    return OK;
}

enum status open_mirror(int index, struct backend *out) {
    TRY(open_device(index, out));
    mirror_open(*out, out);
    return OK;
}

bool backend_is_wanted(int index) {
    return !tests_are_light() || index == 0 || index == BACKEND_MIRROR;
}

int open_backends(void **state) {
    (void)state;
    for (int i = 0; i < N_BACKEND; i++) {
        enum status status = i == BACKEND_MIRROR ? open_mirror(0, &backends[i])
                                                 : backend_open(&options[i], &backends[i]);
        if (status == OK) continue;
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
