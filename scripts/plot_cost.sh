#!/bin/bash
# Plots what scripts/measure_cost.sh wrote: lines as planned, points as measured. Left one rank, right
# keys and values of one of 1 to 64 ranks.
#   scripts/plot_cost.sh docs/extension/cost.dat docs/extension/cost.svg
set -euo pipefail
data=$1 output=$2

gnuplot <<PLOT
set terminal svg size 1000,600 font "sans-serif,13" background "white"
set output "$output"
set multiplot layout 1,2
set grid
set logscale xy 2
set ytics ("1 MiB" 1, "4 MiB" 4, "16 MiB" 16, "64 MiB" 64, "256 MiB" 256, "1 GiB" 2 ** 10, \
    "4 GiB" 2 ** 12, "16 GiB" 2 ** 14, "64 GiB" 2 ** 16, "256 GiB" 2 ** 18)
set ylabel "bytes of a rank"
set bmargin 10.5
set key outside bottom center Left reverse samplen 2 maxrows 7
set xlabel offset 0,0.3
mib = 2 ** 20
all(what, kind) = "< grep '^" . what . " " . kind . " [0-9]* 1 ' $data | sort -n -k 3"
of(what, tokens) = "< grep '^" . what . " dense " . tokens . " ' $data | sort -n -k 4"

set title "one rank"
set xlabel "tokens, thousands (K)"
set xrange [0.9:140]
set yrange [4:2 ** 20]
plot all("plan", "dense") using (\$3 / 1024):(\$8 / mib) with lines lw 2 lc rgb "#c03028" title "scores of one layer, never stored", \
     all("plan", "dense") using (\$3 / 1024):(\$5 / mib) with lines lw 2 lc rgb "#1f5fa8" title "keys and values, dense", \
     all("plan", "sparse") using (\$3 / 1024):(\$5 / mib) with lines lw 2 dt 3 lc rgb "#9050c0" title "with index keys, sparse", \
     all("plan", "window") using (\$3 / 1024):(\$5 / mib) with lines lw 2 lc rgb "#208040" title "window of 4096", \
     all("plan", "dense") using (\$3 / 1024):(\$6 / mib) with lines lw 2 dt 2 lc rgb "#555555" title "buffers of the forward pass", \
     all("plan", "dense") using (\$3 / 1024):(\$7 / mib) with lines lw 2 lc rgb "#d09000" title "tiles of flash attention and products", \
     all("scores", "torch") using (\$3 / 1024):(\$5 / mib) with points pt 7 ps 0.8 lc rgb "#c03028" notitle, \
     all("run", "dense") using (\$3 / 1024):(\$5 / mib) with points pt 7 ps 0.8 lc rgb "#1f5fa8" notitle, \
     all("run", "sparse") using (\$3 / 1024):(\$5 / mib) with points pt 6 ps 1.1 lc rgb "#9050c0" notitle, \
     all("run", "window") using (\$3 / 1024):(\$5 / mib) with points pt 9 ps 0.9 lc rgb "#208040" notitle, \
     all("run", "dense") using (\$3 / 1024):(\$6 / mib) with points pt 5 ps 0.7 lc rgb "#555555" notitle, \
     NaN with points pt 7 ps 0.8 lc rgb "black" title "points: measured"

set title "keys and values of a rank"
set xlabel "ranks"
set xrange [0.9:70]
set xtics (1, 2, 4, 8, 16, 32, 64)
set yrange [1:4096]
set key inside top right samplen 2
plot of("plan", 131072) using 4:(\$5 / mib) with lines lw 2 lc rgb "#103060" title "128K tokens", \
     of("plan", 32768) using 4:(\$5 / mib) with lines lw 2 lc rgb "#1f5fa8" title "32K tokens", \
     of("plan", 8192) using 4:(\$5 / mib) with lines lw 2 lc rgb "#60a0e0" title "8K tokens", \
     of("run", 32768) using 4:(\$5 / mib) with points pt 7 ps 0.8 lc rgb "#1f5fa8" notitle, \
     of("run", 8192) using 4:(\$5 / mib) with points pt 7 ps 0.8 lc rgb "#60a0e0" notitle, \
     NaN with points pt 7 ps 0.8 lc rgb "black" title "points: measured"
unset multiplot
PLOT
