// A .npy file (NumPy format 1.0, little-endian float32 [n_row, n_column], C order) that grows by
// rows. What the header counts is durable: rows are written and synced before it names them. So a
// job that is killed leaves a file that NumPy reads, and that the next run cuts to the rows it
// wants.
#ifndef HALKA_LAUNCHER_NPY_H
#define HALKA_LAUNCHER_NPY_H

#include <stdint.h>

#include "kernels/status.h"

enum { NPY_HEADER_BYTES = 128 };

struct npy {
    char *path; // NULL: not open
    int file;
    int64_t n_row, n_column;
};

// An empty file of this width, in place of any other.
enum status npy_create(const char *path, int64_t n_column, struct npy *out);
// One that an earlier run wrote, cut to its first n_row rows. ERR_CREATE: it is not such a file.
enum status npy_continue(const char *path, int64_t n_column, int64_t n_row, struct npy *out);
void npy_close(struct npy *npy); // accepts a zeroed struct

// Writes n rows behind those that are there; npy_commit makes them durable and counts them.
enum status npy_append(struct npy *npy, const float *rows, int64_t n);
enum status npy_commit(struct npy *npy);

#endif
