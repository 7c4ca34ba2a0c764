// The slow, obvious form of every operation (plain C, fp32): the oracle of every fast one.
#ifndef HALKA_KERNELS_REFERENCE_REFERENCE_H
#define HALKA_KERNELS_REFERENCE_REFERENCE_H

#include "kernels/experts.h"
#include "kernels/sparse.h"

enum status reference_open(const struct backend_options *options, struct backend *out);

enum status reference_embed(struct backend *backend, const struct embed_args *args);
enum status reference_norm(struct backend *backend, const struct norm_args *args);
enum status reference_matmul(struct backend *backend, const struct matmul_args *args);
enum status reference_matmul_each(struct backend *backend, const struct matmul_each_args *args);
enum status reference_rope(struct backend *backend, const struct rope_args *args);
enum status reference_rope_each(struct backend *backend, const struct rope_each_args *args);
enum status reference_gate(struct backend *backend, const struct gate_args *args);
enum status reference_sample(struct backend *backend, const struct sample_args *args);
enum status reference_add(struct backend *backend, const struct add_args *args);
enum status reference_multiply(struct backend *backend, const struct multiply_args *args);
enum status reference_convert(struct backend *backend, const struct convert_args *args);
enum status reference_copy_blocks(struct backend *backend, const struct copy_blocks_args *args);
enum status reference_attention(struct backend *backend, const struct attention_args *args);
enum status reference_merge_partials(struct backend *backend, const struct merge_args *args);
enum status reference_attention_mass(struct backend *backend,
                                     const struct attention_mass_args *args);
enum status reference_logprob(struct backend *backend, const struct logprob_args *args);

enum status reference_quantize(struct backend *backend, const struct quantize_args *args);
enum status reference_index_top_k(struct backend *backend, const struct index_args *args);
enum status reference_sparse_attention(struct backend *backend,
                                       const struct sparse_attention_args *args);
enum status reference_index_merge(struct backend *backend, const struct index_merge_args *args);
enum status reference_index_filter(struct backend *backend, const struct index_filter_args *args);
enum status reference_select_rows(struct backend *backend, const struct select_rows_args *args);

enum status reference_expert_gate(struct backend *backend, const struct expert_gate_args *args);
enum status reference_grouped_matmul(struct backend *backend,
                                     const struct grouped_matmul_args *args);
enum status reference_chosen_matmul(struct backend *backend, const struct chosen_matmul_args *args);
enum status reference_expert_combine(struct backend *backend,
                                     const struct expert_combine_args *args);

#endif
