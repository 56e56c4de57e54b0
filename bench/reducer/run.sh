#!/bin/sh
# What a mark and a hook cost: alone, then on two ranks.
#   run.sh <folder of the bench programs>
"$1/bench_reducer" && mpirun -n 2 --bind-to none "$1/bench_reducer"
