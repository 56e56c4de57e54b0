/* SPDX-License-Identifier: Apache-2.0
 * Features of a ddp on the ranks of any group: each check builds a model of
 * its own and is collective. */
#ifndef BRG_TESTS_REDUCER_DDP_FEATURE_CHECKS_H
#define BRG_TESTS_REDUCER_DDP_FEATURE_CHECKS_H

#include <math.h>
#include <string.h>

#include <brigade/ops.h>
#include <brigade/recompute.h>

#include "core/base/error.h"
#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"
#include "tests/support/ranks.h"

/* What a backward came to, of this rank and of all: on a GPU the latter is known
 * later. */
static inline brg_status settled(brg_ddp *ddp, brg_status status)
{
    brg__error_record own;
    brg__error_save(&own);
    const brg_status of_all = brg_ddp_confirm(ddp);
    if (status == BRG_OK)
        return of_all;
    brg__error_restore(&own);
    return status;
}

typedef brg_status (*feature_body)(ddp_model *m);

static inline brg_status with_model(brg_pg *pg, const brg_ddp_options *options,
                                    feature_body body)
{
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, options);
    if (status == BRG_OK)
        status = body(&m);
    ddp_model_deinit(&m);
    return status;
}

/* ---- Gradients apart ---------------------------------------------------------- */

static inline brg_status apart_body(ddp_model *m)
{
    brg_tensor *grads[DDP_MODEL_N] = {NULL};
    for (int step = 0; step < 4; step++) {
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, step, step + 1));
        for (size_t i = 0; i < DDP_MODEL_N; i++) {
            brg_tensor *grad = brg_tensor_grad(m->params[i]);
            brg_tensor *other =
                brg_tensor_grad(m->params[(i + 1) % DDP_MODEL_N]);
            RANK_CHECK(!brg_tensor_shares_storage(grad, other),
                       "gradients share memory");
            RANK_CHECK(brg_tensor_data(grad) !=
                           brg_reducer_slot(brg_ddp_reducer(m->ddp), i),
                       "gradient %zu is its slot", i);
            RANK_CHECK(step < 2 || grads[i] == grad,
                       ".grad of %zu is another tensor", i);
            grads[i] = grad;
        }
        BRG_TRY(ddp_model_zero(m, step > 0));
    }
    /* Two micro-batches, one reduction. */
    (void)brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(ddp_model_backward(m, 4, DDP_MODEL_ALL));
    (void)brg_ddp_set_sync(m->ddp, true);
    BRG_TRY(ddp_model_backward(m, 5, DDP_MODEL_ALL));
    return ddp_model_check(m, 4, 6);
}

/* A rank without a gradient gets one if another rank has it. */
static inline brg_status apart_and_unused(ddp_model *m)
{
    const unsigned lacking = 1u << 5;
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL & ~lacking));
    RANK_CHECK(!brg_tensor_grad(m->params[5]), "nobody's gradient");
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(ddp_model_backward(m, 1,
                               DDP_MODEL_ALL & ~(m->rank == 0 ? 0 : lacking)));
    RANK_CHECK(brg_tensor_grad(m->params[5]), "rank %d: no gradient", m->rank);
    RANK_CHECK(brg_tensor_data(brg_tensor_grad(m->params[5])) !=
                   brg_reducer_slot(brg_ddp_reducer(m->ddp), 5),
               "it is its slot");
    return ddp_model_check_param(m, 5, 1, 2, 1u);
}

static inline brg_status check_grads_apart(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.grads_apart = true;
    options.first_bucket_bytes = options.bucket_bytes = 200;
    BRG_TRY(with_model(pg, &options, apart_body));
    options.allow_unused = true;
    return with_model(pg, &options, apart_and_unused);
}

/* ---- Unused parameters ---------------------------------------------------------- */

#define UNUSED_PARAMS ((1u << 1) | (1u << 5)) /* fc1.weight, fc2.bias */

/* Where they may not be left out, a step without them names both, on all ranks,
 * whoever lacks them; the next step is good. */
