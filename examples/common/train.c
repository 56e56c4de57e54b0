/* SPDX-License-Identifier: Apache-2.0
 * The training loop. Every rank runs the same steps; the reducer sums the
 * gradients while backward still runs; the loss of each rank travels beside
 * them, so that all ranks see the same mean and stop at the same step. */
#include "common/train.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/device.h>
#include <brigade/ops.h>
#include <brigade/reducer.h>
#include <brigade/schedule.h>
#include <brigade/tensor.h>
#include <brigade/trace.h>

#include "common/metrics.h"
#include "common/progress.h"
#include "common/report.h"
#include "common/state.h"

/* Medians of so many are written by --profile. */
#define PROFILED_STEPS 50

typedef struct run {
    const train_task *task;
    const train_options *options;
    world *w;
    brg_optim *optim;
    brg_ddp *ddp;
    brg_sampler *sampler;
    brg_compiled *compiled; /* the step; NULL: it is eager */
    double *losses;         /* of this step, one per rank or leaf */
    int n_losses;
    FILE *log;        /* rank 0 only */
    metrics *metrics; /* the same */
    progress progress;
    int64_t step;
    int64_t n_steps;
    bool is_saved;  /* the checkpoint holds this step */
    bool is_queued; /* on a GPU: steps run while the host goes on */
    double last_loss;
    eval_sums test;
    double first_launch; /* of backward, sums over the steps */
} run;

static brg_status fail(brg_status code, const char *what, const char *path)
{
    return brg_error_set(code, __FILE__, __LINE__, "%s %s: %s", what, path,
                         strerror(errno));
}

/* ---- One step ------------------------------------------------------------ */

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

/* Times of the step that has ended. */
static brg_status measure(run *r, uint64_t started, double loss, int64_t epoch)
{
    brg_reducer_stats stats = {0};
    if (r->ddp != NULL)
        brg_ddp_get_stats(r->ddp, &stats);
    uint64_t step_ns = now_ns() - started;
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

static brg_status train_step(run *r, const brg_batch *batch)
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
    BRG_TRY(measure(r, started, loss, batch->position.epoch));
    if (r->log != NULL && is_read)
        fprintf(r->log, "%" PRId64 " %.9g\n", r->step, loss);
    r->step++;
    r->is_saved = false;
    return BRG_OK;
}

/* ---- Epochs -------------------------------------------------------------- */

static brg_status save(run *r)
{
    if (r->options->checkpoint == NULL || r->is_saved)
        return BRG_OK;
    brg_status mine = BRG_OK;
    if (r->w->rank == 0)
        mine = state_save(r->options->checkpoint, r->task, r->options, r->optim,
                          r->step, brg_sampler_tell(r->sampler));
    r->is_saved = true;
    return world_agree(r->w, mine);
}

static brg_status evaluate(run *r)
{
    double sums[3] = {0, 0, 0};
    eval_sums mine = {0, 0, 0};
    bool mode = brg_grad_mode_set(false);
    brg_status status = r->task->evaluate(r->task->user, r->w, &mine);
    brg_grad_mode_set(mode);
    BRG_TRY(world_agree(r->w, status));
    sums[0] = mine.loss;
    sums[1] = mine.n_correct;
    sums[2] = mine.n;
    BRG_TRY(world_sum(r->w, sums, 3));
    r->test = (eval_sums){sums[0], sums[1], sums[2]};
    return BRG_OK;
}

static brg_status evaluate_and_save(run *r, int64_t epoch)
{
    char accuracy[48] = "";
    if (r->ddp != NULL) /* nothing wrong is evaluated or saved */
        BRG_TRY(brg_ddp_confirm(r->ddp));
    BRG_TRY(evaluate(r));
    if (r->task->has_accuracy)
        snprintf(accuracy, sizeof accuracy, ", accuracy %.2f%%",
                 100 * r->test.n_correct / r->test.n);
    if (r->w->rank == 0)
        progress_line(&r->progress,
                      "epoch %" PRId64 ", step %" PRId64
                      ": test loss %.4f%s, %.2f ms/step",
                      epoch + 1, r->step, r->test.loss / r->test.n, accuracy,
                      progress_step_ms(&r->progress));
    return save(r);
}

