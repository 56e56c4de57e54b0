/* SPDX-License-Identifier: Apache-2.0
 * Indexing, joining, triangles, dropout and pooling. */
#include "core/cuda/cu.h"

#include <string.h>

#include "core/cuda/rows.h"

static int wrap(int64_t dim, const brg_tensor *t)
{
    return (int)(dim < 0 ? dim + t->ndim : dim);
}

/* ---- Picking by index ------------------------------------------------------------- */

/* Sizes of x before, at and behind dim i[0]. */
static brg__cu_index index_of(const brg_op_call *call, const brg_tensor *x,
                              const brg_tensor *ids, brg__cu_fault_op op)
{
    int dim = wrap(call->attrs->i[0], x);
    brg__cu_index a = {.op = op,
                       .dtype = x->dtype,
                       .id_dtype = ids->dtype,
                       .outer = 1,
                       .size = x->shape[dim],
                       .inner = 1};
    for (int d = 0; d < x->ndim; d++)
        if (d != dim)
            *(d < dim ? &a.outer : &a.inner) *= x->shape[d];
    a.n = op == BRG__CU_FAULT_GATHER ? ids->shape[dim] : ids->numel;
    return a;
}

static brg_status run_take(brg_op_call *call, brg__cu_fault_op op)
{
    brg__cu_temps temps;
    const brg_tensor *x = call->in[0], *ids = call->in[1], *y = call->out[0];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (y->numel == 0)
        return BRG_OK;
    brg__cu_index a = index_of(call, x, ids, op);
    brg_status status = brg__cu_rows_of(&temps, x, &a.x);
    if (status == BRG_OK)
        status = brg__cu_rows_of(&temps, ids, &a.ids);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.y = brg__tensor_ptr(y);
    int error = op == BRG__CU_FAULT_GATHER
                    ? brg__cu_take_elements(&temps.cu->queue, &a)
                    : brg__cu_take_slices(&temps.cu->queue, &a);
    return brg__cu_temps_end(&temps, brg__cu_check(error, call->op->name));
}

/* Scratch and launch of a sum by index. */
static brg_status add_up(brg__cu_temps *temps, const brg_op_call *call,
                         brg__cu_index *a)
{
    const bool is_gather = a->op == BRG__CU_FAULT_GATHER;
    const bool is_narrow =
        a->dtype == BRG_DTYPE_F16 || a->dtype == BRG_DTYPE_BF16;
    void *scratch = NULL;
    if (!is_gather &&
        (a->n >= INT32_MAX || a->size >= INT32_MAX)) /* it sorts */
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED,
                            "%s: %lld ids into %lld places, expected at most "
                            "%d of either",
                            call->op->name, (long long)a->n, (long long)a->size,
                            INT32_MAX - 1);
    if (!is_gather)
        BRG__CU_TRY(
            brg__cu_temp(temps, &scratch, brg__cu_add_slices_scratch(a)));
    else if (is_narrow)
        BRG__CU_TRY(brg__cu_temp(temps, &scratch,
                                 (size_t)(a->outer * a->size * a->inner) * 4));
    int error = is_gather ? brg__cu_add_elements(&temps->cu->queue, a, scratch)
                          : brg__cu_add_slices(&temps->cu->queue, a, scratch);
    return brg__cu_check(error, call->op->name);
}

/* Of g, ids, like x. */
static brg_status run_add(brg_op_call *call, brg__cu_fault_op op)
{
    brg__cu_temps temps;
    const brg_tensor *g = call->in[0], *ids = call->in[1], *y = call->out[0];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (y->numel == 0)
        return BRG_OK;
    if (g->numel == 0)
        return brg__cu_zero(temps.cu, y);
    brg__cu_index a = index_of(call, y, ids, op);
    a.y = brg__tensor_ptr(y);
    brg_status status = brg__cu_rows_of(&temps, g, &a.x);
    if (status == BRG_OK)
        status = brg__cu_rows_of(&temps, ids, &a.ids);
    if (status == BRG_OK)
        status = add_up(&temps, call, &a);
    return brg__cu_temps_end(&temps, status);
}

brg_status brg__cu_run_index_select(brg_op_call *call)
{
    return run_take(call, BRG__CU_FAULT_INDEX_SELECT);
}

brg_status brg__cu_run_index_select_grad(brg_op_call *call)
{
    return run_add(call, BRG__CU_FAULT_INDEX_SELECT);
}

