/* SPDX-License-Identifier: Apache-2.0
 * Calls of a group over NCCL: see group.h for the order of things.
 *
 * Of a call, `state` is its event; mark[0] and mark[1] are device copies of
 * host buffers (send, recv) or 0; mark[2] says that the host has to wait;
 * mark[3] that the event was recorded into a graph, where alone it has a
 * meaning. */
#include "comm/nccl/group.h"

#include <sched.h>

#include "core/base/dtype.h"

enum { SEND_COPY, RECV_COPY, HOST_WAITS, RECORDED };

static bool is_p2p(brg_coll coll)
{
    return coll == BRG_COLL_SEND || coll == BRG_COLL_RECV;
}

static brg__nccl_event *event_of(const brg_call *call)
{
    return call->state;
}

static void *copy_of(const brg_call *call, int which)
{
    return (void *)(uintptr_t)call->mark[which];
}

/* ---- Events ------------------------------------------------------------------- */

static brg_status take_event(brg__nccl_group *g, brg_call *call)
{
    brg__nccl_event *event = g->spare;
    if (event) {
        g->spare = event->next;
        call->state = event;
        return BRG_OK;
    }
    event = g->host->alloc(sizeof *event, "an event");
    if (!event)
        return BRG_ERR_NOMEM;
    brg_status status = brg__nccl_check_cuda(
        g, cudaEventCreateWithFlags(&event->event, cudaEventDisableTiming),
        "an event");
    if (status != BRG_OK) {
        g->host->free(event);
        return status;
    }
    call->state = event;
    return BRG_OK;
}

/* What the call held goes back; the buffers are the caller's again. */
static void let_go(brg__nccl_group *g, brg_call *call)
{
    for (int i = SEND_COPY; i <= RECV_COPY; i++)
        if (call->mark[i] &&
            (i == RECV_COPY || call->mark[SEND_COPY] != call->mark[RECV_COPY]))
            (void)cudaFreeAsync(copy_of(call, i), g->own);
    call->mark[SEND_COPY] = call->mark[RECV_COPY] = 0;
    brg__nccl_event *event = event_of(call);
    if (!event)
        return;
    call->state = NULL;
    event->next = g->spare;
    g->spare = event;
}

bool brg__nccl_is_recorded(const brg__nccl_group *g)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(g->compute, &status) == cudaSuccess &&
           status != cudaStreamCaptureStatusNone;
}

/* A recording that has ended was launched on the compute stream, which waits for
 * all of it (core/cuda/graph_join.c): there its calls end, too. */
static brg_status bring_out(brg__nccl_group *g, brg_call *call)
{
    if (!call->mark[RECORDED] || brg__nccl_is_recorded(g))
        return BRG_OK;
    call->mark[RECORDED] = 0;
    return brg__nccl_check_cuda(
        g, cudaEventRecord(event_of(call)->event, g->compute), "an event");
}

brg_status brg__nccl_fail_recorded(const brg__nccl_group *g, const char *what)
{
    return g->host->fail(BRG_ERR_STATE, __FILE__, __LINE__,
                         "rank %d: nccl: %s cannot be part of a graph", g->rank,
                         what);
}

/* ---- Buffers in host memory ------------------------------------------------------ */

static bool is_on_device(const void *p)
{
    struct cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, p) == cudaSuccess)
        return a.type == cudaMemoryTypeDevice ||
               a.type == cudaMemoryTypeManaged;
    (void)cudaGetLastError();
    return false;
}

/* Bytes of a buffer of the call. */
static size_t extent(const brg__nccl_group *g, const brg_call *call, bool sends)
{
    const size_t all = (size_t)g->n_ranks * call->nbytes;
    switch (call->coll) {
    case BRG_COLL_REDUCE_SCATTER:
        return sends ? all : call->nbytes;
    case BRG_COLL_ALL_GATHER:
        return sends ? call->nbytes : all;
    case BRG_COLL_BARRIER:
        return 0;
    case BRG_COLL_SEND:
        return sends ? call->nbytes : 0;
    case BRG_COLL_RECV:
        return sends ? 0 : call->nbytes;
    case BRG_COLL_SUM_LEAVES:
        return sends ? brg__nccl_leaves_extent(g, call) : call->nbytes;
    default:
        return call->nbytes;
    }
}