static inline brg_status unused_refused(ddp_model *m)
{
    for (int step = 0; step < 6; step++) {
        const bool lacks = step % 2 && (step == 3 || m->rank == 0);
        BRG_TRY(ddp_model_zero(m, step < 3));
        const brg_status status = settled(
            m->ddp, ddp_model_backward(
                        m, step, DDP_MODEL_ALL & ~(lacks ? UNUSED_PARAMS : 0)));
        if (step % 2 == 0) {
            BRG_TRY(status);
            BRG_TRY(ddp_model_check(m, step, step + 1));
            continue;
        }
        RANK_FAILS(status, BRG_ERR_STATE, "no gradient in ");
        RANK_CHECK(strstr(brg_error_message(), "fc1.weight on ") &&
                       strstr(brg_error_message(), "fc2.bias on ") &&
                       strstr(brg_error_message(), "set options.allow_unused"),
                   "it says: %s", brg_error_message());
    }
    return BRG_OK;
}

/* Where they may: of those of some ranks the average, with zeros for the others;
 * of those of no rank none. */
static inline brg_status unused_allowed(ddp_model *m)
{
    for (int step = 0; step < 6; step++) {
        const unsigned who = step % 3 == 0   ? DDP_MODEL_EVERY_RANK
                             : step % 3 == 1 ? 1u
                                             : 0u;
        const bool lacks = !(who >> m->rank & 1);
        BRG_TRY(ddp_model_zero(m, false));
        BRG_TRY(settled(
            m->ddp,
            ddp_model_backward(m, step,
                               DDP_MODEL_ALL & ~(lacks ? UNUSED_PARAMS : 0))));
        for (size_t i = 0; i < DDP_MODEL_N; i++) {
            const bool may_lack = UNUSED_PARAMS >> i & 1;
            const size_t n_used =
                brg_reducer_n_used(brg_ddp_reducer(m->ddp), i);
            const size_t want = !may_lack || step % 3 == 0
                                    ? (size_t)m->world_size
                                    : step % 3 == 1;
            RANK_CHECK(n_used == want, "step %d: %zu ranks used %zu, not %zu",
                       step, n_used, i, want);
            if (may_lack && who == 0)
                RANK_CHECK(!brg_tensor_grad(m->params[i]),
                           "step %d: a gradient of %zu", step, i);
            else
                BRG_TRY(ddp_model_check_param(m, i, step, step + 1,
                                              may_lack ? who
                                                       : DDP_MODEL_EVERY_RANK));
        }
    }
    return BRG_OK;
}

static inline brg_status check_unused_params(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 200;
    BRG_TRY(with_model(pg, &options, unused_refused));
    options.allow_unused = true;
    BRG_TRY(with_model(pg, &options, unused_allowed));
    options.grads_apart = true;
    return with_model(pg, &options, unused_allowed);
}

/* ---- Accumulation ---------------------------------------------------------------- */

/* Micro-batches, of which the last reduces the sum of all: into gradients that
 * stay and into new ones. */
static inline brg_status accumulates(ddp_model *m)
{
    for (int round = 0, step = 0; round < 5; round++) {
        const int first = step, last = first + 1 + round % 3;
        for (; step < last; step++) {
            (void)brg_ddp_set_sync(m->ddp, step == last - 1);
            BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        }
        BRG_TRY(ddp_model_check(m, first, last));
        BRG_TRY(ddp_model_zero(m, round % 2));
    }
    return settled(m->ddp, BRG_OK);
}

static inline brg_status check_accumulation(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(with_model(pg, &options, accumulates));
    options.first_bucket_bytes = options.bucket_bytes = 1;
    BRG_TRY(with_model(pg, &options, accumulates));
    options.grads_apart = options.allow_unused = true;
    return with_model(pg, &options, accumulates);
}

/* ---- Static graph ---------------------------------------------------------------- */

static inline brg_status times_w(brg_tensor *const *in, brg_tensor **out,
                                 void *user)
{
    out[0] = brg_mul(in[0], user);
    return out[0] ? BRG_OK : brg_error_code();
}

