/* SPDX-License-Identifier: Apache-2.0
 * One step of the training loop, eager or compiled. The reducer sums the
 * gradients while backward still runs; the loss of each rank travels beside
 * them, so that all ranks see the same mean and stop at the same step. */
#include "common/train_run.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/device.h>
#include <brigade/ops.h>
#include <brigade/reducer.h>
#include <brigade/tensor.h>
#include <brigade/trace.h>

/* The mean over all samples of the batch: the sum of `losses`, each weighted
 * with its share of the samples. */
static brg_status mean_loss(double *out, const run *r)
{
    *out = 0;
    for (int i = 0; i < r->n_losses; i++) {
        if (!isfinite(r->losses[i])) {
            r->w->failed_rank = 0; /* all know; one says so */
            return brg_error_set(BRG_ERR_NAN, __FILE__, __LINE__,
                                 "%s %d, step %" PRId64 ": the loss is %f",
                                 r->options->leaves ? "leaf" : "rank", i,
                                 r->step, r->losses[i]);
        }
        *out += r->losses[i];
    }
    return BRG_OK;
}

/* Activations belong to a scope of their own: after it the graph alone holds
 * them, and backward frees each when it has been used. */
static brg_tensor *forward(const run *r, brg_tensor *const data[2])
{
    brg_scope *scope = brg_scope_begin();
    if (scope == NULL)
        return NULL;
    brg_trace_begin("forward");
    brg_tensor *loss = r->task->loss(r->task->user, data);
    brg_trace_end("forward");
    return brg_scope_return(scope, loss);
}

static brg_status backward(brg_tensor *loss)
{
    brg_trace_begin("backward");
    brg_status status = brg_backward(loss);
    brg_trace_end("backward");
    return status;
}

/* The host waits for the loss now and then, at the end and while nothing is
 * measured yet. */
static bool reads_loss(const run *r)
{
    return !r->is_queued || r->progress.n_measured < PROGRESS_WARM_UP ||
           (r->step + 1) % r->options->loss_every == 0 ||
           r->step + 1 == r->n_steps;
}

/* Of a step that is queued already. */
static brg_status read_loss(double *loss, run *r, const brg_tensor *mine,
                            const brg_batch *batch)
{
    double value = 0;
    *loss = r->last_loss;
    if (!reads_loss(r))
        return BRG_OK;
    BRG_TRY(brg_tensor_item(mine, &value));
    value *= batch->weight / r->w->size;
    brg_work *work = NULL;
    BRG_TRY(
        brg_all_gather(r->w->pg, &work, r->losses, &value, 1, BRG_DTYPE_F64));
    BRG_TRY(brg_work_wait(work));
    BRG_TRY(mean_loss(loss, r));
    r->last_loss = *loss;
    return BRG_OK;
}

static brg_status forward_backward(double *loss, run *r, const brg_batch *batch)
{
    brg_tensor *data[2] = {NULL, NULL}, *mine;
    double value = 0;
    BRG_TRY(r->task->load(r->task->user, batch, data));
    mine = forward(r, data);
    if (mine == NULL)
        return brg_error_code();
    BRG_TRY(brg_tensor_item(mine, &value));
    /* Slices of a batch may differ by a sample: the reducer takes the mean
     * over ranks, the weight makes that the mean over samples. */
    double weighted = value * batch->weight / r->w->size;
    if (batch->weight != 1.0)
        mine = brg_mul_scalar(mine, batch->weight);
    brg_work *work = NULL;
    BRG_TRY(brg_all_gather(r->w->pg, &work, r->losses, &weighted, 1,
                           BRG_DTYPE_F64));
    brg_status status = backward(mine);
    if (status != BRG_OK) {
        brg_work_release(work);
        return status;
    }
    BRG_TRY(brg_work_wait(work));
    return mean_loss(loss, r);
}

/* One leaf of the batch; its weighted loss goes to `losses`. After the forward
 * pass of the rank's last one the losses set out. */
static brg_status run_leaf(run *r, const brg_batch *batch, uint32_t leaf,
                           brg_work **losses)
{
    size_t n_leaves = (size_t)r->n_losses, n = batch->n;
    size_t first = n * leaf / n_leaves, end = n * (leaf + 1) / n_leaves;
    brg_batch part = *batch;
    part.samples += first;
    part.first = first;
    part.n = end - first;
    part.weight = (double)(part.n * n_leaves) / (double)n;
    double value = 0;
    brg_tensor *data[2] = {NULL, NULL};
    BRG_TRY(r->task->load(r->task->user, &part, data));
    brg_tensor *mine = forward(r, data);
    BRG_TRY(brg_tensor_item(mine, &value));
    r->losses[leaf] = value * part.weight / (double)n_leaves;
    if (losses != NULL)
        BRG_TRY(brg_all_reduce(r->w->pg, losses, r->losses, n_leaves,
                               BRG_DTYPE_F64, BRG_REDUCE_SUM));
    if (part.weight != 1.0)
        mine = brg_mul_scalar(mine, part.weight);
    return backward(mine);
}

/* The same under the reproducible reduction: leaf by leaf. */
static brg_status run_leaves(double *loss, run *r, const brg_batch *batch)
{
    brg_work *work = NULL;
    memset(r->losses, 0, (size_t)r->n_losses * sizeof *r->losses);
    for (bool is_last = false; !is_last;) {
        uint32_t leaf = 0;
        brg_scope *scope = brg_scope_begin();
        if (scope == NULL)
            return brg_error_code();
        is_last = brg_ddp_next_leaf(r->ddp, &leaf);
        brg_status status = run_leaf(r, batch, leaf, is_last ? &work : NULL);
        brg_scope_end(scope);
        if (status != BRG_OK) {
            brg_work_release(work);
            return status;
        }
    }
    BRG_TRY(brg_work_wait(work));
    return mean_loss(loss, r);
}

