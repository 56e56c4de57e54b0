/* SPDX-License-Identifier: Apache-2.0
 * The training loop around the steps of train_step.c: what is opened before it,
 * epochs, evaluation, checkpoints, what is reported after it. */
#include "common/train_run.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/device.h>
#include <brigade/reducer.h>
#include <brigade/schedule.h>
#include <brigade/tensor.h>
#include <brigade/trace.h>

#include "common/report.h"
#include "common/state.h"

/* Medians of so many are written by --profile. */
#define PROFILED_STEPS 50

static brg_status fail(brg_status code, const char *what, const char *path)
{
    return brg_error_set(code, __FILE__, __LINE__, "%s %s: %s", what, path,
                         strerror(errno));
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
    options.buckets = r->options->buckets;
    if (r->options->profile && options.buckets == BRG_BUCKETS_DEFAULT)
        options.buckets = BRG_BUCKETS_BY_SIZE;
    brg_pg *pg = NULL;
    BRG_TRY(world_gradients(r->w, &pg));
    BRG_TRY(
        brg_ddp_create(&r->ddp, pg, tensors, n, buffers, n_buffers, &options));
    r->is_timed = brg_device_get().type != BRG_DEVICE_CPU;
    if (r->is_timed)
        BRG_TRY(brg_ddp_measure_exposed(r->ddp));
    /* measured buckets record steps of their own */
    if (r->options->profile == NULL || options.buckets == BRG_BUCKETS_MEASURED)
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
        BRG_TRY(train_compile_step(&r, &compile));
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
