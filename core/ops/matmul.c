/* SPDX-License-Identifier: Apache-2.0
 * Matrix products of tensors: matmul, and contract_rows, the sum over all
 * leading dims that the gradient of a weight is.
 *
 * Both rows read any strides: batch dims are merged into one product where
 * the strides allow it and walked otherwise. matmul carries two transpose
 * flags, so that its gradients are single calls of the same rows:
 *     i[0]: a is used as a^T    i[1]: b is used as b^T */
#include <string.h>

#include <brigade/ops_nn.h>
#include <brigade/ops_shape.h>

#include "core/ops/gemm.h"

/* The last two dims of t, or of its transpose; 1-D is one row. */
typedef struct matrix {
    int64_t rows, cols;
    int64_t row, col;
    int n_batch;
} matrix;

static matrix matrix_of(const brg_tensor *t, bool is_transposed)
{
    const int d = t->ndim;
    const bool is_1d = d == 1;
    matrix m = {.rows = is_1d ? 1 : t->shape[d - 2],
                .cols = t->shape[d - 1],
                .row = is_1d ? 0 : t->stride[d - 2],
                .col = t->stride[d - 1],
                .n_batch = is_1d ? 0 : d - 2};
    if (!is_transposed)
        return m;
    const matrix flipped = {.rows = m.cols,
                            .cols = m.rows,
                            .row = m.col,
                            .col = m.row,
                            .n_batch = m.n_batch};
    return flipped;
}

/* ---- matmul -------------------------------------------------------------- */

static brg_status check_pair(const brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 0, "a"));
    BRG_TRY(brg__check_float(call, 1, "b"));
    return brg__check_same_dtype(call, 1, 0);
}

brg_status brg__matmul_infer(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    BRG_TRY(check_pair(call));
    if (a->ndim == 0 || b->ndim < 2 || (a->ndim == 1 && call->attrs->i[0]))
        return brg__fail_input(BRG_ERR_SHAPE, call, a->ndim == 0 ? 0 : 1,
                               a->ndim == 0 ? "a" : "b", "a matrix");
    const matrix ma = matrix_of(a, call->attrs->i[0] != 0);
    const matrix mb = matrix_of(b, call->attrs->i[1] != 0);
    if (ma.cols != mb.rows)
        return brg__fail_input(BRG_ERR_SHAPE, call, 1, "b",
                               "%lld rows to match the columns of a",
                               (long long)ma.cols);
    int n_batch;
    int64_t shape[BRG_MAX_DIMS];
    if (!brg__shape_broadcast(ma.n_batch, a->shape, mb.n_batch, b->shape,
                              &n_batch, shape))
        return brg__fail_input(BRG_ERR_SHAPE, call, 1, "b",
                               "batch dims that broadcast with those of a");
    int ndim = n_batch;
    if (a->ndim > 1)
        shape[ndim++] = ma.rows;
    shape[ndim++] = mb.cols;
    brg__infer_shape(call, 0, (brg_dtype)a->dtype, ndim, shape);
    return BRG_OK;
}

/* Batch dims still to be walked, outermost first. */
typedef struct batch {
    int n;
    int64_t size[BRG_MAX_DIMS];
    int64_t stride_a[BRG_MAX_DIMS];
    int64_t stride_b[BRG_MAX_DIMS];
} batch;

static int64_t batch_stride(const brg_tensor *t, int n_batch, int d, int n)
{
    const int own = d - (n - n_batch);
    return own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
}

/* Lists the batch dims; the inner ones become rows of one product when they
 * share b and continue the rows of a. */
static batch batch_of(const brg_op_call *call, matrix *ma, const matrix *mb)
{
    const brg_tensor *out = call->out[0];
    batch w = {.n = out->ndim > 2 ? out->ndim - 2 : 0};
    for (int d = 0; d < w.n; d++) {
        w.size[d] = out->shape[d];
        w.stride_a[d] = batch_stride(call->in[0], ma->n_batch, d, w.n);
        w.stride_b[d] = batch_stride(call->in[1], mb->n_batch, d, w.n);
    }
    while (w.n > 0) {
        const int d = w.n - 1;
        if (w.stride_b[d] != 0)
            break;
        if (ma->rows == 1)
            ma->row = w.stride_a[d];
        else if (w.size[d] != 1 && w.stride_a[d] != ma->rows * ma->row)
            break;
        ma->rows *= w.size[d];
        w.n--;
    }
    return w;
}

/* One step of an odometer over the batch dims, moving both operands. */
static bool batch_next(const batch *w, int64_t *index, const char **a,
                       const char **b, int64_t item)
{
    for (int d = w->n - 1; d >= 0; d--) {
        *a += w->stride_a[d] * item;
        *b += w->stride_b[d] * item;
        if (++index[d] < w->size[d])
            return true;
        *a -= w->stride_a[d] * w->size[d] * item;
        *b -= w->stride_b[d] * w->size[d] * item;
        index[d] = 0;
    }
    return false;
}

