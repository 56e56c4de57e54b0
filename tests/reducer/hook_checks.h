/* SPDX-License-Identifier: Apache-2.0
 * What every communication hook must do, on the ranks of any group; each
 * check makes a reducer of its own. */
#ifndef BRG_TESTS_REDUCER_HOOK_CHECKS_H
#define BRG_TESTS_REDUCER_HOOK_CHECKS_H

#include <math.h>

#include "tests/reducer/trainer.h"

typedef enum hook_kind {
    HOOK_F16,
    HOOK_BF16,
    HOOK_BF16_FED_BACK,
    HOOK_Q8,
    HOOK_POWERSGD
} hook_kind;
#define N_HOOK_KINDS 5

static inline brg_status make_hook(brg_comm_hook **out, hook_kind kind)
{
    brg_powersgd_options options = BRG_POWERSGD_OPTIONS_INIT;
    options.rank = 2;
    options.min_saving = 1;
    if (kind == HOOK_POWERSGD)
        return brg_comm_hook_create_powersgd(out, &options);
    if (kind == HOOK_Q8)
        return brg_comm_hook_create_q8(out, true);
    return brg_comm_hook_create_cast(
        out, kind == HOOK_F16 ? BRG_DTYPE_F16 : BRG_DTYPE_BF16,
        kind == HOOK_BF16_FED_BACK);
}

/* One to three roundings to the wire of numbers up to 1 (ranks_gradient); the
 * trainer has no matrices, so PowerSGD sends what it has. */
static inline double hook_tolerance(hook_kind kind, brg_dtype dtype)
{
    static const double step[] = {0x1p-10, 0x1p-7, 0x1p-6, 0x1p-5};
    bool is_wide = dtype == BRG_DTYPE_F32 || dtype == BRG_DTYPE_F64;
    if (kind == HOOK_POWERSGD || !is_wide)
        return ranks_epsilon(dtype);
    return step[kind];
}

static inline brg_status check_hooked(const trainer *t, hook_kind kind,
                                      int step)
{
    for (size_t i = 0; i < t->n; i++) {
        for (size_t k = 0; k < counts[i]; k++) {
            double expected = ranks_average(t->world_size, step, i, k);
            double found = ranks_load(grad_of(t, i), k, dtypes[i]);
            RANK_CHECK(fabs(expected - found) <=
                           hook_tolerance(kind, dtypes[i]),
                       "hook %d, rank %d, step %d: gradient %zu[%zu] is %g, "
                       "expected %g",
                       (int)kind, t->rank, step, i, k, found, expected);
        }
        BRG_TRY(ranks_same_bits(t->pg, grad_of(t, i),
                                counts[i] * brg_dtype_size(dtypes[i])));
        RANK_CHECK(brg_reducer_n_used(t->reducer, i) == (size_t)t->world_size,
                   "gradient %zu counts %zu ranks", i,
                   brg_reducer_n_used(t->reducer, i));
    }
    return BRG_OK;
}

/* Steps in orders of each rank's own, one of them with a gap. */
static inline brg_status hooked_steps(trainer *t, hook_kind kind)
{
    for (int step = 0; step < 4; step++) {
        BRG_TRY(mark_all(t, step, 7));
        BRG_TRY(brg_reducer_wait(t->reducer));
        BRG_TRY(check_hooked(t, kind, step));
    }
    for (size_t i = 0; i < t->n; i++)
        if (t->rank != t->world_size - 1 || i != 3)
            BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
    RANK_FAILS(brg_reducer_wait(t->reducer), BRG_ERR_STATE,
               "fc2.weight on rank");
    BRG_TRY(mark_all(t, 5, 7));
    return brg_reducer_wait(t->reducer);
}

static inline brg_status check_hook(brg_pg *pg, hook_kind kind, size_t cap,
                                    bool in_slots)
{
    trainer t;
    brg_comm_hook *hook;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = cap;
    BRG_TRY(make_hook(&hook, kind));
    options.hook = hook;
    trainer_init(&t, pg);
    for (size_t i = 0; in_slots && i < t.n; i++)
        t.params[i].grad = NULL;
    brg_status status = trainer_create(&t, &options);
    if (status == BRG_OK)
        status = hooked_steps(&t, kind);
    brg_reducer_destroy(t.reducer);
    brg_comm_hook_destroy(hook);
    return status;
}

static inline brg_status check_hooks(brg_pg *pg)
{
    for (int kind = 0; kind < N_HOOK_KINDS; kind++) {
        BRG_TRY(check_hook(pg, (hook_kind)kind, 1, false));
        BRG_TRY(check_hook(pg, (hook_kind)kind, 300, false));
        BRG_TRY(check_hook(pg, (hook_kind)kind, 0, true));
    }
    return BRG_OK;
}