static brg_status stage(brg__nccl_group *g, brg_call *call, int which,
                        const void *from, size_t nbytes)
{
    void *copy;
    if (brg__nccl_is_recorded(g))
        return brg__nccl_fail_recorded(g, "a buffer in host memory");
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaMallocAsync(&copy, nbytes, g->own), "memory for a host buffer"));
    call->mark[which] = (uint64_t)(uintptr_t)copy;
    call->mark[HOST_WAITS] = 1;
    if (!from)
        return BRG_OK;
    /* The pool's memory may be in use by what own has queued. */
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaEventRecord(event_of(call)->event, g->own), "an event"));
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaEventSynchronize(event_of(call)->event), "an event"));
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g,
        cudaMemcpyAsync(copy, from, nbytes, cudaMemcpyHostToDevice, g->copies),
        "a host buffer"));
    return brg__nccl_check_cuda(g, cudaStreamSynchronize(g->copies),
                                "a host buffer");
}

static brg_status stage_buffers(brg__nccl_group *g, brg_call *call)
{
    const size_t send = extent(g, call, true), recv = extent(g, call, false);
    if (send && !is_on_device(call->send))
        BRG__NCCL_TRY(stage(g, call, SEND_COPY, call->send, send));
    if (call->send == call->recv && call->mark[SEND_COPY] && send == recv)
        call->mark[RECV_COPY] = call->mark[SEND_COPY];
    else if (recv && !is_on_device(call->recv))
        BRG__NCCL_TRY(stage(g, call, RECV_COPY, NULL, recv));
    return BRG_OK;
}

static const void *send_of(const brg_call *call)
{
    return call->mark[SEND_COPY] ? copy_of(call, SEND_COPY) : call->send;
}

static void *recv_of(const brg_call *call)
{
    return call->mark[RECV_COPY] ? copy_of(call, RECV_COPY) : call->recv;
}

/* ---- Handing over to NCCL ----------------------------------------------------------- */

ncclDataType_t brg__nccl_type(brg_dtype dtype)
{
    static const ncclDataType_t types[BRG_N_DTYPES] = {
        ncclFloat64, ncclFloat32, ncclFloat16, ncclBfloat16,
        ncclInt64,   ncclInt32,   ncclUint8,   ncclUint8};
    return dtype == BRG__DTYPE_Q8 ? ncclUint8 : types[dtype];
}

static ncclRedOp_t op_of(brg_reduce_op op)
{
    static const ncclRedOp_t ops[BRG_N_REDUCE_OPS] = {ncclSum, ncclAvg, ncclMin,
                                                      ncclMax, ncclProd};
    return ops[op];
}

static ncclResult_t hand_over(brg__nccl_group *g, const brg_call *call)
{
    const ncclDataType_t type = brg__nccl_type(call->dtype);
    const void *send = send_of(call);
    void *recv = recv_of(call);
    switch (call->coll) {
    case BRG_COLL_ALL_REDUCE:
        return ncclAllReduce(send, recv, call->count, type, op_of(call->op),
                             g->comm, g->own);
    case BRG_COLL_REDUCE_SCATTER:
        return ncclReduceScatter(send, recv, call->count, type, op_of(call->op),
                                 g->comm, g->own);
    case BRG_COLL_ALL_GATHER:
        return ncclAllGather(send, recv, call->count, type, g->comm, g->own);
    case BRG_COLL_BROADCAST:
        return ncclBroadcast(send, recv, call->count, type, call->peer, g->comm,
                             g->own);
    case BRG_COLL_BARRIER:
        return ncclAllReduce(g->byte, g->byte, 1, ncclUint8, ncclSum, g->comm,
                             g->own);
    case BRG_COLL_SEND:
        return ncclSend(send, call->count, type, call->peer, g->comm, g->own);
    case BRG_COLL_RECV:
        return ncclRecv(recv, call->count, type, call->peer, g->comm, g->own);
    default:
        return ncclInvalidUsage;
    }
}

static void enqueue(brg__nccl_group *g, brg_call *call)
{
    call->next = NULL;
    *g->last = call;
    g->last = &call->next;
}