static bool is_between(const run *r)
{
    int64_t every = r->options->eval_every;
    return every > 0 && r->step % every == 0 && r->step < r->n_steps;
}

static brg_status run_epochs(run *r)
{
    brg_batch batch;
    while (r->step < r->n_steps) {
        int64_t epoch = brg_sampler_tell(r->sampler).epoch;
        while (r->step < r->n_steps && brg_sampler_next(r->sampler, &batch)) {
            BRG_TRY(train_step(r, &batch));
            if (is_between(r))
                BRG_TRY(evaluate_and_save(r, epoch));
        }
        BRG_TRY(evaluate_and_save(r, epoch));
    }
    return BRG_OK;
}

/* ---- Beginning and end --------------------------------------------------- */

static brg_status open_sampler(run *r)
{
    const train_options *options = r->options;
    if (options->batch < r->n_losses || options->batch > r->task->n_samples)
        return brg_error_set(BRG_ERR_ARG, __FILE__, __LINE__,
                             "--batch is %" PRId64 ", expected %d (%s) to "
                             "%" PRId64 " (samples of the data)",
                             options->batch, r->n_losses,
                             options->leaves ? "leaves" : "ranks",
                             r->task->n_samples);
    /* Leaves are taken from the whole batch. */
    bool is_whole = options->leaves > 0;
    BRG_TRY(brg_sampler_create(
        &r->sampler,
        &(brg_sampler_options){.struct_size = sizeof(brg_sampler_options),
                               .n_samples = r->task->n_samples,
                               .global_batch = options->batch,
                               .rank = is_whole ? 0 : r->w->rank,
                               .world_size = is_whole ? 1 : r->w->size,
                               .seed = (uint64_t)options->seed,
                               .shuffle = true,
                               .drop_last = true}));
    r->n_steps = options->epochs * brg_sampler_n_batches(r->sampler);
    if (options->steps > 0 && options->steps < r->n_steps)
        r->n_steps = options->steps;
    return BRG_OK;
}

static brg_status open_log(run *r)
{
    if (r->w->rank != 0)
        return BRG_OK;
    BRG_TRY(metrics_open(&r->metrics, r->options->metrics));
    if (r->options->log_losses == NULL)
        return BRG_OK;
    r->log = fopen(r->options->log_losses, "w");
    return r->log != NULL
               ? BRG_OK
               : fail(BRG_ERR_IO, "cannot write", r->options->log_losses);
}

/* Of a file that is written later: better now than after hours of work. */
static brg_status check_can_write(const char *path)
{
    char folder[PATH_MAX];
    struct stat info;
    if (path == NULL)
        return BRG_OK;
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    bool is_good = access(folder, W_OK | X_OK) == 0;
    if (is_good && stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        errno = EISDIR;
        is_good = false;
    }
    return is_good ? BRG_OK : fail(BRG_ERR_IO, "cannot write", path);
}

static brg_status check_outputs(const run *r)
{
    if (r->w->rank != 0 || r->options->is_eval_only)
        return BRG_OK;
    BRG_TRY(check_can_write(r->options->checkpoint));
    return check_can_write(r->options->profile);
}

/* A rank that fails writes its records there too. */
static brg_status open_trace(const run *r)
{
    const char *folder = r->options->trace;
    if (folder == NULL)
        return BRG_OK;
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return fail(BRG_ERR_IO, "cannot make the folder", folder);
    return brg_trace_set_folder(folder);
}

static brg_status open_optim(run *r)
{
    const train_options *options = r->options;
    if (strcmp(options->optimizer, "sgd") == 0) {
        brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
        sgd.lr = options->lr;
        sgd.momentum = 0.9;
        sgd.weight_decay = r->task->weight_decay;
        sgd.decay_min_ndim = 2;
        return brg_optim_create_sgd(&r->optim, r->task->params, &sgd);
    }
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    adamw.lr = options->lr;
    adamw.weight_decay = r->task->weight_decay;
    adamw.decay_min_ndim = 2;
    return brg_optim_create_adamw(&r->optim, r->task->params, &adamw);
}

