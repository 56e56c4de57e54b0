/* SPDX-License-Identifier: Apache-2.0
 * Clipping gradients, in place. The norm is a sum over parameters in their
 * order of sums in a fixed order within each, so ranks that hold the same
 * gradients get the same bits. */
#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/optim.h>

#include <math.h>

#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/ops/op.h"
#include "core/ops/sparse.h"
#include "core/ops/squares.h"
#include "core/optim/optim.h"
#include "core/optim/wide.h"
#include "core/tensor/device.h"
#include "core/tensor/tensor.h"

/* What is done to a gradient; `x` is a factor or a limit. */
typedef enum action { SCALE, LIMIT } action;

/* The values of a sparse gradient, which gets sorted entries without
 * duplicates first. */
static brg_status sparse_values(brg_tensor **values, brg_tensor *grad)
{
    brg_tensor *sum;
    *values = NULL;
    if (!grad->sparse->is_coalesced) {
        BRG_TRY(brg__sparse_coalesce(&sum, grad));
        brg__sparse_swap(grad, sum);
        brg_release(sum);
    }
    if (grad->sparse->values->numel > 0)
        *values = grad->sparse->values;
    return BRG_OK;
}

/* The gradient as one dense run of memory; a strided one is replaced by a
 * dense copy. NULL on failure, when there is none, or nothing in it. */
static brg_status dense_grad(brg_tensor **grad, const brg_param *param)
{
    *grad = brg_tensor_grad(param->tensor);
    if (!*grad || (*grad)->numel == 0) {
        *grad = NULL;
        return BRG_OK;
    }
    if (brg__tensor_is_meta(*grad))
        return BRG_FAIL(BRG_ERR_STATE,
                        "clipping: the gradient of '%s' has no memory",
                        param->name);
    if ((*grad)->sparse)
        return sparse_values(grad, *grad);
    if ((*grad)->is_contiguous)
        return BRG_OK;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *copy = scope ? brg__contiguous_now(*grad) : NULL;
    brg_status status =
        copy ? brg_tensor_set_grad(param->tensor, copy) : brg_error_code();
    brg_scope_end(scope);
    *grad = brg_tensor_grad(param->tensor);
    return status;
}

/* Where the gradient is, by ops; waits for the device. */
static brg_status sum_squares_there(brg_tensor *grad, double *sum)
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    bool mode = brg_grad_mode_set(false);
    brg_tensor *wide =
        grad->dtype == BRG_DTYPE_F64 ? grad : brg_cast(grad, BRG_DTYPE_F32);
    brg_tensor *total = brg_sum_all(brg_square(wide));
    brg_status status = total ? brg_tensor_item(total, sum) : brg_error_code();
    (void)brg_grad_mode_set(mode);
    brg_scope_end(scope);
    return status;
}

static brg_status sum_squares(brg_tensor *grad, double *sum)
{
    if (grad->device.type != BRG_DEVICE_CPU)
        return sum_squares_there(grad, sum);
    *sum = brg__sum_squares(brg__tensor_ptr(grad), (brg_dtype)grad->dtype,
                            (size_t)grad->numel);
    return BRG_OK;
}

static brg_status change_there(brg_tensor *grad, action what, double x)
{
    const brg_op *op = what == SCALE ? &brg__op_mul_scalar : &brg__op_clamp;
    const double p[2] = {what == SCALE ? x : -x, x};
    brg_status status =
        brg__pointwise_now(op, (const brg_tensor *[]){grad}, grad, p);
    brg_tensor_touch(grad);
    return status;
}

static void act(const brg__real_kernels *kernels, void *at, size_t n,
                action what, double x)
{
    (what == SCALE ? kernels->scale : kernels->limit)(at, n, x);
}

static void change_16(const brg__optim_kernels *kernels, brg_tensor *grad,
                      action what, double x)
{
    brg__wide wide = brg__wide_of(kernels, (brg_dtype)grad->dtype);
    uint16_t *at = brg__tensor_ptr(grad);
    size_t numel = (size_t)grad->numel;
    for (size_t i = 0; i < numel; i += BRG__WIDE_BLOCK) {
        size_t n = numel - i < BRG__WIDE_BLOCK ? numel - i : BRG__WIDE_BLOCK;
        float block[BRG__WIDE_BLOCK];
        wide.load(block, at + i, n);
        act(&kernels->f32, block, n, what, x);
        wide.store(at + i, block, n);
    }
}

