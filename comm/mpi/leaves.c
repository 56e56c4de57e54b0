/* SPDX-License-Identifier: Apache-2.0
 * The reproducible sum. Every element is summed by one rank, from the parts of
 * all ranks in the order of the leaves; what differs is how it gets at them:
 *
 *   small    parts lie beside the lines; each rank sums all of it alone
 *   direct   each rank reads its slice of all parts and writes it to all
 *   staged   the same in pieces, through the bounce buffers:
 *            part 0 | part 1 | ... | result
 *   spread   between nodes of several ranks: spread_leaves.c
 *   flat     between other nodes, in rounds: a piece of each slice goes to its
 *            owner (phase 0), its sum comes back (phase 1) */
#include "comm/mpi/group.h"

#include <string.h>

/* ---- The tree ------------------------------------------------------------------ */

brg_status brg__mpi_leaves_init(mpi_group *g)
{
    size_t n = (size_t)g->n_ranks, most = n * BRG__TREE_MAX_PARTS;
    g->leaves.room = brg__slice_min(LEAF_ROOM_ALL / n, LEAF_ROOM_MAX);
    if (g->leaves.room < LEAF_ROOM_MIN)
        g->leaves.room = LEAF_ROOM_MIN;
    g->leaves.n_parts = g->host->alloc(n, "parts of ranks");
    g->leaves.merges = g->host->alloc(most, "a tree");
    g->leaves.src = g->host->alloc(most * sizeof(void *), "parts of ranks");
    g->leaves.src_at = g->host->alloc(most * sizeof(void *), "parts of ranks");
    return g->leaves.n_parts && g->leaves.merges && g->leaves.src &&
                   g->leaves.src_at
               ? BRG_OK
               : BRG_ERR_NOMEM;
}

void brg__mpi_leaves_deinit(mpi_group *g)
{
    g->host->free(g->leaves.n_parts);
    g->host->free(g->leaves.merges);
    g->host->free(g->leaves.src);
    g->host->free(g->leaves.src_at);
    g->host->free(g->leaves.requests);
    g->host->free(g->leaves.in);
}

/* For the call under way: calls that follow may have another. */
static const leaf_plan *plan_for(mpi_group *g, uint32_t n_leaves)
{
    leaf_plan *p = &g->leaves;
    if (p->n_leaves == n_leaves)
        return p;
    p->n_leaves = n_leaves;
    p->n_src = brg__tree_plan(n_leaves, g->n_ranks, p->n_parts, p->merges);
    p->max_parts = brg__tree_max_parts(n_leaves, g->n_ranks);
    return p;
}

static size_t partial_size(const mpi_group *g, const brg_call *call)
{
    return g->host->partial_size(call->dtype);
}

static const char *part_of(const brg_call *call, size_t k)
{
    return (const char *)call->send + k * call->part_stride;
}

/* Announcing a call must not touch the plan of the one under way. */
static size_t my_parts(const mpi_group *g, const brg_call *call)
{
    return brg__tree_n_parts(call->n_leaves, g->n_ranks, g->rank);
}

size_t brg__mpi_leaves_payload(const mpi_group *g, const brg_call *call)
{
    return brg__tree_max_parts(call->n_leaves, g->n_ranks) * call->count *
           partial_size(g, call);
}

size_t brg__mpi_leaves_extent(const mpi_group *g, const brg_call *call)
{
    return (my_parts(g, call) - 1) * call->part_stride +
           call->count * partial_size(g, call);
}

/* Of all parts, whose sources the caller fills in. */
static brg_reduction reduction_of(mpi_group *g, const brg_call *call)
{
    return (brg_reduction){
        .src = g->leaves.src,
        .dst = g->dst,
        .n_src = g->leaves.n_src,
        .n_dst = 1,
        .count = call->count,
        .dtype = call->dtype,
        .op = call->op,
        .divisor = (int)call->n_leaves,
        .src_partial = true,
        .merges = g->leaves.merges,
    };
}

/* ---- Alone, and small ------------------------------------------------------------ */

void brg__mpi_leaves_alone(mpi_group *g, brg_call *call)
{
    (void)plan_for(g, call->n_leaves);
    brg_reduction r = reduction_of(g, call);
    g->leaves.src[0] = call->send;
    g->dst[0] = call->recv;
    g->host->reduce(&r);
}

void brg__mpi_leaves_put_small(mpi_group *g, const brg_call *call)
{
    size_t n = call->count * partial_size(g, call);
    unsigned char *to = g->shared[g->local]->small[call->seq % RING];
    for (size_t k = 0; k < my_parts(g, call); k++)
        memcpy(to + k * n, part_of(call, k), n);
}

void brg__mpi_leaves_run_small(mpi_group *g, brg_call *call)
{
    const leaf_plan *plan = plan_for(g, call->n_leaves);
    brg_reduction reduction = reduction_of(g, call);
    size_t n = call->count * partial_size(g, call), n_src = 0;
    for (int r = 0; r < g->n_ranks; r++)
        for (size_t k = 0; k < plan->n_parts[r]; k++)
            g->leaves.src[n_src++] =
                g->shared[r]->small[call->seq % RING] + k * n;
    g->dst[0] = call->recv;
    g->host->reduce(&reduction);
}

