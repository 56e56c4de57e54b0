/* SPDX-License-Identifier: Apache-2.0
 * Synchronised batch norm on the ranks of any group, against batch norm of the
 * whole batch, which every rank computes alone in f64. Rank r of n has rows
 * [r^2/n^2, (r+1)^2/n^2) of it: batches differ, and rank 0's may be empty. */
#ifndef BRG_TESTS_REDUCER_SYNC_NORM_CHECKS_H
#define BRG_TESTS_REDUCER_SYNC_NORM_CHECKS_H

#include <math.h>

#include <brigade/brigade.h>

#include "tests/support/brg_test.h"
#include "tests/support/compiled_run.h"
#include "tests/support/ranks.h"

#define SYNC_ROWS 11
#define SYNC_CHANNELS 5

typedef struct sync_case {
    int ndim; /* 2: (N,C); 4: (N,C,2,3) */
    brg_dtype dtype;
    double offset; /* of x */
    bool is_plain; /* no weight, no bias, no running statistics */
    double tolerance;
} sync_case;

static inline int64_t sync_first_row(int rank, int n)
{
    return (int64_t)SYNC_ROWS * rank * rank / (n * n);
}

/* Rows [first, last) of the batch, of what `salt` says. */
static inline brg_tensor *sync_rows(const sync_case *c, int64_t first,
                                    int64_t last, size_t salt, double offset,
                                    brg_dtype dtype)
{
    int64_t shape[] = {last - first, SYNC_CHANNELS, 2, 3};
    int64_t row = SYNC_CHANNELS * (c->ndim == 4 ? 6 : 1);
    brg_tensor *t = brg_empty(dtype, c->ndim, shape);
    for (int64_t i = first * row; t && i < last * row; i++) {
        /* What the dtype of the case holds, in any dtype. */
        double x =
            offset + (double)(1 + i % 7) *
                         ranks_gradient((int)(i % 5), 3, salt, (size_t)i);
        uint64_t room;
        ranks_store(&room, 0, c->dtype, x);
        ranks_store(brg_tensor_data(t), (size_t)(i - first * row), dtype,
                    ranks_load(&room, 0, c->dtype));
    }
    return t;
}

/* The tensors of one batch norm, and what came of it. */
typedef struct sync_run {
    brg_tensor *x, *weight, *bias, *mean, *var, *y;
} sync_run;

static inline brg_tensor *sync_channels(brg_dtype dtype, double first,
                                        double step)
{
    brg_tensor *t = brg_empty(dtype, BRG_SHAPE(SYNC_CHANNELS));
    for (size_t k = 0; t && k < SYNC_CHANNELS; k++)
        ranks_store(brg_tensor_data(t), k, dtype, first + step * (double)k);
    return t;
}

/* `sync` NULL: of one process. */
static inline brg_status sync_train(const sync_case *c, brg_sync_norm *sync,
                                    int64_t first, int64_t last,
                                    brg_dtype dtype, sync_run *r)
{
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    options.training = true;
    options.momentum = 0.25;
    *r = (sync_run){.x = sync_rows(c, first, last, 0, c->offset, dtype)};
    BRG_TRY(brg_set_requires_grad(r->x, true));
    if (!c->is_plain) {
        r->weight = sync_channels(dtype, 0.5, 0.25);
        r->bias = sync_channels(dtype, -1, 0.5);
        BRG_TRY(brg_set_requires_grad(r->weight, true));
        BRG_TRY(brg_set_requires_grad(r->bias, true));
        r->mean = sync_channels(BRG_DTYPE_F64, 0, 0.5);
        r->var = sync_channels(BRG_DTYPE_F64, 1, 0.5);
    }
    if (!c->is_plain && !(r->weight && r->bias && r->mean && r->var))
        return brg_error_code();
    r->y = sync ? brg_sync_batch_norm(sync, r->x, r->weight, r->bias, r->mean,
                                      r->var, &options)
                : brg_batch_norm(r->x, r->weight, r->bias, r->mean, r->var,
                                 &options);
    brg_tensor *factor = sync_rows(c, first, last, 1, 0, dtype);
    return brg_backward(brg_sum_all(brg_mul(r->y, factor)));
}

