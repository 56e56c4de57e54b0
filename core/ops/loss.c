/* SPDX-License-Identifier: Apache-2.0
 * Family: losses. Cross entropy is one walk over the rows of logits each way:
 * forward keeps log(sum(exp)) of each row as a further output, the gradient
 * row makes (softmax - target) g / n from it. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <brigade/ops.h>

#include "core/base/options.h"
#include "core/ops/reduce.h"
#include "core/ops/rows.h"

/* ---- cross entropy: i[0] ignored target, i[1] classes, f[0] smoothing --- */

/* Columns that are classes; the rest is padding. */
static int64_t n_classes_of(const brg_attrs *attrs, int64_t width)
{
    return attrs->i[1] > 0 && attrs->i[1] < width ? attrs->i[1] : width;
}

static brg_status infer_targets(const brg_op_call *call, int i_logits,
                                int i_targets)
{
    const brg_tensor *x = call->in[i_logits], *t = call->in[i_targets];
    BRG_TRY(brg__check_float(call, i_logits, "logits"));
    if (x->ndim < 1)
        return brg__fail_input(BRG_ERR_SHAPE, call, i_logits, "logits",
                               "(..,C)");
    if (t->dtype != BRG_DTYPE_I64 && t->dtype != BRG_DTYPE_I32)
        return brg__fail_input(BRG_ERR_DTYPE, call, i_targets, "targets",
                               "dtype i64 or i32");
    if (brg__shape_equal(t->ndim, t->shape, x->ndim - 1, x->shape))
        return BRG_OK;
    char text[BRG_SHAPE_TEXT_MAX];
    return brg__fail_input(BRG_ERR_SHAPE, call, i_targets, "targets",
                           "shape %s, one for each row of logits",
                           brg__shape_text(x->ndim - 1, x->shape, text));
}

/* Targets of the rows of row-major logits. */
typedef struct rows {
    const brg__row_kernels *k;
    brg_tensor *logits;
    brg_tensor *targets;
    int64_t width; /* of a row: classes and padding */
    int64_t classes;
    int64_t ignored;
    double smoothing;
    int64_t n_valid;
    void *buffer[2];
} rows;

static int64_t target_of(const rows *r, int64_t i)
{
    return brg__get_i64(brg__tensor_ptr(r->targets),
                        (brg_dtype)r->targets->dtype, i);
}

static brg_status check_targets(rows *r)
{
    r->n_valid = 0;
    for (int64_t i = 0; i < r->targets->numel; i++) {
        int64_t t = target_of(r, i);
        if (t == r->ignored)
            continue;
        if (t < 0 || t >= r->classes)
            return BRG_FAIL(BRG_ERR_ARG,
                            "cross_entropy: target %" PRId64 " of row %" PRId64
                            " is out of range [0, %" PRId64 ")",
                            t, i, r->classes);
        r->n_valid++;
    }
    return BRG_OK;
}

static brg_status rows_init(rows *r, const brg_op_call *call,
                            brg_tensor *logits, brg_tensor *targets)
{
    *r =
        (rows){.k = brg__row_kernels_of((brg_dtype)logits->dtype),
               .logits = logits->storage ? brg__contiguous_now(logits) : logits,
               .targets = brg__contiguous_now(targets),
               .width = logits->shape[logits->ndim - 1],
               .ignored = call->attrs->i[0],
               .smoothing = call->attrs->f[0]};
    r->classes = n_classes_of(call->attrs, r->width);
    if (!r->logits || !r->targets)
        return brg_error_code();
    for (int i = 0; i < 2; i++)
        if (!(r->buffer[i] =
                  brg__scratch(i, (size_t)r->width * r->k->item, "logits")))
            return brg_error_code();
    return check_targets(r);
}

static const void *logits_row(const rows *r, int64_t i)
{
    const brg_tensor *x = r->logits;
    return brg__row_load(r->k, brg__storage_base(x), (brg_dtype)x->dtype,
                         x->offset + i * r->width, 1, (size_t)r->classes,
                         r->buffer[0]);
}

static double element(const rows *r, const void *row, int64_t i)
{
    return r->k->item == sizeof(float) ? (double)((const float *)row)[i]
                                       : ((const double *)row)[i];
}

brg_status brg__cross_entropy_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    BRG_TRY(infer_targets(call, 0, 1));
    const brg_dtype wide = brg__row_compute_dtype((brg_dtype)x->dtype);
    brg__infer_shape(call, 0, wide, 0, NULL);
    brg__infer_shape(call, 1, wide, x->ndim - 1, x->shape);
    return BRG_OK;
}

