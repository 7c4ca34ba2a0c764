#!/bin/bash
# Draws what libtimeline.so wrote (make CUDA=1 timeline): a lane for each process and stream, a box
# for each kernel or copy.
#   export CUDA_INJECTION64_PATH=$PWD/build/cuda/libtimeline.so TIMELINE=/tmp/t
#   mpirun -np 4 PROGRAM; scripts/plot_timeline.sh PICTURE.svg FROM_MS TO_MS /tmp/t.*
# FROM_MS and TO_MS count from the last record backwards where negative, else from the first.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: scripts/plot_timeline.sh PICTURE.svg FROM_MS TO_MS FILE..." >&2; exit 64; }
output=$1 from=$2 to=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# kind, file number, stream, begin ms, end ms; kinds: attention, merge, transfer, other
for i in $(seq $#); do
    awk -v file="$i" '{
        kind = $4 ~ /nccl/ ? "transfer" : $4 ~ /merge/ ? "merge" : $4 ~ /attention|attend|wgmma/ ? "attention" : "other"
        printf "%s %d %d %.6f %.6f\n", kind, file, $1, $2 / 1e6, $3 / 1e6 }' "${!i}"
done | sort -k4,4n >"$work/all"
awk -v from="$from" -v to="$to" -v work="$work" '
    NR == FNR { if (first == "" || $4 < first) first = $4; if ($5 > last) last = $5; next }
    FNR == 1 { low = from < 0 ? last + from : first + from; high = to <= 0 ? last + to : first + to }
    $5 >= low && $4 <= high {
        key = $2 " " $3
        if (!(key in busy)) busy[key] = 1
        print $1, $2, $3, ($4 < low ? 0 : $4 - low), ($5 > high ? high : $5) - low
    }' "$work/all" "$work/all" >"$work/shown"
# lanes from the top: rank by rank, streams in order
cut -d' ' -f2,3 "$work/shown" | sort -k1,1n -k2,2n -u | awk '{ print $0, NR }' >"$work/lanes"
n=$(wc -l <"$work/lanes")
awk 'NR == FNR { lane[$1 " " $2] = $3; next }
     { print $1, lane[$2 " " $3], $4, $5 }' "$work/lanes" "$work/shown" >"$work/boxes"
tics=$(awk '{ printf "%s\"GPU %d, stream %d\" -%d", (NR > 1 ? ", " : ""), $1 - 1, $2, $3 }' "$work/lanes")
for kind in attention merge transfer other; do
    awk -v kind=$kind '$1 == kind { print $3, -$2, $3, $4, -$2 - 0.35, -$2 + 0.35 }' "$work/boxes" >"$work/$kind"
    [ -s "$work/$kind" ] || echo "0 10 0 0 10 10" >"$work/$kind"
done
gnuplot <<PLOT
set terminal svg size 1200,$((120 + 36 * n)) font "sans-serif,13" background "white"
set output "$output"
set key outside top center horizontal
set xlabel "milliseconds"
set ytics ($tics)
set yrange [-$n.6:-0.4]
set xrange [0:*]
set grid x
set style fill solid 0.85 noborder
plot "$work/attention" using 1:2:3:4:5:6 with boxxyerror lc rgb "#4477aa" title "attention", \
     "$work/merge" using 1:2:3:4:5:6 with boxxyerror lc rgb "#ccbb44" title "merge", \
     "$work/transfer" using 1:2:3:4:5:6 with boxxyerror lc rgb "#ee6677" title "transfer", \
     "$work/other" using 1:2:3:4:5:6 with boxxyerror lc rgb "#bbbbbb" title "other"
PLOT