brg_status brg__cu_run_embedding(brg_op_call *call)
{
    return run_take(call, BRG__CU_FAULT_EMBEDDING);
}

brg_status brg__cu_run_embedding_with(brg_op_call *call)
{
    return run_take(call, BRG__CU_FAULT_EMBEDDING);
}

brg_status brg__cu_run_embedding_grad(brg_op_call *call)
{
    return run_add(call, BRG__CU_FAULT_EMBEDDING);
}

brg_status brg__cu_run_gather(brg_op_call *call)
{
    return run_take(call, BRG__CU_FAULT_GATHER);
}

brg_status brg__cu_run_gather_grad(brg_op_call *call)
{
    return run_add(call, BRG__CU_FAULT_GATHER);
}

/* i[0] classes */
brg_status brg__cu_run_one_hot(brg_op_call *call)
{
    brg__cu_temps temps;
    const brg_tensor *ids = call->in[0], *y = call->out[0];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (y->numel == 0)
        return BRG_OK;
    brg__cu_index a = {.op = BRG__CU_FAULT_ONE_HOT,
                       .dtype = y->dtype,
                       .id_dtype = ids->dtype,
                       .size = call->attrs->i[0],
                       .n = ids->numel,
                       .y = brg__tensor_ptr(y)};
    brg_status status = brg__cu_rows_of(&temps, ids, &a.ids);
    if (status == BRG_OK)
        status =
            brg__cu_check(brg__cu_one_hot(&temps.cu->queue, &a), "one_hot");
    return brg__cu_temps_end(&temps, status);
}

/* ---- Joining and cutting ------------------------------------------------------------- */

/* src into the places start, start + step, ... of out along dim. */
static brg_status copy_part(brg__cu *cu, const brg_tensor *out, int dim,
                            int64_t start, int64_t step, const brg_tensor *src)
{
    if (src->numel == 0)
        return BRG_OK;
    brg_tensor part = *out;
    part.offset += start * out->stride[dim];
    part.shape[dim] = src->shape[dim];
    part.stride[dim] *= step;
    part.numel = src->numel;
    part.is_contiguous = false;
    return brg__cu_apply(cu, BRG__CU_ROW_copy, &src, &part, NULL);
}

brg_status brg__cu_run_cat(brg_op_call *call)
{
    brg__cu *cu;
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &cu));
    int dim = wrap(call->attrs->i[0], out);
    int64_t start = 0;
    for (int k = 0; k < call->n_in && call->in[k]; k++) {
        BRG__CU_TRY(copy_part(cu, out, dim, start, 1, call->in[k]));
        start += call->in[k]->shape[dim];
    }
    return BRG_OK;
}

static int64_t clip(int64_t at, int64_t size)
{
    at = at < 0 ? at + size : at;
    return at < 0 ? 0 : at > size ? size : at;
}

/* i = dim, start, end, step */
brg_status brg__cu_run_slice_grad(brg_op_call *call)
{
    brg__cu *cu;
    const brg_tensor *out = call->out[0];
    const int64_t *i = call->attrs->i;
    BRG__CU_TRY(brg__cu_enter(out->device, &cu));
    BRG__CU_TRY(brg__cu_zero(cu, out));
    int dim = wrap(i[0], out);
    return copy_part(cu, out, dim, clip(i[1], out->shape[dim]), i[3],
                     call->in[0]);
}

/* x (b,heads,t,d) into part i[2] of out (b,t,i[1] parts,heads,d). */
brg_status brg__cu_run_heads_merge(brg_op_call *call)
{
    brg__cu *cu;
    const brg_tensor *x = call->in[0], *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &cu));
    BRG__CU_TRY(brg__cu_zero(cu, out));
    if (x->numel == 0)
        return BRG_OK;
    int64_t heads = x->shape[1], t = x->shape[2], d = x->shape[3];
    int64_t row = call->attrs->i[1] * heads * d;
    brg_tensor part = *out;
    part.ndim = 4;
    memcpy(part.shape, x->shape, sizeof part.shape);
    const int64_t stride[4] = {t * row, d, row, 1};
    memcpy(part.stride, stride, sizeof stride);
    part.offset += call->attrs->i[2] * heads * d;
    part.numel = x->numel;
    part.is_contiguous = false;
    return brg__cu_apply(cu, BRG__CU_ROW_copy, &x, &part, NULL);
}

