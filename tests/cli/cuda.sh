#!/bin/bash
# What is said where no GPU can be used: by a build without CUDA, and by one with it (make CUDA=1), which
# must also start from any folder.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh

if [[ ${HALKA_BUILD:-build/cpu} != build/cuda ]]; then
    expect "cuda without CUDA" 78 "this build has no cuda backend" verify --set run.backend=cuda
fi
expect "nccl without devices" 78 "is for devices" verify --set run.backend=cpu --set run.transport=nccl
expect "mpi_staged without devices" 78 "is for devices" \
    verify --set run.backend=cpu --set run.transport=mpi_staged

if [ ! -x build/cuda/halka ]; then
    echo "the rest is skipped: no build/cuda/halka (make CUDA=1)"
    finish
    exit
fi
halka=$PWD/build/cuda/halka
cd "$work" || exit 70
expect "another folder" 0 "halka " --version
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    expect "cuda without a GPU" 78 "no GPU" verify --set run.backend=cuda
fi
finish
