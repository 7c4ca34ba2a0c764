#!/bin/bash
# The evaluation verb on a tiny network: cells, resume, ranks, tables and plots, refusals; and what
# an untrained network cannot show, on the demo model: a number found at two depths.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh

use=$work/model # the tiny models have no tokenizer of their own
mkdir "$use"
cp tests/fixtures/tiny-llama/*.json tests/fixtures/tiny-llama/*.safetensors "$use"
cp tests/fixtures/embed/tokenizer.json "$use"
text=tests/fixtures/evidence/paragraphs.txt
grid=(--set "evaluate.lengths=700,900" --set "evaluate.depths=0,100" --set evaluate.perplexity=256
    --set evaluate.bin=64 --set evaluate.methods=none
    --set "evaluate.methods=yarn factor=2 beta_fast=16" --set "evaluate.methods=streaming window=200")
evaluate() { # NAME OUTPUT ARGUMENT...
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" evaluate --model "$use" --document $text --set run.precision=fp32 \
        --output "$work/$output" "$@"
}
plain() { # OUTPUT: its lines without what differs from run to run
    sed 's/"seconds": [^,]*, //' "$work/$1/results.jsonl"
}

evaluate "grid" one "${grid[@]}"
# 3 methods x (2 lengths x (5 families x 2 depths + words) + 1 curve)
same "cells" "$(wc -l <"$work/one/results.jsonl")" 69
RANKS=2 evaluate "part of the grid on two ranks" two "${grid[@]}" --set evaluate.lengths=700 \
    --set evaluate.families=multivalue,words
# Log-probabilities of two ranks differ in the last digits; all else is the same.
plain one | sort >"$work/lines"
same "two ranks: cells" "$(plain two | grep -v perplexity | sort | comm -12 - "$work/lines" | wc -l)" 9
same "two ranks: perplexity" \
    "$(grep -o '"perplexity": [0-9]*\.[0-9]' "$work/two/results.jsonl" | tr -d '\n')" \
    "$(grep -o '"perplexity": [0-9]*\.[0-9]' "$work/one/results.jsonl" | tr -d '\n')"
holds "expected answers" "$work/one/results.jsonl" '"expected": ["'
holds "digest of a prompt" "$work/one/results.jsonl" '"digest": "'
holds "table" "$work/one/evaluation.txt" "yarn factor=2 beta_fast=16           multivalue"
longest=$(grep -o '"n_prompt": [0-9]*' "$work/one/results.jsonl" | sort -t: -k2 -n | tail -1)
same "prompts fill their length" "$longest" '"n_prompt": 876' # 900 less an answer of 24

# An interrupted grid goes on where it stopped, and a finished one runs nothing.
mkdir "$work/cut"
head -40 "$work/one/results.jsonl" >"$work/cut/results.jsonl"
printf '{"method": "none", "fam' >>"$work/cut/results.jsonl"
evaluate "resumed" cut "${grid[@]}"
same "resumed: cells held" "$(grep -c 'holds 40 of 69 cells' "$work/log")" 1
same "resumed: same lines" "$(plain cut | sort | md5sum)" "$(plain one | sort | md5sum)"
evaluate "nothing to do" cut "${grid[@]}"
same "nothing to do: no cell ran" "$(grep -c '^cell ' "$work/log")" 0
expect "another grid" 73 "belongs to another job" evaluate --model "$use" --document $text \
    --output "$work/one" --set evaluate.lengths=700

expect "inspect" 0 "streaming window=200: tracking of 900 tokens, depth 100 %, sample 0: score" \
    inspect "$work/one"

# Lists of factors are known by what they hold; yarn's divisors as such lists are yarn again.
lists() { # FACTOR
    awk -v dim=16 -v base=10000 -v context=256 -v factor="$1" -f scripts/yarn_factors.awk \
        >"$work/factors.json"
}
perplexity() { # LINE OF lists
    sed -n "$1p" "$work/lists/results.jsonl" | grep -o '"perplexity": [0-9]*[.][0-9]'
}
curves=(--set evaluate.families=none --set evaluate.perplexity=512
    --set "evaluate.methods=yarn factor=4 original_context=256")
by_lists="evaluate.methods=longrope factor=4 original_context=256 factors"
lists 4
cp "$work/factors.json" "$work/moved.json"
evaluate "longrope" lists "${curves[@]}" --set "$by_lists=$work/factors.json"
same "longrope by yarn's divisors" "$(perplexity 2)" "$(perplexity 1)"
evaluate "lists elsewhere" lists "${curves[@]}" --set "$by_lists=$work/moved.json"
same "lists elsewhere: no cell ran" "$(grep -c '^cell ' "$work/log")" 0
lists 3
expect "other lists" 73 "belongs to another job" evaluate --model "$use" --document $text \
    --set run.precision=fp32 --output "$work/lists" "${curves[@]}" \
    --set "$by_lists=$work/factors.json"

# Plan and memory in the report are of the largest session, whichever comes last.
sessions=(--set evaluate.families=none --set evaluate.perplexity=900 --set prefill.chunk=100)
evaluate "streaming last" last "${sessions[@]}" --set evaluate.methods=dca \
    --set "evaluate.methods=streaming window=50"
evaluate "streaming first" first "${sessions[@]}" --set "evaluate.methods=streaming window=50" \
    --set evaluate.methods=dca
planned() { grep -o '"planned_bytes": [0-9]*' "$work/$1/report.json"; }
same "plan of the largest session" "$(planned last)" "$(planned first)"
kept() { grep -o '"kv_bytes": [0-9]*' "$work/$1/report.json"; }
same "K/V of the largest session" "$(kept last)" "$(kept first)"

# The plots' commands and data are written wherever gnuplot is.
holds "plot data" "$work/one/retrieval.dat" "# none, tracking: length, depth, score"
holds "plot commands" "$work/one/perplexity.gp" "perplexity.dat"
if command -v gnuplot >/dev/null; then
    for plot in retrieval perplexity; do
        holds "$plot.svg" "$work/one/$plot.svg" "</svg>"
        same "$plot.png" "$(head -c 4 "$work/one/$plot.png" | tail -c 3)" PNG
    done
fi
mkdir "$work/bin"
printf '#!/bin/sh\nexit 3\n' >"$work/bin/gnuplot"
chmod +x "$work/bin/gnuplot"
PATH=$work/bin:$PATH evaluate "gnuplot that fails" bare --set evaluate.families=none \
    --set evaluate.perplexity=64 --set evaluate.bin=32
same "gnuplot that fails: said" "$(grep -c 'warning: no plots, because gnuplot failed' "$work/log")" 1

refuse() { # NAME CODE TEXT SETTING...
    local name=$1 code=$2 fragment=$3 sets=()
    shift 3
    for assignment in "$@"; do sets+=(--set "evaluate.$assignment"); done
    expect "$name" "$code" "$fragment" evaluate --model "$use" --document $text \
        --output "$work/refused" "${sets[@]}"
}
refuse "unknown family" 78 "unknown family 'sewing'" families=single,sewing
refuse "family twice" 78 "names single twice" families=single,single
refuse "lengths descend" 78 "must ascend" lengths=900,700
refuse "length of letters" 78 "'7oo' is not a whole number" lengths=7oo
refuse "depth above 100" 78 "between 0 and 100" depths=0,101
refuse "nothing to evaluate" 78 "nothing to evaluate" families=none
refuse "bin above curve" 78 "must not exceed" perplexity=64 bin=65
refuse "no method" 78 "is not METHOD" methods=factor=2
refuse "unknown method" 78 "must be one of" "methods=elastic factor=2"
refuse "method without its parameter" 78 "needs extension.factor" methods=ntk
refuse "parameter of another method" 78 "is for extension.method = yarn" "methods=ntk beta_fast=2"
refuse "length without room" 78 "must be at least" lengths=100
refuse "text too short" 78 "need a longer text" perplexity=1000000
RANKS=2 refuse "text too short on two ranks" 78 "need a longer text" perplexity=1000000
expect "no output" 78 "no output folder" evaluate --model "$use" --document $text
expect "two documents" 78 "in one document, and 2" evaluate --model "$use" --document $text \
    --document $text --output "$work/refused"
expect "no tokenizer" 65 "has no tokenizer" evaluate --model "$tiny" --tokens \
    tests/fixtures/evidence/paragraphs.txt --output "$work/refused"

if [ -r "$model" ]; then
    use=$model
    RANKS=2 evaluate "demo model" demo --set evaluate.families=single --set evaluate.lengths=300 \
        --set evaluate.depths=0,60
    same "demo model: found" "$(grep -c '"score": 1.0' "$work/demo/results.jsonl")" 2
fi
finish
