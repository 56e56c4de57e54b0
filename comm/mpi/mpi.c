/* SPDX-License-Identifier: Apache-2.0
 * The MPI backend's slots, and what a waiting rank looks after: peers that
 * left, failed or died. */
#include "comm/mpi/group.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

#include <brigade/mpi.h>

#include "core/base/thread.h"

#define SPINS 4000 /* before a waiting rank gives its core away */
#define IDLES_PER_CLOCK 512

/* ---- Peers ----------------------------------------------------------------------------- */

static int rank_of(const mpi_group *g, int local)
{
    return rank_in(g, g->my_node, local);
}

static const char not_come[] = "has not come";
static const char not_started[] = "has not started it";
static const char not_finished[] = "has not finished it";

static bool is_message(const brg_call *call)
{
    return call->coll == BRG_COLL_SEND || call->coll == BRG_COLL_RECV;
}

/* What a rank of the node has not done yet that this call needs; NULL: it is
 * not the one waited for. */
static const char *owes(const mpi_group *g, const brg_call *call, int local)
{
    if (is_message(call))
        return rank_of(g, local) == call->peer ? not_come : NULL;
    const brg_call *first = g->finishing ? g->finishing : g->queue;
    uint64_t seq = first && first->seq < call->seq ? first->seq : call->seq;
    uint64_t done =
        atomic_load_explicit(&g->shared[local]->done, memory_order_acquire);
    if (done >= phase_mark(seq + 1, 0))
        return NULL;
    uint64_t stamp = atomic_load_explicit(&line_of(g, local, seq)->stamp,
                                          memory_order_acquire);
    return stamp > seq ? not_finished : not_started;
}

static brg_status fail_peer(const mpi_group *g, const brg_call *call, int local,
                            const char *what)
{
    char text[120];
    brg_signature signature;
    g->host->sign(call, g->rank, &signature);
    g->host->describe(&signature, text, sizeof text);
    return MPI_FAIL(g, BRG_ERR_PEER, "rank %d: %s waits for rank %d, which %s",
                    g->rank, text, rank_of(g, local), what);
}

/* How a rank of the node that this call waits for has gone; 0: it has not. What
 * it did before counts, and it may do that, say that it goes and end between
 * two looks: so first whether it lives, then what it said, then what it did. */
static int32_t how_gone(const mpi_group *g, const brg_call *call, int local)
{
    if (!owes(g, call, local))
        return 0;
    bool has_died = brg__mpi_has_died(g, local);
    int32_t gone =
        atomic_load_explicit(&g->shared[local]->gone, memory_order_acquire);
    if (gone == 0 && has_died)
        gone = DIED;
    return gone != 0 && owes(g, call, local) ? gone : 0;
}

/* The rank of the node that this call waits for in vain, and how it has gone.
 * Ranks that failed come last: they may have failed for the one that left. */
static int find_gone(const mpi_group *g, const brg_call *call, int32_t *how)
{
    int failed = -1;
    for (int r = 0; r < g->n_local; r++) {
        int32_t gone = r == g->local ? 0 : how_gone(g, call, r);
        if (gone != 0)
            *how = gone;
        if (gone > 0)
            return r;
        if (gone < 0)
            failed = r;
    }
    return failed;
}

/* A rank that failed for what another node told it says so; the other nodes
 * hear of one that is gone. */
static brg_status check_peers(mpi_group *g, brg_call *call)
{
    int32_t how = 0;
    int r = find_gone(g, call, &how);
    if (r < 0)
        return BRG_OK;
    if (is_message(call)) { /* it may have come since the last poll */
        BRG_TRY(brg__mpi_p2p_progress(g));
        if (call->is_done)
            return BRG_OK;
    }
    brg__mpi_find_dead(g);
    brg__mpi_lose(g, atomic_load(&g->shared[r]->lost));
    if (g->shared[r]->verdict.verdict)
        return brg__mpi_heed(g, &g->shared[r]->verdict);
    if (g->n_nodes > 1)
        brg__mpi_send_verdict(
            g, &(header){.verdict = how, .culprit = rank_of(g, r)});
    return fail_peer(g, call, r, brg__mpi_gone_words(how));
}

static brg_status mpi_idle(void *group, brg_call *call, uint64_t n)
{
    mpi_group *g = group;
    if (g->is_crowded || n > SPINS)
        sched_yield();
    else
        brg__cpu_relax();
    if (n % IDLES_PER_CLOCK != 0)
        return BRG_OK;
    uint64_t now = g->host->clock_ns();
    if (now < g->next_check_ns)
        return BRG_OK;
    g->next_check_ns = now + CHECK_NS;
    return check_peers(g, call);
}

/* The last collective that a rank of the node has started; false: none so
 * far. */
static bool find_last(const mpi_group *g, int local, brg_signature *filled)
{
    uint64_t last = 0;
    for (uint64_t k = 0; k < RING; k++) {
        uint64_t stamp = atomic_load_explicit(&line_of(g, local, k)->stamp,
                                              memory_order_acquire);
        last = stamp > last ? stamp : last;
    }
    if (last > 0)
        *filled = line_of(g, local, last - 1)->signature;
    return last > 0;
}

/* A rank of another node, through its header if this rank is to get one, or
 * through the data that is to come. Calls go one after the other: whoever has
 * not started the one under way has not started a later one. */