static void dequeue(brg__nccl_group *g, brg_call *call)
{
    brg_call **at = &g->first;
    while (*at && *at != call)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = call->next;
    if (g->last == &call->next)
        g->last = at;
}

static brg_status order_behind_compute(brg__nccl_group *g)
{
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaEventRecord(g->ready, g->compute),
                                       "an event"));
    return brg__nccl_check_cuda(g, cudaStreamWaitEvent(g->own, g->ready, 0),
                                "an event");
}

static brg_status mark_end(brg__nccl_group *g, brg_call *call)
{
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaEventRecord(event_of(call)->event, g->own), "an event"));
    call->mark[RECORDED] = brg__nccl_is_recorded(g);
    enqueue(g, call);
    return BRG_OK;
}

/* Under the lock, with a communicator. */
static ncclResult_t hand_over_all(brg__nccl_group *g, const brg_call *first)
{
    ncclResult_t result = ncclGroupStart();
    for (const brg_call *call = first; call && result == ncclSuccess;
         call = call->next)
        result = hand_over(g, call);
    const ncclResult_t end = ncclGroupEnd();
    return result != ncclSuccess ? result : end;
}

static brg_status queue_calls(brg__nccl_group *g, const brg_call *first)
{
    if (brg__nccl_sums(g, first))
        return brg__nccl_sum(g, first, send_of(first), recv_of(first));
    if (is_p2p(first->coll))
        return brg__nccl_check(g, hand_over_all(g, first), "send and recv");
    return brg__nccl_check(g, hand_over(g, first), "a collective");
}

/* The communicator is the watch's to end: the wait says why it has. */
static brg_status queue(brg__nccl_group *g, const brg_call *first)
{
    brg_status status = BRG_OK;
    BRG__NCCL_TRY(order_behind_compute(g));
    pthread_mutex_lock(&g->lock);
    if (g->comm)
        status = queue_calls(g, first);
    if (g->comm && status == BRG_OK && !brg__nccl_is_recorded(g))
        brg__nccl_watch_call(g, first);
    pthread_mutex_unlock(&g->lock);
    return status;
}

/* All that were held, as one: a send and a recv that wait for each other must
 * run together. */
static brg_status flush_held(brg__nccl_group *g)
{
    brg_call *first = g->held;
    if (!first)
        return BRG_OK;
    g->held = NULL;
    g->held_last = &g->held;
    brg_status status = queue(g, first);
    for (brg_call *call = first, *next; call; call = next) {
        next = call->next;
        if (status == BRG_OK)
            status = mark_end(g, call);
        if (status != BRG_OK)
            let_go(g, call);
    }
    return status;
}

static brg_status start_now(brg__nccl_group *g, brg_call *call)
{
    BRG__NCCL_TRY(flush_held(g));
    BRG__NCCL_TRY(queue(g, call));
    return mark_end(g, call);
}

static void hold(brg__nccl_group *g, brg_call *call)
{
    call->next = NULL;
    *g->held_last = call;
    g->held_last = &call->next;
}

/* False: another rank does something else, and no data may move. */
static bool announce(brg__nccl_group *g, const brg_call *call)
{
    brg_signature mine, theirs;
    if (!g->board.desks)
        return true;
    g->host->sign(call, g->rank, &mine);
    brg__nccl_board_write(&g->board, &mine);
    if (!brg__nccl_board_differs(g, &mine, &theirs))
        return true;
    brg__nccl_judge_pair(g, &mine, &theirs);
    return false;
}

brg_status brg__nccl_start(void *group, brg_call *call)
{
    brg__nccl_group *g = group;
    if (brg__nccl_is_judged(g) && g->verdict.has_pair)
        return BRG_OK; /* its wait says why */
    BRG__NCCL_TRY(brg__nccl_heed(g));
    if (!is_p2p(call->coll) && !announce(g, call))
        return BRG_OK;
    if (call->count == 0 && call->coll != BRG_COLL_BARRIER) {
        call->is_done = true;
        return BRG_OK;
    }
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    BRG__NCCL_TRY(take_event(g, call));
    call->mark[HOST_WAITS] = call->coll == BRG_COLL_BARRIER;
    brg_status status = stage_buffers(g, call);
    if (status == BRG_OK && is_p2p(call->coll))
        hold(g, call);
    else if (status == BRG_OK)
        status = start_now(g, call);
    if (status != BRG_OK)
        let_go(g, call);
    return status;
}

