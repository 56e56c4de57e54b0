/* SPDX-License-Identifier: Apache-2.0
 * Between the backwards of a ddp: ranks without data, parameters frozen or
 * unfrozen, clipping, recording. */
#include <math.h>

#include "core/autograd/node.h"
#include "reducer/schedule.h"
#include "reducer/shard.h"
#include "core/base/tracer.h"

brg_status brg_ddp_join(brg_ddp *ddp, bool *is_over)
{
    BRG_CHECK_ARG(ddp && is_over, "brg_ddp_join: %s is NULL",
                  ddp ? "is_over" : "the ddp");
    *is_over = false;
    BRG_TRY(brg__tracer_outside("brg_ddp_join"));
    if (ddp->has_joined)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_ddp_join: a backward is under way",
                        brg_pg_rank(ddp->pg));
    if (ddp->has_leaves)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: brg_ddp_join: under the reproducible "
                        "reduction every rank has leaves in every step",
                        brg_pg_rank(ddp->pg));
    BRG_TRY(brg__ddp_shadow_step(ddp));
    *is_over = ddp->reducer->n_shadows == (uint32_t)ddp->reducer->world_size;
    return BRG_OK;
}

/* ---- Freezing ------------------------------------------------------------------ */

/* What follows from the address of a ddp. */
static void point_at(brg_ddp *ddp)
{
    ddp->reducer->loads_of = ddp;
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        p->ddp = ddp;
        brg__autograd_of(p->leaf)->home =
            ddp->options.grads_apart ? NULL : p->home;
    }
}

brg_status brg__ddp_remake(brg_ddp *ddp, brg_pg *pg)
{
    brg_ddp *fresh;
    brg_comm_hook *hook = ddp->options.hook;
    if (hook) /* it moves on to the new reducer */
        hook->reducer = NULL;
    brg_status status =
        brg__ddp_make(&fresh, pg, ddp->tensors, ddp->n_tensors, ddp->buffers,
                      ddp->n_buffers, &ddp->options, false);
    if (status != BRG_OK) {
        if (hook)
            brg__hook_return(ddp->reducer);
        point_at(ddp); /* the failed one took the places of gradients along */
        return status;
    }
    brg_ddp old = *ddp;
    bool is_sync = ddp->is_sync;
    *ddp = *fresh;
    *fresh = old;
    ddp->is_sync = is_sync;
    brg__ddp_sums_move(ddp, fresh);
    brg_tensor *found_inf = ddp->reducer->found_inf; /* optimizers hold it */
    ddp->reducer->found_inf = fresh->reducer->found_inf;
    fresh->reducer->found_inf = found_inf;
    brg_ddp_destroy(fresh);
    point_at(ddp);
    return BRG_OK;
}

brg_status brg_ddp_refresh(brg_ddp *ddp)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_refresh: the ddp is NULL");
    BRG_TRY(brg__tracer_outside("brg_ddp_refresh"));
    if (ddp->has_joined)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: brg_ddp_refresh: a backward is under way",
                        brg_pg_rank(ddp->pg));
    if (ddp->options.shard)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "rank %d: brg_ddp_refresh: the ranges of optimizer "
                        "state hang on the buckets of a ddp with shard; gather "
                        "the state, make a new ddp and a new optimizer",
                        brg_pg_rank(ddp->pg));
    BRG_TRY(brg_ddp_confirm(ddp)); /* the fresh one would not know */
    return brg__ddp_remake(ddp, ddp->pg);
}

/* ---- Clipping -------------------------------------------------------------------- */

