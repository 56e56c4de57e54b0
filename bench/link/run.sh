#!/bin/bash
# Two "hosts" on this machine with a throttled link between them: network
# namespaces, a veth pair, tc. MPI and PyTorch talk TCP over it.
usage="usage: bench/link/run.sh <folder of the bench programs> [option...]
  --rate <rate>      of the link each way, as tc writes it (1gbit)
  --delay <time>     of a packet each way (0ms)
  --rounds <n>       of all programs in turn (2)
  --models <names>   (\"cnn gpt\")
  --each <n>         ranks of each host, of --shell (1)
  --shell <command>  runs this on the first host instead, with MPIRUN set
Needs the right to make network namespaces (root); says so and ends well
otherwise."
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in '' | -h | --help) echo "$usage"; exit 0 ;; esac
bench=$(cd "$1" && pwd) || exit 1
shift
rate=1gbit delay=0ms rounds=2 models="cnn gpt" each=1 command=
while test $# -gt 0; do
    test $# -gt 1 || { echo "$usage" >&2; exit 2; }
    case $1 in
    --rate) rate=$2 ;;
    --delay) delay=$2 ;;
    --rounds) rounds=$2 ;;
    --models) models=$2 ;;
    --each) each=$2 ;;
    --shell) command=$2 ;;
    *) echo "$usage" >&2; exit 2 ;;
    esac
    shift 2
done

skip() {
    echo "bench_link: skipped, $1"
    exit 0
}

# ---- The two hosts --------------------------------------------------------------

a=brg$$a b=brg$$b net=10.213.$(($$ % 250))
tmp=$(mktemp -d)
tidy() {
    ip netns del $a 2>/dev/null
    ip netns del $b 2>/dev/null
    rm -rf "$tmp"
}
trap tidy EXIT
trap 'exit 1' INT TERM HUP

on() { # <namespace> <command...>
    local space=$1
    shift
    ip netns exec "$space" "$@"
}

make_host() { # <namespace> <device> <address>
    ip link set "$2" netns "$1" && on "$1" ip addr add "$3/24" dev "$2" &&
        on "$1" ip link set "$2" up && on "$1" ip link set lo up || return 1
    # netem delays, tbf limits; without a delay one of them is enough
    if test "$delay" = 0ms; then
        on "$1" tc qdisc add dev "$2" root tbf rate "$rate" burst 256kb latency 50ms
    else
        on "$1" tc qdisc add dev "$2" root handle 1: netem delay "$delay" limit 10000 &&
            on "$1" tc qdisc add dev "$2" parent 1: handle 2: tbf rate "$rate" \
                burst 256kb latency 50ms
    fi
}

for program in ip tc unshare mpirun; do
    command -v $program >/dev/null || skip "there is no $program"
done
{ ip netns add $a && ip netns add $b; } 2>"$tmp/why" ||
    skip "no network namespaces here: $(tail -n 1 "$tmp/why")"
{ ip link add va$$ type veth peer name vb$$ && make_host $a va$$ $net.1 &&
    make_host $b vb$$ $net.2; } 2>"$tmp/why" ||
    skip "no throttled link here: $(tail -n 1 "$tmp/why")"
on $a unshare --uts hostname brigade-a 2>"$tmp/why" ||
    skip "no host names of our own: $(tail -n 1 "$tmp/why")"

# ---- Programs on them --------------------------------------------------------------

export BENCH_LINK_SPACE=$b OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
btl=tcp,self
test "$each" = 1 || btl=$btl,vader
mpi_options="-n $((2 * each)) --host $net.1:$each,$net.2:$each --bind-to none
    --mca plm_rsh_agent $here/agent.sh --mca plm rsh --mca btl $btl
    --mca pml ob1 --mca btl_tcp_if_include $net.0/24
    --mca oob_tcp_if_include $net.0/24 --mca orte_keep_fqdn_hostnames 1"

mpi() { # [NAME=value...] <program> <argument...>
    local set=()
    while test "${1#*=}" != "$1"; do
        set+=(-x "$1")
        shift
    done
    # shellcheck disable=SC2086
    on $a unshare --uts sh -c 'hostname brigade-a && exec "$@"' sh \
        timeout 300 mpirun $mpi_options "${set[@]}" "$@" </dev/null
}

