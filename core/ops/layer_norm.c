/* SPDX-License-Identifier: Apache-2.0
 * Family: layer norm over the last i[0] dims: y = xhat w + b with
 * xhat = (x - mean) rstd, rstd = 1 / sqrt(var + f[0]).
 *
 * mean and rstd of each row, kept in the compute type, are further outputs;
 * the gradient row makes gx, gw and gb in one walk over the rows. */
#include <math.h>
#include <string.h>

#include <brigade/ops.h>

#include "core/base/alloc.h"
#include "core/ops/rows.h"

/* ---- Sizes ----------------------------------------------------------- */

static int64_t row_size(const brg_tensor *x, int64_t n_norm)
{
    int64_t n = 1;
    for (int d = x->ndim - (int)n_norm; d < x->ndim; d++)
        n *= x->shape[d];
    return n;
}

static brg_status check_param(const brg_op_call *call, int i, const char *what)
{
    const brg_tensor *x = call->in[0], *p = call->in[i];
    int n = (int)call->attrs->i[0];
    if (!p)
        return BRG_OK;
    BRG_TRY(brg__check_same_dtype(call, i, 0));
    if (brg__shape_equal(p->ndim, p->shape, n, x->shape + x->ndim - n))
        return BRG_OK;
    char text[BRG_SHAPE_TEXT_MAX];
    return brg__fail_input(BRG_ERR_SHAPE, call, i, what, "shape %s",
                           brg__shape_text(n, x->shape + x->ndim - n, text));
}

brg_status brg__layer_norm_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    int64_t n = call->attrs->i[0];
    BRG_TRY(brg__check_float(call, 0, "x"));
    if (n < 1 || n > x->ndim)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x",
                               "at least %d dims (the last are normalized)",
                               (int)n < 1 ? 1 : (int)n);
    BRG_TRY(check_param(call, 1, "weight"));
    BRG_TRY(check_param(call, 2, "bias"));
    brg_dtype dtype = brg__row_compute_dtype((brg_dtype)x->dtype);
    brg__infer_like(call, 0, x);
    for (int j = 1; j <= 2; j++)
        brg__infer_shape(call, j, dtype, x->ndim - (int)n, x->shape);
    return BRG_OK;
}

/* ---- Forward --------------------------------------------------------- */

/* A parameter as a row of the compute type; NULL stays NULL. */
static const void *param_row(const brg__row_kernels *k, brg_tensor *p,
                             void *buffer)
{
    return p ? brg__row_load(k, brg__storage_base(p), (brg_dtype)p->dtype,
                             p->offset, 1, (size_t)p->numel, buffer)
             : NULL;
}

/* Row-major copies where needed; false when out of memory. */
static bool make_rows(brg_tensor **to, brg_tensor *const *from, int n)
{
    for (int i = 0; i < n; i++) {
        to[i] = from[i] ? brg__contiguous_now(from[i]) : NULL;
        if (from[i] && !to[i])
            return false;
    }
    return true;
}

brg_status brg__layer_norm_run(brg_op_call *call)
{
    brg_tensor *in[3], *y = call->out[0];
    const brg__row_kernels *k = brg__row_kernels_of((brg_dtype)y->dtype);
    int64_t size = row_size(y, call->attrs->i[0]);
    size_t n = (size_t)size, nbytes = brg__round_up(n * k->item, 64);
    char *mem;
    if (!make_rows(in, call->in, 3) ||
        !(mem = brg__scratch(0, 4 * nbytes, "layer_norm")))
        return brg_error_code();
    const brg_tensor *x = in[0], *mean = call->out[1], *rstd = call->out[2];
    const void *w = param_row(k, in[1], mem),
               *b = param_row(k, in[2], mem + nbytes);
    int64_t polls = 65536;
    for (int64_t i = 0; i < mean->numel; i++) {
        const void *row =
            brg__row_load(k, brg__storage_base(x), (brg_dtype)x->dtype,
                          x->offset + i * size, 1, n, mem + 2 * nbytes);
        brg__row_moments m;
        m.mean = k->sum(row, n) / (double)size;
        m.rstd = 1.0 / sqrt(k->sum_sq(row, m.mean, n) / (double)size +
                            call->attrs->f[0]);
        brg__put_f64(brg__tensor_ptr(mean), (brg_dtype)mean->dtype, i, m.mean);
        brg__put_f64(brg__tensor_ptr(rstd), (brg_dtype)rstd->dtype, i, m.rstd);
        char *base = brg__storage_base(y);
        brg_dtype dtype = (brg_dtype)y->dtype;
        void *to = brg__row_target(k, base, dtype, y->offset + i * size, 1,
                                   mem + 3 * nbytes);
        k->normalize(to, row, m, w, b, n);
        brg__row_store(k, base, dtype, y->offset + i * size, 1, n, to);
        brg__poll_after(&polls, size);
    }
    return BRG_OK;
}

