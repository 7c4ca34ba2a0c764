#!/bin/bash
# partition.weights: a run with sharded weights gives the numbers of one with all weights on each
# rank and counts what it gathered; the plan says what fits eight devices of 80 GB.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh

for i in $(seq 0 199); do echo $((i * 37 % 101)); done >"$work/ids"
digits() { printf '%.4g' "$1"; } # the first four
score() { # NAME RANKS ARGUMENT...
    local name=$1
    RANKS=$2 expect "$name" 0 "" run --model tests/fixtures/tiny-qwen3 --task score \
        --set run.precision=fp32 --set prefill.chunk=64 --tokens "$work/ids" \
        --output "$work/$name" "${@:3}"
}
score whole 3
score replicated 3 --set partition.weights=replicated
score sharded 3 --set partition.weights=sharded
score alone 1 --set partition.weights=sharded
for name in replicated sharded alone; do
    same "perplexity of $name" "$(digits "$(number perplexity "$work/$name/results.jsonl")")" \
        "$(digits "$(number perplexity "$work/whole/results.jsonl")")"
done
gathered() { grep -oE '"weight_bytes_gathered": [0-9]+' "$work/$1/report.json" | sort -u; }
same "gathered with whole weights" "$(gathered whole)" '"weight_bytes_gathered": 0'
same "gathered by one rank" "$(gathered alone)" '"weight_bytes_gathered": 0'
if gathered sharded | grep -q ' 0$'; then failed "nothing gathered"; else passed; fi
holds "report.txt" "$work/sharded/report.txt" "MiB weights"
holds "report.txt" "$work/sharded/report.txt" "gather_wait"
RANKS=2 expect "plan of a run" 0 "weights are sharded: each chunk of prefill brings" \
    plan --model tests/fixtures/tiny-qwen3 --tokens "$work/ids" --set partition.weights=sharded
expect "wrong word" 78 "partition.weights must be one of auto|replicated|sharded" \
    run --model tests/fixtures/tiny-qwen3 --set partition.weights=split

# Llama 3.1 by config.json and tensor names alone, in bf16 or in fp8 with block scales.
llama() { # FOLDER LAYERS HIDDEN HEADS INNER [SCALES]
    mkdir "$1"
    cat >"$1/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": $3,
 "num_hidden_layers": $2, "num_attention_heads": $4, "num_key_value_heads": 8,
 "intermediate_size": $5, "vocab_size": 128256, "max_position_embeddings": 131072,
 "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": false,
 "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": 128001}
END
    local layer part
    {
        printf '{"weight_map": {"model.embed_tokens.weight": "0", "model.norm.weight": "0"'
        printf ', "lm_head.weight": "0"'
        for ((layer = 0; layer < $2; layer++)); do
            printf ', "model.layers.%d.%s.weight": "0"' "$layer" input_layernorm \
                "$layer" post_attention_layernorm
            for part in self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj; do
                printf ', "model.layers.%d.%s.weight": "0"' "$layer" "$part"
                [ -z "${6:-}" ] || printf ', "model.layers.%d.%s.%s": "0"' "$layer" "$part" "$6"
            done
        done
        printf '}}'
    } >"$1/model.safetensors.index.json"
}
plan() { # NAME CODE TEXT MODEL ARGUMENT...
    expect "$1" "$2" "$3" plan --model "$work/$4" --set plan.tokens=131072 --set plan.ranks=8 \
        --set plan.memory=80 --set prefill.chunk=8192 "${@:5}"
}
llama "$work/70B" 80 8192 64 28672
llama "$work/405B" 126 16384 128 53248
llama "$work/405B-fp8" 126 16384 128 53248 weight_scale_inv
plan "70B, all on each" 71 "partition.weights = sharded" 70B --set partition.weights=replicated
plan "70B, sharded where needed" 0 "fits 80 GB a rank" 70B
holds "70B: gathered" "$work/log" "each chunk of prefill brings 121.63 GB to each rank"
own=$(awk '/weights \(own\)/ { print $3 }' "$work/log") # an eighth of all but the embedding table
same "70B: a rank's weights" "$((own / 100000000))" 176
plan "405B, bf16" 71 "does NOT fit 80 GB" 405B
plan "405B, fp8" 0 "fits 80 GB a rank" 405B-fp8
plan "405B, bf16 on 16" 0 "fits 80 GB a rank" 405B --set plan.ranks=16
finish
