/* SPDX-License-Identifier: Apache-2.0
 * Family: joining (cat), the gradient of cutting, and other ops that copy or
 * fill parts of a tensor. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <brigade/ops.h>

#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "core/ops/rows.h"
#include "core/ops/slice.h"

#define CAT_MAX 7 /* inputs of one cat; cat_part takes one more */

/* src into the `length` places of `out` from `start` on, along dim. */
static void copy_part(const brg_tensor *out, int dim, int64_t start,
                      int64_t step, const brg_tensor *src)
{
    if (src->numel == 0)
        return;
    brg_tensor part = *out;
    part.offset += start * out->stride[dim];
    part.shape[dim] = src->shape[dim];
    part.stride[dim] *= step;
    part.numel = src->numel;
    part.is_contiguous =
        brg__shape_is_contiguous(part.ndim, part.shape, part.stride);
    brg__copy_strided(&part, src);
}

static void fill_zero(const brg_tensor *out)
{
    if (out->numel > 0)
        memset(brg__tensor_ptr(out), 0, brg_tensor_nbytes(out));
}

/* ---- cat: i[0] is the dim -------------------------------------------- */

brg_status brg__cat_infer(brg_op_call *call)
{
    const brg_tensor *first = call->in[0];
    int dim;
    BRG_TRY(
        brg__shape_wrap_dim("cat", first->ndim, (int)call->attrs->i[0], &dim));
    brg__infer_like(call, 0, first);
    for (int k = 1; k < call->n_in && call->in[k]; k++) {
        const brg_tensor *x = call->in[k];
        BRG_TRY(brg__check_same_dtype(call, k, 0));
        BRG_TRY(brg__check_ndim(call, k, "part", first->ndim));
        for (int d = 0; d < x->ndim; d++)
            if (d != dim && x->shape[d] != first->shape[d])
                return brg__fail_input(BRG_ERR_SHAPE, call, k, "part",
                                       "size %" PRId64
                                       " in dim %d, as input 0 has",
                                       first->shape[d], d);
        call->info[0].shape[dim] += x->shape[dim];
    }
    return BRG_OK;
}

brg_status brg__cat_run(brg_op_call *call)
{
    const brg_tensor *out = call->out[0];
    int dim = (int)call->attrs->i[0];
    dim = dim < 0 ? dim + out->ndim : dim;
    int64_t start = 0;
    for (int k = 0; k < call->n_in && call->in[k]; k++) {
        copy_part(out, dim, start, 1, call->in[k]);
        start += call->in[k]->shape[dim];
        brg__progress_poll();
    }
    return BRG_OK;
}

/* The part of g that belongs to piece k of the pieces like[0..n). */
static brg_tensor *cat_part(brg_tensor *g, brg_tensor *const *like, int n,
                            int dim, int k)
{
    brg_tensor *in[CAT_MAX + 1] = {g};
    brg_attrs attrs = {.i = {dim, k}};
    for (int i = 0; i < n; i++)
        in[1 + i] = like[i];
    return brg__call(&brg__op_cat_part, CAT_MAX + 1, in, &attrs);
}

brg_status brg__cat_vjp(brg_vjp *v)
{
    for (int k = 0; k < v->n_in && v->in[k]; k++)
        BRG_VJP_SET(
            v, k,
            cat_part(v->grad_out[0], v->in, v->n_in, (int)v->attrs->i[0], k));
    return BRG_OK;
}

/* ---- cat_part(g, pieces..): i[0] dim, i[1] which --------------------- */

brg_status brg__cat_part_infer(brg_op_call *call)
{
    const brg_tensor *g = call->in[0];
    int dim, k = (int)call->attrs->i[1];
    BRG_TRY(
        brg__shape_wrap_dim("cat_part", g->ndim, (int)call->attrs->i[0], &dim));
    brg__infer_view(call, g);
    for (int i = 0; i < k; i++)
        call->info[0].offset += call->in[1 + i]->shape[dim] * g->stride[dim];
    call->info[0].shape[dim] = call->in[1 + k]->shape[dim];
    return BRG_OK;
}

