#!/bin/bash
# Runs the tests: scripts/test.sh [BUILD [NAME...]], e.g. scripts/test.sh build/cpu mpi/ring cli
# A NAME is a suite (unit, mpi, cli) or a part of a test's name. Tests:
#   tests/unit/test_*.c  one process      tests/mpi/test_*.c  on the rank counts of its first line, and
#                        on those of its second line with a fake device (tests/common/fake_device.h)
#   tests/cli/*.sh       a script (not lib.sh), given HALKA (the program), MPIRUN, HALKA_MODEL and an empty TMPDIR
# A test fails by its exit code, is skipped by exit code 77 (a line with "skip" says why), and is stopped
# after TEST_TIMEOUT seconds. Output is shown when it fails, all of it with VERBOSE=1.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
build=${1:-build/cpu}
shift || true
filters=("$@")
limit=${TEST_TIMEOUT:-300}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Threads that wait give their core to other ranks and programs.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export HALKA=$PWD/$build/halka MPIRUN=$PWD/scripts/mpirun.sh HALKA_BUILD=$build
# Tests that need the demo model are skipped without it.
if model=$(scripts/fetch_model.sh 2>"$work/model.log"); then
    export HALKA_MODEL=$model
else
    unset HALKA_MODEL
    echo "no demo model: $(tail -1 "$work/model.log")"
fi

n_passed=0 n_failed=0 n_skipped=0
failed=()
wanted() {
    local filter
    [ ${#filters[@]} -gt 0 ] || return 0
    for filter in "${filters[@]}"; do [[ $1 == *"$filter"* ]] && return 0; done
    return 1
}
run() { # NAME COMMAND...
    local name=$1 begun=$EPOCHREALTIME code seconds
    shift
    wanted "$name" || return
    rm -rf "$work/tmp" && mkdir "$work/tmp"
    TMPDIR=$work/tmp timeout --kill-after=10 "$limit" "$@" >"$work/log" 2>&1 </dev/null
    code=$?
    seconds=$(awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    case $code in
    0)
        n_passed=$((n_passed + 1))
        echo "ok      $name (${seconds} s)"
        ;;
    77)
        n_skipped=$((n_skipped + 1))
        echo "skipped $name: $(grep -im1 skip "$work/log" || tail -1 "$work/log")"
        ;;
    *)
        n_failed=$((n_failed + 1))
        failed+=("$name")
        [ $code -ne 124 ] || echo "stopped after $limit s" >>"$work/log"
        echo "FAILED  $name (exit code $code, ${seconds} s)"
        [ "${VERBOSE:-}" = 1 ] || tail -60 "$work/log" | sed 's/^/    /'
        ;;
    esac
    [ "${VERBOSE:-}" != 1 ] || sed 's/^/    /' "$work/log"
}

for source in tests/unit/test_*.c; do
    [ -e "$source" ] || continue
    name=$(basename "$source" .c)
    run "unit/${name#test_}" "$build/tests/unit/$name"
done
for source in tests/mpi/test_*.c; do
    [ -e "$source" ] || continue
    name=$(basename "$source" .c)
    ranks=$(sed -n '1s,^// ranks:,,p' "$source")
    [ -n "$ranks" ] || run "mpi/${name#test_}" sh -c "echo '$source: no // ranks: on line 1'; false"
    for n in $ranks; do
        run "mpi/${name#test_} on $n" scripts/mpirun.sh -np "$n" "$build/tests/mpi/$name"
    done
    ranks=$(sed -n '2s,^// fake device:,,p' "$source")
    for n in $ranks; do
        run "mpi/${name#test_} on $n, fake device" env HALKA_TEST_BACKEND=fake \
            scripts/mpirun.sh -np "$n" "$build/tests/mpi/$name"
    done
done
for script in tests/cli/*.sh; do
    if [ ! -e "$script" ] || [[ $script == */lib.sh ]]; then continue; fi
    run "cli/$(basename "$script" .sh)" bash "$script"
done

[ $n_failed -eq 0 ] || printf 'FAILED: %s\n' "${failed[@]}"
if [ $((n_passed + n_failed + n_skipped)) -eq 0 ]; then
    echo "no test matches: ${filters[*]}"
    exit 64
fi
echo "$n_passed passed, $n_failed failed$([ $n_skipped -eq 0 ] || echo ", $n_skipped skipped")"
[ $n_failed -eq 0 ]
