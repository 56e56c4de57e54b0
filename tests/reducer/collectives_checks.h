/* SPDX-License-Identifier: Apache-2.0
 * How many collectives a steady step makes, exactly, in every mode there is: one
 * for each bucket, and what the table says. The model has a batch norm, whose
 * statistics are kept alike on all ranks in some of them. */
#ifndef BRG_TESTS_REDUCER_COLLECTIVES_CHECKS_H
#define BRG_TESTS_REDUCER_COLLECTIVES_CHECKS_H

#include <stdlib.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/comm_hook.h>
#include <brigade/compile.h>
#include <brigade/ops.h>
#include <brigade/shard.h>

#include "core/base/error.h"
#include "tests/support/brg_test.h"
#include "tests/support/compiled_run.h"
#include "tests/support/ranks.h"

#define COUNT_STEPS 8 /* buckets are final after the sixth at the latest */
#define COUNT_PARAMS 4
#define COUNT_BUFFERS 3
#define COUNT_DIM 6
#define COUNT_LARGE ((int64_t)600 << 10) /* f32: more than rides */
#define COUNT_LARGE_WORLD 3 /* ranks: it takes its time, and more add nothing */

typedef enum count_runner { RUN_EAGER, RUN_COMPILED, RUN_WHOLE } count_runner;
#define N_RUNNERS 3

typedef struct count_mode {
    const char *name;
    brg_ddp_buffers sync;
    int n_micro;        /* backwards of a step; 0: 1 */
    int n_more;         /* collectives beside buckets */
    int more_a_bucket;  /* for each that holds parameters */
    char hook;          /* c cast, p PowerSGD; 0: none */
    char special;       /* s shards, l leaves, j joins, a apart, g static graph,
                           u unused, m measured, t sum, n norm and finite,
                           b one bucket, L large buffers */
    bool is_eager_only; /* the function would run in pieces */
} count_mode;

static const count_mode count_modes[] = {
    {"plain", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 0, false},
    {"sum", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 't', false},
    {"norm and finite", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 'n', false},
    {"accumulation", BRG_DDP_BUFFERS_LEAVE, 3, 0, 0, 0, 0, true},
    {"unused parameters", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 'u', false},
    {"static graph", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 'g', false},
    {"gradients apart", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 'a', false},
    {"measured buckets", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 'm', false},
    {"join", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 'j', true},
    {"leaves", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 0, 'l', true},
    {"hook", BRG_DDP_BUFFERS_LEAVE, 0, 0, 0, 'c', 0, false},
    {"PowerSGD: again for each bucket with matrices", BRG_DDP_BUFFERS_LEAVE, 0,
     2, 0, 'p', 0, false},
    {"PowerSGD: two matrices in a bucket", BRG_DDP_BUFFERS_LEAVE, 0, 1, 0, 'p',
     'b', false},
    {"shards: gathered", BRG_DDP_BUFFERS_LEAVE, 0, 0, 1, 0, 's', true},
    {"rank 0's buffers", BRG_DDP_BUFFERS_BROADCAST, 0, 0, 0, 0, 0, false},
    {"the same, sum", BRG_DDP_BUFFERS_BROADCAST, 0, 0, 0, 0, 't', false},
    {"the same, accumulation", BRG_DDP_BUFFERS_BROADCAST, 3, 0, 0, 0, 0, true},
    {"the same, hook", BRG_DDP_BUFFERS_BROADCAST, 0, 0, 0, 'c', 0, false},
    {"the same, join", BRG_DDP_BUFFERS_BROADCAST, 0, 0, 0, 0, 'j', true},
    {"the same, leaves", BRG_DDP_BUFFERS_BROADCAST, 0, 0, 0, 0, 'l', true},
    {"the same, shards", BRG_DDP_BUFFERS_BROADCAST, 0, 0, 1, 0, 's', true},
    {"the same, static graph", BRG_DDP_BUFFERS_BROADCAST, 0, 0, 0, 0, 'g',
     false},
    {"averaged buffers", BRG_DDP_BUFFERS_AVERAGE, 0, 0, 0, 0, 0, false},
    {"the same, sum", BRG_DDP_BUFFERS_AVERAGE, 0, 0, 0, 0, 't', false},
    {"the same, leaves", BRG_DDP_BUFFERS_AVERAGE, 0, 0, 0, 0, 'l', true},
    {"the same, shards", BRG_DDP_BUFFERS_AVERAGE, 0, 0, 1, 0, 's', true},
    {"the same, hook", BRG_DDP_BUFFERS_AVERAGE, 0, 0, 0, 'c', 0, false},
    {"the same, large", BRG_DDP_BUFFERS_AVERAGE, 0, COUNT_BUFFERS, 0, 0, 'L',
     false},
    {"rank 0's, large", BRG_DDP_BUFFERS_BROADCAST, 0, COUNT_BUFFERS, 0, 0, 'L',
     false},
};
#define N_COUNT_MODES (sizeof count_modes / sizeof count_modes[0])

