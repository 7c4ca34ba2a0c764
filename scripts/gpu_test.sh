#!/bin/bash
# Tests on a GPU: scripts/gpu_test.sh [--build DIR] [--log FILE.md] [PART[:NAME]...]; without names, all parts.
#   unit       every operation against the reference, behind the mirror of tests/common
#   ranks      attention, experts, sessions and the verbs on 1 to 4 ranks, through mpi_staged
#   parity     log-probabilities against Hugging Face's, tiny models and the demo model
#   nccl       the same over NCCL, one rank a GPU
#   lost       a rank that leaves in mid-ring: exit code 69, in time, nothing left on the GPUs
#   cli        the program: verify on 1, 2 and 4 ranks; the demo model on cuda and on cpu
#   launches   that the tests which compute-sanitizer watches launch every kernel of the build
#   memcheck racecheck initcheck synccheck    these tests under compute-sanitizer: the small cases of unit
#              (SANITIZE_LIGHT=12: of at most 12 million products, attention's of a third of that), on a
#              Hopper also with the kernels that an A100 (sm_80) and what comes after (sm_100) take
# PART:NAME runs of a part what has NAME in its name (racecheck:index). Nothing is built where DIR (build/cuda)
# is there: it may be a copy (make CUDA=1 bundle tests). A part stops beginning tests after PART_SECONDS (460),
# and what runs then is stopped. Tests of one rank run TEST_JOBS at a time (a third of the cores). --log adds a section a part to a file: parts may run on several machines and
# at several times, the same file brought along or the files put one after the other. Exit code 77: no GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 70
build=build/cuda log=
while [[ ${1:-} == --* ]]; do
    case $1 in
    --build) build=$2 ;;
    --log) log=$2 ;;
    *) echo "gpu_test: no such option: $1" >&2 && exit 64 ;;
    esac
    shift 2
done
parts=("$@")
[ $# -gt 0 ] || parts=(unit ranks parity nccl lost cli launches memcheck racecheck initcheck synccheck)
n_gpu=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
if [ "$n_gpu" -eq 0 ]; then
    echo "skipped: nvidia-smi -L shows no GPU on this machine"
    exit 77
fi
if [ ! -x "$build/halka" ]; then
    make CUDA=1 -j"$(nproc)" all tests || exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
unset HALKA_TEST_BACKEND HALKA_TEST_TRANSPORT
export halka=$build/halka work
if model=$(scripts/fetch_model.sh 2>"$work/model.log"); then
    export HALKA_MODEL=$model
else
    unset HALKA_MODEL
    echo "no demo model: $(tail -1 "$work/model.log")"
fi

touch "$work/results"
jobs=${TEST_JOBS:-$(($(nproc) / 3))}
[ "$jobs" -ge 1 ] || jobs=1
write() { [ -z "$log" ] || printf '%s\n' "$*" >>"$log"; }
row() { # RESULT NAME SECONDS FIGURES
    echo "$1" >>"$work/results"
    printf '%-7s %s (%s s)%s\n' "$1" "$2" "$3" "${4:+: $4}"
    write "| $2 | $1 | $3 | ${4:-} |"
}
count() { grep -c "^$1" "$work/results"; } # of the rows with this result
skip() { row skipped "$1" 0 "$2"; }        # NAME WHY
# run NAME COMMAND...: by its exit code; a line that begins with "figure" is kept in the log.
run() {
    local name=$1 begun=$EPOCHREALTIME left=$((part_end - SECONDS)) code seconds figures output
    [[ $name == *"$only"* ]] || return 0
    shift
    if [ $left -lt 5 ]; then
        skip "$name" "no time left in this part"
        return
    fi
    [ "$(type -t "$1")" != function ] || set -- bash -c '"$@"' _ "$@"
    output=$(mktemp -p "$work")
    timeout --kill-after=10 "$left" "$@" >"$output" 2>&1 </dev/null
    code=$?
    seconds=$(awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    figures=$(grep -aoE '^figure: .*|differ by .*|[0-9]+ of [0-9]+ tokens equal' "$output" |
        sed 's/^figure: //' | head -8 | paste -sd '|' | sed 's/|/; /g')
    case $code in
    0) row ok "$name" "$seconds" "$figures" ;;
    77) skip "$name" "$(grep -aim1 skip "$output" || tail -1 "$output")" ;;
    *)
        [ $code -ne 124 ] || echo "stopped after $left s" >>"$output"
        row FAILED "$name" "$seconds" "exit code $code"
        grep -avE '^\[ RUN|^\[       OK' "$output" | tail -40 | cut -c1-300 | sed 's/^/    /'
        ;;
    esac
    rm -f "$output"
}
# The same beside others; `wait` waits for them.
start() {
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    run "$@" &
}

