/* SPDX-License-Identifier: Apache-2.0
 * Family: reductions over a set of dims. Attributes: i[0] the dims as bits,
 * i[1] whether they stay with size 1. */
#include "core/ops/reduce.h"

#include <brigade/ops.h>

#include "core/ops/rows.h"

/* ---- Shared ---------------------------------------------------------- */

brg_status brg__reduce_dims(const char *op, const brg_tensor *x, int n_dims,
                            const int *dims, int64_t *mask)
{
    *mask = 0;
    if (!x)
        return BRG_OK; /* the call reports it */
    if (n_dims == 0)
        *mask = (INT64_C(1) << x->ndim) - 1;
    for (int k = 0; k < n_dims; k++) {
        int d;
        BRG_TRY(brg__shape_wrap_dim(op, x->ndim, dims[k], &d));
        if (*mask >> d & 1)
            return BRG_FAIL(BRG_ERR_SHAPE, "%s: dim %d is given twice", op, d);
        *mask |= INT64_C(1) << d;
    }
    return BRG_OK;
}

static void infer_reduced(brg_op_call *call, int j, brg_dtype dtype)
{
    const brg_tensor *x = call->in[0];
    int64_t shape[BRG_MAX_DIMS];
    int ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        bool is_reduced = call->attrs->i[0] >> d & 1;
        if (!is_reduced || call->attrs->i[1])
            shape[ndim++] = is_reduced ? 1 : x->shape[d];
    }
    brg__infer_shape(call, j, dtype, ndim, shape);
}

/* How many elements go into each result. */
static int64_t reduced_count(const brg_op_call *call)
{
    int64_t n = 1;
    for (int d = 0; d < call->in[0]->ndim; d++)
        if (call->attrs->i[0] >> d & 1)
            n *= call->in[0]->shape[d];
    return n;
}

static brg_status check_not_empty(const brg_op_call *call)
{
    if (reduced_count(call) > 0)
        return BRG_OK;
    return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x",
                           "at least one element to reduce");
}

static brg_status run_reduce(brg_op_call *call, brg__reduce_kind kind,
                             double scale)
{
    return brg__reduce_now(call->out[0], call->in[0],
                           (uint32_t)call->attrs->i[0], kind, scale);
}

/* A reduced tensor with its reduced dims back, as size 1. */
static brg_tensor *with_dims(const brg_vjp *v, brg_tensor *t)
{
    brg_attrs attrs = {.i = {v->attrs->i[0]}};
    if (v->attrs->i[1] || v->attrs->i[0] == 0)
        return t;
    return brg__call1(&brg__op_unsqueeze, t, &attrs);
}

static brg_tensor *reduce(const brg_op *op, brg_tensor *x, int n_dims,
                          const int *dims, bool keepdim)
{
    brg_attrs attrs = {.i = {0, keepdim}};
    if (brg__reduce_dims(op->name, x, n_dims, dims, &attrs.i[0]) != BRG_OK)
        return NULL;
    return brg__call1(op, x, &attrs);
}

/* ---- sum and mean ---------------------------------------------------- */

brg_status brg__sum_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    infer_reduced(
        call, 0, brg__tensor_is_float(x) ? (brg_dtype)x->dtype : BRG_DTYPE_I64);
    return BRG_OK;
}

brg_status brg__sum_run(brg_op_call *call)
{
    return run_reduce(call, BRG__REDUCE_SUM, 1.0);
}

brg_status brg__sum_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_expand_like(with_dims(v, v->grad_out[0]), v->in[0]));
    return BRG_OK;
}

brg_status brg__mean_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 0, "x"));
    return brg__sum_infer(call);
}

brg_status brg__mean_run(brg_op_call *call)
{
    return run_reduce(call, BRG__REDUCE_SUM, 1.0 / (double)reduced_count(call));
}

brg_status brg__mean_vjp(brg_vjp *v)
{
    brg_tensor *g = brg__div_count(v->grad_out[0], v->in[0], 1.0, 0.0);
    BRG_VJP_SET(v, 0, brg_expand_like(with_dims(v, g), v->in[0]));
    return BRG_OK;
}

brg_tensor *brg_sum(brg_tensor *x, int n_dims, const int *dims, bool keepdim)
{
    return reduce(&brg__op_sum, x, n_dims, dims, keepdim);
}

brg_tensor *brg_mean(brg_tensor *x, int n_dims, const int *dims, bool keepdim)
{
    return reduce(&brg__op_mean, x, n_dims, dims, keepdim);
}

brg_tensor *brg_sum_all(brg_tensor *x)
{
    return brg_sum(x, 0, NULL, false);
}

brg_tensor *brg_mean_all(brg_tensor *x)
{
    return brg_mean(x, 0, NULL, false);
}

/* ---- div_count: f[0] g / (numel of x / numel of g - f[1]) ---------------
 * Counts by reference, so that a recorded rule holds for every size. */

brg_status brg__div_count_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 0, "g"));
    brg__infer_like(call, 0, call->in[0]);
    return BRG_OK;
}

