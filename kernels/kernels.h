// The mathematics on one rank's buffers: one table of operations, filled by kernels/reference,
// kernels/cpu or kernels/cuda. Arguments of an operation are one struct with a shape at every
// pointer: attention.h, dense.h, sparse.h, experts.h. Pointers are in the backend's memory unless
// marked host. Rows are tokens, row-major; a stride counts elements between consecutive tokens.
// Work is queued in order until sync(). Every entry is required unless marked optional. Nothing
// here knows about ranks.
#ifndef HALKA_KERNELS_KERNELS_H
#define HALKA_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/attention.h"
#include "kernels/dense.h"
#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum memory { MEMORY_HOST, MEMORY_DEVICE };

struct kernel_ops;
struct backend {
    const struct kernel_ops *ops;
    enum memory memory;
    bool bf16_products; // the processor multiplies bf16 natively: `auto` precision means bf16
    // fp32 products of many tokens may round their inputs to tf32 (10 bits of mantissa) where that
    // is faster: chosen by the session, false until then.
    bool tf32;
    unsigned char device_id[16]; // MEMORY_DEVICE: differs between any two devices of a job
    char device_name[64];        // likewise: "NVIDIA H100 80GB HBM3"
    void *state;                 // owned by the backend
    // Called again and again while the host waits in sync(), which returns what it returns: a
    // transport's look at its peers and deadline. NULL: nobody looks.
    enum status (*while_waiting)(void *user);
    void *waiting_user;
    // Where a device adds up the seconds of its work by phase (see kernel_ops.phase); NULL:
    // nowhere.
    double *phase_seconds;
};

struct scratch_shape {
    int64_t n_token, n_key; // most tokens of one product or attention, most keys of one attention
    int64_t n_hidden;       // columns of the vocabulary's matrices
    int64_t widest_row;     // columns of the layers' matrices, and the elements of the largest
    int64_t largest_weight;
    int n_head, head_dim, value_dim;
    int index_k, n_index_head, index_dim; // of the lightning indexer; 0: there is none
};

// Copies between the device and pinned host memory, beside the computation, for transports. They
// run in order on a queue of their own; a ticket says when one has ended. Only where memory is
// DEVICE.
struct copy_ops {
    enum status (*pin)(struct backend *, int64_t bytes, void **host);
    void (*unpin)(struct backend *, void *host);
    enum status (*after_work)(struct backend *);  // later copies wait for the work queued so far
    enum status (*before_work)(struct backend *); // later work waits for the copies queued so far
    enum status (*out)(struct backend *, void *host, const void *from, int64_t bytes,
                       int64_t *ticket);
    enum status (*in)(struct backend *, void *to, const void *host, int64_t bytes, int64_t *ticket);
    // Tickets end in order; of the last COPY_TICKETS, older ones have ended.
    enum status (*ended)(struct backend *, int64_t ticket, bool *out);
};
enum { COPY_TICKETS = 64 };

// A step of work, queued once as a whole: what is queued from begin to end is kept, not done, and
// launch queues it all. One step is kept at a time, begin forgets the last; other work may come
// between end and launch. A step neither waits for the device nor allocates nor downloads; host
// tables are read when they are queued. Cheap to begin again where a step is like one before it.
struct step_ops {
    enum status (*begin)(struct backend *);
    enum status (*end)(struct backend *, bool keep); // keep = false: something failed, forget it
    enum status (*launch)(struct backend *);
    // Drops what is remembered of earlier steps, before a transport whose work they hold closes.
    void (*forget)(struct backend *);
};

struct device_memory {        // bytes
    int64_t available, total; // of the whole device
    int64_t peak;             // most that this backend held
};

struct quantize_args; // DeepSeek Sparse Attention: kernels/sparse.h
struct index_args;
struct sparse_attention_args;
struct index_merge_args;
struct index_filter_args;
struct select_rows_args;
struct expert_gate_args; // mixture of experts: kernels/experts.h
struct grouped_matmul_args;
struct chosen_matmul_args;
struct expert_combine_args;