units=(attention attention_merge index device experts sparse sparse_attention candidates kernels matmul)
unit() {
    local name
    for name in "${units[@]}"; do
        [ -x "$build/tests/unit/test_$name" ] || continue
        start "unit/$name" "$build/tests/unit/test_$name"
    done
    wait
}
# on_ranks COUNTS NAME...: tests over ranks, on those of their counts that are wanted.
on_ranks() {
    local wanted=$1 counts name n
    shift
    for name in "$@"; do
        [ -x "$build/tests/mpi/test_$name" ] || continue
        counts=$(sed -n '1s,^// ranks:,,p' "tests/mpi/test_$name.c")
        for n in $counts; do
            [[ " $wanted " == *" $n "* ]] || continue
            run "mpi/$name on $n${HALKA_TEST_TRANSPORT:+, $HALKA_TEST_TRANSPORT}" \
                scripts/mpirun.sh -np "$n" "$build/tests/mpi/test_$name"
        done
    done
}
ranks() {
    export HALKA_TEST_BACKEND=cuda
    on_ranks "1 2 3 4" comm_staged ring_attention sparse_attention expert_exchange session weights \
        window extension context_store context_prefix context_damage encode program
}
parity() {
    export HALKA_TEST_BACKEND=cuda
    on_ranks "1 2 3 4" parity parity_windows parity_dsa
    on_ranks "1 2 4" parity_smollm2 parity_indexer
}
# NCCL takes one rank a device.
nccl() {
    local counts
    export HALKA_TEST_BACKEND=cuda HALKA_TEST_TRANSPORT=nccl
    if [ "$n_gpu" -eq 1 ]; then
        skip "nccl on 2 ranks" "one GPU on this machine"
        counts=1
    else
        counts=$(seq -s ' ' 2 "$n_gpu")
    fi
    on_ranks "$counts" comm_nccl ring_attention sparse_attention expert_exchange session weights \
        context_store parity parity_windows parity_dsa program
    [ "$n_gpu" -eq 1 ] || run "halka verify on $n_gpu, nccl" verify "$n_gpu" --set run.transport=nccl
}

lost() {
    export HALKA_TEST_BACKEND=cuda HALKA_BUILD=$build
    run "a lost rank of 2, mpi_staged" env LOST_RANKS=2 tests/cli/rank_lost.sh
    if [ "$n_gpu" -lt 2 ]; then
        skip "a lost rank, nccl" "one GPU on this machine"
        return
    fi
    run "a lost rank of $n_gpu, nccl" env LOST_RANKS="$n_gpu" HALKA_TEST_TRANSPORT=nccl tests/cli/rank_lost.sh
}

