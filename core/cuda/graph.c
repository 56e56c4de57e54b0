/* SPDX-License-Identifier: Apache-2.0
 * Graphs: what the stream is given is recorded by stream capture, which follows
 * events to other streams (a group's) and back. See ext/device.h.
 *
 * What cannot be recorded is met while half a step is recorded and its host code
 * has run. Nothing is lost: what there is so far is launched, and the rest goes
 * to the stream. */
#include "core/cuda/graph.h"

#include <stdio.h>
#include <string.h>

#define N_NUMBERS 6 /* of brg_device_update.f */

/* ---- What a recording leaves behind -------------------------------------------- */

static void free_steps(brg__cu_graph *g)
{
    for (brg__cu_step *s = g->steps, *next; s; s = next) {
        next = s->next;
        if (s->there)
            (void)cudaFree(s->there);
        brg__cu_host->free(s->updates);
        brg__cu_host->free(s->numbers);
        brg__cu_host->free(s);
    }
    g->steps = NULL;
    g->last_step = &g->steps;
}

static void clear(brg__cu_graph *g)
{
    if (g->exec)
        (void)cudaGraphExecDestroy(g->exec);
    g->exec = NULL;
    free_steps(g);
}

static brg_status remember(brg__cu_graph *g, void *fetch, void *at,
                           size_t nbytes)
{
    brg__cu_later *l = brg__cu_host->alloc(sizeof *l, "a graph");
    if (!l)
        return BRG_ERR_NOMEM;
    *l = (brg__cu_later){NULL, fetch, at, nbytes};
    *g->last_later = l;
    g->last_later = &l->next;
    return BRG_OK;
}

static brg_status do_later(brg__cu *cu, brg__cu_graph *g)
{
    brg_status status = BRG_OK;
    for (brg__cu_later *l = g->later, *next; l; l = next) {
        next = l->next;
        void *fetch = l->fetch;
        if (!fetch)
            brg__cu_free(brg__cu_device(cu), l->at, l->nbytes);
        else if (status == BRG_OK)
            status =
                brg__cu_fetch(brg__cu_device(cu), &fetch, l->at, l->nbytes);
        brg__cu_host->free(l);
    }
    g->later = NULL;
    g->last_later = &g->later;
    return status;
}

/* ---- Recording ------------------------------------------------------------------- */

static brg_status make(brg__cu *cu, brg__cu_graph **out)
{
    brg__cu_graph *g = brg__cu_host->alloc(sizeof *g, "a graph");
    *out = g;
    if (!g)
        return BRG_ERR_NOMEM;
    g->last_step = &g->steps;
    g->last_later = &g->later;
    brg__cu_graph_enlist(cu, g);
    return BRG_OK;
}

brg_status brg__cu_graph_record(brg_device device, void **graph)
{
    brg__cu *cu;
    brg__cu_graph *g = *graph;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    if (brg__cu_recording(cu))
        return BRG__CU_FAIL(BRG_ERR_STATE,
                            "cuda: a graph is being recorded already");
    if (!g)
        BRG__CU_TRY(make(cu, &g));
    *graph = g;
    clear(g);
    g->is_given_up = false;
    BRG__CU_TRY(brg__cu_check(
        cudaStreamBeginCapture(cu->stream, cudaStreamCaptureModeRelaxed),
        "cuda: recording a graph"));
    atomic_store(&cu->graphs.recording, g);
    return BRG_OK;
}

static brg_status end_recording(brg__cu *cu, brg__cu_graph *g)
{
    cudaGraph_t graph = NULL;
    atomic_store(&cu->graphs.recording, NULL);
    int error = cudaStreamEndCapture(cu->stream, &graph);
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&g->exec, graph,
                                     cudaGraphInstantiateFlagUseNodePriority);
    if (graph)
        (void)cudaGraphDestroy(graph);
    return brg__cu_check(error, "cuda: recording a graph");
}

brg_status brg__cu_graph_recorded(brg_device device, void *graph)
{
    brg__cu *cu;
    brg__cu_graph *g = graph;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    if (g->is_given_up)
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED, "%s", g->why);
    return end_recording(cu, g);
}

brg_status brg__cu_graph_alloc(brg__cu *cu, void **out, size_t nbytes)
{
    return brg__cu_block_alloc(cu, brg__cu_recording(cu), out, nbytes);
}

