/* SPDX-License-Identifier: Apache-2.0
 * Starting collectives: argument checks and dispatch.
 *
 * Each public call fills a brg_call; `start` checks it against its row of
 * BRG_COLL_MAP, numbers it, and hands it to the backend. Bad arguments leave
 * the group as it was; the number is taken only when the backend accepted. */
#include <string.h>

#include "comm/call.h"
#include "comm/leaves.h"
#include "comm/patterns/tree.h"
#include "comm/q8.h"
#include "comm/reduce_kernels.h"
#include "comm/trace.h"
#include "comm/work.h"
#include "core/base/tracer.h"

#define MAX_NBYTES ((size_t)PTRDIFF_MAX)

/* The buffer's size in elements over `count`. */
static size_t times(int n, const brg_pg *pg)
{
    return n == BRG_COLL_W ? (size_t)pg->end.world_size : (size_t)n;
}

static brg_status check_peer(const brg_pg *pg, const brg_call *call)
{
    const brg__coll_row *row = &brg__coll_rows[call->coll];
    if (!row->peer)
        return BRG_OK;
    BRG_CHECK_ARG(call->peer >= 0 && call->peer < pg->end.world_size,
                  "rank %d: %s: %s is %d, expected 0 to %d", pg->end.rank,
                  row->name, row->peer, call->peer, pg->end.world_size - 1);
    BRG_CHECK_ARG(!brg__coll_is_p2p(call->coll) || call->peer != pg->end.rank,
                  "rank %d: %s: peer is this rank itself, expected another",
                  pg->end.rank, row->name);
    return BRG_OK;
}

static brg_status check_buffers(const brg_pg *pg, const brg_call *call,
                                size_t nbytes)
{
    const brg__coll_row *row = &brg__coll_rows[call->coll];
    BRG_CHECK_ARG(nbytes == 0 || row->send == 0 || call->send,
                  "rank %d: %s: the buffer to send is NULL, count is %zu",
                  pg->end.rank, row->name, call->count);
    BRG_CHECK_ARG(nbytes == 0 || row->recv == 0 || call->recv,
                  "rank %d: %s: the buffer to receive is NULL, count is %zu",
                  pg->end.rank, row->name, call->count);
    size_t misfit = (uintptr_t)call->send | (uintptr_t)call->recv;
    BRG_CHECK_ARG(nbytes == 0 || misfit % brg_dtype_size(call->dtype) == 0,
                  "rank %d: %s: a buffer is not aligned for %s", pg->end.rank,
                  row->name, brg_dtype_name(call->dtype));
    return BRG_OK;
}

/* Also fills nbytes, and the size of the larger buffer. */
static brg_status check_call(const brg_pg *pg, brg_call *call, size_t *payload)
{
    const brg__coll_row *row = &brg__coll_rows[call->coll];
    BRG_CHECK_ARG((unsigned)call->dtype < BRG_N_DTYPES ||
                      (call->dtype == BRG__DTYPE_Q8 && pg->end.sums_blocks),
                  "rank %d: %s: unknown dtype %d", pg->end.rank, row->name,
                  (int)call->dtype);
    BRG_CHECK_ARG((unsigned)call->op < BRG_N_REDUCE_OPS,
                  "rank %d: %s: unknown reduction %d", pg->end.rank, row->name,
                  (int)call->op);
    BRG_TRY(check_peer(pg, call));
    size_t send = times(row->send, pg), recv = times(row->recv, pg);
    size_t largest = send > recv ? send : recv;
    bool fits = brg__mul_size(call->count, brg_dtype_size(call->dtype),
                              &call->nbytes) &&
                brg__mul_size(call->nbytes, largest, payload) &&
                *payload <= MAX_NBYTES;
    BRG_CHECK_ARG(fits, "rank %d: %s: %zu elements of %s do not fit memory",
                  pg->end.rank, row->name, call->count,
                  brg_dtype_name(call->dtype));
    return check_buffers(pg, call, *payload);
}

