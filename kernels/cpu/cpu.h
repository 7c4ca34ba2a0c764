// What the files of the cpu backend share. Files with the suffix _avx2, _avx512 or _avx512bf16 hold
// one instruction set each and are reached only through tables chosen in backend_cpu.c.
#ifndef HALKA_KERNELS_CPU_CPU_H
#define HALKA_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

struct attention_tile; // attention_tile.h: one instruction set's inner loops

struct cpu_state {
    enum isa isa; // in use: never ISA_AUTO
    int n_thread;
    const struct attention_tile *tile;
    void *scratch; // grows to the largest request; one operation uses it at a time
    int64_t scratch_bytes;
};

static inline struct cpu_state *cpu_state(const struct backend *b) {
    return (struct cpu_state *)b->state;
}
// 64-byte aligned room for one operation; contents are lost at the next request.
enum status cpu_scratch(struct backend *backend, int64_t bytes, void **out);

// attention.c
const struct attention_tile *cpu_attention_tile_choose(enum isa isa);
int64_t cpu_attention_scratch_bytes(const struct cpu_state *state);
enum status cpu_attention(struct backend *backend, const struct attention_args *args);
enum status cpu_merge_partials(struct backend *backend, const struct merge_args *args);
enum status cpu_attention_mass(struct backend *backend, const struct attention_mass_args *args);

#endif