brg_tensor *brg_layer_norm(brg_tensor *x, brg_tensor *weight, brg_tensor *bias,
                           int n_norm_dims, double eps)
{
    brg_attrs attrs = {.i = {n_norm_dims}, .f = {eps}};
    return brg__call3(&brg__op_layer_norm, x, weight, bias, &attrs);
}

/* ---- Gradient row: of g, x, w, mean, rstd; i[0] as above ------------- */

brg_status brg__layer_norm_grad_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[1];
    BRG_TRY(brg__check_float(call, 1, "x"));
    const int n = (int)call->attrs->i[0];
    brg__infer_like(call, 0, x);
    for (int j = 1; j <= 2; j++)
        brg__infer_shape(call, j, (brg_dtype)x->dtype, n,
                         x->shape + x->ndim - n);
    return BRG_OK;
}

/* The walk: where it reads, and sums of gw and gb on the way. Those of up to
 * FLUSH_ROWS rows are held in the compute type, then added up in f64. */
#define FLUSH_ROWS 32

typedef struct walk {
    const brg__row_kernels *k;
    int64_t size;
    size_t n;
    const brg_tensor *g, *x, *mean, *rstd, *gx;
    const void *w;
    char *row_g, *row_x, *row_gx; /* buffers */
    char *gw, *gb;                /* compute type */
    double *total_w, *total_b;
} walk;

static const void *load_row(const walk *a, const brg_tensor *t, int64_t i,
                            void *buffer)
{
    return brg__row_load(a->k, brg__storage_base(t), (brg_dtype)t->dtype,
                         t->offset + i * a->size, 1, a->n, buffer);
}

static void grad_row(const walk *a, int64_t i)
{
    const void *g = load_row(a, a->g, i, a->row_g);
    const void *x = load_row(a, a->x, i, a->row_x);
    brg_dtype dtype = (brg_dtype)a->mean->dtype;
    brg__row_moments m = {brg__get_f64(brg__tensor_ptr(a->mean), dtype, i),
                          brg__get_f64(brg__tensor_ptr(a->rstd), dtype, i)};
    double s[2];
    a->k->normalize_sums(s, a->gw, a->gb, g, x, m, a->w, a->n);
    s[0] /= (double)a->size;
    s[1] /= (double)a->size;
    char *base = brg__storage_base(a->gx);
    dtype = (brg_dtype)a->gx->dtype;
    int64_t at = a->gx->offset + i * a->size;
    void *to = brg__row_target(a->k, base, dtype, at, 1, a->row_gx);
    a->k->normalize_grad(to, s, g, x, m, a->w, a->n);
    brg__row_store(a->k, base, dtype, at, 1, a->n, to);
}

static void flush(const walk *a)
{
    for (size_t c = 0; c < a->n; c += BRG__COLS) {
        size_t n = a->n - c < BRG__COLS ? a->n - c : BRG__COLS;
        a->k->col_sum(a->total_w + c, a->gw + c * a->k->item, n, 1, n);
        a->k->col_sum(a->total_b + c, a->gb + c * a->k->item, n, 1, n);
    }
    memset(a->gw, 0, a->n * a->k->item);
    memset(a->gb, 0, a->n * a->k->item);
}

