/* SPDX-License-Identifier: Apache-2.0
 * Calls of a group over NCCL: see group.h for the order of things.
 *
 * What is given to NCCL is a chain of calls, most often of one. A run of
 * calls in it that NCCL carries out is one launch; sums of our own are launched
 * by themselves. Sends and recvs wait in a chain for what must run beside them,
 * coalesced collectives for the end; sends and recvs in between come before the
 * collectives if they were started before the first of them, else behind all,
 * so that a launch is the same on ranks that have none.
 *
 * Of a call, `state` is its event; mark[0] and mark[1] are device copies of
 * host buffers (send, recv) or 0; mark[2] says that the host has to wait;
 * mark[3] that the event was recorded into a graph, where alone it has a
 * meaning, or will be. */
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
        event->n_users = 1;
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
    event->n_users = 1;
    call->state = event;
    return BRG_OK;
}

static void give_event(brg__nccl_group *g, brg_call *call)
{
    brg__nccl_event *event = event_of(call);
    call->state = NULL;
    if (!event || --event->n_users > 0)
        return;
    event->next = g->spare;
    g->spare = event;
}

static brg_status record_event(brg__nccl_group *g, brg_call *call,
                               cudaStream_t stream)
{
    brg__nccl_event *event = event_of(call);
    event->is_awaited = false;
    return brg__nccl_check_cuda(g, cudaEventRecord(event->event, stream),
                                "an event");
}

/* What the call held goes back; the buffers are the caller's again. */
static void let_go(brg__nccl_group *g, brg_call *call)
{
    for (int i = SEND_COPY; i <= RECV_COPY; i++)
        if (call->mark[i] &&
            (i == RECV_COPY || call->mark[SEND_COPY] != call->mark[RECV_COPY]))
            (void)cudaFreeAsync(copy_of(call, i), g->own);
    call->mark[SEND_COPY] = call->mark[RECV_COPY] = 0;
    give_event(g, call);
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
    return record_event(g, call, g->compute);
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
    BRG__NCCL_TRY(record_event(g, call, g->own));
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

/* ---- Chains ---------------------------------------------------------------------- */

static void add(brg__nccl_calls *calls, brg_call *call)
{
    call->next = NULL;
    *calls->last = call;
    calls->last = &call->next;
}

static brg_call *take_all(brg__nccl_calls *calls)
{
    brg_call *first = calls->first;
    calls->first = NULL;
    calls->last = &calls->first;
    return first;
}

static void take(brg__nccl_calls *calls, brg_call *call)
{
    brg_call **at = &calls->first;
    while (*at && *at != call)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = call->next;
    if (calls->last == &call->next)
        calls->last = at;
}

static void let_go_until(brg__nccl_group *g, brg_call *first,
                         const brg_call *end)
{
    for (brg_call *call = first, *next; call != end; call = next) {
        next = call->next;
        let_go(g, call);
    }
}

static bool is_empty(const brg_call *call)
{
    return call->count == 0 && call->coll != BRG_COLL_BARRIER;
}

/* ---- Launches ---------------------------------------------------------------------- */

static brg_status order_behind_compute(brg__nccl_group *g)
{
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaEventRecord(g->ready, g->compute),
                                       "an event"));
    return brg__nccl_check_cuda(g, cudaStreamWaitEvent(g->own, g->ready, 0),
                                "an event");
}

/* All calls of one launch end together. */
static brg_status mark_end(brg__nccl_group *g, brg_call *first,
                           const brg_call *end)
{
    brg__nccl_event *event = event_of(first);
    const bool is_recorded = brg__nccl_is_recorded(g);
    BRG__NCCL_TRY(record_event(g, first, g->own));
    for (brg_call *call = first, *next; call != end; call = next) {
        next = call->next;
        if (call != first) {
            give_event(g, call);
            call->state = event;
            event->n_users++;
        }
        call->mark[RECORDED] = is_recorded;
        add(&g->flying, call);
    }
    return BRG_OK;
}

/* What is launched with it: up to the next sum of our own. */
static brg_call *end_of_launch(const brg__nccl_group *g, const brg_call *first)
{
    brg_call *end = first->next;
    while (end && !brg__nccl_sums(g, first) && !brg__nccl_sums(g, end))
        end = end->next;
    return end;
}

