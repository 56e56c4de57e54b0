/* SPDX-License-Identifier: Apache-2.0
 * Family: softmax and log_softmax along one dim (attribute i[0], >= 0), line
 * by line; the largest element is subtracted first. */
#include <brigade/ops.h>

#include "core/ops/rows.h"

static brg_status infer_along(brg_op_call *call, const char *what)
{
    const brg_tensor *x = call->in[0];
    int dim;
    BRG_TRY(brg__check_float(call, 0, what));
    BRG_TRY(brg__shape_wrap_dim(call->op->name, x->ndim, (int)call->attrs->i[0],
                                &dim));
    brg__infer_like(call, 0, x);
    return BRG_OK;
}

static brg_status run_lines(brg_op_call *call,
                            void (*row)(void *y, const void *x, size_t n))
{
    const brg_tensor *x = call->in[0], *y = call->out[0];
    if (x->numel == 0)
        return BRG_OK;
    const brg__row_kernels *k = brg__row_kernels_of((brg_dtype)x->dtype);
    brg__lines lx, ly;
    brg__lines_init(&lx, x, (int)call->attrs->i[0]);
    brg__lines_init(&ly, y, (int)call->attrs->i[0]);
    void *bx = brg__scratch(0, (size_t)lx.n * k->item, "a line of x");
    void *by = brg__scratch(1, (size_t)lx.n * k->item, "a line of y");
    if (!bx || !by)
        return brg_error_code();
    int64_t polls = 65536;
    for (int64_t i = 0; i < lx.count; i++) {
        void *to = brg__line_target(k, &ly, by);
        row(to, brg__line_load(k, &lx, bx), (size_t)lx.n);
        brg__line_store(k, &ly, to);
        brg__lines_next(&lx);
        brg__lines_next(&ly);
        brg__poll_after(&polls, lx.n);
    }
    return BRG_OK;
}

/* The gradient rows: of g and y. */
static brg_status run_grad_lines(brg_op_call *call,
                                 void (*row)(void *gx, const void *g,
                                             const void *y, size_t n))
{
    const brg_tensor *out = call->out[0];
    if (out->numel == 0)
        return BRG_OK;
    const brg__row_kernels *k = brg__row_kernels_of((brg_dtype)out->dtype);
    const int dim = (int)call->attrs->i[0];
    brg__lines lg, ly, lo;
    brg__lines_init(&lg, call->in[0], dim);
    brg__lines_init(&ly, call->in[1], dim);
    brg__lines_init(&lo, out, dim);
    void *bg = brg__scratch(0, (size_t)lg.n * k->item, "a line of g");
    void *by = brg__scratch(1, (size_t)lg.n * k->item, "a line of y");
    void *bo = brg__scratch(2, (size_t)lg.n * k->item, "a line of gx");
    if (!bg || !by || !bo)
        return brg_error_code();
    int64_t polls = 65536;
    for (int64_t i = 0; i < lo.count; i++) {
        void *to = brg__line_target(k, &lo, bo);
        row(to, brg__line_load(k, &lg, bg), brg__line_load(k, &ly, by),
            (size_t)lo.n);
        brg__line_store(k, &lo, to);
        brg__lines_next(&lg);
        brg__lines_next(&ly);
        brg__lines_next(&lo);
        brg__poll_after(&polls, lo.n);
    }
    return BRG_OK;
}

static const brg__row_kernels *kernels_of(const brg_op_call *call)
{
    return brg__row_kernels_of((brg_dtype)call->in[0]->dtype);
}

static brg_tensor *call_along(const brg_op *op, brg_tensor *x, int dim)
{
    if (x && brg__shape_wrap_dim(op->name, x->ndim, dim, &dim) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {dim}};
    return brg__call1(op, x, &attrs);
}

static brg_tensor *sum_along(brg_tensor *x, const brg_vjp *v)
{
    return brg_sum(x, BRG_DIMS((int)v->attrs->i[0]), true);
}

/* ---- softmax ---------------------------------------------------------------------- */

brg_status brg__softmax_infer(brg_op_call *call)
{
    return infer_along(call, "x");
}

brg_status brg__softmax_run(brg_op_call *call)
{
    return run_lines(call, kernels_of(call)->softmax);
}

brg_status brg__softmax_vjp(brg_vjp *v)
{
    brg_tensor *g = v->grad_out[0], *y = v->out[0];
    if (!v->is_differentiable) {
        BRG_VJP_SET(v, 0, brg__call2(&brg__op_softmax_grad, g, y, v->attrs));
        return BRG_OK;
    }
    brg_tensor *dot = sum_along(brg_mul(g, y), v);
    BRG_VJP_SET(v, 0, brg_mul(brg_sub(g, dot), y));
    return BRG_OK;
}

brg_status brg__softmax_grad_infer(brg_op_call *call)
{
    return infer_along(call, "g");
}

brg_status brg__softmax_grad_run(brg_op_call *call)
{
    return run_grad_lines(call, kernels_of(call)->softmax_grad);
}

brg_tensor *brg_softmax(brg_tensor *x, int dim)
{
    return call_along(&brg__op_softmax, x, dim);
}

/* ---- log_softmax ------------------------------------------------------------------ */

brg_status brg__log_softmax_infer(brg_op_call *call)
{
    return infer_along(call, "x");
}

brg_status brg__log_softmax_run(brg_op_call *call)
{
    return run_lines(call, kernels_of(call)->log_softmax);
}

brg_status brg__log_softmax_vjp(brg_vjp *v)
{
    brg_tensor *g = v->grad_out[0], *y = v->out[0];
    if (!v->is_differentiable) {
        BRG_VJP_SET(v, 0,
                    brg__call2(&brg__op_log_softmax_grad, g, y, v->attrs));
        return BRG_OK;
    }
    brg_tensor *sum = sum_along(g, v);
    BRG_VJP_SET(v, 0, brg_sub(g, brg_mul(brg_exp(y), sum)));
    return BRG_OK;
}

brg_status brg__log_softmax_grad_infer(brg_op_call *call)
{
    return infer_along(call, "g");
}

brg_status brg__log_softmax_grad_run(brg_op_call *call)
{
    return run_grad_lines(call, kernels_of(call)->log_softmax_grad);
}

brg_tensor *brg_log_softmax(brg_tensor *x, int dim)
{
    return call_along(&brg__op_log_softmax, x, dim);
}
