#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"
#include "kernels/reference/reference.h"

enum status backend_open(const struct backend_options *options, struct backend *out) {
    *out = (struct backend){0};
    if (options->n_thread < 1)
        FAIL(ERR_CONFIG, "a backend needs at least 1 thread, not %d", options->n_thread);
    switch (options->kind) {
    case BACKEND_REFERENCE:
        return reference_open(options, out);
    case BACKEND_AUTO:
    case BACKEND_CPU:
        return cpu_open(options, out);
    case BACKEND_CUDA:
        break;
    }
    FAIL(ERR_CONFIG, "this build has no cuda backend: set run.backend to auto or cpu");
}

void backend_close(struct backend *backend) {
    if (backend->ops) backend->ops->close(backend);
    *backend = (struct backend){0};
}
