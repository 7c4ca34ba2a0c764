#include "kernels/cuda/lanes.cuh"

#include "kernels/cuda/memory.cuh"

static const int64_t kWorkspaceBytes = 8 << 20;

struct lane {
    cudaStream_t stream;
    cublasHandle_t cublas;
    void *workspace; // NULL in the first, whose is the backend's
    cudaEvent_t ended;
};

struct cuda_lanes {
    struct lane lane[N_LANE];
    cudaEvent_t forked;
};

int64_t cuda_lanes_bytes(void) {
    return (N_LANE - 1) * kWorkspaceBytes;
}

static enum status open_lane(struct backend *backend, struct lane *lane) {
    TRY_CUDA(cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaEventCreateWithFlags(&lane->ended, cudaEventDisableTiming));
    return cuda_cublas_open(backend, lane->stream, kWorkspaceBytes, &lane->cublas,
                            &lane->workspace);
}

static enum status open_lanes(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    if (state->lanes) return OK;
    struct cuda_lanes *lanes = new cuda_lanes();
    lanes->lane[0].stream = state->compute;
    lanes->lane[0].cublas = state->cublas;
    state->lanes = lanes;
    enum status status = OK;
    for (int i = 1; i < N_LANE && status == OK; i++) status = open_lane(backend, &lanes->lane[i]);
    cudaError_t error = cudaEventCreateWithFlags(&lanes->forked, cudaEventDisableTiming);
    if (status == OK && error != cudaSuccess)
        status = cuda_fail(error, __FILE__ ":" STATUS_TEXT(__LINE__), "cudaEventCreateWithFlags");
    if (status != OK) cuda_lanes_close(backend);
    return status;
}

void cuda_lanes_close(struct backend *backend) {
    struct cuda_lanes *lanes = cuda_state(backend)->lanes;
    if (!lanes) return;
    for (int i = 1; i < N_LANE; i++) {
        struct lane *lane = &lanes->lane[i];
        if (lane->stream) (void)cudaStreamSynchronize(lane->stream);
        if (lane->cublas) (void)cublasDestroy(lane->cublas);
        if (lane->workspace) cuda_free(backend, lane->workspace);
        if (lane->ended) (void)cudaEventDestroy(lane->ended);
        if (lane->stream) (void)cudaStreamDestroy(lane->stream);
    }
    if (lanes->forked) (void)cudaEventDestroy(lanes->forked);
    delete lanes;
    cuda_state(backend)->lanes = NULL;
}

enum status cuda_lanes_fork(struct backend *backend) {
    TRY(open_lanes(backend));
    struct cuda_lanes *lanes = cuda_state(backend)->lanes;
    TRY_CUDA(cudaEventRecord(lanes->forked, lanes->lane[0].stream));
    for (int i = 1; i < N_LANE; i++)
        TRY_CUDA(cudaStreamWaitEvent(lanes->lane[i].stream, lanes->forked, 0));
    return OK;
}

void cuda_lanes_enter(struct backend *backend, int lane) {
    struct cuda_state *state = cuda_state(backend);
    state->compute = state->lanes->lane[lane].stream;
    state->cublas = state->lanes->lane[lane].cublas;
}

enum status cuda_lanes_join(struct backend *backend) {
    struct cuda_lanes *lanes = cuda_state(backend)->lanes;
    cuda_lanes_enter(backend, 0);
    for (int i = 1; i < N_LANE; i++) {
        TRY_CUDA(cudaEventRecord(lanes->lane[i].ended, lanes->lane[i].stream));
        TRY_CUDA(cudaStreamWaitEvent(lanes->lane[0].stream, lanes->lane[i].ended, 0));
    }
    return OK;
}
