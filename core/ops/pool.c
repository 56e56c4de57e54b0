/* SPDX-License-Identifier: Apache-2.0
 * 2-D pooling and its gradients as ops.
 *
 * max_pool2d also yields, for each output, the position in its window of the
 * maximum (u8; i32 for windows of more than 256 pixels). With it the gradient
 * puts values back (max_pool2d_put) and the gradient of that takes them again
 * (max_pool2d_take). avg_pool2d and avg_pool2d_grad are each other's gradient.
 * Attributes: i[0..1] kernel, [2..3] stride, [4..5] padding, [6] whether the
 * padding is left out of an average. */
#include "core/ops/pool.h"

#include <string.h>

#include <brigade/ops_nn.h>

#include "core/base/options.h"
#include "core/ops/gemm.h"

static brg__pool geometry(const brg_attrs *attrs, const brg_tensor *x)
{
    brg__pool p = {.planes = x->shape[0] * x->shape[1],
                   .h = x->shape[2],
                   .w = x->shape[3],
                   .exclude_padding = attrs->i[6] != 0};
    for (int axis = 0; axis < 2; axis++) {
        p.kernel[axis] = attrs->i[axis];
        p.stride[axis] = attrs->i[2 + axis];
        p.padding[axis] = attrs->i[4 + axis];
        const int64_t room =
            x->shape[2 + axis] + 2 * p.padding[axis] - p.kernel[axis];
        *(axis ? &p.ow : &p.oh) = room < 0 ? 0 : room / p.stride[axis] + 1;
    }
    p.is_wide = p.kernel[0] * p.kernel[1] > 256;
    return p;
}

static brg_status check_image(const brg_op_call *call, int i)
{
    BRG_TRY(brg__check_ndim(call, i, "x", 4));
    const brg__pool p = geometry(call->attrs, call->in[i]);
    if (p.oh < 1 || p.ow < 1)
        return brg__fail_input(BRG_ERR_SHAPE, call, i, "x",
                               "a padded image no smaller than the window, "
                               "%lld by %lld",
                               (long long)p.kernel[0], (long long)p.kernel[1]);
    return BRG_OK;
}

static void shape_of_windows(const brg_op_call *call, const brg_tensor *x,
                             int64_t shape[4])
{
    const brg__pool p = geometry(call->attrs, x);
    const int64_t sizes[4] = {x->shape[0], x->shape[1], p.oh, p.ow};
    memcpy(shape, sizes, sizeof sizes);
}

/* Input i has one value per window of the image. */
static brg_status check_windows(const brg_op_call *call, int i,
                                const char *what, const brg_tensor *x)
{
    int64_t shape[4];
    shape_of_windows(call, x, shape);
    const brg_tensor *t = call->in[i];
    if (brg__shape_equal(t->ndim, t->shape, 4, shape))
        return BRG_OK;
    return brg__fail_input(BRG_ERR_SHAPE, call, i, what,
                           "[%lld, %lld, %lld, %lld]", (long long)shape[0],
                           (long long)shape[1], (long long)shape[2],
                           (long long)shape[3]);
}

static brg_status check_positions(const brg_op_call *call, const brg_tensor *x)
{
    const brg__pool p = geometry(call->attrs, x);
    BRG_TRY(brg__check_dtype(call, 1, "positions",
                             p.is_wide ? BRG_DTYPE_I32 : BRG_DTYPE_U8));
    return check_windows(call, 1, "positions", x);
}

static void infer_windows(brg_op_call *call, int j, brg_dtype dtype,
                          const brg_tensor *x)
{
    int64_t shape[4];
    shape_of_windows(call, x, shape);
    brg__infer_shape(call, j, dtype, 4, shape);
}

/* Runs a kernel of (geometry, inputs.., output) by element type and geometry;
 * there is none of pairs for max_pool2d_take. */