typedef struct count_model {
    const count_mode *mode;
    brg_pg *pg;
    int rank, world_size;
    brg_scope *scope;
    brg_tensor *params[COUNT_PARAMS];   /* w1, gamma, beta, w2 */
    brg_tensor *buffers[COUNT_BUFFERS]; /* mean, variance, a third */
    brg_ddp *ddp;
    brg_comm_hook *hook;
    brg_compiled *whole;
} count_model;

/* ---- The model --------------------------------------------------------------------- */

static inline brg_tensor *count_data(int64_t rows, int rank, int step, size_t i)
{
    float x[64 * COUNT_DIM];
    for (size_t k = 0; k < (size_t)rows * COUNT_DIM; k++)
        x[k] = (float)ranks_gradient(rank, step, i, k);
    return brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(rows, COUNT_DIM), x);
}

static inline brg_status count_loss(brg_tensor *const *in, size_t n_in,
                                    brg_tensor **out, size_t n_out, void *user)
{
    const count_model *m = user;
    brg_batch_norm_options bn = BRG_BATCH_NORM_OPTIONS_INIT;
    (void)n_in, (void)n_out;
    bn.training = true;
    brg_tensor *h = brg_linear(in[0], m->params[0], NULL);
    h = brg_batch_norm(h, m->params[1], m->params[2], m->buffers[0],
                       m->buffers[1], &bn);
    if (m->mode->special != 'u')
        h = brg_linear(h, m->params[3], NULL);
    out[0] = brg_sum_all(brg_tanh(h));
    return brg_backward(out[0]);
}

/* Buffers differ between ranks before each step. */
static inline brg_status count_model_tensors(count_model *m)
{
    int64_t large = m->mode->special == 'L' ? COUNT_LARGE : 5;
    m->params[0] = count_data(COUNT_DIM, 0, 0, 0);
    m->params[1] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(COUNT_DIM));
    m->params[2] = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(COUNT_DIM));
    m->params[3] = count_data(COUNT_DIM, 0, 0, 1);
    m->buffers[0] = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(COUNT_DIM));
    m->buffers[1] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(COUNT_DIM));
    m->buffers[2] = brg_full(BRG_DTYPE_F32, BRG_SHAPE(large), m->rank + 0.1);
    for (size_t i = 0; i < COUNT_PARAMS; i++)
        BRG_TRY(brg_set_requires_grad(m->params[i], true));
    return m->buffers[2] ? BRG_OK : brg_error_code();
}

static inline brg_status count_model_init(count_model *m, brg_pg *pg,
                                          const count_mode *mode,
                                          count_runner runner)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    *m = (count_model){.mode = mode,
                       .pg = pg,
                       .rank = brg_pg_rank(pg),
                       .world_size = brg_pg_world_size(pg),
                       .scope = brg_scope_begin()};
    BRG_TRY(count_model_tensors(m));
    if (mode->special != 'b')
        options.first_bucket_bytes = options.bucket_bytes = 1;
    options.sync_buffers = mode->sync;
    options.sum = mode->special == 't';
    options.shard = mode->special == 's';
    options.allow_unused = mode->special == 'u';
    options.static_graph = mode->special == 'g';
    options.grads_apart = mode->special == 'a';
    options.measure_norm = options.check_finite = mode->special == 'n';
    if (mode->special == 'm')
        options.buckets = BRG_BUCKETS_MEASURED;
    if (mode->special == 'l') {
        options.reduction = BRG_REDUCTION_REPRODUCIBLE;
        options.n_leaves = 8;
    }
    brg_powersgd_options low = BRG_POWERSGD_OPTIONS_INIT;
    if (mode->hook == 'p')
        BRG_TRY(brg_comm_hook_create_powersgd(&m->hook, &low));
    if (mode->hook == 'c')
        BRG_TRY(brg_comm_hook_create_cast(&m->hook, BRG_DTYPE_BF16, false));
    options.hook = m->hook;
    BRG_TRY(brg_ddp_create(&m->ddp, pg, m->params, COUNT_PARAMS, m->buffers,
                           COUNT_BUFFERS, &options));
    brg_compile_options how = BRG_COMPILE_OPTIONS_INIT;
    how.whole = how.fullgraph = true;
    return runner == RUN_WHOLE
               ? brg_compiled_create(&m->whole, count_loss, m, &how)
               : BRG_OK;
}

