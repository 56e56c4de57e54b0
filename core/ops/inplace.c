/* SPDX-License-Identifier: Apache-2.0
 * Changing tensors in place, and the plain access to their values that needs
 * a kernel: fill, item, read, write. */
#include <brigade/autograd.h>
#include <brigade/ops_pointwise.h>

#include <string.h>

#include "core/base/tracer.h"
#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "core/ops/pointwise.h"
#include "core/ops/sparse.h"
#include "core/tensor/device.h"

/* ---- Checks -------------------------------------------------------------- */

static brg_status check_memory(const char *name, const brg_tensor *t)
{
    if (!t)
        return brg__error_pending("%s: the tensor", name);
    if (t->symbol)
        BRG_TRY(brg__tracer_settle(name, "the values are not there yet"));
    if (brg__tensor_is_meta(t))
        return BRG_FAIL(BRG_ERR_STATE, "%s: the tensor has no memory", name);
    char text[BRG_TENSOR_TEXT_MAX];
    if (t->sparse)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "%s: the tensor is %s, expected a dense one: use "
                        "brg_to_dense",
                        name, brg__tensor_text(t, text));
    return BRG_OK;
}

static brg_status check_broadcast(const char *name, const brg_tensor *dst,
                                  const brg_tensor *src)
{
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    if (brg__shape_broadcast(dst->ndim, dst->shape, src->ndim, src->shape,
                             &ndim, shape) &&
        brg__shape_equal(ndim, shape, dst->ndim, dst->shape))
        return BRG_OK;
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_SHAPE, "%s: %s does not broadcast to %s", name,
                    brg__tensor_text(src, b), brg__tensor_text(dst, a));
}

/* A tensor whose elements share memory has no well-defined result. */
static brg_status check_not_expanded(const char *name, const brg_tensor *dst)
{
    for (int d = 0; d < dst->ndim; d++)
        if (dst->stride[d] == 0 && dst->shape[d] > 1) {
            char text[BRG_TENSOR_TEXT_MAX];
            return BRG_FAIL(BRG_ERR_ARG,
                            "%s: elements of %s share memory; make a copy "
                            "first",
                            name, brg__tensor_text(dst, text));
        }
    return BRG_OK;
}

static brg_status check_change(const char *name, brg_tensor *dst,
                               brg_tensor *src, bool *is_recorded)
{
    BRG_TRY(check_memory(name, dst));
    BRG_TRY(check_not_expanded(name, dst));
    if (src) {
        BRG_TRY(check_memory(name, src));
        BRG_TRY(check_broadcast(name, dst, src));
    }
    return brg__inplace_begin(name, dst, src, is_recorded);
}

/* The same elements in the same order may be read and written together; any
 * other overlap may not. */
static bool overlaps(const brg_tensor *dst, const brg_tensor *src)
{
    if (dst->storage != src->storage)
        return false;
    bool is_same =
        dst->offset == src->offset && dst->dtype == src->dtype &&
        brg__shape_equal(dst->ndim, dst->shape, src->ndim, src->shape);
    for (int d = 0; is_same && d < dst->ndim; d++)
        is_same = dst->shape[d] == 1 || dst->stride[d] == src->stride[d];
    return !is_same;
}

/* src, or a copy of it where writing dst would change it midway. The caller
 * releases *out. */
static brg_status settle(brg_tensor **out, const brg_tensor *dst,
                         brg_tensor *src)
{
    *out = brg_retain(src);
    if (!overlaps(dst, src))
        return BRG_OK;
    brg_release(src);
    return brg__copy_new(out, src);
}

/* ---- In place, from a sparse tensor --------------------------------------- */

/* Both have one shape and dtype; dst may be sparse where `name` can do that. */
static brg_status check_sparse(const char *name, brg_tensor *dst,
                               brg_tensor *src, bool *is_recorded)
{
    if (!dst || !dst->sparse) {
        BRG_TRY(check_memory(name, dst));
        BRG_TRY(check_not_expanded(name, dst));
    }
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    bool is_like =
        dst->dtype == src->dtype &&
        brg__shape_equal(dst->ndim, dst->shape, src->ndim, src->shape);
    if (is_like && dst->sparse)
        is_like = brg__sparse_n_dims(dst) == brg__sparse_n_dims(src);
    if (!is_like)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "%s: dst is %s, src is %s: shape, dtype and sparse "
                        "dims must be equal",
                        name, brg__tensor_text(dst, a),
                        brg__tensor_text(src, b));
    if (!brg__device_equal(dst->device, src->device))
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "%s: dst and src are on different devices", name);
    return brg__inplace_begin(name, dst, src, is_recorded);
}

