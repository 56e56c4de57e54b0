/* SPDX-License-Identifier: Apache-2.0
 * Between nodes. Each rank speaks with the ranks at its own place of the other
 * nodes (its peers): headers before a collective, and its slice of an
 * all_reduce. Where nodes differ in size, ranks whose place is not in every
 * node have no peers and no slice, and hear from their node what has come. Other
 * collectives: spread.c, or flat, from rank to rank.
 *
 * A piece of a slice: this node's partial sums go out, each peer folding its
 * share of the piece in node order and sending the result back; between two
 * nodes, or for a few bytes, each folds all of it instead, which takes one
 * trip. */
#include "comm/mpi/group.h"

#include <string.h>

#define WHOLE_MAX 4096 /* bytes of a piece that every node folds alone */
#define FLAT_STEP ((size_t)16 << 20)

static int peer_at(const mpi_group *g, int node)
{
    return rank_in(g, node, g->local);
}

/* A send and a receive for each other node. */
static int requests_each(const mpi_group *g)
{
    return 2 * (g->n_nodes - 1);
}

/* ---- Headers ----------------------------------------------------------------------- */

brg_status brg__mpi_send_headers(mpi_group *g, const brg_call *call,
                                 bool is_direct)
{
    int n = 0;
    header_lane *lane = &g->lanes[g->lane];
    if (lane->is_posted || !has_place(g))
        return BRG_OK;
    lane->is_posted = true;
    lane->out = (header){.is_direct = is_direct};
    g->host->sign(call, g->rank, &lane->out.signature);
    for (int node = 0; node < g->n_nodes; node++) {
        if (node == g->my_node)
            continue;
        int peer = peer_at(g, node);
        MPI_CHECK(g, MPI_Irecv(&lane->in[node], sizeof(header), MPI_BYTE, peer,
                               TAG_HEADER, g->world, &lane->requests[n++]));
        MPI_CHECK(g, MPI_Isend(&lane->out, sizeof(header), MPI_BYTE, peer,
                               TAG_HEADER, g->world, &lane->requests[n++]));
    }
    return BRG_OK;
}

brg_status brg__mpi_heed(mpi_group *g, const header *h)
{
    if (h->verdict == BRG_ERR_MISMATCH)
        return g->host->fail_mismatch(&h->signature, &h->other);
    brg__mpi_lose(g, h->verdict == DIED ? h->culprit + 1 : h->lost);
    return MPI_FAIL(g, BRG_ERR_PEER, "rank %d: rank %d %s", g->rank,
                    (int)h->culprit, brg__mpi_gone_words(h->verdict));
}

/* The call has failed for what another node says: so do the ranks here. */
static brg_status pass_verdict(mpi_group *g, const brg_call *call,
                               const header *h)
{
    shared_rank *mine = g->shared[g->local];
    mine->verdict = *h;
    atomic_store_explicit(&mine->lines[call->seq % RING].heard, HAS_VERDICT,
                          memory_order_release);
    return brg__mpi_heed(g, h);
}

/* Of a rank without peers: what one with peers has heard. */
static brg_status hear(mpi_group *g, const brg_call *call, bool *is_direct,
                       bool *is_over)
{
    int speaker = g->local % g->n_places;
    uint64_t heard = atomic_load_explicit(
        &line_of(g, speaker, call->seq)->heard, memory_order_acquire);
    if (heard == HAS_VERDICT)
        return brg__mpi_heed(g, &g->shared[speaker]->verdict);
    *is_over = heard / 2 == call->seq + 1;
    *is_direct = heard % 2;
    return BRG_OK;
}

static brg_status compare_headers(mpi_group *g, header_lane *lane,
                                  const brg_call *call, bool *is_direct)
{
    const brg_signature *mine = &lane->out.signature;
    for (int node = 0; node < g->n_nodes; node++) {
        header *h = &lane->in[node];
        if (node == g->my_node)
            continue;
        if (!h->verdict && !g->host->signatures_match(mine, &h->signature)) {
            h->other = h->signature;
            h->signature = *mine;
            h->verdict = BRG_ERR_MISMATCH;
        }
        if (h->verdict)
            return pass_verdict(g, call, h);
        if (is_open(mine)) /* matches any: those have to match, too */
            mine = &h->signature;
        *is_direct &= h->is_direct != 0;
    }
    atomic_store_explicit(&line_of(g, g->local, call->seq)->heard,
                          2 * (call->seq + 1) + *is_direct,
                          memory_order_release);
    return BRG_OK;
}

