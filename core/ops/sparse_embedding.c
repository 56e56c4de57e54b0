/* SPDX-License-Identifier: Apache-2.0
 * Family: embedding with options. The attributes of both rows: i[0] the dim of
 * index.c (0), i[1] whether the gradient is sparse, i[2] the padding id + 1
 * (0: none). */
#include <inttypes.h>
#include <string.h>

#include <brigade/ops.h>

#include "core/base/options.h"
#include "core/ops/rows.h"
#include "core/ops/sparse.h"

/* ---- embedding_with --------------------------------------------------- */

brg_status brg__embedding_with_infer(brg_op_call *call)
{
    BRG_TRY(brg__embedding_infer(call));
    int64_t n = call->in[0]->shape[0], padding = call->attrs->i[2] - 1;
    if (padding < n)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_ARG,
                    "%s: padding_idx %" PRId64 " is out of range [0, %" PRId64
                    ")",
                    call->op->name, padding, n);
}

brg_status brg__embedding_with_run(brg_op_call *call)
{
    return brg__embedding_run(call);
}

brg_status brg__embedding_with_vjp(brg_vjp *v)
{
    brg_tensor *sparse =
        brg__call3(&brg__op_embedding_sparse_grad, v->grad_out[0], v->in[1],
                   v->in[0], v->attrs);
    BRG_VJP_SET(v, 0, v->attrs->i[1] ? sparse : brg_to_dense(sparse));
    return BRG_OK;
}

brg_tensor *brg_embedding_with(brg_tensor *weight, brg_tensor *ids,
                               const brg_embedding_options *options)
{
    brg_embedding_options o = BRG_EMBEDDING_OPTIONS_INIT;
    if (BRG_TAKE_OPTIONS(&o, options, "embedding_with",
                         BRG_EMBEDDING_OPTIONS_INIT) != BRG_OK)
        return NULL;
    BRG_CHECK_ARG_NULL(o.padding_idx >= -1,
                       "embedding_with: padding_idx %" PRId64
                       " must be an id or -1",
                       o.padding_idx);
    if (!o.sparse_grad && o.padding_idx < 0)
        return brg_embedding(weight, ids);
    brg_attrs attrs = {.i = {0, o.sparse_grad, o.padding_idx + 1}};
    return brg__call2(&brg__op_embedding_with, weight, ids, &attrs);
}

/* ---- embedding_sparse_grad: g, ids, weight (sizes only) --------------- */

brg_status brg__embedding_sparse_grad_infer(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *ids = call->in[1], *w = call->in[2];
    char text[BRG_SHAPE_TEXT_MAX];
    int64_t shape[BRG_MAX_DIMS];
    BRG_TRY(brg__check_float(call, 0, "g"));
    if (ids->dtype != BRG_DTYPE_I64 && ids->dtype != BRG_DTYPE_I32)
        return brg__fail_input(BRG_ERR_DTYPE, call, 1, "ids",
                               "dtype i64 or i32");
    BRG_TRY(brg__check_ndim(call, 2, "weight", 2));
    BRG_TRY(brg__check_ndim(call, 0, "g", ids->ndim + 1));
    memcpy(shape, ids->shape, sizeof shape);
    shape[ids->ndim] = w->shape[1];
    if (!brg__shape_equal(g->ndim, g->shape, g->ndim, shape))
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "g", "shape %s",
                               brg__shape_text(g->ndim, shape, text));
    brg__infer_like(call, 0, w);
    call->info[0].dtype = (brg_dtype)g->dtype;
    call->info[0].is_sparse = true;
    return BRG_OK;
}

/* The places (1, n): the ids that are not padding, in their order. The caller
 * owns *out. */
static brg_status new_places(brg_tensor **out, const brg_op_call *call,
                             const brg_tensor *ids)
{
    int64_t padding = call->attrs->i[2] - 1, n = 0;
    int64_t size = call->in[2]->shape[0];
    const void *from = brg__tensor_ptr(ids);
    brg__layout layout;
    *out = NULL;
    for (int64_t k = 0; k < ids->numel; k++) {
        int64_t id = brg__get_i64(from, (brg_dtype)ids->dtype, k);
        if (id < 0 || id >= size)
            return BRG_FAIL(BRG_ERR_ARG,
                            "%s: id %" PRId64 " at position %" PRId64
                            " is out of range [0, %" PRId64 ")",
                            call->op->name, id, k, size);
        n += id != padding;
    }
    BRG_TRY(brg__layout_init(&layout, call->op->name, BRG_DTYPE_I64, 2,
                             (int64_t[]){1, n}));
    BRG_TRY(brg__tensor_new(out, &layout));
    int64_t *to = n > 0 ? brg__tensor_ptr(*out) : NULL;
    for (int64_t k = 0; k < ids->numel; k++) {
        int64_t id = brg__get_i64(from, (brg_dtype)ids->dtype, k);
        if (id != padding)
            *to++ = id;
    }
    return BRG_OK;
}

