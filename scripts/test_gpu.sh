#!/bin/bash
# Builds with CUDA and runs everything that needs a GPU. What is absent (a GPU,
# Open MPI, NCCL, compute-sanitizer) is named; a test that could not run says
# SKIPPED and does not count as passed.
usage="usage: scripts/test_gpu.sh [--no-sanitizer] [--build FOLDER]
  --no-sanitizer  leave out compute-sanitizer
  --build FOLDER  default: build/gpu"
cd "$(dirname "$0")/.." || exit 1
. scripts/common.sh

build=build/gpu
sanitizer=yes
while test $# -gt 0; do
    case $1 in
    --no-sanitizer) sanitizer="" ;;
    --build)
        test $# -ge 2 || die "--build needs a folder"
        build=$2
        shift
        ;;
    -h | --help) echo "$usage"; exit 0 ;;
    *) die "'$1' is no option; see --help" ;;
    esac
    shift
done

set -o pipefail
cmake -S . -B "$build" -G Ninja -DBRG_WERROR=ON -DBRG_WITH_CUDA=ON \
    -DBRG_BUILD_BENCH=OFF | grep -E "brigade::|Error" || exit 1
cmake --build "$build" >"$build/build.log" 2>&1 || {
    tail -40 "$build/build.log"
    exit 1
}
log=$build/gpu_tests.log
failed=0
ctest --test-dir "$build" -L gpu --output-on-failure | tee "$log" || failed=1
if grep -q Skipped "$log"; then echo "NOT TESTED: what is marked Skipped above"; fi

if test -n "$sanitizer" && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        # racecheck takes the ways of cuDNN's kernels for races, and minutes for
        # derivatives of the second order
        programs="cuda_test_cuda cuda_test_rows cuda_test_row_outputs
                  cuda_test_groups core_test_ops cuda_test_sparse"
        options="--kernel-name-exclude kns=cudnn" pattern="*__forward"
        if test $tool = memcheck; then
            programs="$programs cuda_test_train" options="" pattern="*"
        fi
        for program in $programs; do
            echo "== compute-sanitizer $tool, $program"
            result=0
            argument="" device=""
            if test "$program" = core_test_ops; then
                argument=$pattern device=cuda
            fi
            # shellcheck disable=SC2086
            BRG_BACKEND_PATH=$build BRG_TEST_DEVICE=$device timeout 900 \
                compute-sanitizer --tool $tool $options \
                --report-api-errors no --error-exitcode 9 \
                "$build/tests/$program" ${argument:+"$argument"} \
                >"$build/$tool.log" 2>&1 || result=$?
            case $result in
            0) tail -1 "$build/$tool.log" ;;
            77) echo "NOT TESTED: no GPU" ;;
            124) echo "NOT TESTED: stopped after 900 s"; failed=1 ;;
            *) tail -40 "$build/$tool.log"; failed=1 ;;
            esac
        done
    done
else
    echo "NOT TESTED: compute-sanitizer (absent or left out)"
fi
exit "$failed"
