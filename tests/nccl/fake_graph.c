/* SPDX-License-Identifier: Apache-2.0
 * Stream capture and graphs of a CUDA runtime of the host. See fake_graph.h. */
#include "tests/nccl/fake_graph.h"

#include <stdlib.h>
#include <string.h>

#include "tests/nccl/fake_gpu.h"

#define N_WORDS (FAKE_MAX_NODES / 64)

typedef struct node {
    void (*run)(void *);
    void *args;
    size_t nbytes;
    uint64_t before[N_WORDS]; /* all nodes that come before it */
} node;

typedef struct fake_graph {
    node *nodes[FAKE_MAX_NODES];
    int n;
    unsigned long id;
} fake_graph;

/* The one capture there is. */
static struct {
    fake_graph *graph; /* NULL: none */
    fake_stream *first;
    fake_stream *streams[8];
    int n_streams;
    bool is_spoilt;
    unsigned long n_captures;
} now;

/* ---- Places --------------------------------------------------------------------- */

static bool is_there(const fake_stream *s)
{
    return now.graph && s->place.capture == now.graph->id;
}

const fake_place *fake_graph_place(const fake_stream *s)
{
    return is_there(s) ? &s->place : NULL;
}

static void add(uint64_t *to, const uint64_t *from)
{
    for (int i = 0; i < N_WORDS; i++)
        to[i] |= from[i];
}

static void set(uint64_t *bits, int k)
{
    bits[k / 64] |= UINT64_C(1) << k % 64;
}

static bool has(const uint64_t *bits, int k)
{
    return bits[k / 64] >> k % 64 & 1;
}

static void draw_in(fake_stream *s)
{
    s->place = (fake_place){.capture = now.graph->id};
    now.streams[now.n_streams++] = s;
}

cudaError_t fake_graph_wait(fake_stream *s, const fake_place *p)
{
    if (!now.graph || p->capture != now.graph->id) {
        if (is_there(s) && p->capture == 0) { /* on what is not captured */
            now.is_spoilt = true;
            return cudaErrorStreamCaptureIsolation;
        }
        return p->capture == 0 ? cudaSuccess : cudaErrorCapturedEvent;
    }
    if (!is_there(s))
        draw_in(s);
    add(s->place.before, p->before);
    return cudaSuccess;
}

cudaError_t fake_graph_forbid(fake_stream *s)
{
    if (!is_there(s))
        return cudaSuccess;
    now.is_spoilt = true;
    return cudaErrorStreamCaptureUnsupported;
}

bool fake_graph_push(fake_stream *s, void (*run)(void *), const void *args,
                     size_t nbytes)
{
    fake_graph *g = now.graph;
    if (!is_there(s))
        return false;
    if (g->n == FAKE_MAX_NODES)
        abort();
    node *n = calloc(1, sizeof *n);
    n->run = run;
    n->args = malloc(nbytes);
    n->nbytes = nbytes;
    memcpy(n->args, args, nbytes);
    add(n->before, s->place.before);
    set(s->place.before, g->n);
    g->nodes[g->n++] = n;
    return true;
}

/* ---- Capture ---------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream,
                                   enum cudaStreamCaptureMode mode)
{
    (void)mode;
    if (now.graph)
        return cudaErrorIllegalState;
    now.graph = calloc(1, sizeof *now.graph);
    now.graph->id = ++now.n_captures;
    now.first = (fake_stream *)(void *)stream;
    now.n_streams = 0;
    now.is_spoilt = false;
    draw_in(now.first);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus *status)
{
    const fake_stream *s = (fake_stream *)(void *)stream;
    *status = !is_there(s)    ? cudaStreamCaptureStatusNone
              : now.is_spoilt ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    fake_graph *g = (fake_graph *)(void *)graph;
    for (int i = 0; i < g->n; i++) {
        free(g->nodes[i]->args);
        free(g->nodes[i]);
    }
    free(g);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    fake_graph *g = now.graph;
    const fake_stream *s = (fake_stream *)(void *)stream;
    cudaError_t error = cudaSuccess;
    *out = NULL;
    if (!g || s != now.first)
        return cudaErrorStreamCaptureUnmatched;
    for (int i = 0; i < g->n && error == cudaSuccess; i++)
        if (!has(s->place.before, i))
            error = cudaErrorStreamCaptureUnjoined;
    if (now.is_spoilt)
        error = cudaErrorStreamCaptureInvalidated;
    for (int i = 0; i < now.n_streams; i++)
        now.streams[i]->place = (fake_place){0};
    now.graph = NULL;
    if (error == cudaSuccess)
        *out = (cudaGraph_t)(void *)g;
    else
        (void)cudaGraphDestroy((cudaGraph_t)(void *)g);
    return error;
}

/* ---- What is in it ------------------------------------------------------------------ */

