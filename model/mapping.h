// A whole file mapped read-only and shared, so that the ranks of a node use the same pages.
#ifndef HALKA_MODEL_MAPPING_H
#define HALKA_MODEL_MAPPING_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/status.h"

struct mapping {
    const void *data; // NULL for an empty file
    size_t bytes;
};

// ERR_NO_INPUT when the path is absent, unreadable or no regular file. An empty file maps to
// zero bytes.
enum status mapping_open(const char *path, struct mapping *out);
// Whether anything has this name: a link that leads nowhere, as a download that was cut off leaves
// it, is a file that cannot be read.
bool mapping_exists(const char *path);
// An optional file of a folder. *path, for messages, is the caller's to free, also after a failure;
// NULL: there is no such file. ERR_NO_INPUT when what has the name cannot be read.
enum status mapping_open_optional(const char *folder, const char *file, char **path,
                                  struct mapping *out);
void mapping_close(struct mapping *mapping); // accepts a zeroed struct

#endif
