/* SPDX-License-Identifier: Apache-2.0
 * Sums in a fixed order, which NCCL's own are not. Every element is summed by
 * one rank:
 *
 *     send and recv   slice r of the sources goes to rank r
 *     a kernel        sums this rank's slice of all sources, in order
 *     send and recv   the sums go to all
 *
 * The sources are the parts of the reproducible sum, f32 for 16-bit floats, or
 * of an all-reduce of 16-bit floats, or of blocks of 8-bit numbers, the buffers
 * themselves: the bytes on the wire are those of a ring. */
#include "comm/nccl/group.h"

#include <string.h>

#include "comm/nccl/sum.h"
#include "comm/patterns/slices.h"
#include "core/base/dtype.h"

#define ROOM_LINE ((size_t)256)

/* ---- What is summed ------------------------------------------------------------ */

/* Of one call. */
typedef struct sum {
    const brg_call *call;
    const char *send;
    char *recv;
    size_t stride;         /* of this rank's sources */
    size_t each, out_each; /* bytes of an element, of a result */
    size_t items;          /* of the types that an element is */
    ncclDataType_t type, out_type;
    brg__nccl_sum_job job;
} sum;

static bool is_leaves(const brg_call *call)
{
    return call->coll == BRG_COLL_SUM_LEAVES;
}

static bool is_half(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F16 || dtype == BRG_DTYPE_BF16;
}

/* Of 8-bit numbers: sums round them as no kernel of direct.c does. */
static bool is_blocks(const brg_call *call)
{
    return call->dtype == BRG__DTYPE_Q8;
}

bool brg__nccl_sums(const brg__nccl_group *g, const brg_call *call)
{
    const size_t n = (size_t)g->n_ranks;
    if (is_leaves(call))
        return true;
    if (call->coll != BRG_COLL_ALL_REDUCE ||
        (call->op != BRG_REDUCE_SUM && call->op != BRG_REDUCE_AVG))
        return false;
    const size_t each = call->nbytes / call->count;
    return is_blocks(call) || (g->sums_wide && is_half(call->dtype)) ||
           brg__nccl_direct_takes(g, n, n - 1, call->count, each, each);
}

size_t brg__nccl_leaves_extent(const brg__nccl_group *g, const brg_call *call)
{
    const size_t n_parts =
        brg__tree_n_parts(call->n_leaves, g->n_ranks, g->rank);
    return (n_parts - 1) * call->part_stride +
           call->count * g->host->partial_size(call->dtype);
}

/* Sources of rank r. */
static size_t n_parts(const brg__nccl_group *g, const sum *s, int r)
{
    return is_leaves(s->call) ? g->leaves.n_parts[r] : 1;
}

static brg_status plan_tree(brg__nccl_group *g, uint32_t n_leaves)
{
    brg__nccl_leaves *l = &g->leaves;
    const size_t n = (size_t)g->n_ranks;
    if (l->n_leaves == n_leaves)
        return BRG_OK;
    if (!l->n_parts)
        l->n_parts = g->host->alloc(n, "parts of ranks");
    if (!l->merges)
        l->merges = g->host->alloc(n * BRG__TREE_MAX_PARTS, "a tree");
    if (!l->n_parts || !l->merges)
        return BRG_ERR_NOMEM;
    l->n_src = brg__tree_plan(n_leaves, g->n_ranks, l->n_parts, l->merges);
    l->n_leaves = n_leaves;
    return BRG_OK;
}

/* ---- Slices and room ---------------------------------------------------------------- */

static brg__slice slice_of(const brg__nccl_group *g, const sum *s, int r)
{
    return brg__slice_of(s->call->count, s->each, (size_t)g->n_ranks,
                         (size_t)r);
}

static size_t length(brg__slice s)
{
    return s.end - s.begin;
}

/* For what the others send; kept for later calls, which the stream puts behind
 * this one. */
static brg_status make_room(brg__nccl_group *g, sum *s)
{
    brg__nccl_leaves *l = &g->leaves;
    const size_t mine = length(slice_of(g, s, g->rank)) * s->each;
    s->job.room_stride = (mine + ROOM_LINE - 1) / ROOM_LINE * ROOM_LINE;
    const size_t nbytes =
        s->job.room_stride * (size_t)(s->job.n_src - s->job.own_n);
    if (nbytes > l->room_nbytes && g->n_ranks > 1) {
        if (brg__nccl_is_recorded(g))
            return brg__nccl_fail_recorded(g, "room for a larger sum");
        if (l->room)
            (void)cudaFreeAsync(l->room, g->own);
        l->room = NULL;
        l->room_nbytes = 0;
        BRG__NCCL_TRY(
            brg__nccl_check_cuda(g, cudaMallocAsync(&l->room, nbytes, g->own),
                                 "memory for what other ranks send"));
        l->room_nbytes = nbytes;
    }
    s->job.room = l->room;
    return BRG_OK;
}

void brg__nccl_leaves_deinit(brg__nccl_group *g)
{
    brg__nccl_leaves *l = &g->leaves;
    if (l->room)
        (void)cudaFreeAsync(l->room, g->own);
    g->host->free(l->n_parts);
    g->host->free(l->merges);
    *l = (brg__nccl_leaves){0};
}

/* ---- The three stages ------------------------------------------------------------------ */

