/* SPDX-License-Identifier: Apache-2.0
 * One step: every slot is checked, then every slot is updated, in one pass
 * over its memory each. */
#include <brigade/autograd.h>

#include <string.h>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/tracer.h"
#include "core/ops/op.h"
#include "core/ops/sparse.h"
#include "core/optim/optim.h"
#include "core/optim/wide.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

/* ---- Checks ----------------------------------------------------------------------- */

static brg_status check_slot(const brg__slot *slot, const brg_tensor *grad)
{
    const brg_tensor *p = slot->param;
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_SHAPE_TEXT_MAX];
    if ((brg_dtype)p->dtype != slot->dtype || !p->is_contiguous ||
        !brg__shape_equal(p->ndim, p->shape, slot->ndim, slot->shape))
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_optim_step: parameter '%s' is now %s, the "
                        "optimizer was made for %s%s",
                        slot->name, brg__tensor_text(p, a),
                        brg_dtype_name(slot->dtype),
                        brg__shape_text(slot->ndim, slot->shape, b));
    if ((brg_dtype)grad->dtype != slot->dtype)
        return BRG_FAIL(BRG_ERR_DTYPE,
                        "brg_optim_step: the gradient of '%s' is %s, expected "
                        "%s",
                        slot->name, brg__tensor_text(grad, a),
                        brg_dtype_name(slot->dtype));
    if (!brg__shape_equal(grad->ndim, grad->shape, slot->ndim, slot->shape))
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "brg_optim_step: the gradient of '%s' is %s, expected "
                        "%s",
                        slot->name, brg__tensor_text(grad, a),
                        brg__shape_text(slot->ndim, slot->shape, b));
    if (!brg__device_equal(grad->device, p->device) ||
        brg__tensor_is_meta(grad))
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "brg_optim_step: the gradient of '%s' is not in the "
                        "memory that the parameter is in",
                        slot->name);
    return BRG_OK;
}

static brg_status check_slots(brg_optim *optim)
{
    BRG_CHECK_ARG(optim, "brg_optim_step: optim is NULL");
    bool has_gradient = false;
    for (size_t i = 0; i < optim->n_slots; i++) {
        const brg_tensor *grad = brg_tensor_grad(optim->slots[i].param);
        if (!grad)
            continue;
        has_gradient = true;
        BRG_TRY(check_slot(&optim->slots[i], grad));
    }
    if (!has_gradient && optim->n_slots > 0 && !optim->has_warned) {
        optim->has_warned = true;
        brg__log(BRG_LOG_WARN, "optim",
                 "brg_optim_step: none of %zu parameters has a gradient, so "
                 "none changes (said once): is brg_backward called first?",
                 optim->n_slots);
    }
    return BRG_OK;
}

/* ---- Updates ----------------------------------------------------------------------- */

/* Elements of a parameter that one run of the rule updates, of those that its
 * slot owns. */
typedef struct range {
    const void *grad;
    size_t first;
    size_t n;
    bool follows; /* the master copy follows the parameter first */
} range;

static void update_real(const brg_optim *optim, const brg__slot *slot,
                        const range *r, const brg__step_scalars *scalars)
{
    const brg__optim_kernels *kernels = brg__optim_kernels_get();
    bool is_f64 = slot->dtype == BRG_DTYPE_F64;
    size_t size = is_f64 ? sizeof(double) : sizeof(float);
    size_t at = (r->first - slot->first) * size;
    brg__run run = {.param =
                        (char *)brg__tensor_ptr(slot->param) + r->first * size,
                    .grad = r->grad,
                    .n = r->n};
    for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
        if (slot->state[k])
            run.state[k] = (char *)brg__tensor_ptr(slot->state[k]) + at;
    optim->rule->update(is_f64 ? &kernels->f64 : &kernels->f32, &run, scalars);
}

/* The parameter was written by somebody else: where the master copy does not
 * round to it, take its value. */
