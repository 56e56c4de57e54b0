/* SPDX-License-Identifier: Apache-2.0
 * Gradients that are not finite, on the ranks of any group: every rank knows
 * of them, and whose they are, in the step itself and at no message. */
#ifndef BRG_TESTS_REDUCER_FINITE_CHECKS_H
#define BRG_TESTS_REDUCER_FINITE_CHECKS_H

#include <math.h>

#include "tests/reducer/finite_ddp_checks.h"
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

#endif
