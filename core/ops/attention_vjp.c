/* SPDX-License-Identifier: Apache-2.0
 * The gradient of attention composed of differentiable ops, which does hold
 * all scores, and the two ops between the layout of a projection and heads:
 *     heads_split  (b,t,parts*heads*d) to part `part` as (b,heads,t,d), a view
 *     heads_merge  (b,heads,t,d) to (b,t,parts*heads*d), other parts zero
 * Attributes of these: i[0] heads, i[1] parts, i[2] part. */
#include "core/ops/attention_vjp.h"

#include <math.h>
#include <string.h>

#include <brigade/ops.h>

#include "core/ops/reduce.h"

/* ---- Attention ---------------------------------------------------------------- */

typedef struct problem {
    brg_tensor *q, *k, *v;
    bool is_causal;
    double scale; /* 0: one over the root of q's last dim */
} problem;

static brg_tensor *flip(brg_tensor *x)
{
    return brg_transpose(x, -2, -1);
}

/* x (b,h,t,any) by the scale; by reference, as plans serve every size. */
static brg_tensor *scaled(const problem *p, brg_tensor *x)
{
    if (p->scale != 0)
        return brg_mul_scalar(x, p->scale);
    brg_tensor *ones =
        brg_full_like(brg_sum(p->q, 1, (const int[]){-1}, true), 1);
    return brg_mul(x, brg_sqrt(brg__div_count(ones, p->q, 1.0, 0.0)));
}

static brg_tensor *probabilities(const problem *p)
{
    brg_tensor *scores = scaled(p, brg_matmul(p->q, flip(p->k)));
    if (p->is_causal) {
        brg_tensor *hidden = brg_triu(brg_full_like(scores, -INFINITY), 1);
        scores = brg_add(brg_tril(scores, 0), hidden);
    }
    return brg_softmax(scores, -1);
}

/* Gradients of q, k and v; NULL where the computation failed. */
static void gradients(const problem *p, brg_tensor *g, brg_tensor *grad[3])
{
    brg_tensor *prob = probabilities(p);
    brg_tensor *gp = brg_matmul(g, flip(p->v));
    brg_tensor *mean = brg_sum(brg_mul(gp, prob), 1, (const int[]){-1}, true);
    brg_tensor *gs = scaled(p, brg_mul(prob, brg_sub(gp, mean)));
    grad[0] = brg_matmul(gs, p->k);
    grad[1] = brg_matmul(flip(gs), p->q);
    grad[2] = brg_matmul(flip(prob), g);
}

static problem problem_of(const brg_attrs *attrs, brg_tensor *q, brg_tensor *k,
                          brg_tensor *v)
{
    return (problem){q, k, v, attrs->i[0] != 0, attrs->f[0]};
}

brg_status brg__attention_vjp_composed(brg_vjp *v)
{
    brg_tensor *grad[3];
    const problem p = problem_of(v->attrs, v->in[0], v->in[1], v->in[2]);
    gradients(&p, v->grad_out[0], grad);
    for (int i = 0; i < 3; i++)
        BRG_VJP_SET(v, i, grad[i]);
    return BRG_OK;
}

static brg_tensor *split(brg_tensor *x, int64_t n_heads, int64_t n_parts,
                         int64_t part)
{
    const brg_attrs attrs = {.i = {n_heads, n_parts, part}};
    return x ? brg__call1(&brg__op_heads_split, x, &attrs) : NULL;
}

static brg_tensor *merge(brg_tensor *x, int64_t n_heads, int64_t n_parts,
                         int64_t part)
{
    const brg_attrs attrs = {.i = {n_heads, n_parts, part}};
    return x ? brg__call1(&brg__op_heads_merge, x, &attrs) : NULL;
}

brg_status brg__attention_qkv_vjp_composed(brg_vjp *v)
{
    const int64_t h = v->attrs->i[1];
    brg_tensor *qkv = v->in[0], *part[3], *grad[3];
    for (int i = 0; i < 3; i++)
        if (!(part[i] = split(qkv, h, 3, i)))
            return brg_error_code();
    const problem p = problem_of(v->attrs, part[0], part[1], part[2]);
    gradients(&p, split(v->grad_out[0], h, 1, 0), grad);
    brg_tensor *sum = merge(grad[0], h, 3, 0);
    for (int i = 1; i < 3; i++)
        sum = brg_add(sum, merge(grad[i], h, 3, i));
    BRG_VJP_SET(v, 0, sum);
    return BRG_OK;
}

/* ---- heads_split, heads_merge ------------------------------------------------ */

brg_status brg__heads_split_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    const int64_t *n = call->attrs->i;
    BRG_TRY(brg__check_ndim(call, 0, "x", 3));
    if (x->shape[2] % (n[0] * n[1]) != 0)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x",
                               "a last dim divisible by %lld parts and heads",
                               (long long)(n[0] * n[1]));
    const int64_t d = x->shape[2] / n[0] / n[1];
    const int64_t shape[4] = {x->shape[0], n[0], x->shape[1], d};
    brg__infer_view(call, x);
    brg_out_info *info = &call->info[0];
    info->ndim = 4;
    memcpy(info->shape, shape, sizeof shape);
    info->stride[0] = x->stride[0];
    info->stride[1] = d * x->stride[2];
    info->stride[2] = x->stride[1];
    info->stride[3] = x->stride[2];
    info->offset = x->offset + n[2] * n[0] * d * x->stride[2];
    return BRG_OK;
}

brg_status brg__heads_split_vjp(brg_vjp *v)
{
    const int64_t *n = v->attrs->i;
    BRG_VJP_SET(v, 0, merge(v->grad_out[0], n[0], n[1], n[2]));
    return BRG_OK;
}

brg_status brg__heads_merge_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    BRG_TRY(brg__check_ndim(call, 0, "x", 4));
    if (x->shape[1] != call->attrs->i[0])
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x", "%lld heads",
                               (long long)call->attrs->i[0]);
    const int64_t shape[3] = {x->shape[0], x->shape[2],
                              call->attrs->i[1] * x->shape[1] * x->shape[3]};
    brg__infer_shape(call, 0, (brg_dtype)x->dtype, 3, shape);
    return BRG_OK;
}

brg_status brg__heads_merge_run(brg_op_call *call)
{
    const brg_tensor *x = brg__contiguous_now(call->in[0]);
    brg_tensor *out = call->out[0];
    if (!x)
        return brg_error_code();
    if (out->numel == 0)
        return BRG_OK;
    const size_t item = brg__tensor_item_size(x);
    const size_t row = (size_t)x->shape[3] * item;
    const int64_t n_heads = x->shape[1], t = x->shape[2];
    char *to = brg__tensor_ptr(out);
    const char *from = brg__tensor_ptr(x);
    memset(to, 0, brg_tensor_nbytes(out));
    to += (size_t)(call->attrs->i[2] * n_heads) * row;
    for (int64_t b = 0; b < x->shape[0]; b++)
        for (int64_t h = 0; h < n_heads; h++)
            for (int64_t i = 0; i < t; i++, from += row) {
                const int64_t at =
                    (b * t + i) * call->attrs->i[1] * n_heads + h;
                memcpy(to + (size_t)at * row, from, row);
            }
    return BRG_OK;
}

brg_status brg__heads_merge_vjp(brg_vjp *v)
{
    const int64_t *n = v->attrs->i;
    BRG_VJP_SET(v, 0, split(v->grad_out[0], n[0], n[1], n[2]));
    return BRG_OK;
}