static void follow_param(float *master, const uint16_t *param, size_t n,
                         const brg__wide *wide)
{
    uint16_t rounded[BRG__WIDE_BLOCK];
    float value[BRG__WIDE_BLOCK];
    wide->store(rounded, master, n);
    wide->load(value, param, n);
    for (size_t i = 0; i < n; i++)
        if (rounded[i] != param[i])
            master[i] = value[i];
}

static void update_16(const brg_optim *optim, const brg__slot *slot,
                      const range *r, const brg__step_scalars *scalars)
{
    const brg__optim_kernels *kernels = brg__optim_kernels_get();
    brg__wide wide = brg__wide_of(kernels, slot->dtype);
    uint16_t *param = (uint16_t *)brg__tensor_ptr(slot->param) + r->first;
    const uint16_t *narrow = r->grad;
    size_t at = r->first - slot->first;
    float *master = (float *)brg__tensor_ptr(slot->master) + at;
    float *state[BRG__OPTIM_MAX_STATE] = {NULL};
    for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
        if (slot->state[k])
            state[k] = (float *)brg__tensor_ptr(slot->state[k]) + at;
    for (size_t i = 0; i < r->n; i += BRG__WIDE_BLOCK) {
        size_t n = r->n - i < BRG__WIDE_BLOCK ? r->n - i : BRG__WIDE_BLOCK;
        float block[BRG__WIDE_BLOCK];
        wide.load(block, narrow + i, n);
        if (r->follows)
            follow_param(master + i, param + i, n, &wide);
        brg__run run = {.param = master + i, .grad = block, .n = n};
        for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
            run.state[k] = state[k] ? state[k] + i : NULL;
        optim->rule->update(&kernels->f32, &run, scalars);
        wide.store(param + i, master + i, n);
    }
}

/* What the slot owns of a range of its parameter. */
static range owned(const brg__slot *slot, const range *r)
{
    size_t end = slot->first + slot->n, first = r->first,
           last = r->first + r->n;
    first = first < slot->first ? slot->first : first;
    last = last > end ? end : last;
    range part = *r;
    part.first = first;
    part.n = last > first ? last - first : 0;
    part.grad = (const char *)r->grad +
                (first - r->first) * brg_dtype_size(slot->dtype);
    return part;
}

static void update(const brg_optim *optim, const brg__slot *slot,
                   const range *r, const brg__step_scalars *scalars)
{
    range part = owned(slot, r);
    if (part.n > 0)
        (slot->master ? update_16 : update_real)(optim, slot, &part, scalars);
}

static void follow_all(const brg__slot *slot)
{
    brg__wide wide = brg__wide_of(brg__optim_kernels_get(), slot->dtype);
    const uint16_t *param =
        (const uint16_t *)brg__tensor_ptr(slot->param) + slot->first;
    float *master = brg__tensor_ptr(slot->master);
    size_t numel = slot->n;
    for (size_t i = 0; i < numel; i += BRG__WIDE_BLOCK)
        follow_param(master + i, param + i,
                     numel - i < BRG__WIDE_BLOCK ? numel - i : BRG__WIDE_BLOCK,
                     &wide);
}

/* Only at the places that the gradient has. */
static void update_places(const brg_optim *optim, const brg__slot *slot,
                          const brg_tensor *grad, bool is_foreign,
                          const brg__step_scalars *scalars)
{
    const brg_tensor *values = grad->sparse->values;
    size_t n = (size_t)values->stride[0];
    if (is_foreign && slot->master)
        follow_all(slot);
    if (values->numel == 0)
        return;
    const char *from = brg__tensor_ptr(values);
    for (int64_t k = 0; k < brg__sparse_nnz(grad); k++) {
        range r = {.grad = from + (size_t)k * n * brg__tensor_item_size(values),
                   .first = (size_t)brg__sparse_place(grad, k) * n,
                   .n = n};
        update(optim, slot, &r, scalars);
    }
}

/* The gradient in the form that the loops take, retained: row-major, or
 * sorted without duplicates. */
