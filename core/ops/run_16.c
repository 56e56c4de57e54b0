/* SPDX-License-Identifier: Apache-2.0
 * 16-bit floats through the f32 kernels of the dense ops: inputs are
 * converted once, outputs rounded once. */
#include "core/base/dtype.h"
#include "core/ops/gemm.h"

static void widen(float *to, const brg_tensor *from)
{
    const uint16_t *x = brg__tensor_ptr(from);
    if (from->dtype == BRG_DTYPE_F16)
        for (int64_t i = 0; i < from->numel; i++)
            to[i] = brg__f16_to_f32(x[i]);
    else
        for (int64_t i = 0; i < from->numel; i++)
            to[i] = brg__bf16_to_f32(x[i]);
}

static void narrow(brg_tensor *to, const float *from)
{
    uint16_t *y = brg__tensor_ptr(to);
    if (to->dtype == BRG_DTYPE_F16)
        for (int64_t i = 0; i < to->numel; i++)
            y[i] = brg__f32_to_f16(from[i]);
    else
        for (int64_t i = 0; i < to->numel; i++)
            y[i] = brg__f32_to_bf16(from[i]);
}

static brg_tensor *new_f32(const brg_tensor *like)
{
    brg__layout layout = brg__layout_of(like);
    layout.dtype = BRG_DTYPE_F32;
    layout.offset = 0;
    brg__shape_strides(layout.ndim, layout.shape, layout.stride);
    brg_tensor *t;
    if (brg__tensor_new(&t, &layout) != BRG_OK)
        return NULL;
    return brg__scope_adopt(t);
}

static brg_tensor *widened(brg_tensor *t)
{
    if (!t || !brg__is_16_bit(t))
        return t;
    brg_tensor *wide = new_f32(t);
    if (!wide || brg__tensor_is_meta(t) || t->numel == 0)
        return wide;
    const brg_tensor *rows = brg__contiguous_now(t);
    if (!rows)
        return NULL;
    widen(brg__tensor_ptr(wide), rows);
    return wide;
}

static brg_status run_wide(brg_op_call *call,
                           brg_status (*run)(brg_op_call *call))
{
    brg_op_call wide = *call;
    brg_tensor *in[BRG_MAX_OP_INPUTS];
    wide.in = in;
    for (int i = 0; i < call->n_in; i++) {
        in[i] = widened(call->in[i]);
        if (call->in[i] && !in[i])
            return brg_error_code();
    }
    for (int j = 0; j < call->n_out; j++) {
        if (!brg__is_16_bit(call->out[j]))
            continue;
        wide.out[j] = new_f32(call->out[j]);
        if (!wide.out[j])
            return brg_error_code();
        wide.info[j].dtype = BRG_DTYPE_F32;
    }
    BRG_TRY(run(&wide));
    for (int j = 0; j < call->n_out; j++)
        if (wide.out[j] != call->out[j] && call->out[j]->numel > 0)
            narrow(call->out[j], brg__tensor_ptr(wide.out[j]));
    return BRG_OK;
}

brg_status brg__run_16_as_f32(brg_op_call *call,
                              brg_status (*run)(brg_op_call *call))
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return brg_error_code();
    const brg_status status = run_wide(call, run);
    brg_scope_end(scope);
    return status;
}
