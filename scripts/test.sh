#!/bin/bash
# Builds Brigade and runs every test. Installs what is missing first.
usage="usage: scripts/test.sh [options]
  --asan        with the address and undefined-behaviour sanitizers
  --tsan        with the thread sanitizer (without MPI)
  --debug       Debug build with all internal checks
  --clang       compile with clang
  --mpi NAME    with this MPI: openmpi or mpich
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
        packages="$packages lib$2-dev"
        test "$2" = openmpi || packages="$packages $2"
        options+=("-DBRG_MPI=$2" -DBRG_WITH_MPI=ON)
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
configure_and_build "$folder" "${options[@]}" ${clang:+"$clang"} \
    -DBRG_WERROR=ON -DBRG_BUILD_TESTS=ON

say "running the tests"
ctest --test-dir "$folder" --output-on-failure --no-tests=error \
    --parallel "$(nproc)" "${tests[@]}" ||
    die "tests failed; the list is above, full output in $folder/Testing/Temporary/LastTest.log"
say "all tests passed"