#define RUN_ANY(p, out, kernel, ...)                                           \
    ((out)->dtype == BRG_DTYPE_F64 ? kernel##_f64((p), __VA_ARGS__)            \
                                   : kernel##_f32((p), __VA_ARGS__))
#define RUN(p, out, kernel, ...)                                               \
    ((out)->dtype == BRG_DTYPE_F32 && brg__pool_is_pairs(p)                    \
         ? kernel##_pairs((p), __VA_ARGS__)                                    \
         : RUN_ANY(p, out, kernel, __VA_ARGS__))

/* What each run is around its kernel: 16-bit floats in f32, nothing for an empty
 * result, the first n_in inputs row-major, as data[]. */
typedef void (*body_fn)(const brg__pool *p, const brg_op_call *call,
                        void *const *data);

static brg_status run(brg_op_call *call, brg_status (*self)(brg_op_call *),
                      const brg_tensor *image, int n_in, body_fn body)
{
    void *data[2];
    if (brg__is_16_bit(call->out[0]))
        return brg__run_16_as_f32(call, self);
    if (call->out[0]->numel == 0)
        return BRG_OK;
    for (int i = 0; i < n_in; i++) {
        const brg_tensor *t = brg__contiguous_now(call->in[i]);
        if (!t)
            return brg_error_code();
        data[i] = brg__tensor_ptr(t);
    }
    const brg__pool p = geometry(call->attrs, image);
    body(&p, call, data);
    return BRG_OK;
}

/* ---- max_pool2d ------------------------------------------------------------ */

brg_status brg__max_pool2d_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    BRG_TRY(brg__check_float(call, 0, "x"));
    BRG_TRY(check_image(call, 0));
    const brg__pool p = geometry(call->attrs, x);
    infer_windows(call, 0, (brg_dtype)x->dtype, x);
    infer_windows(call, 1, p.is_wide ? BRG_DTYPE_I32 : BRG_DTYPE_U8, x);
    return BRG_OK;
}

static void max_body(const brg__pool *p, const brg_op_call *call,
                     void *const *data)
{
    RUN(p, call->out[0], brg__pool_max, data[0], brg__tensor_ptr(call->out[0]),
        brg__tensor_ptr(call->out[1]));
}

brg_status brg__max_pool2d_run(brg_op_call *call)
{
    return run(call, brg__max_pool2d_run, call->in[0], 1, max_body);
}

static brg_tensor *put(const brg_attrs *attrs, brg_tensor *g, brg_tensor *which,
                       brg_tensor *like)
{
    return brg__call3(&brg__op_max_pool2d_put, g, which, like, attrs);
}

static brg_tensor *take(const brg_attrs *attrs, brg_tensor *x,
                        brg_tensor *which)
{
    return brg__call2(&brg__op_max_pool2d_take, x, which, attrs);
}

brg_status brg__max_pool2d_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, put(v->attrs, v->grad_out[0], v->out[1], v->in[0]));
    return BRG_OK;
}

/* out (like x) gets g at the position of each window, zero elsewhere. */
brg_status brg__max_pool2d_put_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 0, "gradient"));
    BRG_TRY(check_image(call, 2));
    BRG_TRY(brg__check_same_dtype(call, 0, 2));
    BRG_TRY(check_windows(call, 0, "gradient", call->in[2]));
    BRG_TRY(check_positions(call, call->in[2]));
    brg__infer_like(call, 0, call->in[2]);
    return BRG_OK;
}

static void put_body(const brg__pool *p, const brg_op_call *call,
                     void *const *data)
{
    RUN(p, call->out[0], brg__pool_put, data[0], data[1],
        brg__tensor_ptr(call->out[0]));
}

brg_status brg__max_pool2d_put_run(brg_op_call *call)
{
    return run(call, brg__max_pool2d_put_run, call->out[0], 2, put_body);
}

brg_status brg__max_pool2d_put_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, take(v->attrs, v->grad_out[0], v->in[1]));
    return BRG_OK;
}

/* out[window] = x at the position of the window. */
brg_status brg__max_pool2d_take_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    BRG_TRY(brg__check_float(call, 0, "x"));
    BRG_TRY(check_image(call, 0));
    BRG_TRY(check_positions(call, x));
    infer_windows(call, 0, (brg_dtype)x->dtype, x);
    return BRG_OK;
}

static void take_body(const brg__pool *p, const brg_op_call *call,
                      void *const *data)
{
    RUN_ANY(p, call->out[0], brg__pool_take, data[0], data[1],
            brg__tensor_ptr(call->out[0]));
}

