#!/bin/bash
# Communication hooks between two hosts on the network of bench/link/run.sh.
usage="usage: bench/hooks/run.sh <folder of the bench programs> [--each <ranks of a host>]
    [option of bench/link/run.sh...]"
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in '' | -h | --help) echo "$usage"; exit 0 ;; esac
bench=$(cd "$1" && pwd) || exit 1
shift
exec "$here/../link/run.sh" "$bench" "$@" \
    --shell "timeout 300 \$MPIRUN '$bench/bench_hooks'"