brg_status brg__div_count_run(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *x = call->in[1];
    if (g->numel == 0)
        return BRG_OK;
    double n = (double)x->numel / (double)g->numel - call->attrs->f[1];
    double factor = call->attrs->f[0] / (n > 0 ? n : 0.0);
    return brg__reduce_now(call->out[0], g, 0, BRG__REDUCE_SUM, factor);
}

brg_status brg__div_count_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0,
                brg__div_count(v->grad_out[0], v->in[1], v->attrs->f[0],
                               v->attrs->f[1]));
    return BRG_OK;
}

brg_tensor *brg__div_count(brg_tensor *g, brg_tensor *x, double scale,
                           double correction)
{
    brg_attrs attrs = {.f = {scale, correction}};
    return brg__call2(&brg__op_div_count, g, x, &attrs);
}

/* ---- max and min ----------------------------------------------------- */

brg_status brg__amax_infer(brg_op_call *call)
{
    BRG_TRY(check_not_empty(call));
    infer_reduced(call, 0, (brg_dtype)call->in[0]->dtype);
    return BRG_OK;
}

brg_status brg__amax_run(brg_op_call *call)
{
    return run_reduce(call, BRG__REDUCE_MAX, 1.0);
}

/* Shared equally by the elements that attain the extreme. */
brg_status brg__amax_vjp(brg_vjp *v)
{
    brg_tensor *x = v->in[0], *y = with_dims(v, v->out[0]);
    brg_tensor *g = with_dims(v, v->grad_out[0]);
    if (!y || !g)
        return brg_error_code();
    brg_tensor *hits = brg_cast(brg_eq(x, y), (brg_dtype)x->dtype);
    brg_attrs attrs = {.i = {v->attrs->i[0], true}};
    brg_tensor *n = brg__call1(&brg__op_sum, hits, &attrs);
    BRG_VJP_SET(v, 0, brg_mul(hits, brg_div(g, n)));
    return BRG_OK;
}

brg_status brg__amin_infer(brg_op_call *call)
{
    return brg__amax_infer(call);
}

brg_status brg__amin_run(brg_op_call *call)
{
    return run_reduce(call, BRG__REDUCE_MIN, 1.0);
}

brg_status brg__amin_vjp(brg_vjp *v)
{
    return brg__amax_vjp(v);
}

brg_tensor *brg_amax(brg_tensor *x, int n_dims, const int *dims, bool keepdim)
{
    return reduce(&brg__op_amax, x, n_dims, dims, keepdim);
}

brg_tensor *brg_amin(brg_tensor *x, int n_dims, const int *dims, bool keepdim)
{
    return reduce(&brg__op_amin, x, n_dims, dims, keepdim);
}

/* ---- argmax: i[0] has one bit; i[2]: smallest instead ---------------- */

brg_status brg__argmax_infer(brg_op_call *call)
{
    BRG_TRY(check_not_empty(call));
    infer_reduced(call, 0, BRG_DTYPE_I64);
    return BRG_OK;
}

/* The first of the largest; a NaN is larger (and smaller) than all. */
static int64_t argmax_ints(const brg__lines *l, bool smallest)
{
    int64_t best = 0, extreme = brg__get_i64(l->base, l->dtype, l->at);
    for (int64_t i = 1; i < l->n; i++) {
        int64_t v = brg__get_i64(l->base, l->dtype, l->at + i * l->stride);
        if (smallest ? v < extreme : v > extreme)
            extreme = v, best = i;
    }
    return best;
}

static int64_t argmax_floats(const brg__row_kernels *k, const brg__lines *l,
                             bool smallest, void *buffer)
{
    const void *row = brg__line_load(k, l, buffer);
    size_t n = (size_t)l->n;
    double extreme = smallest ? k->min(row, n) : k->max(row, n);
    bool is_nan = extreme != extreme;
    for (int64_t i = 0; i < l->n; i++) {
        double v = k->item == sizeof(float) ? (double)((const float *)row)[i]
                                            : ((const double *)row)[i];
        if (is_nan ? v != v : v == extreme)
            return i;
    }
    return 0;
}

brg_status brg__argmax_run(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    if (x->numel == 0)
        return BRG_OK;
    uint64_t dims = (uint64_t)call->attrs->i[0];
    bool smallest = call->attrs->i[2] != 0, is_float = brg__tensor_is_float(x);
    brg__lines lines;
    brg__lines_init(&lines, x, dims ? __builtin_ctzll(dims) : 0);
    const brg__row_kernels *k =
        is_float ? brg__row_kernels_of((brg_dtype)x->dtype) : NULL;
    void *buffer =
        k ? brg__scratch(0, (size_t)lines.n * k->item, "argmax") : NULL;
    if (k && !buffer)
        return brg_error_code();
    int64_t *out = brg__tensor_ptr(call->out[0]), polls = 65536;
    for (int64_t i = 0; i < lines.count; i++) {
        out[i] = k ? argmax_floats(k, &lines, smallest, buffer)
                   : argmax_ints(&lines, smallest);
        brg__lines_next(&lines);
        brg__poll_after(&polls, lines.n);
    }
    return BRG_OK;
}

