/* SPDX-License-Identifier: Apache-2.0
 * What all ranks of a ddp have in common: the list of tensors, rank 0's
 * values. */
#include <string.h>

#include "core/base/alloc.h"
#include "core/tensor/shape.h"
#include "reducer/ddp.h"
#include "reducer/verify.h"

/* ---- The list ------------------------------------------------------------------ */

static void describe(brg__descriptor *d, const brg_tensor *t)
{
    const char *name = brg_tensor_name(t);
    *d = (brg__descriptor){.dtype = t->dtype,
                           .device = t->device.type,
                           .ndim = t->ndim,
                           .requires_grad = brg_requires_grad(t)};
    memcpy(d->shape, t->shape, (size_t)t->ndim * sizeof *t->shape);
    memcpy(d->strides, t->stride, (size_t)t->ndim * sizeof *t->stride);
    brg__descriptor_set_name(d, name ? name : "");
}

static brg__descriptor *list_tensors(const brg_ddp *ddp)
{
    size_t n = ddp->n_tensors + ddp->n_buffers;
    brg__descriptor *list =
        brg__mem_alloc_array(n, sizeof *list, "a list of tensors");
    if (!list)
        return NULL;
    for (size_t i = 0; i < ddp->n_tensors; i++) {
        describe(&list[i], ddp->tensors[i]);
        list[i].group = ddp->groups[i];
    }
    for (size_t i = 0; i < ddp->n_buffers; i++)
        describe(&list[ddp->n_tensors + i], ddp->buffers[i]);
    return list;
}

static uint32_t flags_of(const brg_ddp_options *options)
{
    static const uint32_t buffers[] = {
        [BRG_DDP_BUFFERS_BROADCAST] = BRG__FLAG_BROADCAST_BUFFERS,
        [BRG_DDP_BUFFERS_AVERAGE] = BRG__FLAG_AVERAGE_BUFFERS};
    return (options->static_graph ? BRG__FLAG_STATIC_GRAPH : 0u) |
           (options->accumulate_f32 ? BRG__FLAG_ACCUMULATE_F32 : 0u) |
           buffers[options->sync_buffers];
}

brg_status brg__ddp_verify(brg_pg *pg, const brg_ddp *ddp,
                           const brg_ddp_options *options, brg_status status)
{
    brg__agreement mine = {.what = "brg_ddp_create", .status = status};
    brg__descriptor *list = NULL;
    if (status == BRG_OK && !(list = list_tensors(ddp)))
        mine.status = BRG_ERR_NOMEM;
    if (list) {
        mine.tensors = list;
        mine.n_params = ddp->n_tensors;
        mine.n_buffers = ddp->n_buffers;
        mine.caps[0] = options->first_bucket_bytes;
        mine.caps[1] = options->bucket_bytes;
        mine.flags = brg__reducer_flags(ddp->reducer) | flags_of(options);
        mine.hook = brg__hook_hash(options->hook);
        mine.n_leaves = options->n_leaves;
    }
    status = brg__verify_ranks(pg, &mine);
    brg__mem_free(list);
    return status;
}

/* ---- Values ---------------------------------------------------------------------- */

static brg_status broadcast(brg_pg *pg, void *data, size_t count,
                            brg_dtype dtype)
{
    brg_work *work;
    BRG_TRY(brg_broadcast(pg, &work, data, count, dtype, 0));
    return brg_work_wait(work);
}

/* Can the group take it where it lies? */
static bool is_in_place(const brg_ddp *ddp, const brg_tensor *t)
{
    return brg__shape_is_dense(t->ndim, t->shape, t->stride) &&
           !brg__is_staged(ddp->pg, t);
}

/* One with gaps, or elsewhere, goes through a copy. */
static brg_status broadcast_copy(brg_ddp *ddp, brg_tensor *t)
{
    brg_tensor *copy;
    BRG_TRY(brg__copy_for(&copy, ddp->pg, t));
    brg_status status = broadcast(ddp->pg, brg__tensor_ptr(copy),
                                  (size_t)copy->numel, (brg_dtype)copy->dtype);
    if (status == BRG_OK)
        status = brg__ddp_copy(t, copy);
    brg_release(copy);
    return status;
}

