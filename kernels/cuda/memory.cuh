// What backend_cuda.cu and memory.cu share: the entries of the operations table that move bytes,
// and the buffers behind them.
#ifndef HALKA_KERNELS_CUDA_MEMORY_CUH
#define HALKA_KERNELS_CUDA_MEMORY_CUH

#include "kernels/cuda/cuda.cuh"

enum { STAGE_SEGMENTS = 4, LANDING_PARTS = 64 };

// A ring of pinned host memory and its twin on the device. A segment is written again only after
// the copies out of it have ended; requests never straddle segments.
struct cuda_stage_ring {
    uint8_t *host, *device; // [STAGE_SEGMENTS, segment_bytes]
    int64_t segment_bytes;
    int segment;  // in use
    int64_t used; // bytes of it
    cudaEvent_t left[STAGE_SEGMENTS];
    bool is_left[STAGE_SEGMENTS]; // its event was recorded
};

// Downloads land in pinned memory and reach their place in sync().
struct cuda_landing {
    uint8_t *host;
    int64_t used;
    int n_part;
    struct {
        void *to;
        int64_t offset, bytes;
    } part[LANDING_PARTS];
};

struct cuda_ledger; // what each allocation holds
struct cuda_memory {
    struct cuda_ledger *ledger;
    int64_t bytes, peak_bytes; // allocated on the device
    void *scratch;
    int64_t scratch_bytes;
    struct cuda_stage_ring ring;
    struct cuda_landing landing;
    struct cuda_fault *fault; // pinned: where sync() reads the device's record
    cudaEvent_t work, copies; // for after_work and before_work
    cudaEvent_t ticket[COPY_TICKETS];
    int64_t n_ticket; // handed out so far
};

// Of an opened state; close accepts one that failed half-way.
enum status cuda_memory_open(struct backend *backend);
void cuda_memory_close(struct cuda_state *state);
// Device memory held from the start or in every decode, for `plan`.
int64_t cuda_memory_fixed_bytes(void);

enum status cuda_alloc(struct backend *backend, int64_t bytes, void **out);
enum status cuda_memory_take(struct backend *backend, int64_t bytes, void **out); // in steps too
void cuda_free(struct backend *backend, void *p);
enum status cuda_upload(struct backend *backend, void *to, const void *host, int64_t bytes);
enum status cuda_download(struct backend *backend, void *host, const void *from, int64_t bytes);
enum status cuda_copy(struct backend *backend, void *to, const void *from, int64_t bytes);
enum status cuda_sync(struct backend *backend);
enum status cuda_load_weight(struct backend *backend, const struct weight *host,
                             struct weight *out);
void cuda_unload_weight(struct backend *backend, struct weight *weight);

// copies.cu
extern const struct copy_ops cuda_copies;

enum status cuda_device_memory(struct backend *backend, struct device_memory *out);

// phase.cu. add: after the device has done all that was queued.
enum status cuda_phases_open(struct cuda_state *state);
void cuda_phases_close(struct cuda_state *state);
void cuda_phase(struct backend *backend, int phase);
void cuda_phases_add(struct backend *backend);

// step.cu. Work queued by the backend is being kept for later.
extern const struct step_ops cuda_steps_ops;
enum status cuda_steps_open(struct backend *backend);
void cuda_steps_close(struct backend *backend);
// Device memory of tables and graphs, for `plan`.
int64_t cuda_steps_bytes(void);
bool cuda_steps_keeping(const struct cuda_state *state);
// Room for a host table of the step being kept: pinned memory and its twin on the device, untouched
// until the step has run.
enum status cuda_steps_stage(struct backend *backend, int64_t bytes, uint8_t **host,
                             uint8_t **device);
// Takes a scratch that a step may still use, to free it later; false: no step does.
bool cuda_steps_retire(struct backend *backend, void *scratch);

// backend_cuda.cu. A handle that queues on the stream, with a workspace of so many bytes.
enum status cuda_cublas_open(struct backend *backend, cudaStream_t stream, int64_t workspace_bytes,
                             cublasHandle_t *out, void **workspace);

// Waits for an event without blocking, asking while_waiting meanwhile.
enum status cuda_wait_event(struct backend *backend, cudaEvent_t event);

#endif
