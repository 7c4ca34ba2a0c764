// What the files of the cuda backend share. Work is queued on one stream in order; copies for the
// transports run on another. Operations never wait for the device: what a kernel finds wrong it
// writes to the fault record, which sync() reads and turns into a status.
#ifndef HALKA_KERNELS_CUDA_CUDA_CUH
#define HALKA_KERNELS_CUDA_CUDA_CUH

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include "kernels/cuda/open.h"
#include "kernels/experts.h"
#include "kernels/kernels.h"
#include "kernels/sparse.h"

// The first error that a kernel met since the last sync().
enum cuda_fault_kind { CUDA_FAULT_NONE, CUDA_FAULT_NAN_SCORE };
struct cuda_fault {
    int kind; // set last, by one thread: atomicCAS from NONE
    long long query_position, key_position;
};

struct cuda_steps;  // step.cu
struct cuda_memory; // memory.cu: the pool, the scratch and the staging of host tables
struct cuda_state {
    int device;
    int architecture;     // 10 * major + minor of the compute capability: 80, 90, ...
    int n_multiprocessor; // to size grids that fill the device once
    int shared_bytes;     // most dynamic shared memory of a block, after opting in
    cudaStream_t compute, copy;
    cublasHandle_t cublas; // queues on `compute`
    void *cublas_workspace;
    struct cuda_memory *memory;
    struct cuda_phases *phases; // phase.cu
    struct cuda_steps *steps;
    struct cuda_lanes *lanes; // lanes.cu; NULL until products run side by side
    struct cuda_fault *fault; // device memory
};

static inline struct cuda_state *cuda_state(const struct backend *b) {
    return (struct cuda_state *)b->state;
}

// ERR_MEMORY for an allocation that failed, ERR_INTERNAL for the rest; names the call.
enum status cuda_fail(cudaError_t error, const char *where, const char *what);
enum status cublas_fail(cublasStatus_t error, const char *where, const char *what);
#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t cuda_error_ = (call);                                                          \
        if (cuda_error_ != cudaSuccess)                                                            \
            return cuda_fail(cuda_error_, __FILE__ ":" STATUS_TEXT(__LINE__), #call);              \
    } while (0)
#define TRY_CUBLAS(call)                                                                           \
    do {                                                                                           \
        cublasStatus_t cublas_error_ = (call);                                                     \
        if (cublas_error_ != CUBLAS_STATUS_SUCCESS)                                                \
            return cublas_fail(cublas_error_, __FILE__ ":" STATUS_TEXT(__LINE__), #call);          \
    } while (0)

// memory.cu. Room for one operation, 256-byte aligned; the operation queued next may overwrite it.
// Grows to the largest request, which waits for the device: plan for it by scratch_bytes.
enum status cuda_scratch(struct backend *backend, int64_t bytes, void **out);
// A host table of the arguments (positions, runs, weights) as device memory, valid for the
// operation being queued. The host's may change as soon as this returns.
enum status cuda_stage(struct backend *backend, const void *host, int64_t bytes, const void **out);

// dequantise.cu
enum status cuda_embed(struct backend *backend, const struct embed_args *args);
// elementwise.cu
enum status cuda_norm(struct backend *backend, const struct norm_args *args);
enum status cuda_rope(struct backend *backend, const struct rope_args *args);
enum status cuda_rope_each(struct backend *backend, const struct rope_each_args *args);
enum status cuda_gate(struct backend *backend, const struct gate_args *args);
enum status cuda_add(struct backend *backend, const struct add_args *args);
enum status cuda_multiply(struct backend *backend, const struct multiply_args *args);
enum status cuda_convert(struct backend *backend, const struct convert_args *args);
// copy_blocks.cu
enum status cuda_copy_blocks(struct backend *backend, const struct copy_blocks_args *args);
// sample.cu
enum status cuda_sample(struct backend *backend, const struct sample_args *args);
// quantize.cu
enum status cuda_quantize(struct backend *backend, const struct quantize_args *args);
// matmul.cu, logprob.cu
enum status cuda_matmul(struct backend *backend, const struct matmul_args *args);
enum status cuda_matmul_each(struct backend *backend, const struct matmul_each_args *args);
enum status cuda_logprob(struct backend *backend, const struct logprob_args *args);
int64_t cuda_matmul_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s);
int64_t cuda_logprob_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s);
// attention.cu, attention_merge.cu, attention_mass.cu
enum status cuda_attention(struct backend *backend, const struct attention_args *args);
enum status cuda_merge_partials(struct backend *backend, const struct merge_args *args);
enum status cuda_attention_mass(struct backend *backend, const struct attention_mass_args *args);
int64_t cuda_attention_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s);
// index.cu, index_candidates.cu, sparse_attention.cu
enum status cuda_index_top_k(struct backend *backend, const struct index_args *args);
enum status cuda_index_merge(struct backend *backend, const struct index_merge_args *args);
enum status cuda_index_filter(struct backend *backend, const struct index_filter_args *args);
enum status cuda_select_rows(struct backend *backend, const struct select_rows_args *args);
enum status cuda_sparse_attention(struct backend *backend,
                                  const struct sparse_attention_args *args);
int64_t cuda_index_scratch_bytes(const struct cuda_state *state, const struct scratch_shape *s);
// experts.cu
enum status cuda_expert_gate(struct backend *backend, const struct expert_gate_args *args);
enum status cuda_grouped_matmul(struct backend *backend, const struct grouped_matmul_args *args);
enum status cuda_chosen_matmul(struct backend *backend, const struct chosen_matmul_args *args);
enum status cuda_expert_combine(struct backend *backend, const struct expert_combine_args *args);

#endif
