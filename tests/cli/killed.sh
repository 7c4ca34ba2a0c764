#!/bin/bash
# Ranks that are killed while they read, answer and save: no process is left, `halka inspect OUTPUT`
# and the next start say where the ranks were, and the same command goes on to the results of a job
# that nothing disturbed. Ranks that are stopped, and a store that is full or cannot be written.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
mounted=
# What was stopped here would outlive the test.
end() {
    [ ${#rank[@]} -eq 0 ] || kill -9 "${rank[@]}" 2>/dev/null
    [ -z "$mounted" ] || umount -l "$mounted"
    rm -rf "$work"
}
rank=()
trap end EXIT
trap 'exit 1' INT TERM

for i in $(seq 0 5999); do echo $((i * 37 % 101)); done >"$work/long"
head -1000 "$work/long" >"$work/short"
use=$work/model # the tiny models have no tokenizer of their own
mkdir "$use"
cp tests/fixtures/tiny-qwen2/*.json tests/fixtures/tiny-qwen2/*.safetensors "$use"
cp tests/fixtures/embed/tokenizer.json "$use"
score=(--model "$tiny" --tokens "$work/long" --task score --set task.token_logprobs=true
    --set run.backend=cpu --set run.precision=fp32 --set model.context=65536 --set prefill.chunk=500)
answer=(--model "$use" --document tests/fixtures/evidence/paragraphs.txt --task answer
    --set run.backend=cpu --set task.max_tokens=3000 --set run.precision=fp32
    --set model.context=65536)

plain() { sed 's/"seconds": [^,}]*//' "$work/$1/results.jsonl"; } # OUTPUT
counted() { grep -oE "\"$2\": [0-9]+" "$work/$1/report.json" | sed 's/.*: //'; } # OUTPUT KEY
begin() { # RANKS OUTPUT ARGUMENT...: in the background; rank: its processes
    local i
    "$mpirun" -np "$1" "$halka" run --output "$work/$2" "${@:3}" >"$work/log" 2>&1 &
    job=$!
    for i in $(seq 100); do
        mapfile -t rank < <(pgrep -P $job -x halka)
        [ ${#rank[@]} -lt "$1" ] || return 0
        sleep 0.05
    done
    failed "$2 does not start" "$work/log"
}
# Stops the last of the ranks where its status looks like this.
catch() { # NAME OUTPUT PATTERN
    local i last=$((${#rank[@]} - 1))
    for i in $(seq 400); do
        kill -STOP "${rank[$last]}" 2>/dev/null || break
        "$halka" inspect "$work/$2" 2>/dev/null | grep -E "^  rank $last of" >"$work/seen"
        if grep -qE "$3" "$work/seen"; then
            passed
            return
        fi
        kill -CONT "${rank[$last]}"
        sleep 0.0$((1 + i % 3))
    done
    failed "$1: it is never '$3'" "$work/seen"
}
gone() { # NAME: no rank is left, within five seconds
    local i pid
    for i in $(seq 50); do
        kill -0 "${rank[@]}" 2>/dev/null || break
        sleep 0.1
    done
    for pid in "${rank[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then failed "$1: process $pid is left"; else passed; fi
    done
    rank=()
}
kill_last() { # NAME OUTPUT PATTERN: then the job is over, and what it was at is known
    local code last=$((${#rank[@]} - 1))
    catch "$1" "$2" "$3"
    kill -9 "${rank[$last]}"
    wait "$job" 2>/dev/null
    code=$?
    if [ $code -ne 0 ]; then passed; else failed "$1: exit code 0" "$work/log"; fi
    gone "$1"
    "$halka" inspect "$work/$2" >"$work/seen" 2>&1 || failed "$1: inspect" "$work/seen"
    grep -qE "^  rank $last of $((last + 1)) on $(hostname) was .*$3.* at [0-9-]{10} [0-9:]{8}$" "$work/seen" ||
        failed "$1: where it was" "$work/seen"
    holds "$1: says that it did not end" "$work/seen" "is running, or was cut off:"
}
go_on() { # NAME OUTPUT RANKS ARGUMENT...: the same command, to the results of `whole_$2`
    RANKS=$3 expect "$1: goes on" 0 "was cut off:" run --output "$work/$2" "${@:4}"
    same "$1: results" "$(plain "$2" | md5sum)" "$(plain "whole_$2" | md5sum)"
    if "$halka" inspect "$work/$2" | grep -qE "cut off|^  rank"; then failed "$1: it ended"; else passed; fi
}

RANKS=2 expect "scores" 0 "" run --output "$work/whole_score" "${score[@]}"
RANKS=2 expect "answers" 0 "" run --output "$work/whole_answer" "${answer[@]}"

begin 3 score "${score[@]}"
kill_last "killed in mid-document" score "reading, in .*, layer [0-9] of 3.*, token [0-9]+ of 6000 of $work/long,"
go_on "killed in mid-document" score 2 "${score[@]}"
same "of three ranks then two, two have a status" \
    "$(cd "$work/score/status" && echo *)" "rank-0 rank-1"

begin 2 answer "${answer[@]}"
kill_last "killed in mid-answer" answer "answering.*, token [0-9]{2,} of at most 3000 on .*paragraphs.txt,"
go_on "killed in mid-answer" answer 2 "${answer[@]}"

cp -r "$work/whole_score" "$work/whole_kept"
kept=("${score[@]}" --set store.dir="$work/store" --set store.every=0.000001)
begin 2 kept "${kept[@]}"
kill_last "killed while it saves" kept "reading, saving the context.*, token [0-9]{4} of 6000"
go_on "killed while it saves" kept 2 "${kept[@]}"
if [ "$(counted kept restored_tokens)" -ge 500 ]; then passed; else failed "what was saved is read again"; fi

# Submitted again and again, as by scripts/halka.sbatch, with little time each: more and more, since
# what it takes to start depends on what else runs here.
n_stop=0
while "$mpirun" -np 2 "$halka" run --output "$work/timed" "${score[@]}" --set store.dir="$work/timed.store" \
    --set run.max_seconds=$((n_stop / 20)).$((n_stop * 5 % 100 / 10))5 >"$work/log" 2>&1; [ $? -eq 75 ] && [ $n_stop -lt 50 ]; do
    n_stop=$((n_stop + 1))
done
if [ $n_stop -ge 1 ] && [ $n_stop -lt 50 ]; then passed; else failed "$n_stop stops by time" "$work/log"; fi
same "results after $n_stop stops" "$(plain timed | md5sum)" "$(plain whole_score | md5sum)"

# A rank that no longer answers, and a job that was suspended as a whole, which is nobody's fault.
begin 3 stays "${score[@]}" --set run.deadline=2 --set prefill.chunk=6000 # mostly in the layers
begun=$SECONDS
catch "a rank that stops" stays "reading, in .*layer"
wait "$job"
same "a rank that stops: exit code" $? 69
if [ $((SECONDS - begun)) -le 10 ]; then passed; else failed "it took $((SECONDS - begun)) s" "$work/log"; fi
same "a rank that stops: one message" "$(grep -c '^halka: error' "$work/log")" 1
gone "a rank that stops"
# Rank 1 where rank 0 meets the one that waits for the stopped one.
grep -qE "rank [12] \($(hostname)\) did not answer within 2 s" "$work/log" || failed "a rank is named" "$work/log"
"$halka" inspect "$work/stays" >"$work/seen"
holds "says that it failed" "$work/seen" "rank 0 of 3 on $(hostname) failed with exit code 69, reading"
begin 2 suspended "${score[@]}" --set run.deadline=2
catch "a job that is suspended" suspended "reading, in .*layer"
kill -STOP "${rank[@]}"
: >"$work/suspended/status/rank-0" # which is nobody's end either
sleep 3
kill -CONT "${rank[@]}"
wait "$job"
same "a job that was suspended: exit code" $? 0
same "its status is whole again" "$(stat -c %s "$work/suspended/status/"* | sort -u | wc -l)" 1
same "its results" "$(plain suspended | md5sum)" "$(plain whole_score | md5sum)"
rank=()

# A store that becomes full: a small file system for root, else a limit on the length of files.
both=(--tokens "$work/short" "${score[@]}" --set store.dir="$work/small/store" --set store.every=0.000001)
mkdir "$work/small"
! mount -t tmpfs -o size=1500k tmpfs "$work/small" 2>/dev/null || mounted=$work/small
begin 2 full "${both[@]}"
if [ -z "$mounted" ]; then
    catch "a store that becomes full" full "reading"
    for pid in "${rank[@]}"; do prlimit --pid "$pid" --fsize=1000000; done
    kill -CONT "${rank[@]}"
fi
wait "$job" # each rank may find it full
same "a full store: exit code" $? 74
gone "a full store"
grep -qE "^halka: error: rank [01] .*: cannot (write|make) $work/small/store/.*: (No space|File too large)" "$work/log" ||
    failed "what is full" "$work/log"
same "one message of a full store" "$(grep -c '^halka: error' "$work/log")" 1
same "the results before it are whole" "$(grep -c '"id": "[0-9a-f]*"}$' "$work/full/results.jsonl")" 1
"$halka" inspect "$work/full" >"$work/seen"
grep -qE "^  rank [01] of 2 on .* failed with exit code 74, reading, saving the context" "$work/seen" ||
    failed "says where it failed" "$work/seen"
RANKS=2 expect "an earlier context restores" 0 "1000 of 1000 tokens restored" run \
    --output "$work/again" "${both[@]:0:2}" "${score[@]:0:2}" "${score[@]:4}" \
    --set store.dir="$work/small/store"
if [ -n "$mounted" ]; then
    mount -o remount,size=16m "$mounted"
    RANKS=2 expect "with room it goes on" 0 "holds 1 of 2 results" run --output "$work/full" "${both[@]}"
    same "its results" "$(sed 's/"seconds": [^,}]*//' "$work/full/results.jsonl" | tail -1 | md5sum)" \
        "$(plain whole_score | md5sum)"
    mount -o remount,ro "$mounted"
    RANKS=2 expect "a store that is read-only" 73 "Read-only file system" run \
        --output "$work/read_only" "${kept[@]}" --set store.dir="$mounted/other"
    RANKS=2 expect "a store of contexts that is read-only, before it reads" 73 "cannot keep contexts in" \
        run --output "$work/read_only" "${score[@]}" --set store.dir="$work/small/store" \
        --set model.context=65535
    mount -o remount,rw "$mounted"
    RANKS=2 expect "writable again, it goes on" 0 "failed:" run --output "$work/read_only" \
        "${kept[@]}" --set store.dir="$mounted/other"
    same "its results" "$(plain read_only | md5sum)" "$(plain whole_score | md5sum)"
fi

# A status that cannot be kept is one warning.
mkdir "$work/plain" && touch "$work/plain/status"
RANKS=2 expect "no status" 0 "warning: the ranks' status is not kept" run --output "$work/plain" "${score[@]}"
same "one warning" "$(grep -c "is not kept" "$work/log")" 1
finish
