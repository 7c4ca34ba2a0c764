// The cuda backend: opens one device with its streams and libraries; the table of operations.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "kernels/cuda/lanes.cuh"
#include "kernels/cuda/memory.cuh"

enum { OLDEST_ARCHITECTURE = 80 }; // bf16 tensor cores, asynchronous copies to shared memory
// What cuBLAS asks for on sm_90; given at start so that products allocate nothing.
static const int64_t kCublasWorkspaceBytes = 32 << 20;

enum status cuda_fail(cudaError_t error, const char *where, const char *what) {
    (void)cudaGetLastError(); // else the next launch would report it again
    enum status code = error == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_INTERNAL;
    return status_fail(code, where, "the GPU reports: %s (%s)", cudaGetErrorString(error), what);
}

enum status cublas_fail(cublasStatus_t error, const char *where, const char *what) {
    enum status code = error == CUBLAS_STATUS_ALLOC_FAILED ? ERR_MEMORY : ERR_INTERNAL;
    return status_fail(code, where, "cuBLAS reports: %s (%s)", cublasGetStatusString(error), what);
}

int cuda_device_count(void) {
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
    (void)cudaGetLastError();
    return 0;
}

static void cuda_close(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    if (!state) return;
    if (state->compute) (void)cudaStreamSynchronize(state->compute);
    if (state->copy) (void)cudaStreamSynchronize(state->copy);
    cuda_lanes_close(backend);
    if (state->cublas) (void)cublasDestroy(state->cublas);
    if (state->cublas_workspace) cuda_free(backend, state->cublas_workspace);
    cuda_steps_close(backend);
    cuda_phases_close(state);
    cuda_memory_close(state);
    if (state->copy) (void)cudaStreamDestroy(state->copy);
    if (state->compute) (void)cudaStreamDestroy(state->compute);
    free(state);
    backend->state = NULL;
}

static int64_t cuda_scratch_bytes(const struct backend *backend, const struct scratch_shape *s) {
    const struct cuda_state *state = cuda_state(backend);
    int64_t bytes = cuda_matmul_scratch_bytes(state, s);
    bytes = std::max(bytes, cuda_logprob_scratch_bytes(state, s));
    bytes = std::max(bytes, cuda_index_scratch_bytes(state, s));
    bytes = std::max(bytes, cuda_attention_scratch_bytes(state, s));
    return bytes + kCublasWorkspaceBytes + cuda_lanes_bytes() + cuda_memory_fixed_bytes();
}

static const struct kernel_ops cuda_ops = {
    .name = "cuda",
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .copy = cuda_copy,
    .sync = cuda_sync,
    .copies = &cuda_copies,
    .steps = &cuda_steps_ops,
    .phase = cuda_phase,
    .device_memory = cuda_device_memory,
    .load_weight = cuda_load_weight,
    .unload_weight = cuda_unload_weight,
    .embed = cuda_embed,
    .norm = cuda_norm,
    .matmul = cuda_matmul,
    .matmul_each = cuda_matmul_each,
    .rope = cuda_rope,
    .rope_each = cuda_rope_each,
    .gate = cuda_gate,
    .add = cuda_add,
    .multiply = cuda_multiply,
    .convert = cuda_convert,
    .copy_blocks = cuda_copy_blocks,
    .attention = cuda_attention,
    .merge_partials = cuda_merge_partials,
    .attention_mass = cuda_attention_mass,
    .logprob = cuda_logprob,
    .sample = cuda_sample,
    .quantize = cuda_quantize,
    .index_top_k = cuda_index_top_k,
    .index_merge = cuda_index_merge,
    .index_filter = cuda_index_filter,
    .select_rows = cuda_select_rows,
    .sparse_attention = cuda_sparse_attention,
    .expert_gate = cuda_expert_gate,
    .grouped_matmul = cuda_grouped_matmul,
    .chosen_matmul = cuda_chosen_matmul,
    .expert_combine = cuda_expert_combine,
    .scratch_bytes = cuda_scratch_bytes,
};

// Most dynamic shared memory of a block (CUDA C++ Programming Guide, compute capabilities).
static int shared_bytes_of(int architecture) {
    int kibibytes = architecture == 80 ? 163 : architecture == 90 || architecture == 100 ? 227 : 99;
    return kibibytes << 10;
}

