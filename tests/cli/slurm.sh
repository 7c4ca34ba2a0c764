#!/bin/bash
# A real Slurm on this machine (munged, slurmctld, slurmd) runs scripts/halka.sbatch both ways,
# mpirun and srun --mpi=pmix, on two ranks; results must equal those of one plain process. A job that
# is told that its time is up is queued again and goes on.
set -uo pipefail
halka=${HALKA:-$PWD/build/cpu/halka}
skip() {
    echo "skipped: $1"
    exit 77
}
fail() {
    echo "FAILED: $1"
    tail -n 20 "$work"/*.log "$work"/halka-*.out 2>/dev/null
    exit 1
}
[ "$(id -u)" -eq 0 ] || skip "Slurm's daemons need root here"
export PATH=$PATH:/usr/sbin
for program in munged slurmctld slurmd sbatch srun; do
    command -v $program >/dev/null || skip "$program is not installed (scripts/setup.sh --slurm)"
done

work=$(mktemp -d) && chmod 755 "$work"
daemons=()
stop() {
    [ -z "${job:-}" ] || scancel "$job" 2>/dev/null
    local pid
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${daemons[@]}"; do
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null && sleep 0.1; done
        kill -9 "$pid" 2>/dev/null
    done
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 1' INT TERM

start() { # LOG COMMAND...: a daemon in its own session
    local log=$work/$1.log
    shift
    setsid "$@" >>"$log" 2>&1 </dev/null &
    daemons=("$!" "${daemons[@]}") # stopped in reverse order
}
free_port() { # FROM: the first port at or above that nobody listens on
    local port=$1
    while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}

host=$(hostname -s)
base=$((20000 + $$ % 20000))
controller_port=$(free_port $base)
node_port=$(free_port $((controller_port + 1)))
mkdir "$work/state" "$work/spool"
head -c 1024 /dev/urandom >"$work/munge.key" && chmod 400 "$work/munge.key"
cat >"$work/slurm.conf" <<END
ClusterName=halka-test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
SlurmctldPort=$controller_port
SlurmdPort=$node_port
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE
END
echo "CgroupPlugin=cgroup/v1" >"$work/cgroup.conf"
export SLURM_CONF=$work/slurm.conf
unset "${!SLURM_JOB@}" "${!PMIX_@}" "${!OMPI_COMM@}"

start munged munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" \
    --pid-file="$work/munged.pid" --log-file="$work/munged.log" --seed-file="$work/munge.seed"
for _ in $(seq 50); do [ -S "$work/munge.socket" ] || sleep 0.1; done
start slurmctld slurmctld -D
start slurmd slurmd -D
state=
for _ in $(seq 60); do
    state=$(sinfo --noheader --format=%T 2>/dev/null)
    [ "$state" = idle ] && break
    sleep 0.5
done
if [ "$state" != idle ]; then
    reason=$(grep -ihE 'error|fatal' "$work/slurmd.log" "$work/slurmctld.log" | tail -1)
    skip "slurmd does not run here: ${reason:-the node is ${state:-unknown}}"
fi

perplexity() { sed -n 's/.*"perplexity": *\([0-9.]*\).*/\1/p' "$1/results.jsonl"; }
# Token ids of the committed reference, so that nothing has to be fetched; fp32, so that two ranks
# agree with one to rounding.
sed 's/.*"token":\[\([0-9,]*\)\].*/\1/; s/,/ /g; q' tests/fixtures/tiny-llama/reference.json |
    cut -d' ' -f1-150 >"$work/document.tokens"
arguments=(--model tests/fixtures/tiny-llama --tokens "$work/document.tokens" --task score
    --set run.precision=fp32)
"$halka" run "${arguments[@]}" --output "$work/plain" >"$work/plain.log" 2>&1 || fail "plain run"
expected=$(perplexity "$work/plain")
[ -n "$expected" ] || fail "no perplexity in $work/plain/results.jsonl"

export HALKA=$halka OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
stopped=0
ended() { # JOB LAUNCH: waits for its end, which is to be COMPLETED
    for _ in $(seq 480); do
        state=$(scontrol --oneliner show job "$1" | grep -o 'JobState=[A-Z_]*')
        [[ $state =~ PENDING|RUNNING|COMPLETING|CONFIGURING|REQUEUED ]] || break
        # A job that is queued again would begin two minutes later; its first step has to end first.
        if [ "$state" = JobState=PENDING ] && [ "$SECONDS" -gt $((stopped + 15)) ]; then
            scontrol update JobId="$1" StartTime=now 2>/dev/null
        fi
        sleep 0.5
    done
    [ "$state" = JobState=COMPLETED ] && return
    scontrol show job "$1" | grep -E "Reason|ExitCode"
    fail "job $1 ($2) ended as $state"
}
near() { # NAME PERPLEXITY EXPECTED
    awk -v a="$2" -v b="$3" 'BEGIN { exit !(a > 0 && (a - b)^2 < (1e-4 * b)^2) }' ||
        fail "$1: perplexity $2, a plain run gives $3"
}
for launch in mpirun srun; do
    job=$(HALKA_LAUNCH=$launch sbatch --parsable --output="$work/halka-$launch.out" \
        scripts/halka.sbatch "${arguments[@]}" --output "$work/$launch") || fail "sbatch"
    ended "$job" "$launch"
    got=$(perplexity "$work/$launch")
    n_rank=$(grep -o '"rank":' "$work/$launch/report.json" | wc -l)
    [ "$n_rank" -eq 2 ] || fail "$launch: $n_rank ranks in report.json, not 2"
    near "$launch" "$got" "$expected"
    echo "$launch: two ranks, perplexity $got as in a plain run"
done

for i in $(seq 0 15999); do echo $((i * 37 % 101)); done >"$work/long"
arguments=(--model tests/fixtures/tiny-llama --tokens "$work/long" --task score
    --set run.precision=fp32 --set model.context=16384 --set prefill.chunk=500)
"$halka" run "${arguments[@]}" --output "$work/whole" >"$work/whole.log" 2>&1 || fail "plain run"
for launch in mpirun srun; do
    job=$(HALKA_LAUNCH=$launch sbatch --parsable --output="$work/halka-cut-$launch.out" \
        scripts/halka.sbatch "${arguments[@]}" --output "$work/cut-$launch" \
        --set store.dir="$work/store-$launch" --set store.every=0.000001) || fail "sbatch"
    for _ in $(seq 300); do
        [ ! -e "$(echo "$work/store-$launch"/*/manifest.json)" ] || break
        sleep 0.1
    done
    stopped=$SECONDS
    scancel --signal=USR1 --batch "$job" || fail "scancel --signal"
    ended "$job" "$launch, stopped"
    restored=$(sed -n 's/.*"restored_tokens": *\([0-9]*\).*/\1/p' "$work/cut-$launch/report.json")
    [ "$restored" -gt 0 ] || fail "$launch: nothing was restored after the job was queued again"
    near "$launch, stopped" "$(perplexity "$work/cut-$launch")" "$(perplexity "$work/whole")"
    echo "$launch: stopped after $restored of 16000 tokens, queued again, perplexity as in a plain run"
done
job=
