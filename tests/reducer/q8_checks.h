/* SPDX-License-Identifier: Apache-2.0
 * What gradients in 8 bits must do on the ranks of any group: sizes of every
 * kind, errors that cancel over steps, and training as without them. */
#ifndef BRG_TESTS_REDUCER_Q8_CHECKS_H
#define BRG_TESTS_REDUCER_Q8_CHECKS_H

#include "tests/reducer/hook_checks.h"

#define Q8_N_PARAMS 9
#define Q8_MAX_COUNT 4001

static const size_t q8_counts[Q8_N_PARAMS] = {1,  59,   60, 61,          0,
                                              17, 1921, 5,  Q8_MAX_COUNT};
static const brg_dtype q8_dtypes[Q8_N_PARAMS] = {
    BRG_DTYPE_F32, BRG_DTYPE_F32, BRG_DTYPE_F64,  BRG_DTYPE_F32, BRG_DTYPE_F32,
    BRG_DTYPE_F64, BRG_DTYPE_F32, BRG_DTYPE_BF16, BRG_DTYPE_F32};

/* A reducer with the hook, or without one, over buffers of these sizes. */
typedef struct q8_run {
    brg_pg *pg;
    brg_comm_hook *hook;
    brg_reducer *reducer;
    double (*memory)[Q8_MAX_COUNT];
} q8_run;

static inline brg_status q8_begin(q8_run *q, brg_pg *pg, bool has_hook,
                                  bool fed_back, bool sum, size_t cap)
{
    brg_reducer_param params[Q8_N_PARAMS] = {{0}};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    *q = (q8_run){.pg = pg};
    q->memory = calloc(Q8_N_PARAMS, sizeof *q->memory);
    RANK_CHECK(q->memory, "out of memory");
    for (size_t i = 0; i < Q8_N_PARAMS; i++)
        params[i] = (brg_reducer_param){
            .grad = q->memory[i], .count = q8_counts[i], .dtype = q8_dtypes[i]};
    if (has_hook)
        BRG_TRY(brg_comm_hook_create_q8(&q->hook, fed_back));
    options.hook = q->hook;
    options.sum = sum;
    options.first_bucket_bytes = options.bucket_bytes = cap;
    return brg_reducer_create(&q->reducer, pg, params, Q8_N_PARAMS, &options);
}

static inline void q8_end(q8_run *q)
{
    brg_reducer_destroy(q->reducer);
    brg_comm_hook_destroy(q->hook);
    free(q->memory);
}

/* `from` says element k of gradient i on a rank. */
typedef double (*q8_gradient)(const q8_run *q, int rank, size_t i, size_t k);

static inline brg_status q8_step(q8_run *q, q8_gradient from)
{
    for (size_t i = 0; i < Q8_N_PARAMS; i++) {
        for (size_t k = 0; k < q8_counts[i]; k++)
            ranks_store(q->memory[i], k, q8_dtypes[i],
                        from(q, brg_pg_rank(q->pg), i, k));
        BRG_TRY(brg_reducer_mark_ready(q->reducer, i));
    }
    return brg_reducer_wait(q->reducer);
}

/* Thirds: no number that 8 bits hold. */
static inline double q8_thirds(const q8_run *q, int rank, size_t i, size_t k)
{
    (void)q;
    return ranks_gradient(rank, 0, i, k) / 3;
}

static inline double q8_average(const q8_run *q, q8_gradient from, size_t i,
                                size_t k)
{
    double sum = 0;
    int n = brg_pg_world_size(q->pg);
    for (int rank = 0; rank < n; rank++)
        sum += from(q, rank, i, k);
    return sum / n;
}

/* ---- Sizes, sums and averages, one bucket and many ------------------------------ */

static inline brg_status q8_compare(const q8_run *q, double factor)
{
    for (size_t i = 0; i < Q8_N_PARAMS; i++) {
        for (size_t k = 0; k < q8_counts[i]; k++) {
            double found = ranks_load(q->memory[i], k, q8_dtypes[i]) * factor;
            double off = found - q8_average(q, q8_thirds, i, k);
            RANK_CHECK(fabs(off) <= 0x1p-5 / 3,
                       "gradient %zu[%zu] is off by "
                       "%g",
                       i, k, off);
        }
        BRG_TRY(ranks_same_bits(q->pg, q->memory[i],
                                q8_counts[i] * brg_dtype_size(q8_dtypes[i])));
    }
    return BRG_OK;
}

static inline brg_status check_q8_sizes(brg_pg *pg)
{
    static const size_t caps[] = {0, 1, 500};
    for (size_t c = 0; c < 6; c++) {
        q8_run q;
        bool sum = c % 2;
        brg_status status = q8_begin(&q, pg, true, true, sum, caps[c / 2]);
        for (int step = 0; step < 3 && status == BRG_OK; step++) {
            status = q8_step(&q, q8_thirds);
            if (status == BRG_OK)
                status = q8_compare(&q, sum ? 1.0 / brg_pg_world_size(pg) : 1);
        }
        q8_end(&q);
        BRG_TRY(status);
    }
    return BRG_OK;
}

