#include "kernels/host_memory.h"

#include <stdlib.h>
#include <sys/mman.h>

// Keys and values are read with long strides: large buffers ask for large pages, of which fewer
// addresses must be looked up. Without them (advice, not a demand) only speed is lost.
enum { LARGE_PAGE = 2 << 20 };

enum status host_alloc(struct backend *backend, int64_t bytes, void **out) {
    (void)backend;
    *out = NULL;
    if (bytes < 0) FAIL(ERR_INTERNAL, "asked to allocate %lld bytes", (long long)bytes);
    bool is_large = bytes >= LARGE_PAGE;
    size_t alignment = is_large ? LARGE_PAGE : HOST_ALIGNMENT;
    // aligned_alloc wants a multiple of the alignment; 0 bytes still get a pointer of their own.
    *out = aligned_alloc(alignment, ((size_t)bytes / alignment + 1) * alignment);
    if (!*out)
        FAIL(ERR_MEMORY, "cannot allocate %lld bytes: use more ranks or a smaller prefill chunk",
             (long long)bytes);
    if (is_large) madvise(*out, (size_t)bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
    return OK;
}

void host_free(struct backend *backend, void *p) {
    (void)backend;
    free(p);
}

enum status host_upload(struct backend *backend, void *to, const void *host, int64_t bytes) {
    (void)backend;
    if (bytes > 0) memcpy(to, host, (size_t)bytes);
    return OK;
}

enum status host_download(struct backend *backend, void *host, const void *from, int64_t bytes) {
    return host_upload(backend, host, from, bytes);
}

enum status host_copy(struct backend *backend, void *to, const void *from, int64_t bytes) {
    (void)backend;
    if (bytes > 0 && to != from) memcpy(to, from, (size_t)bytes);
    return OK;
}

enum status host_sync(struct backend *backend) {
    (void)backend;
    return OK;
}

enum status host_load_weight(struct backend *backend, const struct weight *host,
                             struct weight *out) {
    (void)backend;
    *out = *host;
    return OK;
}

void host_unload_weight(struct backend *backend, struct weight *weight) {
    (void)backend;
    *weight = (struct weight){0};
}
