/* SPDX-License-Identifier: Apache-2.0
 * Groups over NCCL: making, memory, ending. */
#include "comm/nccl/group.h"

#include <sched.h>
#include <string.h>

/* ---- Errors ------------------------------------------------------------------ */

brg_status brg__nccl_check_cuda(brg__nccl_group *g, cudaError_t error,
                                const char *what)
{
    if (error == cudaSuccess)
        return BRG_OK;
    (void)cudaGetLastError();
    return g->host->fail(
        error == cudaErrorMemoryAllocation ? BRG_ERR_NOMEM : BRG_ERR_COMM,
        __FILE__, __LINE__, "rank %d: nccl: %s: %s (%s)", g->rank, what,
        cudaGetErrorString(error), cudaGetErrorName(error));
}

/* A lost peer shows as a remote or system error. */
brg_status brg__nccl_check(brg__nccl_group *g, ncclResult_t result,
                           const char *what)
{
    if (result == ncclSuccess || result == ncclInProgress)
        return BRG_OK;
    bool is_peer = result == ncclRemoteError || result == ncclSystemError;
    const char *last = g->comm ? ncclGetLastError(g->comm) : "";
    return g->host->fail(is_peer ? BRG_ERR_PEER : BRG_ERR_COMM, __FILE__,
                         __LINE__, "rank %d: nccl: %s: %s%s%s", g->rank, what,
                         ncclGetErrorString(result), last[0] ? ": " : "", last);
}

/* ---- Memory -------------------------------------------------------------------- */

/* What tensors have given back is the pool's until it is asked for it; not while
 * a graph is recorded, which a wait would end. */
static void trim_pool(const brg__nccl_group *g)
{
    cudaMemPool_t pool;
    if (!brg__nccl_is_recorded(g) &&
        cudaStreamSynchronize(g->compute) == cudaSuccess &&
        cudaDeviceGetDefaultMemPool(&pool, g->device) == cudaSuccess)
        (void)cudaMemPoolTrimTo(pool, 0);
    (void)cudaGetLastError();
}

/* For what NCCL takes by itself. */
#define NCCL_ROOM ((size_t)1 << 30)

static void make_room(const brg__nccl_group *g)
{
    size_t n_free, all;
    if (cudaMemGetInfo(&n_free, &all) == cudaSuccess && n_free < NCCL_ROOM)
        trim_pool(g);
    (void)cudaGetLastError();
}

static cudaError_t take_memory(const brg__nccl_group *g, void **at,
                               size_t nbytes)
{
    const cudaError_t error = cudaMalloc(at, nbytes);
    if (error != cudaErrorMemoryAllocation)
        return error;
    (void)cudaGetLastError();
    trim_pool(g);
    return cudaMalloc(at, nbytes);
}

static brg_status alloc_block(brg__nccl_group *g, void **at, size_t nbytes)
{
    if (g->is_registering)
        return brg__nccl_check(g, ncclMemAlloc(at, nbytes), "memory");
    return brg__nccl_check_cuda(g, take_memory(g, at, nbytes), "memory");
}

static void free_block(brg__nccl_group *g, brg__nccl_block *block)
{
    pthread_mutex_lock(&g->lock);
    if (block->handle && g->comm)
        (void)ncclCommDeregister(g->comm, block->handle);
    pthread_mutex_unlock(&g->lock);
    if (block->at && g->is_registering)
        (void)ncclMemFree(block->at);
    else
        (void)cudaFree(block->at);
    g->host->free(block);
}

/* Zeros; and where that is asked for, known to NCCL, so that it need not copy
 * through buffers of its own. */
static brg_status prepare_block(brg__nccl_group *g, brg__nccl_block *block,
                                size_t nbytes)
{
    brg_status status = BRG_OK;
    BRG__NCCL_TRY(alloc_block(g, &block->at, nbytes));
    if (g->is_registering) {
        pthread_mutex_lock(&g->lock);
        if (g->comm)
            status = brg__nccl_check(
                g, ncclCommRegister(g->comm, block->at, nbytes, &block->handle),
                "registering memory");
        pthread_mutex_unlock(&g->lock);
        BRG__NCCL_TRY(status);
    }
    return brg__nccl_check_cuda(
        g, cudaMemsetAsync(block->at, 0, nbytes, g->compute), "memory");
}

static brg_status nccl_alloc(void *group, void **out, size_t nbytes)
{
    brg__nccl_group *g = group;
    if (!out)
        return BRG_ERR_NOMEM;
    *out = NULL;
    BRG__NCCL_TRY(brg__nccl_heed(g));
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    brg__nccl_block *block = g->host->alloc(sizeof *block, "a block");
    if (!block)
        return BRG_ERR_NOMEM;
    brg_status status = prepare_block(g, block, nbytes ? nbytes : 1);
    if (status != BRG_OK) {
        free_block(g, block);
        return status;
    }
    block->next = g->blocks;
    g->blocks = block;
    *out = block->at;
    return BRG_OK;
}

