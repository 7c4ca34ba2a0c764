#!/bin/bash
# Lint: scripts/check.sh [format lint size headers shell cppcheck tidy]...; without names, all.
# clang-tidy looks at every file but the tests (it does not know that cmocka's asserts return
# only when true); on a branch, FILES="a.c b.c" narrows it.
# Prints what is wrong and ends with the number of checks failed. Sizes only warn.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
mapfile -t tracked < <(git ls-files -co --exclude-standard '*.c' '*.h' '*.cu' '*.cuh')
mapfile -t scripts < <(git ls-files -co --exclude-standard '*.sh' '*.sbatch' .ci/run)
mapfile -t sources < <(printf '%s\n' "${tracked[@]}" | grep '\.c$')
mapfile -t headers < <(printf '%s\n' "${tracked[@]}" | grep '\.h$')
n_core=$(nproc)

check_format() { clang-format --dry-run -Werror "${tracked[@]}"; }
check_lint() { awk -f scripts/lint.awk "${tracked[@]}"; }
# Review triggers, not laws: when one fires, look for the second concern.
check_size() {
    local file lines limit
    for file in "${tracked[@]}" Makefile README.md; do
        case $file in
        kernels/cpu/*_body.h) limit=700 ;;
        kernels/*.h | partition/*.h | dist/*.h | model/*.h | launcher/*.h | README.md) limit=200 ;;
        kernels/cpu/* | kernels/cuda/* | kernels/reference/*) limit=700 ;;
        Makefile) limit=120 ;;
        tests/*) continue ;;
        *) limit=500 ;;
        esac
        lines=$(wc -l <"$file")
        [ "$lines" -le $limit ] || echo "warning: $file has $lines lines (look again above $limit)"
    done
}
# clang takes the compiler's flags without those that are gcc's or make's own; omp.h is gcc's.
clang_flags() {
    make -s flags FILE="$1" | tr ' ' '\n' | grep -vE '^(-MMD|-MP|-g|-O[0-9]|-fopenmp|-Werror|)$'
    mpicc --showme:compile | tr ' ' '\n'
    echo -Wno-unknown-pragmas
    echo -idirafter
    gcc -print-file-name=include
}
check_headers() {
    local header bad=0 flags
    for header in "${headers[@]}"; do
        # Bodies and pieces of bodies are included once per instruction set, after what they need.
        [[ $header == kernels/*_@(body|product_*|vec_*|exp2).h ]] && continue
        mapfile -t flags < <(clang_flags "$header")
        gcc -fsyntax-only -x c "${flags[@]}" -include "$header" /dev/null ||
            { echo "$header does not compile by itself"; bad=1; }
    done
    return $bad
}
check_shell() { shellcheck "${scripts[@]}"; }
check_cppcheck() {
    cppcheck --quiet -j "$n_core" --std=c11 --enable=warning,performance,portability \
        --inline-suppr --suppress=missingIncludeSystem --suppress=nullPointerOutOfMemory \
        --suppress=invalidFunctionArg --suppress=invalidPointerCast \
        --library=posix --error-exitcode=1 -I. kernels partition dist model launcher
}
tidy_one() {
    local flags
    mapfile -t flags < <(clang_flags "$1")
    clang-tidy --quiet "$1" -- "${flags[@]}" 2>/dev/null
}
check_tidy() {
    export -f tidy_one clang_flags
    local files
    mapfile -t files < <(printf '%s\n' "${sources[@]}" | grep -v '^tests/')
    [ -z "${FILES:-}" ] || read -ra files <<<"$FILES"
    printf '%s\n' "${files[@]}" | xargs -P "$n_core" -I{} bash -c 'tidy_one {}'
}

declare -A tool=([format]=clang-format [shell]=shellcheck [cppcheck]=cppcheck [tidy]=clang-tidy)
checks=("$@")
[ $# -gt 0 ] || checks=(format lint size headers shell cppcheck tidy)
n_failed=0
for check in "${checks[@]}"; do
    needs=${tool[$check]:-awk}
    if ! command -v "$needs" >/dev/null; then
        echo "FAILED  $check: $needs is not installed (scripts/setup.sh --check)"
        n_failed=$((n_failed + 1))
    elif "check_$check"; then
        echo "ok      $check"
    else
        echo "FAILED  $check"
        n_failed=$((n_failed + 1))
    fi
done
echo "${#checks[@]} checks, $n_failed failed"
[ $n_failed -eq 0 ]
