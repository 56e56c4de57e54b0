/* SPDX-License-Identifier: Apache-2.0
 * The step of parameters that are not on the CPU: the device changes all of
 * them in few kernels. */
#include <brigade/autograd.h>

#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/ops/sparse.h"
#include "core/optim/optim.h"
#include "core/tensor/device.h"

brg_status brg__optim_check_device(const brg__optim_slot *slot,
                                   const brg_tensor *grad)
{
    char text[BRG_TENSOR_TEXT_MAX];
    const bool is_taken =
        grad->sparse ? brg__sparse_has_slot(grad->device) : grad->is_contiguous;
    if (is_taken)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "brg_optim_step: the gradient of '%s' (%s) is %s, which %s "
                    "does not take",
                    slot->name, brg__tensor_text(grad, text),
                    grad->sparse ? "sparse" : "strided",
                    brg__device_text(grad->device, (char[24]){0}));
}

static void fill_update(brg_optim *optim, size_t i, const brg_tensor *grad,
                        brg_device_update *u)
{
    brg__optim_slot *slot = &optim->slots[i];
    int64_t *steps = brg__tensor_ptr(optim->steps);
    size_t at = slot->first * brg_dtype_size(slot->dtype);
    *u = (brg_device_update){
        .slot = i,
        .dtype = slot->dtype,
        .numel = slot->n,
        .param = (char *)brg__tensor_ptr(slot->param) + at,
        .grad = grad->sparse ? NULL : (const char *)brg__tensor_ptr(grad) + at,
        .master = slot->master ? brg__tensor_ptr(slot->master) : NULL,
        .found_inf = optim->skip.found_inf
                         ? brg__tensor_ptr(optim->skip.found_inf)
                         : NULL,
        .follows = brg_tensor_version(slot->param) != slot->version,
        .factor = optim->factor};
    optim->rule->describe(brg__optim_scalars(optim, i), u);
    steps[i]++;
    slot->is_counted = true;
    slot->follows = u->follows;
    for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
        if (slot->state[k])
            u->state[k] = brg__tensor_ptr(slot->state[k]);
    brg_tensor_touch(slot->param);
    slot->version = brg_tensor_version(slot->param);
}

static brg_status flush(brg_optim *optim, brg_device device, size_t *n)
{
    const brg_device_vtable *vtable;
    if (*n == 0)
        return BRG_OK;
    BRG_TRY(brg__device_find(device, &vtable));
    BRG_TRY(vtable->update(device, optim->updates, *n));
    *n = 0;
    return BRG_OK;
}

brg_status brg__optim_step_devices(brg_optim *optim)
{
    size_t n = 0;
    brg_device device = BRG_CPU;
    for (size_t i = 0; i < optim->n_slots; i++) {
        const brg__optim_slot *slot = &optim->slots[i];
        if (!slot->grad || slot->param->device.type == BRG_DEVICE_CPU)
            continue;
        if (!brg__device_equal(device, slot->param->device))
            BRG_TRY(flush(optim, device, &n));
        device = slot->param->device;
        brg_device_update *next = &optim->updates[n];
        fill_update(optim, i, slot->grad, next);
        if (!slot->grad->sparse)
            n += slot->n > 0;
        else if (slot->n > 0)
            BRG_TRY(brg__sparse_update_there(slot->grad, next, slot->first));
    }
    return flush(optim, device, &n);
}

/* ---- A step that is launched again ------------------------------------------------- */

static brg_status note(brg__words *to, const brg_tensor *t)
{
    return brg__array_push(to,
                           t && t->storage ? (uintptr_t)brg__tensor_ptr(t) : 0);
}

/* A step that was left out may leave a master copy behind its parameter, which
 * has to be known before a launch is chosen. */
static bool is_in_doubt(const brg_optim *optim)
{
    bool follows = false;
    for (size_t i = 0; optim->skip.is_pending && i < optim->n_slots; i++)
        follows |= optim->slots[i].is_counted && optim->slots[i].follows;
    return follows;
}

brg_status brg__optim_note(brg_optim *optim, brg__words *state)
{
    if (!brg__optim_skip_is_there(optim))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "an optimizer of whose steps the host decides");
    if (is_in_doubt(optim))
        BRG_TRY(brg__optim_skip_settle(optim));
    BRG_TRY(note(state, optim->skip.found_inf));
    for (size_t i = 0; i < optim->n_slots; i++) {
        const brg__optim_slot *slot = &optim->slots[i];
        const bool follows = brg_tensor_version(slot->param) != slot->version;
        if (slot->param->device.type == BRG_DEVICE_CPU ||
            !brg__device_equal(slot->param->device,
                               optim->slots[0].param->device))
            return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                            "an optimizer of parameters on several devices");
        BRG_TRY(note(state, slot->param));
        BRG_TRY(note(state, brg_tensor_grad(slot->param)));
        BRG_TRY(note(state, slot->master));
        for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
            BRG_TRY(note(state, slot->state[k]));
        BRG_TRY(brg__array_push(state, (uintptr_t)follows));
    }
    return BRG_OK;
}

brg_status brg__optim_relaunch(brg_optim *optim, brg__relaunch *launch)
{
    int64_t *steps = brg__tensor_ptr(optim->steps);
    brg_device_update *updates;
    size_t n;
    BRG_TRY(brg__optim_skip_settle(optim));
    for (size_t i = 0; i < optim->n_slots; i++)
        optim->slots[i].is_counted = false;
    launch->vtable->graph_updates(launch->device, launch->graph,
                                  launch->n_updates++, &updates, &n);
    optim->n_shared = 0;
    for (size_t k = 0; k < n; k++) {
        const size_t i = updates[k].slot;
        brg__optim_slot *slot = &optim->slots[i];
        optim->rule->describe(brg__optim_scalars(optim, i), &updates[k]);
        steps[i]++;
        slot->is_counted = true;
        slot->follows = updates[k].follows;
        brg_tensor_touch(slot->param);
        slot->version = brg_tensor_version(slot->param);
    }
    return BRG_OK;
}
