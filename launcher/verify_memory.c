// Memory of a self-test: the host fills and checks it, the backend computes on its image.
#include <stdlib.h>

#include "launcher/verify.h"

enum { ALIGNMENT = 64 };

enum status verify_memory_open(struct verify_memory *out, struct backend *backend, int64_t bytes) {
    void *image = NULL;
    *out = (struct verify_memory){.backend = backend, .bytes = bytes};
    out->host = aligned_alloc(ALIGNMENT, (size_t)(bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (!out->host) FAIL(ERR_MEMORY, "no memory for a self-test");
    if (backend->memory == MEMORY_HOST) {
        out->image = out->host;
        return OK;
    }
    enum status status = backend->ops->alloc(backend, bytes, &image);
    out->image = image;
    return status;
}

void verify_memory_close(struct verify_memory *m) {
    if (m->image && m->image != m->host) m->backend->ops->free(m->backend, m->image);
    free(m->host);
    *m = (struct verify_memory){0};
}

void *verify_take(struct verify_memory *m, int64_t bytes) {
    char *at = m->host + m->used;
    m->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return m->used <= m->bytes ? at : NULL;
}

void *verify_image(const struct verify_memory *m, const void *host) {
    return m->image + ((const char *)host - m->host);
}

enum status verify_push(struct verify_memory *m) {
    if (m->image == m->host) return OK;
    return m->backend->ops->upload(m->backend, m->image, m->host, m->used);
}

enum status verify_pull(struct verify_memory *m) {
    if (m->image == m->host) return m->backend->ops->sync(m->backend);
    TRY(m->backend->ops->download(m->backend, m->host, m->image, m->used));
    return m->backend->ops->sync(m->backend);
}
