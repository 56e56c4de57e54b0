/* SPDX-License-Identifier: Apache-2.0
 * Softmax, norms and losses: row-major copies where needed, sizes, scratch. */
#include "core/cuda/cu.h"

/* `from` as rows, into at[0..n). */
static brg_status all_rows(brg__cu_temps *temps, brg_tensor *const *from,
                           const void **at, int n)
{
    for (int i = 0; i < n; i++)
        BRG__CU_TRY(brg__cu_rows_of(temps, from[i], &at[i]));
    return BRG_OK;
}

/* What sums and statistics of a dtype are kept in. */
static brg_dtype wide(const brg_tensor *x)
{
    return x->dtype == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
}

/* g, x, w as they are; mean and rstd wide. */
static brg_status grad_rows(brg__cu_temps *temps, brg_tensor *const *from,
                            const void **at)
{
    BRG__CU_TRY(all_rows(temps, from, at, 3));
    for (int i = 3; i < 5; i++)
        BRG__CU_TRY(brg__cu_rows_as(temps, from[i], wide(from[1]), &at[i]));
    return BRG_OK;
}

static void *data_of(const brg_tensor *t)
{
    return t->numel > 0 ? brg__tensor_ptr(t) : NULL;
}

/* ---- Softmax: along dim i[0] --------------------------------------------------- */

static brg_status run_lines(brg_op_call *call, bool is_log)
{
    const brg_tensor *y = call->out[0];
    brg__cu_temps temps;
    const void *in[2] = {NULL, NULL};
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (y->numel == 0)
        return BRG_OK;
    brg_status status = all_rows(&temps, call->in, in, call->n_in);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    int dim = (int)call->attrs->i[0];
    dim = dim < 0 ? dim + y->ndim : dim;
    brg__cu_lines l = {y->dtype, 1, 1, 1, is_log};
    for (int d = 0; d < y->ndim; d++)
        *(d < dim ? &l.outer : d > dim ? &l.inner : &l.n) *= y->shape[d];
    const brg__cu_queue *q = &temps.cu->queue;
    int error = call->n_in == 1
                    ? brg__cu_softmax(q, &l, in[0], data_of(y))
                    : brg__cu_softmax_grad(q, &l, in[0], in[1], data_of(y));
    return brg__cu_temps_end(&temps, brg__cu_check(error, call->op->name));
}

brg_status brg__cu_run_softmax(brg_op_call *call)
{
    return run_lines(call, false);
}

brg_status brg__cu_run_softmax_grad(brg_op_call *call)
{
    return run_lines(call, false);
}

brg_status brg__cu_run_log_softmax(brg_op_call *call)
{
    return run_lines(call, true);
}

brg_status brg__cu_run_log_softmax_grad(brg_op_call *call)
{
    return run_lines(call, true);
}

/* ---- Layer norm over the last i[0] dims ------------------------------------------- */

static brg__cu_norm norm_of(const brg_op_call *call, const brg_tensor *x)
{
    brg__cu_norm a = {.dtype = x->dtype, .rows = 1, .n = 1, .n_splits = 1};
    for (int d = 0; d < x->ndim; d++)
        *(d < x->ndim - (int)call->attrs->i[0] ? &a.rows : &a.n) *= x->shape[d];
    return a;
}

brg_status brg__cu_run_layer_norm(brg_op_call *call)
{
    brg__cu_temps temps;
    const void *in[3];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    brg__cu_norm a = norm_of(call, call->in[0]);
    if (a.rows == 0 || a.n == 0)
        return BRG_OK;
    brg_status status = all_rows(&temps, call->in, in, 3);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.eps = call->attrs->f[0];
    a.x = in[0];
    a.w = in[1];
    a.b = in[2];
    a.y = data_of(call->out[0]);
    a.mean = data_of(call->out[1]);
    a.rstd = data_of(call->out[2]);
    return brg__cu_temps_end(
        &temps,
        brg__cu_check(brg__cu_layer_norm(&temps.cu->queue, &a), "layer_norm"));
}

/* Of g, x, w, mean, rstd and what is added to gx, or nothing. With *has_sum gx is
 * summed over the rows, too, if it can be done on the way. */
static brg_status run_norm_grad(const brg_op_call *call, bool *has_sum)
{
    brg__cu_temps temps;
    const void *in[5];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    brg__cu_norm a = norm_of(call, call->in[1]);
    if (a.n == 0)
        return BRG_OK;
    brg_status status = grad_rows(&temps, call->in, in);
    if (status == BRG_OK && call->n_in > 5 && call->in[5])
        status = brg__cu_rows_of(&temps, call->in[5], &a.add);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.g = in[0];
    a.x = in[1];
    a.w = in[2];
    a.mean = (void *)(uintptr_t)in[3];
    a.rstd = (void *)(uintptr_t)in[4];
    a.gx = data_of(call->out[0]);
    a.gw = data_of(call->out[1]);
    a.gb = data_of(call->out[2]);
    *has_sum = *has_sum && brg__cu_layer_norm_has_sum(&a);
    a.sum = *has_sum ? data_of(call->out[3]) : NULL;
    a.n_splits = brg__cu_layer_norm_splits(&temps.cu->queue, &a);
    status = brg__cu_temp(&temps, &a.partials,
                          (size_t)a.n_splits * 3 * (size_t)a.n * 8);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    return brg__cu_temps_end(
        &temps, brg__cu_check(brg__cu_layer_norm_grad(&temps.cu->queue, &a),
                              call->op->name));
}

