/* SPDX-License-Identifier: Apache-2.0
 * The collectives within a node: beside the lines, in regions, or through the
 * bounce buffers. */
#include "comm/mpi/group.h"

#include <string.h>

static size_t element_size(const brg_call *call)
{
    return call->count ? call->nbytes / call->count : 1;
}

static void copy(void *dst, const void *src, size_t nbytes)
{
    if (nbytes && dst != src)
        memmove(dst, src, nbytes);
}

static brg_reduction reduction_of(const mpi_group *g, const brg_call *call)
{
    return (brg_reduction){
        .src = g->src,
        .dst = g->dst,
        .n_src = (size_t)g->n_local,
        .n_dst = 1,
        .count = call->count,
        .dtype = call->dtype,
        .op = call->op,
        .divisor = g->n_ranks,
    };
}

/* ---- Small: each rank does all of it ------------------------------------------------ */

static void reduce_small(const mpi_group *g, brg_call *call, size_t skip)
{
    brg_reduction reduction = reduction_of(g, call);
    for (int r = 0; r < g->n_local; r++)
        g->src[r] = g->shared[r]->small[call->seq % RING] + skip;
    g->dst[0] = call->recv;
    g->host->reduce(&reduction);
}

brg_status brg__mpi_run_small(mpi_group *g, brg_call *call)
{
    size_t nbytes = call->nbytes, slot = call->seq % RING;
    if (nbytes == 0)
        return BRG_OK;
    switch (call->coll) {
    case BRG_COLL_ALL_REDUCE:
        reduce_small(g, call, 0);
        break;
    case BRG_COLL_REDUCE_SCATTER:
        reduce_small(g, call, (size_t)g->rank * nbytes);
        break;
    case BRG_COLL_ALL_GATHER:
        for (int r = 0; r < g->n_local; r++)
            memcpy((char *)call->recv + (size_t)r * nbytes,
                   g->shared[r]->small[slot], nbytes);
        break;
    case BRG_COLL_BROADCAST:
        if (call->peer != g->rank)
            memcpy(call->recv,
                   g->shared[brg__mpi_root_here(g, call)]->small[slot], nbytes);
        break;
    case BRG_COLL_SUM_LEAVES:
        brg__mpi_leaves_run_small(g, call);
        break;
    default:
        break;
    }
    return BRG_OK;
}

/* ---- Direct: in regions -------------------------------------------------------------- */

unsigned char *brg__mpi_data_of(const mpi_group *g, const brg_call *call,
                                int local)
{
    const shared_line *line = line_of(g, local, call->seq);
    return g->regions[line->region - 1].base[local] + line->offset;
}

/* Sets up the cursor's range: this rank's slice of all buffers. */
static void begin_direct_reduce(mpi_group *g, const brg_call *call)
{
    sum_range *range = &g->cursor.range;
    size_t nbytes = element_size(call);
    brg__slice slice = {0, call->count};
    size_t skip = (size_t)g->rank * call->nbytes;
    bool is_all = call->coll == BRG_COLL_ALL_REDUCE;
    if (is_all) {
        slice = slice_at(g, call->count, nbytes, g->local);
        skip = slice.begin * nbytes;
    }
    range->reduction = reduction_of(g, call);
    range->reduction.count = slice.end - slice.begin;
    range->reduction.n_dst = is_all ? (size_t)g->n_local : 1;
    for (int r = 0; r < g->n_local; r++) {
        g->src[r] = brg__mpi_data_of(g, call, r) + skip;
        g->dst[r] = (void *)g->src[r];
    }
    if (!is_all)
        g->dst[0] = call->recv;
}

/* Copies [at, at + step) of each rank's data to its place. */
static void gather_step(mpi_group *g, brg_call *call, size_t n)
{
    size_t at = g->cursor.at;
    for (int r = 0; r < g->n_local; r++)
        copy((char *)call->recv + (size_t)r * call->nbytes + at,
             brg__mpi_data_of(g, call, r) + at, n);
}

static brg_status copy_step(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    size_t n = brg__slice_min(STEP_NBYTES, call->nbytes - c->at);
    if (call->coll == BRG_COLL_ALL_GATHER)
        gather_step(g, call, n);
    else if (call->peer != g->rank)
        copy((char *)call->recv + c->at,
             brg__mpi_data_of(g, call, brg__mpi_root_here(g, call)) + c->at, n);
    c->at += n;
    *is_over = c->at == call->nbytes;
    return BRG_OK;
}