/* Under the lock, with a communicator. */
static ncclResult_t hand_over_all(brg__nccl_group *g, const brg_call *first,
                                  const brg_call *end)
{
    ncclResult_t result = ncclGroupStart();
    for (const brg_call *call = first; call != end && result == ncclSuccess;
         call = call->next)
        result = hand_over(g, call);
    const ncclResult_t ended = ncclGroupEnd();
    return result != ncclSuccess ? result : ended;
}

static brg_status queue_calls(brg__nccl_group *g, const brg_call *first,
                              const brg_call *end)
{
    if (brg__nccl_sums(g, first))
        return brg__nccl_sum(g, first, send_of(first), recv_of(first));
    if (is_p2p(first->coll))
        return brg__nccl_check(g, hand_over_all(g, first, end),
                               "send and recv");
    if (first->next != end)
        return brg__nccl_check(g, hand_over_all(g, first, end),
                               "coalesced collectives");
    return brg__nccl_check(g, hand_over(g, first), "a collective");
}

/* The communicator is the watch's to end: the wait says why it has. */
static brg_status launch(brg__nccl_group *g, brg_call *first,
                         const brg_call *end)
{
    brg_status status = BRG_OK;
    pthread_mutex_lock(&g->lock);
    if (g->comm)
        status = queue_calls(g, first, end);
    pthread_mutex_unlock(&g->lock);
    return status == BRG_OK ? mark_end(g, first, end) : status;
}

static void have_watched(brg__nccl_group *g, const brg_call *first, int n_calls)
{
    if (brg__nccl_is_recorded(g))
        return;
    pthread_mutex_lock(&g->lock);
    if (g->comm)
        brg__nccl_watch_call(g, first, is_p2p(first->coll) ? 1 : n_calls);
    pthread_mutex_unlock(&g->lock);
}

/* Where it fails, the calls that were not launched are let go. */
static brg_status launch_all(brg__nccl_group *g, brg_call *first)
{
    int n_calls = 0;
    brg_status status = order_behind_compute(g);
    for (const brg_call *call = first; call; call = call->next)
        n_calls++;
    for (brg_call *call = first, *end; call; call = end) {
        end = end_of_launch(g, call);
        if (status == BRG_OK)
            status = launch(g, call, end);
        if (status != BRG_OK)
            let_go_until(g, call, end);
    }
    have_watched(g, first, n_calls);
    return status;
}

/* ---- Calls that wait for others to be launched with --------------------------------- */

static void hold(brg__nccl_group *g, brg__nccl_calls *calls, brg_call *call)
{
    call->mark[RECORDED] = brg__nccl_is_recorded(g);
    add(calls, call);
}

/* A graph would hold calls that were started before it, or lack some. */
static brg_status check_recorded(const brg__nccl_group *g,
                                 const brg_call *first)
{
    const bool is_recorded = brg__nccl_is_recorded(g);
    for (const brg_call *call = first; call; call = call->next)
        if ((call->mark[RECORDED] != 0) != is_recorded)
            return g->host->fail(
                BRG_ERR_STATE, __FILE__, __LINE__,
                "rank %d: nccl: calls that are launched together were started "
                "before a graph was recorded, and meanwhile or after",
                g->rank);
    return BRG_OK;
}

/* A send and a recv that wait for each other must run together. */
static brg_status flush_held(brg__nccl_group *g)
{
    brg_call *first = take_all(&g->held);
    if (!first)
        return BRG_OK;
    brg_status status = check_recorded(g, first);
    if (status == BRG_OK)
        return launch_all(g, first);
    let_go_until(g, first, NULL);
    return status;
}

/* False: another rank does something else, and no data may move. */
static bool announce(brg__nccl_group *g, const brg_call *call, uint32_t place)
{
    brg__nccl_said mine = {.place = place}, theirs;
    if (!g->board.desks)
        return true;
    g->host->sign(call, g->rank, &mine.call);
    brg__nccl_board_write(&g->board, &mine);
    if (!brg__nccl_board_differs(g, &mine, &theirs))
        return true;
    brg__nccl_judge_pair(g, &mine, &theirs);
    return false;
}

/* All are said before one is launched; those of nothing end here. */
static bool announce_all(brg__nccl_group *g, brg_call **first)
{
    uint32_t place = 0;
    bool is_alike = true;
    for (brg_call **at = first, *call; (call = *at);) {
        is_alike = is_alike && announce(g, call, ++place);
        if (!is_empty(call)) {
            at = &call->next;
            continue;
        }
        *at = call->next;
        let_go(g, call);
        call->is_done = is_alike;
    }
    return is_alike;
}

