// Memory of the cuda backend: allocations, transfers on the compute stream, scratch, host tables.
// Pageable host memory is never handed to the device: it passes through pinned buffers, so that a
// caller may reuse its own at once and no call blocks where while_waiting cannot be asked.
#include "kernels/cuda/memory.cuh"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

static const int64_t kSegmentBytes = 4 << 20; // grows to the largest table
static const int64_t kLandingBytes = 4 << 20;
static const int64_t kAlignment = 256;
static const int64_t kRowAlignment = 16; // of a weight's rows: vector loads, cuBLAS

static int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

int64_t cuda_memory_fixed_bytes(void) {
    return STAGE_SEGMENTS * kSegmentBytes + cuda_steps_bytes();
}

struct cuda_ledger {
    std::unordered_map<void *, int64_t> bytes;
    std::vector<cuda_stage_ring> outgrown; // rings whose tables queued work may still read
};

static enum status device_alloc(struct cuda_memory *memory, int64_t bytes, void **out) {
    *out = NULL;
    if (bytes < 0) FAIL(ERR_INTERNAL, "asked to allocate %lld bytes", (long long)bytes);
    bytes = std::max(bytes, kAlignment);
    cudaError_t error = cudaMalloc(out, (size_t)bytes);
    if (error == cudaSuccess) {
        memory->ledger->bytes[*out] = bytes;
        memory->bytes += bytes;
        memory->peak_bytes = std::max(memory->peak_bytes, memory->bytes);
        return OK;
    }
    *out = NULL;
    if (error != cudaErrorMemoryAllocation)
        return cuda_fail(error, __FILE__ ":" STATUS_TEXT(__LINE__), "cudaMalloc");
    (void)cudaGetLastError();
    size_t n_free = 0, n_all = 0;
    (void)cudaMemGetInfo(&n_free, &n_all);
    FAIL(ERR_MEMORY,
         "cannot allocate %lld bytes on the GPU, %zu of %zu are free: use more ranks or a smaller "
         "prefill chunk",
         (long long)bytes, n_free, n_all);
}

static void device_free(struct cuda_memory *memory, void *p) {
    if (!p) return;
    memory->bytes -= memory->ledger->bytes[p];
    memory->ledger->bytes.erase(p);
    (void)cudaFree(p); // waits for the device itself
}

static enum status refuse_in_step(const struct backend *backend, const char *verb) {
    if (!cuda_steps_keeping(cuda_state(backend))) return OK;
    FAIL(ERR_INTERNAL, "a step of work that is kept for later %s", verb);
}

enum status cuda_device_memory(struct backend *backend, struct device_memory *out) {
    size_t n_free = 0, n_all = 0;
    TRY_CUDA(cudaMemGetInfo(&n_free, &n_all));
    out->available = (int64_t)n_free;
    out->total = (int64_t)n_all;
    out->peak = cuda_state(backend)->memory->peak_bytes;
    return OK;
}

// The ring and its twin; events of segments exist already.
static enum status ring_alloc(struct cuda_memory *memory, int64_t segment_bytes) {
    struct cuda_stage_ring *ring = &memory->ring;
    int64_t bytes = STAGE_SEGMENTS * segment_bytes;
    void *host = NULL, *device = NULL;
    TRY_CUDA(cudaHostAlloc(&host, (size_t)bytes, cudaHostAllocDefault));
    enum status status = device_alloc(memory, bytes, &device);
    if (status != OK) {
        (void)cudaFreeHost(host);
        return status;
    }
    ring->host = (uint8_t *)host;
    ring->device = (uint8_t *)device;
    ring->segment_bytes = segment_bytes;
    ring->segment = 0;
    ring->used = 0;
    for (int i = 0; i < STAGE_SEGMENTS; i++) ring->is_left[i] = false;
    return OK;
}

static void ring_free(struct cuda_memory *memory, struct cuda_stage_ring *ring) {
    (void)cudaFreeHost(ring->host);
    device_free(memory, ring->device);
}

// Once the device has done what was queued.
static void free_outgrown(struct cuda_memory *memory) {
    for (struct cuda_stage_ring &ring : memory->ledger->outgrown) ring_free(memory, &ring);
    memory->ledger->outgrown.clear();
}

// An operation that stages a table after another may queue its work later than both: the ring that
// holds the first outlives the growth.
static enum status ring_grow(struct cuda_memory *memory, int64_t segment_bytes) {
    const struct cuda_stage_ring before = memory->ring;
    enum status status = ring_alloc(memory, segment_bytes);
    if (status == OK) memory->ledger->outgrown.push_back(before);
    return status;
}

