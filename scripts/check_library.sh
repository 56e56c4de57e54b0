#!/bin/sh
# What a built library weighs and needs. libbrigade must not need MPI, CUDA or
# Python; stripped, it is about 1.15 MB: 1.2 at most (checked for Release builds), 0.45 more
# with libxsmm in it; the cuda component, which holds kernels for GPUs, at most 6 MB.
#   check_library.sh <build type> <libbrigade.so>...
set -u
build_type=$1
shift
bad=0
copy=$(mktemp) || exit 1
trap 'rm -f "$copy"' EXIT

for library in "$@"; do
    name=$(basename "$library")
    limit=1200000
    grep -q LIBXSMM_ "$library" && limit=1650000
    case $name in libbrigade_cuda*) limit=6000000 ;; esac
    needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    strip -o "$copy" "$library" || exit 1
    size=$(wc -c <"$copy")
    echo "$name: $size bytes stripped; needs" $needed
    if test "$build_type" = Release && test "$size" -gt $limit; then
        echo "$name is larger than $limit bytes" >&2
        bad=1
    fi
    case $name in
    libbrigade_*)
        if echo "$needed" | grep -q '^libbrigade'; then
            echo "$name needs libbrigade; a program may hold that as .a" >&2
            bad=1
        fi
        continue
        ;;
    esac
    for vendor in mpi open-pal open-rte cuda cudart nccl cublas cudnn python; do
        if echo "$needed" | grep -qi "^lib$vendor"; then
            echo "$name needs lib$vendor, which only a component may" >&2
            bad=1
        fi
    done
done
exit $bad
