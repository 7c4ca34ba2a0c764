// The parts of `halka verify`: each compares what this build computes on these ranks with a plain
// reference, and adds a row to the table.
#ifndef HALKA_LAUNCHER_VERIFY_H
#define HALKA_LAUNCHER_VERIFY_H

#include "launcher/job.h"

struct verify {
    struct job *job;
    struct backend reference;
    int n_passed, n_failed;
};

// Numbers in [-1, 1), a pure function of stream and index: the same on every rank.
float verify_number(uint64_t stream, uint64_t index);
void verify_fill(float *out, int64_t n, uint64_t stream);

// residual = max|got - expected| / (epsilon * max|expected| * sqrt(n_term)); PASSED below
// VERIFY_LIMIT on every rank. Entered by all ranks; rank 0 prints.
#define VERIFY_LIMIT 16.0
enum status verify_row(struct verify *verify, const char *name, const char *shape, double epsilon,
                       int64_t n_term, const float *got, const float *expected, int64_t n);
// A row that is right or wrong, on every rank.
enum status verify_exact(struct verify *verify, const char *name, const char *shape, bool right);

// Memory that the host fills and checks, and its image where the backend computes: the same memory
// where that is the host's. What is taken is 64-byte aligned; NULL when it is used up.
struct verify_memory {
    struct backend *backend;
    char *host, *image; // owned
    int64_t bytes, used;
};
enum status verify_memory_open(struct verify_memory *out, struct backend *backend, int64_t bytes);
void verify_memory_close(struct verify_memory *memory); // accepts a zeroed struct
void *verify_take(struct verify_memory *memory, int64_t bytes);
void *verify_image(const struct verify_memory *memory, const void *host);
enum status verify_push(struct verify_memory *memory); // all that is taken to the backend ...
enum status verify_pull(struct verify_memory *memory); // ... and back, after the work queued so far

enum status verify_kernels(struct verify *verify);
enum status verify_transport(struct verify *verify);
enum status verify_ring(struct verify *verify);
enum status verify_sparse(struct verify *verify);

#endif
