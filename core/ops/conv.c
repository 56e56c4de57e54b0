/* SPDX-License-Identifier: Apache-2.0
 * 2-D convolution and its gradients as ops. The three products of an image, a
 * weight and an output are each other's gradients, so the rows are closed
 * under differentiation:
 *     conv2d(x, w, bias)        conv2d_grad_input(g, w, like x)
 *     conv2d_grad_weight(g, x, like w)      channel_sum(g)
 * Attributes: i[0..1] stride, [2..3] padding, [4..5] dilation, [6] groups. */
#include "core/ops/conv.h"

#include <string.h>

#include <brigade/ops_nn.h>
#include <brigade/ops_shape.h>

#include "core/base/options.h"
#include "core/ops/gemm.h"
#include "core/ops/rows.h"

static int64_t out_size(int64_t size, int64_t kernel, int axis,
                        const brg_attrs *attrs)
{
    const int64_t reach = attrs->i[4 + axis] * (kernel - 1) + 1;
    const int64_t room = size + 2 * attrs->i[2 + axis] - reach;
    return room < 0 ? 0 : room / attrs->i[axis] + 1;
}

/* From the shapes of x and the weight. */
static brg__conv geometry(const brg_attrs *attrs, const brg_tensor *x,
                          const brg_tensor *weight)
{
    brg__conv v = {.dtype = (brg_dtype)x->dtype,
                   .n = x->shape[0],
                   .c = x->shape[1],
                   .h = x->shape[2],
                   .w = x->shape[3],
                   .o = weight->shape[0],
                   .kh = weight->shape[2],
                   .kw = weight->shape[3],
                   .groups = attrs->i[6]};
    v.oh = out_size(v.h, v.kh, 0, attrs);
    v.ow = out_size(v.w, v.kw, 1, attrs);
    for (int axis = 0; axis < 2; axis++) {
        v.stride[axis] = attrs->i[axis];
        v.padding[axis] = attrs->i[2 + axis];
        v.dilation[axis] = attrs->i[4 + axis];
    }
    return v;
}

/* The shapes of x (input i) and the weight (input k) fit each other. */
static brg_status check_pair(const brg_op_call *call, int i, int k)
{
    const brg_tensor *x = call->in[i], *weight = call->in[k];
    const int64_t groups = call->attrs->i[6];
    BRG_TRY(brg__check_float(call, i, "x"));
    BRG_TRY(brg__check_same_dtype(call, i, k));
    BRG_TRY(brg__check_ndim(call, i, "x", 4));
    BRG_TRY(brg__check_ndim(call, k, "weight", 4));
    if (weight->shape[1] * groups != x->shape[1])
        return brg__fail_input(BRG_ERR_SHAPE, call, k, "weight",
                               "%lld / %lld channels (those of x over groups)",
                               (long long)x->shape[1], (long long)groups);
    if (weight->shape[0] % groups != 0)
        return brg__fail_input(BRG_ERR_SHAPE, call, k, "weight",
                               "a multiple of %lld filters (groups)",
                               (long long)groups);
    const brg__conv v = geometry(call->attrs, x, weight);
    if (v.kh < 1 || v.kw < 1 || v.oh < 1 || v.ow < 1)
        return brg__fail_input(BRG_ERR_SHAPE, call, i, "x",
                               "a padded image no smaller than the kernel");
    return BRG_OK;
}

/* Input i is a gradient of the output of x and weight. */
static brg_status check_grad(const brg_op_call *call, int i, const brg__conv *v)
{
    const int64_t shape[4] = {v->n, v->o, v->oh, v->ow};
    const brg_tensor *g = call->in[i];
    BRG_TRY(brg__check_dtype(call, i, "gradient", v->dtype));
    if (!brg__shape_equal(g->ndim, g->shape, 4, shape))
        return brg__fail_input(BRG_ERR_SHAPE, call, i, "gradient",
                               "[%lld, %lld, %lld, %lld]", (long long)v->n,
                               (long long)v->o, (long long)v->oh,
                               (long long)v->ow);
    return BRG_OK;
}

/* ---- conv2d ---------------------------------------------------------------- */

