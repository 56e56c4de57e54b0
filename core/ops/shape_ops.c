/* SPDX-License-Identifier: Apache-2.0
 * Views: reshape, permute, squeeze, expand, slice. Each row only computes
 * sizes, strides and an offset; the gradients of a view are views or, for
 * expand and slice, sum_to_like (reduce.c) and slice_grad (join.c).
 *
 * Attributes are kept as the user gave them (-1, negative dims, ends beyond
 * the size) and resolved in infer, against the sizes of the moment. */
#include <inttypes.h>
#include <string.h>

#include <brigade/ops.h>

#include "core/ops/op.h"
#include "core/ops/slice.h"

/* ---- reshape --------------------------------------------------------- */

/* One -1 in shape becomes what is left of numel. */
static brg_status resolve_shape(const char *op, const brg_tensor *x, int ndim,
                                const int64_t *wanted, int64_t *shape)
{
    int64_t known = 1;
    int open = -1;
    bool fits = true;
    for (int i = 0; i < ndim; i++) {
        shape[i] = wanted[i];
        if (wanted[i] == -1 && open < 0)
            open = i;
        else if (wanted[i] < 0 ||
                 __builtin_mul_overflow(known, wanted[i], &known))
            fits = false;
    }
    if (fits && open >= 0) {
        fits = known != 0 && x->numel % known == 0;
        shape[open] = fits ? x->numel / known : 0;
        known = fits ? x->numel : known;
    }
    if (fits && known == x->numel)
        return BRG_OK;
    char from[BRG_TENSOR_TEXT_MAX], to[BRG_SHAPE_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_SHAPE, "%s: %s cannot become %s", op,
                    brg__tensor_text(x, from),
                    brg__shape_text(ndim, wanted, to));
}

/* Strides for the elements of x under `shape`; false if they must be copied.
 * Dims of x that lie in memory as one are a chunk; each chunk must be made of
 * whole dims of `shape`. */
static bool view_strides(const brg_tensor *x, int ndim, const int64_t *shape,
                         int64_t *stride)
{
    if (x->numel == 0 || x->ndim == 0 || x->is_contiguous) {
        brg__shape_strides(ndim, shape, stride);
        return true;
    }
    int k = ndim - 1;
    int64_t base = x->stride[x->ndim - 1], n_old = 1, n_new = 1;
    for (int d = x->ndim - 1; d >= 0; d--) {
        n_old *= x->shape[d];
        bool ends = d == 0 ||
                    (x->shape[d - 1] != 1 && x->stride[d - 1] != n_old * base);
        if (!ends)
            continue;
        for (; k >= 0 && (n_new < n_old || shape[k] == 1); k--) {
            stride[k] = n_new * base;
            n_new *= shape[k];
        }
        if (n_new != n_old)
            return false;
        if (d > 0)
            base = x->stride[d - 1];
        n_old = n_new = 1;
    }
    return k < 0;
}

static brg_status infer_reshape(brg_op_call *call, int ndim,
                                const int64_t *wanted)
{
    const brg_tensor *x = call->in[0];
    int64_t shape[BRG_MAX_DIMS];
    BRG_TRY(resolve_shape(call->op->name, x, ndim, wanted, shape));
    brg__infer_view(call, x);
    brg__infer_shape(call, 0, (brg_dtype)x->dtype, ndim, shape);
    call->info[0].is_view = true;
    if (view_strides(x, ndim, shape, call->info[0].stride))
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_SHAPE, "%s: the strides of %s allow no view",
                    call->op->name, brg__tensor_text(x, text));
}

brg_status brg__reshape_infer(brg_op_call *call)
{
    return infer_reshape(call, (int)call->attrs->i[0], call->attrs->i + 1);
}

brg_status brg__reshape_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_reshape_like(v->grad_out[0], v->in[0]));
    return BRG_OK;
}

brg_status brg__reshape_like_infer(brg_op_call *call)
{
    return infer_reshape(call, call->in[1]->ndim, call->in[1]->shape);
}

brg_status brg__reshape_like_vjp(brg_vjp *v)
{
    return brg__reshape_vjp(v);
}

/* x itself if it can be seen under the shape, else a row-major copy. A shape
 * that does not fit is left for infer to report. */
static brg_tensor *viewable(brg_tensor *x, int ndim, const int64_t *wanted)
{
    int64_t shape[BRG_MAX_DIMS], stride[BRG_MAX_DIMS];
    if (!x || x->is_contiguous ||
        resolve_shape("reshape", x, ndim, wanted, shape) ||
        view_strides(x, ndim, shape, stride))
        return x;
    return brg_contiguous(x);
}

