#!/bin/bash
# Answers and real text with the demo model: questions that share one reading, evidence, raw
# continuation, sampling, standard input, byte order marks, the context's limit.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
if [ ! -r "$model" ]; then
    echo "no demo model at $model"
    exit 77
fi
ferry_text >"$work/text"
ask() { # NAME OUTPUT ARGUMENT...: on RANKS ranks
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" run --model "$model" --task answer --set task.max_tokens=12 \
        --output "$work/$output" "$@"
}
answer() { # OUTPUT LINE
    sed -n "${2}p" "$work/$1/results.jsonl" | sed 's/.*"answer": \("[^"]*"\).*/\1/'
}

questions=(--question "When does the ferry leave?" --question "What do dogs pay?")
ask "two questions" one --document "$work/text" "${questions[@]}" --set run.precision=fp32
RANKS=3 ask "two questions on three ranks" three --document "$work/text" "${questions[@]}" \
    --set run.precision=fp32
for line in 1 2; do
    same "answer $line on three ranks" "$(answer three $line)" "$(answer one $line)"
done
ask "the second alone" second --document "$work/text" --question "What do dogs pay?" \
    --set run.precision=fp32
same "earlier questions leave no trace" "$(answer second 1)" "$(answer one 2)"
# The first question costs its own tokens: the document is read once for both.
n_more=$(($(number tokens_read "$work/one/report.json" 3) - $(number tokens_read \
    "$work/second/report.json" 3)))
if [ $n_more -gt 0 ] && [ $n_more -lt 30 ]; then passed; else failed "$n_more tokens more"; fi
# Layers of a window hold on to what the next question sees when the one before is forgotten.
window=(--set attention.window=16 --set attention.sinks=2 --set run.precision=fp32)
ask "windows" window --document "$work/text" "${questions[@]}" "${window[@]}"
ask "windows: the second alone" window2 --document "$work/text" --question "What do dogs pay?" \
    "${window[@]}"
same "windows: no trace" "$(answer window2 1)" "$(answer window 2)"
RANKS=2 ask "windows on two ranks" window22 --document "$work/text" "${questions[@]}" "${window[@]}"
same "windows on two ranks: answer" "$(answer window22 2)" "$(answer window 2)"
# The evidence's text is what its bytes hold, also with a byte order mark before it.
evidence_is_exact() { # NAME OUTPUT FILE
    local begin end
    begin=$(number byte_start "$work/$2/results.jsonl")
    end=$(number byte_end "$work/$2/results.jsonl")
    holds "$1" "$work/$2/results.jsonl" \
        "$(tail -c +$((begin + 1)) "$3" | head -c $((end - begin)) | head -1)"
}
evidence_is_exact "evidence" one "$work/text"
{ printf '\xef\xbb\xbf' && cat "$work/text"; } >"$work/text.marked"
ask "byte order mark" marked --document "$work/text.marked" "${questions[@]}" --set run.precision=fp32
evidence_is_exact "evidence after a byte order mark" marked "$work/text.marked"
same "byte order mark is not read" "$(answer marked 1)" "$(answer one 1)"
same "evidence of offsets" "$(number byte_start "$work/marked/results.jsonl")" \
    $(($(number byte_start "$work/one/results.jsonl") + 3))

# Without a question the document itself is continued.
printf 'One, two, three, four, five, six,' >"$work/count"
RANKS=2 ask "continuation" raw --document "$work/count"
same "continuation: text" "$(answer raw 1 | grep -c 'seven, eight')" 1
holds "continuation: no question" "$work/raw/results.jsonl" '"question": null'
RANKS=2 ask "sampled" sample1 --document "$work/count" --set task.temperature=1.5 --set run.seed=3 \
    --set run.precision=fp32
ask "sampled again" sample2 --document "$work/count" --set task.temperature=1.5 --set run.seed=3 \
    --set run.precision=fp32
ask "another seed" sample3 --document "$work/count" --set task.temperature=1.5 --set run.seed=4 \
    --set run.precision=fp32
same "the same seed" "$(answer sample1 1)" "$(answer sample2 1)"
if [ "$(answer sample3 1)" != "$(answer sample1 1)" ]; then passed; else failed "seeds differ"; fi
ask "without evidence" plain --document "$work/count" --set task.evidence=0
holds "without evidence: none" "$work/plain/results.jsonl" '"evidence": []'

# Standard input, a glob, a list, a context that is lifted.
score() { # NAME OUTPUT ARGUMENT...
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" run --model "$model" --task score --output "$work/$output" "$@"
}
RANKS=2 score "standard input" stdin --document - <"$work/text"
score "file" file --document "$work/text"
same "standard input: tokens" "$(number n_token "$work/stdin/results.jsonl")" \
    "$(number n_token "$work/file/results.jsonl")"
mkdir "$work/many"
cp "$work/text" "$work/many/b.txt"
cp "$work/count" "$work/many/a.txt"
RANKS=2 score "glob" glob --document "$work/many/*.txt"
same "glob: results" "$(wc -l <"$work/glob/results.jsonl")" 2
score "lifted context" lifted --document "$work/text" --set model.context=20000
same "lifted context: nothing beyond" "$(number tokens_beyond_training "$work/lifted/report.json" 8)" 0
RANKS=2 expect "plan" 0 "keys and values" plan --model "$model" --document "$work/text"
expect "inspect" 0 "rope" inspect "$model"
expect "inspect answers" 0 "2 results" inspect "$work/one"
finish
