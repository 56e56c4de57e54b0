/* SPDX-License-Identifier: Apache-2.0
 * Fills of a recorded graph. Libraries clear a few bytes of their workspace before
 * most kernels of theirs: 127 times in a step of GPT-2. A fill that is no kernel
 * keeps the GPU idle for 2 to 3 us before and behind it, a kernel for 0.3 us. */
#include <stdlib.h>

#include <cuda_runtime_api.h>

#include "core/cuda/kernels.h"

#define MOST_BYTES ((size_t)64 << 10)
#define FILL_THREADS 256

template <typename T>
__global__ void __launch_bounds__(FILL_THREADS)
    fill_kernel(T *to, T value, unsigned n)
{
    const unsigned i = blockIdx.x * FILL_THREADS + threadIdx.x;
    if (i < n)
        to[i] = value;
}

/* Edges are plain, or the call fails. */
static cudaError_t before(cudaGraphNode_t node, cudaGraphNode_t *to, size_t *n)
{
#if CUDART_VERSION >= 13000
    return cudaGraphNodeGetDependencies(node, to, NULL, n);
#else
    return cudaGraphNodeGetDependencies(node, to, n);
#endif
}

static cudaError_t behind(cudaGraphNode_t node, cudaGraphNode_t *to, size_t *n)
{
#if CUDART_VERSION >= 13000
    return cudaGraphNodeGetDependentNodes(node, to, NULL, n);
#else
    return cudaGraphNodeGetDependentNodes(node, to, n);
#endif
}

static cudaError_t connect(cudaGraph_t graph, cudaGraphNode_t from,
                           cudaGraphNode_t to)
{
#if CUDART_VERSION >= 13000
    return cudaGraphAddDependencies(graph, &from, &to, NULL, 1);
#else
    return cudaGraphAddDependencies(graph, &from, &to, 1);
#endif
}

template <typename T>
static cudaError_t add_kernel(cudaGraph_t graph, const cudaMemsetParams *fill,
                              const cudaGraphNode_t *nodes, size_t n,
                              cudaGraphNode_t *made)
{
    T *to = (T *)fill->dst, value = (T)fill->value;
    unsigned count = (unsigned)fill->width;
    void *args[] = {&to, &value, &count};
    cudaKernelNodeParams params = {};
    params.func = (void *)fill_kernel<T>;
    params.gridDim = dim3((count + FILL_THREADS - 1) / FILL_THREADS);
    params.blockDim = dim3(FILL_THREADS);
    params.kernelParams = args;
    return cudaGraphAddKernelNode(made, graph, nodes, n, &params);
}

static cudaError_t add_like(cudaGraph_t graph, const cudaMemsetParams *fill,
                            const cudaGraphNode_t *nodes, size_t n,
                            cudaGraphNode_t *made)
{
    if (fill->elementSize == 4)
        return add_kernel<unsigned>(graph, fill, nodes, n, made);
    if (fill->elementSize == 2)
        return add_kernel<unsigned short>(graph, fill, nodes, n, made);
    return add_kernel<unsigned char>(graph, fill, nodes, n, made);
}

/* room: for all nodes of the graph. A fill that cannot be replaced stays. */
static void replace(cudaGraph_t graph, cudaGraphNode_t node,
                    cudaGraphNode_t *room, size_t n_room)
{
    cudaMemsetParams fill;
    cudaGraphNode_t made;
    size_t n = n_room;
    if (cudaGraphMemsetNodeGetParams(node, &fill) != cudaSuccess ||
        fill.height > 1 || fill.width == 0 ||
        fill.width * fill.elementSize > MOST_BYTES ||
        before(node, room, &n) != cudaSuccess ||
        add_like(graph, &fill, room, n, &made) != cudaSuccess)
        return;
    n = n_room;
    cudaError_t error = behind(node, room, &n);
    for (size_t i = 0; i < n && error == cudaSuccess; i++)
        error = connect(graph, made, room[i]);
    (void)cudaGraphDestroyNode(error == cudaSuccess ? node : made);
}

void brg__cu_graph_fills(void *recorded)
{
    cudaGraph_t graph = (cudaGraph_t)recorded;
    size_t n = 0;
    cudaGraphNode_t *nodes = NULL;
    if (cudaGraphGetNodes(graph, NULL, &n) == cudaSuccess && n > 0)
        nodes = (cudaGraphNode_t *)malloc(2 * n * sizeof *nodes);
    if (nodes && cudaGraphGetNodes(graph, nodes, &n) == cudaSuccess)
        for (size_t i = 0; i < n; i++) {
            cudaGraphNodeType type;
            if (cudaGraphNodeGetType(nodes[i], &type) == cudaSuccess &&
                type == cudaGraphNodeTypeMemset)
                replace(graph, nodes[i], nodes + n, n);
        }
    free(nodes);
    (void)cudaGetLastError();
}