/* One piece of scratch for all rows of the walk. */
static bool carve(walk *a, brg_tensor *w)
{
    size_t nbytes = brg__round_up(a->n * sizeof(double), 64);
    char *mem = brg__scratch(0, 8 * nbytes, "layer_norm_grad");
    if (!mem)
        return false;
    a->row_g = mem;
    a->row_x = mem + nbytes;
    a->row_gx = mem + 2 * nbytes;
    a->gw = mem + 3 * nbytes;
    a->gb = mem + 4 * nbytes;
    a->total_w = (double *)(void *)(mem + 5 * nbytes);
    a->total_b = (double *)(void *)(mem + 6 * nbytes);
    a->w = param_row(a->k, w, mem + 7 * nbytes);
    memset(a->gw, 0, 4 * nbytes);
    return true;
}

static void store_param(const brg_tensor *t, const double *from)
{
    for (int64_t i = 0; i < t->numel; i++)
        brg__put_f64(brg__tensor_ptr(t), (brg_dtype)t->dtype, i, from[i]);
}

brg_status brg__layer_norm_grad_run(brg_op_call *call)
{
    brg_tensor *in[5];
    if (!make_rows(in, call->in, 5))
        return brg_error_code();
    const brg_tensor *gx = call->out[0];
    walk a = {.k = brg__row_kernels_of((brg_dtype)gx->dtype),
              .size = row_size(gx, call->attrs->i[0]),
              .g = in[0],
              .x = in[1],
              .mean = in[3],
              .rstd = in[4],
              .gx = gx};
    a.n = (size_t)a.size;
    if (!carve(&a, in[2]))
        return brg_error_code();
    int64_t polls = 65536;
    for (int64_t i = 0; i < a.mean->numel; i++) {
        grad_row(&a, i);
        if (a.w && i % FLUSH_ROWS == FLUSH_ROWS - 1)
            flush(&a);
        brg__poll_after(&polls, a.size);
    }
    flush(&a);
    store_param(call->out[1], a.total_w);
    store_param(call->out[2], a.total_b);
    return BRG_OK;
}

/* ---- Gradient rule --------------------------------------------------- */

/* Written with ops: what create_graph needs. */
static brg_status vjp_by_ops(brg_vjp *v)
{
    brg_tensor *g = v->grad_out[0], *x = v->in[0], *w = v->in[1];
    brg_attrs dims = {.i = {0, true}};
    for (int d = x->ndim - (int)v->attrs->i[0]; d < x->ndim; d++)
        dims.i[0] |= INT64_C(1) << d;
    const brg_op *mean = &brg__op_mean;
    brg_tensor *xc = brg_sub(x, brg__call1(mean, x, &dims));
    brg_tensor *var = brg__call1(mean, brg_square(xc), &dims);
    brg_tensor *rstd = brg_rsqrt(brg_add_scalar(var, v->attrs->f[0]));
    brg_tensor *h = brg_mul(xc, rstd);
    brg_tensor *gh = w ? brg_mul(g, w) : g;
    brg_tensor *s0 = brg__call1(mean, gh, &dims);
    brg_tensor *s1 = brg__call1(mean, brg_mul(gh, h), &dims);
    BRG_VJP_SET(v, 0, brg_mul(rstd, brg_sub(brg_sub(gh, s0), brg_mul(h, s1))));
    BRG_VJP_SET(v, 1, brg_mul(g, h));
    BRG_VJP_SET(v, 2, g);
    return BRG_OK;
}

brg_status brg__layer_norm_vjp(brg_vjp *v)
{
    if (v->is_differentiable)
        return vjp_by_ops(v);
    brg_tensor *g = v->grad_out[0], *w = v->in[1], *out[3];
    brg_tensor *in[] = {g, v->in[0], w, v->out[1], v->out[2]};
    BRG_TRY(brg__apply_grads(&brg__op_layer_norm_grad, 5, in, v->attrs, out));
    BRG_VJP_SET(v, 0, out[0]);
    BRG_VJP_SET(v, 1, out[1]);
    BRG_VJP_SET(v, 2, w ? out[2] : g);
    return BRG_OK;
}
