#!/bin/bash
# halka serve: who may ask, documents and questions, chat and completions, at once and as a stream,
# clients that go away, a full queue, the end by a signal.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh
common=(--set serve.port=0 --set run.precision=fp32 --set task.max_tokens=12 --set store.dir="$work/store")
serve=(serve --model "$model" "${common[@]}")

expect "serve: questions" 78 "over HTTP" serve --model "$tiny" --question Q --output "$work/none"
expect "serve: task" 78 "leave out task.kind" serve --model "$tiny" --task score --output "$work/none"
expect "serve: no output" 78 "no output folder" serve --model "$tiny"
expect "serve: encoder" 78 "is an encoder" serve --model tests/fixtures/tiny-bert --output "$work/none"
expect "serve: address" 78 "no address of this node" serve --model "$model" --output "$work/none" \
    --set serve.address=nowhere.invalid
if [ ! -r "$model" ]; then
    echo "skipped the rest: no demo model at $model"
    exit 77
fi
ferry_text >"$work/text"

pid=
start() { # OUTPUT RANKS ARGUMENT...: a service; sets pid, url, token
    local output=$work/$1 ranks=$2
    shift 2
    if [ "$ranks" -gt 1 ]; then
        "$mpirun" -np "$ranks" "$halka" "${serve[@]}" --output "$output" "$@" >"$output.log" 2>&1 &
    else
        "$halka" "${serve[@]}" --output "$output" "$@" >"$output.log" 2>&1 &
    fi
    pid=$!
    for _ in $(seq 600); do
        grep -q 'serving at' "$output.log" && break
        kill -0 $pid 2>/dev/null || break
        sleep 0.1
    done
    url=$(sed -n 's/.*"url": "\(.*\)".*/\1/p' "$output/service.json" 2>/dev/null)
    token=$(sed -n 's/.*"token": "\(.*\)".*/\1/p' "$output/service.json" 2>/dev/null)
    if [ -n "$url" ]; then passed; else failed "service $output does not start" "$output.log"; fi
}
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null; rm -rf "$work"' EXIT
stop() { # OUTPUT: by the checkpoint signal
    kill -USR1 $pid
    wait $pid
    same "$1: exit code" $? 75
    pid=
    holds "$1: message" "$work/$1.log" "halka: stopped by a signal"
    if [ ! -e "$work/$1/service.json" ]; then passed; else failed "$1: service.json stays"; fi
    holds "$1: report" "$work/$1/report.json" '"tokens_generated"'
}
ask() { # PATH [BODY [ARGUMENT...]]: to $work/reply; sets code
    local path=$1 body=${2:-}
    shift $(($# > 1 ? 2 : 1))
    [ -z "$body" ] || set -- --data-binary "$body" "$@"
    code=$(curl -s -m 120 -o "$work/reply" -w '%{http_code}' -H "Authorization: Bearer $token" "$@" "$url$path")
}
replies() { # NAME CODE TEXT PATH [BODY [ARGUMENT...]]
    local name=$1 expected=$2 text=$3
    shift 3
    ask "$@"
    same "$name: code" "$code" "$expected"
    holds "$name" "$work/reply" "$text"
}
field() { # KEY: of the reply, a text
    grep -o "\"$1\": \"[^\"]*\"" "$work/reply" | head -1 | sed 's/[^:]*: "\(.*\)"/\1/'
}
streamed() { # KEY: the reply's events, their texts together
    grep -o "\"$1\":\"[^\"]*\"" "$work/reply" | sed "s/\"$1\":\"\(.*\)\"/\1/" | tr -d '\n'
}
metric() { # NAME
    ask metrics
    grep -F "$1 " "$work/reply" | sed 's/.* //'
}

# What a job says is what a service says, on other ranks, whatever was asked before.
questions=(--question "When does the ferry leave?" --question "What do dogs pay?")
expect "job" 0 "" run --model "$model" --task answer --document "$work/text" "${questions[@]}" \
    --set run.precision=fp32 --set task.max_tokens=12 --output "$work/job"
answer() { sed -n "${1}p" "$work/job/results.jsonl" | grep -o '"answer": "[^"]*"' | sed 's/.*: "\(.*\)"/\1/'; }

start two 2 --document "$work/text"
same "service.json: mode" "$(stat -c %a "$work/two/service.json")" 600
expect "same output" 73 "another service runs" "${serve[@]}" --output "$work/two"
expect "same port" 73 "cannot listen" serve --model "$model" --output "$work/port" \
    --set serve.port="$(echo "$url" | grep -o '[0-9]*/$' | tr -d /)"
right=$token
token=wrong
replies "wrong token" 401 "the token is missing or wrong" v1/models
replies "no document without token" 401 "token" v1/documents "x"
replies "health" 200 '"status": "ok"' health
"$halka" inspect "$work/two" >"$work/log" 2>&1
holds "inspect" "$work/log" "a service of $model at $url"
holds "inspect: ranks" "$work/log" "waiting for requests"
replies "page" 200 "<title>Halka</title>" ""
token=$right
replies "token in the address" 200 '"max_model_len": 8192' "v1/models?token=$right"
replies "models" 200 "SmolLM2" v1/models
replies "unknown path" 404 "there is no" v1/nothing
replies "method" 405 "does not take DELETE" v1/models "" -X DELETE

replies "documents" 200 '"n_token"' v1/documents
id=$(field id)
replies "question" 200 "$(answer 1)" "v1/documents/$id/questions" '{"question": "When does the ferry leave?"}'
holds "evidence" "$work/reply" "The ferry leaves the harbour"
read_before=$(metric 'halka_tokens_total{kind="read"}')
ask "v1/documents/$id/questions" '{"question": "What do dogs pay?", "stream": true, "evidence": 0}'
same "streamed answer" "$(streamed text)" "$(answer 2)"
read_after=$(metric 'halka_tokens_total{kind="read"}')
if [ $((read_after - read_before)) -lt 30 ]; then passed; else failed "the document was read again"; fi
replies "text" 200 "dogs travel free" "v1/documents/$id/text"
replies "same text again" 201 "$id" "v1/documents?name=other" "$(cat "$work/text")
"
replies "JSON document" 201 '"name": "short"' v1/documents '{"name": "short", "text": "A b c."}' \
    -H "Content-Type: application/json"
short=$(field id)
replies "remove" 200 '"deleted": true' "v1/documents/$short" "" -X DELETE
replies "removed" 404 "there is no document" "v1/documents/$short/questions" '{"question": "x"}'
replies "not UTF-8" 400 "UTF-8" v1/documents $'\xff\xfe'
replies "empty question" 400 "question is missing" "v1/documents/$id/questions" '{}'

chat='{"role": "user", "content": "What is the capital of France?"}'
replies "chat" 200 "Paris" v1/chat/completions "{\"messages\": [$chat]}"
holds "chat: usage" "$work/reply" '"completion_tokens": 7'
reply=$(field content)
more="{\"messages\": [$chat, {\"role\": \"assistant\", \"content\": \"$reply\"}, {\"role\": \"user\", \"content\": \"And of Spain?\"}]"
ask v1/chat/completions "$more}"
once=$(field content)
holds "chat: the beginning is held" "$work/reply" '"cached_tokens": 44'
ask v1/chat/completions "$more, \"stream\": true}"
same "streamed chat" "$(streamed content)" "$once"
holds "streamed chat: end" "$work/reply" "data: [DONE]"
replies "messages" 400 "the last message must be the user's" v1/chat/completions '{"messages": [{"role": "system", "content": "x"}]}'
replies "too many tokens" 400 "more than the context of 8192" v1/chat/completions "{\"messages\": [$chat], \"max_tokens\": 9000}"
replies "choices" 400 "n" v1/chat/completions "{\"messages\": [$chat], \"n\": 2}"
replies "tools" 400 "tools is not supported" v1/chat/completions "{\"messages\": [$chat], \"tools\": [{}]}"
replies "no JSON" 400 "the request" v1/completions 'prompt'
fox='{"prompt": "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the"'
replies "completion" 200 '"text": " lazy dog' v1/completions "$fox, \"max_tokens\": 4}"
holds "completion: length" "$work/reply" '"finish_reason": "length"'
replies "stop" 200 '"text": " lazy "' v1/completions "$fox, \"stop\": [\"dog\"]}"
replies "token ids" 200 '"prompt_tokens": 3' v1/completions '{"prompt": [1, 2, 3], "max_tokens": 1}'
replies "token ids: range" 400 "no token id" v1/completions '{"prompt": [1, 99999999]}'

# A client that goes away gives its place to the next.
timeout 2 curl -s -N -H "Authorization: Bearer $token" "${url}v1/completions" \
    --data '{"prompt": "Once upon a time", "max_tokens": 8000, "stream": true}' >"$work/part"
ask v1/completions '{"prompt": "One", "max_tokens": 1}'
same "after a client that went" "$code" 200
same "given up" "$(metric 'halka_requests_total{end="given_up"}')" 1
stop two

# A small queue, a small body, no token; what the first service read is in the store.
start one 1 --set serve.queue=1 --set serve.upload=0.001 --set serve.token=none --document "$work/text"
ask v1/documents
replies "restored" 200 "$(answer 1)" "v1/documents/$id/questions" '{"question": "When does the ferry leave?"}'
if grep -q "tokens restored" "$work/one.log"; then passed; else failed "nothing restored" "$work/one.log"; fi
replies "too large" 413 "serve.upload" v1/documents "$(head -c 2000 /dev/zero | tr '\0' a)"
for i in 1 2 3 4; do
    curl -s -o /dev/null -w '%{http_code}\n' "${url}v1/completions" \
        --data "{\"prompt\": \"Once $i\", \"max_tokens\": 100}" &
    clients[i]=$!
done >"$work/codes"
wait "${clients[@]}"
n_refused=$(grep -c 503 "$work/codes")
if [ "$n_refused" -ge 1 ] && [ "$n_refused" -le 3 ]; then passed; else failed "$n_refused of 4 refused"; fi
same "refused" "$(metric 'halka_requests_total{end="refused"}')" "$n_refused"
stop one
finish
