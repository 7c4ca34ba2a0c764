#!/bin/bash
# Speed of embedding: scripts/bench_embed.sh [BUILD], part embed of scripts/bench.sh.
# ModernBERT-base's shape with random weights reads documents of 512 and of 8192 tokens, all as long or
# half as long in the mean (padding of half a batch, where one pads). Thousand tokens/s, padding not
# counted: by the clock, and by the processor time of all threads, which other programs disturb less.
# Beside it the same shape with all layers full, and torch with transformers where PYTHON names a
# Python that has them (sdpa, float32 and bfloat16). Best of RUNS runs (default 2).
# DOCUMENTS: documents of 8192 tokens at once (default 2; 16 for the memory of both).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
build=${1:-build/cpu}
runs=${RUNS:-2}
documents=${DOCUMENTS:-2}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

python3 scripts/make_random_encoder.py "$work/base" 3 || exit
mkdir "$work/full"
ln -s "$work/base/model.safetensors" "$work/full/model.safetensors"
sed 's/\("global_attn_every_n_layers":\) 3/\1 1/' "$work/base/config.json" >"$work/full/config.json"

# Files of token ids, of n tokens, or of lengths around n / 2 of which the first is n.
documents() { # NAME COUNT TOKENS VARIABLE
    awk -v name="$work/$1" -v count="$2" -v n="$3" -v variable="$4" 'BEGIN {
        srand(7)
        for (d = 0; d < count; d++) {
            length_ = n
            if (variable && d > 0) {
                normal = sqrt(-2 * log(1 - rand())) * cos(6.28318530718 * rand())
                length_ = int(n / 2 * (1 + normal / 3))
                if (length_ < n / 16) length_ = int(n / 16)
                if (length_ > n) length_ = n
            }
            file = sprintf("%s-%03d", name, d)
            for (i = 0; i < length_; i++) print 5 + int(rand() * 50000) >file
            close(file)
        } }'
}
# Prints the best run's tokens/s, tokens per second of processor time, and MiB.
halka() { # MODEL PRECISION NAME
    local arguments=() file times best="0 0 0"
    for file in "$work/$3"-*; do arguments+=(--tokens "$file"); done
    for _ in $(seq "$runs"); do
        rm -rf "$work/out"
        times=$({ TIMEFORMAT='%U %S'; time "$build/halka" run --model "$work/$1" --task embed \
            --set run.precision="$2" --output "$work/out" "${arguments[@]}" >"$work/log" 2>&1; } 2>&1)
        [ -r "$work/out/report.json" ] || { tail -2 "$work/log" >&2; continue; }
        best=$(awk -v best="$best" -v times="$times" -F'[:,]' '
            /"tokens_read"/ { n = $2 } /"tokens_per_second"/ { rate = $2 } /"peak_bytes"/ { peak = $2 }
            END { split(best, b, " "); split(times, t, " ")
                if (rate > b[1]) b[1] = rate
                if (n / (t[1] + t[2]) > b[2]) b[2] = n / (t[1] + t[2])
                print b[1], b[2], peak / 1048576 }' "$work/out/report.json")
    done
    echo "$best"
}
torch() { # DTYPE BATCH NAME
    local best="0 0 0" got
    for _ in $(seq "$runs"); do
        got=$("$PYTHON" scripts/peer_torch_embed.py "$work/base" "$1" "$2" "$work/$3"-* 2>"$work/log") ||
            { tail -2 "$work/log" >&2; continue; }
        best=$(awk -v a="$best" -v b="$got" 'BEGIN { split(a, x, " "); split(b, y, " ")
            print (y[1] > x[1] ? y[1] : x[1]), (y[2] > x[2] ? y[2] : x[2]), y[3] }')
    done
    echo "$best"
}
row() { # WHAT RATES
    awk -v what="$1" -v rates="$2" 'BEGIN { split(rates, r, " ")
        printf "  %-28s %10.3f %14.3f %10.0f\n", what, r[1] / 1000, r[2] / 1000, r[3] }'
}
for n in 512 8192; do
    count=$((n == 512 ? 16 : documents))
    for kind in fixed variable; do
        varies=0
        [ $kind = fixed ] || count=$((2 * count)) varies=1
        rm -f "$work"/d-*
        documents d $count $n $varies
        printf '== embed, %d documents, %s length, at most %d tokens, %d in all\n' $count $kind $n \
            "$(cat "$work"/d-* | wc -l)"
        printf '  %-28s %10s %14s %10s\n' "" "ktokens/s" "/ processor s" "peak MiB"
        for precision in bf16 fp32; do
            row "Halka, $precision" "$(halka base $precision d)"
        done
        row "Halka, bf16, all layers full" "$(halka full bf16 d)"
        [ -n "${PYTHON:-}" ] || continue
        for dtype in bfloat16 float32; do
            row "torch, $dtype" "$(torch $dtype "$count" d)"
        done
    done
done
