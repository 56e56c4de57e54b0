/* SPDX-License-Identifier: Apache-2.0
 * Parameters on a device under a group that reduces on the host: the reducer has
 * its slots there, and gradients go to them and back.
 *
 *     .grad       a view of memory of its own on the device, where a backward
 *                 writes it
 *     complete    to its slot; the host waits for the device
 *     reduced     bucket by bucket back, while later ones are on their way
 *
 * Other tensors that ranks exchange go through a row-major copy. */
#include "core/base/error.h"
#include "reducer/ddp.h"

bool brg__ddp_is_staged(const brg__ddp_param *p)
{
    return brg__is_staged(p->ddp->pg, p->leaf);
}

brg_status brg__ddp_stage(const brg__ddp_param *p, brg_tensor *from, void *slot)
{
    const brg_reducer *r = p->ddp->reducer;
    if (!brg__ddp_is_staged(p))
        return BRG_OK;
    return brg__device_copy(r->device, slot, from->device,
                            brg__tensor_ptr(from), r->members[p->index].nbytes);
}

brg_status brg__ddp_unstage(const brg__ddp_param *p)
{
    const brg_reducer *r = p->ddp->reducer;
    const brg__member *m = &r->members[p->index];
    if (!brg__ddp_is_staged(p))
        return BRG_OK;
    return brg__device_copy(p->view->device, brg__tensor_ptr(p->view),
                            r->device, m->slot, m->nbytes);
}

/* Is this rank's own failure: the step is good all the same. */
static void on_reduced(brg_reducer *r, size_t bucket)
{
    const brg__plan_bucket *b = &r->plan.buckets[bucket];
    if (bucket == 0)
        r->refused.code = BRG_OK;
    for (size_t k = 0; k < b->n_params; k++)
        if (brg__ddp_unstage(
                &r->loads_of->params[r->plan.order[b->first + k]]) != BRG_OK &&
            r->refused.code == BRG_OK)
            brg__error_save(&r->refused);
}

brg_status brg__ddp_staged_prepare(brg_ddp *ddp)
{
    bool any = false;
    for (size_t i = 0; i < ddp->n_params && !any; i++)
        any = brg__ddp_is_staged(&ddp->params[i]);
    if (!any)
        return BRG_OK;
    ddp->reducer->on_reduced = on_reduced;
    /* Where the optimizer asks for it. */
    return ddp->options.check_finite
               ? brg__finite_place(ddp->reducer, ddp->params[0].leaf->device)
               : BRG_OK;
}

brg_status brg__ddp_staged_end(brg_ddp *ddp)
{
    brg_reducer *r = ddp->reducer;
    if (!r->on_reduced)
        return BRG_OK;
    if (r->refused.code == BRG_OK)
        return brg__finite_send(r);
    brg__error_restore(&r->refused);
    return r->refused.code;
}

/* ---- Tensors by themselves ------------------------------------------------------- */

bool brg__is_staged(const brg_pg *pg, const brg_tensor *t)
{
    return t->device.type != brg__pg_device(pg).type;
}

brg_status brg__copy_for(brg_tensor **out, const brg_pg *pg, brg_tensor *t)
{
    brg__layout layout = brg__layout_row_major(t);
    layout.device = brg__pg_device(pg);
    BRG_TRY(brg__tensor_new(out, &layout));
    const brg_status status = brg__ddp_copy(*out, t);
    if (status != BRG_OK) {
        brg_release(*out);
        *out = NULL;
    }
    return status;
}
