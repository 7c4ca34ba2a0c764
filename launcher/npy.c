#include "launcher/npy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/durable.h"

// Magic, version 1.0, and the length of what follows, little-endian; then the text of a dictionary,
// padded with spaces to NPY_HEADER_BYTES, a multiple of 64, and ended by a newline.
static const unsigned char magic[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, NPY_HEADER_BYTES - 10,
                                        0};
#define DICTIONARY "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }"

static enum status write_header(const struct npy *npy) {
    char header[NPY_HEADER_BYTES + 1];
    memset(header, ' ', sizeof header);
    memcpy(header, magic, sizeof magic);
    int n = snprintf(header + sizeof magic, sizeof header - sizeof magic, DICTIONARY,
                     (long long)npy->n_row, (long long)npy->n_column);
    header[(int)sizeof magic + n] = ' ';
    header[NPY_HEADER_BYTES - 1] = '\n';
    return durable_write_at(npy->file, npy->path, header, NPY_HEADER_BYTES, 0);
}

static enum status open_file(const char *path, int flags, int64_t n_column, struct npy *out) {
    *out = (struct npy){.file = open(path, flags | O_CLOEXEC, 0666), .n_column = n_column};
    if (out->file < 0) FAIL(ERR_CREATE, "cannot write %s: %s", path, strerror(errno));
    if (!(out->path = strdup(path))) {
        close(out->file);
        FAIL(ERR_MEMORY, "no memory for a path");
    }
    return OK;
}

enum status npy_create(const char *path, int64_t n_column, struct npy *out) {
    TRY(open_file(path, O_RDWR | O_CREAT | O_TRUNC, n_column, out));
    TRY(write_header(out));
    return durable_sync(out->file, out->path);
}

static int64_t row_offset(const struct npy *npy, int64_t row) {
    return NPY_HEADER_BYTES + row * npy->n_column * (int64_t)sizeof(float);
}

enum status npy_continue(const char *path, int64_t n_column, int64_t n_row, struct npy *out) {
    char header[NPY_HEADER_BYTES + 1] = {0};
    long long rows = -1, columns = -1;
    struct stat info;
    TRY(open_file(path, O_RDWR, n_column, out));
    if (fstat(out->file, &info) != 0 ||
        pread(out->file, header, NPY_HEADER_BYTES, 0) != NPY_HEADER_BYTES ||
        memcmp(header, magic, sizeof magic) != 0 ||
        sscanf(header + sizeof magic, DICTIONARY, &rows, &columns) != 2)
        FAIL(ERR_CREATE, "%s was not written by Halka: choose another --output, or add --overwrite",
             path);
    if (columns != n_column || rows < n_row || info.st_size < row_offset(out, n_row))
        FAIL(ERR_CREATE,
             "%s holds %lld rows of %lld, not the %lld of %lld that results.jsonl names: choose "
             "another --output, or add --overwrite",
             path, rows, columns, (long long)n_row, (long long)n_column);
    out->n_row = n_row;
    TRY(write_header(out)); // before the rows go, so that it never counts what is not there
    TRY(durable_sync(out->file, out->path));
    if (ftruncate(out->file, (off_t)row_offset(out, n_row)) != 0)
        FAIL(ERR_CREATE, "cannot shorten %s: %s", path, strerror(errno));
    return OK;
}

void npy_close(struct npy *npy) {
    if (npy->path) close(npy->file);
    free(npy->path);
    *npy = (struct npy){0};
}

enum status npy_append(struct npy *npy, const float *rows, int64_t n) {
    TRY(durable_write_at(npy->file, npy->path, rows, (size_t)(n * npy->n_column) * sizeof *rows,
                         row_offset(npy, npy->n_row)));
    npy->n_row += n;
    return OK;
}

enum status npy_commit(struct npy *npy) {
    TRY(durable_sync(npy->file, npy->path));
    TRY(write_header(npy));
    return durable_sync(npy->file, npy->path);
}