/* loss = sum over k < n of sum(x_k w), each in a backward of its own; and v. */
static inline brg_status nested_backward(brg_tensor *w, brg_tensor *v, int rank,
                                         int step, int n)
{
    brg_scope *scope = brg_scope_begin();
    brg_recompute_options how = BRG_RECOMPUTE_OPTIONS_INIT;
    how.is_reentrant = true;
    brg_tensor *loss = brg_sum_all(v);
    brg_status status = BRG_OK;
    for (int k = 0; k < n && status == BRG_OK; k++) {
        float values[4];
        for (size_t e = 0; e < 4; e++)
            values[e] = (float)ranks_gradient(rank, step, (size_t)k, e);
        brg_tensor *y = NULL,
                   *x = brg_from_data(BRG_DTYPE_F32, 1, (int64_t[]){4}, values);
        status = brg_set_requires_grad(x, true);
        if (status == BRG_OK)
            status = brg_recompute(&y, times_w, w, &x, 1, &how);
        loss = brg_add(loss, brg_sum_all(y));
    }
    if (status == BRG_OK)
        status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

/* Of steps [first, last) together. */
static inline brg_status check_w(const brg_tensor *w, int n_ranks, int first,
                                 int last, int n)
{
    float grad[4];
    RANK_CHECK(brg_tensor_grad(w), "step %d: no gradient", first);
    BRG_TRY(brg_tensor_read(brg_tensor_grad(w), grad, sizeof grad));
    for (size_t e = 0; e < 4; e++) {
        double expected = 0;
        for (int step = first; step < last; step++)
            for (int k = 0; k < n; k++)
                expected += ranks_average(n_ranks, step, (size_t)k, e);
        RANK_CHECK(fabs(expected - (double)grad[e]) < 1e-6,
                   "step %d: gradient %zu is %g, expected %g", first, e,
                   (double)grad[e], expected);
    }
    return BRG_OK;
}

/* Two nested backwards that only accumulate, then one that is reduced. */
static inline brg_status static_micro_batches(brg_pg *pg, brg_ddp *ddp,
                                              brg_tensor *const *p, int first)
{
    int rank = brg_pg_rank(pg);
    for (int i = 0; i < 3; i++)
        BRG_TRY(brg_tensor_set_grad(p[i], NULL));
    for (int step = first; step < first + 3; step++) {
        (void)brg_ddp_set_sync(ddp, step == first + 2);
        BRG_TRY(nested_backward(p[0], p[1], rank, step, 3));
    }
    return check_w(p[0], brg_pg_world_size(pg), first, first + 3, 3);
}

static inline brg_status static_steps(brg_pg *pg, brg_ddp *ddp,
                                      brg_tensor *const *p)
{
    int rank = brg_pg_rank(pg), n = brg_pg_world_size(pg);
    brg_reducer_stats stats;
    for (int step = 0; step < 4; step++) {
        BRG_TRY(nested_backward(p[0], p[1], rank, step, 3));
        BRG_TRY(check_w(p[0], n, step, step + 1, 3));
        RANK_CHECK(!brg_tensor_grad(p[2]), "an unused one has a gradient");
        brg_ddp_get_stats(ddp, &stats);
        RANK_CHECK(step > 0 ? stats.n_early > 0 : stats.n_early == 0,
                   "step %d: %zu buckets left early", step, stats.n_early);
        for (int i = 0; i < 3; i++)
            BRG_TRY(brg_tensor_set_grad(p[i], NULL));
    }
    /* Another count, on the last rank or on all. */
    bool is_odd = rank == n - 1;
    brg_status status =
        settled(ddp, nested_backward(p[0], p[1], rank, 4, is_odd ? 2 : 3));
    if (is_odd)
        RANK_FAILS(status, BRG_ERR_STATE,
                   "static_graph: w got 2 gradients in this step, 3 in the "
                   "first");
    else
        RANK_FAILS(status, BRG_ERR_PEER, "backward failed ");
    RANK_FAILS(settled(ddp, nested_backward(p[0], p[1], rank, 5, 4)),
               BRG_ERR_STATE,
               "static_graph: w got another gradient after the 3");
    for (int i = 0; i < 3; i++)
        BRG_TRY(brg_tensor_set_grad(p[i], NULL));
    BRG_TRY(nested_backward(p[0], p[1], rank, 6, 3));
    BRG_TRY(check_w(p[0], n, 6, 7, 3));
    BRG_TRY(static_micro_batches(pg, ddp, p, 7));
    return static_micro_batches(pg, ddp, p, 10);
}

static inline brg_status check_static_graph(brg_pg *pg)
{
    static const char *const names[] = {"w", "v", "unused"};
    brg_scope *scope = brg_scope_begin();
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_ddp *ddp = NULL;
    brg_tensor *p[3];
    brg_status status = BRG_OK;
    for (int i = 0; i < 3 && status == BRG_OK; i++) {
        p[i] = brg_ones(BRG_DTYPE_F32, 1, (int64_t[]){4});
        status = brg_set_requires_grad(p[i], true);
        if (status == BRG_OK)
            status = brg_tensor_set_name(p[i], names[i]);
    }
    options.first_bucket_bytes = options.bucket_bytes = 1;
    options.static_graph = options.allow_unused = true;
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, p, 3, NULL, 0, &options);
    if (status == BRG_OK)
        status = static_steps(pg, ddp, p);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

/* Accumulation from the first step on, which is the one that is counted. */
static inline brg_status static_accumulation_body(ddp_model *m)
{
    for (int round = 0; round < 5; round++) {
        int first = 4 * round, last = first + (round == 2 ? 1 : 3);
        for (int step = first; step < last; step++) {
            (void)brg_ddp_set_sync(m->ddp, step == last - 1);
            BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        }
        BRG_TRY(ddp_model_check(m, first, last));
        BRG_TRY(ddp_model_zero(m, round % 2));
    }
    return BRG_OK;
}

static inline brg_status check_static_accumulation(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.static_graph = true;
    BRG_TRY(with_model(pg, &options, static_accumulation_body));
    options.allow_unused = true;
    options.first_bucket_bytes = options.bucket_bytes = 200;
    BRG_TRY(with_model(pg, &options, static_accumulation_body));
    options.grads_apart = true;
    return with_model(pg, &options, static_accumulation_body);
}

/* ---- Join ------------------------------------------------------------------------- */

/* Rank r has 2 + r steps of data, then shadows the others. */
static inline brg_status join_body(ddp_model *m)
{
    int n = m->world_size, last = 2 + n - 1, step = 0;
    for (; step < 2 + m->rank; step++) {
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        for (size_t i = 0; i < DDP_MODEL_N; i++)
            BRG_TRY(ddp_model_check_param(m, i, step, step + 1,
                                          ~0u << (step < 2 ? 0 : step - 1)));
        BRG_TRY(ddp_model_zero(m, step % 2));
    }
    for (bool is_over = false;; step++) {
        BRG_TRY(brg_ddp_join(m->ddp, &is_over));
        RANK_CHECK(is_over == (step >= last), "step %d: over %d", step,
                   is_over);
        if (is_over)
            break;
        for (size_t i = 0; i < DDP_MODEL_N; i++)
            BRG_TRY(
                ddp_model_check_param(m, i, step, step + 1, ~0u << (step - 1)));
        BRG_TRY(ddp_model_zero(m, step % 2));
    }
    /* The next epoch. */
    BRG_TRY(ddp_model_backward(m, 50, DDP_MODEL_ALL));
    return ddp_model_check(m, 50, 51);
}

static inline brg_status check_join(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(with_model(pg, &options, join_body));
    options.static_graph = true;
    BRG_TRY(with_model(pg, &options, join_body));
    options.static_graph = false;
    options.allow_unused = true;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    return with_model(pg, &options, join_body);
}

/* ---- Buffers ------------------------------------------------------------------------ */

static inline brg_status buffers_run(brg_pg *pg, brg_ddp_buffers mode)
{
    ddp_model m;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.sync_buffers = mode;
    BRG_TRY(ddp_model_init(&m, pg));
    brg_tensor *mean = brg_zeros(BRG_DTYPE_F32, 1, (int64_t[]){6});
    brg_tensor *gaps =
        brg_as_strided(mean, 1, (int64_t[]){3}, (int64_t[]){2}, 0);
    brg_tensor *buffers[2] = {gaps, m.buffer};
    brg_status status =
        brg_ddp_create(&m.ddp, pg, m.params, DDP_MODEL_N, buffers, 2, &options);
    for (int step = 0; step < 3 && status == BRG_OK; step++) {
        status = brg_fill_(gaps, m.rank + step);
        if (status == BRG_OK)
            status = brg_fill_(m.buffer, m.rank + 10 * step);
        if (status == BRG_OK)
            status = ddp_model_backward(&m, step, DDP_MODEL_ALL);
        double expected = mode == BRG_DDP_BUFFERS_LEAVE ? m.rank + step
                          : mode == BRG_DDP_BUFFERS_BROADCAST
                              ? step
                              : (m.world_size - 1) / 2.0 + step;
        float data[6] = {0};
        int64_t count[4] = {0};
        if (status == BRG_OK)
            status = brg_tensor_read(mean, data, sizeof data);
        if (status == BRG_OK)
            status = brg_tensor_read(m.buffer, count, sizeof count);
        int64_t whole =
            10 * step + (mode == BRG_DDP_BUFFERS_LEAVE ? m.rank : 0);
        if (status == BRG_OK && (fabs((double)data[4] - expected) > 1e-6 ||
                                 data[3] != 0 || count[2] != whole))
            status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                   "mode %d: buffer is %g, expected %g",
                                   (int)mode, (double)data[4], expected);
    }
    ddp_model_deinit(&m);
    return status;
}

