/* SPDX-License-Identifier: Apache-2.0
 * Parameters on the thread's device under a group that reduces on the host: its
 * averages have the bits of those of the same model on the host; and what other
 * tensors the ranks exchange.
 *
 *     STAGED_LIST(X)     X(check) for each: brg_status check_<check>(brg_pg *) */
#ifndef BRG_TESTS_REDUCER_STAGED_CHECKS_H
#define BRG_TESTS_REDUCER_STAGED_CHECKS_H

#include <brigade/device.h>
#include <brigade/sync_norm.h>

#include "tests/reducer/average_checks.h"
#include "tests/reducer/feature_list.h"
#include "tests/reducer/finite_ddp_checks.h"
#include "tests/reducer/sum_checks.h"

#define STAGED_STEPS 4 /* buckets are made anew in one */
#define STAGED_LEAVES 4

/* ---- The bits of the host ----------------------------------------------------- */

typedef struct staged_bits {
    char grads[STAGED_STEPS][DDP_MODEL_N][DDP_MODEL_NUMEL * sizeof(double)];
    double norms[STAGED_STEPS];
} staged_bits;

static inline brg_status
staged_backward(ddp_model *m, const brg_ddp_options *options, int step)
{
    uint32_t leaf = 0;
    if (options->reduction == BRG_REDUCTION_REPRODUCIBLE) {
        for (bool is_last = false; !is_last;) {
            is_last = brg_ddp_next_leaf(m->ddp, &leaf);
            BRG_TRY(
                ddp_model_backward(m, 10 * step + (int)leaf, DDP_MODEL_ALL));
        }
        return BRG_OK;
    }
    if (step == 2) { /* micro-batches */
        (void)brg_ddp_set_sync(m->ddp, false);
        BRG_TRY(ddp_model_backward(m, 100, DDP_MODEL_ALL));
        (void)brg_ddp_set_sync(m->ddp, true);
    }
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

static inline brg_status
staged_steps(ddp_model *m, const brg_ddp_options *options, staged_bits *filled)
{
    const bool has_leaves = options->reduction == BRG_REDUCTION_REPRODUCIBLE;
    for (int step = 0; step < STAGED_STEPS; step++) {
        BRG_TRY(ddp_model_zero(m, step % 2 && !has_leaves));
        BRG_TRY(staged_backward(m, options, step));
        if (options->measure_norm)
            BRG_TRY(brg_ddp_clip_grad_norm(m->ddp, 0.5, &filled->norms[step]));
        for (size_t i = 0; i < DDP_MODEL_N; i++) {
            brg_tensor *grad = brg_tensor_grad(m->params[i]);
            RANK_CHECK(grad, "no gradient %zu", i);
            RANK_CHECK(brg_tensor_device(grad).type ==
                           brg_tensor_device(m->params[i]).type,
                       "gradient %zu is elsewhere", i);
            BRG_TRY(brg_tensor_read(grad, filled->grads[step][i],
                                    brg_tensor_nbytes(grad)));
        }
    }
    return BRG_OK;
}

#define STAGED_HOOKED 8
#define STAGED_N_MODES 9

static inline brg_ddp_options staged_options(int mode)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    if (mode > 0)
        options.first_bucket_bytes = options.bucket_bytes = 300;
    options.grads_apart = mode == 2;
    options.static_graph = mode == 3;
    options.allow_unused = mode == 4;
    options.measure_norm = mode == 5;
    options.accumulate_f32 = mode == 6;
    if (mode == 7) {
        options.reduction = BRG_REDUCTION_REPRODUCIBLE;
        options.n_leaves = STAGED_LEAVES;
    }
    return options;
}

static inline brg_status staged_on(brg_pg *pg, brg_device device, int mode,
                                   staged_bits *filled)
{
    const brg_device before = brg_device_get();
    brg_ddp_options options = staged_options(mode);
    ddp_model m = {0};
    BRG_TRY(brg_device_set(device));
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK && mode == STAGED_HOOKED)
        status = brg_comm_hook_create_cast(&options.hook, BRG_DTYPE_BF16, true);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &options);
    if (status == BRG_OK)
        status = staged_steps(&m, &options, filled);
    ddp_model_deinit(&m);
    brg_comm_hook_destroy(options.hook);
    const brg_status back = brg_device_set(before);
    return status != BRG_OK ? status : back;
}

static inline brg_status staged_compare(brg_pg *pg, int mode)
{
    const brg_device host = {BRG_DEVICE_CPU, 0};
    staged_bits *want = calloc(2, sizeof *want), *got = want + 1;
    brg_status status = want ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK)
        status = staged_on(pg, host, mode, want);
    if (status == BRG_OK)
        status = staged_on(pg, brg_device_get(), mode, got);
    const bool is_equal =
        status == BRG_OK && memcmp(want, got, sizeof *want) == 0;
    free(want);
    BRG_TRY(status);
    RANK_CHECK(is_equal, "mode %d: other bits than on the host", mode);
    return BRG_OK;
}