brg_status brg__mpi_run_direct(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    bool is_sum = call->coll == BRG_COLL_SUM_LEAVES;
    bool reduces = is_sum || call->coll == BRG_COLL_ALL_REDUCE ||
                   call->coll == BRG_COLL_REDUCE_SCATTER;
    if (!reduces)
        return copy_step(g, call, is_over);
    if (!c->is_begun && is_sum)
        brg__mpi_leaves_begin_direct(g, call);
    else if (!c->is_begun)
        begin_direct_reduce(g, call);
    c->is_begun = true;
    return brg__mpi_range_step(g, is_over);
}

/* ---- Staged: through the bounce buffers -----------------------------------------------
 * Piece k lies in slot k % 2 of each rank's bounce buffer.
 *
 *   all_reduce,  phase 2k      take out piece k - 1, put in piece k
 *   sum_leaves   phase 2k + 1  reduce my slice of piece k, in my buffer
 *   others       phase k       use piece k - 1 of the others, put in piece k;
 *                              of a broadcast, have it in every node
 *
 * A slot is filled again two pieces later, when all have passed the phase in
 * which they read it. */

static bool is_two_phased(const brg_call *call)
{
    return call->coll == BRG_COLL_ALL_REDUCE ||
           call->coll == BRG_COLL_SUM_LEAVES;
}

static size_t piece_limit(mpi_group *g, const brg_call *call)
{
    size_t room = BOUNCE;
    if (call->coll == BRG_COLL_SUM_LEAVES)
        return brg__mpi_leaves_piece(g, call);
    if (call->coll == BRG_COLL_REDUCE_SCATTER)
        room = BOUNCE / (size_t)g->n_local & ~(BRG__SLICE_LINE - 1);
    return room / element_size(call);
}

static unsigned char *slot_of(const mpi_group *g, int r, size_t k)
{
    return g->shared[r]->bounce[k % 2];
}

/* Of reduce_scatter: where the part for rank r of a piece lies in a slot. */
static size_t part_offset(mpi_group *g, const brg_call *call, int r)
{
    return (size_t)r * piece_limit(g, call) * element_size(call);
}

static void put_piece(mpi_group *g, const brg_call *call, size_t k)
{
    if (call->coll == BRG_COLL_SUM_LEAVES) {
        brg__mpi_leaves_put_piece(g, call, k);
        return;
    }
    size_t nbytes = element_size(call);
    brg__slice piece = brg__piece_of(call->count, piece_limit(g, call), k);
    size_t n = (piece.end - piece.begin) * nbytes;
    const char *from = (const char *)call->send + piece.begin * nbytes;
    unsigned char *to = slot_of(g, g->local, k);
    if (n == 0 || (call->coll == BRG_COLL_BROADCAST && call->peer != g->rank))
        return;
    if (call->coll != BRG_COLL_REDUCE_SCATTER) {
        memcpy(to, from, n);
        return;
    }
    for (int r = 0; r < g->n_local; r++)
        memcpy(to + part_offset(g, call, r), from + (size_t)r * call->nbytes,
               n);
}

/* The slices of piece k from their owners. */
static void take_reduced(mpi_group *g, brg_call *call, size_t k)
{
    if (call->coll == BRG_COLL_SUM_LEAVES) {
        brg__mpi_leaves_take(g, call, k);
        return;
    }
    size_t nbytes = element_size(call);
    brg__slice piece = brg__piece_of(call->count, piece_limit(g, call), k);
    char *to = (char *)call->recv + piece.begin * nbytes;
    for (int r = 0; r < g->n_places; r++) {
        brg__slice s = slice_at(g, piece.end - piece.begin, nbytes, r);
        if (s.end > s.begin)
            memcpy(to + s.begin * nbytes, slot_of(g, r, k) + s.begin * nbytes,
                   (s.end - s.begin) * nbytes);
    }
}