static double stepped_lr(const run *r)
{
    brg_lr_step schedule = {.lr = r->options->lr,
                            .gamma = r->task->epoch_decay,
                            .every = brg_sampler_n_batches(r->sampler)};
    return brg_lr_step_at(&schedule, r->step);
}

static brg_status set_lr(run *r)
{
    const train_task *task = r->task;
    if (task->schedule.n_steps > 0)
        return brg_optim_set_lr(r->optim,
                                brg_lr_cosine_at(&task->schedule, r->step));
    return task->epoch_decay > 0 ? brg_optim_set_lr(r->optim, stepped_lr(r))
                                 : BRG_OK;
}

static brg_status update(run *r)
{
    const train_task *task = r->task;
    /* A norm that is not finite shows in the loss too. */
    if (task->clip_norm > 0)
        BRG_TRY(brg_clip_grad_norm(NULL, task->params, task->clip_norm,
                                   !r->is_queued));
    brg_trace_begin("optimizer");
    brg_status status = brg_optim_step(r->optim);
    brg_trace_end("optimizer");
    BRG_TRY(status);
    return brg_optim_zero_grad(r->optim, false);
}

/* The step as a function of its data, to be compiled: in[2] is the weight. */
static brg_status whole_step(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    run *r = user;
    (void)n_in;
    (void)n_out;
    out[0] = forward(r, in);
    if (out[0] == NULL)
        return brg_error_code();
    BRG_TRY(brg_backward(brg_mul(out[0], in[2])));
    return update(r);
}

brg_status train_compile_step(run *r, const brg_compile_options *options)
{
    return brg_compiled_create(&r->compiled, whole_step, r, options);
}

static brg_status compiled_step(double *loss, run *r, const brg_batch *batch)
{
    brg_tensor *in[3] = {NULL, NULL, NULL}, *mine = NULL;
    float weight = (float)batch->weight;
    BRG_TRY(r->task->load(r->task->user, batch, in));
    in[2] = brg_from_data(BRG_DTYPE_F32, 0, NULL, &weight);
    if (in[2] == NULL)
        return brg_error_code();
    BRG_TRY(set_lr(r));
    BRG_TRY(brg_compiled_call(r->compiled, in, 3, &mine, 1));
    return read_loss(loss, r, mine, batch);
}

/* All of it is queued before the host looks at the loss. */
static brg_status queued_step(double *loss, run *r, const brg_batch *batch)
{
    brg_tensor *data[2] = {NULL, NULL};
    BRG_TRY(r->task->load(r->task->user, batch, data));
    brg_tensor *mine = forward(r, data);
    if (mine == NULL)
        return brg_error_code();
    BRG_TRY(backward(
        batch->weight == 1.0 ? mine : brg_mul_scalar(mine, batch->weight)));
    BRG_TRY(set_lr(r));
    BRG_TRY(update(r));
    return read_loss(loss, r, mine, batch);
}

static brg_status eager_step(double *loss, run *r, const brg_batch *batch)
{
    if (r->is_queued)
        return queued_step(loss, r, batch);
    BRG_TRY(r->options->leaves ? run_leaves(loss, r, batch)
                               : forward_backward(loss, r, batch));
    BRG_TRY(set_lr(r));
    return update(r);
}

/* Times of the step that has ended. Where steps are queued the GPU is asked how
 * long it waited for others when the host has waited for it anyway. */
static brg_status measure(run *r, uint64_t started, bool is_read, double loss,
                          int64_t epoch)
{
    brg_reducer_stats stats = {0};
    if (r->ddp != NULL)
        brg_ddp_get_stats(r->ddp, &stats);
    uint64_t step_ns = now_ns() - started;
    if (r->is_timed && is_read)
        BRG_TRY(brg_ddp_exposed_ns(r->ddp, &r->exposed_ns));
    if (r->is_timed)
        stats.wait_ns = r->exposed_ns;
    progress_step(&r->progress, step_ns, stats.wait_ns, loss, epoch);
    if (stats.last_ready_ns > 0)
        r->first_launch +=
            (double)stats.first_launch_ns / (double)stats.last_ready_ns;
    return metrics_write(
        r->metrics, &(metrics_row){.step = r->step,
                                   .epoch = epoch,
                                   .loss = loss,
                                   .lr = brg_optim_lr(r->optim),
                                   .step_ms = 1e-6 * (double)step_ns,
                                   .wait_ms = 1e-6 * (double)stats.wait_ns});
}

brg_status train_step(run *r, const brg_batch *batch)
{
    double loss = 0;
    const bool is_read = reads_loss(r);
    uint64_t started = now_ns();
    brg_scope *scope = brg_scope_begin();
    if (scope == NULL)
        return brg_error_code();
    brg_trace_begin("step");
    brg_status status = r->compiled ? compiled_step(&loss, r, batch)
                                    : eager_step(&loss, r, batch);
    brg_scope_end(scope);
    brg_trace_end("step");
    BRG_TRY(status);
    BRG_TRY(measure(r, started, is_read, loss, batch->position.epoch));
    if (r->log != NULL && is_read)
        fprintf(r->log, "%" PRId64 " %.9g\n", r->step, loss);
    r->step++;
    r->is_saved = false;
    return BRG_OK;
}
