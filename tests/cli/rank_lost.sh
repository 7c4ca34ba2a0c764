#!/bin/bash
# A rank that leaves in mid-ring, by ending itself or by not taking part any more: the others end the
# job with exit code 69 within the deadline (3 s, tests/cli/lose_rank.c) and name it; no process is
# left, and no memory of a GPU. HALKA_TEST_BACKEND and HALKA_TEST_TRANSPORT as in tests/common/mpi_test.h.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
program=${HALKA_BUILD:-build/cpu}/tests/cli/lose_rank

used() { # MiB of all GPUs
    [ "${HALKA_TEST_BACKEND:-}" = cuda ] || { echo 0 && return; }
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | awk '{ sum += $1 } END { print sum }'
}
# By default mpirun itself ends a job of which a process ends badly; Open MPI 4 can be told to leave
# that to the ranks.
flags=()
mpirun --version | grep -q 'Open MPI) 4' && flags=(--mca orte_abort_on_non_zero_status 0)

lose() { # exit|stay RANKS
    local begun=$EPOCHREALTIME before after code seconds name="$1 on $2 ranks"
    before=$(used)
    timeout --kill-after=5 60 "$mpirun" "${flags[@]}" -np "$2" "$program" "$1" >"$work/log" 2>&1
    code=$?
    seconds=$(awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { printf "%d", b - a }')
    if [ "$1" = exit ] && [ ${#flags[@]} -eq 0 ]; then
        if [ $code -ne 0 ] && [ $code -ne 124 ]; then passed; else failed "$name: code $code" "$work/log"; fi
    else
        same "$name: exit code" $code 69
        grep -qE "^lose_rank: error: .*(rank $(($2 - 1)) \(|some rank did not)" "$work/log" ||
            failed "$name: the lost rank is not named" "$work/log"
    fi
    if [ "$seconds" -gt 25 ]; then failed "$name: it took $seconds s" "$work/log"; else passed; fi
    for _ in 1 2 3 4 5 6; do pgrep -x lose_rank >/dev/null && sleep 0.5; done
    if pgrep -x lose_rank >/dev/null; then failed "$name: a process is left"; else passed; fi
    after=$(used)
    if [ "$after" -le $((before + 64)) ]; then passed; else failed "$name: $after MiB of GPUs, not $before"; fi
    echo "figure: $name: exit code $code after $seconds s, GPUs hold $before MiB before, $after MiB after"
    grep -a '^lose_rank: error: ' "$work/log" | head -1
}
for ranks in ${LOST_RANKS:-3}; do
    lose stay "$ranks"
    lose exit "$ranks"
done
finish
