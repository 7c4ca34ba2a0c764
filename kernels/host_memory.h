// The memory entries of backends whose memory is the host's; work is done when the call returns.
#ifndef HALKA_KERNELS_HOST_MEMORY_H
#define HALKA_KERNELS_HOST_MEMORY_H

#include "kernels/kernels.h"

#define HOST_ALIGNMENT 64

enum status host_alloc(struct backend *backend, int64_t bytes, void **out);
void host_free(struct backend *backend, void *p);
enum status host_upload(struct backend *backend, void *to, const void *host, int64_t bytes);
enum status host_download(struct backend *backend, void *host, const void *from, int64_t bytes);
enum status host_copy(struct backend *backend, void *to, const void *from, int64_t bytes);
enum status host_sync(struct backend *backend);
enum status host_load_weight(struct backend *backend, const struct weight *host,
                             struct weight *out);
void host_unload_weight(struct backend *backend, struct weight *weight);

#endif