/* ---- Ends ------------------------------------------------------------------------------ */

/* The event has happened. */
static brg_status finish(brg__nccl_group *g, brg_call *call)
{
    brg_status status = BRG_OK;
    if (call->mark[RECV_COPY]) {
        const size_t nbytes = extent(g, call, false);
        cudaError_t error =
            cudaMemcpyAsync(call->recv, copy_of(call, RECV_COPY), nbytes,
                            cudaMemcpyDeviceToHost, g->copies);
        if (error == cudaSuccess)
            error = cudaStreamSynchronize(g->copies);
        status = brg__nccl_check_cuda(g, error, "a host buffer");
    }
    dequeue(g, call);
    let_go(g, call);
    call->is_done = status == BRG_OK;
    return status;
}

brg_status brg__nccl_progress(void *group)
{
    brg__nccl_group *g = group;
    BRG__NCCL_TRY(brg__nccl_heed(g));
    if (!g->first && !g->held)
        return BRG_OK;
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    BRG__NCCL_TRY(flush_held(g));
    if (brg__nccl_is_recorded(g))
        return BRG_OK;
    while (g->first) {
        BRG__NCCL_TRY(bring_out(g, g->first));
        cudaError_t state = cudaEventQuery(event_of(g->first)->event);
        if (state == cudaErrorNotReady) {
            (void)cudaGetLastError();
            return BRG_OK;
        }
        BRG__NCCL_TRY(brg__nccl_check_cuda(g, state, "a collective"));
        BRG__NCCL_TRY(
            brg__nccl_heed(g)); /* it may have ended by being aborted */
        BRG__NCCL_TRY(finish(g, g->first));
    }
    return BRG_OK;
}

/* The watch is to say it, and who is late; unless it has none to ask. */
#define LATER_NS 2000000000u

static brg_status fail_timeout(brg__nccl_group *g, const brg_call *call)
{
    char text[120];
    brg_signature mine;
    g->host->sign(call, g->rank, &mine);
    g->host->describe(&mine, text, sizeof text);
    return g->host->fail(BRG_ERR_TIMEOUT, __FILE__, __LINE__,
                         "rank %d: %s timed out after %g s", g->rank, text,
                         (double)g->timeout_ns * 1e-9);
}

static brg_status wait_on_host(brg__nccl_group *g, brg_call *call)
{
    const uint64_t start = g->host->clock_ns();
    while (!call->is_done) {
        BRG__NCCL_TRY(brg__nccl_progress(g));
        if (call->is_done)
            break;
        if (g->host->clock_ns() - start > g->timeout_ns + LATER_NS)
            return fail_timeout(g, call);
        (void)sched_yield();
    }
    return BRG_OK;
}

brg_status brg__nccl_wait(void *group, brg_call *call)
{
    brg__nccl_group *g = group;
    if (call->is_done)
        return BRG_OK;
    BRG__NCCL_TRY(brg__nccl_heed(g));
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    BRG__NCCL_TRY(flush_held(g));
    if (!event_of(call))
        return g->host->fail(BRG_ERR_STATE, __FILE__, __LINE__,
                             "rank %d: nccl: this call was given up when one "
                             "that was to start with it failed",
                             g->rank);
    BRG__NCCL_TRY(bring_out(g, call));
    if (call->mark[HOST_WAITS] && brg__nccl_is_recorded(g))
        return brg__nccl_fail_recorded(g, "a barrier");
    if (call->mark[HOST_WAITS])
        return wait_on_host(g, call);
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaStreamWaitEvent(g->compute, event_of(call)->event, 0),
        "a collective"));
    return finish(g, call);
}

void brg__nccl_forget(brg__nccl_group *g)
{
    for (brg_call *call = g->first, *next; call; call = next) {
        next = call->next;
        let_go(g, call);
    }
    for (brg_call *call = g->held, *next; call; call = next) {
        next = call->next;
        let_go(g, call);
    }
    g->first = g->held = NULL;
    g->last = &g->first;
    g->held_last = &g->held;
}
