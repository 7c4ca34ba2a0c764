// What is written so that it is there after a crash: folders, files, bytes at a place of a file.
#ifndef HALKA_MODEL_DURABLE_H
#define HALKA_MODEL_DURABLE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

// Makes a folder and those above it. what: "output folder"; option: by which another one is chosen.
// ERR_CREATE when it cannot be made, or is no folder.
enum status durable_folder(const char *path, const char *what, const char *option);
// All of the bytes, at this offset of the file. ERR_IO when there is no room.
enum status durable_write_at(int file, const char *path, const void *data, int64_t bytes,
                             int64_t offset);
// What was written to the file, or folder, is on the disk then, where that has one. ERR_IO.
enum status durable_sync(int file, const char *path);

// A new file, on the disk when this returns. ERR_CREATE when it cannot be made, ERR_IO when there
// is no room.
enum status durable_write(const char *path, const void *data, size_t bytes);
// Likewise, whole or not at all: it takes the place of `path` from `part`, in the same folder,
// which is gone after a failure. ERR_CREATE also when it cannot.
enum status durable_put(const char *part, const char *path, const void *data, size_t bytes);

#endif
