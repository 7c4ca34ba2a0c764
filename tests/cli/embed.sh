#!/bin/bash
# Embedding and locating: vectors equal to those of transformers and on any number of ranks; windows,
# packed batches, passages of all kinds, continued jobs, and what is refused.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
# shellcheck source=tests/common/vectors.sh
source tests/common/vectors.sh

fixture=tests/fixtures/embed
models=(tiny-llama tiny-modernbert tiny-bert tiny-embeddinggemma)
for name in "${models[@]}"; do # the tiny models have no tokenizer of their own
    mkdir "$work/$name"
    cp tests/fixtures/"$name"/*.json tests/fixtures/"$name"/*.safetensors "$work/$name"
    cp $fixture/tokenizer.json "$work/$name"
done
use=$work/tiny-llama
text=$fixture/text
embed() { # NAME OUTPUT ARGUMENT...
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" run --model "$use" --task embed --set run.precision=fp32 \
        --output "$work/$output" "$@"
}
expected() { # MODEL PATTERN
    grep "^$2" "$fixture/$1.vectors" | cut -d' ' -f2-
}
like_transformers() { # NAME OUTPUT MODEL PATTERN
    rows "$2" >"$work/a"
    expected "$3" "$4" >"$work/b"
    near "$1" "$work/a" "$work/b" 2e-4
}

# What transformers and a pooling in Python find.
for name in "${models[@]}"; do
    use=$work/$name
    for pooling in mean cls last; do
        embed "$name $pooling" "$name-$pooling" --document $text --set task.pooling=$pooling
        like_transformers "$name $pooling" "$name-$pooling" "$name" "document:$pooling"
    done
    embed "$name paragraphs" "$name-paragraphs" --document $text --set task.passages=paragraphs
    like_transformers "$name paragraphs" "$name-paragraphs" "$name" paragraph:
    embed "$name alone" "$name-alone" --document $text --set task.passages=paragraphs \
        --set task.late_chunking=false
    like_transformers "$name alone" "$name-alone" "$name" alone:
    embed "$name states" "$name-none" --document $text --set task.pooling=none
    rows "$name-none" | sed -n '$p' >"$work/a"
    expected "$name" document:last >"$work/b"
    near "$name states: the last" "$work/a" "$work/b" 2e-4
    for ranks in 2 3; do
        for kind in paragraphs none alone; do
            arguments=(--set task.passages=paragraphs)
            [ $kind != none ] || arguments=(--set task.pooling=none)
            [ $kind != alone ] || arguments+=(--set task.late_chunking=false)
            RANKS=$ranks embed "$name $kind on $ranks" "$name-$kind-$ranks" --document $text \
                "${arguments[@]}"
            same_rows "$name $kind on $ranks ranks" "$name-$kind-$ranks" "$name-$kind"
        done
    done
done
use=$work/tiny-llama

# What sentence-transformers' modules beside the network make of its states: pooling, Dense layers,
# Normalize. Options replace pooling and Normalize; states of tokens pass no module.
for name in tiny-llama tiny-modernbert tiny-embeddinggemma; do
    use=$work/$name-modules
    cp -r "$work/$name" "$use"
    cp -r $fixture/modules/* "$use"
    for ranks in "" 3; do
        [ -z "$ranks" ] || [ "$name" = tiny-modernbert ] || continue
        RANKS=$ranks embed "$name modules on $ranks" modules --document $text --overwrite
        like_transformers "$name modules on $ranks" modules "$name" modules:document
        RANKS=$ranks embed "$name modules of paragraphs on $ranks" modules --document $text \
            --set task.passages=paragraphs --overwrite
        like_transformers "$name modules of paragraphs on $ranks" modules "$name" "modules:[0-9]"
    done
    embed "$name states with modules" states --document $text --set task.pooling=none --overwrite
    same_rows "$name states with modules" states "$name-none"
done
expect "modules: inspect" 0 \
    "Dense 32 to 48 (Identity), Dense 48 to 20 (Tanh, bias), length 1: 20" inspect "$use"
same "modules: width" "$(number n_hidden "$work/modules/results.jsonl")" 20
holds "modules: pooling" "$work/modules/results.jsonl" '"pooling": "mean", "normalised": true'
holds "modules: report" "$work/modules/report.txt" \
    "vectors of 20 elements: pooling mean, 2 Dense layers, length 1"
embed "modules: length as it comes" long --document $text --set task.normalise=false
same "modules: length as it comes" "$(rows long | awk '{ s = 0; for (i = 1; i <= NF; i++) s += $i * $i
    print (s > 1.01 || s < 0.99) }')" 1
embed "modules: another pooling" last --document $text --set task.pooling=last
same "modules: another pooling" "$(number n_hidden "$work/last/results.jsonl")" 20
cp -r "$use" "$work/edited"
sed -i 's/Tanh/Sigmoid/' "$work/edited/3_Dense/config.json"
expect "modules: edited" 73 "belongs to another job" run --model "$work/edited" --task embed \
    --set run.precision=fp32 --set task.passages=paragraphs --document $text --output "$work/modules"
expect "modules: locate" 0 "" run --model "$use" --task locate --document $text \
    --question "The end" --set task.late_chunking=false --output "$work/modules-locate"
same "modules: locate" "$(grep -oE '"rank": 1, "score": (1\.0|0\.99999[0-9]*),' \
    "$work/modules-locate/results.jsonl" | wc -l)" 1
# Prompts of the model's folder: its default, one by name, those of questions and documents.
cat >"$use/config_sentence_transformers.json" <<'EOF'
{"prompts": {"query": "query: ", "document": "text: "}, "default_prompt_name": "document"}
EOF
embed "prompts: default" prompt --document $text
embed "prompts: by hand" prompt1 --document $text --set task.prefix="text: "
same_rows "prompts: default" prompt prompt1
holds "prompts: report" "$work/prompt/report.json" '"prefix": "text: "'
embed "prompts: by name" prompt2 --document $text --set task.prompt=query
embed "prompts: by hand" prompt3 --document $text --set task.prefix="query: "
same_rows "prompts: by name" prompt2 prompt3
embed "prompts: none" prompt4 --document $text --set task.prefix= --set task.passages=paragraphs
same_rows "prompts: none" prompt4 modules
# What sentence-transformers does to texts: lower case, and a cut that is only reported.
tr '[:upper:]' '[:lower:]' <$text >"$work/lower.txt"
echo '{"max_seq_length": 40, "do_lower_case": true}' >"$use/sentence_bert_config.json"
embed "lower case" lower1 --document $text --set task.prefix=
rm "$use/sentence_bert_config.json"
embed "lower case by hand" lower2 --document "$work/lower.txt" --set task.prefix=
same_rows "lower case" lower1 lower2
holds "longer than trained" "$work/lower1/report.txt" "longer than the 40 tokens after which"
holds "longer than trained: report.json" "$work/lower1/report.json" '"longer_sequences": 1,'
expect "prompts: locate" 0 "" run --model "$use" --task locate --document $text \
    --question "The end" --output "$work/prompt-locate"
holds "prompts: of documents" "$work/prompt-locate/report.json" '"prefix": "text: "'
holds "prompts: of questions" "$work/prompt-locate/report.json" '"query_prefix": "query: "'
expect "prompts: unknown" 78 "task.prompt = passage is none of the prompts of $use (query, document)" \
    run --model "$use" --task embed --document $text --set task.prompt=passage --output "$work/refused"
# As older versions write them: the last or the first token.
plain_modules() { # POOLING: beside the network, this one as a flag and Normalize
    local package=sentence_transformers.models
    use=$work/plain-modules
    rm -rf "$use"
    cp -r "$work/tiny-llama" "$use"
    mkdir "$use/1_Pooling"
    cat >"$use/modules.json" <<EOF
[{"idx": 0, "name": "0", "path": "", "type": "$package.Transformer"},
 {"idx": 1, "name": "1", "path": "1_Pooling", "type": "$package.Pooling"},
 {"idx": 2, "name": "2", "path": "2_Normalize", "type": "$package.Normalize"}]
EOF
    printf '{"word_embedding_dimension": 32, "%s": true}\n' "$1" >"$use/1_Pooling/config.json"
}
plain_modules pooling_mode_cls_token
for late in auto false; do # a passage has a first token of its own where it is read by itself
    embed "folder's cls of passages, $late" "late-$late" --document $text \
        --set task.passages=paragraphs --set task.late_chunking=$late
done
same_rows "folder's cls of passages" late-auto late-false
for pair in lasttoken:last cls_token:cls mean_tokens:mean; do
    plain_modules "pooling_mode_${pair%:*}"
    embed "folder's ${pair#*:}" folder --document $text --overwrite
    holds "folder's ${pair#*:}" "$work/folder/results.jsonl" "\"pooling\": \"${pair#*:}\""
    use=$work/tiny-llama
    embed "named ${pair#*:}" named --document $text --overwrite --set task.normalise=true \
        --set task.pooling="${pair#*:}"
    same_rows "folder's ${pair#*:}" folder named
done
use=$work/tiny-llama

# Documents of unequal lengths, packed and one by one; windows.
documents=()
for i in 1 2 3 4 5 6 7; do
    head -c $((i * 47)) $text | iconv -c -f UTF-8 -t UTF-8 >"$work/document$i"
    documents+=(--document "$work/document$i")
done
windows=(--set document.window=64 --set task.pooling=none)
for name in tiny-modernbert tiny-llama; do
    use=$work/$name
    embed "$name packed" packed "${documents[@]}" --overwrite
    embed "$name one by one" single "${documents[@]}" --set task.batch_tokens=1 --overwrite
    same_rows "$name packed and one by one" packed single
    for ranks in 2 3; do
        RANKS=$ranks embed "$name packed on $ranks" several "${documents[@]}" \
            --set task.batch_tokens=100 --overwrite
        same_rows "$name packed on $ranks" several packed
    done
    embed "$name windows" windows --document $text "${windows[@]}" --overwrite
    RANKS=3 embed "$name windows on three" windows3 --document $text "${windows[@]}" --overwrite
    same_rows "$name windows on three" windows3 windows
done
# An encoder's windows [0, 64), [32, 96), [64, 100) are texts of their own; each keeps its half of
# what it shares.
seq 100 199 >"$work/ids"
use=$work/tiny-modernbert
for part in 1,64,1,48 33,96,17,48 65,100,17,36; do
    IFS=, read -r first last from to <<<"$part"
    sed -n "$first,${last}p" "$work/ids" >"$work/ids.part"
    embed "ids $first to $last" part --tokens "$work/ids.part" --set task.pooling=none --overwrite
    rows part | sed -n "$from,${to}p"
done >"$work/a"
embed "windows of ids" idwindows --tokens "$work/ids" "${windows[@]}"
rows idwindows >"$work/b"
near "windows of ids" "$work/a" "$work/b" 1e-5
use=$work/tiny-llama

# Where rotations depend on the length, each document's are those of its own length, packed or not.
lengths=()
for n in 130 40 64 65 100; do
    seq "$n" | awk -v n="$n" '{ print (7 * $1 + n) % 190 }' >"$work/ids$n"
    lengths+=(--tokens "$work/ids$n")
done
cp "$work/ids100" "$work/ids100.again"
lengths+=(--tokens "$work/ids100.again")
for pair in tiny-dynamic:4 tiny-longrope:3; do
    name=${pair%:*}
    use=tests/fixtures/$name
    for n in 130 40 64 65 100 100; do expected "$name" "ids:$n "; done >"$work/b"
    for ranks in "" 3; do
        RANKS=$ranks embed "$name lengths" lengths "${lengths[@]}" --set model.context=200 --overwrite
        rows lengths >"$work/a"
        near "$name lengths on ${ranks:-1}" "$work/a" "$work/b" 2e-4
        holds "$name lengths: packed" "$work/lengths/report.json" "\"batches\": ${pair#*:},"
    done
done
same "lengths: rotated by" "$(number rope_length "$work/lengths/results.jsonl" 4)" 65
use=tests/fixtures/tiny-dynamic
embed "lengths: windows" lengths --tokens "$work/ids130" --set model.context=200 \
    --set document.window=100 --set document.stride=65 --set task.pooling=none --overwrite
head -100 "$work/ids130" >"$work/first"
tail -n +66 "$work/ids130" >"$work/second"
embed "lengths: first window" alone1 --tokens "$work/first" --set model.context=200 \
    --set task.pooling=none
embed "lengths: second window" alone2 --tokens "$work/second" --set model.context=200 \
    --set task.pooling=none
{ rows alone1 && rows alone2 | tail -30; } >"$work/a"
rows lengths >"$work/b"
near "lengths: windows" "$work/a" "$work/b" 1e-5

# Networks that select their tokens read one document at a time.
use=tests/fixtures/deepseek_v32_tiny
seq 10 90 >"$work/ids.more"
two=(--tokens "$work/ids" --tokens "$work/ids.more")
RANKS=2 embed "sparse" sparse "${two[@]}"
embed "sparse, one by one" sparse1 "${two[@]}" --set task.batch_tokens=1
same_rows "sparse, one by one" sparse1 sparse
holds "sparse: none packed" "$work/sparse/report.json" '"documents_packed": 0'
use=$work/tiny-llama

# A window that the model was not trained for.
embed "attention window" approximate "${documents[@]}" --set attention.window=8
RANKS=2 embed "attention window on two" approximate2 "${documents[@]}" --set attention.window=8
same_rows "attention window on two" approximate2 approximate
holds "attention window: report" "$work/approximate/report.txt" "approximate: tokens see 7 before them"
holds "attention window: report.json" "$work/approximate/report.json" '"approximate": '
embed "wide window" wide "${documents[@]}" --set attention.window=1000
same_rows "wide window" wide packed
embed "sinks" sinks "${documents[@]}" --set attention.window=8 --set attention.sinks=2
RANKS=3 embed "sinks on three" sinks3 "${documents[@]}" --set attention.window=8 \
    --set attention.sinks=2
same_rows "sinks on three" sinks3 sinks

# The file: its header, and what a line of results says of it.
n_token=$(number n_token "$work/tiny-llama-none/results.jsonl")
same "header" "$(head -c 128 "$work/tiny-llama-none/vectors.npy" | tail -c +11 | sed 's/ *$//')" \
    "{'descr': '<f4', 'fortran_order': False, 'shape': ($n_token, 32), }"
same "magic" "$(head -c 10 "$work/tiny-llama-none/vectors.npy" | od -An -tx1 | tr -d ' ')" \
    "934e554d505901007600"
same "bytes" "$(stat -c %s "$work/tiny-llama-none/vectors.npy")" $((128 + n_token * 32 * 4))
bytes_of() { # OUTPUT PASSAGE: what its bytes are in the text
    local begin end
    begin=$(grep -o '"byte_start": [0-9]*' "$work/$1/results.jsonl" | sed -n "$2p" | grep -o '[0-9]*')
    end=$(grep -o '"byte_end": [0-9]*' "$work/$1/results.jsonl" | sed -n "$2p" | grep -o '[0-9]*')
    tail -c +$((begin + 1)) "${3:-$text}" | head -c $((end - begin))
}
same "bytes of a paragraph" "$(bytes_of tiny-llama-paragraphs 5)" "The end"
same "bytes of one beyond a line end of two bytes" "$(bytes_of tiny-llama-paragraphs 4)" \
    "Children under six pay nothing. 雪が降る。"
{ printf '\xef\xbb\xbf' && cat $text; } >"$work/marked.txt"
embed "byte order mark" marked --document "$work/marked.txt" --set task.passages=paragraphs
same_rows "byte order mark" marked tiny-llama-paragraphs
same "byte order mark: bytes" "$(bytes_of marked 5 "$work/marked.txt")" "The end"

# Spans in bytes, in tokens, in JSON: the paragraphs again.
field() { grep -o "\"$1\": [0-9]*" "$work/tiny-llama-paragraphs/results.jsonl" | grep -o '[0-9]*$'; }
paste -d' ' <(field byte_start) <(field byte_end) >"$work/bytes.spans"
paste -d' ' <(field token_start) <(field token_end) >"$work/tokens.spans"
sed "s,\(.*\) \(.*\),{\"start\": \1\, \"end\": \2\, \"document\": \"$text\"}," "$work/bytes.spans" >"$work/json.spans"
embed "spans in bytes" bytes --document $text --set task.passages="$work/bytes.spans"
same_rows "spans in bytes" bytes tiny-llama-paragraphs
RANKS=2 embed "spans in tokens" tokens --document $text --set task.passages="$work/tokens.spans" \
    --set task.span_unit=token
same_rows "spans in tokens" tokens tiny-llama-paragraphs
embed "spans in JSON" json --document $text --set task.passages="$work/json.spans"
same_rows "spans in JSON" json tiny-llama-paragraphs

# Length 1, windows, prefixes.
embed "normalised" unit --document $text --set task.normalise=true --set task.passages=paragraphs
same "normalised" "$(rows unit | awk '{ s = 0; for (i = 1; i <= NF; i++) s += $i * $i
    if (s < 0.99999 || s > 1.00001) bad++ } END { print NR, bad + 0 }')" "5 0"
same "states of windows" "$(rows windows | wc -l)" "$n_token"
rows windows | head -60 >"$work/a"
rows tiny-llama-none | head -60 >"$work/b"
near "the first window of a causal network" "$work/a" "$work/b" 1e-5
embed "one window" window1 --document $text --set document.window=4000 --set task.passages=paragraphs
same_rows "one window" window1 tiny-llama-paragraphs
embed "prefix" prefix --document $text --set task.prefix="query: " --set task.passages=paragraphs
{ printf 'query: ' && cat $text; } >"$work/prefixed.txt"
awk '{ print $1 + 7, $2 + 7 }' "$work/bytes.spans" >"$work/shifted"
embed "prefix by hand" prefixed --document "$work/prefixed.txt" --set task.passages="$work/shifted"
same_rows "prefix" prefix prefixed
same "prefix: bytes" "$(bytes_of prefix 5)" "The end"

# What runs report, and what inspect shows.
same "rows of the last" "$(number first_row "$work/packed/results.jsonl" 7)" 6
holds "report" "$work/packed/report.txt" "7 vectors of 7 documents"
holds "report.json" "$work/packed/report.json" '"vectors": 7'
expect "inspect" 0 "embed, 1 vector of 32" inspect "$work/packed"

# A job that was killed: before its lines, or between rows and header.
cp -r "$work/packed" "$work/killed"
head -3 "$work/packed/results.jsonl" >"$work/killed/results.jsonl"
printf 'more bytes' >>"$work/killed/vectors.npy"
embed "continued" killed "${documents[@]}"
holds "continued: finished" "$work/log" "holds 3 of 7 results"
same_rows "continued" killed packed
same "continued: bytes" "$(stat -c %s "$work/killed/vectors.npy")" $((128 + 7 * 32 * 4))
same "continued: rows" "$(grep -o '"first_row": [0-9]*' "$work/killed/results.jsonl" | tr -dc '0-9')" 0123456
embed "finished" killed "${documents[@]}"
same_rows "finished: unchanged" killed packed
many=()
for i in $(seq 40); do
    cp "$work/document$((i % 7 + 1))" "$work/many$i"
    many+=(--document "$work/many$i")
done
long=(run --model "$use" --task embed --set run.precision=fp32 --set task.pooling=none
    --set task.batch_tokens=1 "${many[@]}" --output)
expect "many documents" 0 "" "${long[@]}" "$work/whole"
"$halka" "${long[@]}" "$work/half" >"$work/log" 2>&1 &
for _ in $(seq 500); do
    [ "$(wc -l 2>/dev/null <"$work/half/results.jsonl" || echo 0)" -lt 3 ] || break
    sleep 0.02
done
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
expect "killed and continued" 0 "" "${long[@]}" "$work/half"
same_rows "killed and continued" half whole
same "killed and continued: lines" "$(wc -l <"$work/half/results.jsonl")" 40

truncate -s 300 "$work/killed/vectors.npy"
expect "vectors cut" 73 "results.jsonl names" run --model "$use" --task embed \
    --set run.precision=fp32 --output "$work/killed" "${documents[@]}"
rm "$work/killed/vectors.npy"
expect "vectors gone" 73 "vectors.npy" run --model "$use" --task embed --set run.precision=fp32 \
    --output "$work/killed" "${documents[@]}"
expect "another job" 73 "belongs to another job" run --model "$use" --task embed \
    --set task.pooling=last --output "$work/packed" "${documents[@]}"
embed "overwritten" packed --document "$work/document1" --set task.pooling=last --overwrite
same "overwritten" "$(rows packed | wc -l)" 1

# Passages by their nearness to questions.
locate() { # NAME OUTPUT ARGUMENT...
    local name=$1 output=$2
    shift 2
    expect "$name" 0 "" run --model "$use" --task locate --set run.precision=fp32 --document $text \
        --output "$work/$output" "$@"
}
locate "locate" locate --question "The end" --question "In winter the ferry is replaced by a sledge" \
    --set task.late_chunking=false
same "locate: lines" "$(wc -l <"$work/locate/results.jsonl")" 2
holds "locate: itself" "$work/locate/results.jsonl" '"rank": 1, "score": 1.0, "byte_start"'
holds "locate: text" "$work/locate/results.jsonl" '"text": "The end"'
same "locate: three of five" "$(head -1 "$work/locate/results.jsonl" | grep -o '"rank"' | wc -l)" 3
RANKS=2 locate "locate on two" locate2 --question "The end" \
    --question "In winter the ferry is replaced by a sledge" --set task.late_chunking=false
ranking() { grep -o '"byte_start": [0-9]*' "$work/$1/results.jsonl" | tr '\n' ' '; }
same "locate on two" "$(ranking locate2)" "$(ranking locate)"

# Refusals.
refuse() { # NAME CODE TEXT ARGUMENT...
    local name=$1 code=$2 text=$3
    shift 3
    expect "$name" "$code" "$text" run --model "$use" --output "$work/refused" "$@"
}
spans() { # NAME LINES TEXT [ARGUMENT...]: refused at the last line
    printf '%b' "$2" >"$work/spans"
    refuse "$1" 65 "$3" --task embed --document $text --set task.passages="$work/spans" "${@:4}"
}
spans "a word" '0 4\nfour 5\n' "spans:2: 'four 5' is not a span"
spans "one number" '0 4\n\n5\n' "spans:3: '5' is not a span"
spans "three numbers" '0 4 5\n' "spans:1: '0 4 5' is not a span"
spans "negative" '-1 4\n' "spans:1:"
spans "empty span" '4 4\n' "spans:1: a span begins at 0"
spans "no JSON" '{"start": 1\n' "spans:1:"
spans "JSON without end" '{"start": 1}\n' 'needs whole numbers'
spans "beyond the text" '0 4\n0 100000\n' "spans:2: the span ends at 100000"
spans "beyond the tokens" '0 100000\n' "tokens" --set task.span_unit=token
spans "within a token" '18 19\n' "no token of"
spans "another document" '{"start": 0, "end": 5, "document": "x"}\n' "is none of the job's documents"
spans "no spans" '\n' "holds no spans"
RANKS=2 spans "on two ranks" '0 4\nx\n' "spans:2:"
refuse "missing spans" 66 "cannot read the spans" --task embed --document $text \
    --set task.passages=paragraph
seq 3 60 | tr '\n' ' ' >"$work/ids"
refuse "paragraphs of ids" 65 "have no paragraphs" --task embed --tokens "$work/ids" \
    --set task.passages=paragraphs
refuse "bytes of ids" 65 "span_unit = token" --task embed --tokens "$work/ids" \
    --set task.passages="$work/bytes.spans"
refuse "states of passages" 78 "task.pooling = none" --task embed --document $text \
    --set task.pooling=none --set task.passages=paragraphs
cls=(--task embed --document "$text" --set task.pooling=cls --set task.passages=paragraphs)
refuse "cls of passages" 78 "same vector" "${cls[@]}" --set task.late_chunking=true
refuse "cls of passages in windows" 78 "leave out document.window" "${cls[@]}" --set document.window=64
refuse "locate without question" 78 "needs a question" --task locate --document $text
refuse "question of embed" 78 "questions are for" --task embed --document $text --question "Who?"
refuse "prompt and prefix" 78 "exclude each other" --task embed --document $text \
    --set task.prefix=a --set task.prompt=b
refuse "prompt of a model without" 78 "is none of the prompts" --task embed --document $text \
    --set task.prompt=query
refuse "prefix of score" 78 "task.prefix is for" --task score --document $text --set task.prefix=a
refuse "too long" 65 "document.window" --task embed --document $text --set model.context=20
refuse "too long alone" 65 "a passage has" --task embed --document $text --set model.context=20 \
    --set task.passages=paragraphs --set task.late_chunking=false
refuse "window of specials" 78 "document.window = 2 has no room" --task embed --document $text \
    --set document.window=2
refuse "stride of more than is read" 78 "would leave some out" --task embed --document $text \
    --set document.window=6 --set document.stride=5
refuse "sinks alone" 78 "needs attention.window" --task embed --document $text --set attention.sinks=4
refuse "window and dsa" 78 "exclude each other" --task embed --document $text \
    --set attention.window=8 --set attention.kind=dsa
plain_modules pooling_mode_cls_token
refuse "folder's cls of passages" 78 "the model's pooling, cls, would give" --task embed \
    --document $text --set task.passages=paragraphs --set task.late_chunking=true
plain_modules pooling_mode_max_tokens
refuse "maximum" 65 "pooling by max is not supported: set task.pooling" --task embed --document $text
expect "named in place of the maximum" 0 "" run --model "$use" --task embed --document $text \
    --set task.pooling=mean --output "$work/named" --overwrite
echo '{"include_prompt": false}' >"$use/1_Pooling/config.json"
RANKS=2 refuse "a prompt that is not pooled" 78 "include_prompt" --task embed --document $text \
    --set task.prefix="query: "
use=$work/tiny-modernbert
refuse "score of an encoder" 78 "predicts no next token" --task score --document $text
refuse "answer of an encoder" 78 "predicts no next token" --task answer --document $text
refuse "window of an encoder" 78 "is an encoder" --task embed --document $text \
    --set attention.window=8
finish
