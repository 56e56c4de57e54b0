/* SPDX-License-Identifier: Apache-2.0
 * Fills of a captured graph as kernels (core/cuda/fills.cu): none of few bytes is
 * left, larger ones and those of rows stay, and memory has the same bytes after
 * each node. */
#include <cuda_runtime_api.h>

#include "core/cuda/kernels.h"
#include "tests/cuda/compare.h"
#include "tests/support/brg_test.h"

#define N_ROUNDS 5
#define N_BYTES 100000 /* that are looked at after each fill */

static const size_t sizes[] = {1, 3, 4, 16, 1000, 65536, 65537};
#define N_SIZES (sizeof sizes / sizeof *sizes)
#define N_SMALL 6
#define N_SEEN (N_ROUNDS * (N_SIZES + 1))

static void ok(cudaError_t error)
{
    if (error != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(error));
}

/* Each fill hides a part of the one before, and a copy keeps what there is. */
static cudaGraph_t capture(cudaStream_t stream, char *at, char *seen)
{
    cudaGraph_t graph;
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    for (int r = 0; r < N_ROUNDS; r++) {
        for (size_t k = 0; k < N_SIZES; k++, seen += N_BYTES) {
            ok(cudaMemsetAsync(at + 4 * r + k, 16 * r + (int)k + 1, sizes[k],
                               stream));
            ok(cudaMemcpyAsync(seen, at, N_BYTES, cudaMemcpyDeviceToDevice,
                               stream));
        }
        ok(cudaMemset2DAsync(at, 512, 200 + r, 100, 8, stream));
        ok(cudaMemcpyAsync(seen, at, N_BYTES, cudaMemcpyDeviceToDevice,
                           stream));
        seen += N_BYTES;
    }
    ok(cudaStreamEndCapture(stream, &graph));
    return graph;
}

static int count_fills(cudaGraph_t graph)
{
    cudaGraphNode_t nodes[4 * N_SEEN];
    size_t n = sizeof nodes / sizeof *nodes;
    int n_fills = 0;
    ok(cudaGraphGetNodes(graph, nodes, &n));
    for (size_t i = 0; i < n; i++) {
        enum cudaGraphNodeType type;
        ok(cudaGraphNodeGetType(nodes[i], &type));
        n_fills += type == cudaGraphNodeTypeMemset;
    }
    return n_fills;
}

/* Twice, as steps are: the second finds what the first left. */
static void run(bool are_kernels, char *got)
{
    cudaStream_t stream;
    cudaGraphExec_t exec;
    char *at, *seen;
    ok(cudaStreamCreate(&stream));
    ok(cudaMalloc((void **)&at, 2 * N_BYTES));
    ok(cudaMalloc((void **)&seen, N_SEEN * N_BYTES));
    ok(cudaMemset(at, 99, 2 * N_BYTES));
    cudaGraph_t graph = capture(stream, at, seen);
    assert_int_equal(count_fills(graph), N_SEEN);
    if (are_kernels) {
        brg__cu_graph_fills(graph);
        assert_int_equal(count_fills(graph), N_SEEN - N_ROUNDS * N_SMALL);
    }
    ok(cudaGraphInstantiate(&exec, graph,
                            cudaGraphInstantiateFlagUseNodePriority));
    ok(cudaGraphLaunch(exec, stream));
    ok(cudaGraphLaunch(exec, stream));
    ok(cudaStreamSynchronize(stream));
    ok(cudaMemcpy(got, seen, N_SEEN * N_BYTES, cudaMemcpyDeviceToHost));
    ok(cudaGraphExecDestroy(exec));
    ok(cudaGraphDestroy(graph));
    ok(cudaFree(at));
    ok(cudaFree(seen));
    ok(cudaStreamDestroy(stream));
}

static void test_fills__are_kernels_with_the_same_bytes(void **state)
{
    (void)state;
    char *want = test_malloc(N_SEEN * N_BYTES);
    char *got = test_malloc(N_SEEN * N_BYTES);
    run(false, want);
    run(true, got);
    assert_memory_equal(got, want, N_SEEN * N_BYTES);
    test_free(want);
    test_free(got);
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fills__are_kernels_with_the_same_bytes),
    };
    return cmocka_run_group_tests_name("fills", tests, NULL, NULL);
}
