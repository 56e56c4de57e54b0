/* SPDX-License-Identifier: Apache-2.0
 * Making an optimizer: its slots; and questions. */
#include "core/optim/create.h"

#include <math.h>
#include <string.h>

#include "core/base/tracer.h"
#include "core/tensor/device.h"

static brg_status check_param(const brg_param *param)
{
    const brg_tensor *t = param->tensor;
    char text[BRG_TENSOR_TEXT_MAX];
    const brg_device_vtable *vtable;
    if (!t->storage)
        return BRG_FAIL(BRG_ERR_STATE, "optimizer: '%s' has no memory",
                        param->name);
    BRG_TRY(brg__device_find(t->device, &vtable));
    if (t->device.type != BRG_DEVICE_CPU && !vtable->update)
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "optimizer: '%s' is on %s, which has no optimizers",
                        param->name, vtable->name);
    if (!t->is_contiguous)
        return BRG_FAIL(BRG_ERR_SHAPE, "optimizer: '%s' (%s) is not row-major",
                        param->name, brg__tensor_text(t, text));
    return BRG_OK;
}

static brg_status check_range(const brg_param *param,
                              const brg_optim_range *range)
{
    size_t numel = (size_t)param->tensor->numel;
    BRG_CHECK_ARG(
        !range || (range->first <= numel && range->n <= numel - range->first),
        "optimizer: the range of %zu elements from %zu is not inside "
        "'%s', which has %zu",
        range->n, range->first, param->name, numel);
    return BRG_OK;
}

/* `range` may be NULL: all of it. */
static brg_status add_slot(brg_optim *optim, const brg_param *param,
                           const brg_optim_range *range)
{
    BRG_TRY(check_param(param));
    BRG_TRY(check_range(param, range));
    brg__optim_slot *slot = &optim->slots[optim->n_slots++];
    slot->param = brg_retain(param->tensor);
    slot->is_part = range != NULL;
    slot->first = range ? range->first : 0;
    slot->n = range ? range->n : (size_t)param->tensor->numel;
    slot->lr_scale = 1.0;
    slot->dtype = (brg_dtype)param->tensor->dtype;
    slot->ndim = param->tensor->ndim;
    memcpy(slot->shape, param->tensor->shape, sizeof slot->shape);
    /* One off: the master copy is taken from the parameter at first. */
    slot->version = brg_tensor_version(param->tensor) - 1;
    slot->name = brg__mem_strdup(param->name);
    if (!slot->name)
        return BRG_ERR_NOMEM;
    return BRG_OK;
}

/* What a step fills anew, an item for each slot. */
static brg_status make_room(brg_optim *optim, size_t n)
{
    optim->runs =
        brg__mem_alloc_array(n, sizeof *optim->runs, "optimizer runs");
    optim->shared =
        brg__mem_alloc_array(n, sizeof *optim->shared, "optimizer scalars");
    optim->updates =
        brg__mem_alloc_array(n, sizeof *optim->updates, "optimizer updates");
    return optim->runs && optim->shared && optim->updates ? BRG_OK
                                                          : BRG_ERR_NOMEM;
}

static brg_status add_slots(brg_optim *optim, const brg_params *params,
                            const brg_optim_range *ranges)
{
    size_t n = 0;
    for (size_t i = 0; i < brg_params_count(params); i++)
        n += brg_params_at(params, i)->kind == BRG_PARAM_TRAINED;
    optim->slots =
        brg__mem_alloc_array(n, sizeof *optim->slots, "optimizer slots");
    if (!optim->slots)
        return BRG_ERR_NOMEM;
    BRG_TRY(make_room(optim, n));
    for (size_t i = 0; i < brg_params_count(params); i++)
        if (brg_params_at(params, i)->kind == BRG_PARAM_TRAINED)
            BRG_TRY(add_slot(optim, brg_params_at(params, i),
                             ranges ? &ranges[optim->n_slots] : NULL));
    return brg__optim_make_state(optim);
}

