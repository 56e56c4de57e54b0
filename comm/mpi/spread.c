/* SPDX-License-Identifier: Apache-2.0
 * Between nodes of several ranks, what is not flat: each node sends its data,
 * or its sums, once to each rank that needs them, or once to a node.
 *
 * A rank has an agent in each other node, which deals with that node for it,
 * and is the agent of its clients:
 *
 *   reduce_scatter  the sum of this node over a client's part goes to the
 *                   client, which folds those of all nodes in node order
 *   all_gather      a rank's data goes to its agents (phase 0); the ranks of a
 *                   node take from each other what has come (phase 1)
 *   sum_leaves      as reduce_scatter, and the results go back
 *                   (spread_leaves.c)
 *   broadcast       the root's agents fill their bounce buffers, from which
 *                   their nodes read, as the root's does
 *
 * All but the last work on regions, in pieces of which many are on their way; any
 * other memory goes flat. */
#include "comm/mpi/group.h"

#include <string.h>

/* Shorter ones reach each rank sooner than its node could pass them on. */
#define BROADCAST_MIN ((size_t)4096)

/* ---- Who deals with whom ---------------------------------------------------------- */

static int agent_of(const mpi_group *g, int local, int node)
{
    return rank_in(g, node, local % size_of_node(g, node));
}

static int peers_each(const mpi_group *g)
{
    return g->spread.n_agents + g->spread.n_clients;
}

static void find_peers(mpi_group *g)
{
    spread_plan *p = &g->spread;
    for (int node = 0; node < g->n_nodes; node++)
        if (node != g->my_node)
            p->peers[p->n_agents++] = agent_of(g, g->local, node);
    for (int node = 0; node < g->n_nodes; node++)
        for (int i = g->local; i < size_of_node(g, node); i += g->n_local)
            if (node != g->my_node)
                p->peers[p->n_agents + p->n_clients++] = rank_in(g, node, i);
}

bool brg__mpi_is_spread(const mpi_group *g, const brg_call *call, bool direct)
{
    if (g->n_nodes == 1 || g->max_local == 1 || call->nbytes == 0)
        return false;
    if (call->coll == BRG_COLL_BROADCAST)
        return call->nbytes >= BROADCAST_MIN;
    if (call->coll == BRG_COLL_SUM_LEAVES)
        return direct && g->spread.tree.is_there;
    return direct && (call->coll == BRG_COLL_REDUCE_SCATTER ||
                      call->coll == BRG_COLL_ALL_GATHER);
}

/* ---- Pieces on their way ------------------------------------------------------------ */

static size_t element_size(const brg_call *call)
{
    return call->nbytes / call->count;
}

static MPI_Request *requests_of(const mpi_group *g, size_t slot)
{
    return g->spread.requests + slot * (size_t)peers_each(g);
}

/* Of a reduce_scatter: the sums for, or from, the i-th peer. */
unsigned char *brg__mpi_spread_room(const mpi_group *g, size_t slot, int i)
{
    return g->spread.room +
           (slot * (size_t)peers_each(g) + (size_t)i) * X_NBYTES;
}

/* Elements of a piece. */
static size_t limit_of(const mpi_group *g, const brg_call *call)
{
    bool is_sum = call->coll == BRG_COLL_REDUCE_SCATTER;
    return X_NBYTES /
           (is_sum ? g->host->partial_size(call->dtype) : element_size(call));
}

static brg__slice piece_at(const mpi_group *g, const brg_call *call, size_t k)
{
    return brg__piece_of(call->count, limit_of(g, call), k);
}

/* Of this node's ranks, over rank r's part. */
static void sum_node(mpi_group *g, const brg_call *call, int r,
                     brg__slice piece, unsigned char *partial)
{
    size_t skip = (size_t)r * call->nbytes + piece.begin * element_size(call);
    for (int i = 0; i < g->n_local; i++)
        g->src[i] = brg__mpi_data_of(g, call, i) + skip;
    g->dst[0] = partial;
    g->host->reduce(&(brg_reduction){.src = g->src,
                                     .dst = g->dst,
                                     .n_src = (size_t)g->n_local,
                                     .n_dst = 1,
                                     .count = piece.end - piece.begin,
                                     .dtype = call->dtype,
                                     .op = call->op,
                                     .divisor = g->n_ranks,
                                     .dst_partial = true});
}

/* Of all nodes, over this rank's part. */
static void fold_nodes(mpi_group *g, brg_call *call, size_t slot,
                       brg__slice piece)
{
    sum_node(g, call, g->rank, piece, g->spread.own);
    for (int node = 0, i = 0; node < g->n_nodes; node++)
        g->src[node] = node == g->my_node ? g->spread.own
                                          : brg__mpi_spread_room(g, slot, i++);
    g->dst[0] = (char *)call->recv + piece.begin * element_size(call);
    g->host->reduce(&(brg_reduction){.src = g->src,
                                     .dst = g->dst,
                                     .n_src = (size_t)g->n_nodes,
                                     .n_dst = 1,
                                     .count = piece.end - piece.begin,
                                     .dtype = call->dtype,
                                     .op = call->op,
                                     .divisor = g->n_ranks,
                                     .src_partial = true});
}