static brg_status scale_all(brg_ddp *ddp, double factor)
{
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        const brg__member *m = &ddp->reducer->members[i];
        brg_tensor *grad = brg_tensor_grad(p->leaf);
        if (m->n_used == 0 || !grad)
            continue;
        const bool is_view = grad == p->view;
        brg_optim_range own = {0, m->count};
        if (is_view) {
            own = brg__shard_of(ddp->reducer, i, ddp->reducer->rank);
            BRG_TRY(brg__ddp_stage(p, grad, m->slot)); /* as it is by now */
        }
        brg__norm_scale((char *)m->slot + own.first * brg_dtype_size(m->dtype),
                        m->dtype, own.n, factor);
        BRG_TRY(brg__ddp_unstage(p));
        if (is_view)
            brg_tensor_touch(grad);
        else
            BRG_TRY(brg__ddp_copy(grad, p->view));
    }
    return BRG_OK;
}

/* The same by the device; the host does not know the factor. */
static brg_status clip_all_there(brg_ddp *ddp, const double *total,
                                 double max_norm)
{
    const brg_reducer *r = ddp->reducer;
    brg_device_array *list = r->look.arrays;
    size_t n = 0;
    for (size_t i = 0; i < ddp->n_params; i++) {
        const brg__member *m = &r->members[i];
        const brg_optim_range own = brg__shard_of(r, i, r->rank);
        if (m->n_used == 0 || own.n == 0 ||
            !brg_tensor_grad(ddp->params[i].leaf))
            continue;
        list[n++] = (brg_device_array){
            .data = (char *)m->slot + own.first * brg_dtype_size(m->dtype),
            .dtype = m->dtype,
            .numel = own.n};
    }
    if (n > 0)
        BRG_TRY(r->tail.vtable->norm_clip(r->device, list, n, total, max_norm));
    for (size_t i = 0; i < ddp->n_params; i++) {
        const brg__ddp_param *p = &ddp->params[i];
        brg_tensor *grad = brg_tensor_grad(p->leaf);
        if (r->members[i].n_used == 0 || !grad)
            continue;
        if (grad == p->view)
            brg_tensor_touch(grad);
        else
            BRG_TRY(brg__ddp_copy(grad, p->view));
    }
    return BRG_OK;
}

static brg_status clip_there(brg_ddp *ddp, double max_norm, double *norm)
{
    const brg_reducer *r = ddp->reducer;
    double *total, sum;
    BRG_TRY(brg__look_norm(r, &total));
    if (ddp->options.shard) {
        brg_work *work;
        BRG_TRY(brg_all_reduce(ddp->pg, &work, total, 1, BRG_DTYPE_F64,
                               BRG_REDUCE_SUM));
        BRG_TRY(brg_work_wait(work));
    }
    BRG_TRY(clip_all_there(ddp, total, max_norm));
    if (!norm)
        return BRG_OK;
    BRG_TRY(brg__look_fetch(r, total, &sum));
    *norm = sqrt(sum);
    return BRG_OK;
}

brg_status brg_ddp_clip_grad_norm(brg_ddp *ddp, double max_norm, double *norm)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_clip_grad_norm: the ddp is NULL");
    BRG_TRY(brg__tracer_outside("brg_ddp_clip_grad_norm"));
    BRG_CHECK_ARG(max_norm > 0,
                  "brg_ddp_clip_grad_norm: max_norm %g must be positive",
                  max_norm);
    if (!ddp->options.measure_norm)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_ddp_clip_grad_norm: the ddp was made without "
                        "options.measure_norm");
    if (ddp->reducer->tail.vtable)
        return clip_there(ddp, max_norm, norm);
    double found = brg_reducer_grad_norm(ddp->reducer);
    if (ddp->options.shard)
        BRG_TRY(brg__shard_add_norms(ddp, &found));
    if (norm)
        *norm = found;
    double factor = max_norm / (found + 1e-6);
    return isfinite(found) && factor < 1 ? scale_all(ddp, factor) : BRG_OK;
}

/* ---- Recording -------------------------------------------------------------- */

brg_status brg_ddp_record(brg_ddp *ddp, size_t n_steps)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_record: the ddp is NULL");
    return brg_reducer_record(ddp->reducer, n_steps);
}
