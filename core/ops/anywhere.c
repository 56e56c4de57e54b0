/* SPDX-License-Identifier: Apache-2.0
 * Work on whichever device a tensor is: kernels of other devices, copies
 * between devices, and the op that is one (to_device). */
#include <string.h>

#include <brigade/device.h>

#include "core/ops/convert.h"
#include "core/ops/pointwise.h"
#include "core/tensor/device.h"

static bool is_host(const brg_tensor *t)
{
    return t->device.type == BRG_DEVICE_CPU;
}

/* ---- Kernels ------------------------------------------------------------------ */

/* The device is asked once per row. */
static brg__run_fn ask_device(const brg_op *op, const brg_device_vtable *vtable,
                              int type)
{
    if (!op->slot || !vtable->kernel)
        return NULL;
    brg__run_fn run = atomic_load(&op->slot->run[type]);
    if (run)
        return run;
    run = vtable->kernel(op);
    atomic_store(&op->slot->run[type], run);
    return run;
}

brg_status brg__kernel_find(const brg_op *op, brg_device device,
                            brg__run_fn *out)
{
    const brg_device_vtable *vtable;
    *out = op->run[device.type];
    if (*out)
        return BRG_OK;
    BRG_TRY(brg__device_find(device, &vtable));
    *out = ask_device(op, vtable, device.type);
    if (*out)
        return BRG_OK;
    char text[24];
    return BRG_FAIL(BRG_ERR_UNSUPPORTED, "%s has no kernel for %s", op->name,
                    brg__device_text(device, text));
}

bool brg__kernel_exists(const brg_op *op, brg_device device)
{
    const brg_device_vtable *vtable;
    return op->run[device.type] ||
           (brg__device_find(device, &vtable) == BRG_OK &&
            ask_device(op, vtable, device.type));
}

/* A kernel with outputs that are there already. */
static brg_status run_into(const brg_op *op, const brg_tensor *const *in,
                           const brg_tensor *out, const brg_attrs *attrs)
{
    brg__run_fn run;
    BRG_TRY(brg__kernel_find(op, out->device, &run));
    brg_op_call call = {.op = op,
                        .n_in = op->n_in,
                        .n_out = 1,
                        .in = (brg_tensor *const *)in,
                        .attrs = attrs,
                        .out = {(brg_tensor *)(uintptr_t)out}};
    return run(&call);
}

brg_status brg__pointwise_now(const brg_op *op, const brg_tensor *const *in,
                              const brg_tensor *out, const double *p)
{
    const brg_attrs attrs = {.f = {p ? p[0] : 0, p ? p[1] : 0}};
    if (is_host(out)) {
        brg__pw_apply(op, in, out, attrs.f);
        return BRG_OK;
    }
    return out->numel > 0 ? run_into(op, in, out, &attrs) : BRG_OK;
}

/* ---- Copies --------------------------------------------------------------------- */

static bool is_same_run(const brg_tensor *dst, const brg_tensor *src)
{
    return dst->is_contiguous && src->is_contiguous &&
           dst->dtype == src->dtype && dst->numel == src->numel;
}

static brg_status copy_within(const brg_tensor *dst, const brg_tensor *src)
{
    brg_attrs attrs = {.i = {dst->dtype}};
    const brg_op *op = dst->dtype == src->dtype ? &brg__op_copy : &brg__op_cast;
    return run_into(op, &src, dst, &attrs);
}

