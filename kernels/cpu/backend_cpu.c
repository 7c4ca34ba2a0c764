// The cpu backend: chooses one instruction set at start and the tables that go with it.
#include <stdlib.h>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/format.h"
#include "kernels/cpu/gemm.h"
#include "kernels/host_memory.h"
#include "kernels/reference/reference.h"

static enum isa best_isa(void) {
    __builtin_cpu_init();
    // Every processor with AVX2 has F16C, which clang 14 cannot ask for.
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_PLAIN;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return ISA_AVX2;
    return __builtin_cpu_supports("avx512bf16") ? ISA_AVX512_BF16 : ISA_AVX512;
}

static void cpu_close(struct backend *backend) {
    struct cpu_state *state = cpu_state(backend);
    if (!state) return;
    gemm_close(&state->gemm);
    free(state->scratch);
    free(state);
}

enum status cpu_scratch(struct backend *backend, int64_t bytes, void **out) {
    struct cpu_state *state = cpu_state(backend);
    *out = state->scratch;
    if (bytes <= state->scratch_bytes) return OK;
    free(state->scratch);
    state->scratch = NULL;
    state->scratch_bytes = 0;
    TRY(host_alloc(backend, bytes, &state->scratch));
    state->scratch_bytes = bytes;
    *out = state->scratch;
    return OK;
}

static int64_t cpu_scratch_bytes(const struct backend *backend, const struct scratch_shape *shape) {
    int64_t bytes = cpu_matmul_scratch_bytes(backend, shape);
    bytes = max64(bytes, cpu_logprob_scratch_bytes(shape));
    bytes = max64(bytes, cpu_index_scratch_bytes(cpu_state(backend), shape));
    return max64(bytes, cpu_attention_scratch_bytes(cpu_state(backend), shape));
}

static const struct kernel_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .alloc = host_alloc,
    .free = host_free,
    .upload = host_upload,
    .download = host_download,
    .copy = host_copy,
    .sync = host_sync,
    .load_weight = host_load_weight,
    .unload_weight = host_unload_weight,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .matmul = cpu_matmul,
    .matmul_each = reference_matmul_each,
    .rope = cpu_rope,
    .rope_each = reference_rope_each,
    .gate = cpu_gate,
    .add = cpu_add,
    .multiply = reference_multiply,
    .sample = reference_sample,
    .convert = cpu_convert,
    .copy_blocks = cpu_copy_blocks,
    .attention = cpu_attention,
    .merge_partials = cpu_merge_partials,
    .attention_mass = cpu_attention_mass,
    .logprob = cpu_logprob,
    .quantize = cpu_quantize,
    .index_top_k = cpu_index_top_k,
    .index_merge = cpu_index_merge,
    .index_filter = cpu_index_filter,
    .select_rows = cpu_select_rows,
    .sparse_attention = cpu_sparse_attention,
    .expert_gate = reference_expert_gate,
    .grouped_matmul = cpu_grouped_matmul,
    .chosen_matmul = reference_chosen_matmul,
    .expert_combine = cpu_expert_combine,
    .scratch_bytes = cpu_scratch_bytes,
};

enum status cpu_open(const struct backend_options *options, struct backend *out) {
    enum isa isa = best_isa();
    if (options->isa != ISA_AUTO && options->isa < isa) isa = options->isa;
    struct cpu_state *state = calloc(1, sizeof *state);
    if (!state) FAIL(ERR_MEMORY, "cannot allocate %zu bytes", sizeof *state);
    *state = (struct cpu_state){
        .isa = isa,
        .n_thread = options->n_thread,
        .tile = cpu_attention_tile_choose(isa),
        .format = isa >= ISA_AVX512 ? &format_avx512
                  : isa >= ISA_AVX2 ? &format_avx2
                                    : &format_plain,
        .elementwise = isa >= ISA_AVX512 ? &elementwise_avx512
                       : isa >= ISA_AVX2 ? &elementwise_avx2
                                         : &elementwise_plain,
    };
    *out = (struct backend){.ops = &cpu_ops, .memory = MEMORY_HOST, .state = state};
    enum status status = gemm_open(isa, &state->gemm);
    out->bf16_products = isa == ISA_AVX512_BF16 && gemm_has_bf16();
    if (status != OK) backend_close(out);
    return status;
}
