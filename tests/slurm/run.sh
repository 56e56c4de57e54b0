#!/bin/bash
# The job of docs/launching.md under a Slurm of its own: slurmctld and slurmd
# of this machine, as one node, with a configuration that is thrown away.
#   run.sh <build folder> [mpi plugin of Slurm, default pmix]
# Leaves with 77 where Slurm (Debian: slurm-wlm) is not installed, or may not
# be started: slurmd wants to be root.
set -u
usage=$(sed -n '4s/^# *//p' "$0")
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "${1:?$usage}" && pwd) || exit 2
plugin=${2:-pmix}

skip() { echo "slurm: skipped, $1"; exit 77; }
fail() {
    echo "slurm: $1" >&2
    tail -n 20 "$tmp"/*.log "$tmp"/slurm-*.out 2>/dev/null >&2
    exit 1
}

for program in slurmctld slurmd srun sbatch; do
    PATH=$PATH:/usr/sbin command -v $program >/dev/null || skip "there is no $program"
done
test "$(id -u)" = 0 || skip "slurmd wants to be root"
PATH=$PATH:/usr/sbin
trainer=$build/examples/fashion_mnist/fashion_mnist
test -x "$trainer" || skip "there is no $trainer"

# ---- A cluster of one node ------------------------------------------------------

tmp=$(mktemp -d)
pids=()
tidy() {
    test ${#pids[@]} = 0 || kill "${pids[@]}" 2>/dev/null
    wait
    rm -rf "$tmp"
}
trap tidy EXIT
trap 'exit 1' INT TERM HUP

host=$(hostname -s)
port=$((20000 + RANDOM % 20000))
export SLURM_CONF=$tmp/slurm.conf
cat >"$SLURM_CONF" <<EOF
ClusterName=brigade
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$tmp/state
SlurmdSpoolDir=$tmp/spool
SlurmctldPidFile=$tmp/slurmctld.pid
SlurmdPidFile=$tmp/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=10 State=UP
EOF
mkdir "$tmp/state" "$tmp/spool"
slurmctld -D -c >"$tmp/slurmctld.log" 2>&1 &
pids+=($!)
slurmd -D -c >"$tmp/slurmd.log" 2>&1 &
pids+=($!)
for ((i = 0; i < 100; i++)); do
    case $(sinfo -h -o %T 2>/dev/null) in idle*) break ;; esac
    sleep 0.2
done
test "$i" -lt 100 || fail "the node does not come up"
srun --mpi=list 2>&1 | grep -qw "$plugin" || skip "this Slurm has no $plugin"

# ---- The job --------------------------------------------------------------------

cd "$tmp" || exit 1
python3 -c "import pathlib, sys; sys.path.insert(0, '$root/tests/examples')
from support import write_images; write_images(pathlib.Path('data'))"
sed -n '/^```sh$/,/^```$/p' "$root/docs/launching.md" | sed '1d;$d' |
    sed "s/--mpi=pmix/--mpi=$plugin/" >job.sh
cat >trainer <<EOF
#!/bin/sh
exec $trainer --data $tmp/data --batch 24 --reduction reproducible --no-progress "\$@" --steps \$STEPS
EOF
chmod +x trainer
export STEPS OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none

# start <ranks> <script>; finish: what it printed is in job.out
start() {
    id=$(sbatch --parsable --nodes=1 --ntasks-per-node="$1" --time=5 --output=job.out "$2") ||
        fail "sbatch refuses $2"
}
finish() {
    for ((i = 0; i < 600; i++)); do
        squeue -h -j "$id" 2>/dev/null | grep -q . || return 0
        sleep 0.1
    done
    scancel "$id"
    fail "the job does not end: $(cat job.out)"
}

# expect <text> <pattern>...: each is in what the job printed
expect() {
    local what=$1 pattern
    shift
    for pattern in "$@"; do
        grep -q -e "$pattern" job.out || fail "$what: no \"$pattern\" in: $(cat job.out)"
    done
}

STEPS=12 ./trainer >alone.out 2>&1 || fail "the trainer alone: $(cat alone.out)"
hash=params_hash=$(sed -n 's/^result: .*params_hash=//p' alone.out)

STEPS=6
start 2 job.sh
finish
expect "the job of the docs" "^result: .* steps=6 ranks=2 "
STEPS=12
start 3 job.sh
finish
expect "the job once more, resumed" "^result: .* steps=12 ranks=3 .*$hash"
echo "slurm: srun --mpi=$plugin, 2 ranks, resumed at 3: weights of one rank alone"

# srun lets the other ranks go on: they say who has died.
cat >killed.sh <<EOF
#!/bin/sh
srun --mpi=$plugin ./trainer --epochs 1000 --metrics metrics
EOF
STEPS=1000000
start 3 killed.sh
for ((i = 0; i < 300; i++)); do
    test "$(wc -l 2>/dev/null <metrics)" -gt 3 2>/dev/null && break
    sleep 0.1
done
pid=$(pgrep -n -f "fashion_mnist --data $tmp/data") || fail "no rank to kill"
rank=$(tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^SLURM_PROCID=//p')
kill -9 "$pid"
finish
for ((r = 0; r < 3; r++)); do
    test "$r" = "$rank" || expect "rank $rank was killed" "rank $r: .*rank $rank, which has died"
done
echo "slurm: rank $rank of 3 killed: the others name it"

test "$plugin" = pmix || exit 0
cat >mpirun.sh <<EOF
#!/bin/sh
mpirun --bind-to none ./trainer
EOF
STEPS=12
start 2 mpirun.sh
finish
expect "mpirun in the job" "^result: .* steps=12 ranks=2 .*$hash"
echo "slurm: mpirun in a job takes 2 ranks from it"
