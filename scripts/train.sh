#!/bin/bash
# Trains a model with data parallelism. Installs what is missing first.
usage="usage: scripts/train.sh [--ranks N] [--model mlp|cnn|gpt] [arguments of the trainer]
  --ranks N   processes that mpirun starts; 2 unless told otherwise
  --model M   mlp or cnn on Fashion-MNIST, gpt on the King James Bible; mlp
              unless told otherwise
All other arguments go to the trainer; --help shows them too once it is built."
cd "$(dirname "$0")/.." || exit 1
. scripts/common.sh
. scripts/env.sh

ranks=2
help=""
model=mlp
data=""
arguments=()
while test $# -gt 0; do
    case $1 in
    --ranks)
        test $# -ge 2 || die "--ranks needs a number"
        ranks=$2
        shift
        ;;
    --ranks=*) ranks=${1#*=} ;;
    --model)
        test $# -ge 2 || die "--model needs a name"
        model=$2
        shift
        ;;
    --model=*) model=${1#*=} ;;
    --data) data=$1; arguments+=("$1") ;;
    --data=*) data=$1; arguments+=("$1") ;;
    -h | --help) help=yes ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
case $ranks in
'' | *[!0-9]* | 0) die "--ranks is '$ranks', expected a number from 1" ;;
esac

# The trainer and the packages with its data; both trainers take --data.
case $model in
mlp | cnn)
    program=fashion_mnist
    packages=dataset-fashion-mnist
    arguments=(--model "$model" "${arguments[@]}")
    ;;
gpt)
    program=gpt
    packages="bible-kjv bible-kjv-text"
    ;;
*) die "--model is '$model', expected mlp, cnn or gpt" ;;
esac
test -z "$data" || packages=""

folder=build/train
trainer=$folder/examples/$program/$program
if test "$help"; then
    echo "$usage"
    test ! -x "$trainer" || exec "$trainer" --help
    exit 0
fi
# shellcheck disable=SC2086
need_packages $BUILD_PACKAGES $packages
if test $program = gpt && test -z "$data"; then
    text=$folder/kjv.txt
    mkdir -p $folder
    if test ! -s $text; then
        bible -f 'gen1:1-rev22:21' >$text.new || die "bible(1) printed no text"
        mv $text.new $text
    fi
    arguments=(--data $text "${arguments[@]}")
fi
BUILD_TARGETS="--target $program" configure_and_build "$folder" \
    -DCMAKE_BUILD_TYPE=Release -DBRG_WITH_MPI=ON -DBRG_BUILD_TESTS=OFF \
    -DBRG_BUILD_BENCH=OFF -DBRG_BUILD_EXAMPLES=ON
test -x "$trainer" || die "the build made no $trainer"

say "mpirun with $ranks ranks: $program ${arguments[*]}"
if test -x scripts/mpirun.sh; then
    exec scripts/mpirun.sh -n "$ranks" "$trainer" "${arguments[@]}"
fi
exec mpirun -n "$ranks" --bind-to none "$trainer" "${arguments[@]}"