static inline void count_model_deinit(count_model *m)
{
    brg_compiled_destroy(m->whole);
    brg_ddp_destroy(m->ddp);
    brg_comm_hook_destroy(m->hook);
    brg_scope_end(m->scope);
}

/* ---- A step ----------------------------------------------------------------------- */

static inline brg_status count_backward(count_model *m, int step, int micro)
{
    brg_tensor *loss = NULL;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = count_data(4, m->rank, step, (size_t)(2 + micro));
    brg_status status = m->whole ? brg_compiled_call(m->whole, &x, 1, &loss, 1)
                                 : count_loss(&x, 1, &loss, 1, m);
    brg_scope_end(scope);
    return status;
}

static inline brg_status count_leaves(count_model *m, int step)
{
    uint32_t leaf = 0;
    for (bool is_last = false; !is_last;) {
        is_last = brg_ddp_next_leaf(m->ddp, &leaf);
        BRG_TRY(count_backward(m, step, (int)leaf));
    }
    return BRG_OK;
}

static inline brg_status count_step(count_model *m, int step)
{
    int n_micro = m->mode->n_micro ? m->mode->n_micro : 1;
    bool is_over;
    if (m->mode->special == 'l')
        return count_leaves(m, step);
    if (m->mode->special == 'j' && m->rank > 0 && step > 2)
        return brg_ddp_join(m->ddp, &is_over);
    for (int k = 0; k < n_micro; k++) {
        (void)brg_ddp_set_sync(m->ddp, k + 1 == n_micro);
        BRG_TRY(count_backward(m, step, k));
    }
    if (m->mode->special != 's')
        return BRG_OK;
    BRG_TRY(brg_ddp_gather_params(m->ddp));
    return brg_ddp_wait_params(m->ddp, NULL);
}

/* ---- What comes of it ---------------------------------------------------------------- */

/* With collectives of their own. */
static inline brg_status sync_by_itself(count_model *m, float *x, size_t n)
{
    brg_work *work;
    if (m->mode->sync == BRG_DDP_BUFFERS_LEAVE)
        return BRG_OK;
    BRG_TRY(m->mode->sync == BRG_DDP_BUFFERS_BROADCAST
                ? brg_broadcast(m->pg, &work, x, n, BRG_DTYPE_F32, 0)
                : brg_all_reduce(m->pg, &work, x, n, BRG_DTYPE_F32,
                                 BRG_REDUCE_AVG));
    return brg_work_wait(work);
}

/* The forward of this rank alone, on copies of the buffers; then synced. */
static inline brg_status expected_buffers(count_model *m, int step,
                                          float mean[COUNT_DIM],
                                          float var[COUNT_DIM], int n_micro)
{
    bool has_data = m->mode->special != 'j' || m->rank == 0 || step <= 2;
    bool was = brg_grad_mode_set(false);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *running[2];
    brg_batch_norm_options bn = BRG_BATCH_NORM_OPTIONS_INIT;
    bn.training = true;
    running[0] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(COUNT_DIM), mean);
    running[1] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(COUNT_DIM), var);
    for (int k = 0; has_data && k < n_micro; k++) {
        brg_tensor *x = count_data(4, m->rank, step, (size_t)(2 + k));
        (void)brg_batch_norm(brg_linear(x, m->params[0], NULL), m->params[1],
                             m->params[2], running[0], running[1], &bn);
    }
    brg_status status =
        brg_tensor_read(running[0], mean, COUNT_DIM * sizeof(float));
    if (status == BRG_OK)
        status = brg_tensor_read(running[1], var, COUNT_DIM * sizeof(float));
    brg_scope_end(scope);
    (void)brg_grad_mode_set(was);
    BRG_TRY(status);
    BRG_TRY(sync_by_itself(m, mean, COUNT_DIM));
    return sync_by_itself(m, var, COUNT_DIM);
}

