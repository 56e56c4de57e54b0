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

static void free_step(brg__cu_step *s)
{
    if (s->there)
        (void)cudaFree(s->there);
    brg__cu_host->free(s->updates);
    brg__cu_host->free(s->numbers);
    brg__cu_host->free(s);
}

static void free_steps(brg__cu_graph *g)
{
    for (brg__cu_step *s = g->steps, *next; s; s = next) {
        next = s->next;
        free_step(s);
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

static brg_status give_up(brg__cu *cu, brg_status code, const char *why);

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
    g->given_up = BRG_OK;
    BRG__CU_TRY(brg__cu_begin_wait(cu));
    BRG__CU_TRY(
        brg__cu_check(cudaStreamSynchronize(cu->stream), "cuda: queued work"));
    brg__cu_pool_trim(cu);
    BRG__CU_TRY(brg__cu_check(
        cudaStreamBeginCapture(cu->stream, cudaStreamCaptureModeRelaxed),
        "cuda: recording a graph"));
    atomic_store(&cu->graphs.recording, g);
    return BRG_OK;
}

/* Unused memory that the pool keeps may be what the driver lacks. */
static int instantiate(brg__cu *cu, brg__cu_graph *g, cudaGraph_t graph)
{
    const unsigned flags = cudaGraphInstantiateFlagUseNodePriority;
    int error = cudaGraphInstantiate(&g->exec, graph, flags);
    if (error != cudaErrorMemoryAllocation)
        return error;
    (void)cudaGetLastError();
    (void)cudaStreamSynchronize(cu->stream);
    brg__cu_pool_trim(cu);
    return cudaGraphInstantiate(&g->exec, graph, flags);
}

/* Nothing has run: no code that says that all has. */
static brg_status lost(brg_status status)
{
    return status == BRG_ERR_NOMEM
               ? BRG__CU_FAIL(BRG_ERR_DEVICE,
                              "cuda: what was recorded is lost: no memory for "
                              "a graph")
               : status;
}

static brg_status end_recording(brg__cu *cu, brg__cu_graph *g)
{
    cudaGraph_t graph = NULL;
    atomic_store(&cu->graphs.recording, NULL);
    brg_status status = brg__cu_graph_join(cu);
    int error = cudaStreamEndCapture(cu->stream, &graph);
    if (error == cudaSuccess) {
        brg__cu_graph_fills(graph);
        error = instantiate(cu, g, graph);
    }
    if (graph)
        (void)cudaGraphDestroy(graph);
    if (error == cudaSuccess)
        return BRG_OK;
    if (status == BRG_OK) /* else that says more */
        status = brg__cu_check(error, "cuda: recording a graph");
    return lost(status);
}

brg_status brg__cu_graph_recorded(brg_device device, void *graph)
{
    brg__cu *cu;
    brg__cu_graph *g = graph;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    if (g->given_up != BRG_OK)
        return BRG__CU_FAIL(g->given_up, "%s", g->why);
    return end_recording(cu, g);
}

/* Without memory for it the step goes on without a graph. */
brg_status brg__cu_graph_alloc(brg__cu *cu, void **out, size_t nbytes)
{
    brg_status status =
        brg__cu_block_alloc(cu, brg__cu_recording(cu), out, nbytes);
    return status == BRG_ERR_NOMEM
               ? give_up(cu, BRG_ERR_NOMEM, "no memory for a graph")
               : status;
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

bool brg__cu_graph_is_later(const brg__cu_graph *g, const void *fetch)
{
    const brg__cu_later *l = g->later;
    while (l && l->fetch != fetch)
        l = l->next;
    return l != NULL;
}

/* ---- The optimizer's step ---------------------------------------------------------- */

/* Its numbers are written before each launch: no memory that the graph writes
 * before. */
static brg_status make_step(brg__cu_step **out, size_t n)
{
    brg__cu_step *s = brg__cu_host->alloc(sizeof *s, "a recorded step");
    *out = s;
    if (!s)
        return BRG_ERR_NOMEM;
    s->n = n;
    s->updates = brg__cu_host->alloc(n * sizeof *s->updates, "a recorded step");
    s->numbers = brg__cu_host->alloc(n * N_NUMBERS * sizeof *s->numbers,
                                     "a recorded step");
    brg_status status = BRG_ERR_NOMEM;
    if (s->updates && s->numbers)
        status = brg__cu_check(
            cudaMalloc((void **)&s->there, n * N_NUMBERS * sizeof *s->numbers),
            "cuda: memory of a graph");
    if (status != BRG_OK)
        free_step(s);
    return status;
}

brg_status brg__cu_graph_update(brg__cu *cu, const brg_device_update *updates,
                                size_t n)
{
    brg__cu_graph *g = brg__cu_recording(cu);
    brg__cu_step *s;
    brg_status status = make_step(&s, n);
    if (status == BRG_ERR_NOMEM) {
        BRG__CU_TRY(give_up(cu, BRG_ERR_NOMEM, "no memory for a graph"));
        return brg__cu_check(brg__cu_update(&cu->queue, updates, n, NULL),
                             "optimizer");
    }
    BRG__CU_TRY(status);
    memcpy(s->updates, updates, n * sizeof *updates);
    *g->last_step = s;
    g->last_step = &s->next;
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
    BRG__CU_TRY(lost(brg__cu_check(cudaGraphLaunch(g->exec, cu->stream),
                                   "cuda: launching a graph")));
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

static brg_status give_up(brg__cu *cu, brg_status code, const char *why)
{
    brg__cu_graph *g = brg__cu_recording(cu);
    if (!g)
        return BRG_OK;
    g->given_up = code;
    (void)snprintf(g->why, sizeof g->why, "%s", why);
    BRG__CU_TRY(end_recording(cu, g));
    return launch(cu, g);
}

brg_status brg__cu_graph_give_up(brg__cu *cu, const char *why)
{
    return give_up(cu, BRG_ERR_UNSUPPORTED, why);
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