static inline brg_status check_buffers(brg_pg *pg)
{
    BRG_TRY(buffers_run(pg, BRG_DDP_BUFFERS_LEAVE));
    BRG_TRY(buffers_run(pg, BRG_DDP_BUFFERS_BROADCAST));
    return buffers_run(pg, BRG_DDP_BUFFERS_AVERAGE);
}

/* ---- Freezing ------------------------------------------------------------------------- */

#define FROZEN ((1u << 1) | (1u << 4))

static inline brg_status set_frozen(ddp_model *m, bool is_frozen)
{
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        if (FROZEN >> i & 1) {
            BRG_TRY(brg_tensor_set_grad(m->params[i], NULL));
            BRG_TRY(brg_set_requires_grad(m->params[i], !is_frozen));
        }
    return brg_ddp_refresh(m->ddp);
}

static inline brg_status freeze_body(ddp_model *m)
{
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
    BRG_TRY(ddp_model_check(m, 0, 1));
    for (int round = 0; round < 2; round++) {
        brg_tensor *kept = brg_tensor_grad(m->params[0]);
        BRG_TRY(set_frozen(m, true));
        RANK_CHECK(brg_tensor_grad(m->params[0]) == kept,
                   "a gradient was lost");
        RANK_CHECK(brg_reducer_n_buckets(brg_ddp_reducer(m->ddp)) > 0,
                   "no buckets");
        BRG_TRY(ddp_model_check_param(m, 0, round, round + 1,
                                      DDP_MODEL_EVERY_RANK));
        for (int step = 0; step < 2; step++) {
            BRG_TRY(ddp_model_zero(m, false));
            BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL & ~FROZEN));
            for (size_t i = 0; i < DDP_MODEL_N; i++)
                if (!(FROZEN >> i & 1))
                    BRG_TRY(ddp_model_check_param(m, i, step, step + 1,
                                                  DDP_MODEL_EVERY_RANK));
                else
                    RANK_CHECK(!brg_tensor_grad(m->params[i]), "not frozen");
        }
        BRG_TRY(set_frozen(m, false));
        BRG_TRY(ddp_model_zero(m, true));
        BRG_TRY(ddp_model_backward(m, round + 1, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, round + 1, round + 2));
    }
    /* One rank alone freezes: an error everywhere, and all is as before. */
    if (m->world_size == 1)
        return BRG_OK;
    BRG_TRY(ddp_model_zero(m, false));
    if (m->rank == 1)
        BRG_TRY(brg_set_requires_grad(m->params[3], false));
    RANK_FAILS(brg_ddp_refresh(m->ddp), BRG_ERR_MISMATCH, "without gradient");
    if (m->rank == 1)
        BRG_TRY(brg_set_requires_grad(m->params[3], true));
    BRG_TRY(ddp_model_backward(m, 9, DDP_MODEL_ALL));
    return ddp_model_check(m, 9, 10);
}