static ncclResult_t exchange_with(brg__nccl_group *g, const sum *s, int r,
                                  size_t first)
{
    const brg__slice mine = slice_of(g, s, g->rank), theirs = slice_of(g, s, r);
    ncclResult_t result = ncclSuccess;
    for (size_t k = 0; k < n_parts(g, s, g->rank) && length(theirs) > 0; k++) {
        result =
            ncclSend(s->send + k * s->stride + theirs.begin * s->each,
                     length(theirs) * s->items, s->type, r, g->comm, g->own);
        if (result != ncclSuccess)
            return result;
    }
    for (size_t k = 0; k < n_parts(g, s, r) && length(mine) > 0; k++) {
        result =
            ncclRecv((char *)g->leaves.room + (first + k) * s->job.room_stride,
                     length(mine) * s->items, s->type, r, g->comm, g->own);
        if (result != ncclSuccess)
            return result;
    }
    return result;
}

static ncclResult_t exchange(brg__nccl_group *g, const sum *s)
{
    size_t first = 0;
    ncclResult_t result = ncclGroupStart();
    for (int r = 0; r < g->n_ranks && result == ncclSuccess; r++) {
        if (r == g->rank)
            continue;
        result = exchange_with(g, s, r, first);
        first += n_parts(g, s, r);
    }
    const ncclResult_t end = ncclGroupEnd();
    return result != ncclSuccess ? result : end;
}

static ncclResult_t tell_all(brg__nccl_group *g, const sum *s)
{
    const brg__slice mine = slice_of(g, s, g->rank);
    ncclResult_t result = ncclGroupStart();
    for (int r = 0; r < g->n_ranks && result == ncclSuccess; r++) {
        const brg__slice theirs = slice_of(g, s, r);
        if (r == g->rank)
            continue;
        if (length(mine) > 0)
            result = ncclSend(s->recv + mine.begin * s->out_each,
                              length(mine) * s->items, s->out_type, r, g->comm,
                              g->own);
        if (length(theirs) > 0 && result == ncclSuccess)
            result = ncclRecv(s->recv + theirs.begin * s->out_each,
                              length(theirs) * s->items, s->out_type, r,
                              g->comm, g->own);
    }
    const ncclResult_t end = ncclGroupEnd();
    return result != ncclSuccess ? result : end;
}

/* ---- All of it ----------------------------------------------------------------------------- */

static brg_status describe(brg__nccl_group *g, sum *s)
{
    const brg_call *call = s->call;
    brg__nccl_sum_job *job = &s->job;
    const bool leaves = is_leaves(call);
    if (leaves)
        BRG__NCCL_TRY(plan_tree(g, call->n_leaves));
    const size_t n_src = leaves ? g->leaves.n_src : (size_t)g->n_ranks;
    if (n_src > BRG__NCCL_MAX_SRC)
        return g->host->fail(
            BRG_ERR_UNSUPPORTED, __FILE__, __LINE__,
            "rank %d: nccl: a sum of %zu parts, expected up to "
            "%d: take fewer leaves",
            g->rank, n_src, BRG__NCCL_MAX_SRC);
    s->out_each = call->nbytes / call->count;
    s->each = leaves ? g->host->partial_size(call->dtype) : s->out_each;
    s->out_type = brg__nccl_type(call->dtype);
    s->items = is_blocks(call) ? s->out_each : 1;
    s->type = leaves && is_half(call->dtype) ? ncclFloat32 : s->out_type;
    s->stride = call->part_stride;
    job->n_src = (int)n_src;
    job->is_tree = job->is_partial = leaves;
    job->dtype = (int)call->dtype;
    if (call->op == BRG_REDUCE_AVG)
        job->divisor = leaves ? (int)call->n_leaves : g->n_ranks;
    for (int r = 0; r < g->rank; r++)
        job->own_first += (int)n_parts(g, s, r);
    job->own_n = (int)n_parts(g, s, g->rank);
    job->own_stride = s->stride;
    if (leaves)
        memcpy(job->merges, g->leaves.merges, n_src);
    return BRG_OK;
}

/* Among ranks that reach each other's memory. */
static void describe_near(const brg__nccl_group *g, const sum *s,
                          brg__nccl_near_sum *near)
{
    size_t least = BRG__TREE_MAX_PARTS;
    *near = (brg__nccl_near_sum){.send = s->send,
                                 .recv = s->recv,
                                 .count = s->call->count,
                                 .each = s->each,
                                 .out_each = s->out_each,
                                 .is_last = s->call->is_last,
                                 .job = &s->job};
    for (int r = 0; r < g->n_ranks && r < BRG__NCCL_NEAR; r++) {
        const size_t n = n_parts(g, s, r);
        near->places[r] = s->job.own_first - (r < g->rank ? (int)n : 0);
        least = brg__slice_min(least, n);
    }
    near->most = (size_t)s->job.n_src - least;
}

brg_status brg__nccl_sum(brg__nccl_group *g, const brg_call *call,
                         const void *send, void *recv)
{
    sum s = {.call = call, .send = send, .recv = recv};
    brg__nccl_near_sum near;
    BRG__NCCL_TRY(describe(g, &s));
    describe_near(g, &s, &near);
    if (!is_blocks(call) &&
        brg__nccl_direct_takes(g, (size_t)s.job.n_src, near.most, near.count,
                               near.each, near.out_each))
        return brg__nccl_direct_sum(g, &near);
    BRG__NCCL_TRY(make_room(g, &s));
    const brg__slice mine = slice_of(g, &s, g->rank);
    s.job.own = s.send + mine.begin * s.each;
    s.job.dst = s.recv + mine.begin * s.out_each;
    s.job.count = length(mine);
    if (g->n_ranks > 1)
        BRG__NCCL_TRY(brg__nccl_check(g, exchange(g, &s), "parts of a sum"));
    if (s.job.count > 0)
        BRG__NCCL_TRY(brg__nccl_check_cuda(
            g, (cudaError_t)brg__nccl_sum_launch(&s.job, g->own), "a sum"));
    if (g->n_ranks > 1)
        return brg__nccl_check(g, tell_all(g, &s), "a sum");
    return BRG_OK;
}