struct kernel_ops {
    const char *name; // "reference", "cpu", "cuda"
    void (*close)(struct backend *);
    enum status (*alloc)(struct backend *, int64_t bytes,
                         void **out); // 64-byte aligned, not zeroed
    void (*free)(struct backend *, void *);
    enum status (*upload)(struct backend *, void *to, const void *host, int64_t bytes);
    enum status (*download)(struct backend *, void *host, const void *from, int64_t bytes);
    // From backend memory to backend memory; the ranges do not overlap, or are the same.
    enum status (*copy)(struct backend *, void *to, const void *from, int64_t bytes);
    enum status (*sync)(struct backend *);
    const struct copy_ops *copies; // NULL where memory is the host's
    const struct step_ops *steps;  // NULL where work ends with its call
    // What is queued from here on counts as this phase, until the next or sync(), which adds the
    // device's time to backend->phase_seconds[phase]. NULL where work ends with its call.
    void (*phase)(struct backend *, int phase);
    // NULL where memory is the host's.
    enum status (*device_memory)(struct backend *, struct device_memory *);
    // Makes a host (mapped) matrix usable; a host backend keeps the mapping itself.
    enum status (*load_weight)(struct backend *, const struct weight *host, struct weight *out);
    void (*unload_weight)(struct backend *, struct weight *);

    enum status (*embed)(struct backend *, const struct embed_args *);
    enum status (*norm)(struct backend *, const struct norm_args *);
    enum status (*matmul)(struct backend *, const struct matmul_args *);
    enum status (*matmul_each)(struct backend *, const struct matmul_each_args *);
    enum status (*rope)(struct backend *, const struct rope_args *);
    enum status (*rope_each)(struct backend *, const struct rope_each_args *);
    enum status (*gate)(struct backend *, const struct gate_args *);
    enum status (*add)(struct backend *, const struct add_args *);
    enum status (*multiply)(struct backend *, const struct multiply_args *);
    enum status (*convert)(struct backend *, const struct convert_args *);
    enum status (*copy_blocks)(struct backend *, const struct copy_blocks_args *);
    enum status (*attention)(struct backend *, const struct attention_args *);
    enum status (*merge_partials)(struct backend *, const struct merge_args *);
    enum status (*attention_mass)(struct backend *, const struct attention_mass_args *);
    enum status (*logprob)(struct backend *, const struct logprob_args *);
    enum status (*sample)(struct backend *, const struct sample_args *);
    enum status (*quantize)(struct backend *, const struct quantize_args *);
    enum status (*index_top_k)(struct backend *, const struct index_args *);
    enum status (*index_merge)(struct backend *, const struct index_merge_args *);
    enum status (*index_filter)(struct backend *, const struct index_filter_args *);
    enum status (*select_rows)(struct backend *, const struct select_rows_args *);
    enum status (*sparse_attention)(struct backend *, const struct sparse_attention_args *);
    enum status (*expert_gate)(struct backend *, const struct expert_gate_args *);
    enum status (*grouped_matmul)(struct backend *, const struct grouped_matmul_args *);
    enum status (*chosen_matmul)(struct backend *, const struct chosen_matmul_args *);
    enum status (*expert_combine)(struct backend *, const struct expert_combine_args *);
    // Bytes the backend itself needs at most for these sizes (expanded panels, tiles): for `plan`.
    int64_t (*scratch_bytes)(const struct backend *, const struct scratch_shape *);
};

enum backend_kind { BACKEND_AUTO, BACKEND_REFERENCE, BACKEND_CPU, BACKEND_CUDA };
enum isa { ISA_AUTO, ISA_PLAIN, ISA_AVX2, ISA_AVX512, ISA_AVX512_BF16 }; // best allowed for cpu
struct backend_options {
    enum backend_kind kind;
    enum isa isa; // a limit; what the processor lacks is never used
    int n_thread; // of this rank; at least 1
    int device;   // cuda: which of the devices this process sees
    // cuda: take the kernels that a device of this compute capability (80, 90, ...: 10 * major +
    // minor) would take, which this one must be able to run; 0: its own.
    int architecture;
};

// Opens a backend. ERR_CONFIG when this build or machine lacks it. close accepts a zeroed struct.
// Backends of one process share one device: CUDA's current device is the process's.
enum status backend_open(const struct backend_options *options, struct backend *out);
void backend_close(struct backend *backend);
// Devices that this process may use by such options; 0: the backend computes on the host.
int backend_device_count(enum backend_kind kind);

#ifdef __cplusplus
}
#endif
#endif