/* dst keeps its handle and gets new parts. */
static brg_status append(brg_tensor *dst, const brg_tensor *src, double alpha)
{
    brg_tensor *sum;
    BRG_TRY(brg__sparse_join(&sum, dst, src, alpha));
    brg__sparse_swap(dst, sum);
    brg_release(sum);
    return BRG_OK;
}

static brg_status add_sparse(brg_tensor *dst, brg_tensor *src, double alpha)
{
    bool is_recorded;
    BRG_TRY(check_sparse("brg_add_", dst, src, &is_recorded));
    if (dst->sparse) {
        BRG_TRY(append(dst, src, alpha));
    } else {
        BRG_TRY(brg__sparse_add_to(dst, src, alpha));
        brg_tensor_touch(dst);
    }
    if (!is_recorded)
        return BRG_OK;
    return brg__inplace_record(&brg__op_add_scaled, 2,
                               (brg_tensor *[]){dst, src},
                               &(brg_attrs){.f = {alpha}});
}

static brg_status copy_sparse(brg_tensor *dst, brg_tensor *src)
{
    bool is_recorded;
    BRG_TRY(check_memory("brg_copy_", dst));
    BRG_TRY(check_sparse("brg_copy_", dst, src, &is_recorded));
    brg_tensor *own = NULL; /* where filling dst would change src */
    if (dst->storage == src->sparse->values->storage)
        BRG_TRY(brg__sparse_clone(&own, src));
    brg_status status = brg__fill_now(dst, 0.0);
    if (status == BRG_OK)
        status = brg__sparse_add_to(dst, own ? own : src, 1.0);
    brg_release(own);
    brg_tensor_touch(dst);
    if (status != BRG_OK || !is_recorded)
        return status;
    return brg__inplace_record(&brg__op_assign, 2, (brg_tensor *[]){dst, src},
                               NULL);
}

/* ---- In place ------------------------------------------------------------ */

/* dst = src: the gradient goes to src alone. */
static brg_status record_assign(brg_tensor *dst, brg_tensor *src)
{
    if (src->dtype != dst->dtype && !(src = brg_cast(src, dst->dtype)))
        return brg_error_code();
    return brg__inplace_record(&brg__op_assign, 2, (brg_tensor *[]){dst, src},
                               NULL);
}

/* ---- In place, in a function that is being captured ------------------------ */

static brg_status copy_later(const brg__effect *effect, brg_tensor *in)
{
    return brg_copy_(effect->target, in);
}

static brg_status add_later(const brg__effect *effect, brg_tensor *in)
{
    return brg_add_(effect->target, in, effect->f);
}

static brg_status fill_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return brg_fill_(effect->target, effect->f);
}

static brg_status scale_later(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    return brg_mul_scalar_(effect->target, effect->f);
}

static brg_status change_again(const brg__effect *effect, brg__relaunch *launch)
{
    (void)launch;
    brg_tensor_touch(effect->target);
    return BRG_OK;
}

/* The plan will change dst, a tensor from outside. */
static brg_status defer(const char *name, const brg__effect *effect)
{
    brg_tensor *dst = effect->target;
    if (!dst)
        return brg__error_pending("%s: the tensor", name);
    bool is_own = dst->symbol || (dst->storage && dst->storage->born_in &&
                                  dst->storage->born_in == brg__tracer_now->id);
    if (is_own && !brg__tracer_now->flush)
        return brg__tracer_refuse(name, "it changes a tensor of the function "
                                        "itself; compute a new one");
    bool is_recorded = brg_grad_mode() && (brg_requires_grad(dst) ||
                                           brg_requires_grad(effect->in));
    if (is_recorded && !brg__tracer_now->flush)
        return brg__tracer_refuse(name, "the change would be recorded; turn "
                                        "recording off around it");
    return brg__tracer_defer(effect);
}

