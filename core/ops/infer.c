/* SPDX-License-Identifier: Apache-2.0
 * Shape rules and input checks that the families share. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/ops/op.h"

void brg__infer_shape(brg_op_call *call, int j, brg_dtype dtype, int ndim,
                      const int64_t *shape)
{
    brg_out_info *info = &call->info[j];
    info->dtype = dtype;
    info->ndim = ndim;
    info->is_view = false;
    if (ndim > 0)
        memcpy(info->shape, shape, (size_t)ndim * sizeof *shape);
}

void brg__infer_like(brg_op_call *call, int j, const brg_tensor *t)
{
    brg__infer_shape(call, j, (brg_dtype)t->dtype, t->ndim, t->shape);
}

void brg__infer_view(brg_op_call *call, const brg_tensor *of)
{
    brg__infer_like(call, 0, of);
    brg_out_info *info = &call->info[0];
    info->is_view = true;
    info->view_of = 0;
    info->offset = of->offset;
    memcpy(info->stride, of->stride, sizeof info->stride);
}

brg_status brg__fail_input(brg_status code, const brg_op_call *call, int i,
                           const char *what, const char *format, ...)
{
    char words[160], tensor[BRG_TENSOR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    return BRG_FAIL(code, "%s: %s (input %d) is %s, expected %s",
                    call->op->name, what, i,
                    brg__tensor_text(call->in[i], tensor), words);
}

brg_status brg__check_float(const brg_op_call *call, int i, const char *what)
{
    if (brg__tensor_is_float(call->in[i]))
        return BRG_OK;
    return brg__fail_input(BRG_ERR_DTYPE, call, i, what, "a float dtype");
}

brg_status brg__check_dtype(const brg_op_call *call, int i, const char *what,
                            brg_dtype expected)
{
    if ((brg_dtype)call->in[i]->dtype == expected)
        return BRG_OK;
    return brg__fail_input(BRG_ERR_DTYPE, call, i, what, "dtype %s",
                           brg_dtype_name(expected));
}

brg_status brg__check_same_dtype(const brg_op_call *call, int i, int k)
{
    if (call->in[i]->dtype == call->in[k]->dtype)
        return BRG_OK;
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_DTYPE,
                    "%s: inputs %d and %d differ in dtype: %s and %s",
                    call->op->name, i, k, brg__tensor_text(call->in[i], a),
                    brg__tensor_text(call->in[k], b));
}

brg_status brg__check_ndim(const brg_op_call *call, int i, const char *what,
                           int ndim)
{
    if (call->in[i]->ndim == ndim)
        return BRG_OK;
    return brg__fail_input(BRG_ERR_SHAPE, call, i, what, "%d dims", ndim);
}
