#!/bin/bash
# A published model for sentences (all-MiniLM-L6-v2) on a chapter of a novel: its paragraphs' vectors are
# those of sentence-transformers (tests/fixtures/embed/all-MiniLM-L6-v2.vectors), and so are the paragraphs
# nearest to a question; on one rank and on three.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
# shellcheck source=tests/common/vectors.sh
source tests/common/vectors.sh

if ! encoder=$(scripts/fetch_model.sh --encoder 2>"$work/fetch"); then
    echo "skipped: $(tail -1 "$work/fetch")"
    exit 77
fi
fixture=tests/fixtures/embed/all-MiniLM-L6-v2.vectors
novel=tests/fixtures/smollm2/pride.txt
alone=(--model "$encoder" --document "$novel" --set task.passages=paragraphs --set task.late_chunking=false)
grep ^alone: $fixture | cut -d' ' -f2- >"$work/expected"
n_row=$(wc -l <"$work/expected")
for ranks in "" 3; do
    for precision in "fp32 1e-6" "auto 2e-3"; do
        name="${precision% *} on ${ranks:-1}"
        RANKS=$ranks expect "$name" 0 "" run --task embed "${alone[@]}" --output "$work/vectors" --overwrite \
            --set run.precision="${precision% *}"
        rows vectors | head -"$n_row" >"$work/got"
        near "$name: vectors" "$work/got" "$work/expected" "${precision#* }"
    done
    RANKS=$ranks expect "locate on ${ranks:-1}" 0 "" run --task locate "${alone[@]}" --output "$work/nearest" \
        --overwrite --question "How rich is Mr. Bingley?" --set task.evidence=3
    # The number of a paragraph is its place in the output of embed.
    nearest=$(grep -o '"byte_start": [0-9]*' "$work/nearest/results.jsonl" | while read -r start; do
        grep -o '"byte_start": [0-9]*' "$work/vectors/results.jsonl" | grep -nx "$start" |
            awk -F: '{ print $1 - 1 }'
    done | paste -sd' ')
    same "the nearest on ${ranks:-1}" "$nearest" "$(sed -n 's/^nearest //p' $fixture)"
done
finish
