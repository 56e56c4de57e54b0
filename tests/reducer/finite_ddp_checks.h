/* SPDX-License-Identifier: Apache-2.0
 * Gradients that are not finite under a ddp, on the ranks of any group: on the
 * thread's device (brg_device_set). */
#ifndef BRG_TESTS_REDUCER_FINITE_DDP_CHECKS_H
#define BRG_TESTS_REDUCER_FINITE_DDP_CHECKS_H

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/comm_hook.h>
#include <brigade/ddp.h>
#include <brigade/ops.h>
#include <brigade/shard.h>

#include "tests/support/brg_test.h"
#include "tests/support/compiled_run.h"
#include "tests/support/ranks.h"

/* ---- A ddp ------------------------------------------------------------------------ */

#define FINITE_N 2
#define FINITE_NUMEL 6
#define FINITE_LEAVES 8

typedef struct finite_model {
    brg_pg *pg;
    int rank, world_size;
    brg_scope *scope;
    brg_tensor *w[FINITE_N];
    brg_ddp *ddp;
    brg_ddp_options options;
} finite_model;

/* The gradients of one backward are x; x[param][2] is `value`. */
static inline brg_status finite_backward(finite_model *m, int param,
                                         double value)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    for (int i = 0; i < FINITE_N; i++) {
        float x[FINITE_NUMEL];
        for (size_t k = 0; k < FINITE_NUMEL; k++)
            x[k] = (float)ranks_gradient(m->rank, 0, (size_t)i, k);
        if (i == param)
            x[2] = (float)value;
        brg_tensor *t =
            brg_from_data(BRG_DTYPE_F32, 1, (int64_t[]){FINITE_NUMEL}, x);
        brg_tensor *term = brg_sum_all(brg_mul(m->w[i], t));
        loss = loss ? brg_add(loss, term) : term;
    }
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

/* One step, with all its backwards; the value in the first of them. */
static inline brg_status finite_step(finite_model *m, int micro_batches,
                                     int param, double value)
{
    uint32_t leaf;
    for (int i = 0; i < FINITE_N; i++)
        BRG_TRY(brg_tensor_set_grad(m->w[i], NULL));
    if (m->options.reduction == BRG_REDUCTION_REPRODUCIBLE) {
        for (bool is_last = false; !is_last; param = -1) {
            is_last = brg_ddp_next_leaf(m->ddp, &leaf);
            BRG_TRY(finite_backward(m, param, value));
        }
        return BRG_OK;
    }
    for (int k = 0; k < micro_batches; k++, param = -1) {
        (void)brg_ddp_set_sync(m->ddp, k + 1 == micro_batches);
        BRG_TRY(finite_backward(m, param, value));
    }
    return BRG_OK;
}

static inline brg_status finite_expect(const finite_model *m, size_t n_ranks,
                                       int rank, size_t param, bool all)
{
    brg_finite_info info;
    bool found = brg_ddp_grads_finite(m->ddp, &info);
    RANK_CHECK(found == all && info.all_finite == all, "rank %d: finite: %d",
               m->rank, found);
    RANK_CHECK(info.n_ranks == n_ranks && info.rank == rank &&
                   info.param == param,
               "rank %d: found on %zu ranks, rank %d, parameter %zu", m->rank,
               info.n_ranks, info.rank, info.param);
    return BRG_OK;
}

static inline brg_status finite_steps(finite_model *m)
{
    for (int k = 0; k < 6; k++) {
        int culprit = (k + 1) % m->world_size, param = k % FINITE_N;
        bool is_bad = k % 3 != 0;
        double value = k % 2 ? INFINITY : NAN;
        BRG_TRY(finite_step(m, 1 + k % 2,
                            is_bad && m->rank == culprit ? param : -1, value));
        if (is_bad)
            BRG_TRY(finite_expect(m, 1, culprit, (size_t)param, false));
        else
            BRG_TRY(finite_expect(m, 0, -1, SIZE_MAX, true));
    }
    return BRG_OK;
}

static inline brg_status with_finite_model(brg_pg *pg,
                                           const brg_ddp_options *options,
                                           brg_status (*body)(finite_model *m))
{
    finite_model m = {.pg = pg,
                      .rank = brg_pg_rank(pg),
                      .world_size = brg_pg_world_size(pg),
                      .scope = brg_scope_begin(),
                      .options = *options};
    m.options.check_finite = true;
    brg_status status = BRG_OK;
    for (int i = 0; i < FINITE_N && status == BRG_OK; i++) {
        m.w[i] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(FINITE_NUMEL));
        status = brg_set_requires_grad(m.w[i], true);
    }
    if (status == BRG_OK)
        status = brg_ddp_create(&m.ddp, pg, m.w, FINITE_N, NULL, 0, &m.options);
    if (status == BRG_OK)
        status = body(&m);
    brg_ddp_destroy(m.ddp);
    brg_scope_end(m.scope);
    return status;
}

