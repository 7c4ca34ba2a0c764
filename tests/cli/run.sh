#!/bin/bash
# What runs write: documents of all kinds, windows, continued and refused jobs, reports, plan,
# verify and inspect, on one and more ranks.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh

for i in $(seq 0 299); do echo $((i * 37 % 101)); done >"$work/ids"
tiny() { # NAME OUTPUT ARGUMENT...
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" run --model "$tiny" --task score --set run.precision=fp32 \
        --output "$work/$output" "$@"
}
perplexity() { number perplexity "$work/$1/results.jsonl" "${2:-1}"; }
digits() { printf '%.4g' "$1"; } # the first four

# One rank and many, more ranks than tokens, layouts, chunks.
tiny "one rank" one --tokens "$work/ids"
whole=$(perplexity one)
for ranks in 2 3 4; do
    RANKS=$ranks tiny "$ranks ranks" "ranks$ranks" --tokens "$work/ids"
    same "perplexity on $ranks ranks" "$(digits "$(perplexity "ranks$ranks")")" "$(digits "$whole")"
done
tiny "chunks" chunks --tokens "$work/ids" --set prefill.chunk=64
same "perplexity in chunks" "$(digits "$(perplexity chunks)")" "$(digits "$whole")"
RANKS=3 tiny "contiguous" contiguous --tokens "$work/ids" --set partition.layout=contiguous
same "perplexity of contiguous" "$(digits "$(perplexity contiguous)")" "$(digits "$whole")"
RANKS=2 expect "layout by cost" 0 "" run --model tests/fixtures/tiny-mistral-window --task score \
    --tokens "$work/ids" --set model.context=300 --output "$work/by_cost"
holds "layout by cost: report.txt" "$work/by_cost/report.txt" "layout chosen: attention takes about"
holds "layout by cost: report.json" "$work/by_cost/report.json" '"layout_seconds": {'
echo "17 4 9" >"$work/three"
tiny "three tokens" three1 --tokens "$work/three"
RANKS=5 tiny "more ranks than tokens" three5 --tokens "$work/three"
same "perplexity of three tokens" "$(digits "$(perplexity three5)")" "$(digits "$(perplexity three1)")"
echo 17 >"$work/one_id"
RANKS=2 tiny "one token" token --tokens "$work/one_id" --set task.token_logprobs=true
same "perplexity of one token" "$(perplexity token)" null
holds "its log-probability" "$work/token/results.jsonl" '"token_logprobs": [null]'

# What the shell's <(...) opens is read once; mpirun does not pass it on.
tiny "pipe" pipe --tokens <(cat "$work/ids")
same "perplexity of a pipe" "$(perplexity pipe)" "$whole"
RANKS=2 expect "pipe through mpirun" 66 "mpirun does not pass on" run --model "$tiny" \
    --tokens <(cat "$work/ids") --output "$work/pipe2"

# Windows: one of the document's length is the whole; small ones read every token.
tiny "whole window" window1 --tokens "$work/ids" --set document.window=300
same "perplexity of the whole window" "$(perplexity window1)" "$whole"
tiny "windows" window2 --tokens "$work/ids" --set document.window=64 --set document.stride=16 \
    --set task.token_logprobs=true --set model.context=64
same "tokens of windows" "$(number n_token "$work/window2/results.jsonl")" 300
same "log-probabilities of windows" \
    "$(grep -o '"token_logprobs".*\]' "$work/window2/results.jsonl" | grep -o 'null' | wc -l)" 1
same "tokens read again" "$(number recomputed_tokens "$work/window2/report.json" 5)" 720

# A job continues; another one is refused, or overwrites.
tiny "two documents" jobs --tokens "$work/ids" --tokens "$work/three"
same "two results" "$(wc -l <"$work/jobs/results.jsonl")" 2
cp "$work/jobs/results.jsonl" "$work/complete"
tiny "again" jobs --tokens "$work/ids" --tokens "$work/three"
holds "again: finished" "$work/log" "holds 2 of 2 results"
same "again: unchanged" "$(cat "$work/jobs/results.jsonl")" "$(cat "$work/complete")"
printf '%s' "$(head -c -20 "$work/complete")" >"$work/jobs/results.jsonl"
RANKS=2 tiny "after an interrupted line" jobs --tokens "$work/ids" --tokens "$work/three"
holds "after an interrupted line: one finished" "$work/log" "holds 1 of 2 results"
same "after an interrupted line: whole" "$(sed 's/"seconds.*"id"/"id"/' "$work/jobs/results.jsonl" |
    sed 's/\("perplexity": [0-9.]\{6\}\)[0-9]*/\1/')" "$(sed 's/"seconds.*"id"/"id"/' \
    "$work/complete" | sed 's/\("perplexity": [0-9.]\{6\}\)[0-9]*/\1/')"
tiny "one document twice" twice --tokens "$work/ids" --tokens "$work/ids"
cp "$work/twice/results.jsonl" "$work/complete"
head -1 "$work/complete" >"$work/twice/results.jsonl"
tiny "one of two that are the same" twice --tokens "$work/ids" --tokens "$work/ids"
holds "one of two that are the same: finished" "$work/log" "holds 1 of 2 results"
same "one of two that are the same: both" "$(wc -l <"$work/twice/results.jsonl")" 2
expect "another job" 73 "belongs to another job" run --model "$tiny" --tokens "$work/three" \
    --output "$work/jobs"
expect "overwritten" 0 "" run --model "$tiny" --tokens "$work/three" --output "$work/jobs" --overwrite
exec 9>>"$work/jobs/results.jsonl"
flock -n 9
for more in "" --overwrite; do
    expect "two jobs at once" 73 "is being written by another job" run --model "$tiny" \
        --tokens "$work/three" --output "$work/jobs" ${more:+"$more"}
done
exec 9>&-
same "two jobs at once: unchanged" "$(wc -l <"$work/jobs/results.jsonl")" 1
same "overwritten: one result" "$(wc -l <"$work/jobs/results.jsonl")" 1

# Reports, and the verbs that read no document or no weights.
for key in recomputed_tokens ranks kv_bytes bytes_sent bytes_received attention_flop ring_wait \
    peak_bytes kv_resident_bytes buffer_resident_bytes; do
    holds "report.json" "$work/ranks4/report.json" "\"$key\""
done
# Of a store that is full, every page was written to.
same "report.json: K/V in memory" "$(awk -F'[:,]' '/"kv_bytes"/ { planned = $2 }
    /"kv_resident_bytes"/ { print ($2 > 0.8 * planned && $2 <= planned) }' \
    "$work/ranks4/report.json" | tr '\n' ' ')" "1 1 1 1 "
holds "report.txt" "$work/ranks4/report.txt" "Seconds by phase over 4 ranks"
same "ranks of the report" "$(grep -c '"rank"' "$work/ranks4/report.json")" 4
expect "plan" 0 "keys and values" plan --model "$tiny" --tokens "$work/ids"
RANKS=3 expect "verify on three ranks" 0 "0 failed: PASSED" verify
expect "verify without vectors" 0 "0 failed: PASSED" verify --set run.isa=plain
expect "inspect results" 0 "perplexity" inspect "$work/ranks4"
expect "inspect checkpoint" 0 "llama" inspect "$tiny"
finish