/* The same on another device: all ids, those of padding nowhere. */
static brg_status new_places_there(brg_tensor **out, const brg_op_call *call,
                                   const brg_tensor *ids)
{
    brg__layout layout;
    *out = NULL;
    BRG_TRY(brg__layout_init(&layout, call->op->name, BRG_DTYPE_I64, 2,
                             (int64_t[]){1, ids->numel}));
    layout.device = ids->device;
    BRG_TRY(brg__tensor_new(out, &layout));
    brg_status status =
        brg__sparse_places_there(*out, ids, call->in[2], call->attrs->i[2] - 1);
    if (status != BRG_OK) {
        brg_release(*out);
        *out = NULL;
    }
    return status;
}

/* The rows (n, D) of g that are not padding: g itself under another shape, or
 * copies. The caller owns *out. */
static brg_status new_rows(brg_tensor **out, const brg_op_call *call,
                           const brg_tensor *g, const brg_tensor *ids,
                           int64_t n)
{
    int64_t padding = call->attrs->i[2] - 1, size = call->in[2]->shape[1];
    brg__layout layout;
    BRG_TRY(brg__layout_init(&layout, call->op->name, (brg_dtype)g->dtype, 2,
                             (int64_t[]){n, size}));
    layout.device = g->device;
    if (n == ids->numel) {
        layout.offset = g->offset;
        return brg__tensor_new_view(out, &layout, g->storage);
    }
    BRG_TRY(brg__tensor_new(out, &layout));
    size_t nbytes = (size_t)size * brg__tensor_item_size(g);
    const char *from = brg__tensor_ptr(g);
    char *to = brg__tensor_ptr(*out);
    for (int64_t k = 0; nbytes > 0 && k < ids->numel; k++, from += nbytes)
        if (brg__get_i64(brg__tensor_ptr(ids), (brg_dtype)ids->dtype, k) !=
            padding) {
            memcpy(to, from, nbytes);
            to += nbytes;
        }
    return BRG_OK;
}

brg_status brg__embedding_sparse_grad_run(brg_op_call *call)
{
    brg_tensor *ids = brg__contiguous_now(call->in[1]);
    brg_tensor *g = ids ? brg__contiguous_now(call->in[0]) : NULL;
    if (!g)
        return brg_error_code();
    brg_tensor *places, *rows = NULL, *t = NULL;
    BRG_TRY((brg__sparse_is_there(ids) ? new_places_there
                                       : new_places)(&places, call, ids));
    brg_status status = new_rows(&rows, call, g, ids, places->shape[1]);
    if (status == BRG_OK)
        status = brg__sparse_new(&t, call->in[2], places, rows, false);
    brg_release(places);
    brg_release(rows);
    if (status == BRG_OK && !(call->out[0] = brg__scope_adopt(t)))
        status = brg_error_code();
    return status;
}

/* 1 for each id but the padding, (.., 1). */
static brg_tensor *mask_of(brg_tensor *ids, double padding, brg_dtype dtype)
{
    brg_tensor *is_used = brg_ne(ids, brg_full_like(ids, padding));
    return brg_unsqueeze(brg_cast(is_used, dtype), -1);
}

brg_status brg__embedding_sparse_grad_vjp(brg_vjp *v)
{
    brg_tensor *g = brg_to_dense(v->grad_out[0]), *ids = v->in[1];
    brg_tensor *rows = brg_embedding(g, ids);
    int64_t padding = v->attrs->i[2] - 1;
    if (rows && padding >= 0)
        rows = brg_mul(rows,
                       mask_of(ids, (double)padding, (brg_dtype)rows->dtype));
    BRG_VJP_SET(v, 0, rows);
    return BRG_OK;
}
