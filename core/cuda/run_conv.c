/* SPDX-License-Identifier: Apache-2.0
 * Convolution: from tensors to the problem that the kernels take.
 * Attributes: i[0..1] stride, [2..3] padding, [4..5] dilation, [6] groups. */
#include "core/cuda/dnn.h"

static brg__cu_conv problem_of(const brg_attrs *attrs, const brg_tensor *x,
                               const brg_tensor *weight, const brg_tensor *y)
{
    brg__cu_conv v = {.dtype = x->dtype,
                      .n = x->shape[0],
                      .c = x->shape[1],
                      .h = x->shape[2],
                      .w = x->shape[3],
                      .o = weight->shape[0],
                      .kh = weight->shape[2],
                      .kw = weight->shape[3],
                      .oh = y->shape[2],
                      .ow = y->shape[3],
                      .groups = attrs->i[6]};
    for (int axis = 0; axis < 2; axis++) {
        v.stride[axis] = attrs->i[axis];
        v.padding[axis] = attrs->i[2 + axis];
        v.dilation[axis] = attrs->i[4 + axis];
    }
    return v;
}

static brg_status rows_of(brg__cu_temps *temps, const brg_tensor *t, void **at)
{
    const void *from;
    BRG__CU_TRY(brg__cu_rows_of(temps, t, &from));
    *at = (void *)(uintptr_t)from;
    return BRG_OK;
}

/* By cuDNN, or the plain kernel. */
static brg_status run(brg__cu *cu, brg__cu_conv_kind kind,
                      const brg__cu_conv *v, const char *name)
{
    static int (*const plain[])(const brg__cu_queue *, const brg__cu_conv *) = {
        brg__cu_conv_forward, brg__cu_conv_grad_input,
        brg__cu_conv_grad_weight};
    bool is_done;
    BRG__CU_TRY(brg__cu_dnn_conv(cu, kind, v, &is_done));
    return is_done ? BRG_OK : brg__cu_check(plain[kind](&cu->queue, v), name);
}

static brg_status finish(brg__cu_temps *temps, const brg_op_call *call,
                         brg_status status, brg__cu_conv_kind kind,
                         const brg__cu_conv *v)
{
    if (status == BRG_OK)
        status = run(temps->cu, kind, v, call->op->name);
    return brg__cu_temps_end(temps, status);
}

brg_status brg__cu_run_conv2d(brg_op_call *call)
{
    brg__cu_temps temps = {.op = call->op->name};
    const brg_tensor *x = call->in[0], *w = call->in[1], *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_conv v = problem_of(call->attrs, x, w, out);
    v.y = brg__tensor_ptr(out);
    brg_status status = rows_of(&temps, x, &v.x);
    if (status == BRG_OK)
        status = rows_of(&temps, w, &v.weight);
    if (status == BRG_OK)
        status = brg__cu_rows_of(&temps, call->in[2], &v.bias);
    return finish(&temps, call, status, BRG__CU_CONV_FORWARD, &v);
}

/* Of g, w, like x. */
brg_status brg__cu_run_conv2d_grad_input(brg_op_call *call)
{
    brg__cu_temps temps = {.op = call->op->name};
    const brg_tensor *g = call->in[0], *w = call->in[1], *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_conv v = problem_of(call->attrs, out, w, g);
    v.x = brg__tensor_ptr(out);
    brg_status status = rows_of(&temps, g, &v.y);
    if (status == BRG_OK)
        status = rows_of(&temps, w, &v.weight);
    return finish(&temps, call, status, BRG__CU_CONV_INPUT, &v);
}

/* Of g, x, like w. */
brg_status brg__cu_run_conv2d_grad_weight(brg_op_call *call)
{
    brg__cu_temps temps = {.op = call->op->name};
    const brg_tensor *g = call->in[0], *x = call->in[1], *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_conv v = problem_of(call->attrs, x, out, g);
    v.weight = brg__tensor_ptr(out);
    brg_status status = rows_of(&temps, g, &v.y);
    if (status == BRG_OK)
        status = rows_of(&temps, x, &v.x);
    return finish(&temps, call, status, BRG__CU_CONV_WEIGHT, &v);
}
