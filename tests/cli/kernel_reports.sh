#!/bin/bash
# The compiler's reports of the GPU kernels that the time goes into: no registers spilled to memory,
# no stack frames. They lie beside the objects of make CUDA=1.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
folder=build/cuda/kernels/cuda

# FILE KERNEL: a file of kernels/cuda and the kernel in it.
hot_kernels="
attention_mma_64 attend
attention_mma_96 attend
attention_mma_128 attend
attention_mma_192 attend
attention_mma_256 attend
attention_mma_latent attend
attention_wgmma_sm90a attend
attention_merge merge_
index_select select_kernel
index_select count_kernel
index_select gather_kernel
index_score_mma score_kernel
index_candidates merge_kernel
sparse_attention_mma attend_kernel
matmul_short multiply_rows
matmul_short multiply_joint
matmul_short multiply_chosen
dequantise expand_rows
logprob take_logits
elementwise norm_rows
elementwise rotate_heads
elementwise gate_values
elementwise convert_rows
copy_blocks copy_each
quantize quantize_blocks
"

if ! ls "$folder"/*.o.report >/dev/null 2>&1; then
    echo "skipped: no reports of nvcc in $folder (make CUDA=1)"
    exit 77
fi
# Lines "KERNEL FRAME STORES LOADS" of one report, bytes each; the name as the compiler mangles it.
frames() {
    awk '/Compiling entry function/ { gsub("\047", ""); name = $7 }
         /bytes stack frame/ { print name, $1, $5, $9 }' "$1"
}
while read -r file kernel; do
    [ -n "$file" ] || continue
    frames "$folder/$file.o.report" 2>/dev/null | grep "$kernel" >"$work/frames"
    if [ ! -s "$work/frames" ]; then
        failed "$file: no kernel $kernel in its report"
    elif grep -qv ' 0 0 0$' "$work/frames"; then
        grep -v ' 0 0 0$' "$work/frames" >"$work/bad"
        failed "$file: stack frame, spill stores and loads of $kernel" "$work/bad"
    else
        passed
    fi
done <<<"$hot_kernels"
finish