brg_status brg__cu_run_layer_norm_grad(brg_op_call *call)
{
    bool has_sum = false;
    return run_norm_grad(call, &has_sum);
}

brg_status brg__cu_run_layer_norm_grad_add(brg_op_call *call)
{
    return brg__cu_run_layer_norm_grad(call);
}

brg_status brg__cu_run_layer_norm_grad_sum(brg_op_call *call)
{
    bool has_sum = true;
    BRG__CU_TRY(run_norm_grad(call, &has_sum));
    if (has_sum)
        return BRG_OK;
    const int n_rows = call->out[0]->ndim - (int)call->attrs->i[0]; /* dims */
    const brg_attrs attrs = {.i = {(1 << n_rows) - 1}};
    brg_op_call sum = {.op = call->op,
                       .n_in = 1,
                       .n_out = 1,
                       .in = call->out,
                       .attrs = &attrs,
                       .out = {call->out[3]}};
    return brg__cu_run_sum(&sum);
}

/* ---- Batch norm of x (n, channels, ..): i[0] training ------------------------------ */

static brg__cu_batch_norm batch_of(const brg_op_call *call, const brg_tensor *x)
{
    brg__cu_batch_norm a = {.dtype = x->dtype,
                            .n = x->shape[0],
                            .channels = x->shape[1],
                            .inner = 1,
                            .is_training = call->attrs->i[0] != 0,
                            .momentum = call->attrs->f[0],
                            .eps = call->attrs->f[1]};
    for (int d = 2; d < x->ndim; d++)
        a.inner *= x->shape[d];
    return a;
}

/* Running statistics: in training they are written, so they must lie in a
 * row. */
static brg_status stats_of(brg__cu_temps *temps, const brg_tensor *t,
                           bool is_training, void **at, int *dtype)
{
    const void *from;
    *at = NULL;
    if (!t)
        return BRG_OK;
    if (is_training && !t->is_contiguous)
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED,
                            "batch_norm: running statistics with strides");
    BRG__CU_TRY(brg__cu_rows_of(temps, t, &from));
    *at = (void *)(uintptr_t)from;
    *dtype = t->dtype;
    return BRG_OK;
}

brg_status brg__cu_run_batch_norm(brg_op_call *call)
{
    brg__cu_temps temps;
    const void *in[3];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    brg__cu_batch_norm a = batch_of(call, call->in[0]);
    if (a.channels == 0)
        return BRG_OK;
    if (call->in[0]->numel == 0)
        a.is_training = false;
    brg_status status = all_rows(&temps, call->in, in, 3);
    if (status == BRG_OK)
        status = stats_of(&temps, call->in[3], a.is_training, &a.running_mean,
                          &a.stats_dtype[0]);
    if (status == BRG_OK)
        status = stats_of(&temps, call->in[4], a.is_training, &a.running_var,
                          &a.stats_dtype[1]);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.x = in[0];
    a.w = in[1];
    a.b = in[2];
    a.y = data_of(call->out[0]);
    a.mean = data_of(call->out[1]);
    a.rstd = data_of(call->out[2]);
    if (!a.is_training && !a.running_mean)
        return brg__cu_temps_end(&temps, BRG_OK); /* nothing to normalise */
    int error = brg__cu_batch_norm_launch(&temps.cu->queue, &a);
    for (int i = 3; a.is_training && i < 5; i++)
        if (call->in[i])
            atomic_fetch_add(&call->in[i]->storage->version, 1);
    return brg__cu_temps_end(&temps, brg__cu_check(error, "batch_norm"));
}

/* Of g, x, w, mean, rstd. */
brg_status brg__cu_run_batch_norm_grad(brg_op_call *call)
{
    brg__cu_temps temps;
    const void *in[5];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    brg__cu_batch_norm a = batch_of(call, call->in[1]);
    if (a.channels == 0)
        return BRG_OK;
    brg_status status = grad_rows(&temps, call->in, in);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.g = in[0];
    a.x = in[1];
    a.w = in[2];
    a.mean = (void *)(uintptr_t)in[3];
    a.rstd = (void *)(uintptr_t)in[4];
    a.gx = data_of(call->out[0]);
    a.gw = data_of(call->out[1]);
    a.gb = data_of(call->out[2]);
    return brg__cu_temps_end(
        &temps,
        brg__cu_check(brg__cu_batch_norm_grad_launch(&temps.cu->queue, &a),
                      "batch_norm_grad"));
}

/* ---- Cross entropy: i[0] ignored, i[1] classes, f[0] smoothing ------------------------------------- */