enum status cuda_memory_open(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    struct cuda_memory *memory = (struct cuda_memory *)calloc(1, sizeof *memory);
    void *fault = NULL;
    if (!memory) FAIL(ERR_MEMORY, "cannot allocate %zu bytes", sizeof *memory);
    memory->ledger = new cuda_ledger;
    state->memory = memory;
    for (int i = 0; i < STAGE_SEGMENTS; i++)
        TRY_CUDA(cudaEventCreateWithFlags(&memory->ring.left[i], cudaEventDisableTiming));
    for (int i = 0; i < COPY_TICKETS; i++)
        TRY_CUDA(cudaEventCreateWithFlags(&memory->ticket[i], cudaEventDisableTiming));
    TRY_CUDA(cudaEventCreateWithFlags(&memory->work, cudaEventDisableTiming));
    TRY_CUDA(cudaEventCreateWithFlags(&memory->copies, cudaEventDisableTiming));
    TRY(ring_alloc(memory, kSegmentBytes));
    TRY_CUDA(cudaHostAlloc(&memory->landing.host, (size_t)kLandingBytes, cudaHostAllocDefault));
    TRY_CUDA(cudaHostAlloc(&memory->fault, sizeof *memory->fault, cudaHostAllocDefault));
    TRY(device_alloc(memory, sizeof *state->fault, &fault));
    state->fault = (struct cuda_fault *)fault;
    TRY_CUDA(cudaMemsetAsync(state->fault, 0, sizeof *state->fault, state->compute));
    return OK;
}

static void destroy_event(cudaEvent_t event) {
    if (event) (void)cudaEventDestroy(event);
}

void cuda_memory_close(struct cuda_state *state) {
    struct cuda_memory *memory = state->memory;
    if (!memory) return;
    for (int i = 0; i < STAGE_SEGMENTS; i++) destroy_event(memory->ring.left[i]);
    for (int i = 0; i < COPY_TICKETS; i++) destroy_event(memory->ticket[i]);
    destroy_event(memory->work);
    destroy_event(memory->copies);
    free_outgrown(memory);
    ring_free(memory, &memory->ring);
    (void)cudaFreeHost(memory->landing.host);
    (void)cudaFreeHost(memory->fault);
    device_free(memory, state->fault);
    device_free(memory, memory->scratch);
    delete memory->ledger;
    free(memory);
    state->memory = NULL;
    state->fault = NULL;
}

enum status cuda_alloc(struct backend *backend, int64_t bytes, void **out) {
    TRY(refuse_in_step(backend, "allocates"));
    return device_alloc(cuda_state(backend)->memory, bytes, out);
}

enum status cuda_memory_take(struct backend *backend, int64_t bytes, void **out) {
    return device_alloc(cuda_state(backend)->memory, bytes, out);
}

void cuda_free(struct backend *backend, void *p) {
    device_free(cuda_state(backend)->memory, p);
}

// What `query` says of queued work: whether it has ended. NotReady is no error to keep.
static enum status has_ended(cudaError_t query, bool *out) {
    *out = query == cudaSuccess;
    if (query == cudaSuccess) return OK;
    if (query != cudaErrorNotReady)
        return cuda_fail(query, __FILE__ ":" STATUS_TEXT(__LINE__), "work on the GPU");
    (void)cudaGetLastError();
    return OK;
}

static enum status ask_while_waiting(struct backend *backend) {
    if (backend->while_waiting) TRY(backend->while_waiting(backend->waiting_user));
    (void)sched_yield();
    return OK;
}

enum status cuda_wait_event(struct backend *backend, cudaEvent_t event) {
    for (bool ended = false;;) {
        TRY(has_ended(cudaEventQuery(event), &ended));
        if (ended) return OK;
        TRY(ask_while_waiting(backend));
    }
}

static enum status wait_for_compute(struct backend *backend) {
    TRY(refuse_in_step(backend, "waits for the GPU"));
    for (bool ended = false;;) {
        TRY(has_ended(cudaStreamQuery(cuda_state(backend)->compute), &ended));
        if (ended) return OK;
        TRY(ask_while_waiting(backend));
    }
}