brg_status brg__mpi_exchange_headers(mpi_group *g, const brg_call *call,
                                     bool *is_direct, bool *is_over)
{
    int flag = 0, n = requests_each(g);
    header_lane *lane = &g->lanes[g->lane];
    if (!has_place(g))
        return hear(g, call, is_direct, is_over);
    BRG_TRY(brg__mpi_send_headers(g, call, *is_direct));
    g->cursor.sent_headers = true;
    MPI_CHECK(g, MPI_Testall(n, lane->requests, &flag, MPI_STATUSES_IGNORE));
    *is_over = flag;
    if (!flag)
        return BRG_OK;
    lane->is_posted = false;
    g->lane = !g->lane;
    return compare_headers(g, lane, call, is_direct);
}

/* To be met by the peers' next headers, instead of this rank's. Best effort:
 * the group is over. */
void brg__mpi_send_verdict(mpi_group *g, const header *verdict)
{
    if (g->verdict_out.verdict || !has_place(g))
        return;
    g->verdict_out = *verdict;
    for (int node = 0; node < g->n_nodes; node++) {
        MPI_Request request;
        if (node != g->my_node &&
            MPI_Isend(&g->verdict_out, sizeof(header), MPI_BYTE,
                      peer_at(g, node), TAG_HEADER, g->world,
                      &request) == MPI_SUCCESS)
            (void)MPI_Request_free(&request);
    }
}

bool brg__mpi_has_come(MPI_Request request)
{
    int flag = 0;
    return MPI_Request_get_status(request, &flag, MPI_STATUS_IGNORE) !=
               MPI_SUCCESS ||
           flag;
}

MPI_Request *brg__mpi_next_request(mpi_group *g, MPI_Request *requests,
                                   int rank)
{
    g->request_ranks[g->cursor.n_requests] = rank;
    return &requests[g->cursor.n_requests++];
}

/* Its requests lie in pairs, what comes first, one for each other node. */
static bool slot_awaits(const mpi_group *g, int i, int rank)
{
    const MPI_Request *requests = g->x_requests + i * requests_each(g);
    for (int node = 0, k = 0; node < g->n_nodes; node++) {
        if (node == g->my_node)
            continue;
        if (peer_at(g, node) == rank && !brg__mpi_has_come(requests[2 * k]))
            return true;
        k++;
    }
    return false;
}

bool brg__mpi_awaits(const mpi_group *g, int rank)
{
    const cursor *c = &g->cursor;
    if (!c->call)
        return false;
    if (c->mode == MODE_SPREAD)
        return brg__mpi_spread_awaits(g, rank);
    bool is_flat = c->mode == MODE_FLAT || c->call->coll == BRG_COLL_BROADCAST;
    if (!is_flat && !has_place(g))
        return false;
    for (int i = 0; !is_flat && i < g->n_slots; i++)
        if (g->slots[i].stage != X_FREE && slot_awaits(g, i, rank))
            return true;
    bool is_sum = c->call->coll == BRG_COLL_SUM_LEAVES;
    const MPI_Request *requests = is_sum ? g->leaves.requests : g->requests;
    for (int i = 0; is_flat && i < c->n_requests; i++)
        if (g->request_ranks[i] == rank && !brg__mpi_has_come(requests[i]))
            return true;
    return false;
}

/* ---- One slice ------------------------------------------------------------------------ */

/* Nodes of one rank send what that rank has: no sum, so nothing is wider. */
static bool sends_own(const mpi_group *g)
{
    return g->max_local == 1 && !g->cursor.range.reduction.src_partial;
}

/* Bytes of an element of what goes out. */
static size_t sent_size(const mpi_group *g)
{
    if (sends_own(g))
        return g->queue->nbytes / g->queue->count;
    return g->host->partial_size(g->cursor.range.reduction.dtype);
}

typedef struct x_share {
    size_t begin; /* elements of the piece */
    size_t n;
} x_share;

static bool is_whole(const mpi_group *g, const x_slot *slot)
{
    size_t n = slot->piece.end - slot->piece.begin;
    return g->n_nodes == 2 || n * sent_size(g) <= WHOLE_MAX;
}

