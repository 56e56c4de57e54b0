/* SPDX-License-Identifier: Apache-2.0
 * One step: every gradient is checked, then all slots are updated, those on the
 * CPU by one call of the loops for each dtype. */
#include <brigade/autograd.h>

#include <string.h>

#include "core/autograd/node.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/tracer.h"
#include "core/ops/op.h"
#include "core/ops/sparse.h"
#include "core/optim/optim.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

/* ---- Checks ----------------------------------------------------------------------- */

static bool has_shape(const brg__optim_slot *slot, const brg_tensor *t)
{
    if (t->ndim != slot->ndim || (brg_dtype)t->dtype != slot->dtype)
        return false;
    for (int i = 0; i < slot->ndim; i++)
        if (t->shape[i] != slot->shape[i])
            return false;
    return true;
}

static brg_status fail_slot(const brg__optim_slot *slot, const brg_tensor *grad)
{
    const brg_tensor *p = slot->param;
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_SHAPE_TEXT_MAX];
    if (!has_shape(slot, p) || !p->is_contiguous)
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
    if (!has_shape(slot, grad))
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "brg_optim_step: the gradient of '%s' is %s, expected "
                        "%s",
                        slot->name, brg__tensor_text(grad, a),
                        brg__shape_text(slot->ndim, slot->shape, b));
    return BRG_FAIL(BRG_ERR_DEVICE,
                    "brg_optim_step: the gradient of '%s' is not in the "
                    "memory that the parameter is in",
                    slot->name);
}

static inline brg_status check_slot(const brg__optim_slot *slot,
                                    const brg_tensor *grad)
{
    const brg_tensor *p = slot->param;
    const bool fits = has_shape(slot, p) && p->is_contiguous &&
                      has_shape(slot, grad) &&
                      brg__device_equal(grad->device, p->device) &&
                      !brg__tensor_is_meta(grad);
    return fits ? BRG_OK : fail_slot(slot, grad);
}

/* The gradient in the form that the loops take: row-major, or sorted without
 * duplicates. */
static brg_status copy_grad(brg__optim_slot *slot)
{
    brg_tensor *grad = slot->grad;
    slot->grad = NULL;
    slot->has_copy = true;
    if (grad->sparse)
        return brg__sparse_coalesce(&slot->grad, grad);
    brg_scope *scope = brg_scope_begin();
    slot->grad = scope ? brg_retain(brg__contiguous_now(grad)) : NULL;
    brg_scope_end(scope);
    return slot->grad ? BRG_OK : brg_error_code();
}

/* slot->grad is NULL if there is nothing to do. */
static inline brg_status take_grad(brg__optim_slot *slot)
{
    const brg_tensor *p = slot->param;
    slot->grad = p->grad_info ? brg__autograd_of(p)->grad : NULL;
    if (!slot->grad)
        return BRG_OK;
    BRG_TRY(check_slot(slot, slot->grad));
    if (slot->grad->numel == 0)
        slot->grad = NULL;
    return BRG_OK;
}

static void drop_copies(brg_optim *optim)
{
    for (size_t i = 0; i < optim->n_slots; i++) {
        brg__optim_slot *slot = &optim->slots[i];
        if (!slot->has_copy)
            continue;
        brg_release(slot->grad);
        slot->grad = NULL;
        slot->has_copy = false;
    }
}

/* ---- Scalars ------------------------------------------------------------------------- */

/* Weights, biases and norms in turn may differ in decay and rate. */
#define LOOK_BACK 4

const brg__step_scalars *brg__optim_scalars(brg_optim *optim, size_t i)
{
    const brg__optim_slot *slot = &optim->slots[i];
    const int64_t step = ((int64_t *)brg__tensor_ptr(optim->steps))[i] + 1;
    brg__shared_scalars *end = optim->shared + optim->n_shared, *s = end;
    for (int k = 0; k < LOOK_BACK && s > optim->shared; k++) {
        s--;
        if (s->step == step && s->lr_scale == slot->lr_scale &&
            s->weight_decay == slot->weight_decay)
            return &s->scalars;
    }
    optim->n_shared++;
    end->step = step;
    end->lr_scale = slot->lr_scale;
    end->weight_decay = slot->weight_decay;
    optim->rule->prepare(optim, slot, step, &end->scalars);
    return &end->scalars;
}

/* ---- Runs ------------------------------------------------------------------------------- */

/* All that the slot owns, in its next step. */
static inline void fill_run(brg_optim *optim, size_t i, brg__run *run)
{
    const brg__optim_slot *slot = &optim->slots[i];
    const size_t at = slot->first * brg__tensor_item_size(slot->param);
    run->param = (char *)brg__tensor_ptr(slot->param) + at;
    run->grad = slot->grad->sparse
                    ? NULL
                    : (const char *)brg__tensor_ptr(slot->grad) + at;
    for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
        run->state[k] = slot->state[k] ? optim->block + slot->at +
                                             (size_t)k * optim->block_kind
                                       : NULL;
    run->master = slot->master ? brg__tensor_ptr(slot->master) : NULL;
    run->scalars = brg__optim_scalars(optim, i);
    run->n = slot->n;
    run->dtype = slot->dtype;
    run->follows =
        slot->master && brg_tensor_version(slot->param) != slot->version;
}

static bool touches(const void *a, size_t nbytes, const void *b)
{
    return (const char *)a + nbytes == (const char *)b;
}

