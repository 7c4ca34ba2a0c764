#!/bin/bash
# Inputs that cannot be read and outputs that cannot be written: exit code and message of each.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh

printf 'One line of text.\n' >"$work/good.txt"
score() { # NAME CODE TEXT ARGUMENT...: with the tiny model and an output of its own
    local name=$1 code=$2 text=$3
    shift 3
    expect "$name" "$code" "$text" run --model "$tiny" --task score --output "$work/out-$RANDOM" "$@"
}
printf '5 9 2 7 1 4\n' >"$work/ids"

# Checkpoints. What each damage does to a reader is in the unit tests of the readers.
expect "no checkpoint" 66 "$work/none.gguf" run --model "$work/none.gguf" --tokens "$work/ids" \
    --output "$work/o"
printf 'GGUF\3\0\0\0\377\377\377\377\377\377\377\177' >"$work/counts.gguf"
expect "absurd counts" 65 "counts.gguf" run --model "$work/counts.gguf" --tokens "$work/ids" \
    --output "$work/o"
expect "not a checkpoint" 65 "good.txt" run --model "$work/good.txt" --tokens "$work/ids" \
    --output "$work/o"
cp -r "$tiny" "$work/cut"
truncate -s -1000 "$work/cut/model.safetensors"
expect "truncated safetensors" 65 "model.safetensors" run --model "$work/cut" \
    --tokens "$work/ids" --output "$work/o"
if [ -r "$model" ]; then
    head -c 3000000 "$model" >"$work/cut.gguf"
    for ranks in 1 3; do
        RANKS=$ranks expect "truncated GGUF on $ranks" 65 "cut.gguf" run --model "$work/cut.gguf" \
            --document "$work/good.txt" --output "$work/o"
    done
fi

expect "no checkpoint named" 78 "no model" run --model "" --tokens "$work/ids" --output "$work/o"
printf '[1]' >"$work/list.json"
for factors in none good.txt list.json; do
    code=65
    [ $factors != none ] || code=66
    expect "factors in $factors" $code "$factors" run --model "$tiny" --tokens "$work/ids" \
        --set extension.method=longrope --set extension.factor=2 \
        --set extension.factors="$work/$factors" --output "$work/o"
done

# Documents.
score "missing document" 66 "none.txt" --document "$work/none.txt"
score "glob without match" 66 "no file matches" --document "$work/*.none"
score "folder as document" 66 "is a folder" --document "$work"
score "no tokenizer" 65 "give token ids with --tokens" --document "$work/good.txt"
printf '1 2 x3\n' >"$work/word"
score "bad token id" 65 "'x3' at byte 4" --tokens "$work/word"
printf '1 99999\n' >"$work/large"
score "id outside the vocabulary" 65 "99999 at byte 2 is outside" --tokens "$work/large"
printf '1 -2\n' >"$work/negative"
score "negative id" 65 "outside the vocabulary" --tokens "$work/negative"
printf ' \n' >"$work/blank"
score "no ids" 65 "holds no token ids" --tokens "$work/blank"
seq 0 1 5 | tr '\n' ' ' >"$work/six"
for _ in $(seq 200); do cat "$work/six"; done >"$work/long"
score "too long" 65 "1200 tokens but the model's context is 1000" --tokens "$work/long" \
    --set model.context=1000
score "too long: what to set" 65 "document.window" --tokens "$work/long" --set model.context=1000
score "window above context" 78 "set model.context" --tokens "$work/long" \
    --set model.context=1000 --set document.window=1100
: >"$work/empty"
printf '\xef\xbb\xbf' >"$work/mark"
printf 'abc \xff def' >"$work/invalid"
if [ -r "$model" ]; then
    text() { # NAME CODE TEXT FILE
        expect "$1" "$2" "$3" run --model "$model" --document "$4" --output "$work/o"
    }
    text "empty document" 65 "empty is empty" "$work/empty"
    text "only a byte order mark" 65 "mark is empty" "$work/mark"
    text "invalid UTF-8" 65 "invalid: " "$work/invalid"
    text "invalid UTF-8: where" 65 "byte 4" "$work/invalid"
    RANKS=2 text "invalid UTF-8 on two ranks" 65 "rank 0" "$work/invalid"
    expect "answer without room" 65 "with prompt and answer" run --model "$model" --task answer \
        --question "Who?" --document "$work/good.txt" --set model.context=20 --output "$work/o"
fi

# Outputs.
: >"$work/file"
mkdir "$work/piped" && mkfifo "$work/piped/results.jsonl"
expect "results.jsonl is a pipe" 73 "is a pipe" run --model "$tiny" --tokens "$work/ids" \
    --task score --output "$work/piped"
expect "an empty question" 78 "question 2 is empty" run --model "$tiny" --tokens "$work/ids" \
    --task answer --question Who --question "" --output "$work/piped"
expect "output is a file" 73 "is not a folder" run --model "$tiny" --tokens "$work/ids" \
    --output "$work/file"
expect "no output named" 78 "no output folder" run --model "$tiny" --tokens "$work/ids" --output ""
expect "output below a file" 73 "cannot make" run --model "$tiny" --tokens "$work/ids" \
    --output "$work/file/below"
mkdir "$work/full"
ln -s /dev/full "$work/full/results.jsonl"
for ranks in 1 2; do
    RANKS=$ranks expect "full disk on $ranks" 74 "No space left" run --model "$tiny" \
        --tokens "$work/ids" --output "$work/full"
done

# Results that inspect cannot show.
mkdir "$work/odd" "$work/odd/results.jsonl"
expect "inspect a folder as results" 66 "results.jsonl" inspect "$work/odd"
rmdir "$work/odd/results.jsonl"
echo '{"task": "score", "document": "a"}' >"$work/odd/results.jsonl"
expect "inspect without report" 0 "the run has not ended" inspect "$work/odd"
echo '{' >"$work/odd/report.json"
expect "inspect a damaged report" 65 "report.json: line 2" inspect "$work/odd"

# Ranks and memory.
RANKS=2 expect "transport self on two ranks" 78 "run.transport = self" run --model "$tiny" \
    --tokens "$work/ids" --set run.transport=self --output "$work/o"
for transport in nccl mpi_staged; do
    for ranks in 1 2; do
        RANKS=$ranks expect "transport $transport on the host, $ranks" 78 "$transport is for devices" \
            run --model "$tiny" --tokens "$work/ids" --set run.backend=cpu \
            --set run.transport=$transport --output "$work/o"
    done
done
if [ -r "$model" ]; then
    for verb in plan run; do # 2 TB of keys and values
        expect "$verb beyond memory" 71 "are available" $verb --model "$model" --task answer \
            --document "$work/good.txt" --set model.context=1000000000 \
            --set task.max_tokens=100000000 --output "$work/o"
    done
fi
finish