brg_status brg__conv2d_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0], *bias = call->in[2];
    BRG_TRY(check_pair(call, 0, 1));
    const brg__conv v = geometry(call->attrs, x, call->in[1]);
    if (bias) {
        BRG_TRY(brg__check_same_dtype(call, 2, 0));
        if (bias->ndim != 1 || bias->shape[0] != v.o)
            return brg__fail_input(BRG_ERR_SHAPE, call, 2, "bias", "[%lld]",
                                   (long long)v.o);
    }
    const int64_t shape[4] = {v.n, v.o, v.oh, v.ow};
    brg__infer_shape(call, 0, v.dtype, 4, shape);
    return BRG_OK;
}

brg_status brg__conv2d_run(brg_op_call *call)
{
    brg_tensor *x = call->in[0], *out = call->out[0];
    if (brg__is_16_bit(x))
        return brg__run_16_as_f32(call, brg__conv2d_run);
    if (out->numel == 0)
        return BRG_OK;
    const brg_tensor *weight = brg__contiguous_now(call->in[1]);
    if (!weight)
        return brg_error_code();
    const brg__conv v = geometry(call->attrs, x, weight);
    const brg__images images = {brg__tensor_ptr(x), x->stride};
    const brg_tensor *b = call->in[2];
    brg__conv_bias bias = {NULL, 0};
    if (b) {
        bias.at = brg__tensor_ptr(b);
        bias.step = b->stride[0];
    }
    return brg__conv_forward(&v, &images, brg__tensor_ptr(weight),
                             b ? &bias : NULL, brg__tensor_ptr(out));
}

static brg_tensor *grad_input(const brg_attrs *attrs, brg_tensor *g,
                              brg_tensor *weight, brg_tensor *like)
{
    return brg__call3(&brg__op_conv2d_grad_input, g, weight, like, attrs);
}

static brg_tensor *grad_weight(const brg_attrs *attrs, brg_tensor *g,
                               brg_tensor *x, brg_tensor *like)
{
    return brg__call3(&brg__op_conv2d_grad_weight, g, x, like, attrs);
}

static brg_tensor *conv(const brg_attrs *attrs, brg_tensor *x,
                        brg_tensor *weight, brg_tensor *bias)
{
    return brg__call3(&brg__op_conv2d, x, weight, bias, attrs);
}

brg_status brg__conv2d_vjp(brg_vjp *v)
{
    brg_tensor *x = v->in[0], *weight = v->in[1], *g = v->grad_out[0];
    BRG_VJP_SET(v, 0, grad_input(v->attrs, g, weight, x));
    BRG_VJP_SET(v, 1, grad_weight(v->attrs, g, x, weight));
    BRG_VJP_SET(v, 2, brg__call1(&brg__op_channel_sum, g, NULL));
    return BRG_OK;
}

static bool options_are_valid(const brg_attrs *a)
{
    for (int axis = 0; axis < 2; axis++)
        if (a->i[axis] < 1 || a->i[2 + axis] < 0 || a->i[4 + axis] < 1)
            return false;
    return a->i[6] >= 1;
}

brg_tensor *brg_conv2d(brg_tensor *x, brg_tensor *weight, brg_tensor *bias,
                       const brg_conv2d_options *options)
{
    if (!x || !weight)
        return NULL;
    brg_conv2d_options o = BRG_CONV2D_OPTIONS_INIT;
    if (BRG_TAKE_OPTIONS(&o, options, "conv2d", BRG_CONV2D_OPTIONS_INIT) !=
        BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {o.stride[0], o.stride[1], o.padding[0],
                             o.padding[1], o.dilation[0], o.dilation[1],
                             o.groups}};
    for (int i = 0; i < 7; i++)
        if (i / 2 != 1 && attrs.i[i] == 0)
            attrs.i[i] = 1;
    BRG_CHECK_ARG_NULL(options_are_valid(&attrs),
                       "conv2d: stride, dilation and groups must be positive, "
                       "padding not negative");
    return conv(&attrs, x, weight, bias);
}

/* ---- Gradients --------------------------------------------------------------- */

brg_status brg__conv2d_grad_input_infer(brg_op_call *call)
{
    BRG_TRY(check_pair(call, 2, 1));
    const brg__conv v = geometry(call->attrs, call->in[2], call->in[1]);
    BRG_TRY(check_grad(call, 0, &v));
    brg__infer_like(call, 0, call->in[2]);
    return BRG_OK;
}