static brg_status entropy_of(brg__cu_temps *temps, const brg_op_call *call,
                             brg_tensor *logits, brg_tensor *targets,
                             brg__cu_entropy *a)
{
    const void *at;
    void *scratch;
    *a = (brg__cu_entropy){.dtype = logits->dtype,
                           .target_dtype = targets->dtype,
                           .rows = targets->numel,
                           .width = logits->shape[logits->ndim - 1],
                           .ignored = call->attrs->i[0],
                           .smoothing = call->attrs->f[0]};
    const int64_t given = call->attrs->i[1];
    a->classes = given > 0 && given < a->width ? given : a->width;
    if (logits->storage) {
        BRG__CU_TRY(brg__cu_rows_of(temps, logits, &at));
        a->logits = at;
    }
    BRG__CU_TRY(brg__cu_rows_of(temps, targets, &at));
    a->targets = at;
    BRG__CU_TRY(brg__cu_temp(temps, &scratch, (2 * (size_t)a->rows + 1) * 8));
    a->scratch = scratch;
    return BRG_OK;
}

brg_status brg__cu_run_cross_entropy(brg_op_call *call)
{
    brg__cu_temps temps;
    brg__cu_entropy a;
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    brg_status status = entropy_of(&temps, call, call->in[0], call->in[1], &a);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.loss = data_of(call->out[0]);
    a.loss_dtype = call->out[0]->dtype;
    a.lse = data_of(call->out[1]);
    return brg__cu_temps_end(
        &temps, brg__cu_check(brg__cu_cross_entropy(&temps.cu->queue, &a),
                              "cross_entropy"));
}

/* Of g, logits, targets, lse. */
brg_status brg__cu_run_cross_entropy_grad(brg_op_call *call)
{
    brg__cu_temps temps;
    brg__cu_entropy a;
    const void *lse = NULL;
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (call->out[0]->numel == 0)
        return BRG_OK;
    brg_status status = entropy_of(&temps, call, call->in[1], call->in[2], &a);
    if (status == BRG_OK)
        status = brg__cu_rows_as(&temps, call->in[3], wide(call->in[1]), &lse);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.g = data_of(call->in[0]);
    a.loss_dtype = call->in[0]->dtype;
    a.lse = (void *)(uintptr_t)lse;
    a.out = data_of(call->out[0]);
    return brg__cu_temps_end(
        &temps, brg__cu_check(brg__cu_cross_entropy_grad(&temps.cu->queue, &a),
                              "cross_entropy_grad"));
}

/* f[1]: the gradient of the loss. */
brg_status brg__cu_run_cross_entropy_with_grad(brg_op_call *call)
{
    brg__cu_temps temps;
    brg__cu_entropy a;
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    brg_status status = entropy_of(&temps, call, call->in[0], call->in[1], &a);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.seed = call->attrs->f[1];
    a.loss = data_of(call->out[0]);
    a.loss_dtype = call->out[0]->dtype;
    a.lse = data_of(call->out[1]);
    a.out = data_of(call->out[2]);
    int error = a.out ? brg__cu_cross_entropy_with_grad(&temps.cu->queue, &a)
                      : brg__cu_cross_entropy(&temps.cu->queue, &a);
    return brg__cu_temps_end(&temps, brg__cu_check(error, call->op->name));
}

brg_status brg__cu_run_cross_entropy_targets(brg_op_call *call)
{
    brg__cu_temps temps;
    brg__cu_entropy a;
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (call->out[0]->numel == 0)
        return BRG_OK;
    brg_status status = entropy_of(&temps, call, call->in[0], call->in[1], &a);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    a.out = data_of(call->out[0]);
    a.weight = data_of(call->out[1]);
    return brg__cu_temps_end(
        &temps,
        brg__cu_check(brg__cu_cross_entropy_targets(&temps.cu->queue, &a),
                      "cross_entropy_targets"));
}

/* ---- Mean of squared differences ----------------------------------------------------------- */

static brg_status run_mse(brg_op_call *call, int first)
{
    brg__cu_temps temps;
    const void *in[2];
    void *scratch;
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_temps_begin(&temps, call));
    if (out->numel == 0)
        return BRG_OK;
    brg_status status = all_rows(&temps, call->in + first, in, 2);
    if (status == BRG_OK)
        status = brg__cu_temp(&temps, &scratch, BRG__CU_MSE_BLOCKS * 8);
    if (status != BRG_OK)
        return brg__cu_temps_end(&temps, status);
    brg__cu_mse m = {.dtype = out->dtype,
                     .n = call->in[first]->numel,
                     .a = in[0],
                     .b = in[1],
                     .g = first ? data_of(call->in[0]) : NULL,
                     .out = data_of(out),
                     .scratch = scratch};
    int error = first ? brg__cu_mse_grad_launch(&temps.cu->queue, &m)
                      : brg__cu_mse_launch(&temps.cu->queue, &m);
    return brg__cu_temps_end(&temps, brg__cu_check(error, call->op->name));
}

brg_status brg__cu_run_mse(brg_op_call *call)
{
    return run_mse(call, 0);
}

/* Of g, a, b. */
brg_status brg__cu_run_mse_grad(brg_op_call *call)
{
    return run_mse(call, 1);
}