static inline brg_status check_staged_bits(brg_pg *pg)
{
    for (int mode = 0; mode < STAGED_N_MODES; mode++)
        BRG_TRY(staged_compare(pg, mode));
    return BRG_OK;
}

static inline brg_status check_staged_compiled(brg_pg *pg)
{
    return compiled_check(pg, check_staged_bits);
}

/* ---- Steps that are left out ------------------------------------------------------ */

/* The optimizer asks on the device. */
static inline brg_status staged_skips(brg_ddp *ddp, brg_optim *optim,
                                      brg_tensor *w, int rank)
{
    float expected[3] = {1, 1, 1}, got[3];
    BRG_TRY(brg_optim_set_found_inf(optim, brg_ddp_found_inf(ddp)));
    for (int step = 0; step < 4; step++) {
        const bool is_bad = step % 2;
        brg_scope *scope = brg_scope_begin();
        brg_status status = brg_backward(
            brg_sum_all(brg_mul_scalar(w, is_bad && rank == 0 ? INFINITY : 1)));
        brg_scope_end(scope);
        BRG_TRY(status);
        BRG_TRY(brg_optim_step(optim));
        BRG_TRY(brg_optim_zero_grad(optim, step < 2));
        BRG_TRY(brg_tensor_read(w, got, sizeof got));
        for (int k = 0; k < 3; k++) {
            expected[k] -= is_bad ? 0 : 0.25f;
            RANK_CHECK(got[k] == expected[k], "step %d: %g, expected %g", step,
                       (double)got[k], (double)expected[k]);
        }
    }
    return BRG_OK;
}

static inline brg_status check_staged_found_inf(brg_pg *pg)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    brg_ddp *ddp = NULL;
    brg_params *params = NULL;
    brg_optim *optim = NULL;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    options.check_finite = true;
    sgd.lr = 0.25;
    brg_status status = brg_set_requires_grad(w, true);
    if (status == BRG_OK)
        status = brg_params_create(&params);
    if (status == BRG_OK)
        status = brg_params_add(params, "w", w, BRG_PARAM_TRAINED);
    if (status == BRG_OK)
        status = brg_optim_create_sgd(&optim, params, &sgd);
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, &w, 1, NULL, 0, &options);
    if (status == BRG_OK)
        status = staged_skips(ddp, optim, w, brg_pg_rank(pg));
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

/* ---- What else goes between the ranks ------------------------------------------- */

/* State gathered from its parts is that of an optimizer which has all of it, and
 * comes back to them. */
static inline brg_status staged_same_state(const brg_optim *a,
                                           const brg_optim *b)
{
    char p[SHARD_NUMEL * 8], q[SHARD_NUMEL * 8];
    for (size_t i = 0; i < brg_optim_state_count(a); i++) {
        brg_tensor *s = brg_optim_state_at(a, i)->tensor;
        const size_t nbytes = brg_tensor_nbytes(s);
        BRG_TRY(brg_tensor_read(s, p, nbytes));
        BRG_TRY(brg_tensor_read(brg_optim_state_at(b, i)->tensor, q, nbytes));
        RANK_CHECK(memcmp(p, q, nbytes) == 0, "state %s has other bits",
                   brg_optim_state_at(a, i)->name);
    }
    return BRG_OK;
}

static inline brg_status staged_state(shard_run *a, shard_run *b)
{
    brg_optim *whole = NULL, *again = NULL;
    brg_optim_range ranges[SHARD_N];
    const bool is_root = brg_pg_rank(a->pg) == 0;
    for (int step = 0; step < 3; step++) {
        BRG_TRY(shard_step(b, step, 0, NULL));
        BRG_TRY(shard_step(a, step, 0, NULL));
    }
    BRG_TRY(brg_ddp_wait_params(a->ddp, NULL));
    BRG_TRY(brg_ddp_shard(a->ddp, a->params, ranges, SHARD_N));
    BRG_TRY(shard_make_optim(a, &again, ranges));
    brg_status status = is_root ? shard_make_optim(a, &whole, NULL) : BRG_OK;
    if (status == BRG_OK)
        status = brg_ddp_gather_optim(a->ddp, whole, a->optim);
    if (status == BRG_OK && is_root)
        status = staged_same_state(whole, b->optim);
    if (status == BRG_OK)
        status = brg_ddp_scatter_optim(a->ddp, again, whole);
    if (status == BRG_OK)
        status = staged_same_state(again, a->optim);
    brg_optim_destroy(whole);
    brg_optim_destroy(again);
    return status;
}

