# shellcheck shell=bash
# Sourced after cli.sh by the tests that look at vectors: those of an output, and whether two are near.
# shellcheck disable=SC2154 # work is cli.sh's
rows() { # OUTPUT: the vectors, one a line
    local columns
    columns=$(number n_hidden "$work/$1/results.jsonl")
    od -An -v -tf4 -w$((4 * columns)) -j128 "$work/$1/vectors.npy"
}
# near NAME A B TOLERANCE: two files of numbers, each within |a - b| <= tolerance * (1 + |b|).
near() {
    if paste -d' ' <(tr -s ' \n' '\n' <"$2" | grep .) <(tr -s ' \n' '\n' <"$3" | grep .) |
        awk -v t="$4" '{ d = $1 - $2; m = $2 < 0 ? -$2 : $2; if (d < 0) d = -d
            if (NF != 2 || !(d <= t * (1 + m))) { print "line", NR, $0; bad = 1; exit } }
            END { exit bad || NR == 0 }' >"$work/difference"; then
        passed
    else
        failed "$1" "$work/difference"
    fi
}
# Sums over other shards round fp32 differently.
same_rows() { # NAME A B: of two outputs
    rows "$2" >"$work/a"
    rows "$3" >"$work/b"
    near "$1" "$work/a" "$work/b" 1e-5
}