static brg_status broadcast_tensor(brg_ddp *ddp, brg_tensor *t)
{
    if (t->numel == 0)
        return BRG_OK;
    if (!is_in_place(ddp, t))
        return broadcast_copy(ddp, t);
    brg_tensor_touch(t);
    return broadcast(ddp->pg, brg__tensor_ptr(t), (size_t)t->numel,
                     (brg_dtype)t->dtype);
}

/* Through the buckets: few collectives, in memory that is fast. */
brg_status brg__ddp_broadcast_params(brg_ddp *ddp)
{
    const brg_reducer *r = ddp->reducer;
    for (size_t i = 0; i < ddp->n_params; i++) {
        const brg__ddp_param *p = &ddp->params[i];
        BRG_TRY(brg__ddp_copy(p->view, p->leaf));
        BRG_TRY(brg__ddp_stage(p, p->view, r->members[i].slot));
    }
    for (size_t k = 0; k < r->plan.n_buckets; k++)
        BRG_TRY(broadcast(ddp->pg, r->buckets[k].data, r->buckets[k].count,
                          r->buckets[k].dtype));
    for (size_t i = 0; i < ddp->n_params && r->rank != 0; i++) {
        const brg__ddp_param *p = &ddp->params[i];
        BRG_TRY(brg__ddp_unstage(p));
        BRG_TRY(brg__ddp_copy(p->leaf, p->view));
    }
    for (size_t i = 0; i < ddp->n_tensors; i++)
        if (!brg_requires_grad(ddp->tensors[i]))
            BRG_TRY(broadcast_tensor(ddp, ddp->tensors[i]));
    return BRG_OK;
}

brg_status brg__ddp_broadcast_buffers(brg_ddp *ddp)
{
    brg_status status = BRG_OK;
    brg__reducer_sign(ddp->reducer);
    for (size_t i = 0; i < ddp->n_buffers && status == BRG_OK; i++)
        status = broadcast_tensor(ddp, ddp->buffers[i]);
    brg__reducer_unsign(ddp->reducer);
    return status;
}

/* Or a copy of it, as above. */
static brg_status average_tensor(brg_ddp *ddp, brg_tensor *t)
{
    brg_tensor *dense = t;
    const bool is_own = !is_in_place(ddp, t);
    if (!brg__tensor_is_float(t))
        return broadcast_tensor(ddp, t);
    if (t->numel == 0)
        return BRG_OK;
    if (is_own)
        BRG_TRY(brg__copy_for(&dense, ddp->pg, t));
    brg_work *work;
    brg_status status =
        brg_all_reduce(ddp->pg, &work, brg__tensor_ptr(dense), (size_t)t->numel,
                       (brg_dtype)t->dtype, BRG_REDUCE_AVG);
    if (status == BRG_OK)
        status = brg_work_wait(work);
    if (status == BRG_OK && is_own)
        status = brg__ddp_copy(t, dense);
    if (is_own)
        brg_release(dense);
    brg_tensor_touch(t);
    return status;
}

static brg_status average_buffers(brg_ddp *ddp)
{
    brg_status status = BRG_OK;
    brg__reducer_sign(ddp->reducer);
    for (size_t i = 0; i < ddp->n_buffers && status == BRG_OK; i++)
        status = average_tensor(ddp, ddp->buffers[i]);
    brg__reducer_unsign(ddp->reducer);
    return status;
}

brg_status brg__ddp_sync_buffers(brg_ddp *ddp)
{
    if (ddp->reducer->n_cargo > 0)
        return BRG_OK;
    if (ddp->options.sync_buffers == BRG_DDP_BUFFERS_BROADCAST)
        return brg__ddp_broadcast_buffers(ddp);
    return ddp->options.sync_buffers == BRG_DDP_BUFFERS_AVERAGE
               ? average_buffers(ddp)
               : BRG_OK;
}