/* ---- Direct ------------------------------------------------------------------------ */

void brg__mpi_leaves_begin_direct(mpi_group *g, const brg_call *call)
{
    const leaf_plan *plan = plan_for(g, call->n_leaves);
    size_t each = partial_size(g, call), nbytes = call->nbytes / call->count;
    brg__slice slice =
        brg__slice_of(call->count, each, (size_t)g->n_local, (size_t)g->local);
    size_t n_src = 0;
    for (int r = 0; r < g->n_local; r++) {
        const shared_line *line = line_of(g, r, call->seq);
        const unsigned char *parts =
            g->regions[line->region - 1].base[r] + line->offset;
        for (size_t k = 0; k < plan->n_parts[r]; k++)
            g->leaves.src[n_src++] =
                parts + k * call->part_stride + slice.begin * each;
        g->dst[r] = g->regions[line->recv_region - 1].base[r] +
                    line->recv_offset + slice.begin * nbytes;
    }
    g->cursor.range.reduction = reduction_of(g, call);
    g->cursor.range.reduction.count = slice.end - slice.begin;
    g->cursor.range.reduction.n_dst = (size_t)g->n_local;
}

/* ---- Staged -------------------------------------------------------------------------- */

/* Bytes of one part in a slot. */
static size_t staged_room(const mpi_group *g)
{
    return BOUNCE / (g->leaves.max_parts + 1) & ~(BRG__SLICE_LINE - 1);
}

size_t brg__mpi_leaves_piece(mpi_group *g, const brg_call *call)
{
    (void)plan_for(g, call->n_leaves);
    return staged_room(g) / partial_size(g, call);
}

static unsigned char *staged_at(const mpi_group *g, int r, size_t k,
                                size_t part)
{
    return g->shared[r]->bounce[k % 2] + part * staged_room(g);
}

void brg__mpi_leaves_put_piece(mpi_group *g, const brg_call *call, size_t k)
{
    size_t each = partial_size(g, call);
    brg__slice piece =
        brg__piece_of(call->count, brg__mpi_leaves_piece(g, call), k);
    for (size_t part = 0; part < g->leaves.n_parts[g->rank]; part++)
        memcpy(staged_at(g, g->local, k, part),
               part_of(call, part) + piece.begin * each,
               (piece.end - piece.begin) * each);
}

/* My slice of piece k into the place for results of my own slot. */
void brg__mpi_leaves_begin_staged(mpi_group *g, const brg_call *call, size_t k)
{
    size_t each = partial_size(g, call), n_src = 0;
    brg__slice piece =
        brg__piece_of(call->count, brg__mpi_leaves_piece(g, call), k);
    brg__slice slice = brg__slice_of(piece.end - piece.begin, each,
                                     (size_t)g->n_local, (size_t)g->local);
    for (int r = 0; r < g->n_local; r++)
        for (size_t part = 0; part < g->leaves.n_parts[r]; part++)
            g->leaves.src[n_src++] =
                staged_at(g, r, k, part) + slice.begin * each;
    g->dst[0] = staged_at(g, g->local, k, g->leaves.max_parts) +
                slice.begin * (call->nbytes / call->count);
    g->cursor.range.reduction = reduction_of(g, call);
    g->cursor.range.reduction.count = slice.end - slice.begin;
    g->cursor.range.at = 0;
}

void brg__mpi_leaves_take(mpi_group *g, brg_call *call, size_t k)
{
    size_t each = partial_size(g, call), nbytes = call->nbytes / call->count;
    brg__slice piece =
        brg__piece_of(call->count, brg__mpi_leaves_piece(g, call), k);
    char *to = (char *)call->recv + piece.begin * nbytes;
    for (int r = 0; r < g->n_local; r++) {
        brg__slice s = brg__slice_of(piece.end - piece.begin, each,
                                     (size_t)g->n_local, (size_t)r);
        if (s.end > s.begin)
            memcpy(to + s.begin * nbytes,
                   staged_at(g, r, k, g->leaves.max_parts) + s.begin * nbytes,
                   (s.end - s.begin) * nbytes);
    }
}

/* ---- Flat ------------------------------------------------------------------------------ */

/* Elements of one round per slice. */
static size_t flat_limit(const mpi_group *g, const brg_call *call)
{
    size_t room = g->leaves.room / g->leaves.max_parts;
    return (room & ~(BRG__SLICE_LINE - 1)) / partial_size(g, call);
}

/* What goes to rank r in this round: elements of the whole. */
static brg__slice flat_piece(const mpi_group *g, const brg_call *call, int r)
{
    brg__slice whole = brg__slice_of(call->count, partial_size(g, call),
                                     (size_t)g->n_ranks, (size_t)r);
    brg__slice piece = brg__piece_of(whole.end - whole.begin,
                                     flat_limit(g, call), g->cursor.at);
    return (brg__slice){whole.begin + piece.begin, whole.begin + piece.end};
}

