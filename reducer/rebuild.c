/* SPDX-License-Identifier: Apache-2.0
 * Buckets anew, in the order in which gradients really arrive. Registration
 * order is a guess: a model may use its parameters in another. One order
 * (rank 0's) is as good as any for all ranks; what matters is that it is
 * one. */
#include <string.h>

#include "core/base/alloc.h"
#include "reducer/leaves.h"
#include "reducer/schedule.h"

static brg_status take_order(brg_reducer *r)
{
    brg_work *work;
    BRG_TRY(brg_broadcast(r->pg, &work, r->arrivals, r->n_params, BRG_DTYPE_I32,
                          0));
    return brg_work_wait(work);
}

brg_status brg__reducer_agree(brg_reducer *r, bool mine, bool *all)
{
    int32_t flag = mine;
    brg_work *work;
    BRG_TRY(
        brg_all_reduce(r->pg, &work, &flag, 1, BRG_DTYPE_I32, BRG_REDUCE_MIN));
    BRG_TRY(brg_work_wait(work));
    *all = flag != 0;
    return BRG_OK;
}

/* The contents of the slots from where the present plan has them to where
 * `plan` wants them; `copy` is as large as the arena. */
static brg_status move(brg_reducer *r, const brg__plan *plan, char *copy)
{
    const brg_device d = r->device;
    BRG_TRY(brg__device_zero(d, copy, plan->nbytes));
    for (size_t i = 0; i < r->n_params; i++)
        BRG_TRY(brg__device_copy(d, copy + plan->slots[i].offset, d,
                                 r->members[i].slot, r->members[i].nbytes));
    BRG_TRY(brg__device_copy(d, r->arena, d, copy, plan->nbytes));
    return brg__leaves_clear(r);
}

static void *copy_alloc(const brg_reducer *r, size_t nbytes)
{
    void *copy = NULL;
    if (!r->tail.vtable)
        return brg__block_alloc(nbytes, BRG__PLAN_ALIGN, "a copy of buckets");
    return r->tail.vtable->alloc(r->device, &copy, nbytes) == BRG_OK ? copy
                                                                     : NULL;
}

static void copy_free(const brg_reducer *r, void *copy, size_t nbytes)
{
    if (copy && r->tail.vtable)
        r->tail.vtable->free(r->device, copy, nbytes);
    else if (copy)
        brg__block_free(copy, nbytes, BRG__PLAN_ALIGN);
}

bool brg__rebuild_is_due(const brg_reducer *r)
{
    return !r->is_rebuilt && (r->options.buckets == BRG_BUCKETS_BY_SIZE ||
                              r->stats.n_steps > BRG__MEASURED_STEPS);
}

/* The order, and with BRG_BUCKETS_MEASURED where it is cut. */
static brg_status take_choice(brg_reducer *r)
{
    bool is_settled = false;
    if (r->options.buckets == BRG_BUCKETS_MEASURED)
        BRG_TRY(brg__measured_choose(r, &is_settled));
    return is_settled ? BRG_OK : take_order(r);
}

static brg_status rebuild(brg_reducer *r)
{
    r->is_rebuilt = true;
    BRG_TRY(take_choice(r));
    brg__error_record kept;
    brg__error_save(&kept);
    brg__plan plan;
    char *copy = NULL;
    size_t nbytes = r->plan.nbytes;
    bool is_able = brg__reducer_plan(r, r->arrivals, &plan) == BRG_OK &&
                   brg__reducer_reserve(r, &plan) == BRG_OK;
    if (is_able)
        copy = copy_alloc(r, nbytes);
    brg__error_restore(&kept);
    bool all_are = false;
    brg_status status = brg__reducer_agree(r, copy != NULL, &all_are);
    if (status == BRG_OK && all_are && copy &&
        brg__plan_hash(&plan) != brg__plan_hash(&r->plan)) {
        status = move(r, &plan, copy);
        brg__plan old = r->plan;
        r->plan = plan;
        plan = old;
        brg__reducer_lay_out(r);
        if (status == BRG_OK)
            status = brg__hook_lay_out(r);
        r->stats.n_rebuilds++;
    }
    copy_free(r, copy, nbytes);
    brg__plan_deinit(&plan);
    return status;
}

brg_status brg__reducer_rebuild(brg_reducer *r)
{
    brg__reducer_sign(r);
    brg_status status = rebuild(r);
    brg__reducer_unsign(r);
    return status;
}