verify() { # RANKS ARGUMENT...: the largest residual is the figure
    scripts/mpirun.sh -np "$1" "$halka" verify --set run.backend=cuda "${@:2}" >"$work/verify" 2>&1 ||
        { cat "$work/verify" && return 1; }
    cat "$work/verify"
    awk '$NF == "PASSED" && $(NF - 1) ~ /^[0-9.e-]+$/ && $(NF - 1) > most { most = $(NF - 1) }
        /^[0-9]+ passed/ { sum = $1 " rows" } END { print "figure: " sum ", largest residual " most }' \
        "$work/verify"
}
# Perplexity and answer of the demo model on both backends; tolerance is relative.
demo() { # PRECISION TOLERANCE
    local backend perplexity=() answer=() rate=() output
    [ -n "${HALKA_MODEL:-}" ] || { echo "skipped: no demo model" && return 77; }
    for backend in cuda cpu; do
        output=$work/demo-$1-$backend
        "$halka" run --model "$HALKA_MODEL" --document tests/fixtures/smollm2/pride.txt --task score \
            --output "$output" --set run.backend=$backend --set run.precision="$1" || return 1
        perplexity+=("$(grep -o '"perplexity": [0-9.]*' "$output/results.jsonl" | cut -d' ' -f2)")
        rate+=("$(grep -o '"tokens_per_second": [0-9.]*' "$output/report.json" | cut -d' ' -f2)")
        "$halka" run --model "$HALKA_MODEL" --document tests/fixtures/smollm2/pride.txt --task answer \
            --question "Who is speaking to Mr. Bennet?" --set task.max_tokens=12 \
            --output "$output-answer" --set run.backend=$backend --set run.precision="$1" || return 1
        answer+=("$(grep -o '"answer": "[^"]*"' "$output-answer/results.jsonl")")
    done
    echo "figure: perplexity ${perplexity[0]} on cuda, ${perplexity[1]} on cpu; ${rate[0]} and ${rate[1]} tokens/s"
    [ "$1" != fp32 ] || [ "${answer[0]}" = "${answer[1]}" ] ||
        { printf 'other answers:\n%s\n%s\n' "${answer[@]}" && return 1; }
    awk -v a="${perplexity[0]}" -v b="${perplexity[1]}" -v t="$2" \
        'BEGIN { d = (a - b) / b; exit !(d <= t && -d <= t) }'
}
plan() {
    "$halka" plan --model tests/fixtures/tiny-llama --tokens "$work/ids" --set run.backend=cuda >"$work/plan" ||
        return 1
    cat "$work/plan"
    grep -q "on its device (" "$work/plan"
}
export -f verify demo plan
cli() {
    local n
    seq 5 90 >"$work/ids"
    for n in 1 2 4; do run "halka verify on $n" verify "$n"; done
    run "halka plan" plan
    run "demo model, fp32, cuda and cpu" demo fp32 1e-3
    run "demo model, bf16 on cuda" demo auto 1e-2
}
# small WHAT COMMAND...: the small cases of unit by COMMAND, the longest first; on a Hopper, which can stand for
# other GPUs, also with the kernels that they take.
watched=(attention attention_merge "attention 100" "attention_merge 100" index "index 80" kernels matmul device
    experts sparse sparse_attention "sparse_attention 80" "sparse_attention 100" candidates)
small() {
    local what=$1 name as light
    shift
    for name in "${watched[@]}"; do
        read -r name as <<<"$name"
        [ -z "$as" ] || [ "$capability" = 9.0 ] || continue
        light=${SANITIZE_LIGHT:-12}
        [[ $name != attention* ]] || light=$((light / 3))
        start "$what of unit/$name${as:+ as sm_$as}" env HALKA_TEST_LIGHT="$light" \
            HALKA_TEST_ARCHITECTURE="${as:-0}" "$@" "$build/tests/unit/test_$name"
    done
    wait
}
sanitize() { # TOOL OPTION...
    if ! command -v compute-sanitizer >/dev/null; then
        skip "$1" "compute-sanitizer is not installed"
        return
    fi
    small "$1" compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 5 "${@:2}"
}
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }
# The kernels of index_select.cu read a row of scores in vectors and a tile ahead, what was never written
# behind its last visible key included, and drop it.
initcheck() { sanitize initcheck --kernel-name-exclude kns=index_select_cu; }
synccheck() { sanitize synccheck; }
# From bf16 to bf16 nothing is expanded: cuBLAS takes such weights as they are.
every_kernel() {
    awk '$2 !~ /expand_rowsIL5dtype2E13__nv_bfloat16E/ { n[$2] += $1 }
        END {
            for (name in n) {
                all++
                if (n[name]) launched++
                else print "not launched: " name
            }
            print "figure: " launched " of " all " kernels launched"
            exit launched < all || all == 0
        }' "$work/launches"
}
export -f every_kernel
launches() {
    local library=$PWD/$build/liblaunches.so
    [[ $build != /* ]] || library=$build/liblaunches.so
    if [ ! -e "$library" ] || [ "$capability" != 9.0 ]; then
        skip launches "needs a Hopper, which runs every kernel, and $library (make CUDA=1 tests)"
        return
    fi
    small launches env LAUNCHES="$work/launches" LD_PRELOAD="$library"
    run "every kernel" every_kernel
}

if [ -n "$log" ] && [ ! -s "$log" ]; then
    write "# Tests on a GPU"
    write ""
    write "\`make gpu-test\`, or scripts/gpu_test.sh on a machine with a copy of build/cuda."
fi
write ""
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1)
write "$(date -u '+%Y-%m-%d %H:%M UTC'), $n_gpu x $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader |
    head -1 | sed 's/, /, driver /'), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
for part in "${parts[@]}"; do
    only=''
    [[ $part != *:* ]] || only=${part#*:}
    part=${part%%:*}
    case $part in
    unit | ranks | parity | nccl | lost | cli | launches | memcheck | racecheck | initcheck | synccheck) ;;
    *) echo "gpu_test: no such part: $part" >&2 && exit 64 ;;
    esac
    write ""
    write "## $part${only:+: $only}"
    write ""
    write "| test | result | seconds | figures |"
    write "| --- | --- | ---: | --- |"
    part_end=$((SECONDS + ${PART_SECONDS:-460}))
    "$part"
    unset HALKA_TEST_BACKEND HALKA_TEST_TRANSPORT
done
write ""
sum="$(count ok) passed, $(count FAILED) failed, $(count skipped) skipped"
write "$sum"
echo "$sum"
[ "$(count FAILED)" -eq 0 ]
