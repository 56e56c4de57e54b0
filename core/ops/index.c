/* SPDX-License-Identifier: Apache-2.0
 * Family: picking by index. index_select and embedding copy whole slices,
 * gather single elements; their gradients add the slices (elements) up in the
 * order of the indices, so that a result has the same bits each time. Sums of
 * 16-bit floats are kept in f32 until the end. */
#include <inttypes.h>
#include <string.h>

#include <brigade/ops.h>

#include "core/ops/convert.h"
#include "core/ops/rows.h"

/* ---- Indices --------------------------------------------------------- */

static brg_status check_index_dtype(const brg_op_call *call, int i)
{
    brg_dtype dtype = (brg_dtype)call->in[i]->dtype;
    if (dtype == BRG_DTYPE_I64 || dtype == BRG_DTYPE_I32)
        return BRG_OK;
    return brg__fail_input(BRG_ERR_DTYPE, call, i, "ids", "dtype i64 or i32");
}

static int64_t id_at(const brg_tensor *ids, int64_t i)
{
    return brg__get_i64(brg__tensor_ptr(ids), (brg_dtype)ids->dtype, i);
}

/* Row-major ids, all in [0, size); NULL if not. */
static brg_tensor *checked_ids(const brg_op_call *call, int i, int64_t size)
{
    brg_tensor *ids = brg__contiguous_now(call->in[i]);
    for (int64_t k = 0; ids && k < ids->numel; k++) {
        int64_t id = id_at(ids, k);
        if (id >= 0 && id < size)
            continue;
        (void)BRG_FAIL(BRG_ERR_ARG,
                       "%s: id %" PRId64 " at position %" PRId64
                       " is out of range [0, %" PRId64 ")",
                       call->op->name, id, k, size);
        return NULL;
    }
    return ids;
}

/* ---- Where gradients add up ------------------------------------------ */

/* The output itself, or f32 for 16-bit floats; zero at the start. */
typedef struct sums {
    const brg__row_kernels *k;
    const brg_tensor *out;
    char *at;
    brg_dtype dtype;
    size_t item;
} sums;

static brg_status sums_begin(sums *s, const brg_tensor *out)
{
    brg_dtype dtype = (brg_dtype)out->dtype;
    *s = (sums){.k = brg__row_kernels_of(dtype), .out = out};
    s->dtype = brg__row_compute_dtype(dtype);
    s->item = s->k->item;
    s->at = s->dtype == dtype
                ? brg__tensor_ptr(out)
                : brg__scratch(3, (size_t)out->numel * s->item, "16-bit sums");
    if (!s->at)
        return brg_error_code();
    memset(s->at, 0, (size_t)out->numel * s->item);
    return BRG_OK;
}

static void sums_end(const sums *s)
{
    if (s->dtype != (brg_dtype)s->out->dtype)
        brg__convert_row(brg__tensor_ptr(s->out), (brg_dtype)s->out->dtype,
                         s->at, s->dtype, (size_t)s->out->numel);
}

/* ---- Slices: x (outer, size, inner) and y (outer, ids, inner) -------- */

typedef struct slices {
    int64_t outer, size, inner;
} slices;

static slices slices_of(const brg_tensor *x, int dim)
{
    slices s = {1, x->shape[dim], 1};
    for (int d = 0; d < x->ndim; d++)
        if (d != dim)
            *(d < dim ? &s.outer : &s.inner) *= x->shape[d];
    return s;
}

static brg_status infer_slices(brg_op_call *call)
{
    const brg_tensor *x = call->in[0], *ids = call->in[1];
    int dim, n = 0;
    int64_t shape[2 * BRG_MAX_DIMS];
    BRG_TRY(check_index_dtype(call, 1));
    BRG_TRY(brg__shape_wrap_dim(call->op->name, x->ndim, (int)call->attrs->i[0],
                                &dim));
    for (int d = 0; d < dim; d++)
        shape[n++] = x->shape[d];
    for (int d = 0; d < ids->ndim; d++)
        shape[n++] = ids->shape[d];
    for (int d = dim + 1; d < x->ndim; d++)
        shape[n++] = x->shape[d];
    if (n > BRG_MAX_DIMS)
        return BRG_FAIL(BRG_ERR_SHAPE, "%s: the result has %d dims, at most %d",
                        call->op->name, n, BRG_MAX_DIMS);
    brg__infer_shape(call, 0, (brg_dtype)x->dtype, n, shape);
    return BRG_OK;
}

static int wrapped(const brg_op_call *call, const brg_tensor *t)
{
    int dim = (int)call->attrs->i[0];
    return dim < 0 ? dim + t->ndim : dim;
}

