/* SPDX-License-Identifier: Apache-2.0
 * The reproducible sum between nodes of several ranks, in regions. A node whose
 * ranks follow each other has a run of the leaves, and so parts of its own in
 * the same tree: what its ranks' parts add up to inside the run.
 *
 *   parts     the agent in each node sends the node's parts of a piece of this
 *             rank's slice
 *   results   it sums on from these, writes the sum to the buffers of its node
 *             and sends it to its agents, each of which does so in its own
 *
 * No sum is made that the tree has not, so the bits are those of leaves.c. */
#include "comm/mpi/group.h"

#include <string.h>

/* ---- The tree of nodes ------------------------------------------------------------ */

static brg__run run_of_node(const mpi_group *g, uint32_t n_leaves, int node)
{
    int last = rank_in(g, node, size_of_node(g, node) - 1);
    return (brg__run){
        brg__run_of(n_leaves, g->n_ranks, rank_in(g, node, 0)).begin,
        brg__run_of(n_leaves, g->n_ranks, last).end};
}

static bool has_runs(const mpi_group *g)
{
    for (int i = 0; i < g->n_ranks; i++)
        if (g->rank_at[i] != i)
            return false;
    return true;
}

/* What the parts of this node's ranks add up to. */
static void plan_own(mpi_group *g, spread_tree *t)
{
    brg__tree_stack all = {.n_leaves = t->n_leaves};
    size_t k = 0;
    t->n_own = 0;
    brg__tree_stack nodes =
        brg__tree_parts(t->n_leaves, run_of_node(g, t->n_leaves, g->my_node));
    for (int r = 0; r < g->n_local; r++) {
        brg__run run =
            brg__run_of(t->n_leaves, g->n_ranks, rank_in(g, g->my_node, r));
        brg__tree_stack own = brg__tree_parts(t->n_leaves, run);
        t->n_rank_parts[r] = (uint8_t)own.n;
        for (uint32_t j = 0; j < own.n; j++, k++) {
            if (t->n_own < nodes.n &&
                own.at[j].begin == nodes.at[t->n_own].begin)
                t->first[t->n_own++] = k;
            t->own_merges[k] = (uint8_t)brg__tree_push(&all, own.at[j]);
        }
    }
    t->first[t->n_own] = k;
}

static spread_tree *tree_for(mpi_group *g, uint32_t n_leaves)
{
    spread_tree *t = &g->spread.tree;
    if (t->n_leaves == n_leaves)
        return t;
    brg__tree_stack all = {.n_leaves = n_leaves};
    t->n_leaves = n_leaves;
    t->n_src = t->max_parts = 0;
    for (int node = 0; node < g->n_nodes; node++) {
        brg__tree_stack own =
            brg__tree_parts(n_leaves, run_of_node(g, n_leaves, node));
        t->n_parts[node] = (uint8_t)own.n;
        t->max_parts = own.n > t->max_parts ? own.n : t->max_parts;
        for (uint32_t j = 0; j < own.n; j++)
            t->merges[t->n_src++] = (uint8_t)brg__tree_push(&all, own.at[j]);
    }
    plan_own(g, t);
    return t;
}

/* ---- Pieces ------------------------------------------------------------------------- */

static size_t partial_size(const mpi_group *g, const brg_call *call)
{
    return g->host->partial_size(call->dtype);
}

static size_t limit_of(const mpi_group *g, const brg_call *call)
{
    size_t room = X_NBYTES / g->spread.tree.max_parts;
    return (room & ~(BRG__SLICE_LINE - 1)) / partial_size(g, call);
}

static brg__slice slice_of(const mpi_group *g, const brg_call *call, int r)
{
    return brg__slice_of(call->count, partial_size(g, call), (size_t)g->n_ranks,
                         (size_t)r);
}

/* Piece k of rank r's slice: elements of the whole. */
static brg__slice piece_of(const mpi_group *g, const brg_call *call, int r,
                           size_t k)
{
    brg__slice whole = slice_of(g, call, r);
    brg__slice piece =
        brg__piece_of(whole.end - whole.begin, limit_of(g, call), k);
    return (brg__slice){whole.begin + piece.begin, whole.begin + piece.end};
}

