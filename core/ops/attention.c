/* SPDX-License-Identifier: Apache-2.0
 * Attention as ops: `attention` over q, k, v (b,heads,rows,size), and
 * `attention_qkv` over their fused projection (b,t,3*heads*size), whose
 * gradient goes straight back into that layout. Both save the log-sum-exp of
 * the scores and have a fused first-order gradient; to be differentiated again
 * the gradient is composed of other ops (attention_vjp.c).
 * Attributes: i[0] causal, i[1] heads (attention_qkv), f[0] scale (0: one over
 * the root of the key's size). */
#include "core/base/options.h"
#include "core/ops/attention.h"

#include <math.h>
#include <string.h>

#include <brigade/ops_nn.h>

#include "core/ops/attention_vjp.h"
#include "core/ops/gemm.h"

static double scale_of(const brg_attrs *attrs, int64_t d)
{
    return attrs->f[0] != 0 ? attrs->f[0] : 1.0 / sqrt((double)d);
}

/* ---- attention: q, k, v to out, lse ----------------------------------------- */

static brg__heads heads_of(const brg_tensor *t)
{
    const brg__heads h = {brg__tensor_ptr(t), t->stride[0], t->stride[1],
                          t->stride[2], t->stride[3]};
    return h;
}

static brg_status check_heads(const brg_op_call *call)
{
    static const char *const names[] = {"q", "k", "v"};
    const brg_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2];
    BRG_TRY(brg__check_float(call, 0, "q"));
    for (int i = 0; i < 3; i++) {
        BRG_TRY(brg__check_same_dtype(call, i, 0));
        BRG_TRY(brg__check_ndim(call, i, names[i], 4));
        for (int d = 0; d < 2; d++)
            if (call->in[i]->shape[d] != q->shape[d])
                return brg__fail_input(BRG_ERR_SHAPE, call, i, names[i],
                                       "batch and heads [%lld, %lld] of q",
                                       (long long)q->shape[0],
                                       (long long)q->shape[1]);
    }
    if (k->shape[3] != q->shape[3])
        return brg__fail_input(BRG_ERR_SHAPE, call, 1, "k",
                               "a last dim of %lld, that of q",
                               (long long)q->shape[3]);
    if (v->shape[2] != k->shape[2])
        return brg__fail_input(BRG_ERR_SHAPE, call, 2, "v",
                               "%lld rows, those of k", (long long)k->shape[2]);
    return BRG_OK;
}

/* Saved statistics of 16-bit inputs stay f32. */
static brg_dtype lse_dtype(const brg_tensor *q)
{
    return q->dtype == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
}

brg_status brg__attention_infer(brg_op_call *call)
{
    BRG_TRY(check_heads(call));
    const brg_tensor *q = call->in[0];
    int64_t shape[4];
    memcpy(shape, q->shape, sizeof shape);
    brg__infer_shape(call, 1, lse_dtype(q), 3, shape);
    shape[3] = call->in[2]->shape[3];
    brg__infer_shape(call, 0, (brg_dtype)q->dtype, 4, shape);
    return BRG_OK;
}

/* The problem that q, k and v pose. */
static brg__attention problem_of(const brg_op_call *call)
{
    const brg_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2];
    const brg__attention a = {.dtype = (brg_dtype)q->dtype,
                              .n_batch = q->shape[0],
                              .n_heads = q->shape[1],
                              .t = q->shape[2],
                              .s = k->shape[2],
                              .d = q->shape[3],
                              .d_out = v->shape[3],
                              .scale = scale_of(call->attrs, q->shape[3]),
                              .is_causal = call->attrs->i[0] != 0,
                              .q = heads_of(q),
                              .k = heads_of(k),
                              .v = heads_of(v)};
    return a;
}

static void zero(brg_tensor *t)
{
    if (t->numel > 0)
        memset(brg__tensor_ptr(t), 0, brg_tensor_nbytes(t));
}

