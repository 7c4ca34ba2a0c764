#!/bin/bash
# mpirun for one machine: more ranks than cores, no binding (Halka pins its own threads), root.
# In a batch job call mpirun or srun directly: see scripts/halka.sbatch.
set -euo pipefail
flags=(--oversubscribe --bind-to none)
[ "$(id -u)" -ne 0 ] || flags+=(--allow-run-as-root)
exec mpirun "${flags[@]}" "$@"