static inline brg_status check_staged_state(brg_pg *pg)
{
    shard_run a = {.is_sharded = true}, b = {.rule = SHARD_ADAMW};
    brg_status status = shard_run_init(&a, pg);
    if (status == BRG_OK)
        status = shard_run_init(&b, pg);
    if (status == BRG_OK)
        status = staged_state(&a, &b);
    shard_run_deinit(&b);
    shard_run_deinit(&a);
    return status;
}

/* The rank with most steps has the right values. */
static inline brg_status staged_regroup_body(ddp_model *m)
{
    double value[DDP_MODEL_NUMEL];
    int64_t n_steps = m->rank == 0 ? 5 : 3;
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
    bool mode = brg_grad_mode_set(false);
    brg_status status = BRG_OK;
    for (size_t i = 0; i < DDP_MODEL_N && status == BRG_OK; i++)
        status = brg_fill_(m->params[i], m->rank + 2);
    (void)brg_grad_mode_set(mode);
    BRG_TRY(status);
    BRG_TRY(brg_ddp_regroup(m->ddp, m->pg, NULL, &n_steps));
    RANK_CHECK(n_steps == 5, "%d steps", (int)n_steps);
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        brg_dtype dtype = brg_tensor_dtype(m->params[i]);
        BRG_TRY(brg_tensor_read(m->params[i], value,
                                brg_tensor_nbytes(m->params[i])));
        for (size_t k = 0; k < (size_t)brg_tensor_numel(m->params[i]); k++)
            RANK_CHECK(ranks_load(value, k, dtype) == 2, "%zu[%zu] is %g", i, k,
                       ranks_load(value, k, dtype));
    }
    BRG_TRY(brg_ddp_compare(m->ddp));
    BRG_TRY(ddp_model_backward(m, 1, DDP_MODEL_ALL));
    return ddp_model_check(m, 1, 2);
}

static inline brg_status check_staged_regroup(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    return with_model(pg, &options, staged_regroup_body);
}

/* Batch norm of all ranks' rows, near that of the host (tests of which:
 * sync_norm_checks.h). */
#define STAGED_ROWS 5
#define STAGED_NORM_SHAPE BRG_SHAPE(STAGED_ROWS, 3, 2)
#define STAGED_NORM_NUMEL ((size_t)STAGED_ROWS * 3 * 2)

static inline brg_status staged_norm_on(brg_pg *pg, brg_device device,
                                        double filled[2][STAGED_NORM_NUMEL])
{
    float values[STAGED_NORM_NUMEL];
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    options.training = true;
    for (size_t k = 0; k < STAGED_NORM_NUMEL; k++)
        values[k] = (float)ranks_gradient(brg_pg_rank(pg), 3, 0, k);
    brg_sync_norm *sync;
    BRG_TRY(brg_sync_norm_create(&sync, pg));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_detach(brg_to(
        brg_from_data(BRG_DTYPE_F32, STAGED_NORM_SHAPE, values), device));
    brg_status status = brg_set_requires_grad(x, true);
    brg_tensor *y =
        brg_sync_batch_norm(sync, x, NULL, NULL, NULL, NULL, &options);
    if (status == BRG_OK)
        status = brg_backward(brg_sum_all(brg_mul(y, brg_square(y))));
    brg_tensor *found[2] = {y, status == BRG_OK ? brg_tensor_grad(x) : NULL};
    for (int k = 0; k < 2 && status == BRG_OK; k++)
        status = brg_tensor_read(brg_cast(brg_detach(found[k]), BRG_DTYPE_F64),
                                 filled[k], STAGED_NORM_NUMEL * sizeof(double));
    brg_scope_end(scope);
    brg_sync_norm_destroy(sync);
    return status;
}

static inline brg_status check_staged_norms(brg_pg *pg)
{
    const brg_device host = {BRG_DEVICE_CPU, 0}, before = brg_device_get();
    double want[2][STAGED_NORM_NUMEL], got[2][STAGED_NORM_NUMEL];
    BRG_TRY(brg_device_set(host));
    brg_status status = staged_norm_on(pg, host, want);
    BRG_TRY(brg_device_set(before));
    BRG_TRY(status);
    BRG_TRY(staged_norm_on(pg, before, got));
    for (size_t k = 0; k < 2 * STAGED_NORM_NUMEL; k++)
        RANK_CHECK(fabs((&got[0][0])[k] - (&want[0][0])[k]) < 1e-4,
                   "%zu is %g, expected %g", k, (&got[0][0])[k],
                   (&want[0][0])[k]);
    return BRG_OK;
}

#define STAGED_LIST(X)                                                         \
    FEATURE_LIST(X)                                                            \
    X(staged_bits)                                                             \
    X(staged_compiled)                                                         \
    X(staged_found_inf)                                                        \
    X(staged_state)                                                            \
    X(staged_regroup)                                                          \
    X(staged_norms)                                                            \
    X(finite_ddp)                                                              \
    X(loss_scaling)                                                            \
    X(averages)                                                                \
    X(sums)

#endif
