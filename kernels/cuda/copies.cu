// Copies between the device and pinned host memory on a stream of their own, for transports. A
// ticket is the number of a copy; the event that ends it is one of a ring of COPY_TICKETS.
#include "kernels/cuda/memory.cuh"

static enum status copies_pin(struct backend *backend, int64_t bytes, void **host) {
    (void)backend;
    *host = NULL;
    cudaError_t error = cudaHostAlloc(host, (size_t)(bytes > 0 ? bytes : 1), cudaHostAllocDefault);
    if (error == cudaSuccess) return OK;
    (void)cudaGetLastError();
    *host = NULL;
    FAIL(ERR_MEMORY, "cannot pin %lld bytes of host memory: %s", (long long)bytes,
         cudaGetErrorString(error));
}

static void copies_unpin(struct backend *backend, void *host) {
    (void)backend;
    (void)cudaFreeHost(host);
}

static enum status copies_after_work(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    TRY_CUDA(cudaEventRecord(state->memory->work, state->compute));
    TRY_CUDA(cudaStreamWaitEvent(state->copy, state->memory->work, 0));
    return OK;
}

static enum status copies_before_work(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    TRY_CUDA(cudaEventRecord(state->memory->copies, state->copy));
    TRY_CUDA(cudaStreamWaitEvent(state->compute, state->memory->copies, 0));
    return OK;
}

// The event of a ticket is used again only when the copy it belonged to has ended.
static enum status queue_copy(struct backend *backend, void *to, const void *from, int64_t bytes,
                              cudaMemcpyKind kind, int64_t *ticket) {
    struct cuda_state *state = cuda_state(backend);
    struct cuda_memory *memory = state->memory;
    cudaEvent_t event = memory->ticket[memory->n_ticket % COPY_TICKETS];
    if (memory->n_ticket >= COPY_TICKETS) TRY(cuda_wait_event(backend, event));
    if (bytes > 0) TRY_CUDA(cudaMemcpyAsync(to, from, (size_t)bytes, kind, state->copy));
    TRY_CUDA(cudaEventRecord(event, state->copy));
    *ticket = memory->n_ticket++;
    return OK;
}

static enum status copies_out(struct backend *backend, void *host, const void *from, int64_t bytes,
                              int64_t *ticket) {
    return queue_copy(backend, host, from, bytes, cudaMemcpyDeviceToHost, ticket);
}

static enum status copies_in(struct backend *backend, void *to, const void *host, int64_t bytes,
                             int64_t *ticket) {
    return queue_copy(backend, to, host, bytes, cudaMemcpyHostToDevice, ticket);
}

static enum status copies_ended(struct backend *backend, int64_t ticket, bool *out) {
    struct cuda_memory *memory = cuda_state(backend)->memory;
    *out = true;
    if (ticket < memory->n_ticket - COPY_TICKETS) return OK;
    cudaError_t error = cudaEventQuery(memory->ticket[ticket % COPY_TICKETS]);
    *out = error == cudaSuccess;
    if (error == cudaSuccess) return OK;
    if (error != cudaErrorNotReady)
        return cuda_fail(error, __FILE__ ":" STATUS_TEXT(__LINE__), "a copy beside the work");
    (void)cudaGetLastError();
    return OK;
}

const struct copy_ops cuda_copies = {
    .pin = copies_pin,
    .unpin = copies_unpin,
    .after_work = copies_after_work,
    .before_work = copies_before_work,
    .out = copies_out,
    .in = copies_in,
    .ended = copies_ended,
};
