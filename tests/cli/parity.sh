#!/bin/bash
# The program itself against Hugging Face's numbers: log-probabilities that `halka run --task score`
# writes for the token ids of committed references, on 1 to 4 ranks, plain and reloaded dialects.
set -uo pipefail
halka=${HALKA:-$PWD/build/cpu/halka}
mpirun=${MPIRUN:-$PWD/scripts/mpirun.sh}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tolerance=2e-3 # PARITY_FP32_MAX of tests/common/tolerance.h
n_failed=0

list_of() { # FIELD FILE: the first array of that name, one value a line
    tr -d ' \n' <"$2" | grep -o "\"$1\":\[[^]]*\]" | head -1 | sed 's/.*\[//; s/\]//' | tr ',' '\n'
}
# The references read past the trained context of some.
check() { # MODEL RANKS
    local folder=tests/fixtures/$1 output=$work/$1-$2 line
    list_of token "$folder/reference.json" >"$work/tokens"
    list_of logprob "$folder/reference.json" >"$work/expected"
    if ! "$mpirun" -np "$2" "$halka" run --model "$folder" --tokens "$work/tokens" --task score \
        --set run.precision=fp32 --set task.token_logprobs=true --output "$output" \
        --set model.context=512 >"$work/log" 2>&1; then
        echo "FAILED: $1 on $2 ranks"
        cat "$work/log"
        return 1
    fi
    list_of token_logprobs "$output/results.jsonl" >"$work/got"
    line=$(paste "$work/got" "$work/expected" | awk -v tolerance=$tolerance '
        $1 == "null" && $2 == "null" { n++; next }
        { d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d; if ($1 < 0 && $2 < 0) n++ }
        END { print n + 0, worst; exit !(worst <= tolerance) }') ||
        { echo "FAILED: $1 on $2 ranks: largest difference ${line#* }"; return 1; }
    if [ "${line% *}" -ne "$(wc -l <"$work/expected")" ]; then
        echo "FAILED: $1 on $2 ranks: ${line% *} log-probabilities compared"
        return 1
    fi
    echo "$1 on $2 ranks: ${line% *} log-probabilities within ${line#* }"
}

for ranks in 1 2 3 4; do
    check tiny-llama $ranks || n_failed=$((n_failed + 1))
done
for model in tiny-llama-old tiny-llama3 tiny-dynamic tiny-longrope tiny-qwen2 tiny-qwen3 tiny-mistral deepseek_v3_tiny \
    deepseek_v32_tiny deepseek_v32_fp8_tiny glm_moe_dsa_tiny; do
    check $model 2 || n_failed=$((n_failed + 1))
done
[ $n_failed -eq 0 ]
