/* SPDX-License-Identifier: Apache-2.0
 * Sharded optimizer state on the ranks of any group, against an optimizer that
 * has all of it. The gradients follow from the parameters, so a rank that
 * misses a new value goes astray in the next step. */
#ifndef BRG_TESTS_REDUCER_SHARD_CHECKS_H
#define BRG_TESTS_REDUCER_SHARD_CHECKS_H

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/io.h>
#include <brigade/ops.h>
#include <brigade/recover.h>
#include <brigade/shard.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define SHARD_N 12
#define SHARD_FROZEN 9 /* "fixed" */
#define SHARD_STEPS 6

typedef struct shard_row {
    const char *name;
    brg_dtype dtype;
    int64_t rows, columns;
} shard_row;

/* Cuts fall inside large ones; some ranks own nothing of small ones; those of
 * whole lines lie side by side in a bucket. */
static const shard_row shard_rows[SHARD_N] = {
    {"emb", BRG_DTYPE_F32, 61, 13}, {"fc1", BRG_DTYPE_F32, 32, 17},
    {"one", BRG_DTYPE_F32, 1, 1},   {"norm", BRG_DTYPE_F64, 1, 129},
    {"half", BRG_DTYPE_F16, 9, 31}, {"brain", BRG_DTYPE_BF16, 40, 5},
    {"out", BRG_DTYPE_F32, 3, 19},  {"line", BRG_DTYPE_F32, 1, 16},
    {"lines", BRG_DTYPE_F32, 8, 8}, {"fixed", BRG_DTYPE_F32, 4, 4},
    {"more", BRG_DTYPE_F32, 2, 48}, {"halves", BRG_DTYPE_BF16, 6, 32},
};

typedef enum shard_rule {
    SHARD_ADAMW,
    SHARD_MOMENTUM,
    SHARD_NESTEROV,
    SHARD_SGD,
    SHARD_N_RULES
} shard_rule;

typedef struct shard_run {
    brg_pg *pg;
    brg_scope *scope;
    brg_params *params;
    brg_ddp *ddp;
    brg_optim *optim;
    bool is_sharded;
    shard_rule rule;
    bool is_alike; /* every rank has the data of rank 0 */
} shard_run;

#define SHARD_NUMEL (61 * 13) /* of the largest */

/* Element k is scale times ranks_gradient(rank, step, i, k). */
static inline brg_tensor *shard_values(size_t i, int rank, int step,
                                       double scale)
{
    double memory[SHARD_NUMEL]; /* room for any dtype */
    const shard_row *row = &shard_rows[i];
    for (size_t k = 0; k < (size_t)(row->rows * row->columns); k++)
        ranks_store(memory, k, row->dtype,
                    scale * ranks_gradient(rank, step, i, k));
    return brg_from_data(row->dtype, BRG_SHAPE(row->rows, row->columns),
                         memory);
}

static inline brg_status shard_make_params(shard_run *r)
{
    BRG_TRY(brg_params_create(&r->params));
    for (size_t i = 0; i < SHARD_N; i++) {
        const shard_row *row = &shard_rows[i];
        brg_tensor *t = shard_values(i, brg_pg_rank(r->pg), 99, 1);
        BRG_TRY(brg_params_add(r->params, row->name, t, BRG_PARAM_TRAINED));
        BRG_TRY(brg_set_requires_grad(t, i != SHARD_FROZEN));
        BRG_TRY(brg_tensor_set_name(t, row->name));
    }
    return BRG_OK;
}

static inline brg_status shard_make_optim(const shard_run *r, brg_optim **out,
                                          const brg_optim_range *ranges)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = r->rule == SHARD_SGD ? 0 : 0.9;
    sgd.nesterov = r->rule == SHARD_NESTEROV;
    sgd.weight_decay = 0.02;
    sgd.ranges = adamw.ranges = ranges;
    adamw.lr = 0.02;
    BRG_TRY(r->rule == SHARD_ADAMW
                ? brg_optim_create_adamw(out, r->params, &adamw)
                : brg_optim_create_sgd(out, r->params, &sgd));
    /* One of those side by side is a group of its own. */
    BRG_TRY(brg_optim_set_param(*out, "lines", 1, 0));
    return brg_optim_set_param(*out, "half", 0.5, 0.1);
}

/* What is_sharded and the like say is set before. */
static inline brg_status shard_run_init(shard_run *r, brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = 300;
    options.bucket_bytes = 2000;
    options.shard = r->is_sharded;
    options.measure_norm = true;
    options.allow_unused = true;
    r->pg = pg;
    r->scope = brg_scope_begin();
    BRG_TRY(shard_make_params(r));
    size_t n;
    brg_tensor *const *tensors =
        brg_params_tensors(r->params, BRG_PARAM_TRAINED, &n);
    BRG_TRY(brg_ddp_create(&r->ddp, pg, tensors, n, NULL, 0, &options));
    brg_optim_range ranges[SHARD_N];
    if (r->is_sharded)
        BRG_TRY(brg_ddp_shard(r->ddp, r->params, ranges, SHARD_N));
    return shard_make_optim(r, &r->optim, r->is_sharded ? ranges : NULL);
}