brg_status brg__cat_part_vjp(brg_vjp *v)
{
    brg_tensor *parts[CAT_MAX] = {0};
    for (int i = 0; i < CAT_MAX && v->in[1 + i]; i++) {
        parts[i] = i == (int)v->attrs->i[1] ? v->grad_out[0]
                                            : brg_zeros_like(v->in[1 + i]);
        if (!parts[i])
            return brg_error_code();
    }
    brg_attrs attrs = {.i = {v->attrs->i[0]}};
    BRG_VJP_SET(v, 0, brg__call(&brg__op_cat, CAT_MAX, parts, &attrs));
    return BRG_OK;
}

/* More than CAT_MAX parts are joined group by group. */
brg_tensor *brg_cat(brg_tensor *const *xs, int n, int dim)
{
    BRG_CHECK_ARG_NULL(xs && n >= 1, "cat: %d parts, expected at least 1", n);
    brg_attrs attrs = {.i = {dim}};
    brg_tensor *joined = NULL;
    for (int at = 0; at < n || !joined;) {
        brg_tensor *in[CAT_MAX] = {0};
        int k = 0;
        if (joined)
            in[k++] = joined;
        for (; k < CAT_MAX && at < n; k++, at++) {
            in[k] = xs[at];
            if (!in[k]) {
                (void)brg__error_pending("cat: a part");
                return NULL;
            }
        }
        joined = brg__call(&brg__op_cat, CAT_MAX, in, &attrs);
        if (!joined)
            return NULL;
    }
    return joined;
}

brg_tensor *brg_stack(brg_tensor *const *xs, int n, int dim)
{
    BRG_CHECK_ARG_NULL(xs && n >= 1, "stack: %d parts, expected at least 1", n);
    brg_attrs attrs = {.i = {dim}};
    brg_tensor *joined = NULL;
    for (int at = 0; at < n;) {
        brg_tensor *in[CAT_MAX] = {0};
        int k = 0;
        if (joined)
            in[k++] = joined;
        for (; k < CAT_MAX && at < n; k++, at++) {
            in[k] = brg_unsqueeze(xs[at], dim);
            if (!in[k])
                return NULL;
        }
        joined = brg__call(&brg__op_cat, CAT_MAX, in, &attrs);
        if (!joined)
            return NULL;
    }
    return joined;
}

/* ---- slice_grad(g, x): zeros like x but for the slice, which is g ---- */

brg_status brg__slice_grad_infer(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *x = call->in[1];
    brg__slice s;
    BRG_TRY(brg__slice_resolve("slice_grad", x, call->attrs, &s));
    BRG_TRY(brg__check_ndim(call, 0, "g", x->ndim));
    if (g->shape[s.dim] != s.length)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "g",
                               "size %" PRId64 " in dim %d", s.length, s.dim);
    brg__infer_like(call, 0, x);
    call->info[0].dtype = (brg_dtype)g->dtype;
    return BRG_OK;
}

brg_status brg__slice_grad_run(brg_op_call *call)
{
    const brg_tensor *out = call->out[0];
    brg__slice s;
    BRG_TRY(brg__slice_resolve("slice_grad", out, call->attrs, &s));
    if (s.length * s.step < out->shape[s.dim] || s.step > 1)
        fill_zero(out);
    copy_part(out, s.dim, s.start, s.step, call->in[0]);
    return BRG_OK;
}

brg_status brg__slice_grad_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg__call1(&brg__op_slice, v->grad_out[0], v->attrs));
    return BRG_OK;
}

/* ---- full_like: f[0] ------------------------------------------------- */

brg_status brg__full_like_infer(brg_op_call *call)
{
    brg__infer_like(call, 0, call->in[0]);
    return brg__check_value("full_like", (brg_dtype)call->in[0]->dtype,
                            call->attrs->f[0]);
}