brg_status brg__cross_entropy_run(brg_op_call *call)
{
    rows r;
    BRG_TRY(rows_init(&r, call, call->in[0], call->in[1]));
    const brg_tensor *loss = call->out[0], *lses = call->out[1];
    double total = 0, e = r.smoothing;
    int64_t polls = 65536;
    for (int64_t i = 0; i < r.targets->numel; i++) {
        int64_t t = target_of(&r, i);
        double lse = 0;
        if (t != r.ignored) {
            const void *x = logits_row(&r, i);
            lse = r.k->log_sum_exp(x, (size_t)r.classes);
            total += (1.0 - e) * (lse - element(&r, x, t));
            if (e != 0)
                total += e * (lse - r.k->sum(x, (size_t)r.classes) /
                                        (double)r.classes);
            brg__poll_after(&polls, r.classes);
        }
        brg__put_f64(brg__tensor_ptr(lses), (brg_dtype)lses->dtype, i, lse);
    }
    brg__put_f64(brg__tensor_ptr(loss), (brg_dtype)loss->dtype, 0,
                 total / (double)r.n_valid);
    return BRG_OK;
}

/* The gradient row: of g, logits, targets, lse. */
brg_status brg__cross_entropy_grad_infer(brg_op_call *call)
{
    BRG_TRY(infer_targets(call, 1, 2));
    brg__infer_like(call, 0, call->in[1]);
    return BRG_OK;
}

/* What the smoothed target distribution says of one row, times scale. */
static void take_target(const rows *r, void *row, int64_t t, double scale)
{
    double d = (1.0 - r->smoothing) * scale;
    if (r->k->item == sizeof(float))
        ((float *)row)[t] -= (float)d;
    else
        ((double *)row)[t] -= d;
}

brg_status brg__cross_entropy_grad_run(brg_op_call *call)
{
    rows r;
    BRG_TRY(rows_init(&r, call, call->in[1], call->in[2]));
    const brg_tensor *g = call->in[0], *out = call->out[0];
    brg_tensor *lses = brg__contiguous_now(call->in[3]);
    if (!lses)
        return brg_error_code();
    double scale = brg__get_f64(brg__tensor_ptr(g), (brg_dtype)g->dtype, 0) /
                   (double)r.n_valid;
    size_t n = (size_t)r.classes, width = (size_t)r.width;
    char *base = brg__storage_base(out);
    brg_dtype dtype = (brg_dtype)out->dtype;
    int64_t polls = 65536;
    for (int64_t i = 0; i < r.targets->numel; i++) {
        int64_t t = target_of(&r, i), at = out->offset + i * r.width;
        void *to = brg__row_target(r.k, base, dtype, at, 1, r.buffer[1]);
        if (t == r.ignored) {
            memset(to, 0, width * r.k->item);
        } else {
            double lse =
                brg__get_f64(brg__tensor_ptr(lses), (brg_dtype)lses->dtype, i);
            r.k->soft_targets(to, logits_row(&r, i), lse,
                              r.smoothing / (double)r.classes, scale, n);
            take_target(&r, to, t, scale);
            memset((char *)to + n * r.k->item, 0, (width - n) * r.k->item);
        }
        brg__row_store(r.k, base, dtype, at, 1, width, to);
        brg__poll_after(&polls, r.width);
    }
    return BRG_OK;
}

/* Of logits (sizes only) and targets: the target distributions / n, zero where
 * ignored, and the weight of each row: 1 / n or 0. */
brg_status brg__cross_entropy_targets_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    BRG_TRY(infer_targets(call, 0, 1));
    brg__infer_like(call, 0, x);
    brg__infer_like(call, 1, x);
    call->info[1].shape[x->ndim - 1] = 1;
    return BRG_OK;
}

brg_status brg__cross_entropy_targets_run(brg_op_call *call)
{
    rows r;
    BRG_TRY(rows_init(&r, call, call->in[0], call->in[1]));
    const brg_tensor *q = call->out[0], *weight = call->out[1];
    char *base = brg__tensor_ptr(q);
    brg_dtype dtype = (brg_dtype)q->dtype;
    for (int64_t i = 0; i < r.targets->numel; i++) {
        int64_t t = target_of(&r, i);
        double w = t == r.ignored ? 0.0 : 1.0 / (double)r.n_valid;
        double rest = w * r.smoothing / (double)r.classes;
        for (int64_t c = 0; c < r.width; c++)
            brg__put_f64(base, dtype, i * r.width + c,
                         c >= r.classes ? 0.0
                         : c == t       ? rest + w * (1.0 - r.smoothing)
                                        : rest);
        brg__put_f64(brg__tensor_ptr(weight), dtype, i, w);
    }
    return BRG_OK;
}

/* Zero behind the first n columns, which are fewer than all or all. By
 * slices that end where x does: a captured rule serves every width. */
