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

/* One walk: x, or g and y, to out. */
typedef struct walk {
    const brg__row_kernels *k;
    void (*row)(void *y, const void *x, size_t n);
    void (*row2)(void *gx, const void *g, const void *y, size_t n);
    int n_in;
    brg__lines in[2];
    brg__lines out;
    void *buffer[3];
    int64_t polls;
} walk;

static void walk_row(const walk *w, void *to, const void *const *from)
{
    size_t n = (size_t)w->out.n;
    if (w->row)
        w->row(to, from[0], n);
    else
        w->row2(to, from[0], from[1], n);
}

static void walk_next(walk *w)
{
    for (int i = 0; i < w->n_in; i++)
        brg__lines_next(&w->in[i]);
    brg__lines_next(&w->out);
    brg__poll_after(&w->polls, w->out.n);
}

static void walk_line(walk *w)
{
    const void *from[2] = {NULL, NULL};
    for (int i = 0; i < w->n_in; i++)
        from[i] = brg__line_load(w->k, &w->in[i], w->buffer[i]);
    void *to = brg__line_target(w->k, &w->out, w->buffer[2]);
    walk_row(w, to, from);
    brg__line_store(w->k, &w->out, to);
    walk_next(w);
}

/* `width` lines that lie side by side in all tensors. */
static void walk_band(walk *w, size_t width)
{
    const brg__row_kernels *k = w->k;
    const size_t n = (size_t)w->out.n, step = brg__band_row(n) * k->item;
    const brg__lines *out = &w->out;
    const int64_t at = out->at;
    for (int i = 0; i < w->n_in; i++)
        brg__band_load(k, w->in[i].base, w->in[i].dtype, w->in[i].at,
                       w->in[i].stride, n, width, w->buffer[i]);
    for (size_t c = 0; c < width; c++) {
        const void *from[2] = {NULL, NULL};
        for (int i = 0; i < w->n_in; i++)
            from[i] = (const char *)w->buffer[i] + c * step;
        walk_row(w, (char *)w->buffer[2] + c * step, from);
        walk_next(w);
    }
    brg__band_store(k, out->base, out->dtype, at, out->stride, n, width,
                    w->buffer[2]);
}

static bool is_side_by_side(const brg__lines *l)
{
    return l->stride != 1 && l->n_outer > 0 && l->step[l->n_outer - 1] == 1;
}

static brg_status run_walk(walk *w, const brg_op_call *call)
{
    const brg_tensor *out = call->out[0];
    const int dim = (int)call->attrs->i[0];
    if (out->numel == 0)
        return BRG_OK;
    w->n_in = call->n_in;
    w->polls = 65536;
    brg__lines_init(&w->out, out, dim);
    bool by_bands = is_side_by_side(&w->out);
    for (int i = 0; i < w->n_in; i++) {
        brg__lines_init(&w->in[i], call->in[i], dim);
        by_bands = by_bands && is_side_by_side(&w->in[i]);
    }
    const size_t n = (size_t)w->out.n;
    const size_t nbytes = by_bands ? brg__band_nbytes(w->k, n) : n * w->k->item;
    for (int i = 0; i < 3; i++)
        if (!(w->buffer[i] = brg__scratch(i, nbytes, call->op->name)))
            return brg_error_code();
    const int64_t side = by_bands ? w->out.size[w->out.n_outer - 1] : 1;
    for (int64_t done = 0; done < w->out.count;) {
        const int64_t left = side - done % side;
        const int64_t width = left < BRG__BAND ? left : BRG__BAND;
        if (by_bands)
            walk_band(w, (size_t)width);
        else
            walk_line(w);
        done += by_bands ? width : 1;
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

/* ---- softmax --------------------------------------------------------- */

brg_status brg__softmax_infer(brg_op_call *call)
{
    return infer_along(call, "x");
}

brg_status brg__softmax_run(brg_op_call *call)
{
    walk w = {.k = kernels_of(call)};
    w.row = w.k->softmax;
    return run_walk(&w, call);
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
    walk w = {.k = kernels_of(call)};
    w.row2 = w.k->softmax_grad;
    return run_walk(&w, call);
}

brg_tensor *brg_softmax(brg_tensor *x, int dim)
{
    return call_along(&brg__op_softmax, x, dim);
}

/* ---- log_softmax ----------------------------------------------------- */

brg_status brg__log_softmax_infer(brg_op_call *call)
{
    return infer_along(call, "x");
}

brg_status brg__log_softmax_run(brg_op_call *call)
{
    walk w = {.k = kernels_of(call)};
    w.row = w.k->log_softmax;
    return run_walk(&w, call);
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
    walk w = {.k = kernels_of(call)};
    w.row2 = w.k->log_softmax_grad;
    return run_walk(&w, call);
}

brg_tensor *brg_log_softmax(brg_tensor *x, int dim)
{
    return call_along(&brg__op_log_softmax, x, dim);
}