bool brg__cu_graph_take_back(brg__cu *cu, void *ptr)
{
    brg__cu_graph *g = brg__cu_recording(cu);
    if (brg__cu_block_free(cu, ptr))
        return true;
    return g && remember(g, NULL, ptr, 0) == BRG_OK;
}

brg_status brg__cu_graph_fetch(brg__cu *cu, void *fetch, const void *src,
                               size_t nbytes)
{
    return remember(brg__cu_recording(cu), fetch, (void *)(uintptr_t)src,
                    nbytes);
}

/* ---- The optimizer's step ---------------------------------------------------------- */

brg_status brg__cu_graph_update(brg__cu *cu, const brg_device_update *updates,
                                size_t n)
{
    brg__cu_graph *g = brg__cu_recording(cu);
    brg__cu_step *s = brg__cu_host->alloc(sizeof *s, "a recorded step");
    if (!s)
        return BRG_ERR_NOMEM;
    *g->last_step = s;
    g->last_step = &s->next;
    s->n = n;
    s->updates = brg__cu_host->alloc(n * sizeof *s->updates, "a recorded step");
    s->numbers = brg__cu_host->alloc(n * N_NUMBERS * sizeof *s->numbers,
                                     "a recorded step");
    if (!s->updates || !s->numbers)
        return BRG_ERR_NOMEM;
    memcpy(s->updates, updates, n * sizeof *updates);
    /* Written before the launch: no memory that the graph writes before. */
    BRG__CU_TRY(brg__cu_check(
        cudaMalloc((void **)&s->there, n * N_NUMBERS * sizeof *s->numbers),
        "cuda: memory of a graph"));
    return brg__cu_check(brg__cu_update(&cu->queue, updates, n, s->there),
                         "optimizer");
}

void brg__cu_graph_updates(brg_device device, void *graph, size_t i,
                           brg_device_update **updates, size_t *n)
{
    const brg__cu_graph *g = graph;
    const brg__cu_step *s = g->steps;
    (void)device;
    while (s && i-- > 0)
        s = s->next;
    *updates = s ? s->updates : NULL;
    *n = s ? s->n : 0;
}

/* Those that have changed, before the kernels that read them. */
static brg_status send_numbers(brg__cu *cu, brg__cu_graph *g)
{
    for (brg__cu_step *s = g->steps; s; s = s->next) {
        bool is_new = !s->is_sent;
        for (size_t i = 0; i < s->n; i++) {
            double *to = s->numbers + N_NUMBERS * i;
            const double *from = s->updates[i].f;
            is_new |= memcmp(to, from, N_NUMBERS * sizeof *to) != 0;
            memcpy(to, from, N_NUMBERS * sizeof *to);
        }
        if (!is_new)
            continue;
        BRG__CU_TRY(brg__cu_check(
            brg__cu_store(&cu->queue, s->there, s->numbers, N_NUMBERS * s->n),
            "optimizer"));
        s->is_sent = true;
    }
    return BRG_OK;
}

/* ---- Launching ----------------------------------------------------------------------- */

static brg_status launch(brg__cu *cu, brg__cu_graph *g)
{
    BRG__CU_TRY(send_numbers(cu, g));
    BRG__CU_TRY(brg__cu_check(cudaGraphLaunch(g->exec, cu->stream),
                              "cuda: launching a graph"));
    atomic_fetch_add_explicit(&cu->n_launches, 1, memory_order_relaxed);
    return do_later(cu, g);
}

brg_status brg__cu_graph_launch(brg_device device, void *graph)
{
    brg__cu *cu;
    brg__cu_graph *g = graph;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return launch(cu, g);
}

brg_status brg__cu_graph_give_up(brg__cu *cu, const char *why)
{
    brg__cu_graph *g = brg__cu_recording(cu);
    if (!g)
        return BRG_OK;
    g->is_given_up = true;
    (void)snprintf(g->why, sizeof g->why, "%s", why);
    BRG__CU_TRY(end_recording(cu, g));
    return launch(cu, g);
}

brg_status brg__cu_begin_wait(brg__cu *cu)
{
    atomic_fetch_add_explicit(&cu->n_waits, 1, memory_order_relaxed);
    return brg__cu_graph_give_up(cu, "the host waits for the device");
}

void brg__cu_graph_free(brg_device device, void *graph)
{
    brg__cu *cu;
    brg__cu_graph *g = graph;
    if (!g || brg__cu_enter(device, &cu) != BRG_OK)
        return;
    clear(g);
    (void)do_later(cu, g);
    brg__cu_graph_drop(cu, g);
}