/* What node folds of the piece. */
static x_share share_of(const mpi_group *g, const x_slot *slot, int node)
{
    size_t n = slot->piece.end - slot->piece.begin;
    if (is_whole(g, slot))
        return (x_share){0, n};
    brg__slice s =
        brg__slice_of(n, sizeof(float), (size_t)g->n_nodes, (size_t)node);
    return (x_share){s.begin, s.end - s.begin};
}

static int tag_of(const mpi_group *g, const x_slot *slot)
{
    int i = (int)(slot - g->slots);
    return TAG_X + 2 * i + (slot->stage == X_RESULTS);
}

/* The n-th pair of requests: n bytes out to a node, and in from it. */
static brg_status post_pair(mpi_group *g, x_slot *slot, int node, int n,
                            const void *out, size_t n_out, void *in,
                            size_t n_in)
{
    int peer = peer_at(g, node), tag = tag_of(g, slot);
    MPI_Request *pair =
        g->x_requests + (slot - g->slots) * requests_each(g) + 2 * n;
    MPI_CHECK(
        g, MPI_Irecv(in, (int)n_in, MPI_BYTE, peer, tag, g->world, &pair[0]));
    MPI_CHECK(
        g, MPI_Isend(out, (int)n_out, MPI_BYTE, peer, tag, g->world, &pair[1]));
    slot->n_open += 2;
    return BRG_OK;
}

/* The cursor's reduction, `begin` elements on. */
static brg_reduction reduction_at(const mpi_group *g, size_t begin, size_t n)
{
    brg_reduction r = g->cursor.range.reduction;
    size_t skip = begin * (g->queue->nbytes / g->queue->count);
    bool is_sum = g->queue->coll == BRG_COLL_SUM_LEAVES;
    const void **src_at = is_sum ? g->leaves.src_at : g->src_at;
    size_t src_skip = is_sum ? begin * g->host->partial_size(r.dtype) : skip;
    for (size_t i = 0; i < r.n_src; i++)
        src_at[i] = (const char *)r.src[i] + src_skip;
    for (size_t i = 0; i < r.n_dst; i++)
        g->dst_at[i] = (char *)g->dst[i] + skip;
    r.src = src_at;
    r.dst = g->dst_at;
    r.count = n;
    return r;
}

static brg_status send_partials(mpi_group *g, x_slot *slot, brg__slice piece)
{
    slot->piece = piece;
    slot->stage = X_PARTIALS;
    brg_reduction r = reduction_at(g, piece.begin, piece.end - piece.begin);
    size_t each = sent_size(g);
    g->dst_at[0] = slot->partial;
    r.n_dst = 1;
    r.dst_partial = true;
    if (sends_own(g))
        memcpy(slot->partial, r.src[0], r.count * each);
    else
        g->host->reduce(&r);
    size_t n_in = share_of(g, slot, g->my_node).n * each;
    for (int node = 0, n = 0; node < g->n_nodes; node++) {
        x_share theirs = share_of(g, slot, node);
        if (node != g->my_node)
            BRG_TRY(post_pair(g, slot, node, n++,
                              slot->partial + theirs.begin * each,
                              theirs.n * each,
                              slot->received + (size_t)node * X_NBYTES, n_in));
    }
    return BRG_OK;
}

/* Folds this node's share of the piece, in node order, into its place of the
 * reduction's destinations or of `result`. */
static void fold_share(mpi_group *g, x_slot *slot, unsigned char *result)
{
    x_share mine = share_of(g, slot, g->my_node);
    brg_reduction r = reduction_at(g, slot->piece.begin + mine.begin, mine.n);
    size_t each = sent_size(g);
    for (int node = 0; node < g->n_nodes; node++)
        g->src_at[node] = node == g->my_node
                              ? slot->partial + mine.begin * each
                              : slot->received + (size_t)node * X_NBYTES;
    r.n_src = (size_t)g->n_nodes;
    r.src_partial = !sends_own(g);
    if (result) {
        g->dst_at[0] = result;
        r.n_dst = 1;
    }
    g->host->reduce(&r);
}

static brg_status send_results(mpi_group *g, x_slot *slot, size_t nbytes)
{
    x_share mine = share_of(g, slot, g->my_node);
    unsigned char *out = slot->result + mine.begin * nbytes;
    slot->stage = X_RESULTS;
    fold_share(g, slot, out);
    for (int node = 0, n = 0; node < g->n_nodes; node++) {
        x_share theirs = share_of(g, slot, node);
        if (node != g->my_node)
            BRG_TRY(post_pair(g, slot, node, n++, out, mine.n * nbytes,
                              slot->result + theirs.begin * nbytes,
                              theirs.n * nbytes));
    }
    return BRG_OK;
}

