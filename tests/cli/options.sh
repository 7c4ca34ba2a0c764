#!/bin/bash
# The command line and the job file: help, checks, and what is said about mistakes.
set -uo pipefail
# shellcheck source=tests/common/cli.sh
source tests/common/cli.sh

expect "help" 0 "inspect" --help
expect "help of run" 0 "task.max_tokens" run --help
RANKS=3 expect "help on three ranks" 0 "inspect" --help
same "help is printed once" "$(grep -c '^Verbs:' "$work/log")" 1
expect "version" 0 "halka " --version
expect "no verb" 64 "no verb"
expect "unknown verb" 64 "did you mean 'verify'" verfy
expect "verb of later" 64 "not in this version" distill
expect "unknown flag" 64 "unknown flag '--modle'" run --modle x
expect "flag without value" 64 "--model needs a value" run --model
expect "set without equals" 64 "--set takes key=value" run --set task.max_tokens
expect "set unknown key" 64 "did you mean 'task.max_tokens'" run --set task.max_token=3
expect "set no number" 78 "must be a number" run --set task.max_tokens=many
expect "set no whole number" 78 "whole number" run --set task.max_tokens=1.5
expect "set out of range" 78 "between 1 and" run --set task.max_tokens=0
expect "set not finite" 78 "must be a number" run --set task.temperature=nan
expect "set bad choice" 78 "auto|fp32|bf16" run --set run.precision=fp16
expect "precision of later" 78 "not in this version" run --set kv.precision=fp8
expect "two job files" 64 "one argument too many" run a.cfg b.cfg
expect "no model" 78 "no model" run --document x --output y
expect "no document" 78 "no document" run --model x --output y
expect "no output" 78 "no output" run --model x --document y
expect "window of an answer" 78 "document.window is not for" run --task answer --set document.window=9
expect "stride above window" 78 "must be less" run --set document.window=9 --set document.stride=9
expect "question without answer" 78 "task answer" run --question "Why?"
extend() { # NAME TEXT KEY=VALUE...: refused
    local name=$1 text=$2 sets=()
    shift 2
    for assignment in "$@"; do sets+=(--set "extension.$assignment"); done
    expect "$name" 78 "$text" run --model m --document x --output y "${sets[@]}"
}
extend "factor of none" "is for extension.method = linear, ntk" method=none factor=2
extend "parameter without a method" "and it is auto" factor=2
extend "factor below 1" "at least 1" method=linear factor=0.5
extend "betas of ntk" "is for extension.method = yarn" method=ntk factor=2 beta_fast=16
extend "betas" "must not be below" method=yarn factor=2 beta_fast=1 beta_slow=2
extend "bands" "must exceed" method=llama3 factor=2 low_freq_factor=5
extend "factor lists of yarn" "longrope, and it is yarn" method=yarn factor=2 factors=x
extend "yarn's parameters of self_extend" "is for extension.method = yarn" method=self_extend beta_fast=9
extend "factor of dca" "and it is dca" method=dca factor=2
extend "sinks of self_extend" "is for extension.method = streaming" method=self_extend sinks=9
expect "inspect nothing" 64 "needs a PATH" inspect
expect "missing job file" 66 "cannot read the job file" run "$work/none.cfg"
expect "folder as job file" 66 "is a folder" run "$work"

job() { printf '%b' "$1" >"$work/job.cfg"; }
job 'model: { path = "m.gguf"; };\ntask: {\n  max_token = 3;\n};\n'
expect "job: unknown key" 78 "job.cfg:3: unknown key 'task.max_token'; did you mean 'task.max_tokens'" \
    run "$work/job.cfg"
job 'modle: { path = "m.gguf"; };\n'
expect "job: unknown group" 78 "job.cfg:1: unknown group 'modle'; did you mean 'model'" run "$work/job.cfg"
job 'task: { max_tokens = "many"; };\n'
expect "job: number in quotes" 78 "without quotes" run "$work/job.cfg"
job 'model: { path = 3; };\n'
expect "job: text without quotes" 78 "text in quotes" run "$work/job.cfg"
job 'task: { max_tokens = [1, 2]; };\n'
expect "job: list for one value" 78 "not a list" run "$work/job.cfg"
job '\n\ntask: { max_tokens = ; };\n'
expect "job: syntax" 78 "job.cfg:3: syntax error" run "$work/job.cfg"
job 'model: { path = "m.gguf"; };\ndocument: { path = ["a", "b"]; };\noutput: { dir = "o"; };\ntask: { kind = "answer"; questions = ["Who?", "Why?"]; temperature = 1; };\n'
expect "job: valid" 0 "task.questions = Who?, Why?" run "$work/job.cfg" --check-config
expect "command line over job" 0 "task.questions = When?" run "$work/job.cfg" --check-config \
    --question "When?"
expect "flag before job" 0 "output.dir = p" run --output p "$work/job.cfg" --check-config
for config in configs/*.cfg; do
    expect "$config" 0 "the options are valid" run "$config" --check-config
done
RANKS=2 expect "one message of two ranks" 64 "unknown flag" run --modle x
finish
