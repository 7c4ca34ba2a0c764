#!/bin/bash
# Fuzzes the readers of untrusted files: scripts/fuzz.sh [SECONDS [NAME...]], 60 s each by default;
# 0 s reads the inputs that are there and no more.
# Each tests/fuzz/fuzz_NAME.c names the files it is built with on lines "// sources: a.c b.c".
# New inputs go to build/fuzz/corpus/NAME; a crash leaves its input in build/fuzz and fails.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
seconds=${1:-60}
shift || true
limit=-max_total_time=$seconds
[ "$seconds" -gt 0 ] || limit=-runs=0
mkdir -p build/fuzz
status=0
mapfile -t flags < <(make -s flags FILE=x.c | tr ' ' '\n' |
    grep -vE '^(-MMD|-MP|-O[0-9]|-fopenmp|-Werror|)$')
read -ra libraries < <(make -s libraries)
for target in tests/fuzz/fuzz_*.c; do
    name=$(basename "$target" .c)
    name=${name#fuzz_}
    [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
    read -ra sources < <(sed -n 's,^// sources:,,p' "$target" | tr '\n' ' ')
    echo "== fuzz $name: $seconds s"
    clang "${flags[@]}" -O1 -Wno-unknown-pragmas -fno-omit-frame-pointer \
        -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
        -o "build/fuzz/$name" "$target" "${sources[@]}" "${libraries[@]}" || { status=1; continue; }
    mkdir -p "build/fuzz/corpus/$name"
    build/fuzz/"$name" "$limit" -rss_limit_mb=2048 -timeout=10 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" \
        "tests/fuzz/corpus/$name" 2>"build/fuzz/$name.log"
    code=$?
    grep -E '^stat::(number_of_executed_units|peak_rss_mb)' "build/fuzz/$name.log"
    if [ $code -ne 0 ]; then
        echo "FAILED $name"
        tail -40 "build/fuzz/$name.log"
        status=1
    fi
done
exit $status
