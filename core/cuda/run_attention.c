/* SPDX-License-Identifier: Apache-2.0
 * Attention: from tensors to the problem that the kernels take. */
#include "core/cuda/attention.h"

#include <math.h>

#include "core/cuda/dnn.h"

static brg__cu_heads heads_of(const brg_tensor *t)
{
    return (brg__cu_heads){brg__tensor_ptr(t), t->stride[0], t->stride[1],
                           t->stride[2], t->stride[3]};
}

/* Part `part` of `n_parts` of a (b,t,n_parts*heads*d) tensor. */
static brg__cu_heads part_of(const brg_tensor *t, int64_t n_heads,
                             int64_t n_parts, int64_t part)
{
    const int64_t width = t->shape[2] / n_parts, col = t->stride[2];
    const size_t skip = (size_t)(part * width * col) * brg__tensor_item_size(t);
    return (brg__cu_heads){(char *)brg__tensor_ptr(t) + skip, t->stride[0],
                           width / n_heads * col, t->stride[1], col};
}

static double scale_of(const brg_attrs *attrs, int64_t d)
{
    return attrs->f[0] != 0 ? attrs->f[0] : 1.0 / sqrt((double)d);
}

static brg__cu_attention separate(const brg_op_call *call)
{
    const brg_tensor *q = call->in[0], *k = call->in[1], *v = call->in[2];
    return (brg__cu_attention){.dtype = q->dtype,
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
}

static brg__cu_attention fused(const brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    const int64_t n = call->attrs->i[1], d = x->shape[2] / 3 / n;
    return (brg__cu_attention){.dtype = x->dtype,
                               .n_batch = x->shape[0],
                               .n_heads = n,
                               .t = x->shape[1],
                               .s = x->shape[1],
                               .d = d,
                               .d_out = d,
                               .scale = scale_of(call->attrs, d),
                               .is_causal = call->attrs->i[0] != 0,
                               .q = part_of(x, n, 3, 0),
                               .k = part_of(x, n, 3, 1),
                               .v = part_of(x, n, 3, 2)};
}

static brg_status check_size(const brg_op_call *call,
                             const brg__cu_attention *a)
{
    if (a->d <= BRG__CU_HEAD_MAX && a->d_out <= BRG__CU_HEAD_MAX)
        return BRG_OK;
    return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED,
                        "%s: heads of size %lld and %lld, at most %d are "
                        "supported on cuda",
                        call->op->name, (long long)a->d, (long long)a->d_out,
                        BRG__CU_HEAD_MAX);
}

/* Nothing to attend to, or nobody who does. */
static bool is_empty(const brg_op_call *call)
{
    return call->in[0]->numel == 0 ||
           (call->n_in >= 3 && call->out[0]->ndim == 4 &&
            call->in[2]->numel == 0);
}

static brg_status forward(brg__cu *cu, const brg_op_call *call,
                          const brg__cu_attention *a)
{
    bool is_done;
    BRG__CU_TRY(brg__cu_dnn_attention(cu, a, false, &is_done));
    if (is_done)
        return BRG_OK;
    if (brg__cu_attention_by_products(a, false))
        return brg__cu_attention_products_forward(cu, a);
    BRG__CU_TRY(check_size(call, a));
    return brg__cu_check(brg__cu_attention_forward(&cu->queue, a),
                         call->op->name);
}

/* With lse and room for delta. */
static brg_status backward_of(brg__cu *cu, const brg_op_call *call,
                              const brg__cu_attention *a)
{
    bool is_done;
    BRG__CU_TRY(brg__cu_dnn_attention(cu, a, true, &is_done));
    if (is_done)
        return BRG_OK;
    if (brg__cu_attention_by_products(a, true))
        return brg__cu_attention_products_backward(cu, a);
    return brg__cu_check(brg__cu_attention_backward(&cu->queue, a),
                         call->op->name);
}

static brg_status backward(brg__cu *cu, const brg_op_call *call,
                           const brg_tensor *lse, brg__cu_attention *a)
{
    brg__cu_temps temps = {.cu = cu, .op = call->op->name};
    const void *at;
    BRG__CU_TRY(check_size(call, a));
    bool is_f64 = a->dtype == BRG_DTYPE_F64;
    brg_status status = brg__cu_rows_as(
        &temps, lse, is_f64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32, &at);
    if (status == BRG_OK)
        status = brg__cu_temp(&temps, &a->delta,
                              (size_t)lse->numel * (is_f64 ? 8 : 4));
    if (status == BRG_OK) {
        a->lse = (void *)(uintptr_t)at;
        status = backward_of(cu, call, a);
    }
    return brg__cu_temps_end(&temps, status);
}

brg_status brg__cu_run_attention(brg_op_call *call)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(call->out[0]->device, &cu));
    if (is_empty(call)) {
        BRG__CU_TRY(brg__cu_zero(cu, call->out[0]));
        return brg__cu_zero(cu, call->out[1]);
    }
    brg__cu_attention a = separate(call);
    a.out = heads_of(call->out[0]);
    a.lse = brg__tensor_ptr(call->out[1]);
    return forward(cu, call, &a);
}

/* Of q, k, v, out, lse, g. */
brg_status brg__cu_run_attention_grad(brg_op_call *call)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(call->out[0]->device, &cu));
    if (is_empty(call)) {
        for (int i = 0; i < 3; i++)
            BRG__CU_TRY(brg__cu_zero(cu, call->out[i]));
        return BRG_OK;
    }
    brg__cu_attention a = separate(call);
    a.out = heads_of(call->in[3]);
    a.g = heads_of(call->in[5]);
    a.gq = heads_of(call->out[0]);
    a.gk = heads_of(call->out[1]);
    a.gv = heads_of(call->out[2]);
    return backward(cu, call, call->in[4], &a);
}

brg_status brg__cu_run_attention_qkv(brg_op_call *call)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(call->out[0]->device, &cu));
    if (call->in[0]->numel == 0)
        return brg__cu_zero(cu, call->out[1]);
    brg__cu_attention a = fused(call);
    a.out = part_of(call->out[0], a.n_heads, 1, 0);
    a.lse = brg__tensor_ptr(call->out[1]);
    return forward(cu, call, &a);
}

/* Of qkv, out, lse, g. */
brg_status brg__cu_run_attention_qkv_grad(brg_op_call *call)
{
    brg__cu *cu;
    const brg_tensor *gx = call->out[0];
    BRG__CU_TRY(brg__cu_enter(gx->device, &cu));
    if (gx->numel == 0)
        return BRG_OK;
    brg__cu_attention a = fused(call);
    a.out = part_of(call->in[1], a.n_heads, 1, 0);
    a.g = part_of(call->in[3], a.n_heads, 1, 0);
    a.gq = part_of(gx, a.n_heads, 3, 0);
    a.gk = part_of(gx, a.n_heads, 3, 1);
    a.gv = part_of(gx, a.n_heads, 3, 2);
    return backward(cu, call, call->in[2], &a);
}
