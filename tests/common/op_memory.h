// What each operation of a backend touches: the pointers in its arguments, how many bytes lie
// behind each, whether they are read or written and in which memory, as kernels/kernels.h says. The
// fake device checks operations against these lists, the mirror copies by them.
#ifndef HALKA_TESTS_COMMON_OP_MEMORY_H
#define HALKA_TESTS_COMMON_OP_MEMORY_H

#include "kernels/experts.h"
#include "kernels/sparse.h"

enum op_access { OP_READ, OP_WRITE, OP_UPDATE };

struct op_pointer {
    const char *name;   // of the field
    void *field;        // where the pointer is kept in the arguments
    int64_t bytes;      // that the operation may touch
    int64_t row_stride; // not 0: `bytes` is one row's, and `rows` says which rows are read
    const void *rows;   // the field of a table of rows
    int64_t n_row;      // entries of that table
    int row_bytes;      // of an entry: 4 (negative ones name no row) or 8
    enum op_access access;
    enum memory memory;
};

struct op_memory {
    int n;
    struct op_pointer *pointers; // tables of rows come before what they index
    void *table;                 // a copy of a host table that holds pointers, in place of the
                                 // caller's
};

void *op_pointer_get(const struct op_pointer *pointer);
void op_pointer_set(const struct op_pointer *pointer, const void *value);
// Bytes behind a pointer. Its table of rows, if any, must be readable.
int64_t op_pointer_bytes(const struct op_pointer *pointer);
void op_memory_close(struct op_memory *memory);

// X(entry of struct kernel_ops, its arguments)
#define OP_LIST(X)                                                                                 \
    X(embed, embed_args)                                                                           \
    X(norm, norm_args)                                                                             \
    X(matmul, matmul_args)                                                                         \
    X(matmul_each, matmul_each_args)                                                               \
    X(rope, rope_args)                                                                             \
    X(rope_each, rope_each_args)                                                                   \
    X(gate, gate_args)                                                                             \
    X(sample, sample_args)                                                                         \
    X(add, add_args)                                                                               \
    X(multiply, multiply_args)                                                                     \
    X(convert, convert_args)                                                                       \
    X(copy_blocks, copy_blocks_args)                                                               \
    X(attention, attention_args)                                                                   \
    X(merge_partials, merge_args)                                                                  \
    X(attention_mass, attention_mass_args)                                                         \
    X(logprob, logprob_args)                                                                       \
    X(quantize, quantize_args)                                                                     \
    X(index_top_k, index_args)                                                                     \
    X(index_merge, index_merge_args)                                                               \
    X(index_filter, index_filter_args)                                                             \
    X(select_rows, select_rows_args)                                                               \
    X(sparse_attention, sparse_attention_args)                                                     \
    X(expert_gate, expert_gate_args)                                                               \
    X(grouped_matmul, grouped_matmul_args)                                                         \
    X(chosen_matmul, chosen_matmul_args)                                                           \
    X(expert_combine, expert_combine_args)

// op_memory_embed(args) and so on: what a call with these arguments touches. The list keeps
// addresses of fields of `args`, so that its user can replace the pointers there.
#define OP_MEMORY_DECLARE(op, type) struct op_memory op_memory_##op(struct type *args);
OP_LIST(OP_MEMORY_DECLARE)
#undef OP_MEMORY_DECLARE

#endif