brg_status brg__attention_run(brg_op_call *call)
{
    if (brg__is_16_bit(call->in[0]))
        return brg__run_16_as_f32(call, brg__attention_run);
    if (call->in[0]->numel == 0 || call->in[2]->numel == 0) {
        zero(call->out[0]);
        zero(call->out[1]);
        return BRG_OK;
    }
    brg__attention a = problem_of(call);
    a.out = heads_of(call->out[0]);
    a.lse = brg__tensor_ptr(call->out[1]);
    return brg__attention_forward(&a);
}

brg_status brg__attention_vjp(brg_vjp *v)
{
    if (v->is_differentiable)
        return brg__attention_vjp_composed(v);
    brg_tensor *const in[] = {v->in[0],  v->in[1],  v->in[2],
                              v->out[0], v->out[1], v->grad_out[0]};
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    BRG_TRY(brg_op_apply(&brg__op_attention_grad, 6, in, v->attrs, out));
    for (int i = 0; i < 3; i++)
        v->grad_in[i] = out[i];
    return BRG_OK;
}

/* Input i has the shape and dtype of the output, input `out`. */
static brg_status check_gradient(const brg_op_call *call, int i, int out)
{
    const brg_tensor *g = call->in[i], *y = call->in[out];
    BRG_TRY(brg__check_same_dtype(call, i, 0));
    if (brg__shape_equal(g->ndim, g->shape, y->ndim, y->shape))
        return BRG_OK;
    return brg__fail_input(BRG_ERR_SHAPE, call, i, "gradient",
                           "the shape of the output");
}

brg_status brg__attention_grad_infer(brg_op_call *call)
{
    BRG_TRY(check_heads(call));
    BRG_TRY(check_gradient(call, 5, 3));
    for (int i = 0; i < 3; i++)
        brg__infer_like(call, i, call->in[i]);
    return BRG_OK;
}

brg_status brg__attention_grad_run(brg_op_call *call)
{
    if (brg__is_16_bit(call->in[0]))
        return brg__run_16_as_f32(call, brg__attention_grad_run);
    if (call->in[0]->numel == 0 || call->in[2]->numel == 0) {
        for (int i = 0; i < 3; i++)
            zero(call->out[i]);
        return BRG_OK;
    }
    brg_tensor *lse = brg__contiguous_now(call->in[4]);
    if (!lse)
        return brg_error_code();
    brg__attention a = problem_of(call);
    a.out = heads_of(call->in[3]);
    a.lse = brg__tensor_ptr(lse);
    a.g = heads_of(call->in[5]);
    a.gq = heads_of(call->out[0]);
    a.gk = heads_of(call->out[1]);
    a.gv = heads_of(call->out[2]);
    return brg__attention_backward(&a);
}

static brg_status pack(const brg_attention_options *options, int64_t n_heads,
                       brg_attrs *attrs)
{
    brg_attention_options o = BRG_ATTENTION_OPTIONS_INIT;
    BRG_TRY(
        BRG_TAKE_OPTIONS(&o, options, "attention", BRG_ATTENTION_OPTIONS_INIT));
    *attrs = (brg_attrs){.i = {o.is_causal, n_heads}, .f = {o.scale}};
    return BRG_OK;
}

brg_tensor *
brg_scaled_dot_product_attention(brg_tensor *q, brg_tensor *k, brg_tensor *v,
                                 const brg_attention_options *options)
{
    brg_attrs attrs;
    if (!q || !k || !v || pack(options, 0, &attrs) != BRG_OK)
        return NULL;
    return brg__call3(&brg__op_attention, q, k, v, &attrs);
}

/* ---- attention_qkv: (b,t,3*heads*d) to out (b,t,heads*d), lse (b,heads,t) - */

/* Part `part` of `n_parts` of a (b,t,n_parts*heads*d) tensor. */
static brg__heads part_of(const brg_tensor *t, int64_t n_heads, int64_t n_parts,
                          int64_t part)
{
    const int64_t width = t->shape[2] / n_parts, col = t->stride[2];
    const size_t skip = (size_t)(part * width * col) * brg__tensor_item_size(t);
    const brg__heads h = {(char *)brg__tensor_ptr(t) + skip, t->stride[0],
                          width / n_heads * col, t->stride[1], col};
    return h;
}

