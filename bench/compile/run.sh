#!/bin/sh
# Compiled backwards and steps on one rank, then on two.
#   run.sh <folder of the bench programs> [name...]
program=$1/bench_compile
shift
"$program" alone "$@" && mpirun -n 2 --bind-to none "$program" "$@"
