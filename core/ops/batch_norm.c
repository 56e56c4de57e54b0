/* SPDX-License-Identifier: Apache-2.0
 * Family: batch norm of x (N,C,...) over all dims but 1.
 *
 * Training (i[0]): mean and variance are those of the batch, and the running
 * statistics, if given, move to them by f[0] in place. Else they are the
 * running ones. mean and rstd of each channel are further outputs.
 *
 * A channel is N pieces of adjacent elements, or for x (N,C) one line of
 * stride C, which is gathered with its neighbours in a band (rows.h); its
 * pieces are read once for each of mean, variance and result. */
#include <math.h>

#include <brigade/ops.h>

#include "core/base/options.h"
#include "core/ops/rows.h"

/* ---- Checks ---------------------------------------------------------- */

static brg_status check_channel_vector(const brg_op_call *call, int i,
                                       const char *what)
{
    const brg_tensor *x = call->in[0], *t = call->in[i];
    if (!t)
        return BRG_OK;
    if (i <= 2)
        BRG_TRY(brg__check_same_dtype(call, i, 0));
    BRG_TRY(brg__check_float(call, i, what));
    if (t->ndim == 1 && t->shape[0] == x->shape[1])
        return BRG_OK;
    return brg__fail_input(BRG_ERR_SHAPE, call, i, what, "shape [%d]",
                           (int)x->shape[1]);
}

brg_status brg__batch_norm_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    bool training = call->attrs->i[0];
    BRG_TRY(brg__check_float(call, 0, "x"));
    if (x->ndim < 2)
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x", "(N,C,...)");
    static const char *const names[] = {"x", "weight", "bias", "running_mean",
                                        "running_var"};
    for (int i = 1; i < 5; i++)
        BRG_TRY(check_channel_vector(call, i, names[i]));
    if (!call->in[3] != !call->in[4] || (!training && !call->in[3]))
        return BRG_FAIL(BRG_ERR_ARG,
                        "batch_norm: %s needs running_mean and running_var",
                        training ? "keeping running statistics" : "evaluation");
    if (training && x->numel > 0 && x->numel == x->shape[1])
        return brg__fail_input(BRG_ERR_SHAPE, call, 0, "x",
                               "more than one value per channel in training");
    brg__infer_like(call, 0, x);
    for (int j = 1; j <= 2; j++)
        brg__infer_shape(call, j, brg__row_compute_dtype((brg_dtype)x->dtype),
                         1, x->shape + 1);
    return BRG_OK;
}

/* ---- Channels -------------------------------------------------------- */

/* Where the elements of a row-major (N,C,...) lie. */
typedef struct channels {
    const brg__row_kernels *k;
    bool is_flat;  /* one piece per channel, in bands */
    int64_t count; /* C */
    int64_t pieces;
    size_t n; /* elements of a piece */
    int64_t piece_step;
    int64_t channel_step;
    char *buffer[3];
    int64_t band[3]; /* first channel of the band in the buffer, or -1 */
    int64_t polls;
} channels;

static brg_status channels_init(channels *ch, const brg_tensor *x)
{
    int64_t n = x->shape[0], c = x->shape[1];
    int64_t inner = x->numel ? x->numel / (n * c) : 0;
    bool is_flat = inner == 1;
    *ch = (channels){.k = brg__row_kernels_of((brg_dtype)x->dtype),
                     .is_flat = is_flat,
                     .count = c,
                     .pieces = is_flat ? 1 : n,
                     .n = (size_t)(is_flat ? n : inner),
                     .piece_step = c * inner,
                     .channel_step = inner,
                     .band = {-1, -1, -1},
                     .polls = 65536};
    size_t nbytes =
        is_flat ? brg__band_nbytes(ch->k, ch->n) : ch->n * ch->k->item;
    for (int i = 0; i < 3; i++)
        if (!(ch->buffer[i] = brg__scratch(i, nbytes, "batch_norm")))
            return brg_error_code();
    return BRG_OK;
}

static int64_t piece_at(const channels *ch, const brg_tensor *t, int64_t c,
                        int64_t p)
{
    return t->offset + c * ch->channel_step + p * ch->piece_step;
}

static size_t band_width(const channels *ch, int64_t first)
{
    int64_t left = ch->count - first;
    return (size_t)(left < BRG__BAND ? left : BRG__BAND);
}

static char *band_row(const channels *ch, int64_t c, int which)
{
    return ch->buffer[which] +
           (size_t)(c % BRG__BAND) * brg__band_row(ch->n) * ch->k->item;
}

/* A piece of a channel to read; `which` buffer it may need. */
static const void *piece(channels *ch, const brg_tensor *t, int64_t c,
                         int64_t p, int which)
{
    brg__poll_after(&ch->polls, (int64_t)ch->n);
    if (!ch->is_flat)
        return brg__row_load(ch->k, brg__storage_base(t), (brg_dtype)t->dtype,
                             piece_at(ch, t, c, p), 1, ch->n,
                             ch->buffer[which]);
    int64_t first = c - c % BRG__BAND;
    if (ch->band[which] != first)
        brg__band_load(ch->k, brg__storage_base(t), (brg_dtype)t->dtype,
                       piece_at(ch, t, first, 0), ch->count, ch->n,
                       band_width(ch, first), ch->buffer[which]);
    ch->band[which] = first;
    return band_row(ch, c, which);
}