static brg_status submit(brg_pg *pg, brg_work *work)
{
    brg__record_call(pg, &work->call, BRG_TRACE_START, 0);
    brg_status status = pg->end.ops->start(pg->end.group, &work->call);
    if (status == BRG_OK)
        return BRG_OK;
    brg__work_free(work);
    if (brg__status_is_fatal(status))
        brg__pg_kill(pg);
    return status;
}

static brg_status start(brg_pg *pg, brg_work **out, brg_call call)
{
    const char *name = brg__coll_rows[call.coll].name;
    BRG_CHECK_ARG(out, "%s: out is NULL", name);
    *out = NULL;
    BRG_CHECK_ARG(pg, "%s: the group is NULL", name);
    BRG_TRY(brg__tracer_outside(name));
    BRG_TRY(brg__pg_check(pg));
    size_t payload = 0;
    BRG_TRY(check_call(pg, &call, &payload));
    uint64_t *counter =
        brg__coll_is_p2p(call.coll) ? &pg->n_p2p_started : &pg->n_started;
    call.seq = *counter;
    call.reducer = pg->reducer;
    call.pace = pg->pace;
    call.plan = pg->plan;
    call.bucket = pg->bucket;
    call.is_last = pg->is_last;
    brg_work *work = brg__work_create(pg, &call);
    if (!work)
        return BRG_ERR_NOMEM;
    work->coalesced_by = pg->is_coalescing ? pg->n_coalesced : 0;
    BRG_TRY(submit(pg, work));
    ++*counter;
    pg->stats.n_collectives++;
    pg->stats.n_bytes += payload;
    if (work->call.is_done)
        brg__record_complete(work);
    *out = work;
    return BRG_OK;
}

brg_status brg_all_reduce(brg_pg *pg, brg_work **out, void *data, size_t count,
                          brg_dtype dtype, brg_reduce_op op)
{
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_ALL_REDUCE,
                            .send = data,
                            .recv = data,
                            .count = count,
                            .dtype = dtype,
                            .op = op,
                            .peer = -1});
}

brg_status brg__all_reduce_q8(brg_pg *pg, brg_work **out, void *blocks,
                              size_t n, brg_reduce_op op)
{
    BRG_CHECK_ARG(out && pg, "all_reduce: out or the group is NULL");
    *out = NULL;
    if (!pg->end.sums_blocks)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: all_reduce: backend %s has no sums of 8-bit "
                        "blocks",
                        pg->end.rank, pg->backend->name);
    return brg_all_reduce(pg, out, blocks, n, BRG__DTYPE_Q8, op);
}

brg_status brg_reduce_scatter(brg_pg *pg, brg_work **out, void *recv,
                              const void *send, size_t count, brg_dtype dtype,
                              brg_reduce_op op)
{
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_REDUCE_SCATTER,
                            .send = send,
                            .recv = recv,
                            .count = count,
                            .dtype = dtype,
                            .op = op,
                            .peer = -1});
}

brg_status brg_all_gather(brg_pg *pg, brg_work **out, void *recv,
                          const void *send, size_t count, brg_dtype dtype)
{
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_ALL_GATHER,
                            .send = send,
                            .recv = recv,
                            .count = count,
                            .dtype = dtype,
                            .peer = -1});
}

brg_status brg_broadcast(brg_pg *pg, brg_work **out, void *data, size_t count,
                         brg_dtype dtype, int root)
{
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_BROADCAST,
                            .send = data,
                            .recv = data,
                            .count = count,
                            .dtype = dtype,
                            .peer = root});
}

brg_status brg_barrier(brg_pg *pg, brg_work **out)
{
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_BARRIER,
                            .dtype = BRG_DTYPE_U8,
                            .peer = -1});
}

