/* SPDX-License-Identifier: Apache-2.0
 * One backward under the reproducible reduction: see ddp.h and leaves.h.
 *
 * .grad is a leaf's own gradient for the time of a hook only, in the slot that
 * p->home shows; then it goes, so that the next leaf finds none. After the last
 * leaf it is p->view, as ever. */
#include "core/base/assert.h"
#include "reducer/ddp.h"
#include "reducer/leaves.h"

static brg_status check(const brg__ddp_param *p, const brg_tensor *grad)
{
    const brg_reducer *r = p->ddp->reducer;
    if (!p->ddp->is_sync)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_ddp_set_sync is off under the "
                        "reproducible reduction, which accumulates over the "
                        "leaves of a step itself",
                        r->rank);
    if (grad == p->view)
        return BRG_FAIL(
            BRG_ERR_STATE,
            "rank %d: %s has a gradient of the last step when leaf "
            "%u begins; under the reproducible reduction .grad must "
            "be NULL then (brg_optim_zero_grad without "
            "keep_memory)",
            r->rank, brg__member_name(r, p->index), r->run.first + r->leaf);
    return BRG_OK;
}

brg_status brg__ddp_leaf_gradient(brg__ddp_param *p, brg_tensor *grad)
{
    brg_reducer *r = p->ddp->reducer;
    bool is_last = brg__leaf_is_last(r);
    BRG_TRY(check(p, grad));
    BRG_TRY(brg__reducer_expect(r, p->index));
    BRG_TRY(brg__ddp_fill(p, grad));
    if (grad)
        BRG_TRY(brg_tensor_set_grad(p->leaf, is_last ? p->view : NULL));
    else if (is_last)
        brg__ddp_remember_late(p);
    brg__reducer_take(r, p->index, grad != NULL);
    return BRG_OK;
}

brg_status brg__ddp_leaf_settle(brg__ddp_param *p)
{
    if (brg__leaf_is_last(p->ddp->reducer))
        brg__ddp_remember_late(p);
    BRG_TRY(brg__ddp_fill(p, NULL));
    return brg__reducer_arrive(p->ddp->reducer, p->index, false);
}

void brg__ddp_leaf_place(brg_ddp *ddp)
{
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        if (p->home == p->view)
            return;
        if (brg_tensor_grad(p->leaf) == p->home &&
            brg_tensor_set_grad(p->leaf, NULL) != BRG_OK)
            brg_assert(!"taking a gradient away cannot fail");
        if (!brg__ddp_is_staged(p))
            p->home->storage->data = brg__leaf_home(ddp->reducer, i);
        brg_tensor_touch(p->home);
    }
}