brg_status brg__mpi_spread_post(mpi_group *g, size_t slot, int i, bool is_in,
                                void *at, size_t n)
{
    int peer = g->spread.peers[i],
        tag = TAG_X + 2 * (int)slot + (g->spread.stage[slot] == X_RESULTS);
    MPI_Request *request = requests_of(g, slot) + i;
    if (is_in)
        MPI_CHECK(
            g, MPI_Irecv(at, (int)n, MPI_BYTE, peer, tag, g->world, request));
    else
        MPI_CHECK(
            g, MPI_Isend(at, (int)n, MPI_BYTE, peer, tag, g->world, request));
    g->spread.n_open[slot]++;
    return BRG_OK;
}

/* Agents' sums come, those for clients go. */
static brg_status post_sums(mpi_group *g, const brg_call *call, size_t slot,
                            brg__slice piece)
{
    spread_plan *p = &g->spread;
    size_t n = (piece.end - piece.begin) * g->host->partial_size(call->dtype);
    for (int i = 0; i < p->n_agents; i++)
        BRG_TRY(brg__mpi_spread_post(g, slot, i, true,
                                     brg__mpi_spread_room(g, slot, i), n));
    for (int i = p->n_agents; i < peers_each(g); i++) {
        sum_node(g, call, p->peers[i], piece, brg__mpi_spread_room(g, slot, i));
        BRG_TRY(brg__mpi_spread_post(g, slot, i, false,
                                     brg__mpi_spread_room(g, slot, i), n));
    }
    return BRG_OK;
}

/* This rank's data goes to its agents, that of its clients comes. */
static brg_status post_data(mpi_group *g, const brg_call *call, size_t slot,
                            brg__slice piece)
{
    spread_plan *p = &g->spread;
    size_t skip = piece.begin * element_size(call);
    size_t n = (piece.end - piece.begin) * element_size(call);
    char *recv = (char *)call->recv + skip;
    for (int i = p->n_agents; i < peers_each(g); i++)
        BRG_TRY(brg__mpi_spread_post(
            g, slot, i, true, recv + (size_t)p->peers[i] * call->nbytes, n));
    for (int i = 0; i < p->n_agents; i++)
        BRG_TRY(brg__mpi_spread_post(g, slot, i, false,
                                     recv + (size_t)g->rank * call->nbytes, n));
    return BRG_OK;
}

brg_status brg__mpi_spread_test(mpi_group *g)
{
    spread_plan *p = &g->spread;
    int each = peers_each(g), n = 0;
    do {
        MPI_CHECK(g, MPI_Testsome(p->n_slots * each, p->requests, &n, p->done,
                                  MPI_STATUSES_IGNORE));
        for (int k = 0; k < n; k++)
            p->n_open[p->done[k] / each]--;
    } while (n > 0); /* MPI_UNDEFINED, which is negative: nothing is open */
    return BRG_OK;
}

/* Piece k goes through slot k % n_slots, in order on both sides. cursor.at and
 * n_folded count pieces begun and over. */
static brg_status move_pieces(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    spread_plan *p = &g->spread;
    size_t n_slots = (size_t)p->n_slots;
    size_t n = brg__n_pieces(call->count, limit_of(g, call));
    bool is_sum = call->coll == BRG_COLL_REDUCE_SCATTER;
    BRG_TRY(brg__mpi_spread_test(g));
    for (; p->n_over < c->at && p->n_open[p->n_over % n_slots] == 0;
         p->n_over++)
        if (is_sum)
            fold_nodes(g, call, p->n_over % n_slots,
                       piece_at(g, call, p->n_over));
    for (; c->at < n && c->at < p->n_over + n_slots; c->at++)
        BRG_TRY((is_sum ? post_sums : post_data)(g, call, c->at % n_slots,
                                                 piece_at(g, call, c->at)));
    *is_over = p->n_over == n;
    return BRG_OK;
}

/* ---- All-gather: what the node has ------------------------------------------------------ */

static unsigned char *result_of(const mpi_group *g, const brg_call *call,
                                int local)
{
    const shared_line *line = line_of(g, local, call->seq);
    return g->regions[line->recv_region - 1].base[local] + line->recv_offset;
}

/* Rank r's data, from the rank of this node that has it. */
static void take_step(mpi_group *g, brg_call *call, int r, int local, size_t n)
{
    size_t at = (size_t)r * call->nbytes + g->cursor.at;
    if (local != g->local)
        memcpy((char *)call->recv + at, result_of(g, call, local) + at, n);
}

static void gather_step(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    size_t n = brg__slice_min(STEP_NBYTES, call->nbytes - c->at);
    for (int node = 0; node < g->n_nodes; node++)
        for (int i = 0; i < size_of_node(g, node); i++)
            take_step(g, call, rank_in(g, node, i), i % g->n_local, n);
    c->at += n;
    *is_over = c->at == call->nbytes;
}

