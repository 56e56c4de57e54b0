/* SPDX-License-Identifier: Apache-2.0
 * Announcing collectives to the node, and working through them in order. */
#include "comm/mpi/group.h"

#include <string.h>

#include <brigade/trace.h>

/* ---- Announcing ------------------------------------------------------------------ */

static size_t payload_of(const mpi_group *g, const brg_call *call)
{
    switch (call->coll) {
    case BRG_COLL_REDUCE_SCATTER:
        return call->nbytes * (size_t)g->n_ranks;
    case BRG_COLL_BARRIER:
        return 0;
    case BRG_COLL_SUM_LEAVES:
        return brg__mpi_leaves_payload(g, call);
    default:
        return call->nbytes;
    }
}

/* Small calls need one synchronisation, but each rank reads all data: what
 * fits a line's room, less where many would read it. */
static bool is_small(const mpi_group *g, const brg_call *call)
{
    size_t limit =
        g->n_local <= 2 ? SMALL_MAX : 2 * SMALL_MAX / (size_t)g->n_local;
    return g->n_nodes == 1 && payload_of(g, call) <= limit;
}

bool brg__mpi_all_reached(mpi_group *g, uint64_t mark)
{
    for (int r = 0; r < g->n_local; r++) {
        if (g->seen[r] >= mark)
            continue;
        g->seen[r] =
            atomic_load_explicit(&g->shared[r]->done, memory_order_acquire);
        if (g->seen[r] < mark)
            return false;
    }
    return true;
}

static bool has_line(mpi_group *g, uint64_t seq)
{
    return seq < RING || brg__mpi_all_reached(g, phase_mark(seq - RING + 1, 0));
}

/* Where the data lies: beside the line, or in regions. */
static void write_data(mpi_group *g, const brg_call *call, shared_line *line)
{
    size_t nbytes = payload_of(g, call);
    bool is_sum = call->coll == BRG_COLL_SUM_LEAVES;
    bool is_gathered = g->n_nodes > 1 && call->coll == BRG_COLL_ALL_GATHER;
    shared_line recv = {.region = 0};
    if (is_sum && is_small(g, call)) {
        brg__mpi_leaves_put_small(g, call);
    } else if (is_small(g, call)) {
        memcpy(g->shared[g->local]->small[call->seq % RING], call->send,
               nbytes);
    } else if (is_sum) {
        brg__mpi_region_find(g, call->send, brg__mpi_leaves_extent(g, call),
                             line);
        brg__mpi_region_find(g, call->recv, call->nbytes, &recv);
    } else if (is_gathered) {
        brg__mpi_region_find(g, call->recv, nbytes * (size_t)g->n_ranks, &recv);
    } else {
        brg__mpi_region_find(g, call->send, nbytes, line);
    }
    line->recv_offset = recv.offset;
    line->recv_region = recv.region;
}

static void write_line(mpi_group *g, const brg_call *call)
{
    shared_line *line = line_of(g, g->local, call->seq);
    g->host->sign(call, g->rank, &line->signature);
    line->region = line->recv_region = 0;
    bool has_data = call->coll != BRG_COLL_BROADCAST || call->peer == g->rank;
    if (payload_of(g, call) && (has_data || !is_small(g, call)))
        write_data(g, call, line);
    atomic_store_explicit(&line->stamp, call->seq + 1, memory_order_release);
}

/* Announces what has waited for a line. */
static void announce_waiting(mpi_group *g)
{
    while (g->unannounced && has_line(g, g->unannounced->seq)) {
        write_line(g, g->unannounced);
        g->unannounced = g->unannounced->next;
    }
}

void brg__mpi_announce(mpi_group *g, brg_call *call)
{
    *g->queue_end = call;
    g->queue_end = &call->next;
    if (!g->unannounced)
        g->unannounced = call;
    announce_waiting(g);
}

/* ---- The cursor ------------------------------------------------------------------- */

static brg_status fail_mismatch(mpi_group *g, const brg_signature *mine,
                                const brg_signature *theirs)
{
    header verdict = {
        .signature = *mine, .other = *theirs, .verdict = BRG_ERR_MISMATCH};
    brg__mpi_send_verdict(g, &verdict);
    return g->host->fail_mismatch(mine, theirs);
}

/* All ranks of the node have announced this call, and the same one. */
static brg_status check_lines(mpi_group *g, const brg_call *call, bool *ready)
{
    const brg_signature *mine = &line_of(g, g->local, call->seq)->signature;
    *ready = true;
    for (int r = 0; r < g->n_local; r++) {
        shared_line *line = line_of(g, r, call->seq);
        uint64_t stamp =
            atomic_load_explicit(&line->stamp, memory_order_acquire);
        if (stamp != call->seq + 1)
            *ready = false;
        else if (!g->host->signatures_match(mine, &line->signature))
            return fail_mismatch(g, mine, &line->signature);
        else if (is_open(mine)) /* matches any: those have to match, too */
            mine = &line->signature;
    }
    return BRG_OK;
}

static bool all_in_regions(const mpi_group *g, const brg_call *call)
{
    for (int r = 0; r < g->n_local; r++) {
        bool is_read = call->coll != BRG_COLL_BROADCAST ||
                       rank_in(g, g->my_node, r) == call->peer;
        bool is_gathered = g->n_nodes > 1 && call->coll == BRG_COLL_ALL_GATHER;
        bool is_written = is_gathered || call->coll == BRG_COLL_SUM_LEAVES;
        const shared_line *line = line_of(g, r, call->seq);
        if (is_read && !is_gathered && line->region == 0)
            return false;
        if (is_written && line->recv_region == 0)
            return false;
    }
    return true;
}