/* b goes on where a ends, in every array. */
static inline bool goes_on(const brg__run *a, const brg__run *b)
{
    const bool is_wide = a->dtype == BRG_DTYPE_F64;
    const size_t n_real = a->n * (is_wide ? sizeof(double) : sizeof(float));
    const size_t n = a->master ? n_real / 2 : n_real;
    if (!touches(a->param, n, b->param) || !touches(a->grad, n, b->grad) ||
        a->dtype != b->dtype || a->scalars != b->scalars ||
        a->follows != b->follows)
        return false;
    for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
        if (a->state[k] && !touches(a->state[k], n_real, b->state[k]))
            return false;
    return !a->master || touches(a->master, n_real, b->master);
}

/* Looks at all gradients and lists what is to be done on the CPU, sorted by
 * dtype, but for sparse ones. Nothing is changed yet. */
static brg_status list_runs(brg_optim *optim)
{
    brg__run *run = optim->runs;
    for (size_t k = 0; k < optim->n_order; k++) {
        const size_t i = optim->order[k];
        brg__optim_slot *slot = &optim->slots[i];
        BRG_TRY(take_grad(slot));
        if (slot->grad && (slot->grad->sparse || !slot->grad->is_contiguous))
            BRG_TRY(copy_grad(slot));
        if (!slot->grad || slot->grad->sparse || slot->n == 0)
            continue;
        fill_run(optim, i, run);
        if (run > optim->runs && goes_on(run - 1, run))
            run[-1].n += run->n;
        else
            run++;
    }
    optim->n_runs = (size_t)(run - optim->runs);
    return BRG_OK;
}

static brg_status check_devices(brg_optim *optim)
{
    for (size_t i = 0; i < optim->n_slots; i++) {
        brg__optim_slot *slot = &optim->slots[i];
        if (slot->param->device.type == BRG_DEVICE_CPU)
            continue;
        BRG_TRY(take_grad(slot));
        if (slot->grad)
            BRG_TRY(brg__optim_check_device(slot, slot->grad));
    }
    return BRG_OK;
}

/* ---- Updates ----------------------------------------------------------------------- */

/* Counts the step of every slot that has a gradient; those of sparse ones are
 * done here. */
static void count_steps(brg_optim *optim)
{
    int64_t *steps = brg__tensor_ptr(optim->steps);
    for (size_t k = 0; k < optim->n_order; k++) {
        const size_t i = optim->order[k];
        brg__optim_slot *slot = &optim->slots[i];
        if (!slot->grad)
            continue;
        if (slot->grad->sparse) {
            brg__run run;
            fill_run(optim, i, &run);
            brg__optim_step_places(optim, slot, &run);
        }
        steps[i]++;
        brg_tensor_touch(slot->param);
        if (slot->master)
            slot->version = brg_tensor_version(slot->param);
    }
}

/* One call of the loops for each dtype. */
static void update_runs(const brg_optim *optim)
{
    const brg__update_fn *update =
        optim->rule->update(brg__optim_kernels_get());
    const brg__run *run = optim->runs, *end = run + optim->n_runs;
    while (run < end) {
        const brg__run *first = run;
        while (run < end && run->dtype == first->dtype)
            run++;
        update[first->dtype](first, (size_t)(run - first));
    }
}

/* Only asked if nothing is listed. */
static void warn_if_idle(brg_optim *optim)
{
    for (size_t i = 0; i < optim->n_slots; i++)
        if (brg_tensor_grad(optim->slots[i].param))
            return;
    optim->has_warned = true;
    brg__log(BRG_LOG_WARN, "optim",
             "brg_optim_step: none of %zu parameters has a gradient, so none "
             "changes (said once): is brg_backward called first?",
             optim->n_slots);
}

static brg_status step(brg_optim *optim)
{
    const bool is_host = optim->n_order == optim->n_slots;
    bool is_left_out;
    optim->n_shared = 0;
    BRG_TRY(brg__optim_skip_settle(optim));
    BRG_TRY(list_runs(optim));
    if (!is_host)
        BRG_TRY(check_devices(optim));
    if (optim->n_runs == 0 && optim->n_slots > 0 && !optim->has_warned)
        warn_if_idle(optim);
    BRG_TRY(brg__optim_skip_begin(optim, &is_left_out));
    if (is_left_out)
        return BRG_OK;
    count_steps(optim);
    update_runs(optim);
    return is_host ? BRG_OK : brg__optim_step_devices(optim);
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

static brg_status step_again(const brg__effect *effect, brg__relaunch *launch)
{
    return brg__optim_relaunch(effect->object, launch);
}

static brg_status step_launched(const brg__effect *effect)
{
    return brg__optim_skip_ask(effect->object);
}

/* Gradients are again what they were. */
static brg_status zero_again(const brg__effect *effect, brg__relaunch *launch)
{
    (void)effect;
    (void)launch;
    return BRG_OK;
}

bool brg__optim_is_step(const brg__effect *effect)
{
    return effect->run == step_later;
}

bool brg__optim_drops(const brg__effect *effect, const brg_optim *optim)
{
    return effect->run == zero_later && effect->object == optim &&
           effect->i == 0;
}

brg_status brg_optim_step(brg_optim *optim)
{
    if (brg__is_traced() && optim)
        return brg__tracer_defer(&(brg__effect){.name = "optim_step",
                                                .run = step_later,
                                                .changes = changes_param,
                                                .relaunch = step_again,
                                                .launched = step_launched,
                                                .note = note_step,
                                                .object = optim});
    BRG_CHECK_ARG(optim, "brg_optim_step: optim is NULL");
    const brg_status status = step(optim);
    drop_copies(optim);
    return status;
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
