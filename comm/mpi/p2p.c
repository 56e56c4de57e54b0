/* SPDX-License-Identifier: Apache-2.0
 * Send and recv: a signature, then the data, as MPI messages. All messages of
 * an operation are posted when it starts, so that order between two ranks is
 * the order of starts. */
#include "comm/mpi/group.h"

#define MESSAGE_MAX ((size_t)1 << 30)

static size_t op_size(size_t n_data)
{
    return sizeof(p2p_op) + n_data * sizeof(MPI_Request);
}

static brg_status post_data(mpi_group *g, p2p_op *op, bool is_send)
{
    brg_call *call = op->call;
    for (size_t i = 0; i < op->n_data; i++) {
        brg__slice s = brg__piece_of(call->nbytes, MESSAGE_MAX, i);
        int n = (int)(s.end - s.begin);
        if (is_send)
            MPI_CHECK(g, MPI_Isend((const char *)call->send + s.begin, n,
                                   MPI_BYTE, call->peer, TAG_P2P_DATA, g->world,
                                   &op->data[i]));
        else
            MPI_CHECK(g, MPI_Irecv((char *)call->recv + s.begin, n, MPI_BYTE,
                                   call->peer, TAG_P2P_DATA, g->world,
                                   &op->data[i]));
    }
    return BRG_OK;
}

static brg_status post(mpi_group *g, p2p_op *op)
{
    brg_call *call = op->call;
    bool is_send = call->coll == BRG_COLL_SEND;
    int n = sizeof op->mine;
    if (is_send)
        MPI_CHECK(g, MPI_Isend(&op->mine, n, MPI_BYTE, call->peer,
                               TAG_P2P_HEADER, g->world, &op->announce));
    else
        MPI_CHECK(g, MPI_Irecv(&op->theirs, n, MPI_BYTE, call->peer,
                               TAG_P2P_HEADER, g->world, &op->announce));
    return post_data(g, op, is_send);
}

brg_status brg__mpi_p2p_start(mpi_group *g, brg_call *call)
{
    size_t n_data = brg__n_pieces(call->nbytes, MESSAGE_MAX);
    p2p_op *op = g->host->alloc(op_size(n_data), "a message");
    if (!op)
        return BRG_ERR_NOMEM;
    op->call = call;
    op->data = (MPI_Request *)(op + 1);
    op->n_data = n_data;
    op->announce = MPI_REQUEST_NULL;
    for (size_t i = 0; i < n_data; i++)
        op->data[i] = MPI_REQUEST_NULL;
    g->host->sign(call, g->rank, &op->mine);
    *g->p2p_end = op;
    g->p2p_end = &op->next;
    return post(g, op);
}

static brg_status move_op(mpi_group *g, p2p_op *op)
{
    int flag = 0;
    if (!op->is_announced) {
        MPI_CHECK(g, MPI_Test(&op->announce, &flag, MPI_STATUS_IGNORE));
        if (!flag)
            return BRG_OK;
        op->is_announced = true;
        if (op->call->coll == BRG_COLL_RECV &&
            !g->host->signatures_match(&op->mine, &op->theirs))
            return g->host->fail_mismatch(&op->mine, &op->theirs);
    }
    MPI_CHECK(
        g, MPI_Testall((int)op->n_data, op->data, &flag, MPI_STATUSES_IGNORE));
    op->call->is_done = flag;
    return BRG_OK;
}

brg_status brg__mpi_p2p_progress(mpi_group *g)
{
    for (p2p_op **at = &g->p2p; *at;) {
        p2p_op *op = *at;
        BRG_TRY(move_op(g, op));
        if (!op->call->is_done) {
            at = &op->next;
            continue;
        }
        *at = op->next;
        if (!*at)
            g->p2p_end = at;
        g->host->free(op);
    }
    return BRG_OK;
}

void brg__mpi_cancel(MPI_Request *requests, size_t n)
{
    for (size_t i = 0; requests && i < n; i++) {
        if (requests[i] == MPI_REQUEST_NULL)
            continue;
        (void)MPI_Cancel(&requests[i]);
        (void)MPI_Request_free(&requests[i]);
    }
}

void brg__mpi_p2p_cancel(mpi_group *g)
{
    while (g->p2p) {
        p2p_op *op = g->p2p;
        g->p2p = op->next;
        brg__mpi_cancel(&op->announce, 1);
        brg__mpi_cancel(op->data, op->n_data);
        g->host->free(op);
    }
    g->p2p_end = &g->p2p;
}