static brg_status change(brg_tensor *grad, action what, double x)
{
    if (grad->device.type != BRG_DEVICE_CPU)
        return change_there(grad, what, x);
    const brg__optim_kernels *kernels = brg__optim_kernels_get();
    size_t n = (size_t)grad->numel;
    if (grad->dtype == BRG_DTYPE_F64)
        act(&kernels->f64, brg__tensor_ptr(grad), n, what, x);
    else if (grad->dtype == BRG_DTYPE_F32)
        act(&kernels->f32, brg__tensor_ptr(grad), n, what, x);
    else
        change_16(kernels, grad, what, x);
    brg_tensor_touch(grad);
    return BRG_OK;
}

static brg_status change_all(const brg_params *params, action what, double x)
{
    for (size_t i = 0; i < brg_params_count(params); i++) {
        brg_tensor *grad;
        BRG_TRY(dense_grad(&grad, brg_params_at(params, i)));
        if (grad)
            BRG_TRY(change(grad, what, x));
    }
    return BRG_OK;
}

/* ---- All gradients at once, on a device that can ------------------------------ */

/* The gradients' memory, in order, if all are dense and on one device other
 * than the CPU; else *n is 0. */
static brg_status list_grads(const brg_params *params, brg_device *device,
                             const brg_device_update **list, size_t *n)
{
    size_t n_params = brg_params_count(params);
    *n = 0;
    brg_device_update *filled = brg__scratch(0, (n_params + 1) * sizeof *filled,
                                             "the list of gradients");
    if (!filled)
        return BRG_ERR_NOMEM;
    *list = filled;
    for (size_t i = 0; i < n_params; i++) {
        brg_tensor *grad;
        BRG_TRY(dense_grad(&grad, brg_params_at(params, i)));
        if (!grad)
            continue;
        bool fits = grad->device.type != BRG_DEVICE_CPU && !grad->sparse &&
                    (*n == 0 || brg__device_equal(grad->device, *device));
        if (!fits) {
            *n = 0;
            return BRG_OK;
        }
        *device = grad->device;
        filled[(*n)++] = (brg_device_update){.dtype = (brg_dtype)grad->dtype,
                                             .numel = (size_t)grad->numel,
                                             .grad = brg__tensor_ptr(grad)};
    }
    return BRG_OK;
}

/* *is_done false: not a case for a device, and nothing was changed. norm may be
 * NULL: then nothing is waited for. */
static brg_status clip_there(const brg_params *params, double max_norm,
                             double *norm, bool *is_done)
{
    const brg_device_vtable *vtable;
    const brg_device_update *list;
    brg_device device = BRG_CPU;
    size_t n;
    *is_done = false;
    BRG_TRY(list_grads(params, &device, &list, &n));
    if (n == 0)
        return BRG_OK;
    BRG_TRY(brg__device_find(device, &vtable));
    if (!vtable->clip)
        return BRG_OK;
    BRG_TRY(vtable->clip(device, list, n, max_norm, norm));
    for (size_t i = 0; i < brg_params_count(params); i++) {
        brg_tensor *grad = brg_tensor_grad(brg_params_at(params, i)->tensor);
        if (grad)
            brg_tensor_touch(grad);
    }
    *is_done = true;
    return BRG_OK;
}

/* *culprit: the first parameter whose sum is not finite, or NULL. */
static brg_status measure(const brg_params *params, double *norm,
                          const char **culprit)
{
    double total = 0.0;
    *culprit = NULL;
    for (size_t i = 0; i < brg_params_count(params); i++) {
        const brg_param *param = brg_params_at(params, i);
        brg_tensor *grad;
        BRG_TRY(dense_grad(&grad, param));
        double sum = 0.0;
        if (grad)
            BRG_TRY(sum_squares(grad, &sum));
        if (!isfinite(sum) && !*culprit)
            *culprit = param->name;
        total += sum;
    }
    *norm = sqrt(total);
    return BRG_OK;
}

static brg_status clip_norm_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return brg_clip_grad_norm(NULL, effect->object, effect->f, effect->i != 0);
}