static inline void shard_run_deinit(shard_run *r)
{
    brg_optim_destroy(r->optim);
    brg_params_destroy(r->params);
    brg_scope_end(r->scope);
    brg_ddp_destroy(r->ddp);
}

/* loss = sum of p^2 x over the parameters in the mask, each waited for just
 * before its use. */
static inline brg_status shard_backward(shard_run *r, int step, unsigned mask)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    brg_status status = BRG_OK;
    int rank = r->is_alike ? 0 : brg_pg_rank(r->pg);
    for (size_t i = 0; i < SHARD_N && status == BRG_OK; i++) {
        brg_tensor *p = brg_params_at(r->params, i)->tensor;
        brg_tensor *x = shard_values(i, rank, step, 0.25);
        if (r->is_sharded && step % 2)
            status = brg_ddp_wait_params(r->ddp, p);
        brg_tensor *term =
            brg_cast(brg_sum_all(brg_mul(brg_mul(p, p), x)), BRG_DTYPE_F32);
        if (mask >> i & 1)
            loss = loss ? brg_add(loss, term) : term;
    }
    if (status == BRG_OK)
        status = loss ? brg_backward(loss) : brg_error_code();
    brg_scope_end(scope);
    return status;
}

/* Two micro-batches in every third step; fc1 without use in the fourth. */
static inline brg_status shard_step(shard_run *r, int step, double max_norm,
                                    double *norm)
{
    unsigned mask = step == 4 ? ~2u : ~0u;
    if (r->is_sharded && step % 2 == 0)
        BRG_TRY(brg_ddp_wait_params(r->ddp, NULL));
    if (step % 3 == 2) {
        (void)brg_ddp_set_sync(r->ddp, false);
        BRG_TRY(shard_backward(r, step + 100, mask));
        (void)brg_ddp_set_sync(r->ddp, true);
    }
    BRG_TRY(shard_backward(r, step, mask));
    if (max_norm > 0)
        BRG_TRY(brg_ddp_clip_grad_norm(r->ddp, max_norm, norm));
    BRG_TRY(brg_optim_step(r->optim));
    if (r->is_sharded)
        BRG_TRY(brg_ddp_gather_params(r->ddp));
    return brg_optim_zero_grad(r->optim, step % 2);
}

/* Parameters of both runs: the same bits, or nearly. */
static inline brg_status shard_compare(shard_run *a, shard_run *b, int step,
                                       double tolerance)
{
    double p[SHARD_NUMEL], q[SHARD_NUMEL];
    if (a->is_sharded)
        BRG_TRY(brg_ddp_wait_params(a->ddp, NULL));
    for (size_t i = 0; i < SHARD_N; i++) {
        brg_tensor *t = brg_params_at(a->params, i)->tensor;
        const brg_dtype dtype = brg_tensor_dtype(t);
        const size_t nbytes = brg_tensor_nbytes(t);
        BRG_TRY(brg_tensor_read(t, p, nbytes));
        BRG_TRY(
            brg_tensor_read(brg_params_at(b->params, i)->tensor, q, nbytes));
        BRG_TRY(ranks_same_bits(a->pg, p, nbytes));
        if (tolerance == 0)
            RANK_CHECK(memcmp(p, q, nbytes) == 0,
                       "rank %d, step %d: %s has other bits",
                       brg_pg_rank(a->pg), step, shard_rows[i].name);
        for (size_t k = 0; k < (size_t)brg_tensor_numel(t); k++) {
            double x = ranks_load(p, k, dtype);
            double y = ranks_load(q, k, dtype);
            RANK_CHECK(fabs(x - y) <= tolerance * ranks_epsilon(dtype),
                       "rank %d, step %d: %s[%zu] is %.9g, expected %.9g",
                       brg_pg_rank(a->pg), step, shard_rows[i].name, k, x, y);
        }
    }
    return BRG_OK;
}

static inline brg_status shard_both(shard_run *a, shard_run *b, double max_norm)
{
    for (int step = 0; step < SHARD_STEPS; step++) {
        double x = 0, y = 0;
        BRG_TRY(shard_step(b, step, max_norm, &y));
        BRG_TRY(shard_step(a, step, max_norm, &x));
        RANK_CHECK(fabs(x - y) <= 1e-12 * y, "norm %.17g, expected %.17g", x,
                   y);
        RANK_CHECK(max_norm == 0 || y > max_norm, "nothing to clip: %g", y);
        BRG_TRY(shard_compare(a, b, step, max_norm > 0 ? 4 : 0));
    }
    return BRG_OK;
}

