/* SPDX-License-Identifier: Apache-2.0
 * Family: sparse tensors. All ops are linear, so their gradients need places
 * and shapes, never values. A gradient that arrives here may be dense or
 * sparse itself. */
#include <inttypes.h>

#include <brigade/ops.h>

#include "core/ops/sparse.h"

/* ---- What the rows share ---------------------------------------------- */

static brg_status check_sparse(const brg_op_call *call, int i)
{
    if (call->in[i]->sparse)
        return BRG_OK;
    return brg__fail_input(BRG_ERR_ARG, call, i, "t", "a sparse tensor");
}

/* The output is sparse, like t. */
static void infer_sparse(brg_op_call *call, const brg_tensor *t)
{
    brg__infer_like(call, 0, t);
    call->info[0].is_sparse = true;
}

static brg_status infer_like_input(brg_op_call *call)
{
    BRG_TRY(check_sparse(call, 0));
    infer_sparse(call, call->in[0]);
    return BRG_OK;
}

/* Hands over a tensor just made, or gives it up. */
static brg_status finish(brg_op_call *call, brg_status status, brg_tensor *t)
{
    if (status != BRG_OK) {
        brg_release(t);
        return brg__error_prefix("%s: ", call->op->name);
    }
    call->out[0] = brg__scope_adopt(t);
    return call->out[0] ? BRG_OK : brg_error_code();
}

/* ---- sparse_coo: indices, values, like (sizes only) ------------------- */

static brg_status check_values_shape(const brg_op_call *call)
{
    const brg_tensor *indices = call->in[0], *v = call->in[1];
    const brg_tensor *like = call->in[2];
    int n_dims = (int)indices->shape[0], ndim = 1 + like->ndim - n_dims;
    int64_t shape[BRG_MAX_DIMS] = {indices->shape[1]};
    for (int d = 1; d < ndim; d++)
        shape[d] = like->shape[n_dims + d - 1];
    if (brg__shape_equal(v->ndim, v->shape, ndim, shape))
        return BRG_OK;
    char text[BRG_SHAPE_TEXT_MAX];
    return brg__fail_input(BRG_ERR_SHAPE, call, 1, "values", "shape %s",
                           brg__shape_text(ndim, shape, text));
}

brg_status brg__sparse_coo_infer(brg_op_call *call)
{
    const brg_tensor *indices = call->in[0], *like = call->in[2];
    int64_t n_places;
    BRG_TRY(brg__check_dtype(call, 0, "indices", BRG_DTYPE_I64));
    BRG_TRY(brg__check_ndim(call, 0, "indices", 2));
    BRG_TRY(brg__check_float(call, 1, "values"));
    if (indices->shape[0] < 1 || indices->shape[0] > like->ndim)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "indices",
                               "1 to %d rows", like->ndim);
    if (!brg__shape_numel((int)indices->shape[0], like->shape, &n_places))
        return brg__fail_input(BRG_ERR_SHAPE, call, 2, "shape", "fewer places");
    BRG_TRY(check_values_shape(call));
    infer_sparse(call, like);
    call->info[0].dtype = (brg_dtype)call->in[1]->dtype;
    return BRG_OK;
}

static brg_status check_range(const brg_op_call *call,
                              const brg_tensor *indices)
{
    if (brg__sparse_is_there(indices))
        return brg__sparse_check_there(indices, call->in[2]);
    const int64_t *index = brg__tensor_ptr(indices);
    int64_t nnz = indices->shape[1];
    for (int64_t d = 0; d < indices->shape[0]; d++)
        for (int64_t k = 0; k < nnz; k++) {
            int64_t i = index[d * nnz + k], size = call->in[2]->shape[d];
            if (i < 0 || i >= size)
                return BRG_FAIL(BRG_ERR_ARG,
                                "%s: index %" PRId64 " of entry %" PRId64
                                " in dim %" PRId64
                                " is out of range [0, %" PRId64 ")",
                                call->op->name, i, k, d, size);
        }
    return BRG_OK;
}

brg_status brg__sparse_coo_run(brg_op_call *call)
{
    brg_tensor *indices = brg__contiguous_now(call->in[0]), *t = NULL;
    brg_tensor *values = indices ? brg__contiguous_now(call->in[1]) : NULL;
    if (!values)
        return brg_error_code();
    BRG_TRY(check_range(call, indices));
    brg_status status =
        brg__sparse_new(&t, call->in[2], indices, values, false);
    return finish(call, status, t);
}

brg_status brg__sparse_coo_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 1,
                brg__call2(&brg__op_sparse_take, brg_to_dense(v->grad_out[0]),
                           v->in[0], NULL));
    return BRG_OK;
}