static brg_status run_slices(brg_op_call *call)
{
    brg_tensor *y = call->out[0];
    slices s = slices_of(call->in[0], wrapped(call, call->in[0]));
    brg_tensor *ids = checked_ids(call, 1, s.size);
    brg_tensor *x = ids ? brg__contiguous_now(call->in[0]) : NULL;
    if (!x)
        return brg_error_code();
    if (y->numel == 0)
        return BRG_OK;
    size_t nbytes = (size_t)s.inner * brg__tensor_item_size(x);
    const char *from = brg__tensor_ptr(x);
    char *to = brg__tensor_ptr(y);
    int64_t polls = 65536;
    for (int64_t o = 0; o < s.outer; o++)
        for (int64_t k = 0; k < ids->numel; k++, to += nbytes) {
            int64_t row = o * s.size + id_at(ids, k);
            memcpy(to, from + (size_t)row * nbytes, nbytes);
            brg__poll_after(&polls, s.inner);
        }
    return BRG_OK;
}

/* The gradient of g, ids, x (sizes only). */
static brg_status infer_slices_grad(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *ids = call->in[1], *x = call->in[2];
    int dim;
    BRG_TRY(check_index_dtype(call, 1));
    BRG_TRY(brg__check_float(call, 0, "g"));
    BRG_TRY(brg__shape_wrap_dim(call->op->name, x->ndim, (int)call->attrs->i[0],
                                &dim));
    slices s = slices_of(x, dim);
    if (g->numel != s.outer * ids->numel * s.inner)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "src",
                               "one slice for each of %" PRId64 " ids",
                               ids->numel);
    brg__infer_like(call, 0, x);
    call->info[0].dtype = (brg_dtype)g->dtype;
    return BRG_OK;
}

static brg_status run_slices_grad(brg_op_call *call)
{
    brg_tensor *out = call->out[0];
    slices s = slices_of(out, wrapped(call, out));
    brg_tensor *ids = checked_ids(call, 1, s.size);
    brg_tensor *g = ids ? brg__contiguous_now(call->in[0]) : NULL;
    if (!g)
        return brg_error_code();
    if (out->numel == 0)
        return BRG_OK;
    sums sum;
    BRG_TRY(sums_begin(&sum, out));
    void *buffer = brg__scratch(0, (size_t)s.inner * sum.item, "a slice");
    if (!buffer)
        return brg_error_code();
    int64_t polls = 65536, at = g->offset;
    for (int64_t o = 0; o < s.outer; o++)
        for (int64_t k = 0; k < ids->numel; k++, at += s.inner) {
            int64_t row = o * s.size + id_at(ids, k);
            const void *from =
                brg__row_load(sum.k, brg__storage_base(g), (brg_dtype)g->dtype,
                              at, 1, (size_t)s.inner, buffer);
            sum.k->add_to(sum.at + (size_t)(row * s.inner) * sum.item, from,
                          (size_t)s.inner);
            brg__poll_after(&polls, s.inner);
        }
    sums_end(&sum);
    return BRG_OK;
}

/* ---- index_select: i[0] is the dim ----------------------------------- */

brg_status brg__index_select_infer(brg_op_call *call)
{
    return infer_slices(call);
}

brg_status brg__index_select_run(brg_op_call *call)
{
    return run_slices(call);
}

brg_status brg__index_select_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0,
                brg__call3(&brg__op_index_select_grad, v->grad_out[0], v->in[1],
                           v->in[0], v->attrs));
    return BRG_OK;
}

brg_status brg__index_select_grad_infer(brg_op_call *call)
{
    return infer_slices_grad(call);
}

brg_status brg__index_select_grad_run(brg_op_call *call)
{
    return run_slices_grad(call);
}

brg_status brg__index_select_grad_vjp(brg_vjp *v)
{
    BRG_VJP_SET(
        v, 0,
        brg__call2(&brg__op_index_select, v->grad_out[0], v->in[1], v->attrs));
    return BRG_OK;
}

brg_tensor *brg_index_select(brg_tensor *x, int dim, brg_tensor *ids)
{
    brg_attrs attrs = {.i = {dim}};
    if (x && brg__shape_wrap_dim("index_select", x->ndim, dim, &dim) != BRG_OK)
        return NULL;
    attrs.i[0] = dim;
    return brg__call2(&brg__op_index_select, x, ids, &attrs);
}