/* ---- What is not finite --------------------------------------------------------- */

/* A step in which two numbers of the last rank's are not finite. */
static inline brg_status step_not_finite(trainer *t, double value)
{
    for (size_t i = 0; i < t->n; i++) {
        fill(t, 0, i);
        if (t->rank == t->world_size - 1 && (i == 0 || i == 4))
            ranks_store(grad_of(t, i), 2, dtypes[i], value);
        BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
    }
    BRG_TRY(brg_reducer_wait(t->reducer));
    for (size_t i = 0; i < t->n; i++)
        for (size_t k = 0; k < counts[i]; k++) {
            bool is_bad = k == 2 && (i == 0 || i == 4);
            RANK_CHECK(isfinite(ranks_load(grad_of(t, i), k, dtypes[i])) !=
                           is_bad,
                       "gradient %zu[%zu] is %g", i, k,
                       ranks_load(grad_of(t, i), k, dtypes[i]));
        }
    return BRG_OK;
}

/* It is seen on all ranks in its step, where it is, and in no later one. */
static inline brg_status check_not_finite(brg_pg *pg)
{
    static const double values[] = {NAN, INFINITY, -INFINITY};
    for (int kind = 0; kind < N_HOOK_KINDS; kind++) {
        trainer t;
        brg_comm_hook *hook;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        BRG_TRY(make_hook(&hook, (hook_kind)kind));
        options.hook = hook;
        trainer_init(&t, pg);
        brg_status status = trainer_create(&t, &options);
        for (int step = 0; step < 3 && status == BRG_OK; step++) {
            status = step_not_finite(&t, values[step]);
            if (status == BRG_OK)
                status = mark_all(&t, step, 7);
            if (status == BRG_OK)
                status = brg_reducer_wait(t.reducer);
            if (status == BRG_OK)
                status = check_hooked(&t, (hook_kind)kind, step);
        }
        brg_reducer_destroy(t.reducer);
        brg_comm_hook_destroy(hook);
        BRG_TRY(status);
    }
    return BRG_OK;
}

/* ---- PowerSGD on matrices ------------------------------------------------------- */

#define ROWS 12
#define COLS 9

typedef struct matrix_run {
    brg_comm_hook *hook;
    brg_reducer *reducer;
    float gradient[ROWS * COLS];
    float bias[COLS];
} matrix_run;

static inline brg_status matrix_begin(matrix_run *m, brg_pg *pg,
                                      const brg_powersgd_options *how, bool sum)
{
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer_param params[2] = {{.name = "weight",
                                    .grad = m->gradient,
                                    .count = ROWS * COLS,
                                    .dtype = BRG_DTYPE_F32,
                                    .n_rows = ROWS},
                                   {.name = "bias",
                                    .grad = m->bias,
                                    .count = COLS,
                                    .dtype = BRG_DTYPE_F32}};
    m->reducer = NULL;
    BRG_TRY(brg_comm_hook_create_powersgd(&m->hook, how));
    options.hook = m->hook;
    options.sum = sum;
    return brg_reducer_create(&m->reducer, pg, params, 2, &options);
}

static inline void matrix_end(matrix_run *m)
{
    brg_reducer_destroy(m->reducer);
    brg_comm_hook_destroy(m->hook);
}

/* Element of rank `rank`'s gradient: of full rank, or u v^T with a u that all
 * ranks share. */
static inline double matrix_at(int rank, bool is_low, size_t i, size_t k)
{
    if (!is_low)
        return ranks_gradient(rank, 0, 1, i * COLS + k);
    return ranks_gradient(99, 0, 2, i) * ranks_gradient(rank, 0, 3, k);
}

/* One step with this gradient, `more` added to one element; the results are
 * in m. */
static inline brg_status matrix_step_with(matrix_run *m, int rank, bool is_low,
                                          float more)
{
    for (size_t i = 0; i < ROWS; i++)
        for (size_t k = 0; k < COLS; k++)
            m->gradient[i * COLS + k] = (float)matrix_at(rank, is_low, i, k);
    m->gradient[7] += more;
    for (size_t k = 0; k < COLS; k++)
        m->bias[k] = (float)ranks_gradient(rank, 0, 4, k);
    BRG_TRY(brg_reducer_mark_ready(m->reducer, 1));
    BRG_TRY(brg_reducer_mark_ready(m->reducer, 0));
    return brg_reducer_wait(m->reducer);
}

