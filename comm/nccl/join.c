/* SPDX-License-Identifier: Apache-2.0
 * Joining a communicator, without waiting for ever for a rank that is lost
 * meanwhile.
 *
 * NCCL can be made to give up while it makes a communicator, but only of one
 * whose calls do not block, all its life: each collective would cost a thread.
 * So there are two, of the same ranks:
 *
 *     first    does not block: made, split, destroyed; given up by an abort
 *     comm     split from first, whose way of waiting the split has: blocks
 *
 * Each rank counts the steps that it has done at its desk, for the others to see
 * who is missing. */
#include "comm/nccl/group.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define PAUSE_NS 200000
#define LAST_WORD_NS 500000000u /* until a death shows that NCCL saw before */

typedef struct joining {
    brg__nccl_group *g;
    ncclComm_t first; /* NULL: none */
    uint64_t start_ns;
} joining;

/* ---- Who is missing ------------------------------------------------------------ */

static int name_of(const brg__nccl_group *g, int rank)
{
    return g->were ? g->were[rank] : rank;
}

static const char *doing(const brg__nccl_group *g)
{
    return g->were ? "brg_pg_shrink" : "joining the group";
}

/* The other ranks are told, too. */
static brg_status BRG_PRINTF(3, 4)
    give_up(brg__nccl_group *g, brg_status code, const char *format, ...)
{
    char why[BRG__NCCL_WHY];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(why, sizeof why, format, args);
    va_end(args);
    brg__nccl_say_gone(g, code, why);
    return g->host->fail(code, __FILE__, __LINE__, "rank %d: nccl: %s: %s",
                         name_of(g, g->rank), doing(g), why);
}

static brg_status fail_lost(brg__nccl_group *g)
{
    const brg__nccl_board *b = &g->board;
    for (int i = 0; b->desks && i < b->n; i++) {
        const brg__nccl_desk *desk = &b->desks[i];
        if (i != b->mine && brg__nccl_desk_died(desk))
            return give_up(g, BRG_ERR_PEER, "rank %d has died",
                           name_of(g, b->ranks[i]));
    }
    for (int i = 0; b->desks && i < b->n; i++)
        if (i != b->mine && atomic_load(&b->desks[i].gone) < 0)
            return give_up(g, BRG_ERR_PEER, "rank %d has failed: %.*s",
                           name_of(g, b->ranks[i]), BRG__NCCL_WHY / 2,
                           b->desks[i].why);
    return BRG_OK;
}

/* "; rank 2 has not come" of each that has done fewer steps, into `text`. */
static void name_missing(const brg__nccl_group *g, char *text, size_t size)
{
    const brg__nccl_board *b = &g->board;
    size_t n = 0;
    text[0] = '\0';
    for (int i = 0; b->desks && i < b->n && n < size; i++)
        if (atomic_load(&b->desks[i].joined) <
            atomic_load(&b->desks[b->mine].joined))
            n += (size_t)snprintf(text + n, size - n, "; rank %d has not come",
                                  name_of(g, b->ranks[i]));
    if (n == 0)
        snprintf(text, size, "; all ranks%s have come",
                 b->desks && b->n == g->n_ranks ? "" : " that can be seen");
}

static brg_status fail_late(brg__nccl_group *g)
{
    char who[160];
    name_missing(g, who, sizeof who);
    return give_up(g, BRG_ERR_TIMEOUT, "timed out after %g s%s",
                   (double)g->timeout_ns * 1e-9, who);
}

static void pause_a_little(void)
{
    (void)nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
}

/* NCCL has seen that something is wrong, and does not know what. */
static brg_status fail_in_nccl(joining *j, ncclResult_t result)
{
    brg__nccl_group *g = j->g;
    const uint64_t start = g->host->clock_ns();
    while (g->host->clock_ns() - start < LAST_WORD_NS) {
        BRG__NCCL_TRY(fail_lost(g));
        pause_a_little();
    }
    return brg__nccl_check(g, result, doing(g));
}

/* ---- Steps --------------------------------------------------------------------- */

static void count_step(const brg__nccl_group *g)
{
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(&g->board);
    if (desk)
        atomic_fetch_add(&desk->joined, 1);
}

/* A step that this rank has begun (`begun`: NCCL's word for that), until NCCL
 * says that it is done. The word of a call that went on is not to be relied on:
 * ncclCommSplit calls that a success. */
static brg_status await_step(joining *j, ncclResult_t begun)
{
    ncclResult_t state = begun;
    if (begun != ncclSuccess && begun != ncclInProgress)
        return fail_in_nccl(j, begun);
    count_step(j->g);
    for (;;) {
        const ncclResult_t asked = ncclCommGetAsyncError(j->first, &state);
        if (asked != ncclSuccess)
            state = asked;
        if (state != ncclInProgress)
            break;
        BRG__NCCL_TRY(fail_lost(j->g));
        if (j->g->host->clock_ns() - j->start_ns > j->g->timeout_ns)
            return fail_late(j->g);
        pause_a_little();
    }
    return state == ncclSuccess ? BRG_OK : fail_in_nccl(j, state);
}

static brg_status make_both(joining *j, ncclUniqueId id)
{
    brg__nccl_group *g = j->g;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    BRG__NCCL_TRY(await_step(j, ncclCommInitRankConfig(&j->first, g->n_ranks,
                                                       id, g->rank, &config)));
    config.blocking = 1;
    BRG__NCCL_TRY(
        await_step(j, ncclCommSplit(j->first, 0, g->rank, &g->comm, &config)));
    return await_step(j, ncclCommFinalize(j->first));
}

brg_status brg__nccl_join(brg__nccl_group *g, ncclUniqueId id)
{
    joining j = {.g = g, .start_ns = g->host->clock_ns()};
    if (!g->is_bounded)
        return brg__nccl_check(
            g, ncclCommInitRank(&g->comm, g->n_ranks, id, g->rank),
            "joining the group");
    brg_status status = make_both(&j, id);
    if (j.first)
        (void)(status == BRG_OK ? ncclCommDestroy(j.first)
                                : ncclCommAbort(j.first));
    return status;
}
