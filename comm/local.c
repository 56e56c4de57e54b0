/* SPDX-License-Identifier: Apache-2.0
 * Collectives among calls in one process. */
#include "comm/local.h"

#include <string.h>

#include "comm/patterns/tree.h"
#include "comm/reduce_kernels.h"

static void copy(void *dst, const void *src, size_t nbytes)
{
    if (nbytes && dst != src)
        memmove(dst, src, nbytes);
}

/* Reduces sources at `skip` bytes into `n_dst` destinations. */
static void reduce(brg_call *const *calls, int n, int node_size, size_t skip,
                   void *const *dst, size_t n_dst)
{
    const brg_call *first = calls[0];
    const void *src[BRG__LOCAL_MAX_RANKS];
    if (first->count == 0)
        return;
    for (int r = 0; r < n; r++)
        src[r] = (const char *)calls[r]->send + skip;
    brg_reduction reduction = {
        .src = src,
        .dst = dst,
        .n_src = (size_t)n,
        .n_dst = n_dst,
        .count = first->count,
        .dtype = first->dtype,
        .op = first->op,
        .divisor = n,
    };
    brg__reduce_grouped(&reduction, (size_t)node_size);
}

static void all_reduce(brg_call *const *calls, int n, int node_size)
{
    void *dst[BRG__LOCAL_MAX_RANKS];
    for (int r = 0; r < n; r++)
        dst[r] = calls[r]->recv;
    reduce(calls, n, node_size, 0, dst, (size_t)n);
}

/* The parts of all ranks side by side, in the order of the leaves. */
static void sum_leaves(brg_call *const *calls, int n)
{
    const brg_call *first = calls[0];
    const void *src[BRG__TREE_MAX_LEAVES];
    void *dst[BRG__LOCAL_MAX_RANKS];
    uint8_t n_parts[BRG__LOCAL_MAX_RANKS], merges[BRG__TREE_MAX_LEAVES];
    size_t n_src = 0;
    (void)brg__tree_plan(first->n_leaves, n, n_parts, merges);
    for (int r = 0; r < n; r++) {
        dst[r] = calls[r]->recv;
        for (size_t k = 0; k < n_parts[r]; k++)
            src[n_src++] =
                (const char *)calls[r]->send + k * calls[r]->part_stride;
    }
    brg__reduce(&(brg_reduction){.src = src,
                                 .dst = dst,
                                 .n_src = n_src,
                                 .n_dst = (size_t)n,
                                 .count = first->count,
                                 .dtype = first->dtype,
                                 .op = first->op,
                                 .divisor = (int)first->n_leaves,
                                 .src_partial = true,
                                 .merges = merges});
}

/* Rank r's result may lie in place, in part r of its own sources, which no
 * other rank's result needs. */
static void reduce_scatter(brg_call *const *calls, int n, int node_size)
{
    for (int r = 0; r < n; r++)
        reduce(calls, n, node_size, (size_t)r * calls[0]->nbytes,
               (void *const[]){calls[r]->recv}, 1);
}

static void all_gather(brg_call *const *calls, int n)
{
    for (int to = 0; to < n; to++)
        for (int from = 0; from < n; from++) {
            size_t nbytes = calls[from]->nbytes;
            if (nbytes)
                copy((char *)calls[to]->recv + (size_t)from * nbytes,
                     calls[from]->send, nbytes);
        }
}

static void broadcast(brg_call *const *calls, int n)
{
    const brg_call *root = calls[calls[0]->peer];
    for (int r = 0; r < n; r++)
        copy(calls[r]->recv, root->send, root->nbytes);
}

void brg__local_run(brg_call *const *calls, int n, int node_size)
{
    switch (calls[0]->coll) {
    case BRG_COLL_ALL_REDUCE:
        all_reduce(calls, n, node_size);
        break;
    case BRG_COLL_REDUCE_SCATTER:
        reduce_scatter(calls, n, node_size);
        break;
    case BRG_COLL_ALL_GATHER:
        all_gather(calls, n);
        break;
    case BRG_COLL_BROADCAST:
        broadcast(calls, n);
        break;
    case BRG_COLL_SUM_LEAVES:
        sum_leaves(calls, n);
        break;
    case BRG_COLL_BARRIER:
    case BRG_COLL_SEND:
    case BRG_COLL_RECV:
        break;
    }
}
