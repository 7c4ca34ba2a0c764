#!/bin/bash
# store.dir: what one job read another one restores, on other ranks, for another task and for a
# document that begins alike; a job that was killed goes on where it had saved; damage is refused.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh

for i in $(seq 0 1999); do echo $((i * 37 % 101)); done >"$work/ids"
echo "17 4 9" >"$work/three"
store=$work/store
score() { # NAME OUTPUT ARGUMENT...; of DOCUMENT or ids
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" run --model "$tiny" --tokens "$work/${DOCUMENT:-ids}" --task score \
        --output "$work/$output" --set run.precision=fp32 --set model.context=4096 \
        --set task.token_logprobs=true "$@"
}
perplexity() { printf '%.5g' "$(number perplexity "$work/$1/results.jsonl")"; }
counted() { grep -oE "\"$2\": [0-9]+" "$work/$1/report.json" | sed 's/.*: //'; } # OUTPUT KEY

score "without a store" plain
score "reads and keeps" first --set store.dir="$store"
same "nothing was there" "$(counted first restored_tokens)" 0
same "perplexity of the first" "$(perplexity first)" "$(perplexity plain)"
for ranks in 1 2 3; do
    RANKS=$ranks score "restores on $ranks ranks" "again$ranks" --set store.dir="$store"
    same "restored on $ranks ranks" "$(counted "again$ranks" restored_tokens)" 2000
    same "read on $ranks ranks" "$(counted "again$ranks" tokens_read)" 0
    same "compared on $ranks ranks" "$(counted "again$ranks" probed_tokens)" 64
    same "log-probabilities of $ranks ranks" \
        "$(grep -o '"token_logprobs".*\]' "$work/again$ranks/results.jsonl" | md5sum)" \
        "$(grep -o '"token_logprobs".*\]' "$work/first/results.jsonl" | md5sum)"
done
expect "inspect a store" 0 "2000 of 2000 tokens, K/V F32, log-probabilities" inspect "$store"
expect "inspect a context" 0 "ids, 2000 of 2000 tokens" inspect "$store"/*
cp "$work/log" "$work/seen"
head -c 5000000 /dev/zero >"$(echo "$store"/*)/pages-99" # what a killed save left
expect "inspect beside leftovers" 0 " MiB in 1 save, " inspect "$store"/*
same "leftovers do not count" "$(md5sum <"$work/log")" "$(md5sum <"$work/seen")"
score "with leftovers" leftovers --set store.dir="$store"
same "leftovers go" "$(find "$store" -name 'pages-*' | wc -l)" 1

# Documents that begin alike: one that grew, then one whose end is another.
{ cat "$work/ids" && seq 0 99; } >"$work/grown"
{ head -1700 "$work/ids" && seq 0 99; } >"$work/changed"
alike() { # DOCUMENT RANKS RESTORED TOKENS
    DOCUMENT=$1 score "reads all of $1" "plain_$1"
    DOCUMENT=$1 RANKS=$2 score "$1 on $2 ranks" "like_$1" --set store.dir="$store"
    holds "says what $1 begins like" "$work/log" \
        "$3 of $4 tokens restored from $store (they begin like $work/"
    same "restored of $1" "$(counted "like_$1" restored_tokens)" "$3"
    same "perplexity of $1" "$(perplexity "like_$1")" "$(perplexity "plain_$1")"
}
alike grown 2 2000 2100
alike changed 3 1699 1800
same "contexts of their own" "$(find "$store" -name manifest.json | wc -l)" 3

# What was kept is of one model and precision; another is read, and kept beside it.
score "bf16 K/V" bf16 --set store.dir="$store" --set kv.precision=bf16
same "bf16 restores nothing" "$(counted bf16 restored_tokens)" 0
same "a context more" "$(find "$store" -name manifest.json | wc -l)" 4

# Whatever the processor that reads it.
for isa in auto plain; do
    expect "isa $isa" 0 "" run --model "$tiny" --tokens "$work/ids" --task score --output "$work/isa_$isa" \
        --set model.context=4096 --set run.isa=$isa --set store.dir="$work/processors"
done
same "restored for plain C" "$(counted isa_plain restored_tokens)" 2000

# Windows are not kept.
score "windows" windows --set store.dir="$work/none" --set document.window=1000
same "no store of windows" "$(find "$work/none" -name manifest.json 2>/dev/null | wc -l)" 0

# Killed in mid-document: what was saved is not read again.
saved() { grep -m1 -oE '"done": [0-9]+' "$work"/cut/*/manifest.json 2>/dev/null | sed 's/.*: //'; }
for i in $(seq 0 15999); do echo $((i * 37 % 101)); done >"$work/long"
long() { # in a process of its own
    exec "$halka" run --model "$tiny" --tokens "$work/long" --task score --output "$work/cut_output" \
        --set run.precision=fp32 --set model.context=65536 --set prefill.chunk=500 \
        --set store.dir="$work/cut" --set store.every=0.000001 >"$work/log" 2>&1
}
long &
job=$!
for _ in $(seq 600); do
    [ "$(saved)" = "" ] || [ "$(saved)" -lt 1500 ] || break
    sleep 0.1
done
kill -9 $job
wait $job 2>/dev/null
done_before=$(saved)
if [ "${done_before:-0}" -ge 500 ] && [ "$done_before" -lt 16000 ]; then passed; else failed "a job in mid-document"; fi
if (long); then passed; else failed "continues" "$work/log"; fi
same "goes on where it had saved" "$(counted cut_output restored_tokens)" "$done_before"
same "and reads the rest" "$(counted cut_output tokens_read)" $((16000 - done_before))