static inline brg_status matrix_step(matrix_run *m, int rank, bool is_low)
{
    return matrix_step_with(m, rank, is_low, 0);
}

static inline double matrix_average(int n, bool is_low, size_t i, size_t k)
{
    double sum = 0;
    for (int rank = 0; rank < n; rank++)
        sum += matrix_at(rank, is_low, i, k);
    return sum / n;
}

/* The largest distance of scale * found from the average. */
static inline double matrix_distance(const float *found, double scale, int n,
                                     bool is_low)
{
    double worst = 0;
    for (size_t i = 0; i < ROWS; i++)
        for (size_t k = 0; k < COLS; k++) {
            double d = scale * (double)found[i * COLS + k] -
                       matrix_average(n, is_low, i, k);
            worst = fmax(worst, fabs(d));
        }
    return worst;
}

/* Exact where the average has no more than `rank` dimensions: here one. */
static inline brg_status check_exact(brg_pg *pg, int rank, bool sum)
{
    matrix_run m;
    brg_powersgd_options how = BRG_POWERSGD_OPTIONS_INIT;
    int n = brg_pg_world_size(pg);
    how.rank = rank;
    how.min_saving = 1;
    how.no_warm_start = sum;
    brg_status status = matrix_begin(&m, pg, &how, sum);
    for (int step = 0; step < 3 && status == BRG_OK; step++) {
        status = matrix_step(&m, brg_pg_rank(pg), true);
        double off = matrix_distance(m.gradient, sum ? 1.0 / n : 1.0, n, true);
        if (status == BRG_OK && off > 2e-5)
            status =
                brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                              "rank %d, sum %d: off by %g", rank, sum, off);
        for (size_t k = 0; k < COLS && status == BRG_OK; k++) {
            double b = ranks_average(n, 0, 4, k) * (sum ? n : 1);
            if (fabs(b - (double)m.bias[k]) > 1e-5)
                status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                       "the bias is off");
        }
        if (status == BRG_OK)
            status = ranks_same_bits(pg, m.gradient, sizeof m.gradient);
    }
    matrix_end(&m);
    return status;
}

/* What a step leaves out comes later: the mean over steps of a gradient that
 * stays the same comes close to it. */
static inline brg_status check_error_comes_back(brg_pg *pg)
{
    matrix_run m;
    brg_powersgd_options how = BRG_POWERSGD_OPTIONS_INIT;
    float mean[ROWS * COLS] = {0};
    double first = 0;
    const int n_steps = 64, n = brg_pg_world_size(pg);
    brg_status status = matrix_begin(&m, pg, &how, false);
    for (int step = 0; step < n_steps && status == BRG_OK; step++) {
        status = matrix_step(&m, brg_pg_rank(pg), false);
        for (size_t i = 0; i < ROWS * COLS; i++)
            mean[i] += m.gradient[i] / (float)n_steps;
        if (step == 0)
            first = matrix_distance(m.gradient, 1, n, false);
    }
    matrix_end(&m);
    BRG_TRY(status);
    double last = matrix_distance(mean, 1, n, false);
    RANK_CHECK(last < 0.3 * first, "off by %g at first, %g in the mean", first,
               last);
    return BRG_OK;
}

/* After a step that is not finite, those that follow are as the first. */
static inline brg_status check_powersgd_not_finite(brg_pg *pg)
{
    matrix_run m;
    brg_powersgd_options how = BRG_POWERSGD_OPTIONS_INIT;
    int n = brg_pg_world_size(pg), rank = brg_pg_rank(pg);
    double off = 0;
    brg_status status = matrix_begin(&m, pg, &how, false);
    for (int step = 0; step < 4 && status == BRG_OK; step++) {
        bool is_bad = step == 1 && rank == n - 1;
        status = matrix_step_with(&m, rank, true, is_bad ? INFINITY : 0);
        off = matrix_distance(m.gradient, 1.0, n, true);
        if (status == BRG_OK && (step == 1) != (isnan(m.gradient[5]) != 0))
            status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                   "step %d: %g", step, m.gradient[5]);
    }
    matrix_end(&m);
    BRG_TRY(status);
    RANK_CHECK(off < 2e-5, "off by %g", off);
    return BRG_OK;
}

static inline brg_status check_powersgd(brg_pg *pg)
{
    BRG_TRY(check_powersgd_not_finite(pg));
    BRG_TRY(check_exact(pg, 1, false));
    BRG_TRY(check_exact(pg, 2, true));
    BRG_TRY(check_exact(pg, 5, false));
    return check_error_comes_back(pg);
}

#endif
