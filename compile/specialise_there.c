/* SPDX-License-Identifier: Apache-2.0
 * Kernels for the groups of a plan on a device. Sizes are made out by each run;
 * what kernels depend on is known here. */
#include <string.h>

#include "compile/plan.h"
#include "core/base/error.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

/* The one device that all tensors from outside are on; the CPU's: there is none. */
static brg_device device_of(const brg__exec *exec, const brg__collected *c)
{
    brg_device device = BRG_CPU;
    bool has_second = false;
    for (size_t id = 0; id < exec->ir->values.n; id++) {
        const brg__ir_value *v = &exec->ir->values.at[id];
        const brg_tensor *t = v->source == BRG__IR_FROM_INPUT
                                  ? c->inputs.at[v->index]
                              : v->source == BRG__IR_FROM_CONST ? v->constant
                                                                : NULL;
        if (!t || !t->storage || t->device.type == BRG_DEVICE_CPU)
            continue;
        has_second |= device.type != BRG_DEVICE_CPU &&
                      !brg__device_equal(device, t->device);
        device = t->device;
    }
    return has_second ? BRG_CPU : device;
}

/* Of the dims and dtype of a value; those that are not 1 are 2. */
static void set_like(brg_tensor *t, const brg__ir_value *v)
{
    memset(t, 0, sizeof *t);
    atomic_init(&t->refs.n, 1 << 20);
    t->ndim = (uint8_t)v->ndim;
    t->dtype = (uint8_t)v->dtype;
    t->device = BRG_CPU;
    for (int d = 0; d < v->ndim; d++)
        t->shape[d] = v->ones >> d & 1u ? 1 : 2;
    brg__shape_strides(t->ndim, t->shape, t->stride);
    (void)brg__shape_numel(t->ndim, t->shape, &t->numel);
    t->is_contiguous = true;
}

/* NULL in the step if the group has no kernels. */
static brg_status plan_group(brg__exec *exec, brg__step *step)
{
    const brg__ir *ir = exec->ir;
    const brg__group *group = ir->groups.at[step->node->group];
    brg_tensor like[BRG__GROUP_MAX_IN], *in[BRG__GROUP_MAX_IN];
    const char *why;
    for (int i = 0; i < group->n_in; i++) {
        in[i] = &like[i];
        set_like(&like[i], &ir->values.at[brg__ir_in(ir, step->node)[i]]);
    }
    step->there = BRG__NEW(brg__cuda_group);
    if (!step->there)
        return BRG_ERR_NOMEM;
    brg_status status = brg__cuda_group_init(step->there, group, in, &why);
    if (status == BRG_OK && !why)
        return BRG_OK;
    brg__mem_free(step->there);
    step->there = NULL;
    if (status == BRG_ERR_NOMEM)
        return status;
    brg_error_clear(); /* its ops will say so */
    return BRG_OK;
}

brg_status brg__exec_load_there(brg__exec *exec, const brg__collected *c)
{
    size_t n = 0;
    exec->device = device_of(exec, c);
    if (exec->device.type == BRG_DEVICE_CPU || exec->ir->groups.n == 0)
        return BRG_OK;
    brg__cuda_group **groups =
        brg__mem_alloc_array(exec->n_steps + 1, sizeof *groups, "groups");
    brg_status status = groups ? BRG_OK : BRG_ERR_NOMEM;
    for (size_t at = 0; status == BRG_OK && at < exec->n_steps; at++) {
        brg__step *step = &exec->steps[at];
        if (step->node->kind != BRG__IR_FUSED)
            continue;
        status = plan_group(exec, step);
        if (step->there)
            groups[n++] = step->there;
    }
    if (status == BRG_OK)
        status = brg__cuda_kernels_load(&exec->there, exec->device, groups, n);
    brg__mem_free(groups);
    return status;
}