static inline brg_status check_statistics(count_model *m, const float *mean,
                                          const float *var, int step)
{
    RANK_CHECK(memcmp(brg_tensor_data(m->buffers[0]), mean,
                      COUNT_DIM * sizeof *mean) == 0 &&
                   memcmp(brg_tensor_data(m->buffers[1]), var,
                          COUNT_DIM * sizeof *var) == 0,
               "rank %d: %s: step %d has other statistics", m->rank,
               m->mode->name, step);
    return BRG_OK;
}

static inline size_t count_expected(const count_model *m)
{
    const brg_reducer *r = brg_ddp_reducer(m->ddp);
    size_t n = brg_reducer_n_buckets(r), n_more = (size_t)m->mode->n_more;
    for (size_t k = 0; k < n; k++) {
        brg_bucket_info info = {0};
        if (brg_reducer_get_bucket(r, k, &info) == BRG_OK && info.n_params > 0)
            n_more += (size_t)m->mode->more_a_bucket;
    }
    return n + n_more;
}

static inline brg_status count_steps(count_model *m)
{
    int n_micro = m->mode->n_micro ? m->mode->n_micro : 1;
    for (int step = 0; step < COUNT_STEPS; step++) {
        float mean[COUNT_DIM], var[COUNT_DIM];
        brg_pg_stats before, after;
        memcpy(mean, brg_tensor_data(m->buffers[0]), sizeof mean);
        memcpy(var, brg_tensor_data(m->buffers[1]), sizeof var);
        for (size_t i = 0; i < COUNT_PARAMS; i++)
            BRG_TRY(brg_tensor_set_grad(m->params[i], NULL));
        size_t n = count_expected(m);
        brg_pg_get_stats(m->pg, &before);
        BRG_TRY(count_step(m, step));
        brg_pg_get_stats(m->pg, &after);
        size_t found = (size_t)(after.n_collectives - before.n_collectives);
        RANK_CHECK(step < 6 || found == n,
                   "rank %d: %s: step %d made %zu collectives, expected %zu",
                   m->rank, m->mode->name, step, found, n);
        if (m->mode->special == 'l')
            continue;
        BRG_TRY(expected_buffers(m, step, mean, var, n_micro));
        BRG_TRY(check_statistics(m, mean, var, step));
    }
    return m->mode->sync == BRG_DDP_BUFFERS_LEAVE
               ? BRG_OK
               : ranks_same_bits(m->pg, brg_tensor_data(m->buffers[0]),
                                 COUNT_DIM * sizeof(float));
}

static inline brg_status count_mode_check(brg_pg *pg, const count_mode *mode,
                                          count_runner runner)
{
    count_model m;
    compiled_run compiled;
    if (runner == RUN_COMPILED)
        BRG_TRY(compiled_begin(&compiled));
    brg_status status = count_model_init(&m, pg, mode, runner);
    if (status == BRG_OK)
        status = count_steps(&m);
    count_model_deinit(&m);
    if (runner == RUN_COMPILED)
        status = compiled_end(&compiled, status);
    return status == BRG_OK
               ? BRG_OK
               : brg__error_prefix("%s: runner %d: ", mode->name, (int)runner);
}

/* All modes by the first n_runners. */
static inline brg_status check_modes(brg_pg *pg, int n_runners)
{
    for (size_t i = 0; i < N_COUNT_MODES; i++) {
        const count_mode *mode = &count_modes[i];
        bool is_large = mode->special == 'L';
        if (is_large && brg_pg_world_size(pg) > COUNT_LARGE_WORLD)
            continue;
        for (int runner = 0; runner < n_runners; runner++)
            if (runner != RUN_WHOLE || !mode->is_eager_only)
                BRG_TRY(count_mode_check(pg, mode, (count_runner)runner));
    }
    return BRG_OK;
}

static inline brg_status check_collectives(brg_pg *pg)
{
    return check_modes(pg, N_RUNNERS);
}

/* ---- A tail without a bucket of f32 ------------------------------------------------------ */

#define TAIL_PARAMS 2
#define TAIL_NUMEL 9

typedef struct tail_case {
    const char *name;
    brg_dtype dtypes[TAIL_PARAMS]; /* the first one's gradients go last */
    char special;                  /* c cast hook, s shards; 0: none */
    size_t n_more; /* buckets beside those of the two parameters */
} tail_case;