/* What can fail on one rank alone; the ranks agree on it afterwards. */
static brg_status open_local(run *r)
{
    /* the loss of each leaf is read before the next begins */
    r->is_queued =
        brg_device_get().type != BRG_DEVICE_CPU && r->options->leaves == 0;
    r->n_losses = r->options->leaves ? (int)r->options->leaves : r->w->size;
    r->losses = calloc((size_t)r->n_losses, sizeof *r->losses);
    if (r->losses == NULL)
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                             "no memory for %d losses", r->n_losses);
    BRG_TRY(open_sampler(r));
    BRG_TRY(check_outputs(r));
    BRG_TRY(open_log(r));
    BRG_TRY(open_trace(r));
    BRG_TRY(open_optim(r));
    brg_sampler_position position = {0};
    if (r->options->resume == NULL)
        return BRG_OK;
    BRG_TRY(state_load(r->options->resume, r->task, r->options, r->optim,
                       &r->step, &position));
    r->is_saved = true;
    return brg_sampler_seek(r->sampler, position);
}

static brg_status fill_result(train_result *out, run *r)
{
    int64_t n = r->progress.n_measured;
    *out = (train_result){
        .accuracy = r->test.n_correct / r->test.n,
        .loss = r->test.loss / r->test.n,
        .n_steps = r->step,
        .step_ms = progress_step_ms(&r->progress),
        .wait_share = progress_wait_share(&r->progress),
        .overlap_first_launch = n > 0 ? r->first_launch / (double)n : 0.0,
        .seconds = (double)r->progress.step_ns * 1e-9,
    };
    return params_hash(&out->params_hash, r->task->params, r->w);
}

/* Parameters are trained, buffers are kept equal. One rank alone on a GPU has
 * nothing to reduce. */
static brg_status open_ddp(run *r)
{
    if (r->w->size == 1 && r->options->leaves == 0 &&
        brg_device_get().type != BRG_DEVICE_CPU)
        return BRG_OK;
    size_t n = 0, n_buffers = 0;
    brg_tensor *const *tensors =
        brg_params_tensors(r->task->params, BRG_PARAM_TRAINED, &n);
    brg_tensor *const *buffers =
        brg_params_tensors(r->task->params, BRG_PARAM_BUFFER, &n_buffers);
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.n_leaves = (uint32_t)r->options->leaves;
    if (options.n_leaves > 0)
        options.reduction = BRG_REDUCTION_REPRODUCIBLE;
    if (r->options->has_measured_buckets)
        options.buckets = BRG_BUCKETS_MEASURED;
    brg_pg *pg = NULL;
    BRG_TRY(world_gradients(r->w, &pg));
    BRG_TRY(
        brg_ddp_create(&r->ddp, pg, tensors, n, buffers, n_buffers, &options));
    /* measured buckets record steps of their own */
    if (r->options->profile == NULL || r->options->has_measured_buckets)
        return BRG_OK;
    return brg_ddp_record(r->ddp, PROFILED_STEPS);
}

/* Rank 0's gradients; other ranks work alike. */
static brg_status write_profile(const run *r)
{
    brg_profile *profile = NULL;
    if (r->options->profile == NULL || r->options->is_eval_only)
        return BRG_OK;
    if (r->ddp == NULL)
        return brg_error_set(BRG_ERR_UNSUPPORTED, __FILE__, __LINE__,
                             "--profile: one rank on a GPU reduces nothing");
    brg_status status =
        brg_reducer_get_profile(brg_ddp_reducer(r->ddp), &profile);
    if (status == BRG_OK && r->w->rank == 0)
        status = brg_profile_write(profile, r->options->profile);
    brg_profile_destroy(profile);
    return world_agree(r->w, status);
}