brg_status brg_copy_(brg_tensor *dst, brg_tensor *src)
{
    if (!src)
        return brg__error_pending("brg_copy_: src");
    if (brg__is_traced())
        return defer("brg_copy_", &(brg__effect){.name = "copy_",
                                                 .run = copy_later,
                                                 .relaunch = change_again,
                                                 .target = dst,
                                                 .in = src});
    if (src->sparse)
        return copy_sparse(dst, src);
    bool is_recorded;
    BRG_TRY(check_change("brg_copy_", dst, src, &is_recorded));
    brg_tensor *from;
    BRG_TRY(settle(&from, dst, src));
    brg_status status = brg__copy_now(dst, from);
    brg_release(from);
    brg_tensor_touch(dst);
    if (status != BRG_OK || !is_recorded)
        return status;
    return record_assign(dst, src);
}

/* dst = 0 dst + value: what it was has no gradient any more. */
static brg_status record_fill(brg_tensor *dst)
{
    return brg__inplace_record(&brg__op_mul_scalar, 1, &dst, NULL);
}

brg_status brg_fill_(brg_tensor *dst, double value)
{
    bool is_recorded;
    if (dst)
        BRG_TRY(brg__check_value("brg_fill_", (brg_dtype)dst->dtype, value));
    if (brg__is_traced())
        return defer("brg_fill_", &(brg__effect){.name = "fill_",
                                                 .run = fill_later,
                                                 .relaunch = change_again,
                                                 .target = dst,
                                                 .f = value});
    BRG_TRY(check_change("brg_fill_", dst, NULL, &is_recorded));
    BRG_TRY(brg__fill_now(dst, value));
    brg_tensor_touch(dst);
    return is_recorded ? record_fill(dst) : BRG_OK;
}

brg_status brg_zero_(brg_tensor *dst)
{
    bool is_recorded;
    if (brg__is_traced())
        return brg_fill_(dst, 0.0);
    BRG_TRY(check_change("brg_zero_", dst, NULL, &is_recorded));
    BRG_TRY(brg__fill_now(dst, 0.0));
    brg_tensor_touch(dst);
    return is_recorded ? record_fill(dst) : BRG_OK;
}

brg_status brg_add_(brg_tensor *dst, brg_tensor *src, double alpha)
{
    if (!src)
        return brg__error_pending("brg_add_: src");
    if (dst)
        BRG_TRY(brg__check_operand("brg_add_", (brg_dtype)dst->dtype, alpha));
    if (brg__is_traced())
        return defer("brg_add_", &(brg__effect){.name = "add_",
                                                .run = add_later,
                                                .relaunch = change_again,
                                                .target = dst,
                                                .in = src,
                                                .f = alpha});
    if (src->sparse)
        return add_sparse(dst, src, alpha);
    bool is_recorded;
    BRG_TRY(check_change("brg_add_", dst, src, &is_recorded));
    if (!brg__device_equal(dst->device, src->device))
        return BRG_FAIL(BRG_ERR_DEVICE, "brg_add_: dst is on %s, src on %s",
                        brg__device_text(dst->device, (char[24]){0}),
                        brg__device_text(src->device, (char[24]){0}));
    if (dst->dtype != src->dtype)
        return BRG_FAIL(BRG_ERR_DTYPE, "brg_add_: dst is %s, src is %s",
                        brg_dtype_name((brg_dtype)dst->dtype),
                        brg_dtype_name((brg_dtype)src->dtype));
    brg_tensor *from;
    BRG_TRY(settle(&from, dst, src));
    const brg_op *op = alpha == 1.0 ? &brg__op_add : &brg__op_add_scaled;
    brg_status status =
        brg__pointwise_now(op, (const brg_tensor *[]){dst, from}, dst,
                           (const double[2]){alpha, 0});
    brg_release(from);
    brg_tensor_touch(dst);
    if (status != BRG_OK || !is_recorded)
        return status;
    return brg__inplace_record(&brg__op_add_scaled, 2,
                               (brg_tensor *[]){dst, src},
                               &(brg_attrs){.f = {alpha}});
}