/* Where to write one, and its way to memory. */
static void *piece_target(channels *ch, const brg_tensor *t, int64_t c,
                          int64_t p)
{
    if (ch->is_flat)
        return band_row(ch, c, 2);
    return brg__row_target(ch->k, brg__storage_base(t), (brg_dtype)t->dtype,
                           piece_at(ch, t, c, p), 1, ch->buffer[2]);
}

static void piece_store(channels *ch, const brg_tensor *t, int64_t c, int64_t p,
                        const void *row)
{
    if (!ch->is_flat) {
        brg__row_store(ch->k, brg__storage_base(t), (brg_dtype)t->dtype,
                       piece_at(ch, t, c, p), 1, ch->n, row);
        return;
    }
    int64_t first = c - c % BRG__BAND;
    if (c + 1 == first + (int64_t)band_width(ch, first))
        brg__band_store(ch->k, brg__storage_base(t), (brg_dtype)t->dtype,
                        piece_at(ch, t, first, 0), ch->count, ch->n,
                        band_width(ch, first), ch->buffer[2]);
}

/* t[c] of a vector that may be absent. */
static double channel_value(const brg_tensor *t, int64_t c, double otherwise)
{
    return t ? brg__get_f64(brg__storage_base(t), (brg_dtype)t->dtype,
                            t->offset + c * t->stride[0])
             : otherwise;
}

static void set_channel_value(const brg_tensor *t, int64_t c, double value)
{
    brg__put_f64(brg__storage_base(t), (brg_dtype)t->dtype,
                 t->offset + c * t->stride[0], value);
}

/* y = a (x - shift) + b g + c over the channel; g may be NULL. */
static void affine_channel(channels *ch, const brg_tensor *y,
                           const brg_tensor *x, double shift, double a,
                           const brg_tensor *g, double b, double add, int64_t c)
{
    for (int64_t p = 0; p < ch->pieces; p++) {
        const void *px = piece(ch, x, c, p, 0);
        const void *pg = g ? piece(ch, g, c, p, 1) : NULL;
        void *to = piece_target(ch, y, c, p);
        ch->k->affine(to, px, shift, a, pg, b, add, ch->n);
        piece_store(ch, y, c, p, to);
    }
}

/* ---- Forward --------------------------------------------------------- */

/* Mean and (biased) variance of the channel; returns how many values. */
static double moments(channels *ch, const brg_tensor *x, int64_t c,
                      double *mean, double *var)
{
    double sum = 0, sum_sq = 0;
    double n = (double)ch->pieces * (double)ch->n;
    for (int64_t p = 0; p < ch->pieces; p++)
        sum += ch->k->sum(piece(ch, x, c, p, 0), ch->n);
    *mean = sum / n;
    for (int64_t p = 0; p < ch->pieces; p++)
        sum_sq += ch->k->sum_sq(piece(ch, x, c, p, 0), *mean, ch->n);
    *var = sum_sq / n;
    return n;
}

static void move_to(const brg_tensor *running, int64_t c, double value,
                    double momentum)
{
    if (running)
        set_channel_value(running, c,
                          (1.0 - momentum) * channel_value(running, c, 0) +
                              momentum * value);
}

brg_status brg__batch_norm_run(brg_op_call *call)
{
    brg_tensor *const *in = call->in, *y = call->out[0];
    brg_tensor *x = brg__contiguous_now(in[0]);
    channels ch;
    if (!x)
        return brg_error_code();
    BRG_TRY(channels_init(&ch, x));
    bool training = call->attrs->i[0] && x->numel > 0;
    for (int64_t c = 0; c < ch.count; c++) {
        double mean, var;
        if (training) {
            double n = moments(&ch, x, c, &mean, &var);
            move_to(in[3], c, mean, call->attrs->f[0]);
            move_to(in[4], c, var * n / (n - 1.0), call->attrs->f[0]);
        } else {
            mean = channel_value(in[3], c, NAN);
            var = channel_value(in[4], c, NAN);
        }
        double rstd = 1.0 / sqrt(var + call->attrs->f[1]);
        set_channel_value(call->out[1], c, mean);
        set_channel_value(call->out[2], c, rstd);
        affine_channel(&ch, y, x, mean, channel_value(in[1], c, 1.0) * rstd,
                       NULL, 0, channel_value(in[2], c, 0.0), c);
    }
    if (training) {
        brg_tensor_touch(in[3]);
        brg_tensor_touch(in[4]);
    }
    return BRG_OK;
}