brg_tensor *brg_index_add(brg_tensor *x, int dim, brg_tensor *ids,
                          brg_tensor *src)
{
    if (x && ids && src && brg_tensor_size(x, dim) >= 0 &&
        (ids->ndim != 1 || src->ndim != x->ndim ||
         brg_tensor_size(src, dim) != ids->numel)) {
        char text[BRG_TENSOR_TEXT_MAX];
        (void)BRG_FAIL(BRG_ERR_SHAPE,
                       "index_add: src is %s, expected the shape of x with "
                       "the number of ids (one dim) in dim %d",
                       brg__tensor_text(src, text), dim);
        return NULL;
    }
    if (x && brg__shape_wrap_dim("index_add", x->ndim, dim, &dim) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {dim}};
    return brg_add(x,
                   brg__call3(&brg__op_index_select_grad, src, ids, x, &attrs));
}

/* ---- embedding ------------------------------------------------------- */

brg_status brg__embedding_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_ndim(call, 0, "weight", 2));
    return infer_slices(call);
}

brg_status brg__embedding_run(brg_op_call *call)
{
    return run_slices(call);
}

brg_status brg__embedding_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0,
                brg__call3(&brg__op_embedding_grad, v->grad_out[0], v->in[1],
                           v->in[0], NULL));
    return BRG_OK;
}

brg_status brg__embedding_grad_infer(brg_op_call *call)
{
    return infer_slices_grad(call);
}

brg_status brg__embedding_grad_run(brg_op_call *call)
{
    return run_slices_grad(call);
}

brg_status brg__embedding_grad_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_embedding(v->grad_out[0], v->in[1]));
    return BRG_OK;
}

brg_tensor *brg_embedding(brg_tensor *weight, brg_tensor *ids)
{
    return brg__call2(&brg__op_embedding, weight, ids, NULL);
}

/* ---- gather: element by element along dim i[0] ----------------------- */

static brg_status check_gather(const brg_op_call *call, int i_ids,
                               const brg_tensor *x)
{
    const brg_tensor *ids = call->in[i_ids];
    int dim;
    BRG_TRY(check_index_dtype(call, i_ids));
    BRG_TRY(brg__shape_wrap_dim(call->op->name, x->ndim, (int)call->attrs->i[0],
                                &dim));
    BRG_TRY(brg__check_ndim(call, i_ids, "ids", x->ndim));
    for (int d = 0; d < x->ndim; d++)
        if (d != dim && ids->shape[d] != x->shape[d])
            return brg__fail_input(BRG_ERR_SHAPE, call, i_ids, "ids",
                                   "size %" PRId64 " in dim %d", x->shape[d],
                                   d);
    return BRG_OK;
}

brg_status brg__gather_infer(brg_op_call *call)
{
    BRG_TRY(check_gather(call, 1, call->in[0]));
    brg__infer_like(call, 0, call->in[1]);
    call->info[0].dtype = (brg_dtype)call->in[0]->dtype;
    return BRG_OK;
}

static void copy_item(char *to, const char *from, size_t item)
{
    switch (item) {
    case 8:
        memcpy(to, from, 8);
        break;
    case 4:
        memcpy(to, from, 4);
        break;
    default:
        memcpy(to, from, item);
    }
}

brg_status brg__gather_run(brg_op_call *call)
{
    const brg_tensor *x = call->in[0], *y = call->out[0];
    int dim = wrapped(call, x);
    brg_tensor *ids = checked_ids(call, 1, x->shape[dim]);
    if (!ids)
        return brg_error_code();
    if (y->numel == 0)
        return BRG_OK;
    brg__lines lx, ly, li;
    brg__lines_init(&lx, x, dim);
    brg__lines_init(&ly, y, dim);
    brg__lines_init(&li, ids, dim);
    int64_t polls = 65536;
    for (int64_t i = 0; i < ly.count; i++) {
        for (int64_t k = 0; k < ly.n; k++) {
            int64_t id = brg__get_i64(li.base, li.dtype, li.at + k * li.stride);
            copy_item(ly.base + (size_t)(ly.at + k * ly.stride) * ly.item,
                      lx.base + (size_t)(lx.at + id * lx.stride) * lx.item,
                      ly.item);
        }
        brg__lines_next(&lx);
        brg__lines_next(&ly);
        brg__lines_next(&li);
        brg__poll_after(&polls, ly.n);
    }
    return BRG_OK;
}

brg_status brg__gather_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0,
                brg__call3(&brg__op_gather_grad, v->grad_out[0], v->in[1],
                           v->in[0], v->attrs));
    return BRG_OK;
}