brg_status brg__conv2d_grad_input_run(brg_op_call *call)
{
    brg_tensor *out = call->out[0];
    if (brg__is_16_bit(out))
        return brg__run_16_as_f32(call, brg__conv2d_grad_input_run);
    if (out->numel == 0)
        return BRG_OK;
    const brg_tensor *g = brg__contiguous_now(call->in[0]);
    const brg_tensor *weight = brg__contiguous_now(call->in[1]);
    if (!g || !weight)
        return brg_error_code();
    const brg__conv v = geometry(call->attrs, out, weight);
    return brg__conv_grad_input(&v, brg__tensor_ptr(g), brg__tensor_ptr(weight),
                                brg__tensor_ptr(out));
}

brg_status brg__conv2d_grad_input_vjp(brg_vjp *v)
{
    brg_tensor *g = v->in[0], *weight = v->in[1], *gg = v->grad_out[0];
    BRG_VJP_SET(v, 0, conv(v->attrs, gg, weight, NULL));
    BRG_VJP_SET(v, 1, grad_weight(v->attrs, g, gg, weight));
    return BRG_OK;
}

brg_status brg__conv2d_grad_weight_infer(brg_op_call *call)
{
    BRG_TRY(check_pair(call, 1, 2));
    const brg__conv v = geometry(call->attrs, call->in[1], call->in[2]);
    BRG_TRY(check_grad(call, 0, &v));
    brg__infer_like(call, 0, call->in[2]);
    return BRG_OK;
}

brg_status brg__conv2d_grad_weight_run(brg_op_call *call)
{
    brg_tensor *x = call->in[1], *out = call->out[0];
    if (brg__is_16_bit(out))
        return brg__run_16_as_f32(call, brg__conv2d_grad_weight_run);
    if (out->numel == 0)
        return BRG_OK;
    const brg_tensor *g = brg__contiguous_now(call->in[0]);
    if (!g)
        return brg_error_code();
    const brg__conv v = geometry(call->attrs, x, out);
    if (v.n == 0) {
        memset(brg__tensor_ptr(out), 0, brg_tensor_nbytes(out));
        return BRG_OK;
    }
    const brg__images images = {brg__tensor_ptr(x), x->stride};
    return brg__conv_grad_weight(&v, brg__tensor_ptr(g), &images,
                                 brg__tensor_ptr(out));
}

brg_status brg__conv2d_grad_weight_vjp(brg_vjp *v)
{
    brg_tensor *g = v->in[0], *x = v->in[1], *gg = v->grad_out[0];
    BRG_VJP_SET(v, 0, conv(v->attrs, x, gg, NULL));
    BRG_VJP_SET(v, 1, grad_input(v->attrs, g, gg, x));
    return BRG_OK;
}

/* ---- channel_sum: (n,c,..) to (c) ------------------------------------------ */

brg_status brg__channel_sum_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    BRG_TRY(brg__check_float(call, 0, "x"));
    BRG_TRY(brg__check_ndim(call, 0, "x", 4));
    brg__infer_shape(call, 0, (brg_dtype)x->dtype, 1, x->shape + 1);
    return BRG_OK;
}

brg_status brg__channel_sum_run(brg_op_call *call)
{
    brg_tensor *out = call->out[0];
    if (brg__is_16_bit(out))
        return brg__run_16_as_f32(call, brg__channel_sum_run);
    const brg_tensor *x = brg__contiguous_now(call->in[0]);
    if (!x)
        return brg_error_code();
    const size_t n = (size_t)(x->shape[2] * x->shape[3]);
    const size_t nbytes = n * brg__tensor_item_size(x);
    const brg__row_kernels *rows = brg__row_kernels_of((brg_dtype)x->dtype);
    for (int64_t c = 0; c < out->numel; c++) {
        double sum = 0;
        for (int64_t i = c; i < x->shape[0] * out->numel; i += out->numel)
            sum +=
                rows->sum((char *)brg__tensor_ptr(x) + (size_t)i * nbytes, n);
        if (x->dtype == BRG_DTYPE_F64)
            ((double *)brg__tensor_ptr(out))[c] = sum;
        else
            ((float *)brg__tensor_ptr(out))[c] = (float)sum;
    }
    return BRG_OK;
}

brg_status brg__channel_sum_vjp(brg_vjp *v)
{
    brg_tensor *g = brg_unsqueeze(brg_unsqueeze(v->grad_out[0], 1), 1);
    BRG_VJP_SET(v, 0, brg_expand_like(g, v->in[0]));
    return BRG_OK;
}