/* n elements of `found` from `at` on, against those of `expected`. */
static inline brg_status sync_compare(const sync_case *c, const char *what,
                                      brg_tensor *found, brg_tensor *expected,
                                      int64_t at)
{
    double scale = 1;
    const double *e = brg_tensor_data(expected);
    for (int64_t i = 0; i < brg_tensor_numel(expected); i++)
        scale = fmax(scale, fabs(e[i]));
    for (int64_t i = 0; i < brg_tensor_numel(found); i++) {
        double x = ranks_load(brg_tensor_data(found), (size_t)i,
                              brg_tensor_dtype(found));
        RANK_CHECK(fabs(x - e[at + i]) <= c->tolerance * scale,
                   "%s[%d] is %.17g, expected %.17g (%s, offset %g)", what,
                   (int)(at + i), x, e[at + i], brg_dtype_name(c->dtype),
                   c->offset);
    }
    return BRG_OK;
}

/* The ranks' parts, added up. */
static inline brg_status sync_compare_sum(const sync_case *c, brg_pg *pg,
                                          const char *what, brg_tensor *part,
                                          brg_tensor *expected)
{
    brg_work *work;
    brg_tensor *sum = brg_copy(brg_cast(part, BRG_DTYPE_F64));
    if (!sum)
        return brg_error_code();
    BRG_TRY(brg_all_reduce(pg, &work, brg_tensor_data(sum), SYNC_CHANNELS,
                           BRG_DTYPE_F64, BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    return sync_compare(c, what, sum, expected, 0);
}

static inline brg_status sync_check_case(brg_pg *pg, brg_sync_norm *sync,
                                         const sync_case *c)
{
    int rank = brg_pg_rank(pg), n = brg_pg_world_size(pg);
    int64_t first = sync_first_row(rank, n);
    int64_t at = first * SYNC_CHANNELS * (c->ndim == 4 ? 6 : 1);
    sync_run mine, whole;
    BRG_TRY(sync_train(c, sync, first, sync_first_row(rank + 1, n), c->dtype,
                       &mine));
    BRG_TRY(sync_train(c, NULL, 0, SYNC_ROWS, BRG_DTYPE_F64, &whole));
    BRG_TRY(sync_compare(c, "y", mine.y, whole.y, at));
    BRG_TRY(sync_compare(c, "x.grad", brg_tensor_grad(mine.x),
                         brg_tensor_grad(whole.x), at));
    if (c->is_plain)
        return BRG_OK;
    BRG_TRY(sync_compare_sum(c, pg, "weight.grad", brg_tensor_grad(mine.weight),
                             brg_tensor_grad(whole.weight)));
    BRG_TRY(sync_compare_sum(c, pg, "bias.grad", brg_tensor_grad(mine.bias),
                             brg_tensor_grad(whole.bias)));
    BRG_TRY(sync_compare(c, "running_mean", mine.mean, whole.mean, 0));
    BRG_TRY(sync_compare(c, "running_var", mine.var, whole.var, 0));
    BRG_TRY(ranks_same_bits(pg, brg_tensor_data(mine.mean),
                            SYNC_CHANNELS * sizeof(double)));
    return ranks_same_bits(pg, brg_tensor_data(mine.var),
                           SYNC_CHANNELS * sizeof(double));
}

/* The one-process numbers, of every dtype and far from zero. */
static inline brg_status check_sync_norm_whole_batch(brg_pg *pg)
{
    static const sync_case cases[] = {
        {2, BRG_DTYPE_F64, 0, false, 1e-13},
        {4, BRG_DTYPE_F64, 3, false, 1e-13},
        {4, BRG_DTYPE_F64, 0, true, 1e-13},
        {4, BRG_DTYPE_F64, 1e6, false, 1e-8},
        {4, BRG_DTYPE_F32, 0, false, 1e-5},
        {2, BRG_DTYPE_F32, 4096, false, 1e-4},
        {4, BRG_DTYPE_BF16, 0, false, 0.02},
    };
    brg_sync_norm *sync;
    BRG_TRY(brg_sync_norm_create(&sync, pg));
    brg_status status = BRG_OK;
    for (size_t i = 0; i < 7 && status == BRG_OK; i++) {
        brg_scope *scope = brg_scope_begin();
        status = sync_check_case(pg, sync, &cases[i]);
        brg_scope_end(scope);
    }
    brg_sync_norm_destroy(sync);
    return status;
}

/* In evaluation it is batch norm, bit for bit, and sends nothing. */
static inline brg_status check_sync_norm_evaluation(brg_pg *pg)
{
    sync_case c = {4, BRG_DTYPE_F32, 0, false, 0};
    brg_sync_norm *sync;
    brg_pg_stats before, after;
    BRG_TRY(brg_sync_norm_create(&sync, pg));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = sync_rows(&c, 0, SYNC_ROWS, 0, 0, c.dtype);
    brg_tensor *mean = sync_channels(c.dtype, 0, 0.5);
    brg_tensor *var = sync_channels(c.dtype, 1, 0.5);
    brg_pg_get_stats(pg, &before);
    brg_tensor *y = brg_sync_batch_norm(sync, x, NULL, NULL, mean, var, NULL);
    brg_pg_get_stats(pg, &after);
    brg_tensor *expected = brg_batch_norm(x, NULL, NULL, mean, var, NULL);
    bool is_same = y && expected &&
                   memcmp(brg_tensor_data(y), brg_tensor_data(expected),
                          brg_tensor_nbytes(y)) == 0;
    bool is_quiet = before.n_collectives == after.n_collectives;
    brg_scope_end(scope);
    brg_sync_norm_destroy(sync);
    RANK_CHECK(is_same, "evaluation differs");
    RANK_CHECK(is_quiet, "evaluation is collective");
    return BRG_OK;
}

/* ---- In a network under a ddp ----------------------------------------------------- */

enum { SYNC_W1, SYNC_GAMMA, SYNC_BETA, SYNC_W2, SYNC_N_PARAMS };

typedef struct sync_net {
    brg_tensor *params[SYNC_N_PARAMS];
    brg_tensor *mean, *var;
    brg_sync_norm *sync; /* NULL: one process */
} sync_net;

static inline brg_tensor *sync_matrix(int64_t rows, int64_t cols, size_t salt)
{
    brg_tensor *t = brg_empty(BRG_DTYPE_F64, BRG_SHAPE(rows, cols));
    double *at = t ? brg_tensor_data(t) : NULL;
    for (int64_t i = 0; t && i < rows * cols; i++)
        at[i] = ranks_gradient(0, 9, salt, (size_t)i);
    return t;
}

static inline brg_status sync_net_init(sync_net *net, brg_sync_norm *sync)
{
    *net = (sync_net){.sync = sync};
    net->params[SYNC_W1] = sync_matrix(SYNC_CHANNELS, SYNC_CHANNELS, 1);
    net->params[SYNC_GAMMA] = sync_channels(BRG_DTYPE_F64, 0.5, 0.25);
    net->params[SYNC_BETA] = sync_channels(BRG_DTYPE_F64, -1, 0.5);
    net->params[SYNC_W2] = sync_matrix(1, SYNC_CHANNELS, 2);
    net->mean = sync_channels(BRG_DTYPE_F64, 0, 0);
    net->var = sync_channels(BRG_DTYPE_F64, 1, 0);
    for (size_t i = 0; i < SYNC_N_PARAMS; i++)
        BRG_TRY(brg_set_requires_grad(net->params[i], true));
    return BRG_OK;
}

/* Rows [first, last) of the step's batch: backward, and an SGD step without
 * one. `scale` makes the average over ranks the mean over rows. */
static inline brg_status sync_net_step(sync_net *net, int step, int64_t first,
                                       int64_t last, double scale)
{
    sync_case c = {2, BRG_DTYPE_F64, 0, false, 0};
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    options.training = true;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = sync_rows(&c, first, last, (size_t)(10 + step), 0, c.dtype);
    brg_tensor *h = brg_linear(x, net->params[SYNC_W1], NULL);
    brg_tensor *g = net->params[SYNC_GAMMA], *b = net->params[SYNC_BETA];
    h = net->sync ? brg_sync_batch_norm(net->sync, h, g, b, net->mean, net->var,
                                        &options)
                  : brg_batch_norm(h, g, b, net->mean, net->var, &options);
    brg_tensor *y = brg_linear(brg_tanh(h), net->params[SYNC_W2], NULL);
    brg_tensor *loss = brg_mul_scalar(brg_sum_all(brg_square(y)), scale);
    brg_status status = brg_backward(loss);
    bool mode = brg_grad_mode_set(false);
    for (size_t i = 0; i < SYNC_N_PARAMS && status == BRG_OK; i++) {
        brg_tensor *p = net->params[i];
        status = brg_add_(p, brg_tensor_grad(p), -0.1);
        if (status == BRG_OK)
            status = brg_zero_(brg_tensor_grad(p));
    }
    (void)brg_grad_mode_set(mode);
    brg_scope_end(scope);
    return status;
}

static inline brg_status sync_nets_compare(const sync_net *mine,
                                           const sync_net *whole)
{
    static const sync_case c = {2, BRG_DTYPE_F64, 0, false, 1e-12};
    static const char *const parts[] = {"w1", "gamma", "beta", "w2"};
    for (size_t i = 0; i < SYNC_N_PARAMS; i++)
        BRG_TRY(
            sync_compare(&c, parts[i], mine->params[i], whole->params[i], 0));
    BRG_TRY(sync_compare(&c, "running_mean", mine->mean, whole->mean, 0));
    return sync_compare(&c, "running_var", mine->var, whole->var, 0);
}

static inline brg_status sync_nets_train(brg_pg *pg, sync_net *mine,
                                         sync_net *whole)
{
    int rank = brg_pg_rank(pg), n = brg_pg_world_size(pg);
    int64_t first = sync_first_row(rank, n);
    int64_t last = sync_first_row(rank + 1, n);
    for (int step = 0; step < 6; step++) {
        BRG_TRY(sync_net_step(mine, step, first, last, (double)n / SYNC_ROWS));
        int scope;
        BRG_TRY(brg_compile_disable_begin(&scope));
        brg_status status =
            sync_net_step(whole, step, 0, SYNC_ROWS, 1.0 / SYNC_ROWS);
        BRG_TRY(brg_compile_end(scope));
        BRG_TRY(status);
    }
    return sync_nets_compare(mine, whole);
}

static inline brg_status sync_train_with(brg_pg *pg, brg_ddp_options *options)
{
    brg_sync_norm *sync;
    brg_ddp *ddp = NULL;
    sync_net mine, whole;
    BRG_TRY(brg_sync_norm_create(&sync, pg));
    brg_scope *scope = brg_scope_begin();
    brg_status status = sync_net_init(&mine, sync);
    if (status == BRG_OK)
        status = sync_net_init(&whole, NULL);
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, mine.params, SYNC_N_PARAMS, NULL, 0,
                                options);
    if (status == BRG_OK)
        status = sync_nets_train(pg, &mine, &whole);
    /* They would be kept, if there is memory. */
    for (size_t i = 0; i < SYNC_N_PARAMS && status == BRG_OK; i++)
        status = brg_tensor_set_grad(mine.params[i], NULL);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    brg_sync_norm_destroy(sync);
    return status;
}

/* Trains as one process does, on the ddp's own group: buckets of one gradient
 * are on their way while the statistics are exchanged. */
static inline brg_status check_sync_norm_training(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(sync_train_with(pg, &options));
    options.first_bucket_bytes = options.bucket_bytes = 1;
    return sync_train_with(pg, &options);
}

/* A rank that joins takes no part in statistics: on the ddp's group its buckets
 * meet those of the others, on a group of its own nobody does. Either is an
 * error of every rank, and no wait for ever. */
static inline brg_status check_sync_norm_join(brg_pg *pg, brg_pg *norms)
{
    brg_sync_norm *sync;
    brg_ddp *ddp = NULL;
    sync_net net;
    bool is_over = false;
    bool is_joined = brg_pg_rank(pg) == brg_pg_world_size(pg) - 1;
    BRG_TRY(brg_sync_norm_create(&sync, norms));
    brg_scope *scope = brg_scope_begin();
    brg_status status = sync_net_init(&net, sync);
    if (status == BRG_OK)
        status =
            brg_ddp_create(&ddp, pg, net.params, SYNC_N_PARAMS, NULL, 0, NULL);
    if (status == BRG_OK)
        status = is_joined ? brg_ddp_join(ddp, &is_over)
                           : sync_net_step(&net, 0, 0, 3, 1);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    brg_sync_norm_destroy(sync);
    if (pg == norms)
        return ranks_expect(status, BRG_ERR_MISMATCH, "all_gather", "a join",
                            __LINE__);
    if (is_joined)
        return ranks_expect(status, BRG_ERR_PEER, "rank ", "a join", __LINE__);
    char late[40];
    snprintf(late, sizeof late, "rank %d has not started it",
             brg_pg_world_size(pg) - 1);
    /* One may hear that another has given up, and for whom that waited. */
    bool is_late = status == BRG_ERR_TIMEOUT || status == BRG_ERR_PEER;
    return ranks_expect(status, is_late ? status : BRG_ERR_TIMEOUT, late,
                        "a join", __LINE__);
}

static inline brg_status check_sync_norm_compiled(brg_pg *pg)
{
    compiled_run compiled;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    BRG_TRY(compiled_begin(&compiled));
    return compiled_end(&compiled, sync_train_with(pg, &options));
}

#endif
