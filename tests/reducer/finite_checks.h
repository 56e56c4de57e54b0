/* SPDX-License-Identifier: Apache-2.0
 * Gradients that are not finite, on the ranks of any group: every rank knows
 * of them, and whose they are, in the step itself and at no message. */
#ifndef BRG_TESTS_REDUCER_FINITE_CHECKS_H
#define BRG_TESTS_REDUCER_FINITE_CHECKS_H

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/comm_hook.h>
#include <brigade/compile.h>
#include <brigade/ops.h>
#include <brigade/shard.h>

#include "tests/reducer/trainer.h"

/* ---- Raw buffers ---------------------------------------------------------------- */

/* What is put into a gradient of some ranks (bits). */
typedef struct plant {
    unsigned ranks;
    size_t param, at;
    double value;
} plant;

static inline brg_status planted_step(trainer *t, int step, const plant *p,
                                      size_t n)
{
    for (size_t i = t->n; i-- > 0;) {
        fill(t, step, i);
        for (size_t k = 0; k < n; k++)
            if (p[k].param == i && p[k].ranks >> t->rank & 1)
                ranks_store(grad_of(t, i), p[k].at, dtypes[i], p[k].value);
        BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
    }
    return brg_reducer_wait(t->reducer);
}

static inline bool all_results_are_finite(const trainer *t)
{
    bool all = true;
    for (size_t i = 0; i < t->n; i++)
        for (size_t k = 0; k < counts[i]; k++)
            all &= isfinite(ranks_load(grad_of(t, i), k, dtypes[i])) != 0;
    return all;
}

static inline brg_status expect_finite(const trainer *t, size_t n_ranks,
                                       int rank, size_t param)
{
    brg_finite_info info;
    bool all = brg_reducer_grads_finite(t->reducer, &info);
    RANK_CHECK(all == (n_ranks == 0) && all == info.all_finite,
               "rank %d: finite: %d, expected %zu ranks with others", t->rank,
               all, n_ranks);
    RANK_CHECK(!all || all_results_are_finite(t),
               "rank %d: results are not finite", t->rank);
    RANK_CHECK(
        info.n_ranks == n_ranks && info.rank == rank && info.param == param,
        "rank %d: found on %zu ranks, rank %d, parameter %zu; expected "
        "%zu, %d, %zu",
        t->rank, info.n_ranks, info.rank, info.param, n_ranks, rank, param);
    return BRG_OK;
}

/* Each parameter, each kind of value, first and last element. */
static inline brg_status one_of_all(trainer *t, int *step)
{
    const double values[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3 * t->n; i++) {
        size_t param = i % t->n;
        int rank = (int)(i % (size_t)t->world_size);
        plant p = {1u << rank, param, i % 2 ? counts[param] - 1 : 0,
                   values[i % 3]};
        BRG_TRY(planted_step(t, ++*step, &p, 1));
        BRG_TRY(expect_finite(t, 1, rank, param));
        RANK_CHECK(!all_results_are_finite(t), "it was not planted");
    }
    BRG_TRY(planted_step(t, ++*step, NULL, 0));
    return expect_finite(t, 0, -1, SIZE_MAX);
}

/* The last rank's fc2.bias, and fc1.weight and fc1.bias of rank 0. */
static inline brg_status several(trainer *t, int *step)
{
    int last = t->world_size - 1;
    plant p[] = {{1u << last, 4, 2, NAN}, {1, 1, 3, INFINITY}, {1, 2, 3, NAN}};
    BRG_TRY(planted_step(t, ++*step, p, 3));
    if (last == 0)
        return expect_finite(t, 1, 0, 4);
    return expect_finite(t, 2, -1,
                         t->rank == 0      ? 2
                         : t->rank == last ? 4
                                           : SIZE_MAX);
}

/* Each is finite, their sum is not: f32, and f16 unless it is averaged. */
static inline brg_status sums_overflow(trainer *t, int *step, bool sum)
{
    size_t n = (size_t)t->world_size;
    plant wide = {~0u, 0, 7, 3e38}, narrow = {~0u, 1, 16, -6e4};
    BRG_TRY(planted_step(t, ++*step, &wide, 1));
    BRG_TRY(n == 1 ? expect_finite(t, 0, -1, SIZE_MAX)
                   : expect_finite(t, n, -1, 0));
    BRG_TRY(planted_step(t, ++*step, &narrow, 1));
    return n == 1 || !sum ? expect_finite(t, 0, -1, SIZE_MAX)
                          : expect_finite(t, n, -1, 1);
}

static inline brg_status finite_raw_steps(trainer *t, bool sum)
{
    brg_pg_stats before, after;
    int step = 0;
    RANK_CHECK(brg_reducer_grads_finite(t->reducer, NULL),
               "no step was made, and it was bad");
    BRG_TRY(planted_step(t, 0, NULL, 0));
    BRG_TRY(expect_finite(t, 0, -1, SIZE_MAX));
    brg_pg_get_stats(t->pg, &before);
    BRG_TRY(one_of_all(t, &step));
    BRG_TRY(several(t, &step));
    BRG_TRY(sums_overflow(t, &step, sum));
    brg_pg_get_stats(t->pg, &after);
    size_t n = (size_t)step * brg_reducer_n_buckets(t->reducer);
    RANK_CHECK(after.n_collectives - before.n_collectives == n,
               "%d steps made %d collectives, expected %zu", step,
               (int)(after.n_collectives - before.n_collectives), n);
    return BRG_OK;
}

static inline brg_status check_finite_raw(brg_pg *pg)
{
    static const size_t caps[] = {1, 300, 0};
    for (int i = 0; i < 6; i++) {
        trainer t;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.first_bucket_bytes = options.bucket_bytes = caps[i % 3];
        options.sum = i >= 3;
        options.check_finite = true;
        trainer_init(&t, pg);
        BRG_TRY(trainer_create(&t, &options));
        brg_status status = finite_raw_steps(&t, options.sum);
        brg_reducer_destroy(t.reducer);
        BRG_TRY(status);
    }
    return BRG_OK;
}

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
    int scope;
    BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = check_finite_ddp(pg);
    BRG_TRY(brg_compile_end(scope));
    return status;
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
    if (status == BRG_OK)
        status = ranks_same_bits(pg, brg_tensor_data(w), 3 * sizeof(uint16_t));
    double mean = (brg_pg_world_size(pg) + 1) / 2.0;
    double found = ranks_load(brg_tensor_data(w), 1, BRG_DTYPE_F16);
    if (status == BRG_OK && fabs(found - (1 - 4 * 0.125 * mean)) > 0.01)
        status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                               "the weight is %g", found);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

#endif