/* i[0] diagonal, i[1] upper */
brg_status brg__cu_run_tril(brg_op_call *call)
{
    brg__cu_temps temps;
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_tril a = {.item = (int)brg__tensor_item_size(out),
                      .n = out->numel,
                      .rows = out->shape[out->ndim - 2],
                      .cols = out->shape[out->ndim - 1],
                      .diagonal = call->attrs->i[0],
                      .is_upper = call->attrs->i[1] != 0,
                      .y = brg__tensor_ptr(out)};
    brg_status status = brg__cu_rows_of(&temps, call->in[0], &a.x);
    if (status == BRG_OK)
        status =
            brg__cu_check(brg__cu_tril_launch(&temps.cu->queue, &a), "tril");
    return brg__cu_temps_end(&temps, status);
}

/* ---- Dropout: i = seed, offset, from; f = p --------------------------------------------------- */

brg_status brg__cu_run_dropout(brg_op_call *call)
{
    brg__cu_temps temps;
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_dropout a = {.dtype = out->dtype,
                         .n = out->numel,
                         .seed = (uint64_t)call->attrs->i[0],
                         .offset = (uint64_t)call->attrs->i[1],
                         .from = (const uint64_t *)(uintptr_t)call->attrs->i[2],
                         .p = call->attrs->f[0],
                         .y = brg__tensor_ptr(out)};
    brg_status status = brg__cu_rows_of(&temps, call->in[0], &a.x);
    if (status == BRG_OK)
        status = brg__cu_check(brg__cu_dropout_launch(&temps.cu->queue, &a),
                               "dropout");
    return brg__cu_temps_end(&temps, status);
}

brg_status brg__cu_run_dropout_grad(brg_op_call *call)
{
    return brg__cu_run_dropout(call);
}

/* ---- Pooling: i = kernel, stride, padding, exclude ------------------------------------------ */

static brg__cu_pool pool_of(const brg_attrs *attrs, const brg_tensor *image,
                            const brg_tensor *windows)
{
    brg__cu_pool p = {.dtype = image->dtype,
                      .planes = image->shape[0] * image->shape[1],
                      .h = image->shape[2],
                      .w = image->shape[3],
                      .oh = windows->shape[2],
                      .ow = windows->shape[3],
                      .exclude_padding = attrs->i[6] != 0,
                      .is_wide = attrs->i[0] * attrs->i[1] > 256};
    for (int axis = 0; axis < 2; axis++) {
        p.kernel[axis] = attrs->i[axis];
        p.stride[axis] = attrs->i[2 + axis];
        p.padding[axis] = attrs->i[4 + axis];
    }
    return p;
}

/* Input 0 and, where `which` is an input, input 1. */
static brg_status run_pool(brg_op_call *call, const brg_tensor *image,
                           const brg_tensor *windows, bool takes_which,
                           int (*launch)(const brg__cu_queue *,
                                         const brg__cu_pool *))
{
    brg__cu_temps temps;
    const void *which = NULL;
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (out->numel == 0)
        return BRG_OK;
    brg__cu_pool p = pool_of(call->attrs, image, windows);
    brg_status status = brg__cu_rows_of(&temps, call->in[0], &p.x);
    if (status == BRG_OK && takes_which)
        status = brg__cu_rows_of(&temps, call->in[1], &which);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    p.y = brg__tensor_ptr(out);
    p.which = takes_which       ? (void *)(uintptr_t)which
              : call->n_out > 1 ? brg__tensor_ptr(call->out[1])
                                : NULL;
    return brg__cu_temps_end(
        &temps, brg__cu_check(launch(&temps.cu->queue, &p), call->op->name));
}

brg_status brg__cu_run_max_pool2d(brg_op_call *call)
{
    return run_pool(call, call->in[0], call->out[0], false, brg__cu_pool_max);
}

brg_status brg__cu_run_max_pool2d_put(brg_op_call *call)
{
    return run_pool(call, call->out[0], call->in[0], true, brg__cu_pool_put);
}

brg_status brg__cu_run_max_pool2d_take(brg_op_call *call)
{
    return run_pool(call, call->in[0], call->out[0], true, brg__cu_pool_take);
}

brg_status brg__cu_run_avg_pool2d(brg_op_call *call)
{
    return run_pool(call, call->in[0], call->out[0], false, brg__cu_pool_avg);
}

brg_status brg__cu_run_avg_pool2d_grad(brg_op_call *call)
{
    return run_pool(call, call->out[0], call->in[0], false,
                    brg__cu_pool_avg_grad);
}