brg_status brg__attention_qkv_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    const int64_t n_heads = call->attrs->i[1];
    BRG_TRY(brg__check_float(call, 0, "qkv"));
    BRG_TRY(brg__check_ndim(call, 0, "qkv", 3));
    if (x->shape[2] % (3 * n_heads) != 0)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "qkv",
                               "a last dim divisible by 3 * %lld heads",
                               (long long)n_heads);
    const int64_t shape[3] = {x->shape[0], x->shape[1], x->shape[2] / 3};
    const int64_t lse[3] = {x->shape[0], n_heads, x->shape[1]};
    brg__infer_shape(call, 0, (brg_dtype)x->dtype, 3, shape);
    brg__infer_shape(call, 1, lse_dtype(x), 3, lse);
    return BRG_OK;
}

static brg__attention problem_of_qkv(const brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    const int64_t n_heads = call->attrs->i[1];
    const int64_t d = x->shape[2] / 3 / n_heads;
    const brg__attention a = {.dtype = (brg_dtype)x->dtype,
                              .n_batch = x->shape[0],
                              .n_heads = n_heads,
                              .t = x->shape[1],
                              .s = x->shape[1],
                              .d = d,
                              .d_out = d,
                              .scale = scale_of(call->attrs, d),
                              .is_causal = call->attrs->i[0] != 0,
                              .q = part_of(x, n_heads, 3, 0),
                              .k = part_of(x, n_heads, 3, 1),
                              .v = part_of(x, n_heads, 3, 2)};
    return a;
}

brg_status brg__attention_qkv_run(brg_op_call *call)
{
    if (brg__is_16_bit(call->in[0]))
        return brg__run_16_as_f32(call, brg__attention_qkv_run);
    if (call->in[0]->numel == 0) {
        zero(call->out[1]);
        return BRG_OK;
    }
    brg__attention a = problem_of_qkv(call);
    a.out = part_of(call->out[0], a.n_heads, 1, 0);
    a.lse = brg__tensor_ptr(call->out[1]);
    return brg__attention_forward(&a);
}

brg_status brg__attention_qkv_vjp(brg_vjp *v)
{
    if (v->is_differentiable)
        return brg__attention_qkv_vjp_composed(v);
    brg_tensor *const in[] = {v->in[0], v->out[0], v->out[1], v->grad_out[0]};
    BRG_VJP_SET(v, 0, brg__call(&brg__op_attention_qkv_grad, 4, in, v->attrs));
    return BRG_OK;
}

brg_status brg__attention_qkv_grad_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_ndim(call, 0, "qkv", 3));
    BRG_TRY(check_gradient(call, 3, 1));
    brg__infer_like(call, 0, call->in[0]);
    return BRG_OK;
}

brg_status brg__attention_qkv_grad_run(brg_op_call *call)
{
    if (brg__is_16_bit(call->in[0]))
        return brg__run_16_as_f32(call, brg__attention_qkv_grad_run);
    brg_tensor *gx = call->out[0];
    if (gx->numel == 0)
        return BRG_OK;
    brg_tensor *lse = brg__contiguous_now(call->in[2]);
    if (!lse)
        return brg_error_code();
    brg__attention a = problem_of_qkv(call);
    a.out = part_of(call->in[1], a.n_heads, 1, 0);
    a.lse = brg__tensor_ptr(lse);
    a.g = part_of(call->in[3], a.n_heads, 1, 0);
    a.gq = part_of(gx, a.n_heads, 3, 0);
    a.gk = part_of(gx, a.n_heads, 3, 1);
    a.gv = part_of(gx, a.n_heads, 3, 2);
    return brg__attention_backward(&a);
}

brg_tensor *brg_attention_qkv(brg_tensor *qkv, int64_t n_heads,
                              const brg_attention_options *options)
{
    if (!qkv)
        return NULL;
    BRG_CHECK_ARG_NULL(n_heads >= 1, "attention_qkv: %lld heads",
                       (long long)n_heads);
    brg_attrs attrs;
    if (pack(options, n_heads, &attrs) != BRG_OK)
        return NULL;
    return brg__call1(&brg__op_attention_qkv, qkv, &attrs);
}
