#!/bin/bash
# Trains on Fashion-MNIST with data parallelism. Installs what is missing first.
usage="usage: scripts/train.sh [--ranks N] [--model mlp|cnn] [arguments of the trainer]
  --ranks N   processes that mpirun starts; 2 unless told otherwise
  --model M   mlp or cnn
All other arguments go to the trainer; --help shows them after these."
cd "$(dirname "$0")/.." || exit 1
. scripts/common.sh
. scripts/env.sh

ranks=2
help=""
arguments=()
while test $# -gt 0; do
    case $1 in
    --ranks)
        test $# -ge 2 || die "--ranks needs a number"
        ranks=$2
        shift
        ;;
    --ranks=*) ranks=${1#*=} ;;
    -h | --help) help=yes; arguments+=("$1") ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
case $ranks in
'' | *[!0-9]* | 0) die "--ranks is '$ranks', expected a number from 1" ;;
esac
test -z "$help" || { echo "$usage"; ranks=1; }

folder=build/train
trainer=$folder/examples/fashion_mnist/fashion_mnist
test -f examples/fashion_mnist/CMakeLists.txt ||
    die "examples/fashion_mnist is not in this checkout"
# shellcheck disable=SC2086
need_packages $BUILD_PACKAGES dataset-fashion-mnist
BUILD_TARGETS="--target fashion_mnist" configure_and_build "$folder" \
    -DCMAKE_BUILD_TYPE=Release -DBRG_WITH_MPI=ON -DBRG_BUILD_TESTS=OFF \
    -DBRG_BUILD_BENCH=OFF -DBRG_BUILD_EXAMPLES=ON
test -x "$trainer" || die "the build made no $trainer"

say "mpirun with $ranks ranks: fashion_mnist ${arguments[*]}"
if test -x scripts/mpirun.sh; then
    exec scripts/mpirun.sh -n "$ranks" "$trainer" "${arguments[@]}"
fi
exec mpirun -n "$ranks" --bind-to none "$trainer" "${arguments[@]}"
