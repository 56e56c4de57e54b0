/* SPDX-License-Identifier: Apache-2.0
 * Clipping by norm and the step behind it at once, in plans: the device's update
 * multiplies as it reads, so the gradients are not written once more. That they
 * are dropped right behind is the plan's to show, that nobody else holds them is
 * looked at in each run; if somebody does, the two calls are made. Parameters get
 * the same bits either way. */
#include <brigade/autograd.h>

#include "core/autograd/node.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/optim/optim.h"
#include "core/tensor/device.h"

/* ---- Whether it can be ----------------------------------------------------------- */

/* Owners of a gradient that nobody else holds: its parameter, and the reducer
 * twice where it is a part of a bucket. */
static int32_t n_owners(const brg__autograd *a)
{
    return a->grad == a->home ? 3 : 1;
}

static bool is_ours_alone(const brg__optim_slot *slot, brg_device device)
{
    const brg_tensor *p = slot->param;
    const brg__autograd *a = brg__autograd_of(p);
    const brg_tensor *g = a->grad;
    return !g->sparse && g->storage && g->is_contiguous &&
           g->dtype == p->dtype && g->numel == p->numel &&
           brg__device_equal(g->device, device) &&
           brg__ref_count(&g->refs) == n_owners(a) &&
           brg__ref_count(&g->storage->refs) == 1;
}

/* The gradients of params, if they are those of the optimizer, in its order. */
static bool list_grads(const brg_optim *optim, const brg_params *params,
                       brg_device_update *list, size_t *n)
{
    const brg_device device = optim->slots[0].param->device;
    size_t at = 0, n_taken = 0, n_grads = 0;
    *n = 0;
    for (size_t i = 0; i < brg_params_count(params); i++) {
        const brg_tensor *param = brg_params_at(params, i)->tensor;
        const brg_tensor *grad = brg_tensor_grad(param);
        if (!grad)
            continue;
        while (at < optim->n_slots && optim->slots[at].param != param)
            at++;
        if (at == optim->n_slots || !is_ours_alone(&optim->slots[at], device))
            return false;
        at++;
        n_taken++;
        if (grad->numel > 0)
            list[(*n)++] = (brg_device_update){.dtype = (brg_dtype)grad->dtype,
                                               .numel = (size_t)grad->numel,
                                               .grad = brg__tensor_ptr(grad)};
    }
    for (size_t i = 0; i < optim->n_slots; i++)
        n_grads += brg_tensor_grad(optim->slots[i].param) != NULL;
    return *n > 0 && n_taken == n_grads;
}

/* *vtable: NULL if it has to be two calls. */
static brg_status find(const brg_optim *optim, const brg_params *params,
                       const brg_device_vtable **vtable,
                       const brg_device_update **list, size_t *n)
{
    const brg_device device = optim->slots[0].param->device;
    *vtable = NULL;
    if (device.type == BRG_DEVICE_CPU)
        return BRG_OK;
    brg_device_update *filled = brg__scratch(
        0, (optim->n_slots + 1) * sizeof *filled, "the list of gradients");
    if (!filled)
        return BRG_ERR_NOMEM;
    *list = filled;
    BRG_TRY(brg__device_find(device, vtable));
    if (!(*vtable)->clip_factor || !list_grads(optim, params, filled, n))
        *vtable = NULL;
    return BRG_OK;
}

/* ---- A step ------------------------------------------------------------------------ */

/* Room for the norm and the factor. */
static brg_status make_room(brg_optim *optim)
{
    if (optim->norm)
        return BRG_OK;
    brg__layout layout = {.dtype = BRG_DTYPE_F64,
                          .device = optim->slots[0].param->device,
                          .ndim = 1,
                          .shape = {2},
                          .stride = {1}};
    return brg__tensor_new(&optim->norm, &layout);
}

/* A step has failed, and its gradients are there to be seen. */
static brg_status clip_behind(const brg_params *params, double max_norm,
                              brg_status failed)
{
    brg__error_record error;
    brg__error_save(&error);
    const brg_status status = brg_clip_grad_norm(NULL, params, max_norm, false);
    brg__error_restore(&error);
    return status == BRG_OK ? failed : error.code;
}

static brg_status step_clipped(brg_optim *optim, const brg_params *params,
                               double max_norm)
{
    const brg_device_vtable *vtable;
    const brg_device_update *list = NULL;
    size_t n = 0;
    BRG_TRY(find(optim, params, &vtable, &list, &n));
    if (!vtable) {
        BRG_TRY(brg_clip_grad_norm(NULL, params, max_norm, false));
        return brg_optim_step(optim);
    }
    BRG_TRY(make_room(optim));
    double *norm = brg__tensor_ptr(optim->norm);
    BRG_TRY(vtable->clip_factor(optim->norm->device, list, n, max_norm, norm));
    optim->factor = norm + 1;
    const brg_status status = brg_optim_step(optim);
    optim->factor = NULL;
    return status == BRG_OK ? BRG_OK : clip_behind(params, max_norm, status);
}

static brg_status clipped_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return step_clipped(effect->object, effect->with, effect->f);
}

/* Who holds a part of a bucket from an earlier step, or an alias of it, would see
 * it, too. */
static brg_status note_clipped(const brg__effect *effect, brg__words *state)
{
    const brg_optim *optim = effect->object;
    BRG_TRY(brg__optim_note(effect->object, state));
    for (size_t i = 0; i < optim->n_slots; i++) {
        const brg__autograd *a = brg__autograd_of(optim->slots[i].param);
        const brg_tensor *home = a->home;
        const int32_t n = home ? brg__ref_count(&home->refs) : 0;
        const int32_t n_memory =
            home && home->storage ? brg__ref_count(&home->storage->refs) : 0;
        BRG_TRY(brg__array_push(state, (uintptr_t)n));
        BRG_TRY(brg__array_push(state, (uintptr_t)n_memory));
    }
    return BRG_OK;
}

static bool has_twins(const brg_optim *optim)
{
    for (size_t i = 0; i < optim->n_slots; i++)
        for (size_t k = 0; k < i; k++)
            if (optim->slots[i].param == optim->slots[k].param)
                return true;
    return false;
}

bool brg__optim_join_clip(const brg__effect *clip, brg__effect *step,
                          const brg__effect *last)
{
    const brg_optim *optim = step->object;
    if (!brg__optim_is_step(step) || !brg__optim_drops(last, optim) ||
        optim->n_slots == 0 || has_twins(optim))
        return false;
    step->name = "clipped_step";
    step->run = clipped_later;
    step->note = note_clipped;
    step->with = clip->object;
    step->f = clip->f;
    return true;
}