static inline brg_status check_freezing(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(with_model(pg, &options, freeze_body));
    options.first_bucket_bytes = options.bucket_bytes = 200;
    return with_model(pg, &options, freeze_body);
}

/* ---- Clipping ---------------------------------------------------------------------------- */

static inline brg_status norm_of(ddp_model *m, double *norm)
{
    double sum = 0;
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        double memory[DDP_MODEL_NUMEL];
        brg_tensor *grad = brg_tensor_grad(m->params[i]);
        brg_dtype dtype = brg_tensor_dtype(grad);
        size_t nbytes = brg_tensor_nbytes(grad);
        BRG_TRY(brg_tensor_read(grad, memory, nbytes));
        for (size_t k = 0; k < nbytes / brg_dtype_size(dtype); k++) {
            double x = ranks_load(memory, k, dtype);
            sum += x * x;
        }
    }
    *norm = sqrt(sum);
    return BRG_OK;
}

static inline brg_status clip_body(ddp_model *m)
{
    for (int step = 0; step < 3; step++) {
        double expected, found, after;
        BRG_TRY(ddp_model_zero(m, false));
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(norm_of(m, &expected));
        BRG_TRY(brg_ddp_clip_grad_norm(m->ddp, 1e9, &found));
        RANK_CHECK(fabs(found - expected) < 1e-9 * expected,
                   "the norm is %.15g, expected %.15g", found, expected);
        BRG_TRY(ddp_model_check(m, step, step + 1)); /* as they were */
        BRG_TRY(brg_ddp_clip_grad_norm(m->ddp, expected / 4, NULL));
        BRG_TRY(norm_of(m, &after));
        RANK_CHECK(fabs(after - expected / 4) < 1e-3 * expected,
                   "clipped to %g, expected %g", after, expected / 4);
        BRG_TRY(ranks_same_bits(m->pg, &found, sizeof found));
        BRG_TRY(ranks_same_bits(m->pg, &after, sizeof after));
    }
    RANK_FAILS(brg_ddp_clip_grad_norm(m->ddp, 0, NULL), BRG_ERR_ARG,
               "must be positive");
    return BRG_OK;
}

