/* SPDX-License-Identifier: Apache-2.0
 * A ddp met by a compiled backward: its reductions as steps of a plan, and what
 * a device has to know to launch them again. */
#include "core/autograd/reduction.h"
#include "reducer/ddp.h"
#include "reducer/leaves.h"

/* ---- Steps of a plan (core/autograd/reduction.h) --------------------------------- */

static brg_status plan_begin(void *self)
{
    return brg__ddp_join(self);
}

/* Known before anything runs: without a gradient of this parameter no step can
 * be good. The ranks find it at their first bucket (brg__reducer_label). */
static void plan_expect(void *self, const brg__reduction_member *all, size_t n,
                        int reduction)
{
    brg_ddp *ddp = self;
    brg_reducer *r = ddp->reducer;
    for (size_t i = 0; i < ddp->n_params; i++)
        ddp->params[i].is_coming = ddp->params[i].is_used;
    for (size_t k = 0; k < n; k++)
        if (all[k].reduction == reduction)
            ddp->params[all[k].member].is_coming = true;
    r->lacking = 0;
    for (size_t i = ddp->n_params; i-- > 0 && !r->options.allow_unused;)
        if (!ddp->params[i].is_coming && !r->members[i].is_ready)
            r->lacking = (uint32_t)i + 1;
}

static brg_status plan_pack(void *self, size_t member)
{
    brg_ddp *ddp = self;
    return brg__ddp_take(&ddp->params[member]);
}

/* A last bucket that holds nothing but the tail goes with the one before. */
static brg_status plan_start(void *self, size_t bucket)
{
    brg_reducer *r = ((brg_ddp *)self)->reducer;
    size_t n = bucket + 1;
    while (n < r->plan.n_buckets && r->plan.buckets[n].n_params == 0)
        n++;
    return brg__reducer_launch(r, n);
}

static brg_status plan_wait(void *self, size_t bucket)
{
    brg_reducer *r = ((brg_ddp *)self)->reducer;
    return bucket < r->n_launched ? brg__reducer_wait_until(r, bucket + 1)
                                  : BRG_OK;
}

static brg_status plan_write_back(void *self, size_t member)
{
    brg__ddp_param *p = &((brg_ddp *)self)->params[member];
    p->is_written = brg_tensor_grad(p->leaf) == p->view;
    if (p->is_written)
        brg_tensor_touch(p->view);
    return BRG_OK;
}

/* ---- Steps launched again -------------------------------------------------------- */

/* What makes the host look at a step, or do other work in the next. */
static const char *in_the_way(const brg_ddp *ddp)
{
    const brg_reducer *r = ddp->reducer;
    if (!r->tail.vtable)
        return "gradients are reduced on the host";
    if (!r->is_rebuilt || ddp->graph == BRG__GRAPH_RECORDING)
        return "the reducer's buckets are not final";
    if (!ddp->is_sync || r->broken.code != BRG_OK)
        return "reductions are off";
    if (brg__has_leaves(r) || ddp->options.shard || ddp->options.grads_apart)
        return "the reducer's options need the host";
    return ddp->n_buffers > 0 && ddp->options.sync_buffers && r->n_cargo == 0
               ? "buffers are sent by themselves"
               : NULL;
}

static brg_status note(void *self, brg__words *state)
{
    const brg_ddp *ddp = self;
    const brg_reducer *r = ddp->reducer;
    const char *why = in_the_way(ddp);
    if (why)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED, "%s", why);
    BRG_TRY(brg__array_push(state, (uintptr_t)ddp));
    BRG_TRY(brg__array_push(state, (uintptr_t)r->arena));
    BRG_TRY(brg__array_push(state, (uintptr_t)r->tail.mine));
    for (size_t i = 0; r->n_cargo > 0 && i < ddp->n_buffers; i++)
        BRG_TRY(brg__array_push(state,
                                (uintptr_t)brg__tensor_ptr(ddp->buffers[i])));
    BRG_TRY(brg__array_push(state, (uintptr_t)r->look.found));
    BRG_TRY(brg__array_push(state, (uintptr_t)r->found_inf));
    BRG_TRY(brg__array_push(state, (uintptr_t)r->look.partials));
    if (r->options.hook)
        BRG_TRY(brg__hook_note(r, state));
    return brg__array_push(state, (uintptr_t)r->plan_hash);
}

static brg_status find(void *self, brg__words *state)
{
    const brg_ddp *ddp = self;
    for (size_t i = 0; i < ddp->n_params; i++)
        if (ddp->params[i].sum) {
            const brg__ddp_param *p = &ddp->params[i];
            BRG_TRY(brg__array_push(state, (uintptr_t)p->sum));
            BRG_TRY(brg__array_push(state, (uintptr_t)p->has_sum));
        }
    return BRG_OK;
}

static brg_status ready(void *self)
{
    return brg__device_tail_ready(((brg_ddp *)self)->reducer);
}

static brg_status launched(void *self)
{
    brg_ddp *ddp = self;
    brg_reducer *r = ddp->reducer;
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        brg_tensor_touch(p->view);
        p->is_used = p->has_sum = false;
    }
    for (size_t i = 0; r->n_cargo > 0 && i < ddp->n_buffers; i++)
        brg_tensor_touch(ddp->buffers[i]);
    r->stats.n_steps++;
    r->pace = 0;
    if (r->options.hook)
        brg__hook_launched(r);
    return brg__device_tail_launched(r);
}

static const brg__reduction_relaunch relaunch_ops = {note, find, ready,
                                                     launched};

static uint32_t divisor_of(const brg_reducer *r)
{
    if (r->options.hook)
        return 0;
    return r->options.sum ? 1 : (uint32_t)r->world_size;
}

void brg__ddp_describe(const brg__ddp_param *p, brg__reduction_part *part)
{
    static const brg__reduction_ops ops = {plan_begin, plan_expect,
                                           plan_pack,  plan_start,
                                           plan_wait,  plan_write_back};
    const brg_reducer *r = p->ddp->reducer;
    uint32_t bucket = r->members[p->index].bucket;
    const brg_comm_hook *hook = r->options.hook;
    part->relaunch = &relaunch_ops;
    part->relaunch_self = p->ddp;
    /* A hook with two rounds needs all buckets to have started before the
     * first is waited for; the other two know their results at the end. */
    if (!p->ddp->is_sync || brg__has_leaves(r) || r->tail.vtable ||
        (hook && hook->ops.again) || p->ddp->options.grads_apart ||
        p->ddp->graph != BRG__GRAPH_FREE)
        return;
    part->ops = &ops;
    part->self = p->ddp;
    part->version = r->plan_hash;
    part->member = (uint32_t)p->index;
    part->bucket = bucket;
    part->n_in_bucket = (uint32_t)r->plan.buckets[bucket].n_params;
    part->divisor = divisor_of(r);
}