brg_status brg_mul_scalar_(brg_tensor *dst, double s)
{
    bool is_recorded;
    if (dst)
        BRG_TRY(
            brg__check_operand("brg_mul_scalar_", (brg_dtype)dst->dtype, s));
    if (brg__is_traced())
        return defer("brg_mul_scalar_", &(brg__effect){.name = "mul_scalar_",
                                                       .run = scale_later,
                                                       .relaunch = change_again,
                                                       .target = dst,
                                                       .f = s});
    BRG_TRY(check_change("brg_mul_scalar_", dst, NULL, &is_recorded));
    BRG_TRY(brg__pointwise_now(&brg__op_mul_scalar, (const brg_tensor *[]){dst},
                               dst, (const double[2]){s, 0}));
    brg_tensor_touch(dst);
    if (!is_recorded)
        return BRG_OK;
    return brg__inplace_record(&brg__op_mul_scalar, 1, &dst,
                               &(brg_attrs){.f = {s}});
}

/* ---- Filled tensors ------------------------------------------------------ */

brg_tensor *brg_full(brg_dtype dtype, int ndim, const int64_t *shape,
                     double value)
{
    if (brg__check_value("brg_full", dtype, value) != BRG_OK)
        return NULL;
    brg_tensor *t = brg_empty(dtype, ndim, shape);
    if (t && brg__fill_now(t, value) != BRG_OK)
        return NULL;
    return t;
}

brg_tensor *brg_ones(brg_dtype dtype, int ndim, const int64_t *shape)
{
    return brg_full(dtype, ndim, shape, 1.0);
}

/* ---- Values -------------------------------------------------------------- */

/* A tensor around plain memory with the sizes of t, on the stack. */
static brg_tensor around(brg__storage *storage, void *data, const brg_tensor *t)
{
    *storage = (brg__storage){.data = data};
    brg_tensor plain = {.ndim = t->ndim,
                        .dtype = t->dtype,
                        .numel = t->numel,
                        .is_contiguous = true,
                        .storage = storage};
    memcpy(plain.shape, t->shape, sizeof plain.shape);
    brg__shape_strides(t->ndim, t->shape, plain.stride);
    return plain;
}

static brg_status check_nbytes(const char *name, const brg_tensor *t,
                               const void *data, size_t nbytes)
{
    BRG_TRY(check_memory(name, t));
    BRG_CHECK_ARG(data || nbytes == 0, "%s: the memory is NULL", name);
    if (nbytes == brg_tensor_nbytes(t))
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_ARG, "%s: %s has %zu bytes, not %zu", name,
                    brg__tensor_text(t, text), brg_tensor_nbytes(t), nbytes);
}

brg_status brg_tensor_item(const brg_tensor *t, double *filled)
{
    if (brg__is_traced())
        BRG_TRY(brg__tracer_settle("brg_tensor_item",
                                   "the values are not there yet"));
    BRG_TRY(check_memory("brg_tensor_item", t));
    if (t->numel != 1) {
        char text[BRG_TENSOR_TEXT_MAX];
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "brg_tensor_item: %s does not have one element",
                        brg__tensor_text(t, text));
    }
    char value[8];
    BRG_TRY(brg__device_copy(BRG_CPU, value, t->device, brg__tensor_ptr(t),
                             brg__tensor_item_size(t)));
    brg__convert_row(filled, BRG_DTYPE_F64, value, (brg_dtype)t->dtype, 1);
    return BRG_OK;
}

brg_status brg_tensor_read(const brg_tensor *t, void *filled, size_t nbytes)
{
    if (brg__is_traced())
        BRG_TRY(brg__tracer_settle("brg_tensor_read",
                                   "the values are not there yet"));
    BRG_TRY(check_nbytes("brg_tensor_read", t, filled, nbytes));
    brg__storage storage;
    brg_tensor plain = around(&storage, filled, t);
    return brg__copy_now(&plain, t);
}

brg_status brg_tensor_write(brg_tensor *t, const void *data, size_t nbytes)
{
    if (brg__is_traced())
        BRG_TRY(brg__tracer_settle("brg_tensor_write",
                                   "write the tensor outside of the function"));
    BRG_TRY(check_nbytes("brg_tensor_write", t, data, nbytes));
    bool is_recorded;
    BRG_TRY(check_change("brg_tensor_write", t, NULL, &is_recorded));
    brg__storage storage;
    brg_tensor plain = around(&storage, (void *)(uintptr_t)data, t);
    BRG_TRY(brg__copy_now(t, &plain));
    brg_tensor_touch(t);
    return is_recorded ? record_fill(t) : BRG_OK;
}