/* Finite f32 that 16 bits on the wire cannot hold. */
static inline brg_status finite_hook_steps(finite_model *m)
{
    BRG_TRY(finite_step(m, 1, -1, 0));
    BRG_TRY(finite_expect(m, 0, -1, SIZE_MAX, true));
    BRG_TRY(finite_step(m, 1, m->rank == 0 ? 1 : -1, 1e6));
    BRG_TRY(finite_expect(m, 0, -1, 1, false));
    return finite_steps(m);
}

static inline brg_status check_finite_hook(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(brg_comm_hook_create_cast(&options.hook, BRG_DTYPE_F16, false));
    brg_status status = with_finite_model(pg, &options, finite_hook_steps);
    brg_comm_hook_destroy(options.hook);
    return status;
}

/* Ranks without data are beside the one that has some. */
static inline brg_status finite_join_steps(finite_model *m)
{
    bool is_over;
    for (int k = 0; k < 4; k++) {
        if (m->rank > 0)
            BRG_TRY(brg_ddp_join(m->ddp, &is_over));
        else
            BRG_TRY(finite_step(m, 1, k % 2 ? 1 : -1, NAN));
        BRG_TRY(k % 2 ? finite_expect(m, 1, 0, 1, false)
                      : finite_expect(m, 0, -1, SIZE_MAX, true));
    }
    return BRG_OK;
}

static inline brg_status check_finite_ddp(brg_pg *pg)
{
    for (int mode = 0; mode < 8; mode++) {
        brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
        options.static_graph = mode == 1;
        options.grads_apart = mode == 2;
        options.allow_unused = mode == 3;
        options.shard = mode == 4;
        options.measure_norm = mode == 4 || mode == 5;
        if (mode == 6) {
            options.reduction = BRG_REDUCTION_REPRODUCIBLE;
            options.n_leaves = FINITE_LEAVES;
        }
        if (mode == 7)
            options.first_bucket_bytes = options.bucket_bytes = 1;
        BRG_TRY(with_finite_model(pg, &options, finite_steps));
    }
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(with_finite_model(pg, &options, finite_join_steps));
    return check_finite_hook(pg);
}

static inline brg_status check_finite_compiled(brg_pg *pg)
{
    return compiled_check(pg, check_finite_ddp);
}

/* ---- What it is for ------------------------------------------------------------------ */

/* f16, and a scale that is too large at first: all ranks leave out the same
 * steps, and make the others with the same weights. */
static inline brg_status scaled_steps(brg_ddp *ddp, brg_tensor *w, int rank)
{
    double scale = 65536 * 64;
    int n_made = 0, n_left_out = 0;
    for (int k = 0; k < 40 && n_made < 4; k++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *y = brg_sum_all(brg_mul_scalar(w, (double)(rank + 1)));
        brg_tensor *loss = brg_mul_scalar(brg_cast(y, BRG_DTYPE_F32), scale);
        brg_status status = brg_tensor_set_grad(w, NULL);
        if (status == BRG_OK)
            status = brg_backward(loss);
        brg_scope_end(scope);
        BRG_TRY(status);
        bool is_fine = brg_ddp_grads_finite(ddp, NULL);
        n_made += is_fine;
        n_left_out += !is_fine;
        if (!is_fine) {
            scale /= 2;
            continue;
        }
        bool was = brg_grad_mode_set(false);
        status = brg_add_(w, brg_tensor_grad(w), -0.125 / scale);
        (void)brg_grad_mode_set(was);
        BRG_TRY(status);
    }
    RANK_CHECK(n_made == 4 && n_left_out > 0, "%d steps made, %d left out",
               n_made, n_left_out);
    return BRG_OK;
}

static inline brg_status check_loss_scaling(brg_pg *pg)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = brg_ones(BRG_DTYPE_F16, BRG_SHAPE(3));
    brg_ddp *ddp = NULL;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.check_finite = true;
    brg_status status = brg_set_requires_grad(w, true);
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, &w, 1, NULL, 0, &options);
    if (status == BRG_OK)
        status = scaled_steps(ddp, w, brg_pg_rank(pg));
    uint16_t values[3] = {0};
    if (status == BRG_OK)
        status = brg_tensor_read(w, values, sizeof values);
    if (status == BRG_OK)
        status = ranks_same_bits(pg, values, sizeof values);
    double mean = (brg_pg_world_size(pg) + 1) / 2.0;
    double found = ranks_load(values, 1, BRG_DTYPE_F16);
    if (status == BRG_OK && fabs(found - (1 - 4 * 0.125 * mean)) > 0.01)
        status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                               "the weight is %g", found);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

#endif