static inline brg_status check_clipping(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.measure_norm = true;
    BRG_TRY(with_model(pg, &options, clip_body));
    options.grads_apart = true;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    return with_model(pg, &options, clip_body);
}

/* ---- Buckets by measurement -------------------------------------------------------- */

static inline brg_status measured_body(ddp_model *m)
{
    brg_reducer_stats before, after;
    for (int step = 0; step < 10; step++) {
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, step, step + 1));
        BRG_TRY(ddp_model_zero(m, step % 2 == 0));
        brg_ddp_get_stats(m->ddp, step == 4 ? &before : &after);
    }
    RANK_CHECK(before.predicted_by_size_ns == 0 && before.n_rebuilds == 0,
               "buckets were chosen after five steps");
    RANK_CHECK(after.n_rebuilds <= 1 &&
                   after.predicted_wait_ns <= after.predicted_by_size_ns,
               "predicted: %llu, by size %llu",
               (unsigned long long)after.predicted_wait_ns,
               (unsigned long long)after.predicted_by_size_ns);
    char text[1000];
    (void)brg_reducer_describe(brg_ddp_reducer(m->ddp), text, sizeof text);
    return ranks_same_bits(m->pg, text, strlen(text));
}

static inline brg_status check_measured(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.buckets = BRG_BUCKETS_MEASURED;
    options.first_bucket_bytes = options.bucket_bytes = 200;
    return with_model(pg, &options, measured_body);
}

#endif