brg_status brg__full_like_run(brg_op_call *call)
{
    brg_tensor *out = call->out[0];
    double value = call->attrs->f[0];
    if (out->numel == 0)
        return BRG_OK;
    if (value == 0.0 && !signbit(value)) {
        fill_zero(out);
        return BRG_OK;
    }
    char *at = brg__tensor_ptr(out);
    size_t item = brg__tensor_item_size(out), n = brg_tensor_nbytes(out);
    brg__put_f64(at, (brg_dtype)out->dtype, 0, value);
    /* Doubling what is filled so far. */
    for (size_t done = item; done < n; done *= 2)
        memcpy(at + done, at, done < n - done ? done : n - done);
    return BRG_OK;
}

brg_tensor *brg_full_like(brg_tensor *like, double value)
{
    brg_attrs attrs = {.f = {value}};
    return brg__call1(&brg__op_full_like, like, &attrs);
}

brg_tensor *brg_zeros_like(brg_tensor *like)
{
    return brg_full_like(like, 0.0);
}

brg_tensor *brg_ones_like(brg_tensor *like)
{
    return brg_full_like(like, 1.0);
}

/* ---- arange ---------------------------------------------------------- */

brg_tensor *brg_arange(brg_dtype dtype, double start, double end, double step)
{
    BRG_CHECK_ARG_NULL(step != 0 && isfinite(start) && isfinite(end) &&
                           isfinite(step),
                       "arange: from %g to %g by %g", start, end, step);
    double n = ceil((end - start) / step);
    BRG_CHECK_ARG_NULL(n < 0x1p53, "arange: %g elements", n);
    if (n > 0 &&
        (brg__check_value("arange", dtype, start) != BRG_OK ||
         brg__check_value("arange", dtype, start + (n - 1) * step) != BRG_OK))
        return NULL;
    brg_tensor *t = brg__empty_host(dtype, BRG_SHAPE(n > 0 ? (int64_t)n : 0));
    for (int64_t i = 0; t && i < t->numel; i++)
        brg__put_f64(brg__tensor_ptr(t), dtype, i, start + (double)i * step);
    return brg__to_current(t);
}

/* ---- tril and triu: i[0] diagonal, i[1] whether upper ---------------- */

brg_status brg__tril_infer(brg_op_call *call)
{
    if (call->in[0]->ndim < 2)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x", "(..,M,N)");
    brg__infer_like(call, 0, call->in[0]);
    return BRG_OK;
}

brg_status brg__tril_run(brg_op_call *call)
{
    const brg_tensor *out = call->out[0];
    if (out->numel == 0)
        return BRG_OK;
    brg__copy_strided(out, call->in[0]);
    int64_t m = out->shape[out->ndim - 2], n = out->shape[out->ndim - 1];
    size_t item = brg__tensor_item_size(out);
    char *row = brg__tensor_ptr(out);
    for (int64_t i = 0; i < out->numel / n; i++, row += (size_t)n * item) {
        /* first column that is cleared (tril) or kept (triu) */
        int64_t edge = i % m + call->attrs->i[0] + (call->attrs->i[1] ? 0 : 1);
        edge = edge < 0 ? 0 : edge > n ? n : edge;
        if (call->attrs->i[1])
            memset(row, 0, (size_t)edge * item);
        else
            memset(row + (size_t)edge * item, 0, (size_t)(n - edge) * item);
    }
    return BRG_OK;
}

brg_status brg__tril_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg__call1(&brg__op_tril, v->grad_out[0], v->attrs));
    return BRG_OK;
}

brg_tensor *brg_tril(brg_tensor *x, int64_t diagonal)
{
    brg_attrs attrs = {.i = {diagonal, false}};
    return brg__call1(&brg__op_tril, x, &attrs);
}

brg_tensor *brg_triu(brg_tensor *x, int64_t diagonal)
{
    brg_attrs attrs = {.i = {diagonal, true}};
    return brg__call1(&brg__op_tril, x, &attrs);
}