static brg_status run_gather(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    char *own = (char *)call->recv + (size_t)g->rank * call->nbytes;
    if (!c->is_begun && own != call->send)
        memcpy(own, call->send, call->nbytes);
    c->is_begun = true;
    if (c->phase == 0) {
        bool has_all = false;
        BRG_TRY(move_pieces(g, call, &has_all));
        if (!has_all)
            return BRG_OK;
        c->phase = 1;
        c->at = 0;
        atomic_store_explicit(&g->shared[g->local]->done,
                              phase_mark(call->seq, 1), memory_order_release);
    }
    if (brg__mpi_all_reached(g, phase_mark(call->seq, 1)))
        gather_step(g, call, is_over);
    return BRG_OK;
}

brg_status brg__mpi_run_spread(mpi_group *g, brg_call *call, bool *is_over)
{
    if (!g->cursor.is_begun)
        g->spread.n_over = 0;
    if (call->coll == BRG_COLL_ALL_GATHER)
        return run_gather(g, call, is_over);
    g->cursor.is_begun = true;
    if (call->coll == BRG_COLL_SUM_LEAVES)
        return brg__mpi_spread_leaves(g, call, is_over);
    return move_pieces(g, call, is_over);
}

/* ---- Broadcast ---------------------------------------------------------------------------- */

/* Its place in its node. */
static int local_of(const mpi_group *g, int rank)
{
    int node = 0, local = 0;
    while (rank_in(g, node, local) != rank)
        if (++local == size_of_node(g, node)) {
            node++;
            local = 0;
        }
    return local;
}

int brg__mpi_root_here(const mpi_group *g, const brg_call *call)
{
    return local_of(g, call->peer) % g->n_local;
}

brg_status brg__mpi_relay(mpi_group *g, const brg_call *call, void *at,
                          size_t n)
{
    int local = local_of(g, call->peer);
    g->cursor.n_requests = 0;
    if (g->rank == call->peer) {
        for (int node = 0; node < g->n_nodes; node++) {
            int agent = agent_of(g, local, node);
            if (node != g->my_node)
                MPI_CHECK(
                    g,
                    MPI_Isend(at, (int)n, MPI_BYTE, agent, TAG_FLAT, g->world,
                              brg__mpi_next_request(g, g->requests, agent)));
        }
    } else if (g->rank == agent_of(g, local, g->my_node)) {
        MPI_CHECK(
            g, MPI_Irecv(at, (int)n, MPI_BYTE, call->peer, TAG_FLAT, g->world,
                         brg__mpi_next_request(g, g->requests, call->peer)));
    }
    return BRG_OK;
}

/* ---- Lifecycle ------------------------------------------------------------------------------- */

bool brg__mpi_spread_awaits(const mpi_group *g, int rank)
{
    const spread_plan *p = &g->spread;
    bool is_gather = g->cursor.call->coll == BRG_COLL_ALL_GATHER;
    for (size_t slot = 0; slot < (size_t)p->n_slots; slot++)
        for (int i = 0; i < peers_each(g); i++)
            if (p->peers[i] == rank &&
                (i >= p->n_agents) ==
                    (is_gather || p->stage[slot] == X_RESULTS) &&
                !brg__mpi_has_come(requests_of(g, slot)[i]))
                return true;
    return false;
}

void brg__mpi_spread_cancel(mpi_group *g)
{
    brg__mpi_cancel(g->spread.requests,
                    (size_t)(g->spread.n_slots * peers_each(g)));
}

brg_status brg__mpi_spread_init(mpi_group *g)
{
    spread_plan *p = &g->spread;
    if (g->n_nodes == 1 || g->max_local == 1)
        return BRG_OK;
    p->peers = g->host->alloc(2 * (size_t)g->n_ranks * sizeof(int), "peers");
    if (!p->peers)
        return BRG_ERR_NOMEM;
    find_peers(g);
    size_t each = (size_t)peers_each(g), n = X_ROOM / (each * X_NBYTES);
    n = n < X_SLOTS_MIN ? X_SLOTS_MIN : brg__slice_min(n, X_SLOTS_MAX);
    p->n_open = g->host->alloc(n * sizeof(int), "pieces");
    p->done = g->host->alloc(n * each * sizeof(int), "pieces");
    p->own = g->host->alloc(X_NBYTES, "pieces");
    p->room = g->host->alloc(n * each * X_NBYTES, "pieces");
    p->requests = brg__mpi_alloc_requests(g, n * each);
    if (!p->n_open || !p->done || !p->own || !p->room || !p->requests)
        return BRG_ERR_NOMEM;
    p->n_slots = (int)n;
    return brg__mpi_spread_leaves_init(g);
}

void brg__mpi_spread_deinit(mpi_group *g)
{
    g->host->free(g->spread.peers);
    g->host->free(g->spread.n_open);
    g->host->free(g->spread.done);
    g->host->free(g->spread.own);
    g->host->free(g->spread.room);
    g->host->free(g->spread.requests);
    brg__mpi_spread_leaves_deinit(g);
}