brg_status brg__optim_create(brg_optim **out, const brg_optim *blank,
                             const brg_params *params,
                             const brg_optim_range *ranges, double lr,
                             double weight_decay, int decay_min_ndim)
{
    BRG_CHECK_ARG(params, "optimizer: params is NULL");
    brg_optim *optim = BRG__NEW(brg_optim);
    if (!optim)
        return BRG_ERR_NOMEM;
    *optim = *blank;
    brg_status status;
    BRG_TRY_GOTO(brg_optim_set_lr(optim, lr), out);
    BRG_TRY_GOTO(add_slots(optim, params, ranges), out);
    for (size_t i = 0; i < optim->n_slots; i++)
        if (optim->slots[i].ndim >= decay_min_ndim)
            optim->slots[i].weight_decay = weight_decay;
    *out = optim;
    return BRG_OK;
out:
    brg_optim_destroy(optim);
    return status;
}

void brg_optim_destroy(brg_optim *optim)
{
    if (!optim)
        return;
    brg__optim_skip_end(optim);
    for (size_t i = 0; i < optim->n_slots; i++) {
        brg__optim_slot *slot = &optim->slots[i];
        brg_release(slot->param);
        brg_release(slot->master);
        for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
            brg_release(slot->state[k]);
        brg__mem_free(slot->name);
    }
    brg_release(optim->steps);
    brg_release(optim->norm);
    for (size_t i = 0; i < optim->state.n; i++)
        brg__mem_free((char *)optim->state.at[i].name);
    brg__array_deinit(&optim->state);
    brg__array_deinit(&optim->owners);
    brg__mem_free(optim->updates);
    brg__mem_free(optim->shared);
    brg__mem_free(optim->runs);
    brg__mem_free(optim->order);
    brg__mem_free(optim->slots);
    brg__mem_free(optim);
}

/* ---- Questions ------------------------------------------------------------------ */

double brg_optim_lr(const brg_optim *optim)
{
    return optim->lr;
}

brg_status brg_optim_set_lr(brg_optim *optim, double lr)
{
    BRG_CHECK_ARG(optim, "brg_optim_set_lr: optim is NULL");
    if (brg__is_traced())
        BRG_TRY(brg__tracer_settle("brg_optim_set_lr",
                                   "set the rate before the call"));
    BRG_CHECK_ARG(lr >= 0.0 && isfinite(lr),
                  "optimizer: lr %g must be finite and not negative", lr);
    optim->lr = lr;
    return BRG_OK;
}

brg_status brg_optim_set_param(brg_optim *optim, const char *name,
                               double lr_scale, double weight_decay)
{
    BRG_CHECK_ARG(optim && name, "brg_optim_set_param: %s is NULL",
                  optim ? "name" : "optim");
    BRG_TRY(brg__tracer_outside("brg_optim_set_param"));
    BRG_CHECK_ARG(lr_scale >= 0.0 && isfinite(lr_scale) &&
                      weight_decay >= 0.0 && isfinite(weight_decay),
                  "brg_optim_set_param: '%s': lr_scale %g and weight_decay %g "
                  "must be finite and not negative",
                  name, lr_scale, weight_decay);
    for (size_t i = 0; i < optim->n_slots; i++) {
        brg__optim_slot *slot = &optim->slots[i];
        if (strcmp(slot->name, name) != 0)
            continue;
        slot->lr_scale = lr_scale;
        slot->weight_decay = weight_decay;
        return BRG_OK;
    }
    return BRG_FAIL(BRG_ERR_NOT_FOUND,
                    "brg_optim_set_param: there is no parameter '%s'", name);
}

const char *brg_optim_kind(const brg_optim *optim)
{
    return optim->rule->name;
}

size_t brg_optim_state_count(const brg_optim *optim)
{
    return optim->state.n;
}

const brg_named_tensor *brg_optim_state_at(const brg_optim *optim, size_t i)
{
    /* "steps" as they are; if that fails, the next step says it. */
    (void)brg__optim_skip_settle((brg_optim *)(uintptr_t)optim);
    return i < optim->state.n ? &optim->state.at[i] : NULL;
}

static const brg__optim_slot *owner_of(const brg_optim *optim, size_t i)
{
    return i < optim->owners.n ? optim->owners.at[i] : NULL;
}

brg_tensor *brg_optim_state_param(const brg_optim *optim, size_t i)
{
    const brg__optim_slot *slot = owner_of(optim, i);
    return slot ? slot->param : NULL;
}

brg_optim_range brg_optim_state_range(const brg_optim *optim, size_t i)
{
    const brg__optim_slot *slot = owner_of(optim, i);
    return slot ? (brg_optim_range){slot->first, slot->n}
                : (brg_optim_range){0, 0};
}