brg_status brg__matmul_run(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    brg_tensor *out = call->out[0];
    if (brg__is_16_bit(a))
        return brg__run_16_as_f32(call, brg__matmul_run);
    if (out->numel == 0)
        return BRG_OK;
    matrix ma = matrix_of(a, call->attrs->i[0] != 0);
    const matrix mb = matrix_of(b, call->attrs->i[1] != 0);
    const batch w = batch_of(call, &ma, &mb);
    const int64_t item = (int64_t)brg__tensor_item_size(a);
    const char *at_a = brg__tensor_ptr(a), *at_b = brg__tensor_ptr(b);
    char *at_c = brg__tensor_ptr(out);
    int64_t index[BRG_MAX_DIMS] = {0};
    do {
        const brg__gemm g = {.dtype = (brg_dtype)a->dtype,
                             .m = ma.rows,
                             .n = mb.cols,
                             .k = ma.cols,
                             .a = brg__mat_of(at_a, ma.row, ma.col),
                             .b = brg__mat_of(at_b, mb.row, mb.col),
                             .alpha = 1.0,
                             .c = at_c,
                             .ldc = mb.cols};
        BRG_TRY(brg__gemm_run(&g));
        at_c += g.m * g.n * item;
    } while (batch_next(&w, index, &at_a, &at_b, item));
    return BRG_OK;
}

static brg_tensor *matmul_flags(brg_tensor *a, brg_tensor *b, bool is_a_t,
                                bool is_b_t)
{
    const brg_attrs attrs = {.i = {is_a_t, is_b_t}};
    return brg__call2(&brg__op_matmul, a, b, &attrs);
}

static brg_tensor *contract_rows(brg_tensor *a, brg_tensor *b)
{
    return brg__call2(&brg__op_contract_rows, a, b, NULL);
}

brg_status brg__matmul_vjp(brg_vjp *v)
{
    brg_tensor *a = v->in[0], *b = v->in[1], *g = v->grad_out[0];
    const bool ta = v->attrs->i[0] != 0, tb = v->attrs->i[1] != 0;
    if (ta)
        BRG_VJP_SET(v, 0, matmul_flags(b, g, tb, true));
    else
        BRG_VJP_SET(v, 0, matmul_flags(g, b, false, !tb));
    if (b->ndim == 2 && !ta)
        BRG_VJP_SET(v, 1, tb ? contract_rows(g, a) : contract_rows(a, g));
    else if (tb)
        BRG_VJP_SET(v, 1, matmul_flags(g, a, true, ta));
    else
        BRG_VJP_SET(v, 1, matmul_flags(a, g, !ta, false));
    return BRG_OK;
}

brg_tensor *brg_matmul(brg_tensor *a, brg_tensor *b)
{
    if (!a || !b)
        return NULL;
    if (b->ndim == 1)
        return brg_squeeze(brg_matmul(a, brg_unsqueeze(b, 1)), -1);
    if (a->ndim == 1 && b->ndim > 2)
        return brg_squeeze(brg_matmul(brg_unsqueeze(a, 0), b), -2);
    return matmul_flags(a, b, false, false);
}

/* ---- contract_rows: out (i,j) = sum over l of a (l..,i) b (l..,j) --------- */

brg_status brg__contract_rows_infer(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    BRG_TRY(check_pair(call));
    const int lead = a->ndim - 1;
    if (lead < 0 || b->ndim != a->ndim ||
        !brg__shape_equal(lead, a->shape, lead, b->shape))
        return brg__fail_input(BRG_ERR_SHAPE, call, 1, "b",
                               "the leading dims of a");
    const int64_t shape[2] = {a->shape[lead], b->shape[lead]};
    brg__infer_shape(call, 0, (brg_dtype)a->dtype, 2, shape);
    return BRG_OK;
}

/* The leading dims, merged where both operands allow it; the innermost is
 * taken out as the sum of one product. */
static batch lead_of(const brg_tensor *a, const brg_tensor *b, int64_t *k,
                     int64_t *row_a, int64_t *row_b)
{
    batch w = {0};
    for (int d = 0; d < a->ndim - 1; d++) {
        const int last = w.n - 1;
        if (a->shape[d] == 1)
            continue;
        if (last >= 0 && w.stride_a[last] == a->shape[d] * a->stride[d] &&
            w.stride_b[last] == b->shape[d] * b->stride[d]) {
            w.size[last] *= a->shape[d];
            w.stride_a[last] = a->stride[d];
            w.stride_b[last] = b->stride[d];
            continue;
        }
        w.size[w.n] = a->shape[d];
        w.stride_a[w.n] = a->stride[d];
        w.stride_b[w.n++] = b->stride[d];
    }
    const bool has_lead = w.n > 0;
    w.n -= has_lead;
    *k = has_lead ? w.size[w.n] : 1;
    *row_a = has_lead ? w.stride_a[w.n] : 0;
    *row_b = has_lead ? w.stride_b[w.n] : 0;
    return w;
}