static unsigned char *result_at(const mpi_group *g, const brg_call *call,
                                int local, size_t element)
{
    const shared_line *line = line_of(g, local, call->seq);
    return g->regions[line->recv_region - 1].base[local] + line->recv_offset +
           element * (call->nbytes / call->count);
}

static brg_reduction reduction_of(const brg_call *call, size_t n)
{
    return (brg_reduction){.count = n,
                           .dtype = call->dtype,
                           .op = call->op,
                           .divisor = (int)call->n_leaves,
                           .src_partial = true};
}

/* The node's parts of a piece, one after the other. */
static void sum_node(mpi_group *g, const brg_call *call, brg__slice piece,
                     unsigned char *out)
{
    spread_tree *t = &g->spread.tree;
    size_t each = partial_size(g, call), n = piece.end - piece.begin, k = 0;
    for (int r = 0; r < g->n_local; r++)
        for (size_t j = 0; j < t->n_rank_parts[r]; j++)
            t->src[k++] = brg__mpi_data_of(g, call, r) + j * call->part_stride +
                          piece.begin * each;
    brg_reduction r = reduction_of(call, n);
    r.dst = g->dst;
    r.n_dst = 1;
    r.dst_partial = true;
    for (size_t j = 0; j < t->n_own; j++) {
        r.src = t->src + t->first[j];
        r.n_src = t->first[j + 1] - t->first[j];
        r.merges = t->own_merges + t->first[j];
        g->dst[0] = out + j * n * each;
        g->host->reduce(&r);
    }
}

/* The sum of all, to every buffer of the node. */
static void sum_all(mpi_group *g, const brg_call *call, size_t slot,
                    brg__slice piece)
{
    spread_tree *t = &g->spread.tree;
    size_t n = piece.end - piece.begin, nbytes = n * partial_size(g, call);
    sum_node(g, call, piece, g->spread.own);
    size_t k = 0;
    for (int node = 0, i = 0; node < g->n_nodes; node++) {
        const unsigned char *from = node == g->my_node
                                        ? g->spread.own
                                        : brg__mpi_spread_room(g, slot, i++);
        for (size_t j = 0; j < t->n_parts[node]; j++)
            t->src[k++] = from + j * nbytes;
    }
    for (int r = 0; r < g->n_local; r++)
        g->dst[r] = result_at(g, call, r, piece.begin);
    brg_reduction r = reduction_of(call, n);
    r.src = t->src;
    r.n_src = t->n_src;
    r.merges = t->merges;
    r.dst = g->dst;
    r.n_dst = (size_t)g->n_local;
    g->host->reduce(&r);
}

/* ---- On their way --------------------------------------------------------------------- */

static brg_status send_parts(mpi_group *g, const brg_call *call, size_t k)
{
    spread_plan *p = &g->spread;
    size_t slot = k % (size_t)p->n_slots, each = partial_size(g, call);
    brg__slice mine = piece_of(g, call, g->rank, k);
    size_t n = mine.end - mine.begin;
    p->stage[slot] = X_PARTIALS;
    for (int node = 0, i = 0; node < g->n_nodes; node++) {
        if (node == g->my_node)
            continue;
        if (n > 0)
            BRG_TRY(brg__mpi_spread_post(g, slot, i, true,
                                         brg__mpi_spread_room(g, slot, i),
                                         p->tree.n_parts[node] * n * each));
        i++;
    }
    for (int i = p->n_agents; i < p->n_agents + p->n_clients; i++) {
        brg__slice theirs = piece_of(g, call, p->peers[i], k);
        size_t m = theirs.end - theirs.begin;
        unsigned char *room = brg__mpi_spread_room(g, slot, i);
        if (m == 0)
            continue;
        sum_node(g, call, theirs, room);
        BRG_TRY(brg__mpi_spread_post(g, slot, i, false, room,
                                     p->tree.n_own * m * each));
    }
    return BRG_OK;
}

