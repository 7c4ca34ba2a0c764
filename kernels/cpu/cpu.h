// What the files of the cpu backend share. Files with the suffix _avx2, _avx512 or _avx512bf16 hold
// one instruction set each and are reached only through tables chosen in backend_cpu.c.
#ifndef HALKA_KERNELS_CPU_CPU_H
#define HALKA_KERNELS_CPU_CPU_H

#include "kernels/sparse.h"

struct attention_tile;  // attention_tile.h: one instruction set's inner loops
struct format_ops;      // format.h: expansion and dot products of weight rows
struct elementwise_ops; // elementwise.h: norm, rope, gate, convert on ranges of rows
struct gemm;            // gemm.h: oneDNN products, primitives cached by shape

struct cpu_state {
    enum isa isa; // in use: never ISA_AUTO
    int n_thread;
    const struct attention_tile *tile;
    const struct format_ops *format;
    const struct elementwise_ops *elementwise;
    struct gemm *gemm;
    void *scratch; // grows to the largest request; one operation uses it at a time
    int64_t scratch_bytes;
};

static inline struct cpu_state *cpu_state(const struct backend *b) {
    return (struct cpu_state *)b->state;
}
enum status cpu_open(const struct backend_options *options, struct backend *out);
// 64-byte aligned room for one operation; contents are lost at the next request.
enum status cpu_scratch(struct backend *backend, int64_t bytes, void **out);
static inline void *cpu_scratch_at(void *scratch, int64_t offset) {
    return (uint8_t *)scratch + offset;
}

static inline int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t round_up64(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

// elementwise.c
enum status cpu_embed(struct backend *backend, const struct embed_args *args);
enum status cpu_norm(struct backend *backend, const struct norm_args *args);
enum status cpu_rope(struct backend *backend, const struct rope_args *args);
enum status cpu_add(struct backend *backend, const struct add_args *args);
enum status cpu_gate(struct backend *backend, const struct gate_args *args);
enum status cpu_convert(struct backend *backend, const struct convert_args *args);
enum status cpu_copy_blocks(struct backend *backend, const struct copy_blocks_args *args);

// matmul.c, logprob.c. The sizes are those of kernel_ops.scratch_bytes.
enum status cpu_matmul(struct backend *backend, const struct matmul_args *args);
enum status cpu_logprob(struct backend *backend, const struct logprob_args *args);
int64_t cpu_matmul_scratch_bytes(const struct backend *backend, const struct scratch_shape *shape);
int64_t cpu_logprob_scratch_bytes(const struct scratch_shape *shape);

// experts.c
enum status cpu_grouped_matmul(struct backend *backend, const struct grouped_matmul_args *args);
enum status cpu_expert_combine(struct backend *backend, const struct expert_combine_args *args);

// attention.c
const struct attention_tile *cpu_attention_tile_choose(enum isa isa);
int64_t cpu_attention_scratch_bytes(const struct cpu_state *state,
                                    const struct scratch_shape *shape);
enum status cpu_attention(struct backend *backend, const struct attention_args *args);
enum status cpu_sparse_attention(struct backend *backend, const struct sparse_attention_args *args);
enum status cpu_merge_partials(struct backend *backend, const struct merge_args *args);
enum status cpu_attention_mass(struct backend *backend, const struct attention_mass_args *args);

// quantize.c
enum status cpu_quantize(struct backend *backend, const struct quantize_args *args);

// index.c. The scratch is that of all four operations.
enum status cpu_index_top_k(struct backend *backend, const struct index_args *args);
int64_t cpu_index_scratch_bytes(const struct cpu_state *state, const struct scratch_shape *shape);

// index_candidates.c
enum status cpu_index_merge(struct backend *backend, const struct index_merge_args *args);
enum status cpu_index_filter(struct backend *backend, const struct index_filter_args *args);
enum status cpu_select_rows(struct backend *backend, const struct select_rows_args *args);
// Scratch of one thread.
static inline int64_t cpu_index_merge_thread_bytes(int64_t k) {
    return round_up64(2 * k * (int64_t)sizeof(uint64_t), 64);
}
static inline int64_t cpu_select_rows_thread_bytes(int64_t n_row) {
    return round_up64(n_row / 8 + 1, 64);
}

#endif
