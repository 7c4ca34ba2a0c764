// The door to the cuda backend for files that do not know CUDA: kernels/backend.c.
#ifndef HALKA_KERNELS_CUDA_OPEN_H
#define HALKA_KERNELS_CUDA_OPEN_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// ERR_CONFIG when this build, machine or device cannot run it.
enum status cuda_open(const struct backend_options *options, struct backend *out);
// Devices that this process may use; 0 without a driver, or in a build without CUDA.
int cuda_device_count(void);

// The streams of an open cuda backend, for a transport that queues work beside it: a cudaStream_t.
void *cuda_stream_compute(const struct backend *backend);
void *cuda_stream_copy(const struct backend *backend);

#ifdef __cplusplus
}
#endif
#endif