static void store_results(mpi_group *g, x_slot *slot, size_t nbytes)
{
    size_t n = slot->piece.end - slot->piece.begin;
    for (size_t d = 0; d < g->cursor.range.reduction.n_dst; d++)
        memcpy((char *)g->dst[d] + slot->piece.begin * nbytes, slot->result,
               n * nbytes);
}

/* Each test lets MPI look at its sockets, which is what polls cost: one for all
 * slots, and more as long as something has come. */
static brg_status test_slots(mpi_group *g)
{
    int each = requests_each(g), n = 0;
    do {
        MPI_CHECK(g, MPI_Testsome(g->n_slots * each, g->x_requests, &n,
                                  g->x_done, MPI_STATUSES_IGNORE));
        for (int k = 0; k < n; k++)
            g->slots[g->x_done[k] / each].n_open--;
    } while (n > 0); /* MPI_UNDEFINED, which is negative: nothing is open */
    return BRG_OK;
}

static brg_status move_slot(mpi_group *g, x_slot *slot)
{
    size_t nbytes = g->queue->nbytes / g->queue->count;
    if (slot->stage == X_PARTIALS && !is_whole(g, slot))
        return send_results(g, slot, nbytes);
    if (slot->stage == X_PARTIALS)
        fold_share(g, slot, NULL);
    else
        store_results(g, slot, nbytes);
    slot->stage = X_FREE;
    return BRG_OK;
}

/* Piece k goes through slot k % n_slots, on all ranks alike: the slot is part
 * of the tag. */
static brg_status step_across(mpi_group *g, bool *is_over)
{
    sum_range *range = &g->cursor.range;
    const brg_reduction *r = &range->reduction;
    size_t limit = X_NBYTES / sent_size(g);
    size_t n_busy = 0;
    BRG_TRY(test_slots(g));
    for (int i = 0; i < g->n_slots; i++)
        if (g->slots[i].stage != X_FREE && g->slots[i].n_open == 0)
            BRG_TRY(move_slot(g, &g->slots[i]));
    while (range->at < r->count) {
        size_t k = range->at / limit;
        x_slot *slot = &g->slots[k % (size_t)g->n_slots];
        if (slot->stage != X_FREE)
            break;
        brg__slice piece = brg__piece_of(r->count, limit, k);
        BRG_TRY(send_partials(g, slot, piece));
        range->at = piece.end;
    }
    for (int i = 0; i < g->n_slots; i++)
        n_busy += g->slots[i].stage != X_FREE;
    *is_over = n_busy == 0 && range->at == r->count;
    return BRG_OK;
}

brg_status brg__mpi_range_step(mpi_group *g, bool *is_over)
{
    sum_range *range = &g->cursor.range;
    if (g->n_nodes > 1)
        return step_across(g, is_over);
    const brg_reduction *whole = &range->reduction;
    size_t limit = STEP_NBYTES / g->host->partial_size(whole->dtype);
    size_t n = brg__slice_min(limit, whole->count - range->at);
    if (n) {
        brg_reduction r = reduction_at(g, range->at, n);
        g->host->reduce(&r);
    }
    range->at += n;
    *is_over = range->at == whole->count;
    return BRG_OK;
}

/* ---- Flat: from every rank to every rank -------------------------------------------- */

static bool flat_sends(const mpi_group *g, const brg_call *call)
{
    return call->coll != BRG_COLL_BROADCAST || call->peer == g->rank;
}

static bool flat_receives(const mpi_group *g, const brg_call *call, int from)
{
    if (call->coll == BRG_COLL_BROADCAST)
        return call->peer == from && from != g->rank;
    return true;
}

/* Where rank r's message of this round goes, and what it gets. */
static void *flat_in(mpi_group *g, brg_call *call, int r, size_t skip)
{
    if (call->coll == BRG_COLL_REDUCE_SCATTER)
        return g->flat + (size_t)r * FLAT_PIECE;
    size_t slot = call->coll == BRG_COLL_ALL_GATHER ? (size_t)r : 0;
    return (char *)call->recv + slot * call->nbytes + skip;
}