brg_status brg__contract_rows_run(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    brg_tensor *out = call->out[0];
    if (brg__is_16_bit(a))
        return brg__run_16_as_f32(call, brg__contract_rows_run);
    if (out->numel == 0)
        return BRG_OK;
    if (a->numel == 0) {
        memset(brg__tensor_ptr(out), 0, brg_tensor_nbytes(out));
        return BRG_OK;
    }
    const int last = a->ndim - 1;
    const int64_t item = (int64_t)brg__tensor_item_size(a);
    int64_t k, row_a, row_b, index[BRG_MAX_DIMS] = {0};
    const batch w = lead_of(a, b, &k, &row_a, &row_b);
    const char *at_a = brg__tensor_ptr(a), *at_b = brg__tensor_ptr(b);
    brg__gemm g = {.dtype = (brg_dtype)a->dtype,
                   .m = a->shape[last],
                   .n = b->shape[last],
                   .k = k,
                   .alpha = 1.0,
                   .c = brg__tensor_ptr(out),
                   .ldc = b->shape[last]};
    do {
        g.a = brg__mat_of(at_a, a->stride[last], row_a);
        g.b = brg__mat_of(at_b, row_b, b->stride[last]);
        BRG_TRY(brg__gemm_run(&g));
        g.accumulate = true;
    } while (batch_next(&w, index, &at_a, &at_b, item));
    return BRG_OK;
}

brg_status brg__contract_rows_vjp(brg_vjp *v)
{
    brg_tensor *a = v->in[0], *b = v->in[1], *g = v->grad_out[0];
    BRG_VJP_SET(v, 0, matmul_flags(b, g, false, true));
    BRG_VJP_SET(v, 1, matmul_flags(a, g, false, false));
    return BRG_OK;
}

/* ---- linear: y = x w^T + b ----------------------------------------------- */

brg_status brg__linear_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0], *w = call->in[1], *b = call->in[2];
    BRG_TRY(brg__check_float(call, 0, "x"));
    BRG_TRY(brg__check_same_dtype(call, 1, 0));
    BRG_TRY(brg__check_ndim(call, 1, "weight", 2));
    if (x->ndim == 0 || x->shape[x->ndim - 1] != w->shape[1])
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x",
                               "a last dim of %lld, the weight's second",
                               (long long)w->shape[1]);
    if (b) {
        BRG_TRY(brg__check_same_dtype(call, 2, 0));
        if (b->ndim != 1 || b->shape[0] != w->shape[0])
            return brg__fail_input(BRG_ERR_SHAPE, call, 2, "bias", "[%lld]",
                                   (long long)w->shape[0]);
    }
    int64_t shape[BRG_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = w->shape[0];
    brg__infer_shape(call, 0, (brg_dtype)x->dtype, x->ndim, shape);
    return BRG_OK;
}

brg_status brg__linear_run(brg_op_call *call)
{
    brg_tensor *x = call->in[0], *b = call->in[2];
    const brg_tensor *w = call->in[1];
    brg_tensor *out = call->out[0];
    if (brg__is_16_bit(x))
        return brg__run_16_as_f32(call, brg__linear_run);
    if (out->numel == 0)
        return BRG_OK;
    const brg_tensor *bias = b ? brg__contiguous_now(b) : NULL;
    if (b && !bias)
        return brg_error_code();
    int64_t k, row_x, row_out, index[BRG_MAX_DIMS] = {0};
    const batch lead = lead_of(x, out, &k, &row_x, &row_out);
    const int64_t item = (int64_t)brg__tensor_item_size(x);
    const char *at_x = brg__tensor_ptr(x), *at_out = brg__tensor_ptr(out);
    brg__gemm g = {
        .dtype = (brg_dtype)x->dtype,
        .m = k,
        .n = w->shape[0],
        .k = w->shape[1],
        .b = brg__mat_of(brg__tensor_ptr(w), w->stride[1], w->stride[0]),
        .alpha = 1.0,
        .bias = bias ? brg__tensor_ptr(bias) : NULL,
        .ldc = w->shape[0]};
    do {
        g.a = brg__mat_of(at_x, row_x, x->stride[x->ndim - 1]);
        g.c = (char *)brg__tensor_ptr(out) +
              (at_out - (const char *)brg__tensor_ptr(out));
        BRG_TRY(brg__gemm_run(&g));
    } while (batch_next(&lead, index, &at_x, &at_out, item));
    return BRG_OK;
}

brg_status brg__linear_vjp(brg_vjp *v)
{
    brg_tensor *x = v->in[0], *w = v->in[1], *g = v->grad_out[0];
    BRG_VJP_SET(v, 0, matmul_flags(g, w, false, false));
    BRG_VJP_SET(v, 1, contract_rows(g, x));
    BRG_VJP_SET(v, 2, g); /* the engine sums the leading dims */
    return BRG_OK;
}

brg_tensor *brg_linear(brg_tensor *x, brg_tensor *weight, brg_tensor *bias)
{
    if (!x || !weight)
        return NULL;
    return brg__call3(&brg__op_linear, x, weight, bias, NULL);
}
