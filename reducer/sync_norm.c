/* SPDX-License-Identifier: Apache-2.0
 * Synchronised batch norm: a custom function whose forward and backward each
 * make one small collective. Written with ops, so that it runs where x is; the
 * numbers that ranks exchange are f64. */
#include <brigade/sync_norm.h>

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/device.h>
#include <brigade/function.h>
#include <brigade/ops.h>

#include "comm/pg.h"
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/options.h"

struct brg_sync_norm {
    brg_function *function;
};

/* What a call takes besides x. */
enum { X, WEIGHT, BIAS, EPS, N_ARGS };
/* What it gives: y; for the running statistics mean, unbiased variance, and N,
 * at most 1. */
enum { Y, MEAN, VARIANCE, SOME, N_OUTPUTS };
/* What it keeps; N at least 1. */
enum { KEEP_X, KEEP_WEIGHT, KEEP_MEAN, KEEP_RSTD, KEEP_COUNT, N_KEPT };

/* ---- Channels ------------------------------------------------------------------ */

/* All dims but 1. */
static int other_dims(const brg_tensor *x, int *dims)
{
    int n = 0;
    for (int d = 0; d < brg_tensor_ndim(x); d++)
        if (d != 1)
            dims[n++] = d;
    return n;
}

static brg_tensor *sum_channels(brg_tensor *x)
{
    int dims[BRG_MAX_DIMS];
    return x ? brg_sum(x, other_dims(x, dims), dims, false) : NULL;
}

/* (C) as (C,1,..), to broadcast against x. */
static brg_tensor *against(brg_tensor *t, const brg_tensor *x)
{
    for (int d = 2; d < brg_tensor_ndim(x); d++)
        t = t ? brg_unsqueeze(t, 1) : NULL;
    return t;
}

static brg_dtype compute_dtype(const brg_tensor *x)
{
    return brg_tensor_dtype(x) == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
}

static brg_tensor *f64(brg_tensor *t)
{
    return t ? brg_cast(t, BRG_DTYPE_F64) : NULL;
}

static brg_status status_of(const brg_tensor *t)
{
    return t ? BRG_OK : brg_error_code();
}

/* ---- Statistics ------------------------------------------------------------------ */

/* n, mean and m of this rank's x (N,C,..), as 1 + 2 C numbers. The mean is
 * found twice, the second time of what is left, so that a large one costs no
 * digits of m. */
static brg_tensor *local_moments(brg_tensor *x)
{
    int dims[BRG_MAX_DIMS];
    int64_t n_channels = brg_tensor_size(x, 1);
    double n =
        n_channels > 0 ? (double)brg_tensor_numel(x) / (double)n_channels : 0;
    brg_tensor *wide = brg_cast(x, compute_dtype(x));
    brg_tensor *none = f64(sum_channels(wide)); /* zeros if n is 0 */
    brg_tensor *parts[3] = {NULL, none, none};
    if (n > 0 && wide) {
        brg_tensor *rough = brg_mean(wide, other_dims(x, dims), dims, true);
        brg_tensor *rest = brg_sub(wide, rough);
        brg_tensor *sum = f64(sum_channels(rest));
        brg_tensor *squares = f64(sum_channels(brg_square(rest)));
        brg_tensor *flat = f64(brg_reshape_like(rough, sum));
        parts[1] = brg_add(flat, brg_mul_scalar(sum, 1 / n));
        parts[2] = brg_sub(squares, brg_mul_scalar(brg_square(sum), 1 / n));
    }
    if (!parts[1] || !parts[2])
        return NULL;
    parts[0] = n_channels > 0 ? brg_full_like(brg_narrow(parts[1], 0, 0, 1), n)
                              : brg_narrow(parts[1], 0, 0, 0);
    return parts[0] ? brg_cat(parts, 3, 0) : NULL;
}

/* Where the group can take it. */
static brg_tensor *near(const brg_pg *pg, brg_tensor *t)
{
    return t ? brg_to(t, brg__pg_device(pg)) : NULL;
}