static brg_tensor *softmax_of_first(brg_tensor *x, int64_t n, brg_tensor *like)
{
    brg_tensor *behind = brg_slice(like, -1, n, BRG_TO_END, 1);
    brg_tensor *parts[] = {brg_softmax(brg_slice(x, -1, 0, n, 1), -1),
                           brg_mul_scalar(behind, 0.0)};
    return brg_cat(parts, 2, -1);
}

static brg_status cross_entropy_vjp_by_ops(brg_vjp *v)
{
    brg_tensor *logits = v->in[0], *out[2];
    brg_tensor *g = brg_cast(v->grad_out[0], (brg_dtype)logits->dtype);
    BRG_TRY(brg_op_apply(&brg__op_cross_entropy_targets, 2,
                         (brg_tensor *[]){logits, v->in[1]}, v->attrs, out));
    const int64_t classes = v->attrs->i[1];
    brg_tensor *p = classes > 0 ? softmax_of_first(logits, classes, out[0])
                                : brg_softmax(logits, -1);
    p = brg_mul(p, out[1]);
    BRG_VJP_SET(v, 0, brg_mul(brg_sub(p, out[0]), g));
    return BRG_OK;
}

brg_status brg__cross_entropy_vjp(brg_vjp *v)
{
    if (v->is_differentiable)
        return cross_entropy_vjp_by_ops(v);
    brg_tensor *in[] = {v->grad_out[0], v->in[0], v->in[1], v->out[1]};
    BRG_VJP_SET(v, 0, brg__call(&brg__op_cross_entropy_grad, 4, in, v->attrs));
    return BRG_OK;
}

brg_tensor *brg_cross_entropy_with(brg_tensor *logits, brg_tensor *targets,
                                   const brg_cross_entropy_options *options)
{
    brg_cross_entropy_options o = BRG_CROSS_ENTROPY_OPTIONS_INIT;
    if (BRG_TAKE_OPTIONS(&o, options, "cross_entropy",
                         BRG_CROSS_ENTROPY_OPTIONS_INIT) != BRG_OK)
        return NULL;
    BRG_CHECK_ARG_NULL(o.label_smoothing >= 0 && o.label_smoothing <= 1,
                       "cross_entropy: label_smoothing is %g, expected 0 to 1",
                       o.label_smoothing);
    BRG_CHECK_ARG_NULL(o.n_classes >= 0,
                       "cross_entropy: n_classes is %lld, expected 0 or more",
                       (long long)o.n_classes);
    brg_attrs attrs = {.i = {o.ignore_index, o.n_classes},
                       .f = {o.label_smoothing}};
    return brg__call2(&brg__op_cross_entropy, logits, targets, &attrs);
}

brg_tensor *brg_cross_entropy(brg_tensor *logits, brg_tensor *targets)
{
    return brg_cross_entropy_with(logits, targets, NULL);
}

/* ---- mean of squared differences ------------------------------------- */

brg_status brg__mse_infer(brg_op_call *call)
{
    const brg_tensor *a = call->in[0], *b = call->in[1];
    BRG_TRY(brg__check_float(call, 0, "prediction"));
    BRG_TRY(brg__check_same_dtype(call, 1, 0));
    if (!brg__shape_equal(a->ndim, a->shape, b->ndim, b->shape)) {
        char text[BRG_SHAPE_TEXT_MAX];
        return brg__fail_input(BRG_ERR_SHAPE, call, 1, "target",
                               "shape %s, that of the prediction",
                               brg__shape_text(a->ndim, a->shape, text));
    }
    brg__infer_shape(call, 0, (brg_dtype)a->dtype, 0, NULL);
    return BRG_OK;
}

#define PIECE 2048

/* Elements [i, i + n) of a row-major tensor, as a row. */
static const void *load_piece(const brg__row_kernels *k, const brg_tensor *t,
                              int64_t i, size_t n, void *buffer)
{
    return brg__row_load(k, brg__storage_base(t), (brg_dtype)t->dtype,
                         t->offset + i, 1, n, buffer);
}

brg_status brg__mse_run(brg_op_call *call)
{
    brg_tensor *a = brg__contiguous_now(call->in[0]);
    brg_tensor *b = brg__contiguous_now(call->in[1]), *out = call->out[0];
    if (!a || !b)
        return brg_error_code();
    const brg__row_kernels *k = brg__row_kernels_of((brg_dtype)a->dtype);
    double buffer[2][PIECE], total = 0;
    int64_t polls = 65536;
    for (int64_t i = 0; i < a->numel; i += PIECE) {
        size_t n = (size_t)(a->numel - i < PIECE ? a->numel - i : PIECE);
        total += k->sum_sq_diff(load_piece(k, a, i, n, buffer[0]),
                                load_piece(k, b, i, n, buffer[1]), n);
        brg__poll_after(&polls, PIECE);
    }
    brg__put_f64(brg__tensor_ptr(out), (brg_dtype)out->dtype, 0,
                 total / (double)a->numel);
    return BRG_OK;
}