static call_mode choose_mode(const mpi_group *g, const brg_call *call,
                             bool direct)
{
    if (is_small(g, call))
        return MODE_SMALL;
    if (g->n_nodes > 1 && call->coll != BRG_COLL_ALL_REDUCE) {
        if (!brg__mpi_is_spread(g, call, direct))
            return MODE_FLAT;
        return call->coll == BRG_COLL_BROADCAST ? MODE_STAGED : MODE_SPREAD;
    }
    return direct ? MODE_DIRECT : MODE_STAGED;
}

/* Until the mode is known: node, then other nodes. */
static brg_status get_ready(mpi_group *g, brg_call *call)
{
    cursor *c = &g->cursor;
    brg_status status = BRG_OK;
    if (!c->is_node_ready)
        status = check_lines(g, call, &c->is_node_ready);
    if (status != BRG_OK || !c->is_node_ready)
        return status;
    if (!c->sent_headers)
        g->host->progressed(call, BRG_TRACE_MET);
    bool is_direct = all_in_regions(g, call);
    if (g->n_nodes > 1) {
        BRG_TRY(
            brg__mpi_exchange_headers(g, call, &is_direct, &c->has_headers));
        if (!c->has_headers)
            return BRG_OK;
    }
    c->mode = choose_mode(g, call, is_direct);
    return BRG_OK;
}

static brg_status run_mode(mpi_group *g, brg_call *call, bool *is_over)
{
    *is_over = false;
    switch (g->cursor.mode) {
    case MODE_UNDECIDED:
        return BRG_OK;
    case MODE_SMALL:
        *is_over = true;
        return brg__mpi_run_small(g, call);
    case MODE_DIRECT:
        return brg__mpi_run_direct(g, call, is_over);
    case MODE_STAGED:
        return brg__mpi_run_staged(g, call, is_over);
    case MODE_SPREAD:
        return brg__mpi_run_spread(g, call, is_over);
    case MODE_FLAT:
        return brg__mpi_run_flat(g, call, is_over);
    }
    return BRG_OK;
}

/* Others may still read or write the buffers of a direct call. */
static bool is_shared_until_all_done(const mpi_group *g, const brg_call *call)
{
    if (g->cursor.mode != MODE_DIRECT && g->cursor.mode != MODE_SPREAD)
        return false;
    return call->coll != BRG_COLL_BROADCAST || call->peer == g->rank;
}

/* This rank's part of the first call is over. */
static void finish_first(mpi_group *g)
{
    brg_call *call = g->queue;
    g->queue = call->next;
    if (!g->queue)
        g->queue_end = &g->queue;
    call->next = NULL;
    atomic_store_explicit(&g->shared[g->local]->done,
                          phase_mark(call->seq + 1, 0), memory_order_release);
    if (is_shared_until_all_done(g, call)) {
        g->host->progressed(call, BRG_TRACE_SHARED);
        *g->finishing_end = call;
        g->finishing_end = &call->next;
    } else {
        call->is_done = true;
    }
    g->cursor = (cursor){0};
}

static void complete_finishing(mpi_group *g)
{
    while (g->finishing) {
        brg_call *call = g->finishing;
        if (!brg__mpi_all_reached(g, phase_mark(call->seq + 1, 0)))
            return;
        g->finishing = call->next;
        if (!g->finishing)
            g->finishing_end = &g->finishing;
        call->is_done = true;
    }
}

/* While a call moves its data, the headers of the next one go out. If ranks
 * here differ in it, that is for its own turn. */
static brg_status look_ahead(mpi_group *g, const brg_call *next)
{
    if (!g->cursor.has_headers || !next || next == g->unannounced)
        return BRG_OK;
    const brg_signature *mine = &line_of(g, g->local, next->seq)->signature;
    for (int r = 0; r < g->n_local; r++) {
        shared_line *line = line_of(g, r, next->seq);
        uint64_t stamp =
            atomic_load_explicit(&line->stamp, memory_order_acquire);
        if (stamp != next->seq + 1 ||
            !g->host->signatures_match(mine, &line->signature))
            return BRG_OK;
    }
    return brg__mpi_send_headers(g, next, all_in_regions(g, next));
}

/* At most one step of one collective, so that a poll is bounded; a few small
 * calls count as one. Between nodes the next one begins at once: until its
 * headers have been exchanged, the link has nothing to carry. */
brg_status brg__mpi_node_progress(mpi_group *g)
{
    for (int i = 0; i < 8; i++) {
        if (g->unannounced)
            announce_waiting(g);
        brg_call *call = g->queue;
        if (!call || call == g->unannounced)
            break;
        cursor *c = &g->cursor;
        c->call = call;
        if (c->mode == MODE_UNDECIDED)
            BRG_TRY(get_ready(g, call));
        bool is_over;
        bool is_cheap = c->mode == MODE_SMALL || g->n_nodes > 1;
        BRG_TRY(run_mode(g, call, &is_over));
        if (!is_over) {
            BRG_TRY(look_ahead(g, call->next));
            break;
        }
        finish_first(g);
        if (!is_cheap)
            break;
    }
    complete_finishing(g);
    return BRG_OK;
}