static const tail_case tail_cases[] = {
    {"f32", {BRG_DTYPE_F32, BRG_DTYPE_F32}, 0, 0},
    {"bf16, then f32", {BRG_DTYPE_F32, BRG_DTYPE_BF16}, 0, 0},
    {"f32, then bf16", {BRG_DTYPE_BF16, BRG_DTYPE_F32}, 0, 1},
    {"bf16", {BRG_DTYPE_BF16, BRG_DTYPE_BF16}, 0, 1},
    {"f16", {BRG_DTYPE_F16, BRG_DTYPE_F16}, 0, 1},
    {"f64", {BRG_DTYPE_F64, BRG_DTYPE_F64}, 0, 1},
    {"f32, a hook", {BRG_DTYPE_F32, BRG_DTYPE_F32}, 'c', 1},
    {"f32, shards", {BRG_DTYPE_F32, BRG_DTYPE_F32}, 's', 1},
};
#define N_TAIL_CASES (sizeof tail_cases / sizeof tail_cases[0])

/* Each rank's gradients are its number and one more. */
static inline brg_status tail_step(brg_tensor *const *params, int rank)
{
    for (size_t i = 0; i < TAIL_PARAMS; i++)
        BRG_TRY(brg_tensor_set_grad(params[i], NULL));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = brg_zeros(BRG_DTYPE_F32, BRG_SCALAR);
    for (size_t i = 0; i < TAIL_PARAMS; i++) {
        brg_tensor *x = brg_cast(params[i], BRG_DTYPE_F32);
        loss = brg_add(loss, brg_sum_all(brg_mul_scalar(x, rank + 1)));
    }
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

static inline brg_status tail_steps(const tail_case *c, brg_pg *pg,
                                    brg_tensor *const *params)
{
    int rank = brg_pg_rank(pg), n = brg_pg_world_size(pg);
    for (int step = 0; step < 4; step++) {
        brg_pg_stats before, after;
        char value[8 * TAIL_NUMEL];
        brg_pg_get_stats(pg, &before);
        BRG_TRY(tail_step(params, rank));
        brg_pg_get_stats(pg, &after);
        size_t found = (size_t)(after.n_collectives - before.n_collectives);
        RANK_CHECK(step == 0 || found == TAIL_PARAMS + c->n_more,
                   "%s: %zu collectives, expected %zu", c->name, found,
                   TAIL_PARAMS + c->n_more);
        if (c->special == 's')
            continue; /* this rank's part only */
        for (size_t i = 0; i < TAIL_PARAMS; i++) {
            brg_tensor *grad = brg_tensor_grad(params[i]);
            BRG_TRY(brg_tensor_read(grad, value, brg_tensor_nbytes(grad)));
            for (size_t k = 0; k < TAIL_NUMEL; k++)
                RANK_CHECK(ranks_load(value, k, c->dtypes[i]) == (n + 1) / 2.0,
                           "%s: gradient %zu", c->name, i);
        }
    }
    return BRG_OK;
}

static inline brg_status tail_check(brg_pg *pg, const tail_case *c)
{
    brg_scope *scope = brg_scope_begin();
    brg_comm_hook *hook = NULL;
    brg_ddp *ddp = NULL;
    brg_tensor *params[TAIL_PARAMS];
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_status status = BRG_OK;
    for (size_t i = 0; i < TAIL_PARAMS && status == BRG_OK; i++) {
        params[i] = brg_ones(c->dtypes[i], BRG_SHAPE(TAIL_NUMEL));
        status = brg_set_requires_grad(params[i], true);
    }
    if (status == BRG_OK && c->special == 'c')
        status = brg_comm_hook_create_cast(&hook, BRG_DTYPE_BF16, false);
    options.hook = hook;
    options.shard = c->special == 's';
    options.keep_order = true;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    if (status == BRG_OK)
        status =
            brg_ddp_create(&ddp, pg, params, TAIL_PARAMS, NULL, 0, &options);
    if (status == BRG_OK)
        status = tail_steps(c, pg, params);
    brg_ddp_destroy(ddp);
    brg_comm_hook_destroy(hook);
    brg_scope_end(scope);
    return status;
}

/* The tail is f32: where the last bucket is not, it is one more. */
static inline brg_status check_tails(brg_pg *pg)
{
    for (size_t i = 0; i < N_TAIL_CASES; i++)
        BRG_TRY(tail_check(pg, &tail_cases[i]));
    return BRG_OK;
}

#endif