/* ---- Over steps ---------------------------------------------------------------------- */

/* How far the mean of steps of one gradient is off, at worst. */
static inline brg_status q8_mean_error(brg_pg *pg, bool fed_back, double *worst)
{
    enum { N_STEPS = 256, I = 6 };
    q8_run q;
    double *mean = calloc(q8_counts[I], sizeof *mean);
    brg_status status = q8_begin(&q, pg, true, fed_back, false, 0);
    for (int step = 0; mean && step < N_STEPS && status == BRG_OK; step++) {
        status = q8_step(&q, q8_thirds);
        for (size_t k = 0; k < q8_counts[I]; k++)
            mean[k] += ranks_load(q.memory[I], k, BRG_DTYPE_F32) / N_STEPS;
    }
    *worst = 0;
    for (size_t k = 0; mean && k < q8_counts[I]; k++)
        *worst = fmax(*worst, fabs(mean[k] - q8_average(&q, q8_thirds, I, k)));
    free(mean);
    q8_end(&q);
    return status;
}

static inline brg_status check_q8_errors_cancel(brg_pg *pg)
{
    double with, without;
    BRG_TRY(q8_mean_error(pg, true, &with));
    BRG_TRY(q8_mean_error(pg, false, &without));
    RANK_CHECK(with < 3e-4 && without > 3 * with,
               "off by %g in the mean with error feedback, by %g without", with,
               without);
    return BRG_OK;
}

/* Gradient descent to the mean of the ranks' centres, with steps that become
 * shorter; each rank's gradient is far from zero even there. */
static inline double q8_centre(int rank, size_t k)
{
    return ranks_gradient(rank, 3, 6, k) / 3;
}

static inline double q8_distance(brg_pg *pg, const float *w, size_t n)
{
    double worst = 0;
    int n_ranks = brg_pg_world_size(pg);
    for (size_t k = 0; k < n; k++) {
        double sum = 0;
        for (int rank = 0; rank < n_ranks; rank++)
            sum += q8_centre(rank, k);
        worst = fmax(worst, fabs((double)w[k] - sum / n_ranks));
    }
    return worst;
}

static inline brg_status q8_descend(brg_pg *pg, brg_comm_hook *hook,
                                    double *distance)
{
    enum { N = 201, N_STEPS = 200 };
    float w[N] = {0}, grad[N];
    brg_reducer *reducer;
    brg_reducer_param param = {
        .grad = grad, .count = N, .dtype = BRG_DTYPE_F32};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.hook = hook;
    BRG_TRY(brg_reducer_create(&reducer, pg, &param, 1, &options));
    brg_status status = BRG_OK;
    for (int step = 0; step < N_STEPS && status == BRG_OK; step++) {
        float rate = 0.5f / (1 + (float)step / 20);
        for (size_t k = 0; k < N; k++)
            grad[k] = w[k] - (float)q8_centre(brg_pg_rank(pg), k);
        status = brg_reducer_mark_ready(reducer, 0);
        if (status == BRG_OK)
            status = brg_reducer_wait(reducer);
        for (size_t k = 0; k < N; k++)
            w[k] -= rate * grad[k];
    }
    brg_reducer_destroy(reducer);
    *distance = q8_distance(pg, w, N);
    BRG_TRY(status);
    return ranks_same_bits(pg, w, sizeof w);
}

static inline brg_status q8_hooked_descent(brg_pg *pg, bool fed_back,
                                           double *distance)
{
    brg_comm_hook *hook;
    BRG_TRY(brg_comm_hook_create_q8(&hook, fed_back));
    brg_status status = q8_descend(pg, hook, distance);
    brg_comm_hook_destroy(hook);
    return status;
}

static inline brg_status check_q8_converges(brg_pg *pg)
{
    double plain, with, without;
    BRG_TRY(q8_descend(pg, NULL, &plain));
    BRG_TRY(q8_hooked_descent(pg, true, &with));
    BRG_TRY(q8_hooked_descent(pg, false, &without));
    RANK_CHECK(plain < 1e-4 && with < 5e-4,
               "off by %g without compression, by %g with", plain, with);
    RANK_CHECK(brg_pg_world_size(pg) == 1 || without > 2 * with,
               "off by %g with error feedback, by %g without", with, without);
    return BRG_OK;
}

static inline brg_status check_q8(brg_pg *pg)
{
    BRG_TRY(check_q8_sizes(pg));
    BRG_TRY(check_q8_errors_cancel(pg));
    return check_q8_converges(pg);
}

#endif
