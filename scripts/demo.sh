#!/bin/bash
# Two ranks read the GNU General Public Licence with SmolLM2-135M-Instruct: how likely each word is
# to the model (perplexity), by dense and by sparse attention; then two questions answered from one
# reading, with evidence.
#   scripts/demo.sh [PROGRAM]     RANKS=2  DOCUMENT=file  OUTPUT=build/demo
set -euo pipefail
cd "$(dirname "$0")/.."
halka=${1:-build/cpu/halka}
ranks=${RANKS:-2}
output=${OUTPUT:-build/demo}
document=${DOCUMENT:-/usr/share/common-licenses/GPL-3}
questions=("What does this license say about warranty?"
    "Who published this license, and in which year?")
if [ ! -r "$document" ]; then
    document=tests/fixtures/smollm2/pride.txt
    questions=("Who has taken Netherfield Park?" "What is the business of Mrs. Bennet's life?")
fi
model=$(scripts/fetch_model.sh)

rm -rf "$output"
mkdir -p "$output"
echo "== $ranks ranks score $document"
scripts/mpirun.sh -np "$ranks" "$halka" run --model "$model" --document "$document" \
    --task score --output "$output/score"
echo
echo "== the same with sparse attention: each token attends the 512 that an indexer selects"
scripts/mpirun.sh -np "$ranks" "$halka" run --model "$model" --document "$document" \
    --set model.indexer=configs/indexers/smollm2-135m-instruct.safetensors \
    --set dsa.top_k=512 --task score --output "$output/sparse"
python3 scripts/compare_reports.py dense="$output/score" sparse="$output/sparse"
echo
echo "== $ranks ranks answer ${#questions[@]} questions about it"
scripts/mpirun.sh -np "$ranks" "$halka" run --model "$model" --document "$document" \
    --task answer --question "${questions[0]}" --question "${questions[1]}" \
    --set task.max_tokens=48 --output "$output/answer"
echo
python3 scripts/show_results.py "$output/score/results.jsonl" "$output/answer/results.jsonl"
echo "== report of the second run ($output/answer/report.txt)"
cat "$output/answer/report.txt"