static void nccl_free(void *group, void *ptr)
{
    brg__nccl_group *g = group;
    (void)cudaSetDevice(g->device);
    for (brg__nccl_block **at = &g->blocks; *at; at = &(*at)->next)
        if ((*at)->at == ptr) {
            brg__nccl_block *block = *at;
            *at = block->next;
            free_block(g, block);
            return;
        }
}

/* ---- Making ---------------------------------------------------------------------- */

static brg_status check_options(const brg_host *host, const brg_nccl_options *o)
{
    if (!o || o->struct_size < sizeof *o || !o->broadcast)
        return host->fail(BRG_ERR_ARG, __FILE__, __LINE__,
                          "nccl: backend_data must be a brg_nccl_options with "
                          "a broadcast: use brg_nccl_create");
    if (o->rank < 0 || o->rank >= o->world_size ||
        o->device.type != BRG_DEVICE_CUDA)
        return host->fail(BRG_ERR_ARG, __FILE__, __LINE__,
                          "nccl: rank %d of %d on device type %d", o->rank,
                          o->world_size, (int)o->device.type);
    return BRG_OK;
}

static brg_status make_streams(brg__nccl_group *g)
{
    int least, greatest;
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    make_room(g);
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaDeviceGetStreamPriorityRange(&least, &greatest), "a stream"));
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g,
        cudaStreamCreateWithPriority(&g->own, cudaStreamNonBlocking, greatest),
        "a stream"));
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaStreamCreateWithFlags(&g->copies, cudaStreamNonBlocking),
        "a stream"));
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, cudaEventCreateWithFlags(&g->ready, cudaEventDisableTiming),
        "an event"));
    return brg__nccl_check_cuda(g, cudaMalloc(&g->byte, 1), "memory");
}

/* Rank 0 makes the id; every rank gets it, also if making it failed. */
static brg_status meet(brg__nccl_group *g, const brg_nccl_options *o)
{
    struct {
        ncclUniqueId id;
        int32_t is_valid;
    } note = {.is_valid = 0};
    brg_status made = BRG_OK;
    if (g->rank == 0) {
        made = brg__nccl_check(g, ncclGetUniqueId(&note.id), "a unique id");
        note.is_valid = made == BRG_OK;
    }
    BRG__NCCL_TRY(o->broadcast(o->user, &note, sizeof note));
    BRG__NCCL_TRY(made);
    if (!note.is_valid)
        return g->host->fail(BRG_ERR_PEER, __FILE__, __LINE__,
                             "rank %d: nccl: rank 0 could not make a unique id",
                             g->rank);
    return brg__nccl_join(g, note.id);
}

static brg_status open_group(brg__nccl_group *g, const brg_nccl_options *o)
{
    BRG__NCCL_TRY(make_streams(g));
    BRG__NCCL_TRY(brg__nccl_board_open(g, o));
    BRG__NCCL_TRY(meet(g, o));
    BRG__NCCL_TRY(brg__nccl_direct_open(g, o));
    return brg__nccl_watch_start(g);
}

static void free_group(brg__nccl_group *g)
{
    (void)cudaSetDevice(g->device);
    brg__nccl_watch_stop(g);
    brg__nccl_forget(g);
    brg__nccl_leaves_deinit(g);
    brg__nccl_direct_close(g);
    while (g->spare) {
        brg__nccl_event *event = g->spare;
        g->spare = event->next;
        (void)cudaEventDestroy(event->event);
        g->host->free(event);
    }
    if (g->ready)
        (void)cudaEventDestroy(g->ready);
    if (g->own)
        (void)cudaStreamDestroy(g->own);
    if (g->copies)
        (void)cudaStreamDestroy(g->copies);
    (void)cudaFree(g->byte);
    brg__nccl_board_close(g);
    (void)pthread_mutex_destroy(&g->lock);
    (void)pthread_mutex_destroy(&g->watch.sleep_lock);
    (void)pthread_cond_destroy(&g->watch.wake);
    g->host->free(g);
}

/* ---- Ending ------------------------------------------------------------------------ */

static void nccl_abort(void *group, brg_status why)
{
    brg__nccl_group *g = group;
    (void)cudaSetDevice(g->device);
    brg__nccl_fail(g, why);
    brg__nccl_forget(g);
}

/* What is queued ends, or the watch ends it: the communicator must not be
 * destroyed before. False: it was ended. */
static bool settle(const brg__nccl_group *g)
{
    while (!brg__nccl_is_judged(g) &&
           cudaStreamQuery(g->own) == cudaErrorNotReady) {
        (void)cudaGetLastError();
        (void)sched_yield();
    }
    return !brg__nccl_is_judged(g);
}

