#!/bin/bash
# Speed: scripts/bench.sh [BUILD [kernels ring prefill decode embed gpu]...]; without names, all but gpu.
#   kernels  tests/bench/bench_*: rates of single operations, and their ratio to oneDNN's
#   gpu      tests/bench/bench_gpu_*: operations and a network on a GPU against its ceilings
#   ring     tests/bench/bench_*ring* on 2 ranks: GB/s of a shift
#   prefill  tokens/s reading 2K, 8K and 16K tokens on 1 and 2 ranks, and the exposed ring wait
#   embed    scripts/bench_embed.sh: tokens/s of an encoder, beside torch where PYTHON has it
#   decode   tokens/s writing 64 tokens at depth 0, 4K and 8K on 1 and 2 ranks
# Best of RUNS runs (default 2). A busy machine costs a factor of 2 to 5: look at the load first.
# LLAMA_BENCH, a path of llama.cpp's llama-bench: prefill and decode also by it, on the same file and as many
# threads, with flash attention off and on, the better counting; its row says how many times its rate 1 rank has.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
build=${1:-build/cpu}
shift || true
parts=("$@")
[ $# -gt 0 ] || parts=(kernels ring prefill decode embed)
runs=${RUNS:-2}
halka=$build/halka
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "# $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), load $(cut -d' ' -f1 /proc/loadavg)"
if [[ " ${parts[*]} " =~ " prefill "|" decode " ]]; then model=$(scripts/fetch_model.sh) || exit; fi

# Token ids for the lengths: the committed text's, over and over.
ids() { # N
    tr -d ' \n' <tests/fixtures/smollm2/reference.json | grep -o '"token":\[[^]]*\]' | head -1 |
        sed 's/.*\[//; s/\]//' | awk -v n="$1" -F, '{ for (i = 0; i < n; i++) print $(i % NF + 1) }'
}
# Prints one number from report.json: a field of one run, or the largest of a phase over ranks.
largest() { # PHASE FILE
    tr -d ' \n' <"$2" | grep -o "\"$1\":[0-9.e+-]*" | cut -d: -f2 | sort -g | tail -1
}
sum_of() { # PHASE... FILE: largest over ranks of each phase, added
    local total=0 phase file=${*: -1}
    for phase in "${@:1:$#-1}"; do total="$total + $(largest "$phase" "$file")"; done
    awk "BEGIN { print $total }"
}
# Seconds of the work itself (all phases but load and input/output), best of the runs.
best_seconds() { # RANKS OUTPUT ARGUMENTS...
    local ranks=$1 output=$2 best=inf seconds
    shift 2
    for _ in $(seq "$runs"); do
        rm -rf "$output"
        scripts/mpirun.sh -np "$ranks" "$halka" run --model "$model" --set model.context=32768 \
            --output "$output" "$@" >"$work/log" 2>&1 || { tail -3 "$work/log" >&2; echo nan; return; }
        seconds=$(sum_of matmul attention ring_wait merge other decode sampling "$output/report.json")
        best=$(awk -v a="$best" -v b="$seconds" 'BEGIN { print (a == "inf" || b < a + 0) ? b : a }')
    done
    echo "$best"
}
# Tokens/s of an answer behind what was read, best of the runs: its first token comes with the reading.
best_decode() { # RANKS ARGUMENTS...
    local ranks=$1
    shift
    for _ in $(seq "$runs"); do
        runs=1 best_seconds "$ranks" "$work/out" "$@" >"$work/seconds"
        sed -n 's/.*"n_generated": *\([0-9]*\).*"seconds": *\([0-9.e-]*\).*/\1 \2/p' "$work/out/results.jsonl"
    done | awk '$2 > 0 && ($1 - 1) / $2 > best { best = ($1 - 1) / $2 } END { print best + 0 }'
}
# peer WIDTH N RATE ARGUMENT...: the row of llama-bench beside Halka's rate on one rank.
peer() {
    local width=$1 n=$2 rate=$3
    shift 3
    [ -n "${LLAMA_BENCH:-}" ] || return 0
    "$LLAMA_BENCH" -m "$model" -t "$(nproc)" -fa 0,1 -r "$runs" -o jsonl "$@" 2>"$work/log" |
        grep -o '"samples_ts": *\[[^]]*' | sed 's/.*\[//' | tr ',' '\n' | sort -g | tail -1 |
        awk -v w="$width" -v n="$n" -v rate="$rate" '{ best = $1 } END {
            if (best > 0) printf "%*d llama.cpp %6.1f   Halka on 1 rank: %.2f times\n", w, n, best, rate / best
            else printf "%*d llama.cpp failed\n", w, n }'
}

for part in "${parts[@]}"; do
    case $part in
    kernels | ring | gpu)
        for bench in "$build"/tests/bench/bench_*; do
            if [ ! -x "$bench" ] || [[ $bench == *.* ]]; then continue; fi
            name=${bench##*/bench_}
            if [[ $name == *ring* || $name == *comm* ]]; then
                [ "$part" = ring ] || continue
                echo "== $name, 2 ranks"
                scripts/mpirun.sh -np 2 "$bench"
            elif [[ $name == gpu_* ]]; then
                [ "$part" = gpu ] || continue
                echo "== $name"
                "$bench"
            elif [ "$part" = kernels ]; then
                echo "== $name"
                "$bench"
            fi
        done
        ;;
    prefill)
        echo "== prefill: tokens  ranks  tokens/s  exposed ring wait (s)  against 1 rank"
        for n in 2048 8192 16384; do
            ids $n >"$work/tokens"
            one=
            for ranks in 1 2; do
                seconds=$(best_seconds $ranks "$work/out" --tokens "$work/tokens" --task score)
                wait=$(largest ring_wait "$work/out/report.json")
                one=${one:-$seconds}
                awk -v n=$n -v r=$ranks -v s="$seconds" -v w="$wait" -v one="$one" 'BEGIN {
                    if (s > 0) printf "%17d %6d %9.1f %12.3f %18.2fx\n", n, r, n / s, w, one / s
                    else printf "%17d %6d failed\n", n, r }'
            done
            peer 17 $n "$(awk "BEGIN { print $n / $one }")" -p $n -n 0
        done
        ;;
    decode)
        echo "== decode: depth  ranks  tokens/s"
        for n in 1 4096 8192; do
            ids $n >"$work/tokens"
            one=
            for ranks in 1 2; do
                rate=$(best_decode $ranks --tokens "$work/tokens" --task answer --set task.temperature=0 \
                    --set task.max_tokens=65 --set task.evidence=0)
                printf '%15d %6d %9.1f\n' $n $ranks "$rate"
                one=${one:-$rate}
            done
            peer 15 $n "$one" -p 0 -n 64 -d $n
        done
        ;;
    embed) scripts/bench_embed.sh "$build" ;;
    *)
        echo "bench: no part $part" >&2
        exit 64
        ;;
    esac
done