/* {ndim, sizes} in attrs. */
static bool pack_shape(brg_attrs *attrs, const char *op, int ndim,
                       const int64_t *shape)
{
    if (ndim < 0 || ndim > BRG_MAX_DIMS || (ndim > 0 && !shape)) {
        (void)BRG_FAIL(BRG_ERR_SHAPE,
                       "%s: a shape of %d dims, expected 0 to %d", op, ndim,
                       BRG_MAX_DIMS);
        return false;
    }
    *attrs = (brg_attrs){.i = {ndim}};
    if (ndim > 0)
        memcpy(attrs->i + 1, shape, (size_t)ndim * sizeof *shape);
    return true;
}

brg_tensor *brg_reshape(brg_tensor *x, int ndim, const int64_t *shape)
{
    brg_attrs attrs;
    if (x && !pack_shape(&attrs, "reshape", ndim, shape))
        return NULL;
    return brg__call1(&brg__op_reshape, viewable(x, ndim, shape), &attrs);
}

brg_tensor *brg_reshape_like(brg_tensor *x, brg_tensor *like)
{
    if (x && like)
        x = viewable(x, like->ndim, like->shape);
    return brg__call2(&brg__op_reshape_like, x, like, NULL);
}

brg_tensor *brg_flatten(brg_tensor *x, int first, int last)
{
    int64_t shape[BRG_MAX_DIMS];
    if (!x)
        return NULL;
    if (x->ndim == 0)
        return brg_reshape(x, BRG_SHAPE(1));
    if (brg__shape_wrap_dim("flatten", x->ndim, first, &first) ||
        brg__shape_wrap_dim("flatten", x->ndim, last, &last))
        return NULL;
    BRG_CHECK_ARG_NULL(first <= last, "flatten: dim %d comes after dim %d",
                       first, last);
    int n = 0;
    for (int i = 0; i < x->ndim; i++)
        if (i <= first || i > last)
            shape[n++] = i == first ? 1 : x->shape[i];
    for (int i = first; i <= last; i++)
        shape[first] *= x->shape[i];
    /* The batch size, which may change, is best left open. */
    if (first > 0 && x->numel > 0)
        shape[0] = -1;
    return brg_reshape(x, n, shape);
}

/* ---- permute --------------------------------------------------------- */

brg_status brg__permute_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    brg__infer_view(call, x);
    unsigned seen = 0;
    for (int k = 0; k < x->ndim; k++) {
        int64_t d = call->attrs->i[k];
        if (d < 0 || d >= x->ndim || (seen >> d & 1u))
            return BRG_FAIL(BRG_ERR_SHAPE,
                            "permute: the dims are not an order of 0..%d",
                            x->ndim - 1);
        seen |= 1u << d;
        call->info[0].shape[k] = x->shape[d];
        call->info[0].stride[k] = x->stride[d];
    }
    return BRG_OK;
}

brg_status brg__permute_vjp(brg_vjp *v)
{
    brg_attrs inverse = {0};
    for (int k = 0; k < v->grad_out[0]->ndim; k++)
        inverse.i[v->attrs->i[k]] = k;
    BRG_VJP_SET(v, 0, brg__call1(&brg__op_permute, v->grad_out[0], &inverse));
    return BRG_OK;
}

brg_tensor *brg_permute(brg_tensor *x, int n_dims, const int *dims)
{
    brg_attrs attrs = {0};
    if (x && n_dims != x->ndim) {
        char text[BRG_TENSOR_TEXT_MAX];
        (void)BRG_FAIL(BRG_ERR_SHAPE, "permute: %d dims were given for %s",
                       n_dims, brg__tensor_text(x, text));
        return NULL;
    }
    for (int k = 0; x && k < n_dims; k++) {
        int d;
        if (brg__shape_wrap_dim("permute", x->ndim, dims[k], &d) != BRG_OK)
            return NULL;
        attrs.i[k] = d;
    }
    return brg__call1(&brg__op_permute, x, &attrs);
}

brg_tensor *brg_transpose(brg_tensor *x, int dim0, int dim1)
{
    brg_attrs attrs = {0};
    if (x && (brg__shape_wrap_dim("transpose", x->ndim, dim0, &dim0) ||
              brg__shape_wrap_dim("transpose", x->ndim, dim1, &dim1)))
        return NULL;
    for (int k = 0; x && k < x->ndim; k++)
        attrs.i[k] = k == dim0 ? dim1 : k == dim1 ? dim0 : k;
    return brg__call1(&brg__op_permute, x, &attrs);
}