static const void *flat_out(const brg_call *call, int r, size_t skip)
{
    bool is_parted = call->coll == BRG_COLL_REDUCE_SCATTER;
    size_t part = is_parted ? (size_t)r * call->nbytes : 0;
    return (const char *)call->send + part + skip;
}

static brg_status post_flat(mpi_group *g, brg_call *call, size_t n)
{
    cursor *c = &g->cursor;
    c->n_requests = 0;
    for (int r = 0; r < g->n_ranks; r++) {
        if (r == g->rank)
            continue;
        if (flat_receives(g, call, r))
            MPI_CHECK(g, MPI_Irecv(flat_in(g, call, r, c->at), (int)n, MPI_BYTE,
                                   r, TAG_FLAT, g->world,
                                   brg__mpi_next_request(g, g->requests, r)));
        if (flat_sends(g, call))
            MPI_CHECK(g, MPI_Isend(flat_out(call, r, c->at), (int)n, MPI_BYTE,
                                   r, TAG_FLAT, g->world,
                                   brg__mpi_next_request(g, g->requests, r)));
    }
    return BRG_OK;
}

/* Sums what came, in each node and then over nodes. */
static void reduce_flat(mpi_group *g, brg_call *call, size_t n)
{
    size_t nbytes = call->nbytes / call->count, at = g->cursor.at;
    unsigned char *partials = g->flat + (size_t)g->n_ranks * FLAT_PIECE;
    brg_reduction r = {.src = g->src,
                       .dst = g->dst,
                       .n_dst = 1,
                       .count = n / nbytes,
                       .dtype = call->dtype,
                       .op = call->op,
                       .divisor = g->n_ranks,
                       .dst_partial = true};
    for (int node = 0; node < g->n_nodes; node++) {
        r.n_src = (size_t)size_of_node(g, node);
        for (int i = 0; i < size_of_node(g, node); i++) {
            int rank = rank_in(g, node, i);
            g->src[i] = rank == g->rank ? flat_out(call, rank, at)
                                        : flat_in(g, call, rank, at);
        }
        g->dst[0] = partials + (size_t)node * 2 * FLAT_PIECE;
        g->host->reduce(&r);
    }
    for (int node = 0; node < g->n_nodes; node++)
        g->src[node] = partials + (size_t)node * 2 * FLAT_PIECE;
    g->dst[0] = (char *)call->recv + at;
    r.n_src = (size_t)g->n_nodes;
    r.src_partial = true;
    r.dst_partial = false;
    g->host->reduce(&r);
}

static void finish_flat(mpi_group *g, brg_call *call, size_t n)
{
    size_t at = g->cursor.at;
    if (call->coll == BRG_COLL_REDUCE_SCATTER)
        reduce_flat(g, call, n);
    if (call->coll == BRG_COLL_ALL_GATHER) {
        char *own = flat_in(g, call, g->rank, at);
        const char *send = flat_out(call, g->rank, at);
        if (own != send)
            memcpy(own, send, n);
    }
}

brg_status brg__mpi_run_flat(mpi_group *g, brg_call *call, bool *is_over)
{
    if (call->coll == BRG_COLL_SUM_LEAVES)
        return brg__mpi_leaves_run_flat(g, call, is_over);
    cursor *c = &g->cursor;
    size_t total = call->coll == BRG_COLL_BARRIER ? 0 : call->nbytes;
    bool is_reduced = call->coll == BRG_COLL_REDUCE_SCATTER;
    size_t n =
        brg__slice_min(is_reduced ? FLAT_PIECE : FLAT_STEP, total - c->at);
    if (n && !c->is_begun)
        BRG_TRY(post_flat(g, call, n));
    c->is_begun = n > 0;
    if (n) {
        int flag = 0;
        MPI_CHECK(g, MPI_Testall(c->n_requests, g->requests, &flag,
                                 MPI_STATUSES_IGNORE));
        if (!flag)
            return BRG_OK;
        finish_flat(g, call, n);
        c->is_begun = false;
        c->at += n;
    }
    *is_over = c->at == total;
    return BRG_OK;
}

/* ---- Lifecycle ------------------------------------------------------------------------ */

static void *alloc_array(const mpi_group *g, size_t n, size_t nbytes)
{
    return g->host->alloc(n * nbytes, "buffers of an MPI group");
}