static inline brg_status shard_against_whole(brg_pg *pg, shard_rule rule,
                                             double max_norm)
{
    shard_run a = {.is_sharded = true, .rule = rule}, b = {.rule = rule};
    brg_status status = shard_run_init(&a, pg);
    if (status == BRG_OK)
        status = shard_run_init(&b, pg);
    if (status == BRG_OK)
        status = shard_both(&a, &b, max_norm);
    shard_run_deinit(&b);
    shard_run_deinit(&a);
    return status;
}

static inline brg_status check_shard_bits(brg_pg *pg)
{
    for (int rule = 0; rule < SHARD_N_RULES; rule++)
        BRG_TRY(shard_against_whole(pg, (shard_rule)rule, 0));
    return BRG_OK;
}

static inline brg_status check_shard_clipping(brg_pg *pg)
{
    return shard_against_whole(pg, SHARD_ADAMW, 0.5);
}

/* ---- Memory ----------------------------------------------------------------------- */

/* Bytes of state of what is trained, counts of steps apart. */
static inline double shard_state_bytes(const brg_optim *optim)
{
    double sum = 0;
    for (size_t i = 0; i < brg_optim_state_count(optim); i++)
        if (brg_requires_grad(brg_optim_state_param(optim, i)))
            sum +=
                (double)brg_tensor_nbytes(brg_optim_state_at(optim, i)->tensor);
    return sum;
}

/* The parts make up the whole; none is more than 1/N of it and what the
 * alignment of some buckets makes of that. */
static inline brg_status shard_memory(shard_run *r, brg_optim *whole)
{
    double mine = shard_state_bytes(r->optim), all = mine;
    double full = shard_state_bytes(whole);
    int n = brg_pg_world_size(r->pg);
    brg_work *work;
    BRG_TRY(
        brg_all_reduce(r->pg, &work, &all, 1, BRG_DTYPE_F64, BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    RANK_CHECK(all == full, "%g bytes on all ranks, the whole has %g", all,
               full);
    RANK_CHECK(mine <= 1.15 * full / n + 1000, "%g of %g bytes, %d ranks", mine,
               full, n);
    return BRG_OK;
}

static inline brg_status check_shard_memory(brg_pg *pg)
{
    shard_run r = {.is_sharded = true};
    brg_optim *whole = NULL;
    brg_status status = shard_run_init(&r, pg);
    if (status == BRG_OK)
        status = shard_make_optim(&r, &whole, NULL);
    if (status == BRG_OK)
        status = shard_memory(&r, whole);
    brg_optim_destroy(whole);
    shard_run_deinit(&r);
    return status;
}

/* ---- Errors ----------------------------------------------------------------------- */

static inline brg_status shard_misuse(shard_run *r)
{
    brg_optim_range ranges[SHARD_N];
    brg_optim *whole = NULL;
    RANK_FAILS(brg_ddp_shard(r->ddp, r->params, ranges, 3), BRG_ERR_ARG,
               "room for 3 ranges, there are 12");
    int64_t n_steps = 0;
    RANK_FAILS(brg_ddp_refresh(r->ddp), BRG_ERR_UNSUPPORTED, "with shard");
    RANK_FAILS(brg_ddp_regroup(r->ddp, r->pg, NULL, &n_steps),
               BRG_ERR_UNSUPPORTED, "with shard");
    BRG_TRY(shard_step(r, 0, 0, NULL));
    RANK_FAILS(brg_ddp_gather_params(r->ddp), BRG_ERR_STATE,
               "was not waited for");
    RANK_FAILS(shard_backward(r, 0, ~0u), BRG_ERR_STATE,
               "while parameters are being gathered");
    BRG_TRY(brg_ddp_wait_params(r->ddp, NULL));
    BRG_TRY(shard_make_optim(r, &whole, NULL));
    bool is_root = brg_pg_rank(r->pg) == 0;
    brg_status status = brg_ddp_gather_optim(r->ddp, is_root ? NULL : whole,
                                             r->optim); /* rank 0 needs one */
    brg_optim_destroy(whole);
    if (is_root)
        RANK_FAILS(status, BRG_ERR_ARG, "full is NULL");
    else
        RANK_FAILS(status, BRG_ERR_PEER, "failed on rank 0");
    BRG_TRY(shard_step(r, 1, 0, NULL)); /* all is well */
    return brg_ddp_wait_params(r->ddp, NULL);
}

static inline brg_status check_shard_errors(brg_pg *pg)
{
    shard_run r = {.is_sharded = true};
    brg_status status = shard_run_init(&r, pg);
    if (status == BRG_OK)
        status = shard_misuse(&r);
    shard_run_deinit(&r);
    return status;
}

#endif