/* ---- squeeze and unsqueeze: i[0] is the set of dims that come or go --- */

brg_status brg__squeeze_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    brg__infer_view(call, x);
    brg_out_info *info = &call->info[0];
    info->ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        if (!(call->attrs->i[0] >> d & 1)) {
            info->shape[info->ndim] = x->shape[d];
            info->stride[info->ndim++] = x->stride[d];
        } else if (x->shape[d] != 1) {
            char text[BRG_TENSOR_TEXT_MAX];
            return BRG_FAIL(BRG_ERR_SHAPE,
                            "squeeze: dim %d of %s does not have size 1", d,
                            brg__tensor_text(x, text));
        }
    }
    return BRG_OK;
}

brg_status brg__squeeze_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg__call1(&brg__op_unsqueeze, v->grad_out[0], v->attrs));
    return BRG_OK;
}

brg_status brg__unsqueeze_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    int ndim = x->ndim + __builtin_popcountll((uint64_t)call->attrs->i[0]);
    if (ndim > BRG_MAX_DIMS)
        return BRG_FAIL(BRG_ERR_SHAPE, "unsqueeze: %d dims, at most %d", ndim,
                        BRG_MAX_DIMS);
    brg__infer_view(call, x);
    brg_out_info *info = &call->info[0];
    info->ndim = ndim;
    for (int d = 0, from = 0; d < ndim; d++) {
        bool is_new = call->attrs->i[0] >> d & 1;
        info->shape[d] = is_new ? 1 : x->shape[from];
        info->stride[d] = is_new ? 1 : x->stride[from++];
    }
    return BRG_OK;
}

brg_status brg__unsqueeze_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg__call1(&brg__op_squeeze, v->grad_out[0], v->attrs));
    return BRG_OK;
}

brg_tensor *brg_squeeze(brg_tensor *x, int dim)
{
    if (x && brg__shape_wrap_dim("squeeze", x->ndim, dim, &dim) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {x ? INT64_C(1) << dim : 0}};
    return brg__call1(&brg__op_squeeze, x, &attrs);
}

brg_tensor *brg_unsqueeze(brg_tensor *x, int dim)
{
    if (x && brg__shape_wrap_dim("unsqueeze", x->ndim + 1, dim, &dim) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {x ? INT64_C(1) << dim : 0}};
    return brg__call1(&brg__op_unsqueeze, x, &attrs);
}

/* ---- expand ---------------------------------------------------------- */

static brg_status infer_expand(brg_op_call *call, int ndim,
                               const int64_t *wanted)
{
    const brg_tensor *x = call->in[0];
    brg__infer_view(call, x);
    brg_out_info *info = &call->info[0];
    info->ndim = ndim;
    bool fits = ndim >= x->ndim;
    for (int k = ndim - 1, d = x->ndim - 1; fits && k >= 0; k--, d--) {
        int64_t size = d >= 0 ? x->shape[d] : 1;
        int64_t to = wanted[k] == -1 && d >= 0 ? size : wanted[k];
        fits = to >= 0 && (size == to || size == 1);
        info->shape[k] = to;
        info->stride[k] = size == to && d >= 0 ? x->stride[d] : 0;
    }
    if (fits)
        return BRG_OK;
    char from[BRG_TENSOR_TEXT_MAX], to[BRG_SHAPE_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_SHAPE, "%s: %s cannot be expanded to %s",
                    call->op->name, brg__tensor_text(x, from),
                    brg__shape_text(ndim, wanted, to));
}

brg_status brg__expand_infer(brg_op_call *call)
{
    return infer_expand(call, (int)call->attrs->i[0], call->attrs->i + 1);
}

brg_status brg__expand_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_sum_to_like(v->grad_out[0], v->in[0]));
    return BRG_OK;
}

brg_status brg__expand_like_infer(brg_op_call *call)
{
    return infer_expand(call, call->in[1]->ndim, call->in[1]->shape);
}

brg_status brg__expand_like_vjp(brg_vjp *v)
{
    return brg__expand_vjp(v);
}

brg_tensor *brg_expand(brg_tensor *x, int ndim, const int64_t *shape)
{
    brg_attrs attrs;
    if (x && !pack_shape(&attrs, "expand", ndim, shape))
        return NULL;
    return brg__call1(&brg__op_expand, x, &attrs);
}

brg_tensor *brg_expand_like(brg_tensor *x, brg_tensor *like)
{
    return brg__call2(&brg__op_expand_like, x, like, NULL);
}

