/* SPDX-License-Identifier: Apache-2.0
 * A training of whole steps that a device records once and is then told to do
 * again, on a device made for tests; with a reducer or without. */
#ifndef BRG_TESTS_COMPILE_LAUNCHED_STEPS_H
#define BRG_TESTS_COMPILE_LAUNCHED_STEPS_H

#include <brigade/brigade.h>

#include "tests/rows/both.h"
#include "tests/support/device_group.h"
#include "tests/support/recording_device.h"

#define N_STEPS 9
#define N_PARAMS 4

/* ---- A model -------------------------------------------------------------------- */

typedef struct model {
    brg_tensor *p[N_PARAMS];
    brg_tensor *seen; /* changed in place by each step */
    brg_optim *optim;
    brg_params *params;
    brg_status (*end)(struct model *m); /* what follows the backward */
    bool zeroes_first;                  /* gradients go when a step begins */
    double dropout;
    int n_steps;
    brg_pg *pg;
    brg_ddp *ddp;
    bool looks;    /* at gradients, when they are reduced */
    bool keeps;    /* gradients become zeros where they are */
    bool may_skip; /* steps whose gradients were not finite */
    brg_comm_hook *hook;
} model;

static inline brg_tensor *there(brg_tensor *t)
{
    return assert_brg_some(brg_to(t, THERE));
}

static inline brg_status end_plainly(model *m)
{
    return brg_optim_step(m->optim);
}

/* Gradients of two backwards add up. */
static inline brg_status end_at_every_other(model *m)
{
    return m->n_steps % 2 ? brg_optim_step(m->optim) : BRG_OK;
}

static inline void model_make(model *m, bool is_adamw)
{
    static const int64_t shapes[N_PARAMS][2] = {{6, 5}, {6, 0}, {3, 6}, {3, 0}};
    *m = (model){.end = end_plainly};
    brg_seed(11);
    assert_brg_ok(brg_params_create(&m->params));
    for (int i = 0; i < N_PARAMS; i++) {
        char name[8];
        m->p[i] = brg_retain(
            there(brg_randn(BRG_DTYPE_F32, shapes[i][1] ? 2 : 1, shapes[i])));
        assert_brg_ok(brg_set_requires_grad(m->p[i], true));
        snprintf(name, sizeof name, "p%d", i);
        assert_brg_ok(
            brg_params_add(m->params, name, m->p[i], BRG_PARAM_TRAINED));
    }
    m->seen = brg_retain(there(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3))));
    if (is_adamw) {
        brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
        assert_brg_ok(brg_optim_create_adamw(&m->optim, m->params, &adamw));
    } else {
        brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
        sgd.lr = 0.1;
        sgd.momentum = 0.9;
        assert_brg_ok(brg_optim_create_sgd(&m->optim, m->params, &sgd));
    }
}

static inline void model_free(model *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    for (int i = 0; i < N_PARAMS; i++)
        brg_release(m->p[i]);
    brg_release(m->seen);
}

/* in: x (n, 5) and y (n, 3). */
static inline brg_status step(brg_tensor *const *in, size_t n_in,
                              brg_tensor **out, size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    if (m->zeroes_first)
        BRG_TRY(brg_optim_zero_grad(m->optim, false));
    brg_tensor *h = brg_relu(brg_linear(in[0], m->p[0], m->p[1]));
    if (m->dropout > 0)
        h = brg_dropout(h, m->dropout, true);
    brg_tensor *y = brg_linear(h, m->p[2], m->p[3]);
    out[0] = brg_mean_all(brg_square(brg_sub(y, in[1])));
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_add_(m->seen, brg_sum(brg_detach(y), 1, (int[]){0}, false), 1));
    BRG_TRY(m->end(m));
    if (m->zeroes_first ||
        (m->end == end_at_every_other && m->n_steps % 2 == 0))
        return BRG_OK;
    return brg_optim_zero_grad(m->optim, m->keeps);
}

/* ---- Runs of it -------------------------------------------------------------------- */

typedef struct history {
    float loss[N_STEPS];
    double norm[N_STEPS]; /* of the reducer's gradients */
    int bad[N_STEPS];     /* 1 + the parameter whose gradient was not finite */
    float end[256];
    size_t n;
    uint64_t n_skipped; /* steps */
} history;

static inline void read_one(history *h, brg_tensor *of)
{
    brg_tensor *t = assert_brg_some(brg_to(
        of->dtype == BRG_DTYPE_F32 ? of : brg_cast(of, BRG_DTYPE_F32), HOME));
    assert_true(h->n + (size_t)brg_tensor_numel(t) <= 256);
    memcpy(h->end + h->n, brg_tensor_data(t), brg_tensor_nbytes(t));
    h->n += (size_t)brg_tensor_numel(t);
}

static inline void read_all(history *h, const model *m)
{
    brg_tensor *tensors[N_PARAMS + 1] = {m->p[0], m->p[1], m->p[2], m->p[3],
                                         m->seen};
    h->n = 0;
    for (int i = 0; i <= N_PARAMS; i++)
        read_one(h, tensors[i]);
    h->n_skipped = brg_optim_n_skipped(m->optim);
    assert_int_equal(h->n_skipped, m->may_skip);
    for (size_t i = 0; i < brg_comm_hook_state_count(m->hook); i++)
        read_one(h, brg_comm_hook_state_at(m->hook, i)->tensor);
}