if test -n "$command"; then
    MPIRUN="mpirun ${mpi_options//$'\n'/ }" on $a unshare --uts \
        sh -c "hostname brigade-a && $command"
    exit
fi

python=
for name in "${PYTHON:-python3}" /usr/bin/python3; do
    if "$name" -c "import torch" 2>/dev/null; then python=$name; fi
done

torch() { # <model> <bucket size in MB>
    local port=$((20000 + RANDOM % 20000)) step=$here/../torch/step.py
    test -n "$python" || return 0
    export BUCKET_MB=$2
    GLOO_SOCKET_IFNAME=vb$$ on $b timeout 200 "$python" "$step" "$1" 40 1 2 \
        "tcp://$net.1:$port" >/dev/null 2>&1 &
    GLOO_SOCKET_IFNAME=va$$ on $a timeout 200 "$python" "$step" "$1" 40 0 2 \
        "tcp://$net.1:$port" 2>"$tmp/torch" |
        awk -v name="link.$1.torch_$2mb" '$1 == "step_ms" {print "bench:", name, $2, "ms"}'
    wait $!
}

# libnbc's algorithms of MPI_Iallreduce: ring, Rabenseifner, recursive doubling,
# and its own choice
one_round() { # <model>
    local k names=([0]=default [1]=ring [3]=rabenseifner [4]=doubling)
    for k in 0 1 3 4; do
        mpi OMPI_MCA_coll_libnbc_iallreduce_algorithm=$k \
            "$bench/bench_link" "$1" | sed "s/\.layers/.layers_${names[k]}/"
    done
    mpi BRG_POLL_US=100000000 "$bench/bench_link" "$1" |
        grep -E '\.(alone|sizes(_over)?) ' | sed 's/\.sizes/.no_polls/; /alone/d'
    mpi "$bench/bench_link" "$1" thread | sed '/alone/d'
    mpi "$bench/bench_link" "$1" row
    for k in 1 5 25 100; do torch "$1" $k; done
    mpi "$bench/bench_link" "$1" row
}

for ((round = 0; round < rounds; round++)); do
    for model in $models; do
        one_round "$model"
    done
done | grep --line-buffered "^bench:" | tee "$tmp/lines" >&2

# ---- Medians over the rounds ----------------------------------------------------------

sort -k2,2 -k3,3g "$tmp/lines" | awk -v models="$models" '
    $2 != name {flush(); name = $2; unit = $4; n = 0}
    {value[++n] = $3}
    function flush() {
        if (n == 0) return
        median[name] = n % 2 ? value[(n + 1) / 2] : (value[n / 2] + value[n / 2 + 1]) / 2
        printf "bench: %s %.6g %s\n", name, median[name], unit
    }
    function judge(name, value, unit, target, good) {
        printf "bench: %s %.6g %s target=%g %s\n", name, value, unit, target,
            good ? "ok" : "miss"
    }
    # The others are as many times as slow, the best of them included.
    function against_the_best(p, suffix, name, best) {
        for (name in median) {
            if (index(name, p) != 1 || name !~ suffix "$") continue
            if (suffix == "_ratio" && name ~ /_whole_ratio$/) continue
            if (best == "" || median[name] < median[best]) best = name
        }
        if (best == "") print "bench_link: no figures for " p
        else judge(best ".least", median[best], "x", 1, median[best] > 1)
    }
    END {
        flush()
        n_models = split(models, model, " ")
        for (m = 1; m <= n_models; m++) {
            p = "link." model[m] "."
            torch = 0 # with the bucket size that suits PyTorch best
            for (name in median)
                if (index(name, p "torch_") == 1 &&
                    (torch == 0 || median[name] < torch))
                    torch = median[name]
            if (torch > 0) {
                median[p "torch_ratio"] = torch / median[p "in_a_row"]
                median[p "torch_whole_ratio"] = torch / median[p "whole_in_a_row"]
            }
            hidden = median[p "hidden_measured"]
            judge(p "hidden", hidden, "%", 60, hidden >= 60)
            against_the_best(p, "_ratio")
            against_the_best(p, "_whole_ratio")
        }
    }'