/* ---- slice ----------------------------------------------------------- */

static int64_t clip(int64_t i, int64_t size)
{
    if (i < 0)
        i += size;
    return i < 0 ? 0 : i > size ? size : i;
}

brg_status brg__slice_resolve(const char *op, const brg_tensor *x,
                              const brg_attrs *attrs, brg__slice *out)
{
    BRG_TRY(brg__shape_wrap_dim(op, x->ndim, (int)attrs->i[0], &out->dim));
    int64_t size = x->shape[out->dim];
    out->start = clip(attrs->i[1], size);
    int64_t end = clip(attrs->i[2], size);
    out->step = attrs->i[3];
    if (out->step < 1)
        return BRG_FAIL(BRG_ERR_ARG, "%s: step %" PRId64 ", expected >= 1", op,
                        out->step);
    out->length = end > out->start ? (end - out->start - 1) / out->step + 1 : 0;
    return BRG_OK;
}

brg_status brg__slice_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    brg__slice s;
    BRG_TRY(brg__slice_resolve("slice", x, call->attrs, &s));
    brg__infer_view(call, x);
    brg_out_info *info = &call->info[0];
    info->offset += s.length ? s.start * x->stride[s.dim] : 0;
    info->shape[s.dim] = s.length;
    if (s.length > 1)
        info->stride[s.dim] *= s.step;
    return BRG_OK;
}

brg_status brg__slice_vjp(brg_vjp *v)
{
    BRG_VJP_SET(
        v, 0,
        brg__call2(&brg__op_slice_grad, v->grad_out[0], v->in[0], v->attrs));
    return BRG_OK;
}

brg_tensor *brg_slice(brg_tensor *x, int dim, int64_t start, int64_t end,
                      int64_t step)
{
    brg_attrs attrs = {.i = {dim, start, end, step}};
    return brg__call1(&brg__op_slice, x, &attrs);
}

brg_tensor *brg_narrow(brg_tensor *x, int dim, int64_t start, int64_t length)
{
    if (!x)
        return brg_slice(NULL, dim, 0, 0, 1);
    int64_t size = brg_tensor_size(x, dim);
    if (size >= 0 && (start < 0 || length < 0 || start > size - length)) {
        char text[BRG_TENSOR_TEXT_MAX];
        (void)BRG_FAIL(BRG_ERR_SHAPE,
                       "narrow: %" PRId64 " elements from %" PRId64
                       " of dim %d of %s",
                       length, start, dim, brg__tensor_text(x, text));
        return NULL;
    }
    return brg_slice(x, dim, start, start + length, 1);
}

brg_tensor *brg_select(brg_tensor *x, int dim, int64_t i)
{
    int64_t size = x ? brg_tensor_size(x, dim) : 0;
    if (x && size >= 0 && (i < -size || i >= size)) {
        char text[BRG_TENSOR_TEXT_MAX];
        (void)BRG_FAIL(BRG_ERR_SHAPE,
                       "select: no index %" PRId64 " in dim %d of %s", i, dim,
                       brg__tensor_text(x, text));
        return NULL;
    }
    int64_t end = i == -1 ? BRG_TO_END : i + 1;
    brg_tensor *one = brg_slice(x, dim, i, end, 1);
    return one ? brg_squeeze(one, dim) : NULL;
}

brg_status brg_split(brg_tensor **parts, brg_tensor *x, int dim, int n,
                     const int64_t *sizes)
{
    if (n > 0)
        memset(parts, 0, (size_t)n * sizeof(brg_tensor *));
    if (!x)
        return brg__error_pending("split: x");
    BRG_TRY(brg__shape_wrap_dim("split", x->ndim, dim, &dim));
    BRG_CHECK_ARG(n > 0, "split: %d pieces", n);
    int64_t total = 0;
    for (int k = 0; sizes && k < n; k++)
        total = sizes[k] < 0 ? -1 : total + sizes[k];
    if (sizes ? total != x->shape[dim] : x->shape[dim] % n != 0)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "split: dim %d of size %" PRId64
                        " cannot be cut into %d such pieces",
                        dim, x->shape[dim], n);
    int64_t start = 0;
    for (int k = 0; k < n; k++) {
        int64_t length = sizes ? sizes[k] : x->shape[dim] / n;
        parts[k] = brg_slice(x, dim, start, start + length, 1);
        if (!parts[k]) {
            memset(parts, 0, (size_t)n * sizeof(brg_tensor *));
            return brg_error_code();
        }
        start += length;
    }
    return BRG_OK;
}
