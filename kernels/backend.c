#include "kernels/cpu/cpu.h"
#include "kernels/cuda/open.h"
#include "kernels/kernels.h"
#include "kernels/reference/reference.h"

enum status backend_open(const struct backend_options *options, struct backend *out) {
    *out = (struct backend){0};
    if (options->n_thread < 1)
        FAIL(ERR_CONFIG, "a backend needs at least 1 thread, not %d", options->n_thread);
    switch (options->kind) {
    case BACKEND_REFERENCE:
        return reference_open(options, out);
    case BACKEND_CUDA:
        return cuda_open(options, out);
    case BACKEND_AUTO:
        if (cuda_device_count() > 0) return cuda_open(options, out);
        break;
    case BACKEND_CPU:
        break;
    }
    return cpu_open(options, out);
}

int backend_device_count(enum backend_kind kind) {
    return kind == BACKEND_AUTO || kind == BACKEND_CUDA ? cuda_device_count() : 0;
}

void backend_close(struct backend *backend) {
    if (backend->ops) backend->ops->close(backend);
    *backend = (struct backend){0};
}