brg_tensor *brg_sparse_coo(brg_tensor *indices, brg_tensor *values, int ndim,
                           const int64_t *shape)
{
    if (!indices || !values)
        return brg__call3(&brg__op_sparse_coo, indices, values, NULL, NULL);
    brg__layout layout;
    brg_tensor *like;
    if (brg__layout_init(&layout, "brg_sparse_coo", (brg_dtype)values->dtype,
                         ndim, shape) != BRG_OK ||
        brg__tensor_new_view(&like, &layout, NULL) != BRG_OK)
        return NULL;
    like->device = values->device;
    like = brg__scope_adopt(like);
    return brg__call3(&brg__op_sparse_coo, indices, values, like, NULL);
}

/* ---- sparse_take: the values of dense x at indices -------------------- */

brg_status brg__sparse_take_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0], *indices = call->in[1];
    BRG_TRY(brg__check_float(call, 0, "x"));
    BRG_TRY(brg__check_dtype(call, 1, "indices", BRG_DTYPE_I64));
    BRG_TRY(brg__check_ndim(call, 1, "indices", 2));
    int n_dims = (int)indices->shape[0], ndim = 1 + x->ndim - n_dims;
    if (n_dims < 1 || ndim < 1)
        return brg__fail_input(BRG_ERR_SHAPE, call, 1, "indices",
                               "1 to %d rows", x->ndim);
    int64_t shape[BRG_MAX_DIMS] = {indices->shape[1]};
    for (int d = 1; d < ndim; d++)
        shape[d] = x->shape[n_dims + d - 1];
    brg__infer_shape(call, 0, (brg_dtype)x->dtype, ndim, shape);
    return BRG_OK;
}

/* The indices were checked when the tensor was made that they are of. */
brg_status brg__sparse_take_run(brg_op_call *call)
{
    brg_tensor *indices = brg__contiguous_now(call->in[1]);
    if (!indices)
        return brg_error_code();
    return brg__sparse_take(call->out[0], call->in[0], indices);
}

/* Dense, since it goes on to ops that take no other. */
brg_status brg__sparse_take_vjp(brg_vjp *v)
{
    BRG_VJP_SET(
        v, 0,
        brg_to_dense(brg__call3(&brg__op_sparse_coo, v->in[1],
                                brg_to_dense(v->grad_out[0]), v->in[0], NULL)));
    return BRG_OK;
}

/* ---- to_dense --------------------------------------------------------- */

brg_status brg__to_dense_infer(brg_op_call *call)
{
    BRG_TRY(check_sparse(call, 0));
    brg__infer_like(call, 0, call->in[0]);
    return BRG_OK;
}

brg_status brg__to_dense_run(brg_op_call *call)
{
    brg_tensor *out = call->out[0];
    if (out->numel == 0)
        return BRG_OK;
    BRG_TRY(brg__fill_now(out, 0.0));
    return brg__sparse_add_to(out, call->in[0], 1.0);
}

brg_status brg__to_dense_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, v->grad_out[0]);
    return BRG_OK;
}

brg_tensor *brg_to_dense(brg_tensor *t)
{
    return t && !t->sparse ? t : brg__call1(&brg__op_to_dense, t, NULL);
}

/* ---- sparse_copy, sparse_coalesce ------------------------------------- */

brg_status brg__sparse_copy_infer(brg_op_call *call)
{
    return infer_like_input(call);
}

brg_status brg__sparse_copy_run(brg_op_call *call)
{
    brg_tensor *t;
    brg_status status = brg__sparse_clone(&t, call->in[0]);
    return finish(call, status, t);
}

brg_status brg__sparse_copy_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, v->grad_out[0]);
    return BRG_OK;
}

brg_tensor *brg_sparse_copy(brg_tensor *t)
{
    return brg__call1(&brg__op_sparse_copy, t, NULL);
}

brg_status brg__sparse_coalesce_infer(brg_op_call *call)
{
    return infer_like_input(call);
}

brg_status brg__sparse_coalesce_run(brg_op_call *call)
{
    brg_tensor *t;
    brg_status status = brg__sparse_coalesce(&t, call->in[0]);
    return finish(call, status, t);
}

brg_status brg__sparse_coalesce_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, v->grad_out[0]);
    return BRG_OK;
}

brg_tensor *brg_sparse_coalesce(brg_tensor *t)
{
    return brg__call1(&brg__op_sparse_coalesce, t, NULL);
}

/* ---- sparse_add: one or both sparse ----------------------------------- */