# Asked to stop: what was read is kept, and the same job goes on, by signal or by time.
whole=$(perplexity cut_output)
stopping() { # OUTPUT RANKS ARGUMENT...
    exec "$mpirun" -np "$2" "$halka" run --model "$tiny" --tokens "$work/long" --task score \
        --output "$work/$1" --set run.precision=fp32 --set model.context=65536 \
        --set prefill.chunk=500 --set store.dir="$work/$1.store" "${@:3}" >"$work/log" 2>&1
}
for ranks in 1 2; do
    (stopping "signal$ranks" $ranks --set store.every=0.000001) &
    job=$!
    for _ in $(seq 600); do
        [ ! -e "$(echo "$work/signal$ranks.store"/*/manifest.json)" ] || break
        sleep 0.1
    done
    kill -USR1 $job
    wait $job
    same "stopped by a signal on $ranks ranks" $? 75
    holds "says what to do" "$work/log" "submit the same job again"
    (stopping "signal$ranks" $ranks)
    same "goes on on $ranks ranks" $? 0
    same "perplexity after a stop on $ranks ranks" "$(perplexity "signal$ranks")" "$whole"
    restored=$(counted "signal$ranks" restored_tokens)
    if [ "${restored:-0}" -ge 500 ]; then passed; else failed "restored after a stop" "$work/log"; fi
    same "and read the rest" "$(counted "signal$ranks" tokens_read)" $((16000 - restored))
done
n_stop=0
while (stopping time 1 --set run.max_seconds=0.3 --set prefill.chunk=2000); [ $? -eq 75 ] && [ $n_stop -lt 100 ]; do
    n_stop=$((n_stop + 1))
done
if [ $n_stop -ge 1 ] && [ $n_stop -lt 100 ]; then passed; else failed "$n_stop stops by time" "$work/log"; fi
same "perplexity after $n_stop stops" "$(perplexity time)" "$whole"
"$halka" run --model "$tiny" --tokens "$work/three" --tokens "$work/ids" --task score \
    --output "$work/between" --set model.context=4096 --set run.max_seconds=0.000001 >"$work/log" 2>&1
same "stops before a document" $? 75

# A long document is read in chunks by itself, where it is kept.
expect "plan: chunks" 0 "tokens are read in chunks of" plan --model "$tiny" --set plan.tokens=1000000 \
    --set model.context=2000000 --set store.dir="$work/planned"
expect "plan: none are kept" 0 "" plan --model "$tiny" --set plan.tokens=1000000 \
    --set model.context=2000000
if grep -q "in chunks of" "$work/log"; then failed "chunks of what is not kept" "$work/log"; else passed; fi

# Damage.
ids=$(grep -lF '"n_token": 2000' "$store"/*/manifest.json | xargs grep -lF '"dtype": "F32"')
pages=$(echo "$(dirname "$ids")"/pages-*)
printf '\377\377\377\377' | dd of="$pages" bs=1 seek=1000 conv=notrunc status=none
for ranks in 1 2; do
    RANKS=$ranks expect "a damaged page on $ranks ranks" 65 "is damaged" run --model "$tiny" \
        --tokens "$work/ids" --task score --output "$work/damaged" --set run.precision=fp32 \
        --set model.context=4096 --set task.token_logprobs=true --set store.dir="$store"
done
expect "a store that cannot be made" 73 "store" run --model "$tiny" --tokens "$work/ids" --task score \
    --output "$work/refused" --set model.context=4096 --set store.dir=/proc/store

# An answer after a restored document is that of the document read.
if [ -f "$model" ]; then
    ask() { # NAME OUTPUT QUESTION
        expect "$1" 0 "" run --model "$model" --document tests/fixtures/smollm2/pride.txt --task answer \
            --question "$3" --set task.max_tokens=12 --set run.precision=fp32 --output "$work/$2" \
            --set store.dir="$work/answers"
    }
    answer() { grep -o '"answer": "[^"]*"' "$work/$1/results.jsonl"; }
    ask "asks" asked "Who is speaking to Mr. Bennet?"
    RANKS=2 ask "asks again, on 2 ranks" asked2 "Who is speaking to Mr. Bennet?"
    same "answers alike" "$(answer asked2)" "$(answer asked)"
    same "reads the question only" "$([ "$(counted asked2 tokens_read)" -lt 100 ] && echo yes)" yes
    { cat tests/fixtures/smollm2/pride.txt && echo "They live in Hertfordshire."; } >"$work/grown.txt"
    text() { # OUTPUT DOCUMENT ARGUMENT...
        expect "scores $1" 0 "" run --model "$model" --document "$2" --task score \
            --set run.precision=fp32 --output "$work/$1" "${@:3}"
    }
    text text_plain "$work/grown.txt"
    text text_before tests/fixtures/smollm2/pride.txt --set store.dir="$work/texts"
    text text_grown "$work/grown.txt" --set store.dir="$work/texts"
    same "perplexity of a text that grew" "$(perplexity text_grown)" "$(perplexity text_plain)"
    if [ "$(counted text_grown restored_tokens)" -gt 1000 ]; then passed; else failed "restored of a text"; fi
    ask "asks something else" asked3 "Where do they live?"
    holds "restores for another question" "$work/asked3/report.txt" "tokens were restored from"
    for output in continued continued2; do
        expect "continues a document, $output" 0 "" run --model "$model" --task answer \
            --document tests/fixtures/smollm2/pride.txt --set task.max_tokens=12 \
            --set run.precision=fp32 --output "$work/$output" --set store.dir="$work/answers"
    done
    same "continues alike" "$(answer continued2)" "$(answer continued)"
    same "of nothing that was read again" "$(counted continued2 tokens_read)" 0
else
    echo "skipped: no demo model"
fi
finish