brg_tensor *brg_batch_norm(brg_tensor *x, brg_tensor *weight, brg_tensor *bias,
                           brg_tensor *running_mean, brg_tensor *running_var,
                           const brg_batch_norm_options *options)
{
    brg_batch_norm_options o = BRG_BATCH_NORM_OPTIONS_INIT;
    if (BRG_TAKE_OPTIONS(&o, options, "batch_norm",
                         BRG_BATCH_NORM_OPTIONS_INIT) != BRG_OK)
        return NULL;
    brg_attrs attrs = {
        .i = {o.training},
        .f = {o.momentum == 0 ? 0.1 : o.momentum, o.eps == 0 ? 1e-5 : o.eps}};
    brg_tensor *in[] = {x, weight, bias, running_mean, running_var};
    return brg__call(&brg__op_batch_norm, 5, in, &attrs);
}

/* ---- Gradient row: of g, x, w, mean, rstd; i[0] as above ------------- */

brg_status brg__batch_norm_grad_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[1];
    BRG_TRY(brg__check_float(call, 1, "x"));
    brg__infer_like(call, 0, x);
    for (int j = 1; j <= 2; j++)
        brg__infer_shape(call, j, (brg_dtype)x->dtype, 1, x->shape + 1);
    return BRG_OK;
}

brg_status brg__batch_norm_grad_run(brg_op_call *call)
{
    brg_tensor *const *in = call->in, *gx = call->out[0];
    brg_tensor *g = brg__contiguous_now(in[0]), *x = brg__contiguous_now(in[1]);
    channels ch;
    if (!g || !x)
        return brg_error_code();
    BRG_TRY(channels_init(&ch, x));
    double n = (double)ch.pieces * (double)ch.n;
    for (int64_t c = 0; c < ch.count; c++) {
        double mean = channel_value(in[3], c, 0);
        double rstd = channel_value(in[4], c, 0);
        double sum = 0, dot = 0;
        for (int64_t p = 0; p < ch.pieces; p++) {
            const void *pg = piece(&ch, g, c, p, 1);
            sum += ch.k->sum(pg, ch.n);
            dot += ch.k->dot(pg, piece(&ch, x, c, p, 0), mean, ch.n);
        }
        dot *= rstd; /* sum(g xhat) */
        set_channel_value(call->out[1], c, dot);
        set_channel_value(call->out[2], c, sum);
        double scale = channel_value(in[2], c, 1.0) * rstd;
        double back = call->attrs->i[0] ? scale / n : 0.0;
        affine_channel(&ch, gx, x, mean, -back * rstd * dot, g, scale,
                       -back * sum, c);
    }
    return BRG_OK;
}

/* ---- Gradient rule --------------------------------------------------- */

/* A channel vector as (C,1,..), to broadcast against x. */
static brg_tensor *as_channels(brg_tensor *t, const brg_tensor *x)
{
    brg_attrs attrs = {0};
    for (int d = 1; d < x->ndim - 1; d++)
        attrs.i[0] |= INT64_C(1) << d;
    return attrs.i[0] ? brg__call1(&brg__op_unsqueeze, t, &attrs) : t;
}

/* Written with ops: what create_graph needs. */
static brg_status vjp_by_ops(brg_vjp *v)
{
    brg_tensor *g = v->grad_out[0], *x = v->in[0], *w = v->in[1];
    brg_attrs dims = {.i = {((INT64_C(1) << x->ndim) - 1) & ~INT64_C(2), true}};
    brg_attrs flat = {.i = {dims.i[0], false}};
    const brg_op *mean = &brg__op_mean, *sum = &brg__op_sum;
    bool training = v->attrs->i[0];
    brg_tensor *rstd, *xc;
    brg_tensor *gh = w ? brg_mul(g, as_channels(w, x)) : g;
    if (training) {
        xc = brg_sub(x, brg__call1(mean, x, &dims));
        brg_tensor *var = brg__call1(mean, brg_square(xc), &dims);
        rstd = brg_rsqrt(brg_add_scalar(var, v->attrs->f[1]));
    } else {
        brg_dtype dtype = (brg_dtype)x->dtype;
        xc = brg_sub(x, as_channels(brg_cast(v->out[1], dtype), x));
        rstd = as_channels(brg_cast(v->out[2], dtype), x);
    }
    brg_tensor *h = brg_mul(xc, rstd);
    brg_tensor *inner = gh;
    if (training) {
        brg_tensor *s1 = brg__call1(mean, brg_mul(gh, h), &dims);
        inner =
            brg_sub(brg_sub(gh, brg__call1(mean, gh, &dims)), brg_mul(h, s1));
    }
    BRG_VJP_SET(v, 0, brg_mul(rstd, inner));
    BRG_VJP_SET(v, 1, brg__call1(sum, brg_mul(g, h), &flat));
    BRG_VJP_SET(v, 2, brg__call1(sum, g, &flat));
    return BRG_OK;
}

brg_status brg__batch_norm_vjp(brg_vjp *v)
{
    if (v->is_differentiable)
        return vjp_by_ops(v);
    brg_tensor *out[3];
    brg_tensor *in[] = {v->grad_out[0], v->in[0], v->in[1], v->out[1],
                        v->out[2]};
    BRG_TRY(brg__apply_grads(&brg__op_batch_norm_grad, 5, in, v->attrs, out));
    BRG_VJP_SET(v, 0, out[0]);
    BRG_VJP_SET(v, 1, out[1]);
    BRG_VJP_SET(v, 2, out[2]);
    return BRG_OK;
}
