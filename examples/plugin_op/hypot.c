/* SPDX-License-Identifier: Apache-2.0
 * An op outside the library, in a shared object of its own:
 *
 *     y = sqrt(a^2 + b^2 + f[0])      f[0] > 0 keeps it smooth at 0
 *
 * Written against <brigade/ext/op.h>: what the op gives (infer), how it is
 * computed (run), and its gradient (vjp) in terms of public ops, so that it
 * can be differentiated again. */
#include "examples/plugin_op/hypot.h"

#include <math.h>
#include <string.h>

#include <brigade/ops.h>

/* ---- What it gives ---------------------------------------------------------- */

static brg_status infer(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    const int ndim = brg_tensor_ndim(a);
    if (brg_tensor_ndim(b) != ndim ||
        memcmp(brg_tensor_shape(a), brg_tensor_shape(b),
               (size_t)ndim * sizeof(int64_t)) != 0)
        return brg_error_set(BRG_ERR_SHAPE, __FILE__, __LINE__,
                             "hypot: a and b must have the same shape");
    const brg_dtype dtype = brg_tensor_dtype(a);
    if ((dtype != BRG_DTYPE_F32 && dtype != BRG_DTYPE_F64) ||
        brg_tensor_dtype(b) != dtype)
        return brg_error_set(BRG_ERR_DTYPE, __FILE__, __LINE__,
                             "hypot: a is %s and b is %s, expected both f32 "
                             "or both f64",
                             brg_dtype_name(dtype),
                             brg_dtype_name(brg_tensor_dtype(b)));
    brg_out_info *out = &call->info[0];
    out->dtype = dtype;
    out->ndim = ndim;
    memcpy(out->shape, brg_tensor_shape(a), sizeof out->shape);
    return BRG_OK;
}

/* ---- How it is computed ------------------------------------------------------- */

/* Element i in row-major order: inputs may have any strides. */
static double at(const brg_tensor *t, int64_t i)
{
    const int64_t *shape = brg_tensor_shape(t), *stride = brg_tensor_strides(t);
    int64_t offset = 0;
    for (int d = brg_tensor_ndim(t) - 1; d >= 0; d--) {
        offset += i % shape[d] * stride[d];
        i /= shape[d];
    }
    if (brg_tensor_dtype(t) == BRG_DTYPE_F32)
        return ((const float *)brg_tensor_data(t))[offset];
    return ((const double *)brg_tensor_data(t))[offset];
}

static brg_status run(brg_op_call *call)
{
    brg_tensor *out = call->out[0]; /* row-major */
    for (int64_t i = 0; i < brg_tensor_numel(out); i++) {
        const double a = at(call->in[0], i), b = at(call->in[1], i);
        const double y = sqrt(a * a + b * b + call->attrs->f[0]);
        if (brg_tensor_dtype(out) == BRG_DTYPE_F32)
            ((float *)brg_tensor_data(out))[i] = (float)y;
        else
            ((double *)brg_tensor_data(out))[i] = y;
    }
    return BRG_OK;
}

/* ---- Its gradient: g a / y and g b / y ------------------------------------------- */

static brg_status vjp(brg_vjp *v)
{
    brg_tensor *a = v->in[0], *b = v->in[1], *y = v->out[0];
    brg_tensor *g = v->grad_out[0];
    BRG_VJP_SET(v, 0, brg_mul(g, brg_div(a, y)));
    BRG_VJP_SET(v, 1, brg_mul(g, brg_div(b, y)));
    return BRG_OK;
}

/* ---- The row ------------------------------------------------------------------------ */

static const brg_op op = {
    .abi = BRG_OP_ABI,
    .struct_size = sizeof(brg_op),
    .name = "hypot",
    .n_in = 2,
    .n_out = 1,
    .n_diff_out = 1,
    .flags = BRG_OP_POINTWISE,
    .saves = BRG_SAVE_IN(0) | BRG_SAVE_IN(1) | BRG_SAVE_OUT(0),
    .saves_for = {BRG_SAVE_IN(0) | BRG_SAVE_OUT(0),
                  BRG_SAVE_IN(1) | BRG_SAVE_OUT(0)},
    .infer = infer,
    .run = {[BRG_DEVICE_CPU] = run},
    .vjp = vjp,
};

const brg_op *plugin_hypot(void)
{
    return &op;
}