brg_status brg__sparse_add_infer(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    if (!a->sparse && !b->sparse)
        return check_sparse(call, 0);
    BRG_TRY(brg__check_same_dtype(call, 0, 1));
    bool is_like = brg__shape_equal(a->ndim, a->shape, b->ndim, b->shape);
    bool is_sparse = a->sparse && b->sparse;
    if (is_like && is_sparse)
        is_like = brg__sparse_n_dims(a) == brg__sparse_n_dims(b);
    if (!is_like) {
        char text[BRG_TENSOR_TEXT_MAX];
        return brg__fail_input(BRG_ERR_SHAPE, call, 1, "b",
                               "the shape and sparse dims of %s",
                               brg__tensor_text(a, text));
    }
    brg__infer_like(call, 0, a);
    call->info[0].is_sparse = is_sparse;
    return BRG_OK;
}

brg_status brg__sparse_add_run(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    if (call->info[0].is_sparse) {
        brg_tensor *t;
        brg_status status = brg__sparse_join(&t, a, b, 1.0);
        return finish(call, status, t);
    }
    BRG_TRY(brg__copy_now(call->out[0], a->sparse ? b : a));
    return brg__sparse_add_to(call->out[0], a->sparse ? a : b, 1.0);
}

brg_status brg__sparse_add_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, v->grad_out[0]);
    BRG_VJP_SET(v, 1, v->grad_out[0]);
    return BRG_OK;
}

brg_tensor *brg_sparse_add(brg_tensor *a, brg_tensor *b)
{
    if (a && b && !a->sparse && !b->sparse)
        return brg_add(a, b);
    return brg__call2(&brg__op_sparse_add, a, b, NULL);
}

/* ---- sparse_mul_scalar, sparse_cast: new values at the same places ---- */

/* t with values of `dtype`, not set. */
static brg_status new_values(brg_tensor **out, const brg_tensor *t,
                             brg_dtype dtype)
{
    brg__layout layout = brg__layout_of(t->sparse->values);
    brg_tensor *values;
    layout.dtype = dtype;
    layout.offset = 0;
    *out = NULL;
    BRG_TRY(brg__tensor_new(&values, &layout));
    brg_status status = brg__sparse_new(out, t, t->sparse->indices, values,
                                        t->sparse->is_coalesced);
    brg_release(values);
    return status;
}

brg_status brg__sparse_mul_scalar_infer(brg_op_call *call)
{
    return infer_like_input(call);
}

brg_status brg__sparse_mul_scalar_run(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    brg_tensor *t;
    brg_status status = new_values(&t, x, (brg_dtype)x->dtype);
    if (status == BRG_OK)
        status = brg__pointwise_now(&brg__op_mul_scalar,
                                    (const brg_tensor *[]){x->sparse->values},
                                    t->sparse->values, call->attrs->f);
    return finish(call, status, t);
}

brg_status brg__sparse_mul_scalar_vjp(brg_vjp *v)
{
    brg_tensor *g = v->grad_out[0];
    double s = v->attrs->f[0];
    BRG_VJP_SET(v, 0,
                g->sparse ? brg_sparse_mul_scalar(g, s) : brg_mul_scalar(g, s));
    return BRG_OK;
}

brg_tensor *brg_sparse_mul_scalar(brg_tensor *t, double s)
{
    return brg__call1(&brg__op_sparse_mul_scalar, t, &(brg_attrs){.f = {s}});
}

brg_status brg__sparse_cast_infer(brg_op_call *call)
{
    BRG_TRY(infer_like_input(call));
    call->info[0].dtype = (brg_dtype)call->attrs->i[0];
    return BRG_OK;
}

brg_status brg__sparse_cast_run(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    brg_tensor *t;
    brg_status status = new_values(&t, x, call->info[0].dtype);
    if (status == BRG_OK)
        status = brg__copy_now(t->sparse->values, x->sparse->values);
    return finish(call, status, t);
}

brg_status brg__sparse_cast_vjp(brg_vjp *v)
{
    brg_tensor *g = v->grad_out[0];
    brg_dtype dtype = (brg_dtype)v->in[0]->dtype;
    BRG_VJP_SET(v, 0,
                g->sparse ? brg_sparse_cast(g, dtype) : brg_cast(g, dtype));
    return BRG_OK;
}

brg_tensor *brg_sparse_cast(brg_tensor *t, brg_dtype dtype)
{
    BRG_CHECK_ARG_NULL((unsigned)dtype < BRG_N_DTYPES &&
                           brg_dtype_is_float(dtype),
                       "sparse_cast: %d is not a float dtype", (int)dtype);
    brg_attrs attrs = {.i = {(int64_t)dtype}};
    return brg__call1(&brg__op_sparse_cast, t, &attrs);
}
