/* SPDX-License-Identifier: Apache-2.0
 * A recording that ends while other streams hold parts of it (the collectives of
 * a group, for which nothing has waited yet): it must not end before they are
 * joined, so all its last nodes come before what the stream would do next. */
#include "core/cuda/graph.h"

typedef struct recorded {
    enum cudaStreamCaptureStatus status;
    cudaGraph_t graph;
    const cudaGraphNode_t *last; /* of the stream */
    size_t n_last;
} recorded;

#if CUDART_VERSION >= 13000
static int look(cudaStream_t stream, recorded *r)
{
    const cudaGraphEdgeData *edges;
    return cudaStreamGetCaptureInfo(stream, &r->status, NULL, &r->graph,
                                    &r->last, &edges, &r->n_last);
}

static int count_dependent(cudaGraphNode_t node, size_t *n)
{
    return cudaGraphNodeGetDependentNodes(node, NULL, NULL, n);
}

static int add(cudaStream_t stream, cudaGraphNode_t *nodes, size_t n)
{
    return cudaStreamUpdateCaptureDependencies(
        stream, nodes, NULL, n, cudaStreamAddCaptureDependencies);
}
#else
static int look(cudaStream_t stream, recorded *r)
{
    return cudaStreamGetCaptureInfo_v2(stream, &r->status, NULL, &r->graph,
                                       &r->last, &r->n_last);
}

static int count_dependent(cudaGraphNode_t node, size_t *n)
{
    return cudaGraphNodeGetDependentNodes(node, NULL, n);
}

static int add(cudaStream_t stream, cudaGraphNode_t *nodes, size_t n)
{
    return cudaStreamUpdateCaptureDependencies(
        stream, nodes, n, cudaStreamAddCaptureDependencies);
}
#endif

/* An error is one of edges of a special kind: there are some. */
static bool is_loose(const recorded *r, cudaGraphNode_t node)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_last; i++)
        if (r->last[i] == node)
            return false;
    if (count_dependent(node, &n) == cudaSuccess)
        return n == 0;
    (void)cudaGetLastError();
    return false;
}

brg_status brg__cu_graph_join(brg__cu *cu)
{
    recorded r = {.status = cudaStreamCaptureStatusNone};
    size_t n = 0, n_loose = 0;
    int error = look(cu->stream, &r);
    if (error == cudaSuccess && r.status == cudaStreamCaptureStatusActive)
        error = cudaGraphGetNodes(r.graph, NULL, &n);
    if (error != cudaSuccess || n == 0)
        return brg__cu_check(error, "cuda: recording a graph");
    cudaGraphNode_t *nodes = brg__cu_host->alloc(n * sizeof *nodes, "a graph");
    if (!nodes)
        return BRG_ERR_NOMEM;
    error = cudaGraphGetNodes(r.graph, nodes, &n);
    for (size_t i = 0; i < n && error == cudaSuccess; i++)
        if (is_loose(&r, nodes[i]))
            nodes[n_loose++] = nodes[i];
    if (error == cudaSuccess && n_loose > 0)
        error = add(cu->stream, nodes, n_loose);
    brg__cu_host->free(nodes);
    return brg__cu_check(error, "cuda: recording a graph");
}