/* Packed where it is, moved as bytes, unpacked where it goes. */
static brg_status copy_across(const brg_tensor *dst, const brg_tensor *src)
{
    if (is_same_run(dst, src))
        return brg__device_copy(dst->device, brg__tensor_ptr(dst), src->device,
                                brg__tensor_ptr(src), brg_tensor_nbytes(dst));
    brg_tensor *packed = NULL, *moved = NULL;
    brg_status status;
    BRG_TRY_GOTO(brg__tensor_new_like(&packed, dst, src->device), out);
    BRG_TRY_GOTO(brg__copy_now(packed, src), out);
    if (dst->is_contiguous) {
        status = copy_across(dst, packed);
        goto out;
    }
    BRG_TRY_GOTO(brg__tensor_new_like(&moved, dst, dst->device), out);
    BRG_TRY_GOTO(copy_across(moved, packed), out);
    status = brg__copy_now(dst, moved);
out:
    brg_release(packed);
    brg_release(moved);
    return status;
}

brg_status brg__copy_now(const brg_tensor *dst, const brg_tensor *src)
{
    if (dst->numel == 0)
        return BRG_OK;
    if (is_host(dst) && is_host(src)) {
        brg__copy_strided(dst, src);
        return BRG_OK;
    }
    return brg__device_equal(dst->device, src->device) ? copy_within(dst, src)
                                                       : copy_across(dst, src);
}

brg_status brg__copy_new(brg_tensor **out, const brg_tensor *t)
{
    BRG_TRY(brg__tensor_new_like(out, t, t->device));
    brg_status status = brg__copy_now(*out, t);
    if (status != BRG_OK) {
        brg_release(*out);
        *out = NULL;
    }
    return status;
}

brg_tensor *brg__contiguous_now(brg_tensor *t)
{
    brg_tensor *copy;
    if (t->is_contiguous)
        return t;
    return brg__copy_new(&copy, t) == BRG_OK ? brg__scope_adopt(copy) : NULL;
}

/* dst = value on the CPU, whatever its layout. */
static void fill_host(const brg_tensor *dst, double value)
{
    int64_t whole;
    brg__storage storage = {.data = &value};
    brg_tensor scalar = {.dtype = BRG_DTYPE_F64,
                         .numel = 1,
                         .is_contiguous = true,
                         .storage = &storage};
    if (!brg__tensor_is_float(dst) && dst->dtype != BRG_DTYPE_BOOL) {
        scalar.dtype = BRG_DTYPE_I64; /* integers wrap alike everywhere */
        whole = (int64_t)value;
        storage.data = &whole;
    }
    brg__copy_strided(dst, &scalar);
}

brg_status brg__fill_now(const brg_tensor *dst, double value)
{
    if (dst->numel == 0)
        return BRG_OK;
    if (value == 0.0 && dst->is_contiguous)
        return brg__device_zero(dst->device, brg__tensor_ptr(dst),
                                brg_tensor_nbytes(dst));
    if (is_host(dst)) {
        fill_host(dst, value);
        return BRG_OK;
    }
    brg_attrs attrs = {.f = {value}};
    return run_into(&brg__op_full_like, &dst, dst, &attrs);
}

brg_tensor *brg__to_current(brg_tensor *t)
{
    brg_device device = brg_device_get();
    return t && !brg__device_equal(t->device, device) ? brg_to(t, device) : t;
}

/* ---- to_device: i[0] type, i[1] index -------------------------------------------- */

static brg_device target_of(const brg_attrs *attrs)
{
    return (brg_device){(int16_t)attrs->i[0], (int16_t)attrs->i[1]};
}

brg_status brg__to_device_infer(brg_op_call *call)
{
    brg__infer_like(call, 0, call->in[0]);
    call->info[0].is_elsewhere = true;
    call->info[0].device = target_of(call->attrs);
    return BRG_OK;
}

brg_status brg__to_device_run(brg_op_call *call)
{
    return brg__copy_now(call->out[0], call->in[0]);
}

brg_status brg__to_device_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_to(v->grad_out[0], v->in[0]->device));
    return BRG_OK;
}

brg_tensor *brg_to(brg_tensor *t, brg_device device)
{
    if (!t || brg__device_equal(t->device, device))
        return t;
    if (brg__device_check("brg_to", device) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {device.type, device.index}};
    return brg__call1(&brg__op_to_device, t, &attrs);
}
