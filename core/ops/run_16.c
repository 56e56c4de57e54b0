/* SPDX-License-Identifier: Apache-2.0
 * 16-bit floats through the f32 kernels of the dense ops: inputs are
 * converted once, outputs rounded once. */
#include "core/ops/convert.h"
#include "core/ops/gemm.h"

static brg_tensor *new_f32(const brg_tensor *like)
{
    brg__layout layout = brg__layout_row_major(like);
    layout.dtype = BRG_DTYPE_F32;
    brg_tensor *t;
    const brg_status status = brg__tensor_is_meta(like)
                                  ? brg__tensor_new_view(&t, &layout, NULL)
                                  : brg__tensor_new(&t, &layout);
    return status == BRG_OK ? brg__scope_adopt(t) : NULL;
}

static brg_tensor *widened(brg_tensor *t)
{
    if (!t || !brg__is_16_bit(t))
        return t;
    brg_tensor *wide = new_f32(t);
    if (wide && !brg__tensor_is_meta(t) && t->numel > 0)
        brg__copy_strided(wide, t);
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
            brg__copy_strided(call->out[j], wide.out[j]);
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