#define BAD_STEP 5 /* is launched */

static inline void look(const model *m, int k, history *h)
{
    brg_finite_info info;
    h->norm[k] = brg_reducer_grad_norm(brg_ddp_reducer(m->ddp));
    if (!brg_ddp_grads_finite(m->ddp, &info))
        h->bad[k] = 1 + (int)info.param;
    assert_int_equal(info.n_ranks, h->bad[k] > 0);
    assert_int_equal(h->bad[k] > 0, k == BAD_STEP);
    assert_int_equal(isfinite(h->norm[k]) != 0, k != BAD_STEP);
}

static inline void one_step(model *m, brg_compiled *compiled, int k, int n,
                            history *h)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[2], *out = NULL;
    double loss;
    brg_seed(100 + (uint64_t)k);
    in[0] = there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, 5)));
    in[1] = there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, 3)));
    if ((m->looks || m->may_skip) && k == BAD_STEP)
        in[1] = there(brg_full(BRG_DTYPE_F32, BRG_SHAPE(n, 3), INFINITY));
    assert_brg_ok(brg_optim_set_lr(m->optim, 0.1 / (1 + k)));
    assert_brg_ok(compiled ? brg_compiled_call(compiled, in, 2, &out, 1)
                           : step(in, 2, &out, 1, m));
    assert_brg_ok(brg_tensor_item(out, &loss));
    h->loss[k] = (float)loss;
    if (m->looks)
        look(m, k, h);
    brg_scope_end(scope);
}

static inline brg_compiled *compile(model *m)
{
    brg_compiled *compiled;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    assert_brg_ok(brg_compiled_create(&compiled, step, m, &options));
    return compiled;
}

/* Over this group, which the model owns. */
static inline void distribute(model *m, brg_pg *pg, brg_ddp_buffers sync)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    options.sync_buffers = sync;
    options.check_finite = m->looks || m->may_skip;
    options.measure_norm = m->looks;
    options.hook = m->hook;
    m->pg = pg;
    assert_brg_ok(
        brg_ddp_create(&m->ddp, m->pg, m->p, N_PARAMS, &m->seen, 1, &options));
    if (m->may_skip)
        assert_brg_ok(
            brg_optim_set_found_inf(m->optim, brg_ddp_found_inf(m->ddp)));
}

static inline void end_distribution(model *m)
{
    brg_reducer_stats stats;
    if (!m->ddp)
        return;
    assert_brg_ok(brg_ddp_confirm(m->ddp));
    brg_ddp_get_stats(m->ddp, &stats);
    assert_int_equal(stats.n_steps, N_STEPS);
    assert_true(stats.n_buckets > 1);
    brg_ddp_destroy(m->ddp);
    brg_comm_hook_destroy(m->hook);
    brg_pg_destroy(m->pg);
}

typedef struct variant {
    bool is_adamw, zeroes_first, has_ddp, looks, may_skip;
    bool is_on_host; /* the group of the ddp */
    brg_ddp_buffers sync;
    double dropout;
    brg_status (*end)(model *m);
    brg_status (*hook)(brg_comm_hook **out); /* with has_ddp; or NULL */
} variant;

static inline void run(const variant *v, bool is_compiled, history *h)
{
    model m;
    brg_scope *scope = brg_scope_begin();
    model_make(&m, v->is_adamw);
    m.zeroes_first = v->zeroes_first;
    m.dropout = v->dropout;
    m.looks = v->looks;
    m.may_skip = v->may_skip;
    m.end = v->end ? v->end : end_plainly;
    if (v->hook)
        assert_brg_ok(v->hook(&m.hook));
    if (v->has_ddp)
        distribute(&m, v->is_on_host ? group_here() : group_there(), v->sync);
    brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
    memset(h, 0, sizeof *h);
    for (int k = 0; k < N_STEPS; k++)
        one_step(&m, compiled, k, 4, h);
    read_all(h, &m);
    brg_compiled_destroy(compiled);
    end_distribution(&m);
    model_free(&m);
    brg_scope_end(scope);
}

/* Eager and compiled alike; the counts of what was compiled. */
static inline brg_compile_stats check(const variant *v)
{
    static history eager, launched;
    int64_t before = seen.n_blocks;
    assert_brg_ok(brg_compile_reset());
    run(v, false, &eager);
    run(v, true, &launched);
    assert_memory_equal(&eager, &launched, sizeof eager);
    assert_true(eager.loss[0] != eager.loss[N_STEPS - 1]);
    assert_int_equal(seen.n_blocks, before);
    assert_int_equal(compile_stats().function_fallbacks, 0);
    return compile_stats();
}

static inline int register_recording_device(void **state)
{
    (void)state;
    return brg_device_register(BRG_DEVICE_CUDA, &recording_device);
}

#endif