static brg_status gather(brg_pg *pg, brg_tensor *mine, brg_tensor **all)
{
    int n = brg_pg_world_size(pg);
    int64_t shape[] = {n, mine ? brg_tensor_numel(mine) : 0};
    *all = mine ? brg_contiguous(brg_expand(brg_zeros_like(mine), 2, shape))
                : NULL;
    BRG_TRY(status_of(*all));
    brg_work *work;
    BRG_TRY(brg_all_gather(pg, &work, brg_tensor_data(*all),
                           brg_tensor_data(mine), (size_t)shape[1],
                           BRG_DTYPE_F64));
    return brg_work_wait(work);
}

/* Of all ranks: mean, variance, unbiased variance (C each) and N (1). */
typedef struct moments {
    brg_tensor *mean;
    brg_tensor *variance;
    brg_tensor *unbiased;
    brg_tensor *count; /* at least 1 */
    brg_tensor *some;  /* N, at most 1 */
} moments;

static brg_status merge(brg_pg *pg, brg_tensor *x, moments *filled)
{
    static const int over_ranks[] = {0};
    brg_tensor *all;
    int64_t c = brg_tensor_size(x, 1);
    BRG_TRY(gather(pg, near(pg, local_moments(x)), &all));
    all = brg_to(all, brg_tensor_device(x));
    brg_tensor *n = brg_narrow(all, 1, 0, 1);
    brg_tensor *means = brg_narrow(all, 1, 1, c);
    brg_tensor *total = brg_sum(n, 1, over_ranks, false);
    brg_tensor *count = brg_clamp(total, 1, INFINITY);
    brg_tensor *mean =
        brg_div(brg_sum(brg_mul(n, means), 1, over_ranks, false), count);
    brg_tensor *apart = brg_mul(n, brg_square(brg_sub(means, mean)));
    brg_tensor *m =
        brg_clamp(brg_sum(brg_add(brg_narrow(all, 1, 1 + c, c), apart), 1,
                          over_ranks, false),
                  0, INFINITY);
    filled->mean = mean;
    filled->count = count;
    filled->some = brg_clamp(total, 0, 1);
    filled->variance = brg_div(m, count);
    filled->unbiased =
        brg_div(m, brg_clamp(brg_add_scalar(total, -1), 1, INFINITY));
    if (!filled->variance || !filled->unbiased)
        return brg_error_code();
    return status_of(filled->some);
}

/* ---- Forward and backward ---------------------------------------------------------- */

static brg_status forward(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *outputs)
{
    brg_tensor *x = args[X].as.tensor, *weight = args[WEIGHT].as.tensor;
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    moments all;
    (void)n_args;
    options.eps = args[EPS].as.real;
    BRG_TRY(merge(brg_context_user(ctx), x, &all));
    brg_tensor *y = brg_batch_norm(x, weight, args[BIAS].as.tensor, all.mean,
                                   all.variance, &options);
    brg_tensor *rstd = brg_rsqrt(brg_add_scalar(all.variance, options.eps));
    if (!y || !rstd)
        return brg_error_code();
    brg_tensor *kept[N_KEPT] = {x, weight, all.mean, rstd, all.count};
    brg_tensor *plain[] = {all.mean, all.unbiased, all.some};
    outputs[Y] = brg_value_tensor(y);
    outputs[MEAN] = brg_value_tensor(plain[0]);
    outputs[VARIANCE] = brg_value_tensor(plain[1]);
    outputs[SOME] = brg_value_tensor(plain[2]);
    BRG_TRY(brg_context_save(ctx, kept, N_KEPT));
    return brg_context_mark_non_differentiable(ctx, plain, 3);
}

