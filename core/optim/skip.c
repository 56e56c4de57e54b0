/* SPDX-License-Identifier: Apache-2.0
 * Steps that are left out where gradients were not finite. On a device the host
 * does not know that when it queues a step: the kernel looks at the number, and
 * the host, which has counted the step, hears of it before the next one. */
#include <sched.h>

#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/optim/optim.h"
#include "core/tensor/device.h"

/* ---- What became of the last step ------------------------------------------------ */

/* It changed nothing: neither counts it nor has the master copy followed what
 * somebody else has written. */
static void take_back(brg_optim *optim)
{
    int64_t *steps = brg__tensor_ptr(optim->steps);
    for (size_t i = 0; i < optim->n_slots; i++) {
        brg__optim_slot *slot = &optim->slots[i];
        if (!slot->is_counted)
            continue;
        steps[i]--;
        if (slot->follows)
            slot->version = brg_tensor_version(slot->param) - 1;
    }
    brg_tensor_touch(optim->steps);
    optim->skip.n++;
}

brg_status brg__optim_skip_settle(brg_optim *optim)
{
    brg__optim_skip *s = &optim->skip;
    const void *value = NULL;
    if (!s->is_pending)
        return BRG_OK;
    s->is_pending = false;
    while (!value) {
        BRG_TRY(s->vtable->fetched(s->device, s->fetch, &value));
        if (!value)
            (void)sched_yield();
    }
    if (*(const float *)value != 0)
        take_back(optim);
    return BRG_OK;
}

/* ---- A step ------------------------------------------------------------------------ */

/* Of host memory, or of a device of which the host has to ask. */
static brg_status ask(const brg__optim_skip *s, bool *is_left_out)
{
    float value;
    BRG_TRY(brg__device_copy(BRG_CPU, &value, s->device,
                             brg__tensor_ptr(s->found_inf), sizeof value));
    *is_left_out = value != 0;
    return BRG_OK;
}

bool brg__optim_skip_is_there(const brg_optim *optim)
{
    const brg__optim_skip *s = &optim->skip;
    return !s->found_inf ||
           (s->vtable->fetch && s->device.type != BRG_DEVICE_CPU);
}

brg_status brg__optim_skip_ask(brg_optim *optim)
{
    brg__optim_skip *s = &optim->skip;
    if (!s->found_inf)
        return BRG_OK;
    BRG_TRY(s->vtable->fetch(s->device, &s->fetch,
                             brg__tensor_ptr(s->found_inf), sizeof(float)));
    s->is_pending = true;
    return BRG_OK;
}

brg_status brg__optim_skip_begin(brg_optim *optim, bool *is_left_out)
{
    brg__optim_skip *s = &optim->skip;
    *is_left_out = false;
    if (!s->found_inf)
        return BRG_OK;
    for (size_t i = 0; i < optim->n_slots; i++)
        optim->slots[i].is_counted = false;
    if (brg__optim_skip_is_there(optim))
        return brg__optim_skip_ask(optim);
    BRG_TRY(ask(s, is_left_out));
    s->n += *is_left_out;
    return BRG_OK;
}

/* ---- Whose steps ------------------------------------------------------------------- */

static brg_status check(const brg_optim *optim, const brg_tensor *found_inf)
{
    char text[BRG_TENSOR_TEXT_MAX];
    if (found_inf->dtype != BRG_DTYPE_F32 || found_inf->numel != 1 ||
        !found_inf->storage)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "brg_optim_set_found_inf: found_inf is %s, expected "
                        "one f32",
                        brg__tensor_text(found_inf, text));
    for (size_t i = 0; i < optim->n_slots; i++)
        if (!brg__device_equal(optim->slots[i].param->device,
                               found_inf->device))
            return BRG_FAIL(
                BRG_ERR_DEVICE,
                "brg_optim_set_found_inf: found_inf (%s) is not "
                "where '%s' is, on %s",
                brg__tensor_text(found_inf, text), optim->slots[i].name,
                brg__device_text(optim->slots[i].param->device, (char[24]){0}));
    return BRG_OK;
}

void brg__optim_skip_end(brg_optim *optim)
{
    brg__optim_skip *s = &optim->skip;
    if (s->fetch)
        s->vtable->fetch_free(s->device, s->fetch);
    brg_release(s->found_inf);
    *s = (brg__optim_skip){.n = s->n};
}

brg_status brg_optim_set_found_inf(brg_optim *optim, brg_tensor *found_inf)
{
    const brg_device_vtable *vtable = NULL;
    BRG_CHECK_ARG(optim, "brg_optim_set_found_inf: optim is NULL");
    BRG_TRY(brg__tracer_outside("brg_optim_set_found_inf"));
    if (found_inf) {
        BRG_TRY(check(optim, found_inf));
        BRG_TRY(brg__device_find(found_inf->device, &vtable));
    }
    BRG_TRY(brg__optim_skip_settle(optim));
    brg_retain(found_inf);
    brg__optim_skip_end(optim);
    optim->skip.found_inf = found_inf;
    optim->skip.vtable = vtable;
    optim->skip.device = found_inf ? found_inf->device : BRG_CPU;
    return BRG_OK;
}

uint64_t brg_optim_n_skipped(const brg_optim *optim)
{
    return optim ? optim->skip.n : 0;
}
