/* SPDX-License-Identifier: Apache-2.0
 * Family: rows that stand for two or three others whose work a device's kernels
 * do at once. Nobody calls them; the compiler writes them into plans for such
 * devices (compile/passes/merge.c). Here they are what they stand for, one after
 * the other. */
#include <string.h>

#include "core/ops/op.h"
#include "core/ops/reduce.h"
#include "core/ops/rows.h"

/* out[0..n_out) = op(in...), in memory that is there. */
static brg_status run_part(const brg_op *op, int n_in, brg_tensor *const *in,
                           const brg_attrs *attrs, brg_tensor *const *out)
{
    brg_op_call call = {
        .op = op, .n_in = n_in, .n_out = op->n_out, .in = in, .attrs = attrs};
    memcpy(call.out, out, (size_t)op->n_out * sizeof *out);
    return op->run[BRG_DEVICE_CPU](&call);
}

/* Input i has the dtype and shape of output 0. */
static brg_status check_like_result(const brg_op_call *call, int i,
                                    const char *what)
{
    const brg_out_info *result = &call->info[0];
    const brg_tensor *t = call->in[i];
    char text[BRG_SHAPE_TEXT_MAX];
    BRG_TRY(brg__check_dtype(call, i, what, result->dtype));
    if (brg__shape_equal(t->ndim, t->shape, result->ndim, result->shape))
        return BRG_OK;
    return brg__fail_input(BRG_ERR_SHAPE, call, i, what, "shape %s",
                           brg__shape_text(result->ndim, result->shape, text));
}

/* ---- linear_gelu: of x, w, b: gelu(y), y = x w^T + b ---------------------------- */

brg_status brg__linear_gelu_infer(brg_op_call *call)
{
    BRG_TRY(brg__linear_infer(call));
    call->info[1] = call->info[0];
    return BRG_OK;
}

brg_status brg__linear_gelu_run(brg_op_call *call)
{
    BRG_TRY(run_part(&brg__op_linear, 3, call->in, NULL, &call->out[1]));
    const brg_tensor *y = call->out[1];
    return brg__pointwise_now(&brg__op_gelu, &y, call->out[0], NULL);
}

/* ---- linear_add: of x, w, b, r: x w^T + b + r ------------------------------------- */

brg_status brg__linear_add_infer(brg_op_call *call)
{
    BRG_TRY(brg__linear_infer(call));
    return check_like_result(call, 3, "what is added");
}

brg_status brg__linear_add_run(brg_op_call *call)
{
    BRG_TRY(run_part(&brg__op_linear, 3, call->in, NULL, call->out));
    const brg_tensor *both[] = {call->out[0], call->in[3]};
    return brg__pointwise_now(&brg__op_add, both, call->out[0], NULL);
}

/* ---- matmul_gelu_grad: of g, w, y: gelu_grad(g w, y); i as of matmul ------------ */

brg_status brg__matmul_gelu_grad_infer(brg_op_call *call)
{
    BRG_TRY(brg__matmul_infer(call));
    return check_like_result(call, 2, "y");
}

brg_status brg__matmul_gelu_grad_run(brg_op_call *call)
{
    BRG_TRY(run_part(&brg__op_matmul, 2, call->in, call->attrs, &call->out[0]));
    const brg_tensor *both[] = {call->out[0], call->in[2]};
    return brg__pointwise_now(&brg__op_gelu_grad, both, call->out[0], NULL);
}

/* ---- layer_norm_grad_add: of g, x, w, mean, rstd, r: layer_norm_grad with r
 * added to gx, which is rounded before as it would be by itself ------------------- */

brg_status brg__layer_norm_grad_add_infer(brg_op_call *call)
{
    BRG_TRY(brg__layer_norm_grad_infer(call));
    return check_like_result(call, 5, "what is added");
}

brg_status brg__layer_norm_grad_add_run(brg_op_call *call)
{
    BRG_TRY(run_part(&brg__op_layer_norm_grad, 5, call->in, call->attrs,
                     call->out));
    const brg_tensor *both[] = {call->out[0], call->in[5]};
    return brg__pointwise_now(&brg__op_add, both, call->out[0], NULL);
}

/* ---- layer_norm_grad_sum: of g, x, w, mean, rstd and r or nothing: that or
 * layer_norm_grad, and the sum of gx over the rows ---------------------------------- */

brg_status brg__layer_norm_grad_sum_infer(brg_op_call *call)
{
    BRG_TRY(brg__layer_norm_grad_infer(call));
    call->info[3] = call->info[1];
    return call->in[5] ? check_like_result(call, 5, "what is added") : BRG_OK;
}

brg_status brg__layer_norm_grad_sum_run(brg_op_call *call)
{
    const brg_tensor *gx = call->out[0];
    const int n_rows = gx->ndim - (int)call->attrs->i[0]; /* dims */
    BRG_TRY(run_part(&brg__op_layer_norm_grad, 5, call->in, call->attrs,
                     call->out));
    const brg_tensor *both[] = {gx, call->in[5]};
    if (call->in[5])
        BRG_TRY(brg__pointwise_now(&brg__op_add, both, call->out[0], NULL));
    return brg__reduce_now(call->out[3], gx, (1u << n_rows) - 1,
                           BRG__REDUCE_SUM, 1.0);
}

/* ---- cross_entropy_with_grad: of logits, targets: what cross_entropy gives, and
 * cross_entropy_grad if f[1] is the gradient of the loss; the rest of the
 * attributes as of those ------------------------------------------------------------ */

brg_status brg__cross_entropy_with_grad_infer(brg_op_call *call)
{
    BRG_TRY(brg__cross_entropy_infer(call));
    brg__infer_like(call, 2, call->in[0]);
    return BRG_OK;
}

brg_status brg__cross_entropy_with_grad_run(brg_op_call *call)
{
    const brg_dtype dtype = (brg_dtype)call->out[0]->dtype;
    brg_tensor *g = brg__empty_host(dtype, 0, NULL);
    if (!g)
        return brg_error_code();
    brg__put_f64(brg__tensor_ptr(g), dtype, 0, call->attrs->f[1]);
    brg_tensor *in[] = {g, call->in[0], call->in[1], call->out[1]};
    BRG_TRY(
        run_part(&brg__op_cross_entropy, 2, call->in, call->attrs, call->out));
    return run_part(&brg__op_cross_entropy_grad, 4, in, call->attrs,
                    &call->out[2]);
}