static brg_status prepare_grad(brg_tensor **out, brg_tensor *grad)
{
    if (grad->sparse)
        return brg__sparse_coalesce(out, grad);
    *out = brg_retain(grad);
    if (grad->is_contiguous)
        return BRG_OK;
    brg_release(grad);
    brg_scope *scope = brg_scope_begin();
    *out = scope ? brg_retain(brg__contiguous_now(grad)) : NULL;
    brg_scope_end(scope);
    return *out ? BRG_OK : brg_error_code();
}

static brg_status update_slot(brg_optim *optim, size_t i)
{
    brg__slot *slot = &optim->slots[i];
    brg_tensor *grad = brg_tensor_grad(slot->param);
    if (!grad || grad->numel == 0 || slot->param->device.type != BRG_DEVICE_CPU)
        return BRG_OK;
    BRG_TRY(prepare_grad(&grad, grad));
    int64_t *steps = brg__tensor_ptr(optim->steps);
    bool is_foreign = brg_tensor_version(slot->param) != slot->version;
    brg__step_scalars scalars;
    optim->rule->prepare(optim, slot, ++steps[i], &scalars);
    if (grad->sparse) {
        update_places(optim, slot, grad, is_foreign, &scalars);
    } else {
        range all = {.grad = brg__tensor_ptr(grad),
                     .n = (size_t)slot->param->numel,
                     .follows = is_foreign};
        update(optim, slot, &all, &scalars);
    }
    brg_release(grad);
    brg_tensor_touch(slot->param);
    slot->version = brg_tensor_version(slot->param);
    return BRG_OK;
}

static brg_status step_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return brg_optim_step(effect->object);
}

static bool changes_param(const brg__effect *effect, const brg_tensor *tensor)
{
    const brg_optim *optim = effect->object;
    for (size_t i = 0; i < optim->n_slots; i++)
        if (brg_tensor_shares_storage(optim->slots[i].param, tensor))
            return true;
    return false;
}

static brg_status zero_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return brg_optim_zero_grad(effect->object, effect->i != 0);
}

static brg_status note_step(const brg__effect *effect, brg__words *state)
{
    return brg__optim_note(effect->object, state);
}

static void step_again(const brg__effect *effect, brg__relaunch *launch)
{
    brg__optim_relaunch(effect->object, launch);
}

/* Gradients are again what they were. */
static void zero_again(const brg__effect *effect, brg__relaunch *launch)
{
    (void)effect;
    (void)launch;
}

brg_status brg_optim_step(brg_optim *optim)
{
    if (brg__is_traced() && optim)
        return brg__tracer_defer(&(brg__effect){.name = "optim_step",
                                                .run = step_later,
                                                .changes = changes_param,
                                                .relaunch = step_again,
                                                .note = note_step,
                                                .object = optim});
    BRG_TRY(check_slots(optim));
    for (size_t i = 0; i < optim->n_slots; i++)
        BRG_TRY(update_slot(optim, i));
    return brg__optim_step_devices(optim);
}

brg_status brg_optim_zero_grad(brg_optim *optim, bool keep_memory)
{
    BRG_CHECK_ARG(optim, "brg_optim_zero_grad: optim is NULL");
    if (brg__is_traced())
        return brg__tracer_defer(&(brg__effect){.name = "zero_grad",
                                                .run = zero_later,
                                                .relaunch = zero_again,
                                                .note = note_step,
                                                .object = optim,
                                                .i = keep_memory});
    for (size_t i = 0; i < optim->n_slots; i++) {
        brg_tensor *param = optim->slots[i].param;
        brg_tensor *grad = brg_tensor_grad(param);
        if (!grad)
            continue;
        if (!keep_memory || !grad->is_contiguous || !grad->storage) {
            BRG_TRY(brg_tensor_set_grad(param, NULL));
            continue;
        }
        if (grad->numel > 0)
            BRG_TRY(brg__device_zero(grad->device, brg__tensor_ptr(grad),
                                     brg_tensor_nbytes(grad)));
        brg_tensor_touch(grad);
    }
    return BRG_OK;
}
