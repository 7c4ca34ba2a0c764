// Which kernels a program launches: a library that, preloaded (LD_PRELOAD=liblaunches.so), appends
// to the file $LAUNCHES, at the end, a line for each kernel that is compiled into the program: how
// often it was launched, and its name. It stands before the functions of the CUDA runtime that
// nvcc's code calls to register and to launch kernels, of CUDA 12 and 13. scripts/gpu_test.sh
// holds by it that the tests launch every kernel.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_KERNELS = 4096 };

static struct kernel {
    const void *host;   // by which nvcc's code knows it
    const void *handle; // by which CUDA 13 does
    const char *name;
    long n_launch;
} kernels[MOST_KERNELS];
static int n_kernel; // the functions below have no argument of ours

static void *next(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (!function) {
        fprintf(stderr, "launches: the CUDA runtime has no %s\n", name);
        abort();
    }
    return function;
}

static void count(const void *key) {
    for (int i = 0; i < n_kernel; i++)
        if (kernels[i].host == key || kernels[i].handle == key) {
            kernels[i].n_launch++;
            return;
        }
}

__attribute__((destructor)) static void finish(void) {
    const char *path = getenv("LAUNCHES");
    FILE *out = path ? fopen(path, "a") : NULL;
    if (!out) return;
    setvbuf(out, NULL, _IOLBF, BUFSIZ); // whole lines: other programs append theirs
    for (int i = 0; i < n_kernel; i++)
        fprintf(out, "%ld %s\n", kernels[i].n_launch, kernels[i].name);
    fclose(out);
}

void __cudaRegisterFunction(void **module, const char *host, char *device, const char *name,
                            int limit, uint3 *thread, uint3 *block, dim3 *block_dim, dim3 *grid_dim,
                            int *warp);
void __cudaRegisterFunction(void **module, const char *host, char *device, const char *name,
                            int limit, uint3 *thread, uint3 *block, dim3 *block_dim, dim3 *grid_dim,
                            int *warp) {
    void (*original)(void **, const char *, char *, const char *, int, uint3 *, uint3 *, dim3 *,
                     dim3 *, int *) = next("__cudaRegisterFunction");
    original(module, host, device, name, limit, thread, block, block_dim, grid_dim, warp);
    if (n_kernel < MOST_KERNELS) kernels[n_kernel++] = (struct kernel){.host = host, .name = name};
}

cudaError_t __cudaGetKernel(cudaKernel_t *out, const void *host);
cudaError_t __cudaGetKernel(cudaKernel_t *out, const void *host) {
    cudaError_t (*original)(cudaKernel_t *, const void *) = next("__cudaGetKernel");
    cudaError_t error = original(out, host);
    for (int i = 0; i < n_kernel && error == cudaSuccess; i++)
        if (kernels[i].host == host) kernels[i].handle = *out;
    return error;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared_bytes, cudaStream_t stream);
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared_bytes, cudaStream_t stream) {
    cudaError_t (*original)(cudaKernel_t, dim3, dim3, void **, size_t, cudaStream_t) =
        next("__cudaLaunchKernel");
    count(kernel);
    return original(kernel, grid, block, arguments, shared_bytes, stream);
}

cudaError_t cudaLaunchKernel(const void *host, dim3 grid, dim3 block, void **arguments,
                             size_t shared_bytes, cudaStream_t stream) {
    cudaError_t (*original)(const void *, dim3, dim3, void **, size_t, cudaStream_t) =
        next("cudaLaunchKernel");
    count(host);
    return original(host, grid, block, arguments, shared_bytes, stream);
}
