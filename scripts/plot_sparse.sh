#!/bin/bash
# Plots what bench_sparse printed: time a token by position, dense and sparse.
#   build/cpu/tests/bench/bench_sparse > FILE; scripts/plot_sparse.sh FILE docs/dsa-speed.svg
set -euo pipefail
input=$1 output=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for kind in prefill decode; do
    # keys, dense (the faster form), index, index and sparse
    awk -v kind=$kind '$1 == kind { print $2 / 1024, ($3 < $4 ? $3 : $4), $5, $7 }' "$input" \
        >"$work/$kind"
done
gnuplot <<PLOT
set terminal svg size 920,420 font "sans-serif,13" background "white"
set output "$output"
set multiplot layout 1,2
set key top left
set grid
set xlabel "position, thousands of tokens"
set ylabel "ms a token and layer"
set yrange [0:*]
set xrange [0:135]
set title "prefill"
plot "$work/prefill" using 1:2 with linespoints lw 2 pt 7 title "dense, faster form", \
     "" using 1:4 with linespoints lw 2 pt 5 title "sparse: index and attention", \
     "" using 1:3 with linespoints lw 1 dt 2 pt 4 title "of which index"
set title "decode"
plot "$work/decode" using 1:2 with linespoints lw 2 pt 7 title "dense, faster form", \
     "" using 1:4 with linespoints lw 2 pt 5 title "sparse: index and attention", \
     "" using 1:3 with linespoints lw 1 dt 2 pt 4 title "of which index"
unset multiplot
PLOT