/* As its last nodes: all that come before. */
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream,
                                     enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *n)
{
    static cudaGraphNode_t list[FAKE_MAX_NODES];
    (void)cudaStreamIsCapturing(stream, status);
    if (*status != cudaStreamCaptureStatusActive)
        return cudaSuccess;
    if (id)
        *id = now.graph->id;
    if (graph)
        *graph = (cudaGraph_t)(void *)now.graph;
    if (edges)
        *edges = NULL;
    if (!dependencies || !n)
        return cudaSuccess;
    *dependencies = list;
    *n = 0;
    for (int i = 0; i < now.graph->n; i++)
        if (has(((fake_stream *)(void *)stream)->place.before, i))
            list[(*n)++] = (cudaGraphNode_t)(void *)now.graph->nodes[i];
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes,
                              size_t *n)
{
    const fake_graph *g = (fake_graph *)(void *)graph;
    for (size_t i = 0; nodes && i < *n && i < (size_t)g->n; i++)
        nodes[i] = (cudaGraphNode_t)(void *)g->nodes[i];
    *n = (size_t)g->n;
    return cudaSuccess;
}

static int find(const fake_graph *g, const void *n)
{
    int k = 0;
    while (k < g->n && g->nodes[k] != n)
        k++;
    return k;
}

/* Their number, which is all that is asked for: direct ones or not. */
cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t given,
                                           cudaGraphNode_t *dependent,
                                           cudaGraphEdgeData *edges, size_t *n)
{
    const int k = find(now.graph, given);
    if (dependent || edges)
        return cudaErrorNotSupported;
    *n = 0;
    for (int i = k + 1; i < now.graph->n; i++)
        *n += has(now.graph->nodes[i]->before, k);
    return cudaSuccess;
}

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream,
                                                cudaGraphNode_t *nodes,
                                                const cudaGraphEdgeData *edges,
                                                size_t n, unsigned int flags)
{
    fake_stream *s = (fake_stream *)(void *)stream;
    (void)edges;
    if (!is_there(s))
        return cudaErrorIllegalState;
    if (flags == cudaStreamSetCaptureDependencies)
        memset(s->place.before, 0, sizeof s->place.before);
    for (size_t i = 0; i < n; i++) {
        const int k = find(now.graph, nodes[i]);
        if (k == now.graph->n)
            return cudaErrorInvalidValue;
        add(s->place.before, now.graph->nodes[k]->before);
        set(s->place.before, k);
    }
    return cudaSuccess;
}

/* ---- Launching ------------------------------------------------------------------------ */

static long failing_graph; /* that many are made until one fails; 0: none */

void fake_gpu_fail_graph(long n)
{
    failing_graph = n;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph,
                                 unsigned long long flags)
{
    const fake_graph *g = (fake_graph *)(void *)graph;
    if (flags != cudaGraphInstantiateFlagUseNodePriority)
        return cudaErrorInvalidValue; /* NCCL's kernels have a priority */
    if (failing_graph < 0 || (failing_graph > 0 && --failing_graph == 0))
        return cudaErrorMemoryAllocation;
    fake_graph *copy = calloc(1, sizeof *copy);
    copy->n = g->n;
    for (int i = 0; i < g->n; i++) {
        copy->nodes[i] = calloc(1, sizeof *copy->nodes[i]);
        *copy->nodes[i] = *g->nodes[i];
        copy->nodes[i]->args = malloc(g->nodes[i]->nbytes);
        memcpy(copy->nodes[i]->args, g->nodes[i]->args, g->nodes[i]->nbytes);
    }
    *out = (cudaGraphExec_t)(void *)copy;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return cudaGraphDestroy((cudaGraph_t)(void *)exec);
}

/* In the order in which it was captured, which respects all others. */
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    const fake_graph *g = (fake_graph *)(void *)exec;
    for (int i = 0; i < g->n; i++)
        fake_push((fake_stream *)(void *)stream, g->nodes[i]->run,
                  g->nodes[i]->args, g->nodes[i]->nbytes);
    return cudaSuccess;
}