brg_status brg__max_pool2d_take_run(brg_op_call *call)
{
    return run(call, brg__max_pool2d_take_run, call->in[0], 2, take_body);
}

brg_status brg__max_pool2d_take_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, put(v->attrs, v->grad_out[0], v->in[1], v->in[0]));
    return BRG_OK;
}

/* ---- avg_pool2d ------------------------------------------------------------ */

brg_status brg__avg_pool2d_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    BRG_TRY(brg__check_float(call, 0, "x"));
    BRG_TRY(check_image(call, 0));
    infer_windows(call, 0, (brg_dtype)x->dtype, x);
    return BRG_OK;
}

static void avg_body(const brg__pool *p, const brg_op_call *call,
                     void *const *data)
{
    RUN(p, call->out[0], brg__pool_avg, data[0], brg__tensor_ptr(call->out[0]));
}

brg_status brg__avg_pool2d_run(brg_op_call *call)
{
    return run(call, brg__avg_pool2d_run, call->in[0], 1, avg_body);
}

brg_status brg__avg_pool2d_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0,
                brg__call2(&brg__op_avg_pool2d_grad, v->grad_out[0], v->in[0],
                           v->attrs));
    return BRG_OK;
}

brg_status brg__avg_pool2d_grad_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 0, "gradient"));
    BRG_TRY(check_image(call, 1));
    BRG_TRY(brg__check_same_dtype(call, 0, 1));
    BRG_TRY(check_windows(call, 0, "gradient", call->in[1]));
    brg__infer_like(call, 0, call->in[1]);
    return BRG_OK;
}

static void avg_grad_body(const brg__pool *p, const brg_op_call *call,
                          void *const *data)
{
    RUN(p, call->out[0], brg__pool_avg_grad, data[0],
        brg__tensor_ptr(call->out[0]));
}

brg_status brg__avg_pool2d_grad_run(brg_op_call *call)
{
    return run(call, brg__avg_pool2d_grad_run, call->out[0], 1, avg_grad_body);
}

brg_status brg__avg_pool2d_grad_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0,
                brg__call1(&brg__op_avg_pool2d, v->grad_out[0], v->attrs));
    return BRG_OK;
}

/* ---- Public ------------------------------------------------------------------ */

/* False if the options make no windows; sets the error. */
static bool pack(const char *op, const brg_pool2d_options *options,
                 brg_attrs *attrs)
{
    brg_pool2d_options o = BRG_POOL2D_OPTIONS_INIT;
    if (BRG_TAKE_OPTIONS(&o, options, op, BRG_POOL2D_OPTIONS_INIT) != BRG_OK)
        return false;
    for (int axis = 0; axis < 2; axis++) {
        if (o.stride[axis] == 0)
            o.stride[axis] = o.kernel[axis];
        if (o.kernel[axis] < 1 || o.stride[axis] < 1 || o.padding[axis] < 0 ||
            2 * o.padding[axis] > o.kernel[axis]) {
            (void)BRG_FAIL(BRG_ERR_ARG,
                           "%s: kernel %lld, stride %lld, padding %lld: "
                           "expected a positive kernel and stride, and at "
                           "most half the kernel as padding",
                           op, (long long)o.kernel[axis],
                           (long long)o.stride[axis],
                           (long long)o.padding[axis]);
            return false;
        }
    }
    *attrs =
        (brg_attrs){.i = {o.kernel[0], o.kernel[1], o.stride[0], o.stride[1],
                          o.padding[0], o.padding[1], o.exclude_padding}};
    return true;
}

brg_tensor *brg_max_pool2d(brg_tensor *x, const brg_pool2d_options *options)
{
    brg_attrs attrs;
    if (!x || !pack("max_pool2d", options, &attrs))
        return NULL;
    return brg__call1(&brg__op_max_pool2d, x, &attrs);
}

brg_tensor *brg_avg_pool2d(brg_tensor *x, const brg_pool2d_options *options)
{
    brg_attrs attrs;
    if (!x || !pack("avg_pool2d", options, &attrs))
        return NULL;
    return brg__call1(&brg__op_avg_pool2d, x, &attrs);
}