brg_status brg__gather_grad_infer(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *ids = call->in[1], *x = call->in[2];
    BRG_TRY(brg__check_float(call, 0, "src"));
    BRG_TRY(check_gather(call, 1, x));
    if (!brg__shape_equal(g->ndim, g->shape, ids->ndim, ids->shape)) {
        char text[BRG_SHAPE_TEXT_MAX];
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "src",
                               "shape %s, that of ids",
                               brg__shape_text(ids->ndim, ids->shape, text));
    }
    brg__infer_like(call, 0, x);
    call->info[0].dtype = (brg_dtype)g->dtype;
    return BRG_OK;
}

brg_status brg__gather_grad_run(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *out = call->out[0];
    int dim = wrapped(call, out);
    brg_tensor *ids = checked_ids(call, 1, out->shape[dim]);
    if (!ids)
        return brg_error_code();
    if (out->numel == 0)
        return BRG_OK;
    sums sum;
    BRG_TRY(sums_begin(&sum, out));
    if (g->numel == 0) {
        sums_end(&sum);
        return BRG_OK;
    }
    brg__lines lg, lo, li;
    brg__lines_init(&lg, g, dim);
    brg__lines_init(&lo, out, dim);
    brg__lines_init(&li, ids, dim);
    int64_t polls = 65536;
    for (int64_t i = 0; i < lg.count; i++) {
        for (int64_t k = 0; k < lg.n; k++) {
            int64_t id = brg__get_i64(li.base, li.dtype, li.at + k * li.stride);
            int64_t at = lo.at - out->offset + id * lo.stride;
            double v = brg__get_f64(lg.base, lg.dtype, lg.at + k * lg.stride);
            brg__put_f64(sum.at, sum.dtype, at,
                         brg__get_f64(sum.at, sum.dtype, at) + v);
        }
        brg__lines_next(&lg);
        brg__lines_next(&lo);
        brg__lines_next(&li);
        brg__poll_after(&polls, lg.n);
    }
    sums_end(&sum);
    return BRG_OK;
}

brg_status brg__gather_grad_vjp(brg_vjp *v)
{
    BRG_VJP_SET(
        v, 0, brg__call2(&brg__op_gather, v->grad_out[0], v->in[1], v->attrs));
    return BRG_OK;
}

brg_tensor *brg_gather(brg_tensor *x, int dim, brg_tensor *ids)
{
    if (x && brg__shape_wrap_dim("gather", x->ndim, dim, &dim) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {dim}};
    return brg__call2(&brg__op_gather, x, ids, &attrs);
}

brg_tensor *brg_scatter_add(brg_tensor *x, int dim, brg_tensor *ids,
                            brg_tensor *src)
{
    if (x && brg__shape_wrap_dim("scatter_add", x->ndim, dim, &dim) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {dim}};
    return brg_add(x, brg__call3(&brg__op_gather_grad, src, ids, x, &attrs));
}

/* ---- one_hot: i[0] classes, i[1] dtype ------------------------------- */

brg_status brg__one_hot_infer(brg_op_call *call)
{
    const brg_tensor *ids = call->in[0];
    BRG_TRY(check_index_dtype(call, 0));
    if (ids->ndim == BRG_MAX_DIMS)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "ids",
                               "fewer than %d dims", BRG_MAX_DIMS);
    brg__infer_like(call, 0, ids);
    brg_out_info *info = &call->info[0];
    info->dtype = (brg_dtype)call->attrs->i[1];
    info->shape[info->ndim++] = call->attrs->i[0];
    return BRG_OK;
}

brg_status brg__one_hot_run(brg_op_call *call)
{
    const brg_tensor *out = call->out[0];
    int64_t n = call->attrs->i[0];
    brg_tensor *ids = checked_ids(call, 0, n);
    if (!ids)
        return brg_error_code();
    if (out->numel == 0)
        return BRG_OK;
    char *at = brg__tensor_ptr(out);
    memset(at, 0, brg_tensor_nbytes(out));
    for (int64_t k = 0; k < ids->numel; k++)
        brg__put_i64(at, (brg_dtype)out->dtype, k * n + id_at(ids, k), 1);
    return BRG_OK;
}

brg_tensor *brg_one_hot(brg_tensor *ids, int64_t n_classes, brg_dtype dtype)
{
    BRG_CHECK_ARG_NULL(n_classes >= 0, "one_hot: %" PRId64 " classes",
                       n_classes);
    BRG_CHECK_ARG_NULL((unsigned)dtype < BRG_N_DTYPES,
                       "one_hot: %d is not a dtype", (int)dtype);
    brg_attrs attrs = {.i = {n_classes, (int64_t)dtype}};
    return brg__call1(&brg__op_one_hot, ids, &attrs);
}
