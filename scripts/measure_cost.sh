#!/bin/bash
# Bytes of 2K to 128K tokens as `halka plan` says and as runs on this machine measure them, dense, with
# a window of 4096 and with sparse attention, and on 1 to 64 ranks, for scripts/plot_cost.sh. Lines
# that FILE holds are not computed again. Bytes of a rank, of the one that has most:
#   plan KIND TOKENS RANKS kv buffers scratch scores       (scores: of a layer, never stored)
#   run KIND TOKENS RANKS kv buffers peak planned          (peak: of the process; planned: for it)
#   scores KIND TOKENS RANKS held peak                     (of PyTorch's attention, where PYTHON has it)
#   scripts/measure_cost.sh MODEL INDEXER TEXT FILE        HALKA=build/cpu/halka PYTHON=python3
# MOST=16384 and RANKS="1 2 4": longest text that is read, and ranks that read 8K and 32K of it.
set -euo pipefail
model=$1 indexer=$2 text=$3 file=$4
here=$(dirname "$0")
halka=${HALKA:-build/cpu/halka}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
touch "$file"

options() { # KIND
    case $1 in
    window) echo "--set attention.window=4096 --set attention.sinks=4" ;;
    sparse) echo "--set model.indexer=$indexer --set dsa.top_k=512" ;;
    esac
}
add() { # WHAT KIND TOKENS RANKS: a line, unless it is there
    grep -q "^$1 $2 $3 $4 " "$file" || echo "$* $("$1" "$2" "$3" "$4")" >>"$file"
}
plan() { # KIND TOKENS RANKS
    # shellcheck disable=SC2046 # several words
    "$halka" plan --model "$model" --set plan.tokens="$2" --set plan.ranks="$3" $(options "$1") |
        awk '/^  keys and values/ { kv = $4 }
            /^  (activations|ring buffers)/ { buffers += $(NF - 2) }
            /^  backend scratch/ { scratch = $3 }
            /would take/ { scores = $(NF - 3) }
            END { printf "%.0f %.0f %.0f %.0f\n", kv, buffers, scratch, scores }'
}
run() { # KIND TOKENS RANKS
    # shellcheck disable=SC2046
    "$here/mpirun.sh" -np "$3" "$halka" evaluate --model "$model" --document "$text" \
        --output "$work/out" --overwrite --set evaluate.families=none \
        --set evaluate.perplexity="$2" --set evaluate.bin="$2" $(options "$1") >"$work/log" 2>&1 ||
        { cat "$work/log" >&2 && return 1; }
    awk -F'[:,]' 'function most(name) { if ($1 ~ "\"" name "\"" && $2 + 0 > a[name]) a[name] = $2 + 0 }
        { most("kv_resident_bytes"); most("buffer_resident_bytes"); most("peak_bytes")
          most("planned_bytes") }
        END { printf "%.0f %.0f %.0f %.0f\n", a["kv_resident_bytes"], a["buffer_resident_bytes"],
            a["peak_bytes"], a["planned_bytes"] }' "$work/out/report.json"
}
# One layer of nine heads of 64, as SmolLM2 has, the whole matrix at once: resident bytes of the scores
# and the most during softmax.
scores() { # KIND TOKENS RANKS
    "$PYTHON" - "$2" <<'PYTHON'
import resource, sys, torch
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
n = int(sys.argv[1])
query, key, value = torch.randn(3, 9, n, 64) * 64 ** -0.25
(query[:, :64] @ key[:, :64].transpose(1, 2)).softmax(-1)  # libraries are loaded
before = resident()
scores = query @ key.transpose(1, 2)
held = resident() - before
scores.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu_(1), float("-inf"))
out = scores.softmax(-1) @ value
print(held, peak() - before)
PYTHON
}

for kind in dense window sparse; do
    for k in 1 2 4 8 16 32 64 128; do add plan $kind $((k * 1024)) 1; done
done
for ranks in 2 4 8 16 32 64; do
    for k in 8 32 128; do add plan dense $((k * 1024)) "$ranks"; done
done
if [ -n "${PYTHON:-}" ]; then
    for n in 1024 2048 4096 8192; do add scores torch $n 1; done
fi
for k in 2 4 8 16 32; do
    [ $((k * 1024)) -le "${MOST:-16384}" ] || continue
    for kind in dense window sparse; do add run $kind $((k * 1024)) 1; done
    [ $k = 8 ] || [ $k = 32 ] || continue
    for ranks in ${RANKS:-1 2 4}; do add run dense $((k * 1024)) "$ranks"; done
done