static void nccl_destroy(void *group)
{
    brg__nccl_group *g = group;
    (void)cudaSetDevice(g->device);
    const bool is_over =
        !g->flying.first && !g->held.first && !g->coalesced.first && settle(g);
    brg__nccl_watch_stop(g);
    brg__nccl_say_gone(g, BRG__NCCL_LEFT, "");
    if (!is_over)
        brg__nccl_direct_stop(g);
    if (g->comm) /* else the watch has ended it */
        (void)(is_over ? ncclCommDestroy(g->comm) : ncclCommAbort(g->comm));
    free_group(g);
}

/* ---- What is known of the others --------------------------------------------------- */

static void nccl_look(void *group, const brg_call *call, int rank,
                      brg_peer *filled)
{
    const brg__nccl_group *g = group;
    const brg__nccl_board *b = &g->board;
    brg__nccl_said last;
    int i = 0;
    while (b->desks && i < b->n && b->ranks[i] != rank)
        i++;
    if (!b->desks || i == b->n || call->coll == BRG_COLL_SEND ||
        call->coll == BRG_COLL_RECV)
        return;
    const uint64_t started = atomic_load(&b->desks[i].started);
    filled->is_visible = true;
    filled->has_come = started > call->seq;
    filled->owes = filled->has_come ? NULL : "has not started it";
    filled->has_last =
        started > 0 && brg__nccl_board_read(b, i, started - 1, &last);
    if (filled->has_last)
        filled->last = last.call;
    filled->place = b->desks[i].place;
}

static const brg_group_ops nccl_ops = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_group_ops),
    .start = brg__nccl_start,
    .progress = brg__nccl_progress,
    .wait = brg__nccl_wait,
    .look = nccl_look,
    .launched = brg__nccl_launched,
    .coalesce_begin = brg__nccl_coalesce_begin,
    .coalesce_end = brg__nccl_coalesce_end,
    .abort = nccl_abort,
    .shrink = brg__nccl_shrink,
    .alloc = nccl_alloc,
    .free = nccl_free,
    .destroy = nccl_destroy,
};

static void fill_group(brg__nccl_group *g, const brg_host *host,
                       const brg_pg_options *options)
{
    const brg_nccl_options *o = options->backend_data;
    g->host = host;
    g->rank = o->rank;
    g->n_ranks = o->world_size;
    g->device = o->device.index;
    g->compute = o->stream;
    g->timeout_ns = (uint64_t)(options->timeout_s * 1e9);
    g->is_registering = strcmp(host->env("BRG_NCCL_REGISTER"), "1") == 0;
    g->is_bounded = strcmp(host->env("BRG_NCCL_BOUNDED_INIT"), "0") != 0;
    g->sums_wide = strcmp(host->env("BRG_NCCL_WIDE_SUMS"), "1") == 0;
    g->way = brg__nccl_direct_way(host->env("BRG_NCCL_SUMS"));
    g->flying.last = &g->flying.first;
    g->held.last = &g->held.first;
    g->coalesced.last = &g->coalesced.first;
    (void)pthread_mutex_init(&g->lock, NULL);
    (void)pthread_mutex_init(&g->watch.sleep_lock, NULL);
    (void)pthread_cond_init(&g->watch.wake, NULL);
}

brg_status brg__nccl_make(const brg_host *host, const brg_pg_options *options,
                          const int *were, brg_group *filled)
{
    const brg_nccl_options *o = options->backend_data;
    BRG__NCCL_TRY(check_options(host, o));
    brg__nccl_group *g = host->alloc(sizeof *g, "an NCCL group");
    if (!g)
        return BRG_ERR_NOMEM;
    fill_group(g, host, options);
    g->were = were;
    brg_status status = open_group(g, o);
    g->were = NULL;
    if (status != BRG_OK) {
        brg__nccl_say_gone(g, status, "could not make its end of the group");
        brg__nccl_watch_stop(g);
        if (g->comm)
            (void)ncclCommAbort(g->comm);
        free_group(g);
        return status;
    }
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(&g->board);
    *filled = (brg_group){.ops = &nccl_ops,
                          .group = g,
                          .rank = g->rank,
                          .world_size = g->n_ranks,
                          .sums_leaves = true,
                          .sums_blocks = true,
                          .device = o->device,
                          .place = desk ? desk->place : NULL};
    return BRG_OK;
}

static brg_status nccl_create(const brg_host *host,
                              const brg_pg_options *options, brg_group *filled)
{
    return brg__nccl_make(host, options, NULL, filled);
}

static const brg_backend backend_nccl = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_backend),
    .name = "nccl",
    .create = nccl_create,
};

const brg_backend *brg_comm_nccl(void)
{
    return &backend_nccl;
}