/* Uses the others' piece k, of all collectives but all_reduce. */
static void take_piece(mpi_group *g, brg_call *call, size_t k)
{
    size_t nbytes = element_size(call);
    brg__slice piece = brg__piece_of(call->count, piece_limit(g, call), k);
    size_t n = piece.end - piece.begin, skip = piece.begin * nbytes;
    char *to = (char *)call->recv + skip;
    if (call->coll == BRG_COLL_REDUCE_SCATTER) {
        brg_reduction reduction = reduction_of(g, call);
        reduction.count = n;
        for (int r = 0; r < g->n_local; r++)
            g->src[r] = slot_of(g, r, k) + part_offset(g, call, g->local);
        g->dst[0] = to;
        g->host->reduce(&reduction);
    } else if (call->coll == BRG_COLL_ALL_GATHER) {
        for (int r = 0; r < g->n_local; r++)
            memcpy(to + (size_t)r * call->nbytes, slot_of(g, r, k), n * nbytes);
    } else if (call->peer != g->rank) {
        memcpy(to, slot_of(g, brg__mpi_root_here(g, call), k), n * nbytes);
    }
}

/* My slice of piece k, of all ranks into my own buffer. */
static void begin_staged_reduce(mpi_group *g, const brg_call *call, size_t k)
{
    if (call->coll == BRG_COLL_SUM_LEAVES) {
        brg__mpi_leaves_begin_staged(g, call, k);
        return;
    }
    sum_range *range = &g->cursor.range;
    size_t nbytes = element_size(call);
    brg__slice piece = brg__piece_of(call->count, piece_limit(g, call), k);
    brg__slice slice = slice_at(g, piece.end - piece.begin, nbytes, g->local);
    range->reduction = reduction_of(g, call);
    range->reduction.count = slice.end - slice.begin;
    range->at = 0;
    for (int r = 0; r < g->n_local; r++)
        g->src[r] = slot_of(g, r, k) + slice.begin * nbytes;
    g->dst[0] = slot_of(g, g->local, k) + slice.begin * nbytes;
}

size_t brg__mpi_staged_phases(mpi_group *g, const brg_call *call)
{
    size_t n = brg__n_pieces(call->count, piece_limit(g, call));
    return is_two_phased(call) ? 2 * n + 1 : n + 1;
}

/* Put in by the root, and in the other nodes by MPI. */
static brg_status relay_piece(mpi_group *g, const brg_call *call, size_t k,
                              bool *is_over)
{
    cursor *c = &g->cursor;
    brg__slice piece = brg__piece_of(call->count, piece_limit(g, call), k);
    size_t n = (piece.end - piece.begin) * element_size(call);
    int flag = 1;
    if (n && !c->is_begun)
        BRG_TRY(brg__mpi_relay(g, call, slot_of(g, g->local, k), n));
    c->is_begun = true;
    if (n)
        MPI_CHECK(g, MPI_Testall(c->n_requests, g->requests, &flag,
                                 MPI_STATUSES_IGNORE));
    *is_over = flag;
    return BRG_OK;
}

static brg_status staged_phase(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    size_t k = is_two_phased(call) ? c->phase / 2 : c->phase;
    *is_over = true;
    if (is_two_phased(call) && c->phase % 2 == 1) {
        if (!c->is_begun)
            begin_staged_reduce(g, call, k);
        c->is_begun = true;
        return brg__mpi_range_step(g, is_over);
    }
    bool is_relayed = g->n_nodes > 1 && call->coll == BRG_COLL_BROADCAST;
    if (is_relayed && c->is_begun)
        return relay_piece(g, call, k, is_over);
    if (k > 0 && is_two_phased(call))
        take_reduced(g, call, k - 1);
    else if (k > 0)
        take_piece(g, call, k - 1);
    put_piece(g, call, k);
    return is_relayed ? relay_piece(g, call, k, is_over) : BRG_OK;
}

brg_status brg__mpi_run_staged(mpi_group *g, brg_call *call, bool *is_over)
{
    cursor *c = &g->cursor;
    if (!brg__mpi_all_reached(g, phase_mark(call->seq, c->phase)))
        return BRG_OK;
    bool has_finished;
    BRG_TRY(staged_phase(g, call, &has_finished));
    if (!has_finished)
        return BRG_OK;
    c->phase++;
    c->is_begun = false;
    *is_over = c->phase == brg__mpi_staged_phases(g, call);
    if (!*is_over)
        atomic_store_explicit(&g->shared[g->local]->done,
                              phase_mark(call->seq, c->phase),
                              memory_order_release);
    return BRG_OK;
}
