#include "tests/common/output.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
// setjmp.h, stdarg.h and stdlib.h come before cmocka.h
#include <cmocka.h>

struct output output_open(enum dtype dtype, int64_t n, bool poisoned) {
    int64_t bytes = dtype_bytes(dtype, n);
    struct output out = {.dtype = dtype, .n = n};
    out.initial = random_vector(dtype, n, 1, 99);
    if (poisoned) poison(out.initial, bytes);
    out.expected = test_alloc(bytes);
    out.got = test_alloc(bytes);
    memcpy(out.expected, out.initial, (size_t)bytes);
    return out;
}

void *output_renew(struct output *out) {
    memcpy(out->got, out->initial, (size_t)dtype_bytes(out->dtype, out->n));
    return out->got;
}

void output_check(const struct output *out, struct tolerance tolerance, int backend_index,
                  const char *what) {
    char message[160];
    if (!is_close(out->dtype, out->got, out->expected, out->n, tolerance, message, sizeof message))
        fail_msg("%s, backend %d: %s", what, backend_index, message);
}

void output_close(struct output *out) {
    free(out->initial);
    free(out->expected);
    free(out->got);
}

void succeed(enum status status) {
    if (status != OK) fail_msg("status %d: %s", (int)status, status_message());
}

struct tolerance rounding_tolerance(enum dtype out_dtype) {
    return out_dtype == DTYPE_BF16 ? TOLERANCE_BF16_OUT : TOLERANCE_F32;
}
