/* SPDX-License-Identifier: Apache-2.0
 * Groups over NCCL: making, memory, ending. */
#include "comm/nccl/group.h"

#include <stdio.h>

#include <brigade/nccl.h>

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

static brg_status nccl_alloc(void *group, void **out, size_t nbytes)
{
    brg__nccl_group *g = group;
    if (!out)
        return BRG_ERR_NOMEM;
    *out = NULL;
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaSetDevice(g->device), "the GPU"));
    BRG__NCCL_TRY(brg__nccl_check_cuda(g, cudaMalloc(out, nbytes ? nbytes : 1),
                                       "memory"));
    brg_status status = brg__nccl_check_cuda(
        g, cudaMemsetAsync(*out, 0, nbytes ? nbytes : 1, g->compute), "memory");
    if (status == BRG_OK)
        return BRG_OK;
    (void)cudaFree(*out);
    *out = NULL;
    return status;
}

static void nccl_free(void *group, void *ptr)
{
    brg__nccl_group *g = group;
    (void)cudaSetDevice(g->device);
    (void)cudaFree(ptr);
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
    return brg__nccl_check(
        g, ncclCommInitRank(&g->comm, g->n_ranks, note.id, g->rank),
        "joining the group");
}

static void free_group(brg__nccl_group *g)
{
    (void)cudaSetDevice(g->device);
    brg__nccl_forget(g);
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
    g->host->free(g);
}

/* ---- Ending ------------------------------------------------------------------------ */

static void nccl_abort(void *group, brg_status why)
{
    (void)why;
    brg__nccl_group *g = group;
    if (g->comm)
        (void)ncclCommAbort(g->comm);
    g->comm = NULL;
    brg__nccl_forget(g);
}

static void nccl_destroy(void *group)
{
    brg__nccl_group *g = group;
    if (g->comm) {
        (void)cudaSetDevice(g->device);
        if (g->first || g->held)
            (void)ncclCommAbort(g->comm);
        else
            (void)ncclCommDestroy(g->comm);
    }
    free_group(g);
}

static void nccl_explain(void *group, const brg_call *call, char *text,
                         size_t size)
{
    brg__nccl_group *g = group;
    ncclResult_t state = ncclSuccess;
    (void)call;
    if (g->comm && ncclCommGetAsyncError(g->comm, &state) == ncclSuccess)
        (void)snprintf(text, size, "nccl says %s", ncclGetErrorString(state));
}

static const brg_group_ops nccl_ops = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_group_ops),
    .start = brg__nccl_start,
    .progress = brg__nccl_progress,
    .wait = brg__nccl_wait,
    .explain = nccl_explain,
    .abort = nccl_abort,
    .alloc = nccl_alloc,
    .free = nccl_free,
    .destroy = nccl_destroy,
};

static brg_status nccl_create(const brg_host *host,
                              const brg_pg_options *options, brg_group *filled)
{
    const brg_nccl_options *o = options->backend_data;
    BRG__NCCL_TRY(check_options(host, o));
    brg__nccl_group *g = host->alloc(sizeof *g, "an NCCL group");
    if (!g)
        return BRG_ERR_NOMEM;
    g->host = host;
    g->rank = o->rank;
    g->n_ranks = o->world_size;
    g->device = o->device.index;
    g->compute = o->stream;
    g->timeout_ns = (uint64_t)(options->timeout_s * 1e9);
    g->last = &g->first;
    g->held_last = &g->held;
    brg_status status = make_streams(g);
    if (status == BRG_OK)
        status = meet(g, o);
    if (status != BRG_OK) {
        free_group(g);
        return status;
    }
    *filled = (brg_group){.ops = &nccl_ops,
                          .group = g,
                          .rank = g->rank,
                          .world_size = g->n_ranks,
                          .device = o->device};
    return BRG_OK;
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
