// In place of kernels/cuda in a build without CUDA.
#include "kernels/cuda/open.h"

enum status cuda_open(const struct backend_options *options, struct backend *out) {
    (void)options, (void)out;
    FAIL(ERR_CONFIG, "this build has no cuda backend: use the one of make CUDA=1, or set "
                     "run.backend to auto or cpu");
}

int cuda_device_count(void) {
    return 0;
}