static void look_afar(const mpi_group *g, const brg_call *call, int rank,
                      brg_peer *filled)
{
    int n = 0, flag = 0;
    const brg_call *now = g->cursor.call;
    if (is_message(call)) {
        if (rank == call->peer)
            *filled = (brg_peer){.is_visible = true, .owes = not_come};
        return;
    }
    bool is_asked = now && now->seq <= call->seq && g->cursor.sent_headers &&
                    !g->cursor.has_headers;
    for (int node = 0; is_asked && node < g->n_nodes; node++) {
        if (node == g->my_node)
            continue;
        bool is_it = rank_in(g, node, g->local) == rank;
        MPI_Request request = g->lanes[g->lane].requests[n];
        if (is_it &&
            MPI_Request_get_status(request, &flag, MPI_STATUS_IGNORE) ==
                MPI_SUCCESS &&
            (now == call || !flag))
            *filled = (brg_peer){.is_visible = true,
                                 .owes = flag ? NULL : not_started,
                                 .has_come = flag};
        n += 2;
    }
    if (!is_asked && brg__mpi_awaits(g, rank))
        *filled =
            (brg_peer){.is_visible = true, .owes = "has not sent its part"};
}

static void mpi_look(void *group, const brg_call *call, int rank,
                     brg_peer *filled)
{
    const mpi_group *g = group;
    int r = 0;
    while (r < g->n_local && rank_of(g, r) != rank)
        r++;
    if (r == g->n_local) {
        look_afar(g, call, rank, filled);
        return;
    }
    filled->is_visible = true;
    filled->owes = owes(g, call, r);
    filled->has_come = !filled->owes || filled->owes == not_finished;
    filled->has_last = find_last(g, r, &filled->last);
    filled->place = g->shared[r]->place;
}

/* ---- Slots ------------------------------------------------------------------------------- */

/* A group of one computes at once. */
static void run_alone(mpi_group *g, brg_call *call)
{
    if (call->coll == BRG_COLL_SUM_LEAVES)
        brg__mpi_leaves_alone(g, call);
    else if (call->nbytes && call->recv != call->send)
        memmove(call->recv, call->send, call->nbytes);
    call->is_done = true;
}

static brg_status mpi_start(void *group, brg_call *call)
{
    mpi_group *g = group;
    if (is_message(call))
        return brg__mpi_p2p_start(g, call);
    if (g->n_ranks == 1)
        run_alone(g, call);
    else
        brg__mpi_announce(g, call);
    return BRG_OK;
}

static brg_status mpi_progress(void *group)
{
    mpi_group *g = group;
    if (g->p2p)
        BRG_TRY(brg__mpi_p2p_progress(g));
    return brg__mpi_node_progress(g);
}

void brg__mpi_abort(void *group, brg_status why)
{
    mpi_group *g = group;
    if (g->is_dead)
        return;
    if (why == BRG_ERR_TIMEOUT && g->lost == 0)
        brg__mpi_lose(g, LOST);
    g->is_dead = true;
    brg__mpi_say_gone(g, BRG_ERR_COMM);
    brg__mpi_p2p_cancel(g);
}

static void free_group(mpi_group *g)
{
    brg__mpi_world_deinit(g);
    brg__mpi_across_deinit(g);
    brg__mpi_leaves_deinit(g);
    brg__mpi_spread_deinit(g);
    g->host->free(g);
}

static void mpi_destroy(void *group)
{
    mpi_group *g = group;
    int is_over = 0;
    (void)MPI_Finalized(&is_over);
    if (!is_over && !g->is_dead) {
        brg__mpi_say_gone(g, LEFT);
        brg__mpi_p2p_cancel(g);
    }
    free_group(g);
}

static const brg_group_ops mpi_ops = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_group_ops),
    .start = mpi_start,
    .progress = mpi_progress,
    .idle = mpi_idle,
    .look = mpi_look,
    .abort = brg__mpi_abort,
    .shrink = brg__mpi_shrink,
    .alloc = brg__mpi_region_alloc,
    .free = brg__mpi_region_free,
    .destroy = mpi_destroy,
};

brg_status brg__mpi_create(const brg_host *host, const brg_pg_options *options,
                           brg_group *filled)
{
    const brg_mpi_options *mine = options->backend_data;
    mpi_group *g = host->alloc(sizeof *g, "an MPI group");
    if (!g)
        return BRG_ERR_NOMEM;
    g->host = host;
    g->timeout_ns = (uint64_t)(options->timeout_s * 1e9);
    g->queue_end = &g->queue;
    g->finishing_end = &g->finishing;
    g->p2p_end = &g->p2p;
    brg_status status = brg__mpi_world_init(g, mine ? mine->comm : NULL);
    if (status == BRG_OK)
        status = brg__mpi_across_init(g);
    if (status == BRG_OK)
        status = brg__mpi_leaves_init(g);
    if (status == BRG_OK)
        status = brg__mpi_spread_init(g);
    if (status != BRG_OK) {
        free_group(g);
        return status;
    }
    *filled = (brg_group){.ops = &mpi_ops,
                          .group = g,
                          .rank = g->rank,
                          .world_size = g->n_ranks,
                          .wants_polls = true,
                          .sums_leaves = true,
                          .place = g->shared[g->local]->place,
                          .sums_blocks = true,
                          .n_machines = g->is_split ? 0 : g->n_nodes};
    return BRG_OK;
}

static const brg_backend backend_mpi = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_backend),
    .name = "mpi",
    .create = brg__mpi_create,
};

const brg_backend *brg_comm_mpi(void)
{
    return &backend_mpi;
}
