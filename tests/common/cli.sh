# shellcheck shell=bash
# Sourced by the command-line tests: run the program, look at its exit code, output and files.
# HALKA, MPIRUN and HALKA_MODEL come from scripts/test.sh; TMPDIR is empty.
halka=${HALKA:-$PWD/build/cpu/halka}
mpirun=${MPIRUN:-$PWD/scripts/mpirun.sh}
# Used by the scripts that source this file.
# shellcheck disable=SC2034
model=${HALKA_MODEL:-${HALKA_CACHE:-$HOME/.cache/halka}/SmolLM2-135M-Instruct.Q4_1.gguf}
# shellcheck disable=SC2034
tiny=tests/fixtures/tiny-llama
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n_passed=0
n_failed=0

passed() { n_passed=$((n_passed + 1)); }
failed() { # WHAT [FILE]
    n_failed=$((n_failed + 1))
    echo "FAILED: $1"
    [ -z "${2:-}" ] || sed 's/^/    /' "$2" | tail -20
}
# expect NAME CODE TEXT ARGUMENT...: halka's exit code, and a fixed text in what it prints ("" for
# any). RANKS=n runs it on n ranks; the message of a failure must stand there once.
expect() {
    local name=$1 code=$2 text=$3 got n_message
    shift 3
    if [ -n "${RANKS:-}" ]; then
        "$mpirun" -np "$RANKS" "$halka" "$@" >"$work/log" 2>&1
    else
        "$halka" "$@" >"$work/log" 2>&1
    fi
    got=$?
    n_message=$(grep -c '^halka: error: ' "$work/log")
    if [ "$got" -ne "$code" ]; then
        failed "$name: exit code $got, not $code" "$work/log"
    elif ! grep -qF -e "$text" "$work/log"; then
        failed "$name: no '$text'" "$work/log"
    elif [ "$code" -ne 0 ] && [ "$n_message" -ne 1 ]; then
        failed "$name: $n_message messages" "$work/log"
    else
        passed
    fi
}
# holds NAME FILE TEXT: the file has this fixed text.
holds() {
    if grep -qF -e "$3" "$2" 2>/dev/null; then passed; else failed "$1: no '$3' in $2" "$2"; fi
}
# same NAME A B: two words are equal.
same() {
    if [ "$2" = "$3" ]; then passed; else failed "$1: '$2' is not '$3'"; fi
}
# number KEY FILE [LINE]: the number, or null, of a key in a line of JSON.
number() {
    sed -n "${3:-1}p" "$2" | grep -oE "\"$1\": (-?[0-9.e+-]+|null)" | head -1 | sed 's/.*: //'
}
# A text of three paragraphs, with a fact for a question in each.
ferry_text() {
    cat <<'END'
The ferry leaves the harbour of Velm at seven in the morning and comes back at dusk.

Tickets are sold at the red kiosk beside the fish market, and dogs travel free of charge.

In winter the ferry is replaced by a sledge, which is drawn by two white horses.
END
}
finish() {
    echo "$n_passed passed, $n_failed failed"
    [ $n_failed -eq 0 ]
}