enum status cuda_scratch(struct backend *backend, int64_t bytes, void **out) {
    struct cuda_memory *memory = cuda_state(backend)->memory;
    *out = memory->scratch;
    if (bytes <= memory->scratch_bytes) return OK;
    if (cuda_steps_keeping(cuda_state(backend))) bytes += bytes / 2; // not again at each step
    if (!memory->scratch || !cuda_steps_retire(backend, memory->scratch)) {
        TRY(wait_for_compute(backend));
        device_free(memory, memory->scratch);
    }
    memory->scratch = NULL;
    memory->scratch_bytes = 0;
    bytes = round_up(bytes, kAlignment);
    TRY(device_alloc(memory, bytes, &memory->scratch));
    memory->scratch_bytes = bytes;
    *out = memory->scratch;
    return OK;
}

// Moves on to the next segment, once the copies that were queued out of it have ended.
static enum status leave_segment(struct backend *backend, struct cuda_stage_ring *ring) {
    TRY_CUDA(cudaEventRecord(ring->left[ring->segment], cuda_state(backend)->compute));
    ring->is_left[ring->segment] = true;
    ring->segment = (ring->segment + 1) % STAGE_SEGMENTS;
    ring->used = 0;
    if (ring->is_left[ring->segment]) TRY(cuda_wait_event(backend, ring->left[ring->segment]));
    return OK;
}

// Room for `bytes` in the ring: host and device memory. Work queued earlier may still read the
// device's side; what is queued from now on comes after it.
static enum status stage_take(struct backend *backend, int64_t bytes, uint8_t **host,
                              uint8_t **device) {
    struct cuda_memory *memory = cuda_state(backend)->memory;
    struct cuda_stage_ring *ring = &memory->ring;
    if (cuda_steps_keeping(cuda_state(backend)))
        return cuda_steps_stage(backend, round_up(bytes, kAlignment), host, device);
    if (bytes > ring->segment_bytes) TRY(ring_grow(memory, round_up(bytes, kSegmentBytes)));
    if (ring->used + bytes > ring->segment_bytes) TRY(leave_segment(backend, ring));
    int64_t offset = ring->segment * ring->segment_bytes + ring->used;
    *host = ring->host + offset;
    *device = ring->device + offset;
    ring->used += round_up(bytes, kAlignment);
    return OK;
}

enum status cuda_stage(struct backend *backend, const void *host, int64_t bytes, const void **out) {
    uint8_t *pinned = NULL, *twin = NULL;
    TRY(stage_take(backend, bytes, &pinned, &twin));
    *out = twin;
    if (bytes == 0) return OK;
    memcpy(pinned, host, (size_t)bytes);
    TRY_CUDA(cudaMemcpyAsync(twin, pinned, (size_t)bytes, cudaMemcpyHostToDevice,
                             cuda_state(backend)->compute));
    return OK;
}

// Rows of `row_bytes`, to_stride apart on the device and host_stride apart in host memory. Wide
// rows and many rows go in parts of a segment: filling one overlaps the copy of the other.
static enum status upload_rows(struct backend *backend, void *to, int64_t to_stride,
                               const void *host, int64_t host_stride, int64_t row_bytes,
                               int64_t n_row) {
    struct cuda_stage_ring *ring = &cuda_state(backend)->memory->ring;
    int64_t at_once = std::min(n_row, std::max<int64_t>(1, ring->segment_bytes / to_stride));
    uint8_t *pinned = NULL, *twin = NULL;
    for (int64_t row = 0; row < n_row; row += at_once) {
        int64_t n = std::min(at_once, n_row - row);
        int64_t bytes = (n - 1) * to_stride + row_bytes;
        TRY(stage_take(backend, bytes, &pinned, &twin));
        const uint8_t *from = (const uint8_t *)host + row * host_stride;
        if (to_stride == host_stride)
            memcpy(pinned, from, (size_t)bytes);
        else
            for (int64_t i = 0; i < n; i++)
                memcpy(pinned + i * to_stride, from + i * host_stride, (size_t)row_bytes);
        TRY_CUDA(cudaMemcpyAsync((uint8_t *)to + row * to_stride, pinned, (size_t)bytes,
                                 cudaMemcpyHostToDevice, cuda_state(backend)->compute));
    }
    return OK;
}

enum status cuda_upload(struct backend *backend, void *to, const void *host, int64_t bytes) {
    int64_t at_once = cuda_state(backend)->memory->ring.segment_bytes;
    for (int64_t at = 0; at < bytes; at += at_once) {
        int64_t n = std::min(at_once, bytes - at);
        TRY(upload_rows(backend, (uint8_t *)to + at, n, (const uint8_t *)host + at, n, n, 1));
    }
    return OK;
}

