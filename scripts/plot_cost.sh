#!/bin/bash
# Plots what `halka plan` says of 2K to 128K tokens: bytes of the score matrix that is never stored,
# of buffers and of keys and values, dense, with a window and with sparse attention; keys and values
# of a rank on 1 to 64 ranks.
#   scripts/plot_cost.sh MODEL INDEXER docs/extension/cost.svg      HALKA=build/cpu/halka
set -euo pipefail
model=$1 indexer=$2 output=$3
halka=${HALKA:-build/cpu/halka}
data=$(mktemp)
trap 'rm -f "$data"' EXIT
plan() { # TOKENS RANKS ARGUMENT...
    local tokens=$1 ranks=$2
    shift 2
    "$halka" plan --model "$model" --set plan.tokens="$tokens" --set plan.ranks="$ranks" "$@"
}
of() { # NAME: bytes of a line of a plan
    awk -v name="  $1 " 'index($0, name) == 1 { print $(NF - 2) }' <<<"$text"
}
matrix() { grep -oE '[0-9.]+ GiB' <<<"$text" | awk '{ printf "%.0f\n", $1 * 2 ^ 30 }'; }

{
    echo "# tokens, score matrix of a layer, buffers, K/V: dense, window of 4096, sparse (512)"
    for k in 2 4 8 16 32 64 128; do
        text=$(plan $((k * 1024)) 1)
        line="$k $(matrix) $(($(of activations) + $(of "ring buffers") + $(of "backend scratch")))"
        line="$line $(of "keys and values")"
        text=$(plan $((k * 1024)) 1 --set attention.window=4096 --set attention.sinks=4)
        line="$line $(of "keys and values")"
        text=$(plan $((k * 1024)) 1 --set model.indexer="$indexer" --set dsa.top_k=512)
        echo "$line $(of "keys and values")"
    done
    printf '\n\n# ranks, K/V of a rank for 8K, 32K and 128K tokens\n'
    for ranks in 1 2 4 8 16 32 64; do
        line=$ranks
        for k in 8 32 128; do
            text=$(plan $((k * 1024)) "$ranks")
            line="$line $(of "keys and values")"
        done
        echo "$line"
    done
} >"$data"

gnuplot <<PLOT
set terminal svg size 980,500 font "sans-serif,13" background "white"
set output "$output"
set multiplot layout 1,2
set grid
set logscale xy 2
set xlabel offset 0,0.5
set ytics ("1 MiB" 1, "4 MiB" 4, "16 MiB" 16, "64 MiB" 64, "256 MiB" 256, "1 GiB" 2 ** 10, \
    "4 GiB" 2 ** 12, "16 GiB" 2 ** 14, "64 GiB" 2 ** 16, "256 GiB" 2 ** 18)
set xlabel "tokens, thousands (K)"
set key outside below Left reverse samplen 2 maxrows 3
set yrange [16:1048576]
set title "one rank"
plot "$data" index 0 using 1:(\$2 / 2 ** 20) with linespoints lw 2 pt 7 title "scores of one layer, never stored", \
     "" index 0 using 1:(\$4 / 2 ** 20) with linespoints lw 2 pt 5 title "keys and values, dense", \
     "" index 0 using 1:(\$6 / 2 ** 20) with linespoints lw 2 pt 4 title "with index keys, sparse", \
     "" index 0 using 1:(\$5 / 2 ** 20) with linespoints lw 2 pt 9 title "window of 4096", \
     "" index 0 using 1:(\$3 / 2 ** 20) with linespoints lw 2 dt 2 pt 6 lc rgb "#555555" title "buffers of the forward pass"
set title "keys and values of a rank"
set xlabel "ranks"
set key outside below samplen 2 maxrows 3
set yrange [1:4096]
plot "$data" index 1 using 1:(\$4 / 2 ** 20) with linespoints lw 2 pt 7 title "128K tokens", \
     "" index 1 using 1:(\$3 / 2 ** 20) with linespoints lw 2 pt 5 title "32K tokens", \
     "" index 1 using 1:(\$2 / 2 ** 20) with linespoints lw 2 pt 9 title "8K tokens"
unset multiplot
PLOT