static brg_status run_all(train_result *out, run *r)
{
    const train_options *options = r->options;
    brg_status status = open_local(r);
    BRG_TRY(world_agree(r->w, status));
    BRG_TRY(open_ddp(r));
    progress_begin(&r->progress, r->w->rank == 0 && !options->is_quiet, r->step,
                   r->n_steps, options->batch);
    if (!options->is_eval_only && r->step >= r->n_steps && r->w->rank == 0)
        fprintf(stderr,
                "--resume: %s is at step %" PRId64 " and training ends at step "
                "%" PRId64 " (--steps, --epochs): it is only evaluated\n",
                options->resume, r->step, r->n_steps);
    if (options->is_eval_only || r->step >= r->n_steps)
        BRG_TRY(evaluate(r));
    else
        BRG_TRY(run_epochs(r));
    progress_end(&r->progress);
    if (options->trace != NULL)
        BRG_TRY(world_agree(r->w, brg_trace_dump(NULL)));
    BRG_TRY(write_profile(r));
    return fill_result(out, r);
}

brg_status train(train_result *out, const train_task *task,
                 const train_options *options, world *w)
{
    run r = {.task = task, .options = options, .w = w};
    int scope = 0;
    brg_compile_options compile = BRG_COMPILE_OPTIONS_INIT;
    compile.fullgraph = true; /* rather an error than eager unnoticed */
    compile.whole = true;
    if (options->is_fused)
        compile.backend = BRG_COMPILE_BACKEND_FUSED;
    /* a backward alone is not quicker when it is launched */
    compile.replay =
        options->is_step_compiled && brg_device_get().type != BRG_DEVICE_CPU;
    if (options->is_step_compiled && options->leaves > 0)
        return brg_error_set(BRG_ERR_ARG, __FILE__, __LINE__,
                             "--compile=%s: a step of leaves has a backward "
                             "for each, whose number differs between ranks",
                             options->is_fused ? "fused" : "step");
    if (options->is_compiled)
        BRG_TRY(brg_compile_begin(&scope, &compile));
    if (options->is_step_compiled)
        BRG_TRY(brg_compiled_create(&r.compiled, whole_step, &r, &compile));
    brg_status status = run_all(out, &r);
    if (scope != 0 && brg_compile_end(scope) != BRG_OK && status == BRG_OK)
        status = brg_error_code();
    if (r.log != NULL && fclose(r.log) != 0 && status == BRG_OK)
        status = fail(BRG_ERR_IO, "cannot write", options->log_losses);
    metrics_close(r.metrics);
    progress_end(&r.progress);
    brg_compiled_destroy(r.compiled);
    brg_ddp_destroy(r.ddp);
    brg_optim_destroy(r.optim);
    brg_sampler_destroy(r.sampler);
    free(r.losses);
    return status;
}

brg_status train_evaluate(eval_chunk_fn chunk, const void *user, int64_t n,
                          int64_t chunk_size, const world *w, eval_sums *sums)
{
    int64_t at = n * w->rank / w->size, end = n * (w->rank + 1) / w->size;
    brg_status status = BRG_OK;
    for (; at < end && status == BRG_OK; at += chunk_size) {
        brg_scope *scope = brg_scope_begin();
        if (scope == NULL)
            return brg_error_code();
        status = chunk(user, at, end - at < chunk_size ? end - at : chunk_size,
                       sums);
        brg_scope_end(scope);
    }
    return status;
}

void train_print_result(const train_result *result, const world *w,
                        const char *first)
{
    if (w->rank != 0)
        return;
    printf("result: %s steps=%" PRId64 " ranks=%d step_ms=%.3f "
           "wait_share=%.4f overlap_first_launch=%.3f train_s=%.2f "
           "params_hash=%016" PRIx64 "\n",
           first, result->n_steps, w->size, result->step_ms, result->wait_share,
           result->overlap_first_launch, result->seconds, result->params_hash);
    fflush(stdout);
}
