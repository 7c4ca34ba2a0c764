#include "model/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum status durable_folder(const char *path, const char *what, const char *option) {
    int why = 0; // of the first that could not be made
    char *copy = strdup(path);
    if (!copy) FAIL(ERR_MEMORY, "no memory for a path");
    for (char *slash = copy + 1; *slash; slash++) {
        if (*slash != '/') continue;
        *slash = '\0';
        if (mkdir(copy, 0777) != 0 && errno != EEXIST && why == 0) why = errno;
        *slash = '/';
    }
    free(copy);
    struct stat info;
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        FAIL(ERR_CREATE, "cannot make the %s %s: %s", what, path,
             strerror(errno == ENOENT && why ? why : errno));
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
        FAIL(ERR_CREATE, "%s is not a folder: choose another %s", path, option);
    return OK;
}

enum status durable_write_at(int file, const char *path, const void *data, int64_t bytes,
                             int64_t offset) {
    for (int64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(file, (const char *)data + done, (size_t)(bytes - done), offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) FAIL(ERR_IO, "cannot write %s: %s", path, strerror(n ? errno : ENOSPC));
        done += n;
    }
    return OK;
}

enum status durable_sync(int file, const char *path) {
    if (fsync(file) != 0 && errno != EINVAL && errno != ENOTSUP)
        FAIL(ERR_IO, "cannot write %s: %s", path, strerror(errno));
    return OK;
}

enum status durable_write(const char *path, const void *data, size_t bytes) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) FAIL(ERR_CREATE, "cannot write %s: %s", path, strerror(errno));
    enum status status = durable_write_at(file, path, data, (int64_t)bytes, 0);
    if (status == OK) status = durable_sync(file, path);
    close(file);
    return status;
}

enum status durable_put(const char *part, const char *path, const void *data, size_t bytes) {
    enum status status = durable_write(part, data, bytes);
    if (status == OK && rename(part, path) != 0)
        status = status_fail(ERR_CREATE, __FILE__, "cannot write %s: %s", path, strerror(errno));
    if (status != OK) unlink(part);
    return status;
}