static brg_status send_results(mpi_group *g, const brg_call *call, size_t k)
{
    spread_plan *p = &g->spread;
    size_t slot = k % (size_t)p->n_slots, nbytes = call->nbytes / call->count;
    brg__slice mine = piece_of(g, call, g->rank, k);
    size_t n = (mine.end - mine.begin) * nbytes;
    char *recv = call->recv;
    p->stage[slot] = X_RESULTS;
    if (n > 0)
        sum_all(g, call, slot, mine);
    for (int i = 0; n > 0 && i < p->n_agents; i++)
        BRG_TRY(brg__mpi_spread_post(g, slot, i, false,
                                     recv + mine.begin * nbytes, n));
    for (int i = p->n_agents; i < p->n_agents + p->n_clients; i++) {
        brg__slice theirs = piece_of(g, call, p->peers[i], k);
        if (theirs.end > theirs.begin)
            BRG_TRY(brg__mpi_spread_post(g, slot, i, true,
                                         recv + theirs.begin * nbytes,
                                         (theirs.end - theirs.begin) * nbytes));
    }
    return BRG_OK;
}

/* What clients have sent, to the other buffers of the node. */
static void pass_on(mpi_group *g, const brg_call *call, size_t k)
{
    spread_plan *p = &g->spread;
    size_t nbytes = call->nbytes / call->count;
    for (int i = p->n_agents; i < p->n_agents + p->n_clients; i++) {
        brg__slice theirs = piece_of(g, call, p->peers[i], k);
        const char *from = (const char *)call->recv + theirs.begin * nbytes;
        for (int r = 0; r < g->n_local; r++)
            if (r != g->local && theirs.end > theirs.begin)
                memcpy(result_at(g, call, r, theirs.begin), from,
                       (theirs.end - theirs.begin) * nbytes);
    }
}

/* Of the piece in this slot, the next stage if the one under way is over. */
static brg_status move_on(mpi_group *g, const brg_call *call, size_t k)
{
    spread_plan *p = &g->spread;
    size_t slot = k % (size_t)p->n_slots;
    if (p->n_open[slot] > 0)
        return BRG_OK;
    if (p->stage[slot] == X_PARTIALS)
        BRG_TRY(send_results(g, call, k));
    if (p->stage[slot] != X_RESULTS || p->n_open[slot] > 0)
        return BRG_OK;
    pass_on(g, call, k);
    p->stage[slot] = X_FREE;
    return BRG_OK;
}

brg_status brg__mpi_spread_leaves(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    spread_plan *p = &g->spread;
    size_t n_slots = (size_t)p->n_slots;
    (void)tree_for(g, call->n_leaves);
    brg__slice longest = slice_of(g, call, 0);
    size_t n = brg__n_pieces(longest.end - longest.begin, limit_of(g, call));
    BRG_TRY(brg__mpi_spread_test(g));
    for (size_t k = p->n_over; k < c->at; k++)
        if (p->stage[k % n_slots] != X_FREE)
            BRG_TRY(move_on(g, call, k));
    while (p->n_over < c->at && p->stage[p->n_over % n_slots] == X_FREE)
        p->n_over++;
    for (; c->at < n && c->at < p->n_over + n_slots; c->at++)
        BRG_TRY(send_parts(g, call, c->at));
    *is_over = p->n_over == n;
    return BRG_OK;
}

/* ---- Lifecycle -------------------------------------------------------------------------- */

brg_status brg__mpi_spread_leaves_init(mpi_group *g)
{
    spread_tree *t = &g->spread.tree;
    size_t most =
        (size_t)(g->n_nodes > g->max_local ? g->n_nodes : g->max_local) *
        BRG__TREE_MAX_PARTS;
    t->is_there = has_runs(g);
    t->n_parts = g->host->alloc((size_t)g->n_nodes, "a tree");
    t->n_rank_parts = g->host->alloc((size_t)g->n_local, "a tree");
    t->merges = g->host->alloc(most, "a tree");
    t->own_merges = g->host->alloc(most, "a tree");
    t->src = g->host->alloc(most * sizeof(void *), "a tree");
    bool has_all =
        t->n_parts && t->n_rank_parts && t->merges && t->own_merges && t->src;
    return has_all ? BRG_OK : BRG_ERR_NOMEM;
}

void brg__mpi_spread_leaves_deinit(mpi_group *g)
{
    g->host->free(g->spread.tree.n_parts);
    g->host->free(g->spread.tree.n_rank_parts);
    g->host->free(g->spread.tree.merges);
    g->host->free(g->spread.tree.own_merges);
    g->host->free(g->spread.tree.src);
}