static enum status check_device(struct cuda_state *state, int architecture) {
    int n_device = cuda_device_count(), major = 0, minor = 0;
    if (n_device == 0)
        FAIL(ERR_CONFIG, "no GPU, or no driver for it, on this machine: set run.backend to auto or "
                         "cpu");
    if (state->device < 0 || state->device >= n_device)
        FAIL(ERR_CONFIG, "there is no GPU %d: this process sees %d", state->device, n_device);
    TRY_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, state->device));
    TRY_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, state->device));
    state->architecture = 10 * major + minor;
    if (state->architecture < OLDEST_ARCHITECTURE)
        FAIL(ERR_CONFIG,
             "GPU %d has compute capability %d.%d, but the cuda backend needs 8.0 or later: set "
             "run.backend to cpu",
             state->device, major, minor);
    TRY_CUDA(cudaDeviceGetAttribute(&state->n_multiprocessor, cudaDevAttrMultiProcessorCount,
                                    state->device));
    TRY_CUDA(cudaDeviceGetAttribute(&state->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                    state->device));
    if (architecture == 0) return OK;
    state->architecture = architecture;
    state->shared_bytes = std::min(state->shared_bytes, shared_bytes_of(architecture));
    return OK;
}

static enum status name_device(struct backend *backend) {
    struct cudaDeviceProp properties;
    TRY_CUDA(cudaGetDeviceProperties(&properties, cuda_state(backend)->device));
    static_assert(sizeof properties.uuid == sizeof backend->device_id, "an id is a UUID");
    memcpy(backend->device_id, &properties.uuid, sizeof backend->device_id);
    snprintf(backend->device_name, sizeof backend->device_name, "%.63s", properties.name);
    return OK;
}

enum status cuda_cublas_open(struct backend *backend, cudaStream_t stream, int64_t workspace_bytes,
                             cublasHandle_t *out, void **workspace) {
    TRY_CUBLAS(cublasCreate(out));
    TRY_CUBLAS(cublasSetStream(*out, stream));
    // fp32 stays fp32, and parts of a sum are never kept in bf16.
    TRY_CUBLAS(cublasSetMathMode(
        *out,
        (cublasMath_t)(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
    TRY(cuda_memory_take(backend, workspace_bytes, workspace));
    TRY_CUBLAS(cublasSetWorkspace(*out, *workspace, (size_t)workspace_bytes));
    return OK;
}

static enum status open_device(struct backend *backend, int architecture) {
    struct cuda_state *state = cuda_state(backend);
    TRY(check_device(state, architecture));
    TRY_CUDA(cudaSetDevice(state->device));
    TRY_CUDA(cudaStreamCreateWithFlags(&state->compute, cudaStreamNonBlocking));
    // What a transport runs on the device comes first: other ranks wait for it.
    int least_urgent, most_urgent;
    TRY_CUDA(cudaDeviceGetStreamPriorityRange(&least_urgent, &most_urgent));
    TRY_CUDA(cudaStreamCreateWithPriority(&state->copy, cudaStreamNonBlocking, most_urgent));
    TRY(name_device(backend));
    TRY(cuda_phases_open(state));
    TRY(cuda_memory_open(backend));
    TRY(cuda_steps_open(backend));
    return cuda_cublas_open(backend, state->compute, kCublasWorkspaceBytes, &state->cublas,
                            &state->cublas_workspace);
}

void *cuda_stream_compute(const struct backend *backend) {
    return cuda_state(backend)->compute;
}

void *cuda_stream_copy(const struct backend *backend) {
    return cuda_state(backend)->copy;
}

enum status cuda_open(const struct backend_options *options, struct backend *out) {
    struct cuda_state *state = (struct cuda_state *)calloc(1, sizeof *state);
    if (!state) FAIL(ERR_MEMORY, "cannot allocate %zu bytes", sizeof *state);
    state->device = options->device;
    *out = (struct backend){
        .ops = &cuda_ops,
        .memory = MEMORY_DEVICE,
        .bf16_products = true,
        .state = state,
    };
    enum status status = open_device(out, options->architecture);
    if (status != OK) backend_close(out);
    return status;
}