/* The gradient row: 2 (a - b) g / n, of g, a, b. */
brg_status brg__mse_grad_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 1, "prediction"));
    brg__infer_like(call, 0, call->in[1]);
    return BRG_OK;
}

brg_status brg__mse_grad_run(brg_op_call *call)
{
    const brg_tensor *g = call->in[0], *out = call->out[0];
    brg_tensor *a = brg__contiguous_now(call->in[1]);
    brg_tensor *b = brg__contiguous_now(call->in[2]);
    if (!a || !b)
        return brg_error_code();
    const brg__row_kernels *k = brg__row_kernels_of((brg_dtype)a->dtype);
    double scale = brg__get_f64(brg__tensor_ptr(g), (brg_dtype)g->dtype, 0) *
                   2.0 / (double)a->numel;
    double buffer[3][PIECE];
    char *base = brg__storage_base(out);
    brg_dtype dtype = (brg_dtype)out->dtype;
    int64_t polls = 65536;
    for (int64_t i = 0; i < a->numel; i += PIECE) {
        size_t n = (size_t)(a->numel - i < PIECE ? a->numel - i : PIECE);
        int64_t at = out->offset + i;
        void *to = brg__row_target(k, base, dtype, at, 1, buffer[2]);
        k->scaled_diff(to, load_piece(k, a, i, n, buffer[0]),
                       load_piece(k, b, i, n, buffer[1]), scale, n);
        brg__row_store(k, base, dtype, at, 1, n, to);
        brg__poll_after(&polls, PIECE);
    }
    return BRG_OK;
}

brg_status brg__mse_vjp(brg_vjp *v)
{
    brg_tensor *g = v->grad_out[0], *a = v->in[0], *b = v->in[1], *ga;
    if (v->is_differentiable)
        ga = brg_mul(brg_sub(a, b), brg__div_count(g, a, 2.0, 0.0));
    else
        ga = brg__call3(&brg__op_mse_grad, g, a, b, NULL);
    BRG_VJP_SET(v, 0, ga);
    BRG_VJP_SET(v, 1, brg_neg(ga));
    return BRG_OK;
}

brg_tensor *brg_mse(brg_tensor *prediction, brg_tensor *target)
{
    return brg__call2(&brg__op_mse, prediction, target, NULL);
}

/* ---- Compositions ---------------------------------------------------- */

/* For losses that are made of other ops, whose messages would name those. */
static bool targets_fit(const char *name, const brg_tensor *x, int ndim,
                        const brg_tensor *targets, bool are_floats)
{
    char text[BRG_TENSOR_TEXT_MAX], shape[BRG_TENSOR_TEXT_MAX];
    bool is_index =
        targets->dtype == BRG_DTYPE_I64 || targets->dtype == BRG_DTYPE_I32;
    if (are_floats ? !brg__tensor_is_float(targets) : !is_index)
        (void)BRG_FAIL(BRG_ERR_DTYPE,
                       "%s: targets (input 1) is %s, expected %s", name,
                       brg__tensor_text(targets, text),
                       are_floats ? "a float dtype" : "dtype i64 or i32");
    else if (!brg__shape_equal(ndim, x->shape, targets->ndim, targets->shape))
        (void)BRG_FAIL(BRG_ERR_SHAPE,
                       "%s: targets (input 1) is %s, expected shape %s", name,
                       brg__tensor_text(targets, text),
                       brg__shape_text(ndim, x->shape, shape));
    else
        return true;
    return false;
}

brg_tensor *brg_nll(brg_tensor *log_probs, brg_tensor *targets)
{
    if (!log_probs || !targets)
        return NULL;
    int n_rows_dims = log_probs->ndim > 0 ? log_probs->ndim - 1 : 0;
    if (!targets_fit("nll", log_probs, n_rows_dims, targets, false))
        return NULL;
    brg_tensor *picked = brg_gather(log_probs, -1, brg_unsqueeze(targets, -1));
    return brg_neg(brg_mean_all(picked));
}

brg_tensor *brg_binary_cross_entropy_with_logits(brg_tensor *logits,
                                                 brg_tensor *targets)
{
    if (!logits || !targets ||
        !targets_fit("binary_cross_entropy_with_logits", logits, logits->ndim,
                     targets, true))
        return NULL;
    return brg_mean_all(
        brg_sub(brg_softplus(logits), brg_mul(logits, targets)));
}