static brg_tensor *arg_extreme(brg_tensor *x, int dim, bool keepdim,
                               bool smallest)
{
    if (x && brg__shape_wrap_dim(smallest ? "argmin" : "argmax", x->ndim, dim,
                                 &dim) != BRG_OK)
        return NULL;
    brg_attrs attrs = {.i = {x ? INT64_C(1) << dim : 0, keepdim, smallest}};
    return brg__call1(&brg__op_argmax, x, &attrs);
}

brg_tensor *brg_argmax(brg_tensor *x, int dim, bool keepdim)
{
    return arg_extreme(x, dim, keepdim, false);
}

brg_tensor *brg_argmin(brg_tensor *x, int dim, bool keepdim)
{
    return arg_extreme(x, dim, keepdim, true);
}

/* ---- var: f[0] is the correction ------------------------------------- */

brg_status brg__var_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 0, "x"));
    infer_reduced(call, 0, (brg_dtype)call->in[0]->dtype);
    return BRG_OK;
}

brg_status brg__var_run(brg_op_call *call)
{
    double n = (double)reduced_count(call) - call->attrs->f[0];
    return brg__reduce_var_now(call->out[0], call->in[0],
                               (uint32_t)call->attrs->i[0],
                               1.0 / (n > 0 ? n : 0.0));
}

brg_status brg__var_vjp(brg_vjp *v)
{
    brg_attrs attrs = {.i = {v->attrs->i[0], true}};
    brg_tensor *x = v->in[0];
    brg_tensor *g =
        brg__div_count(with_dims(v, v->grad_out[0]), x, 2.0, v->attrs->f[0]);
    brg_tensor *mean = brg__call1(&brg__op_mean, x, &attrs);
    BRG_VJP_SET(v, 0, brg_mul(brg_sub(x, mean), g));
    return BRG_OK;
}

brg_tensor *brg_var(brg_tensor *x, int n_dims, const int *dims,
                    double correction, bool keepdim)
{
    brg_attrs attrs = {.i = {0, keepdim}, .f = {correction}};
    if (brg__reduce_dims("var", x, n_dims, dims, &attrs.i[0]) != BRG_OK)
        return NULL;
    return brg__call1(&brg__op_var, x, &attrs);
}

/* ---- sum of squares -------------------------------------------------- */

brg_tensor *brg_sum_squares(brg_tensor *x, int n_dims, const int *dims,
                            bool keepdim)
{
    return brg_sum(brg_square(x), n_dims, dims, keepdim);
}

brg_tensor *brg_norm2(brg_tensor *x, int n_dims, const int *dims, bool keepdim)
{
    return brg_sqrt(brg_sum_squares(x, n_dims, dims, keepdim));
}

/* ---- sum_to_like ----------------------------------------------------- */

/* The dims of g that are sums of nothing but repetition. */
static bool repeated_dims(const brg_tensor *g, const brg_tensor *like,
                          uint32_t *mask)
{
    *mask = 0;
    if (g->ndim < like->ndim)
        return false;
    for (int d = 0; d < g->ndim; d++) {
        int k = d - (g->ndim - like->ndim);
        if (k < 0 || (like->shape[k] == 1 && g->shape[d] != 1))
            *mask |= 1u << d;
        else if (like->shape[k] != g->shape[d])
            return false;
    }
    return true;
}

brg_status brg__sum_to_like_infer(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *like = call->in[1];
    uint32_t mask;
    BRG_TRY(brg__check_float(call, 0, "g"));
    if (!repeated_dims(g, like, &mask)) {
        char text[BRG_SHAPE_TEXT_MAX];
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "g",
                               "a shape that %s broadcasts to",
                               brg__shape_text(like->ndim, like->shape, text));
    }
    brg__infer_shape(call, 0, (brg_dtype)g->dtype, like->ndim, like->shape);
    return BRG_OK;
}

brg_status brg__sum_to_like_run(brg_op_call *call)
{
    uint32_t mask;
    (void)repeated_dims(call->in[0], call->in[1], &mask);
    return brg__reduce_now(call->out[0], call->in[0], mask, BRG__REDUCE_SUM,
                           1.0);
}

void brg__sum_of_call(const brg_op_call *call, uint32_t *dims, double *scale)
{
    *scale = 1.0;
    if (call->op == &brg__op_sum_to_like) {
        (void)repeated_dims(call->in[0], call->in[1], dims);
        return;
    }
    *dims = (uint32_t)call->attrs->i[0];
    if (call->op == &brg__op_mean)
        *scale = 1.0 / (double)reduced_count(call);
}

brg_status brg__sum_to_like_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_expand_like(v->grad_out[0], v->in[0]));
    return BRG_OK;
}

brg_tensor *brg_sum_to_like(brg_tensor *g, brg_tensor *like)
{
    if (g && like &&
        brg__shape_equal(g->ndim, g->shape, like->ndim, like->shape))
        return g;
    return brg__call2(&brg__op_sum_to_like, g, like, NULL);
}
