/* SPDX-License-Identifier: Apache-2.0
 * One backward under a ddp: hooks, the end, and failure. See ddp.h. */
#include <string.h>

#include "core/autograd/engine.h"
#include "reducer/ddp.h"

/* ---- The end of a backward ------------------------------------------------------ */

static void drop_kept(brg_ddp *ddp)
{
    for (size_t k = 0; k < ddp->n_late; k++) {
        brg__ddp_param *p = &ddp->params[ddp->late[k]];
        brg_release(p->kept);
        p->kept = NULL;
    }
    ddp->n_late = 0;
}

/* What the slot holds is the gradient of earlier backwards. It counts in the
 * sum; should no rank turn out to have used the parameter, it has to come
 * back as it was, and an average of equal numbers need not. */
static brg_status keep_slot(brg__ddp_param *p)
{
    if (!p->ddp->reducer->options.allow_unused)
        return BRG_OK;
    brg__layout layout = brg__layout_of(p->view);
    BRG_TRY(brg__tensor_new(&p->kept, &layout));
    return brg__ddp_copy(p->kept, p->view);
}

/* The leaf's gradient into the slot. */
static brg_status pack(brg__ddp_param *p, brg_tensor *grad)
{
    brg_reducer *r = p->ddp->reducer;
    if (!grad)
        memset(r->members[p->index].slot, 0, r->members[p->index].nbytes);
    if (!grad || grad == p->view)
        return BRG_OK;
    r->stats.n_packed_bytes += r->members[p->index].nbytes;
    return brg__ddp_copy(p->view, grad);
}

static void remember_late(brg__ddp_param *p)
{
    p->ddp->late[p->ddp->n_late++] = (uint32_t)p->index;
}

/* A parameter whose hook did not run in this backward. It may have been used
 * in one that only accumulated. */
static brg_status settle_param(brg__ddp_param *p)
{
    brg_tensor *grad = brg_tensor_grad(p->leaf);
    remember_late(p);
    if (grad == p->view && !p->is_used)
        BRG_TRY(keep_slot(p));
    BRG_TRY(pack(p, grad));
    return brg__reducer_arrive(p->ddp->reducer, p->index,
                               p->is_used && grad != NULL);
}

/* Some rank used it: .grad becomes the average. None did: .grad stays. */
static brg_status hand_over(brg__ddp_param *p)
{
    if (p->ddp->reducer->members[p->index].n_used == 0)
        return p->kept ? brg__ddp_copy(p->view, p->kept) : BRG_OK;
    return brg_tensor_grad(p->leaf) == p->view
               ? BRG_OK
               : brg_tensor_set_grad(p->leaf, p->view);
}

/* All slots have new contents, perhaps new places. */
static brg_status hand_over_all(brg_ddp *ddp)
{
    for (size_t k = 0; k < ddp->n_late; k++)
        BRG_TRY(hand_over(&ddp->params[ddp->late[k]]));
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg_tensor_touch(ddp->params[i].view);
        ddp->params[i].is_used = false;
    }
    if (ddp->reducer->is_rebuilt)
        return BRG_OK;
    brg_status status = brg__reducer_rebuild(ddp->reducer);
    for (size_t i = 0; i < ddp->n_params; i++)
        brg__ddp_view_place(&ddp->params[i]);
    return status;
}

static brg_status finish(void *user)
{
    brg_ddp *ddp = user;
    brg_reducer *r = ddp->reducer;
    ddp->has_joined = false;
    brg_status status = brg__reducer_close(r);
    for (size_t i = 0; status == BRG_OK && i < ddp->n_params; i++)
        if (!r->members[i].is_ready)
            status = settle_param(&ddp->params[i]);
    if (status != BRG_OK) { /* this rank's own; it must not leave the others */
        brg__error_record kept;
        brg__error_save(&kept);
        (void)brg__reducer_give_up(r);
        brg__error_restore(&kept);
    } else if ((status = brg__reducer_complete(r)) == BRG_OK) {
        status = hand_over_all(ddp);
    }
    drop_kept(ddp);
    return status;
}

/* The backward failed on this rank. The engine keeps its error. */
static void on_failure(void *user)
{
    brg_ddp *ddp = user;
    if (!ddp->has_joined)
        return;
    ddp->has_joined = false;
    brg_status status = brg__reducer_give_up(ddp->reducer);
    if (status == BRG_OK && !ddp->reducer->has_failed)
        (void)hand_over_all(ddp); /* as the other ranks do */
    for (size_t i = 0; i < ddp->n_params; i++)
        ddp->params[i].is_used = false;
    drop_kept(ddp);
}

/* ---- Hooks ------------------------------------------------------------------------- */

static brg_status join(brg_ddp *ddp)
{
    if (ddp->has_joined)
        return BRG_OK;
    BRG_TRY(brg__reducer_check(ddp->reducer));
    ddp->has_joined = true;
    brg_status status = brg__queue_at_end(finish, on_failure, ddp);
    if (status == BRG_OK)
        return BRG_OK;
    brg__error_record kept;
    brg__error_save(&kept);
    on_failure(ddp);
    brg__error_restore(&kept);
    return status;
}

brg_status brg__ddp_on_gradient(brg_tensor *leaf, void *param)
{
    brg__ddp_param *p = param;
    brg_ddp *ddp = p->ddp;
    brg_tensor *grad = brg_tensor_grad(leaf);
    p->is_used |= grad != NULL;
    if (!ddp->is_sync)
        return BRG_OK;
    BRG_TRY(join(ddp));
    BRG_TRY(brg__reducer_expect(ddp->reducer, p->index));
    BRG_TRY(pack(p, grad));
    if (!grad)
        remember_late(p);
    else if (grad != p->view)
        BRG_TRY(brg_tensor_set_grad(leaf, p->view));
    return brg__reducer_arrive(ddp->reducer, p->index, grad != NULL);
}
