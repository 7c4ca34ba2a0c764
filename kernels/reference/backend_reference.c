// The reference backend: host memory, one thread, no state.
#include "kernels/host_memory.h"
#include "kernels/reference/reference.h"

static void reference_close(struct backend *backend) {
    (void)backend;
}

// Two fp32 rows: an expanded row of weights and a row of inputs.
static int64_t reference_scratch_bytes(const struct backend *backend,
                                       const struct scratch_shape *shape) {
    (void)backend;
    return 2 * shape->widest_row * (int64_t)sizeof(float);
}

static const struct kernel_ops reference_ops = {
    .name = "reference",
    .close = reference_close,
    .alloc = host_alloc,
    .free = host_free,
    .upload = host_upload,
    .download = host_download,
    .copy = host_copy,
    .sync = host_sync,
    .load_weight = host_load_weight,
    .unload_weight = host_unload_weight,
    .embed = reference_embed,
    .norm = reference_norm,
    .matmul = reference_matmul,
    .matmul_each = reference_matmul_each,
    .rope = reference_rope,
    .rope_each = reference_rope_each,
    .gate = reference_gate,
    .add = reference_add,
    .multiply = reference_multiply,
    .sample = reference_sample,
    .convert = reference_convert,
    .copy_blocks = reference_copy_blocks,
    .attention = reference_attention,
    .merge_partials = reference_merge_partials,
    .attention_mass = reference_attention_mass,
    .logprob = reference_logprob,
    .quantize = reference_quantize,
    .index_top_k = reference_index_top_k,
    .index_merge = reference_index_merge,
    .index_filter = reference_index_filter,
    .select_rows = reference_select_rows,
    .sparse_attention = reference_sparse_attention,
    .expert_gate = reference_expert_gate,
    .grouped_matmul = reference_grouped_matmul,
    .chosen_matmul = reference_chosen_matmul,
    .expert_combine = reference_expert_combine,
    .scratch_bytes = reference_scratch_bytes,
};

enum status reference_open(const struct backend_options *options, struct backend *out) {
    (void)options;
    *out = (struct backend){.ops = &reference_ops, .memory = MEMORY_HOST};
    return OK;
}