static brg_status flush_coalesced(brg__nccl_group *g)
{
    brg_call *first = take_all(&g->coalesced);
    if (!first)
        return BRG_OK;
    brg_status status = check_recorded(g, first);
    const bool is_alike = status == BRG_OK && announce_all(g, &first);
    if (is_alike && first)
        return launch_all(g, first);
    let_go_until(g, first, NULL);
    return status;
}

/* ---- Starting ------------------------------------------------------------------------ */

static brg_status start_now(brg__nccl_group *g, brg_call *call)
{
    BRG__NCCL_TRY(flush_held(g));
    call->next = NULL;
    return launch_all(g, call);
}

static brg_status start_coalesced(brg__nccl_group *g, brg_call *call)
{
    if (!g->coalesced.first)
        BRG__NCCL_TRY(flush_held(g));
    hold(g, &g->coalesced, call);
    return BRG_OK;
}

static brg_status start_it(brg__nccl_group *g, brg_call *call)
{
    BRG__NCCL_TRY(stage_buffers(g, call));
    if (g->is_coalescing && !is_p2p(call->coll))
        return start_coalesced(g, call);
    if (!is_p2p(call->coll))
        return start_now(g, call);
    hold(g, &g->held, call);
    return BRG_OK;
}

brg_status brg__nccl_start(void *group, brg_call *call)
{
    brg__nccl_group *g = group;
    const bool waits = g->is_coalescing || is_p2p(call->coll);
    if (brg__nccl_is_judged(g) && g->verdict.has_pair)
        return BRG_OK; /* its wait says why */
    BRG__NCCL_TRY(brg__nccl_heed(g));
    if (!waits && !announce(g, call, 0))
        return BRG_OK;
    if (is_empty(call) && (!waits || is_p2p(call->coll))) {
        call->is_done = true;
        return BRG_OK;
    }
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    BRG__NCCL_TRY(take_event(g, call));
    call->mark[HOST_WAITS] = call->coll == BRG_COLL_BARRIER;
    brg_status status = start_it(g, call);
    if (status != BRG_OK)
        let_go(g, call);
    return status;
}

brg_status brg__nccl_coalesce_begin(void *group)
{
    brg__nccl_group *g = group;
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    BRG__NCCL_TRY(flush_held(g));
    g->is_coalescing = true;
    return BRG_OK;
}

brg_status brg__nccl_coalesce_end(void *group)
{
    brg__nccl_group *g = group;
    g->is_coalescing = false;
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    BRG__NCCL_TRY(flush_coalesced(g));
    return flush_held(g);
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
    take(&g->flying, call);
    let_go(g, call);
    call->is_done = status == BRG_OK;
    return status;
}

brg_status brg__nccl_progress(void *group)
{
    brg__nccl_group *g = group;
    BRG__NCCL_TRY(brg__nccl_heed(g));
    if (!g->flying.first && !g->held.first)
        return BRG_OK;
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    if (!g->is_coalescing)
        BRG__NCCL_TRY(flush_held(g));
    if (brg__nccl_is_recorded(g))
        return BRG_OK;
    while (g->flying.first) {
        BRG__NCCL_TRY(bring_out(g, g->flying.first));
        cudaError_t state = cudaEventQuery(event_of(g->flying.first)->event);
        if (state == cudaErrorNotReady) {
            (void)cudaGetLastError();
            return BRG_OK;
        }
        BRG__NCCL_TRY(brg__nccl_check_cuda(g, state, "a collective"));
        BRG__NCCL_TRY(
            brg__nccl_heed(g)); /* it may have ended by being aborted */
        BRG__NCCL_TRY(finish(g, g->flying.first));
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
    if (!g->is_coalescing)
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
    brg__nccl_event *event = event_of(call);
    if (!event->is_awaited)
        BRG__NCCL_TRY(brg__nccl_check_cuda(
            g, cudaStreamWaitEvent(g->compute, event->event, 0),
            "a collective"));
    event->is_awaited = true;
    return finish(g, call);
}

void brg__nccl_forget(brg__nccl_group *g)
{
    let_go_until(g, take_all(&g->flying), NULL);
    let_go_until(g, take_all(&g->held), NULL);
    let_go_until(g, take_all(&g->coalesced), NULL);
    g->is_coalescing = false;
}