/* The two sums of all ranks, side by side. */
static brg_status add_up(brg_pg *pg, brg_tensor *sum, brg_tensor *dot,
                         brg_tensor **both)
{
    brg_tensor *parts[] = {sum, dot};
    *both = near(pg, brg_cat(parts, 2, 0));
    BRG_TRY(status_of(*both));
    brg_work *work;
    BRG_TRY(brg_all_reduce(pg, &work, brg_tensor_data(*both),
                           (size_t)brg_tensor_numel(*both), BRG_DTYPE_F64,
                           BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    return status_of(*both = brg_to(*both, brg_tensor_device(sum)));
}

/* With g the gradient of y, d = x - mean and sums over all ranks:
 * gx = weight rstd (g - sum(g) / N - d rstd^2 sum(g d) / N) */
static brg_tensor *grad_of_x(brg_tensor *const *kept, brg_tensor *g,
                             brg_tensor *d, brg_tensor *both)
{
    brg_dtype dtype = brg_tensor_dtype(d);
    brg_tensor *rstd = kept[KEEP_RSTD], *n = kept[KEEP_COUNT];
    int64_t c = brg_tensor_numel(rstd);
    brg_tensor *sum = brg_div(brg_narrow(both, 0, 0, c), n);
    brg_tensor *dot = brg_div(brg_narrow(both, 0, c, c), n);
    brg_tensor *scale = rstd;
    if (kept[KEEP_WEIGHT])
        scale = brg_mul(rstd, f64(kept[KEEP_WEIGHT]));
    dot = brg_mul(dot, brg_square(rstd));
    if (!sum || !dot || !scale)
        return NULL;
    brg_tensor *rest = brg_mul(d, against(brg_cast(dot, dtype), d));
    rest = brg_sub(brg_sub(g, against(brg_cast(sum, dtype), d)), rest);
    rest = brg_mul(rest, against(brg_cast(scale, dtype), d));
    return rest ? brg_cast(rest, brg_tensor_dtype(kept[KEEP_X])) : NULL;
}

static brg_status backward(brg_context *ctx, brg_tensor *const *grad_out,
                           brg_tensor **grad_in, size_t *n_grad_in)
{
    brg_tensor *kept[N_KEPT], *both;
    (void)n_grad_in;
    for (size_t i = 0; i < N_KEPT; i++)
        BRG_TRY(brg_context_saved(ctx, i, &kept[i]));
    brg_tensor *x = kept[KEEP_X];
    brg_dtype wide = compute_dtype(x), narrow = brg_tensor_dtype(x);
    brg_tensor *g = brg_cast(grad_out[Y], wide);
    brg_tensor *d =
        brg_sub(brg_cast(x, wide), against(brg_cast(kept[KEEP_MEAN], wide), x));
    brg_tensor *sum = f64(sum_channels(g));
    brg_tensor *dot = f64(sum_channels(brg_mul(g, d)));
    if (!sum || !dot)
        return brg_error_code();
    if (brg_context_needs_grad(ctx, X)) {
        BRG_TRY(add_up(brg_context_user(ctx), sum, dot, &both));
        BRG_TRY(status_of(grad_in[X] = grad_of_x(kept, g, d, both)));
    }
    if (brg_context_needs_grad(ctx, WEIGHT)) {
        dot = brg_mul(dot, kept[KEEP_RSTD]);
        BRG_TRY(status_of(grad_in[WEIGHT] = dot ? brg_cast(dot, narrow) : dot));
    }
    if (brg_context_needs_grad(ctx, BIAS))
        BRG_TRY(status_of(grad_in[BIAS] = brg_cast(sum, narrow)));
    return BRG_OK;
}

/* ---- The public face ----------------------------------------------------------------- */

brg_status brg_sync_norm_create(brg_sync_norm **out, brg_pg *pg)
{
    BRG_CHECK_ARG(out, "brg_sync_norm_create: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(pg, "brg_sync_norm_create: the group is NULL");
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = "sync_batch_norm";
    def.n_outputs = N_OUTPUTS;
    def.forward = forward;
    def.backward = backward;
    def.once_differentiable = true;
    def.user = pg;
    brg_sync_norm *sync = BRG__NEW(brg_sync_norm);
    if (!sync)
        return BRG_ERR_NOMEM;
    brg_status status = brg_function_create(&sync->function, &def);
    if (status == BRG_OK)
        *out = sync;
    else
        brg__mem_free(sync);
    return status;
}

void brg_sync_norm_destroy(brg_sync_norm *sync)
{
    if (!sync)
        return;
    brg_function_release(sync->function);
    brg__mem_free(sync);
}

/* running = (1 - f) running + f value, f being 0 where no rank had a value. */
static brg_status move_to(brg_tensor *running, brg_tensor *value, brg_tensor *f)
{
    brg_tensor *keep = brg_mul(f64(running), brg_rsub_scalar(f, 1));
    brg_tensor *moved = brg_add(keep, brg_mul(value, f));
    return moved ? brg_copy_(running, moved) : brg_error_code();
}

static brg_status move_running(brg_tensor *running_mean,
                               brg_tensor *running_var, const brg_value *found,
                               double momentum)
{
    bool mode = brg_grad_mode_set(false);
    brg_tensor *f = brg_mul_scalar(found[SOME].as.tensor, momentum);
    brg_status status = status_of(f);
    if (status == BRG_OK)
        status = move_to(running_mean, found[MEAN].as.tensor, f);
    if (status == BRG_OK)
        status = move_to(running_var, found[VARIANCE].as.tensor, f);
    (void)brg_grad_mode_set(mode);
    return status;
}

static brg_status check_call(const brg_sync_norm *sync, const brg_tensor *x,
                             const brg_tensor *running_mean,
                             const brg_tensor *running_var)
{
    char text[BRG_ERROR_TEXT_MAX];
    BRG_CHECK_ARG(sync, "sync_batch_norm: sync is NULL");
    if (!x && brg_error_code() != BRG_OK)
        return brg_error_code(); /* what made it NULL */
    BRG_CHECK_ARG(x, "sync_batch_norm: x is NULL");
    (void)brg_tensor_describe(x, text, sizeof text);
    if (!brg_dtype_is_float(brg_tensor_dtype(x)))
        return BRG_FAIL(BRG_ERR_DTYPE,
                        "sync_batch_norm: x is %s, expected a "
                        "float dtype",
                        text);
    if (brg_tensor_ndim(x) < 2)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "sync_batch_norm: x is %s, expected (N,C,...)", text);
    BRG_CHECK_ARG(!running_mean == !running_var,
                  "sync_batch_norm: running_mean and running_var go together");
    return BRG_OK;
}

brg_tensor *brg_sync_batch_norm(brg_sync_norm *sync, brg_tensor *x,
                                brg_tensor *weight, brg_tensor *bias,
                                brg_tensor *running_mean,
                                brg_tensor *running_var,
                                const brg_batch_norm_options *options)
{
    brg_batch_norm_options o = BRG_BATCH_NORM_OPTIONS_INIT;
    if (BRG_TAKE_OPTIONS(&o, options, "sync_batch_norm",
                         BRG_BATCH_NORM_OPTIONS_INIT) != BRG_OK)
        return NULL;
    if (!o.training)
        return brg_batch_norm(x, weight, bias, running_mean, running_var,
                              options);
    if (check_call(sync, x, running_mean, running_var) != BRG_OK)
        return NULL;
    brg_value args[N_ARGS], found[N_OUTPUTS];
    args[X] = brg_value_tensor(x);
    args[WEIGHT] = brg_value_tensor(weight);
    args[BIAS] = brg_value_tensor(bias);
    args[EPS] = brg_value_float(o.eps == 0 ? 1e-5 : o.eps);
    if (brg_function_apply(sync->function, args, N_ARGS, found) != BRG_OK)
        return NULL;
    if (running_mean &&
        move_running(running_mean, running_var, found,
                     o.momentum == 0 ? 0.1 : o.momentum) != BRG_OK)
        return NULL;
    return found[Y].as.tensor;
}

brg_tensor *brg_nn_sync_batch_norm_forward(const brg_nn_batch_norm *layer,
                                           brg_sync_norm *sync, brg_tensor *x,
                                           bool is_training)
{
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    options.training = is_training;
    options.momentum = layer->momentum;
    options.eps = layer->eps;
    return brg_sync_batch_norm(sync, x, layer->weight, layer->bias,
                               layer->running_mean, layer->running_var,
                               &options);
}
