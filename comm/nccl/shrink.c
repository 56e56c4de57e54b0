/* SPDX-License-Identifier: Apache-2.0
 * A group of the ranks that are left, all on one machine: they meet at the board
 * of the old group, and make a new one as any is made.
 *
 *     wants     each says that it has come, and waits for those that may
 *     members   the first of them says who they are
 *     notes     what they gather from each other on the way */
#include "comm/nccl/group.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/base/process.h"

#define MAX_RANKS 64 /* bits of the set of members */

typedef struct meeting {
    brg__nccl_group *g;
    uint64_t start_ns;
    uint64_t members; /* desks */
    uint64_t n_notes; /* gathers so far */
    int n, mine;      /* places among the members */
} meeting;

static brg__nccl_desk *desk_at(const meeting *m, int i)
{
    return &m->g->board.desks[i];
}

static bool has_died(const meeting *m, int i)
{
    return brg__process_has_died(desk_at(m, i)->pid, desk_at(m, i)->born);
}

static brg_status pause_for(const meeting *m, int i)
{
    const struct timespec a_little = {0, 500000};
    const brg__nccl_group *g = m->g;
    if (g->host->clock_ns() - m->start_ns > g->timeout_ns)
        return g->host->fail(BRG_ERR_TIMEOUT, __FILE__, __LINE__,
                             "rank %d: brg_pg_shrink: rank %d has not come "
                             "within %g s",
                             g->rank, g->board.ranks[i],
                             (double)g->timeout_ns * 1e-9);
    (void)nanosleep(&a_little, NULL);
    return BRG_OK;
}

/* ---- Who is left --------------------------------------------------------------- */

/* Comes, has left or has died. */
static brg_status await_rank(const meeting *m, int i)
{
    while (atomic_load(&desk_at(m, i)->wants) == 0 &&
           atomic_load(&desk_at(m, i)->gone) != BRG__NCCL_LEFT &&
           !has_died(m, i))
        BRG__NCCL_TRY(pause_for(m, i));
    return BRG_OK;
}

static uint64_t all_that_came(const meeting *m)
{
    uint64_t set = 0;
    for (int i = 0; i < m->g->board.n; i++)
        if (atomic_load(&desk_at(m, i)->wants) != 0 && !has_died(m, i))
            set |= (uint64_t)1 << i;
    return set;
}

/* The first that came decides, or if it dies before it has, the next: what was
 * written stays to be read. */
static brg_status agree(meeting *m)
{
    const brg__nccl_board *b = &m->g->board;
    for (int i = 0; i < b->n && m->members == 0; i++) {
        brg__nccl_desk *desk = desk_at(m, i);
        if (atomic_load(&desk->wants) == 0)
            continue;
        if (i == b->mine)
            atomic_store(&desk->members, all_that_came(m));
        while ((m->members = atomic_load(&desk->members)) == 0 &&
               !has_died(m, i))
            BRG__NCCL_TRY(pause_for(m, i));
        m->members = atomic_load(&desk->members); /* its last word */
    }
    for (int i = 0; i < b->n; i++) {
        m->mine += i < b->mine && (m->members >> i & 1);
        m->n += m->members >> i & 1;
    }
    return BRG_OK;
}

/* ---- Gathering ------------------------------------------------------------------- */

static brg_status await_note(const meeting *m, int i)
{
    const brg__nccl_group *g = m->g;
    while (atomic_load(&desk_at(m, i)->noted) < m->n_notes) {
        if (has_died(m, i) && atomic_load(&desk_at(m, i)->noted) < m->n_notes)
            return g->host->fail(BRG_ERR_PEER, __FILE__, __LINE__,
                                 "rank %d: brg_pg_shrink: rank %d has died "
                                 "meanwhile",
                                 g->rank, g->board.ranks[i]);
        BRG__NCCL_TRY(pause_for(m, i));
    }
    return BRG_OK;
}

static brg_status gather(void *user, void *recv, const void *send,
                         size_t nbytes)
{
    meeting *m = user;
    brg__nccl_board *b = &m->g->board;
    brg__nccl_desk *mine = &b->desks[b->mine];
    const uint64_t turn = ++m->n_notes % 2;
    char *to = recv;
    if (nbytes > BRG__NCCL_NOTE)
        return m->g->host->fail(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                "nccl: a note of %zu bytes", nbytes);
    memcpy(mine->notes[turn], send, nbytes);
    atomic_store(&mine->noted, m->n_notes);
    for (int i = 0; i < b->n; i++) {
        if (!(m->members >> i & 1))
            continue;
        BRG__NCCL_TRY(await_note(m, i));
        memcpy(to, b->desks[i].notes[turn], nbytes);
        to += nbytes;
    }
    return BRG_OK;
}

static brg_status broadcast(void *user, void *data, size_t nbytes)
{
    char all[MAX_RANKS * BRG__NCCL_NOTE];
    BRG__NCCL_TRY(gather(user, all, data, nbytes));
    memcpy(data, all, nbytes);
    return BRG_OK;
}

/* ---- The slot --------------------------------------------------------------------- */

static brg_status make_group(meeting *m, brg_group *filled)
{
    const brg__nccl_group *g = m->g;
    int were[MAX_RANKS], n = 0;
    for (int i = 0; i < g->board.n; i++)
        if (m->members >> i & 1)
            were[n++] = g->board.ranks[i];
    const brg_nccl_options nccl = {
        .struct_size = sizeof nccl,
        .rank = m->mine,
        .world_size = m->n,
        .device = {BRG_DEVICE_CUDA, (int16_t)g->device},
        .stream = (void *)g->compute,
        .broadcast = broadcast,
        .all_gather = gather,
        .user = m,
    };
    const brg_pg_options options = {.struct_size = sizeof options,
                                    .timeout_s = (double)g->timeout_ns * 1e-9,
                                    .backend_data = &nccl};
    return brg__nccl_make(g->host, &options, were, filled);
}

brg_status brg__nccl_shrink(void *group, brg_group *filled)
{
    brg__nccl_group *g = group;
    brg__nccl_board *b = &g->board;
    meeting m = {.g = g, .start_ns = g->host->clock_ns()};
    if (!b->desks || b->n != g->n_ranks || b->n > MAX_RANKS)
        return g->host->fail(BRG_ERR_UNSUPPORTED, __FILE__, __LINE__,
                             "rank %d: brg_pg_shrink: nccl: the ranks must be "
                             "on one machine, see each other there and be %d "
                             "at the most; start again from a checkpoint",
                             g->rank, MAX_RANKS);
    brg__nccl_fail(g, BRG_ERR_PEER);
    atomic_store(&b->desks[b->mine].wants, 1);
    for (int i = 0; i < b->n; i++)
        BRG__NCCL_TRY(await_rank(&m, i));
    BRG__NCCL_TRY(agree(&m));
    return make_group(&m, filled);
}