// Waits and puts what has landed where it belongs.
static enum status land(struct backend *backend) {
    struct cuda_landing *landing = &cuda_state(backend)->memory->landing;
    TRY(wait_for_compute(backend));
    for (int i = 0; i < landing->n_part; i++)
        memcpy(landing->part[i].to, landing->host + landing->part[i].offset,
               (size_t)landing->part[i].bytes);
    landing->n_part = 0;
    landing->used = 0;
    return OK;
}

enum status cuda_download(struct backend *backend, void *host, const void *from, int64_t bytes) {
    struct cuda_landing *landing = &cuda_state(backend)->memory->landing;
    TRY(refuse_in_step(backend, "downloads"));
    for (int64_t at = 0, n; at < bytes; at += n) {
        if (landing->used >= kLandingBytes || landing->n_part == LANDING_PARTS) TRY(land(backend));
        n = std::min(bytes - at, kLandingBytes - landing->used);
        TRY_CUDA(cudaMemcpyAsync(landing->host + landing->used, (const uint8_t *)from + at,
                                 (size_t)n, cudaMemcpyDeviceToHost, cuda_state(backend)->compute));
        landing->part[landing->n_part].to = (uint8_t *)host + at;
        landing->part[landing->n_part].offset = landing->used;
        landing->part[landing->n_part].bytes = n;
        landing->n_part++;
        landing->used += round_up(n, kAlignment);
    }
    return OK;
}

enum status cuda_copy(struct backend *backend, void *to, const void *from, int64_t bytes) {
    if (bytes == 0 || to == from) return OK;
    TRY_CUDA(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice,
                             cuda_state(backend)->compute));
    return OK;
}

static enum status check_fault(struct cuda_state *state) {
    const struct cuda_fault fault = *state->memory->fault;
    if (fault.kind == CUDA_FAULT_NONE) return OK;
    TRY_CUDA(cudaMemsetAsync(state->fault, 0, sizeof *state->fault, state->compute));
    FAIL(ERR_INPUT, "the indexer's score of query %lld on token %lld is not a number",
         fault.query_position, fault.key_position);
}

enum status cuda_sync(struct backend *backend) {
    struct cuda_state *state = cuda_state(backend);
    TRY(refuse_in_step(backend, "waits for the GPU"));
    TRY_CUDA(cudaMemcpyAsync(state->memory->fault, state->fault, sizeof *state->fault,
                             cudaMemcpyDeviceToHost, state->compute));
    cuda_phase(backend, -1);
    TRY(land(backend));
    free_outgrown(state->memory);
    cuda_phases_add(backend);
    return check_fault(state);
}

// Rows keep their format but begin at multiples of 16 bytes. Of the block scales, the rows that
// this matrix touches follow its data.
enum status cuda_load_weight(struct backend *backend, const struct weight *host,
                             struct weight *out) {
    struct weight loaded = *host;
    int64_t used_bytes = dtype_bytes(host->dtype, host->n_col);
    loaded.row_bytes = round_up(used_bytes, kRowAlignment);
    int64_t data_bytes = round_up(host->n_row * loaded.row_bytes, kAlignment);
    loaded.first_row = host->first_row % WEIGHT_SCALE_BLOCK;
    int64_t n_scale_row =
        (loaded.first_row + host->n_row + WEIGHT_SCALE_BLOCK - 1) / WEIGHT_SCALE_BLOCK;
    int64_t n_scale = host->scale ? n_scale_row * host->scale_stride : 0;
    void *data = NULL;
    *out = (struct weight){};
    TRY(device_alloc(cuda_state(backend)->memory, data_bytes + n_scale * (int64_t)sizeof(float),
                     &data));
    enum status status = upload_rows(backend, data, loaded.row_bytes, host->data, host->row_bytes,
                                     used_bytes, host->n_row);
    if (host->scale) {
        float *scale = (float *)((uint8_t *)data + data_bytes);
        const float *from = host->scale + host->first_row / WEIGHT_SCALE_BLOCK * host->scale_stride;
        if (status == OK)
            status = cuda_upload(backend, scale, from, n_scale * (int64_t)sizeof(float));
        loaded.scale = scale;
    }
    loaded.data = data;
    if (status == OK)
        *out = loaded;
    else
        cuda_free(backend, data);
    return status;
}

void cuda_unload_weight(struct backend *backend, struct weight *weight) {
    cuda_free(backend, (void *)weight->data);
    *weight = (struct weight){};
}
