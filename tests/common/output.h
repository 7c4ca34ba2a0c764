// An operation's output on the reference and on a backend, for tests of single operations. Outputs
// start as NaN or as equal values; padding between rows must keep it.
#ifndef HALKA_TESTS_COMMON_OUTPUT_H
#define HALKA_TESTS_COMMON_OUTPUT_H

#include "tests/common/cases.h"

struct output {
    enum dtype dtype;
    int64_t n;
    void *initial, *expected, *got;
};

struct output output_open(enum dtype dtype, int64_t n, bool poisoned);
// `got` as it was at the start.
void *output_renew(struct output *out);
void output_check(const struct output *out, struct tolerance tolerance, int backend_index,
                  const char *what);
void output_close(struct output *out);

// Fails the test with the status's message.
void succeed(enum status status);
struct tolerance rounding_tolerance(enum dtype out_dtype);

#endif