brg_status brg_send(brg_pg *pg, brg_work **out, const void *data, size_t count,
                    brg_dtype dtype, int peer)
{
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_SEND,
                            .send = data,
                            .count = count,
                            .dtype = dtype,
                            .peer = peer});
}

brg_status brg_recv(brg_pg *pg, brg_work **out, void *data, size_t count,
                    brg_dtype dtype, int peer)
{
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_RECV,
                            .recv = data,
                            .count = count,
                            .dtype = dtype,
                            .peer = peer});
}

/* ---- The reproducible sum --------------------------------------------------- */

static brg_status check_parts(const brg_pg *pg, const brg_leaf_parts *parts,
                              size_t count, brg_dtype dtype)
{
    int rank = pg->end.rank;
    size_t nbytes;
    BRG_CHECK_ARG(parts, "rank %d: sum_leaves: parts is NULL", rank);
    BRG_TRY(brg__leaves_check(parts->n_leaves, rank, pg->end.world_size));
    if (!pg->end.sums_leaves)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: sum_leaves: backend %s has no reproducible "
                        "sum",
                        rank, pg->backend->name);
    size_t each = (unsigned)dtype < BRG_N_DTYPES ? brg__partial_size(dtype) : 1;
    BRG_CHECK_ARG(brg__mul_size(count, each, &nbytes) &&
                      parts->stride % each == 0 &&
                      (parts->stride >= nbytes || nbytes == 0) &&
                      parts->stride <= MAX_NBYTES / BRG__TREE_MAX_PARTS,
                  "rank %d: sum_leaves: parts every %zu bytes, expected room "
                  "for %zu elements of %zu",
                  rank, parts->stride, count, each);
    return BRG_OK;
}

brg_status brg_sum_leaves(brg_pg *pg, brg_work **out, void *recv,
                          const brg_leaf_parts *parts, size_t count,
                          brg_dtype dtype, brg_reduce_op op)
{
    BRG_CHECK_ARG(out, "sum_leaves: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(pg, "sum_leaves: the group is NULL");
    BRG_TRY(brg__pg_check(pg));
    BRG_TRY(check_parts(pg, parts, count, dtype));
    BRG_CHECK_ARG(op == BRG_REDUCE_SUM || op == BRG_REDUCE_AVG,
                  "rank %d: sum_leaves: reduction %s, expected sum or avg",
                  pg->end.rank, brg_reduce_op_name(op));
    return start(pg, out,
                 (brg_call){.coll = BRG_COLL_SUM_LEAVES,
                            .send = parts->data,
                            .recv = recv,
                            .count = count,
                            .dtype = dtype,
                            .op = op,
                            .peer = -1,
                            .n_leaves = parts->n_leaves,
                            .part_stride = parts->stride});
}

static brg_status coalesce(brg_pg *pg, bool is_begin)
{
    const char *name = is_begin ? "brg_coalesce_begin" : "brg_coalesce_end";
    BRG_CHECK_ARG(pg, "%s: the group is NULL", name);
    if (pg->is_coalescing == is_begin)
        return BRG_FAIL(BRG_ERR_STATE, "rank %d: %s: %s", pg->end.rank, name,
                        is_begin ? "begun already, not ended yet"
                                 : "there was no begin");
    BRG_TRY(brg__pg_check(pg));
    brg_status (*slot)(void *) =
        is_begin ? pg->end.ops->coalesce_begin : pg->end.ops->coalesce_end;
    brg_status status = slot ? slot(pg->end.group) : BRG_OK;
    if (brg__status_is_fatal(status))
        brg__pg_kill(pg);
    pg->is_coalescing = is_begin && status == BRG_OK;
    pg->n_coalesced += is_begin;
    return status;
}

brg_status brg_coalesce_begin(brg_pg *pg)
{
    return coalesce(pg, true);
}

brg_status brg_coalesce_end(brg_pg *pg)
{
    return coalesce(pg, false);
}
