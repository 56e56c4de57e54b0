#!/bin/bash
# Builds and runs the benchmarks.
usage="usage: scripts/bench.sh [name...]
Names as in bench/list.txt (lines 'name ranks'; the program is bench_<name>, or
bench/<name>/run.sh if there is one, run under mpirun if ranks is given and not
0); none: all of them. BENCH_ARGS in the environment is passed to each program.
Each figure is a line 'bench: <name> <value> <unit>', those with a target with
'target=<x> ok|miss' after it; docs/benchmarks.md says what they mean."
cd "$(dirname "$0")/.." || exit 1
. scripts/common.sh
. scripts/env.sh
case ${1:-} in -h | --help) echo "$usage"; exit 0 ;; esac

folder=build/bench
list=bench/list.txt
# shellcheck disable=SC2086
need_packages $BUILD_PACKAGES
configure_and_build "$folder" -DCMAKE_BUILD_TYPE=Release -DBRG_BUILD_TESTS=OFF \
    -DBRG_BUILD_EXAMPLES=OFF -DBRG_BUILD_BENCH=ON

# lines: name ranks, without comments
rows=$(sed 's/#.*//' $list | awk 'NF {print $1, ($2 == "" ? 0 : $2)}')
for name in "$@"; do
    echo "$rows" | grep -q "^$name " ||
        die "no benchmark $name; there are: $(echo "$rows" | cut -d' ' -f1 | xargs)"
done
n_bad=0
while read -r name ranks; do
    test $# -eq 0 || case " $* " in *" $name "*) ;; *) continue ;; esac
    program=("$folder/bench/bench_$name")
    if test -x "bench/$name/run.sh"; then
        program=("bench/$name/run.sh" "$folder/bench")
    fi
    test -x "${program[0]}" || die "the build made no ${program[0]}"
    say "bench_$name"
    # not scripts/mpirun.sh: MPI runs with its own settings, the fastest
    run=()
    test "$ranks" = 0 || run=(mpirun -n "$ranks" --bind-to none)
    # shellcheck disable=SC2086
    "${run[@]}" "${program[@]}" ${BENCH_ARGS:-} </dev/null || {
        echo "bench_$name failed" >&2
        n_bad=$((n_bad + 1))
    }
done <<<"$rows"
test $n_bad -eq 0 || die "$n_bad benchmarks failed"