/* What the recorded work reads and writes: the gradients. */
static brg_status note_grads(const brg__effect *effect, brg__words *state)
{
    const brg_params *params = effect->object;
    for (size_t i = 0; i < brg_params_count(params); i++) {
        const brg_tensor *grad =
            brg_tensor_grad(brg_params_at(params, i)->tensor);
        const bool has = grad && grad->storage;
        BRG_TRY(brg__array_push(state, has ? (uintptr_t)brg__tensor_ptr(grad)
                                           : (uintptr_t)0));
    }
    return BRG_OK;
}

/* All of it is work of the device. */
static brg_status change_again(const brg__effect *effect, brg__relaunch *launch)
{
    (void)effect;
    (void)launch;
    return BRG_OK;
}

static brg_status clip_value_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return brg_clip_grad_value(effect->object, effect->f);
}

static brg_status scale_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return brg_scale_grad(effect->object, effect->f);
}

brg_status brg_clip_grad_norm(double *total_norm, const brg_params *params,
                              double max_norm, bool error_if_nonfinite)
{
    BRG_CHECK_ARG(params, "brg_clip_grad_norm: params is NULL");
    BRG_CHECK_ARG(max_norm > 0.0,
                  "brg_clip_grad_norm: max_norm %g must be positive", max_norm);
    if (brg__is_traced() && total_norm && !brg__tracer_now->flush)
        return brg__tracer_refuse("brg_clip_grad_norm", "total_norm must be "
                                                        "NULL");
    if (brg__is_traced() && total_norm)
        BRG_TRY(brg__tracer_flush());
    else if (brg__is_traced())
        return brg__tracer_defer(&(brg__effect){
            .name = "clip_grad_norm",
            .run = clip_norm_later,
            /* an error needs the norm, on the host */
            .relaunch = error_if_nonfinite ? NULL : change_again,
            .note = note_grads,
            .joins = error_if_nonfinite ? NULL : brg__optim_join_clip,
            .object = (void *)(uintptr_t)params,
            .f = max_norm,
            .i = error_if_nonfinite});
    double norm = 0.0;
    const char *culprit;
    bool is_done, is_wanted = total_norm || error_if_nonfinite;
    BRG_TRY(clip_there(params, max_norm, is_wanted ? &norm : NULL, &is_done));
    if (is_done && isfinite(norm)) {
        if (total_norm)
            *total_norm = norm;
        return BRG_OK;
    }
    BRG_TRY(measure(params, &norm, &culprit));
    if (total_norm)
        *total_norm = norm;
    if (!isfinite(norm) && error_if_nonfinite)
        return BRG_FAIL(BRG_ERR_NAN,
                        "brg_clip_grad_norm: the norm of the gradients is %g, "
                        "the first that is not finite is that of '%s'",
                        norm, culprit ? culprit : "all together");
    double factor = max_norm / (norm + 1e-6);
    if (!isfinite(norm) || factor >= 1.0)
        return BRG_OK;
    return change_all(params, SCALE, factor);
}

brg_status brg_clip_grad_value(const brg_params *params, double limit)
{
    BRG_CHECK_ARG(params, "brg_clip_grad_value: params is NULL");
    BRG_CHECK_ARG(limit >= 0.0,
                  "brg_clip_grad_value: limit %g must not be negative", limit);
    if (brg__is_traced())
        return brg__tracer_defer(
            &(brg__effect){.name = "clip_grad_value",
                           .run = clip_value_later,
                           .relaunch = change_again,
                           .note = note_grads,
                           .object = (void *)(uintptr_t)params,
                           .f = limit});
    return change_all(params, LIMIT, limit);
}

brg_status brg_scale_grad(const brg_params *params, double factor)
{
    BRG_CHECK_ARG(params, "brg_scale_grad: params is NULL");
    BRG_CHECK_ARG(isfinite(factor), "brg_scale_grad: factor %g must be finite",
                  factor);
    if (brg__is_traced())
        return brg__tracer_defer(
            &(brg__effect){.name = "scale_grad",
                           .run = scale_later,
                           .relaunch = change_again,
                           .note = note_grads,
                           .object = (void *)(uintptr_t)params,
                           .f = factor});
    return change_all(params, SCALE, factor);
}
