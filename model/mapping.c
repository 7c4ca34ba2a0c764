#include "model/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum status mapping_open(const char *path, struct mapping *out) {
    enum status status = OK;
    struct stat info;
    void *data = NULL;
    *out = (struct mapping){0};
    // Without O_NONBLOCK a named pipe in place of a file would wait for a writer for ever.
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) FAIL(ERR_NO_INPUT, "cannot open %s: %s", path, strerror(errno));
    if (fstat(file, &info) != 0)
        FAIL_OR(done, ERR_NO_INPUT, "cannot examine %s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        FAIL_OR(done, ERR_NO_INPUT, "%s is a folder; a file is needed", path);
    if (!S_ISREG(info.st_mode))
        FAIL_OR(done, ERR_NO_INPUT, "%s is not a regular file; copy it to one first", path);
    if (info.st_size == 0) goto done;
    data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (data == MAP_FAILED)
        FAIL_OR(done, ERR_NO_INPUT, "cannot map %s (%lld bytes): %s", path, (long long)info.st_size,
                strerror(errno));
    *out = (struct mapping){.data = data, .bytes = (size_t)info.st_size};
done:
    close(file);
    return status;
}

bool mapping_exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

enum status mapping_open_optional(const char *folder, const char *file, char **path,
                                  struct mapping *out) {
    *out = (struct mapping){0};
    if (asprintf(path, "%s/%s", folder, file) < 0) {
        *path = NULL;
        FAIL(ERR_MEMORY, "no memory for the path of %s", file);
    }
    if (mapping_exists(*path)) return mapping_open(*path, out);
    free(*path);
    *path = NULL;
    return OK;
}

void mapping_close(struct mapping *mapping) {
    if (mapping->data) munmap((void *)mapping->data, mapping->bytes);
    *mapping = (struct mapping){0};
}
