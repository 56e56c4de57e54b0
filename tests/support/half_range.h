/* SPDX-License-Identifier: Apache-2.0
 * Gradients of f16 at the end of their range: an average overflows on no
 * backend, in whatever precision it sums. */
#ifndef BRG_TESTS_SUPPORT_HALF_RANGE_H
#define BRG_TESTS_SUPPORT_HALF_RANGE_H

#include <math.h>

#include <brigade/comm.h>

#include "core/base/dtype.h"
#include "tests/support/ranks.h"

#define HALF_RANGE_N 1003

/* How 16-bit floats are summed. */
typedef enum half_sums {
    HALF_SUMS_WIDE,   /* in f32, rounded once */
    HALF_SUMS_STEPPED /* rounded at each step; averages are divided before */
} half_sums;

/* All elements of all ranks are +-x, or what of_rank says of it. */
typedef struct half_trial {
    brg_dtype dtype;
    brg_reduce_op op;
    double x;
    double (*of_rank)(double x, int rank);
    double want, least; /* of the result's size; it is `want` at the most */
} half_trial;

static inline brg_status half_try(brg_pg *pg, const half_trial *t)
{
    static _Thread_local uint16_t data[HALF_RANGE_N];
    const int me = brg_pg_rank(pg), n = brg_pg_world_size(pg);
    const double x = t->of_rank ? t->of_rank(t->x, me) : t->x;
    brg_work *work;
    for (size_t i = 0; i < HALF_RANGE_N; i++)
        ranks_store(data, i, t->dtype, i % 2 ? -x : x);
    BRG_TRY(brg_all_reduce(pg, &work, data, HALF_RANGE_N, t->dtype, t->op));
    BRG_TRY(brg_work_wait(work));
    for (size_t i = 0; i < HALF_RANGE_N; i++) {
        const double got = ranks_load(data, i, t->dtype) * (i % 2 ? -1 : 1);
        RANK_CHECK(got >= t->least && got <= t->want,
                   "rank %d of %d: %s of %s at %g is %g, not %g to %g", me, n,
                   brg_reduce_op_name(t->op), brg_dtype_name(t->dtype), t->x,
                   got, t->least, t->want);
    }
    return BRG_OK;
}

/* The largest number of f16 that is at most x. */
static inline double half_floor(double x)
{
    const double unit = ldexp(1, (int)floor(log2(x)) - 10);
    return floor(x / unit) * unit;
}

/* Partial sums leave the range of f16, the whole does not. */
static inline double half_plus_plus_minus(double x, int which)
{
    return which == 2 ? -x : which < 2 ? x : 0;
}

static inline brg_status half_check(brg_pg *pg, half_sums sums)
{
    const int n = brg_pg_world_size(pg);
    const bool is_wide = sums == HALF_SUMS_WIDE || n == 1;
    const double most = 65504, unit = 32;
    const double lost = is_wide ? 0 : 2 * unit * n; /* as check_finite */
    half_trial t = {.dtype = BRG_DTYPE_F16, .op = BRG_REDUCE_AVG, .x = most};
    t.want = most;
    t.least = most - lost;
    BRG_TRY(half_try(pg, &t));
    t.op = BRG_REDUCE_SUM;
    t.x = half_floor(most / n);
    t.least = t.x * n - lost - unit;
    BRG_TRY(half_try(pg, &t));
    t.x = t.want = t.least = 60000;
    t.of_rank = half_plus_plus_minus;
    return is_wide && n >= 3 ? half_try(pg, &t) : BRG_OK;
}

#endif