MPI_Request *brg__mpi_alloc_requests(const mpi_group *g, size_t n)
{
    MPI_Request *requests = alloc_array(g, n, sizeof *requests);
    for (size_t i = 0; requests && i < n; i++)
        requests[i] = MPI_REQUEST_NULL;
    return requests;
}

void brg__mpi_across_cancel(mpi_group *g)
{
    size_t n_ranks = (size_t)g->n_ranks;
    for (int k = 0; k < 2; k++)
        brg__mpi_cancel(g->lanes[k].requests, (size_t)requests_each(g));
    brg__mpi_cancel(g->requests, 2 * n_ranks);
    brg__mpi_cancel(g->leaves.requests, 2 * n_ranks * BRG__TREE_MAX_PARTS);
    brg__mpi_cancel(g->x_requests, (size_t)(g->n_slots * requests_each(g)));
}

static int count_slots(size_t n_nodes)
{
    size_t n = X_ROOM / ((n_nodes + 2) * X_NBYTES);
    return n < X_SLOTS_MIN   ? X_SLOTS_MIN
           : n > X_SLOTS_MAX ? X_SLOTS_MAX
                             : (int)n;
}

static brg_status init_slot(const mpi_group *g, x_slot *slot)
{
    size_t n = (size_t)g->n_nodes;
    slot->partial = alloc_array(g, 1, X_NBYTES);
    slot->result = alloc_array(g, 1, X_NBYTES);
    slot->received = alloc_array(g, n, X_NBYTES);
    if (!slot->partial || !slot->result || !slot->received)
        return BRG_ERR_NOMEM;
    return BRG_OK;
}

brg_status brg__mpi_across_init(mpi_group *g)
{
    size_t n_nodes = (size_t)g->n_nodes, n_ranks = (size_t)g->n_ranks;
    size_t n = (size_t)(g->max_local > g->n_nodes ? g->max_local : g->n_nodes);
    g->src = alloc_array(g, n, sizeof *g->src);
    g->dst = alloc_array(g, n, sizeof *g->dst);
    g->src_at = alloc_array(g, n, sizeof *g->src_at);
    g->dst_at = alloc_array(g, n, sizeof *g->dst_at);
    if (!g->src || !g->dst || !g->src_at || !g->dst_at)
        return BRG_ERR_NOMEM;
    if (g->n_nodes == 1)
        return BRG_OK;
    for (int k = 0; k < 2; k++) {
        g->lanes[k].in = alloc_array(g, n_nodes, sizeof(header));
        g->lanes[k].requests = brg__mpi_alloc_requests(g, 2 * n_nodes);
        if (!g->lanes[k].in || !g->lanes[k].requests)
            return BRG_ERR_NOMEM;
    }
    g->requests = brg__mpi_alloc_requests(g, 2 * n_ranks);
    g->flat = alloc_array(g, n_ranks + 2 * n_nodes, FLAT_PIECE);
    g->request_ranks =
        alloc_array(g, 2 * n_ranks * BRG__TREE_MAX_PARTS, sizeof(int));
    if (!g->requests || !g->flat || !g->request_ranks)
        return BRG_ERR_NOMEM;
    g->n_slots = count_slots(n_nodes);
    int n_x = g->n_slots * requests_each(g);
    g->x_requests = brg__mpi_alloc_requests(g, (size_t)n_x);
    g->x_done = alloc_array(g, (size_t)n_x, sizeof *g->x_done);
    if (!g->x_requests || !g->x_done)
        return BRG_ERR_NOMEM;
    for (int i = 0; i < g->n_slots; i++)
        BRG_TRY(init_slot(g, &g->slots[i]));
    return BRG_OK;
}

void brg__mpi_across_deinit(mpi_group *g)
{
    for (int i = 0; i < g->n_slots; i++) {
        g->host->free(g->slots[i].partial);
        g->host->free(g->slots[i].result);
        g->host->free(g->slots[i].received);
    }
    for (int k = 0; k < 2; k++) {
        g->host->free(g->lanes[k].in);
        g->host->free(g->lanes[k].requests);
    }
    g->host->free(g->requests);
    g->host->free(g->x_requests);
    g->host->free(g->x_done);
    g->host->free(g->request_ranks);
    g->host->free(g->flat);
    g->host->free(g->src);
    g->host->free(g->dst);
    g->host->free(g->src_at);
    g->host->free(g->dst_at);
}
