#!/bin/bash
# Sparse attention from the command line: what is refused, with exit code and message, and that
# ranks, exchanges and k beyond the length change nothing.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
deepseek=tests/fixtures/deepseek_v32_tiny
glm=tests/fixtures/glm_moe_dsa_tiny
for i in $(seq 0 149); do echo $((i * 37 % 101)); done >"$work/ids"
echo "17 4 9" >"$work/three"

# damaged MODEL FILE FROM TO: a copy with one text replaced, by another of its length in tensors.
damaged() {
    rm -rf "$work/model"
    cp -r "$1" "$work/model"
    grep -qF -e "$3" "$1/$2" || failed "$1/$2 has no '$3'"
    LC_ALL=C sed -i "s/${3//[/\\[}/$4/" "$work/model/$2"
}
refused() { # NAME CODE TEXT [ARGUMENT...]
    local name=$1 code=$2 text=$3
    shift 3
    expect "$name" "$code" "$text" run --model "$work/model" --tokens "$work/ids" \
        --output "$work/out-$RANDOM" "$@"
}
damaged $deepseek config.json '"index_topk": 16' '"index_topk": 0'
refused "index_topk 0" 65 "index_topk"
damaged $deepseek config.json '"index_topk": 16' '"index_topk": 1000000'
refused "index_topk above the context" 65 "exceeds the context"
damaged $glm config.json '"indexer_types": [' '"indexer_types": ["full", '
refused "indexer_types too long" 65 "indexer_types has 5 entries for 4 layers"
damaged $glm config.json '"full"' '"shared"'
refused "nothing to share" 65 "the first layer shares the selection"
damaged $deepseek model.safetensors layers.1.self_attn.indexer.k_norm.bias \
    layers.1.self_attn.indexer.k_norm.biaz
refused "no tensor of the indexer" 65 "layers.1.self_attn.indexer.k_norm.bias"
damaged tests/fixtures/deepseek_v32_fp8_tiny model.safetensors weight_scale_inv weight_scale_inx
refused "no scales" 65 "weight_scale_inv"

# A weight that is not a number: one message names layer, query and token.
rm -rf "$work/model"
cp -r $deepseek "$work/model"
file=$work/model/model.safetensors
n_header=$(od -An -tu8 -N8 "$file" | tr -d ' ')
offset=$(head -c $((8 + n_header)) "$file" | LC_ALL=C grep -aoE \
    'layers.1.self_attn.indexer.k_norm.bias":[^}]*"data_offsets": ?\[[0-9]+' | grep -oE '[0-9]+$')
printf '\377\377\377\377' | dd of="$file" bs=1 seek=$((8 + n_header + offset)) conv=notrunc \
    2>/dev/null
refused "a score that is no number" 65 "layer 1: the indexer's score of query 0 on token 0 is not"
"$mpirun" -np 3 "$halka" run --model "$work/model" --tokens "$work/ids" --output "$work/o" \
    >"$work/log" 2>&1 # each rank meets it at once, and may say so before the job has ended
same "a score that is no number, on three ranks" $? 65
holds "its layer" "$work/log" "layer 1: the indexer's score of query"

expect "dsa without an indexer" 78 "needs an indexer" run --model "$tiny" --tokens "$work/ids" \
    --set attention.kind=dsa --output "$work/o"
expect "top_k without an indexer" 78 "has no indexer" run --model "$tiny" --tokens "$work/ids" \
    --set dsa.top_k=8 --output "$work/o"
expect "top_k above the context" 78 "exceeds the context" run --model $deepseek \
    --tokens "$work/ids" --set dsa.top_k=1000000 --output "$work/o"
expect "top_k 0" 78 "dsa.top_k" run --model $deepseek --set dsa.top_k=-1
expect "an indexer of another model" 65 "another model" run --model "$tiny" \
    --tokens "$work/ids" --output "$work/o" \
    --set model.indexer=configs/indexers/smollm2-135m-instruct.safetensors
expect "a model as indexer" 65 "this is no indexer" run --model "$tiny" --tokens "$work/ids" \
    --output "$work/o" --set model.indexer=$deepseek/model.safetensors

score() { # NAME OUTPUT ARGUMENT...: prints nothing
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" run --model $deepseek --task score --set run.precision=fp32 \
        --output "$work/$output" "$@"
}
perplexity() { printf '%.5g' "$(number perplexity "$work/$1/results.jsonl")"; }
score "one rank" one --tokens "$work/ids"
for exchange in keys scores; do
    RANKS=3 score "three ranks, $exchange" $exchange --tokens "$work/ids" \
        --set dsa.exchange=$exchange
    same "perplexity by $exchange" "$(perplexity $exchange)" "$(perplexity one)"
done
# Where experts run is reported, and no row is lost or run twice.
expert_rows() {
    grep -o '"expert_rows": [0-9]*' "$work/$1/report.json" | awk '{ n += $2 } END { print n }'
}
same "expert rows of three ranks" "$(expert_rows keys)" "$(expert_rows one)"
if [ "$(expert_rows one)" -ge 300 ]; then passed; else failed "expert rows: $(expert_rows one)"; fi
score "all selected" all --tokens "$work/ids" --set dsa.top_k=150
score "dense" dense --tokens "$work/ids" --set attention.kind=dense
same "k of the length is dense" "$(perplexity all)" "$(perplexity dense)"
if [ "$(perplexity one)" != "$(perplexity dense)" ]; then passed; else failed "dense is sparse"; fi
score "three tokens" three1 --tokens "$work/three"
RANKS=10 score "more ranks than tokens and experts" three10 --tokens "$work/three"
same "perplexity of three tokens" "$(perplexity three10)" "$(perplexity three1)"
finish