static unsigned char *flat_in(const mpi_group *g, int r, size_t part, size_t n)
{
    return g->leaves.in + (size_t)r * g->leaves.room + part * n;
}

static brg_status alloc_flat(mpi_group *g)
{
    size_t n = (size_t)g->n_ranks;
    if (g->leaves.in)
        return BRG_OK;
    if (!g->leaves.requests)
        g->leaves.requests =
            brg__mpi_alloc_requests(g, 2 * n * BRG__TREE_MAX_PARTS);
    g->leaves.in = g->host->alloc(n * g->leaves.room, "parts of other ranks");
    return g->leaves.requests && g->leaves.in ? BRG_OK : BRG_ERR_NOMEM;
}

static brg_status post_parts(mpi_group *g, const brg_call *call, int r)
{
    size_t each = partial_size(g, call);
    brg__slice mine = flat_piece(g, call, g->rank);
    brg__slice theirs = flat_piece(g, call, r);
    size_t n_in = (mine.end - mine.begin) * each;
    size_t n_out = (theirs.end - theirs.begin) * each;
    for (size_t k = 0; n_in && k < g->leaves.n_parts[r]; k++)
        MPI_CHECK(g,
                  MPI_Irecv(flat_in(g, r, k, n_in), (int)n_in, MPI_BYTE, r,
                            TAG_FLAT, g->world,
                            brg__mpi_next_request(g, g->leaves.requests, r)));
    for (size_t k = 0; n_out && k < g->leaves.n_parts[g->rank]; k++)
        MPI_CHECK(g,
                  MPI_Isend(part_of(call, k) + theirs.begin * each, (int)n_out,
                            MPI_BYTE, r, TAG_FLAT, g->world,
                            brg__mpi_next_request(g, g->leaves.requests, r)));
    return BRG_OK;
}

static brg_status post_results(mpi_group *g, const brg_call *call, int r)
{
    size_t nbytes = call->nbytes / call->count;
    brg__slice mine = flat_piece(g, call, g->rank);
    brg__slice theirs = flat_piece(g, call, r);
    char *recv = call->recv;
    if (theirs.end > theirs.begin)
        MPI_CHECK(g,
                  MPI_Irecv(recv + theirs.begin * nbytes,
                            (int)((theirs.end - theirs.begin) * nbytes),
                            MPI_BYTE, r, TAG_FLAT, g->world,
                            brg__mpi_next_request(g, g->leaves.requests, r)));
    if (mine.end > mine.begin)
        MPI_CHECK(g,
                  MPI_Isend(recv + mine.begin * nbytes,
                            (int)((mine.end - mine.begin) * nbytes), MPI_BYTE,
                            r, TAG_FLAT, g->world,
                            brg__mpi_next_request(g, g->leaves.requests, r)));
    return BRG_OK;
}

static brg_status begin_flat(mpi_group *g, const brg_call *call)
{
    cursor *c = &g->cursor;
    BRG_TRY(alloc_flat(g));
    (void)plan_for(g, call->n_leaves);
    c->n_requests = 0;
    c->is_begun = true;
    for (int r = 0; r < g->n_ranks; r++)
        if (r != g->rank)
            BRG_TRY(c->phase == 0 ? post_parts(g, call, r)
                                  : post_results(g, call, r));
    return BRG_OK;
}

static void sum_flat(mpi_group *g, brg_call *call)
{
    size_t each = partial_size(g, call), n_src = 0;
    brg__slice mine = flat_piece(g, call, g->rank);
    size_t n = mine.end - mine.begin;
    brg_reduction reduction = reduction_of(g, call);
    for (int r = 0; r < g->n_ranks; r++)
        for (size_t k = 0; k < g->leaves.n_parts[r]; k++)
            g->leaves.src[n_src++] =
                r == g->rank
                    ? (const void *)(part_of(call, k) + mine.begin * each)
                    : flat_in(g, r, k, n * each);
    g->dst[0] = (char *)call->recv + mine.begin * (call->nbytes / call->count);
    reduction.count = n;
    g->host->reduce(&reduction);
}

brg_status brg__mpi_leaves_run_flat(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    int flag = 0;
    *is_over = call->count == 0;
    if (*is_over)
        return BRG_OK;
    if (!c->is_begun)
        BRG_TRY(begin_flat(g, call));
    MPI_CHECK(g, MPI_Testall(c->n_requests, g->leaves.requests, &flag,
                             MPI_STATUSES_IGNORE));
    if (!flag)
        return BRG_OK;
    if (c->phase == 0)
        sum_flat(g, call);
    c->at += c->phase;
    c->phase = 1 - c->phase;
    c->is_begun = false;
    /* The first slice is the longest. */
    brg__slice first = flat_piece(g, call, 0);
    *is_over = first.begin == first.end;
    return BRG_OK;
}
