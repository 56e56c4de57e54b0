/* SPDX-License-Identifier: Apache-2.0
 * Periodic averaging on the ranks of any group, against every rank's descent
 * computed by each. */
#ifndef BRG_TESTS_REDUCER_AVERAGE_CHECKS_H
#define BRG_TESTS_REDUCER_AVERAGE_CHECKS_H

#include <math.h>

#include <brigade/average.h>
#include <brigade/ops.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define AVERAGE_N 37
#define AVERAGE_STEPS 12

/* x_r -= 0.1 (x_r - gradient): each rank's own pull. */
static inline void average_descend(double *x, int rank, int step)
{
    for (size_t k = 0; k < AVERAGE_N; k++)
        x[k] -= 0.1 * (x[k] - ranks_gradient(rank, step, 0, k));
}

static inline void average_start(double *x, int rank)
{
    for (size_t k = 0; k < AVERAGE_N; k++)
        x[k] = ranks_gradient(rank, 77, 1, k);
}

/* Values of the tensor, wherever it is. */
static inline brg_status average_put(brg_tensor *t, const double *x)
{
    brg_scope *scope = brg_scope_begin();
    brg_status status =
        brg_copy_(t, brg_from_data(BRG_DTYPE_F64, BRG_SHAPE(AVERAGE_N), x));
    brg_scope_end(scope);
    return status;
}

static inline brg_status average_get(double *x, brg_tensor *t)
{
    return brg_tensor_read(t, x, AVERAGE_N * sizeof *x);
}

static inline brg_status average_compare(const double *x, const double *all,
                                         int n, int rank, bool is_average,
                                         int step)
{
    for (size_t k = 0; k < AVERAGE_N; k++) {
        double expected = all[(size_t)rank * AVERAGE_N + k], sum = 0;
        for (int r = 0; r < n; r++)
            sum += all[(size_t)r * AVERAGE_N + k] / n;
        expected = is_average ? sum : expected;
        RANK_CHECK(fabs(x[k] - expected) < 1e-12,
                   "rank %d, step %d: x[%zu] is %.15g, expected %.15g", rank,
                   step, k, x[k], expected);
    }
    return BRG_OK;
}

static inline brg_status average_steps(brg_averager *a, brg_tensor *t, int n,
                                       int rank,
                                       const brg_averager_options *options)
{
    double all[8 * AVERAGE_N], x[AVERAGE_N];
    for (int r = 0; r < n; r++) /* rank 0's values went to all */
        average_start(all + (size_t)r * AVERAGE_N, 0);
    for (int step = 1; step <= AVERAGE_STEPS; step++) {
        bool is_due = step <= options->warm_up || step % options->period == 0,
             done;
        BRG_TRY(average_get(x, t));
        average_descend(x, rank, step);
        BRG_TRY(average_put(t, x));
        for (int r = 0; r < n; r++)
            average_descend(all + (size_t)r * AVERAGE_N, r, step);
        uint32_t version = brg_tensor_version(t);
        BRG_TRY(brg_averager_step(a, &done));
        RANK_CHECK(done == is_due, "step %d: averaged %d", step, done);
        RANK_CHECK((brg_tensor_version(t) != version) == done, "no touch");
        BRG_TRY(average_get(x, t));
        BRG_TRY(average_compare(x, all, n, rank, is_due, step));
        for (int r = 0; is_due && r < n; r++)
            memcpy(all + (size_t)r * AVERAGE_N, x, sizeof x);
    }
    RANK_CHECK(brg_averager_count(a) == AVERAGE_STEPS, "%d steps counted",
               (int)brg_averager_count(a));
    return brg_averager_confirm(a);
}

static inline brg_status check_one_average(brg_pg *pg, int64_t period,
                                           int64_t warm_up)
{
    brg_averager *a = NULL;
    brg_averager_options options = BRG_AVERAGER_OPTIONS_INIT;
    double start[AVERAGE_N];
    options.period = period;
    options.warm_up = warm_up;
    int rank = brg_pg_rank(pg);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = brg_zeros(BRG_DTYPE_F64, 1, (int64_t[]){AVERAGE_N});
    average_start(start, rank);
    brg_status status = average_put(t, start);
    if (status == BRG_OK)
        status = brg_averager_create(&a, pg, &t, 1, &options);
    if (status == BRG_OK)
        status = average_steps(a, t, brg_pg_world_size(pg), rank, &options);
    brg_averager_destroy(a);
    brg_scope_end(scope);
    return status;
}

static inline brg_status check_averages(brg_pg *pg)
{
    BRG_TRY(check_one_average(pg, 1, 0));
    BRG_TRY(check_one_average(pg, 4, 0));
    return check_one_average(pg, 5, 3);
}

#endif
