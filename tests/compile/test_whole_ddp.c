/* SPDX-License-Identifier: Apache-2.0
 * What of a ddp, a reducer or an averager a captured function may not do by
 * itself: a plan would do it once and never again. It is named, and done at
 * every call by a function that runs in pieces. */
#include <brigade/average.h>
#include <brigade/comm.h>
#include <brigade/ddp.h>
#include <brigade/optim.h>
#include <brigade/recover.h>
#include <brigade/shard.h>

#include <math.h>

#include "core/base/error.h"
#include "tests/compile/chains.h"

typedef struct world {
    brg_pg *pg;
    brg_tensor *w;
    brg_params *params;
    brg_ddp *ddp;
    brg_averager *averager;
    brg_optim *optim;
    brg_optim_range range;
    brg_status (*asks)(struct world *v);
    bool may_skip; /* updates with gradients that are not finite */
} world;

static void make(world *v, bool is_sharded)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    options.measure_norm = true;
    options.check_finite = !is_sharded;
    options.shard = is_sharded;
    sgd.lr = 0.125;
    sgd.momentum = 0.5;
    assert_brg_ok(brg_pg_create_self(&v->pg));
    v->w = leaf_from(1, BRG_SHAPE(2, 3));
    assert_brg_ok(brg_params_create(&v->params));
    assert_brg_ok(brg_params_add(v->params, "w", v->w, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_ddp_create(&v->ddp, v->pg, &v->w, 1, NULL, 0, &options));
    if (is_sharded)
        assert_brg_ok(brg_ddp_shard(v->ddp, v->params, &v->range, 1));
    sgd.ranges = is_sharded ? &v->range : NULL;
    assert_brg_ok(brg_optim_create_sgd(&v->optim, v->params, &sgd));
    assert_brg_ok(brg_averager_create(&v->averager, v->pg, &v->w, 1, NULL));
}

static void unmake(world *v)
{
    brg_averager_destroy(v->averager);
    brg_optim_destroy(v->optim);
    brg_ddp_destroy(v->ddp);
    brg_params_destroy(v->params);
    brg_pg_destroy(v->pg);
}

static brg_status steps(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                        size_t n_out, void *user)
{
    world *v = user;
    (void)n_in;
    (void)n_out;
    out[0] = brg_sum_all(brg_sin(brg_mul(in[0], v->w)));
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(v->asks(v));
    BRG_TRY(brg_optim_step(v->optim));
    if (v->range.n > 0) {
        BRG_TRY(brg_ddp_gather_params(v->ddp));
        BRG_TRY(brg_ddp_wait_params(v->ddp, NULL));
    }
    return brg_optim_zero_grad(v->optim, false);
}

/* ---- What it asks --------------------------------------------------------------- */

static brg_status nothing(world *v)
{
    (void)v;
    return BRG_OK;
}

static brg_status clips(world *v)
{
    double norm;
    return brg_ddp_clip_grad_norm(v->ddp, 0.5, &norm);
}

static brg_status looks_whether_finite(world *v)
{
    if (!brg_ddp_grads_finite(v->ddp, NULL))
        return BRG_FAIL(BRG_ERR_STATE, "not finite");
    return BRG_OK;
}

static brg_status averages(world *v)
{
    bool was_averaged;
    return brg_averager_step(v->averager, &was_averaged);
}

static brg_status compares(world *v)
{
    return brg_ddp_compare(v->ddp);
}

static brg_status sends_buffers(world *v)
{
    return brg_ddp_sync_buffers(v->ddp);
}

static brg_status confirms(world *v)
{
    return brg_ddp_confirm(v->ddp);
}

static brg_status refreshes(world *v)
{
    return brg_ddp_refresh(v->ddp);
}

/* ---- Checks ----------------------------------------------------------------------- */

enum { N_CALLS = 4, BAD_CALL = 2 };

static void train(world *v, brg_compiled *c, double *w)
{
    brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(2, 3), 0.25), *y;
    if (v->may_skip)
        assert_brg_ok(
            brg_optim_set_found_inf(v->optim, brg_ddp_found_inf(v->ddp)));
    for (int i = 0; i < N_CALLS; i++) {
        const bool is_bad = v->may_skip && i == BAD_CALL;
        assert_brg_ok(brg_fill_(x, is_bad ? INFINITY : 0.25));
        assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &y, 1)
                        : steps(&x, 1, &y, 1, v));
    }
    for (int i = 0; i < 6; i++)
        w[i] = element(v->w, i);
}

static void check(brg_status (*asks)(world *), bool is_sharded,
                  const char *name)
{
    double weights[2][6];
    for (int k = 0; k < 2; k++) {
        world v = {.asks = asks};
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_compiled *c = NULL;
        brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(2, 3), 0.25), *y;
        make(&v, is_sharded);
        options.whole = options.fullgraph = true;
        if (k && name) {
            assert_brg_ok(brg_compiled_create(&c, steps, &v, &options));
            assert_brg_fails_with(brg_compiled_call(c, &x, 1, &y, 1),
                                  BRG_ERR_UNSUPPORTED, name);
            brg_compiled_destroy(c);
            options.fullgraph = false;
        }
        if (k)
            assert_brg_ok(brg_compiled_create(&c, steps, &v, &options));
        train(&v, c, weights[k]);
        assert_int_equal(brg_averager_count(v.averager),
                         asks == averages ? N_CALLS : 0);
        brg_compiled_destroy(c);
        unmake(&v);
    }
    assert_memory_equal(weights[0], weights[1], sizeof weights[0]);
}

static void test_whole_ddp__what_a_plan_would_not_repeat(void **state)
{
    (void)state;
    check(nothing, false, NULL); /* the step itself is captured */
    check(clips, false, "brg_ddp_clip_grad_norm");
    check(looks_whether_finite, false, "brg_reducer_grads_finite");
    check(averages, false, "brg_averager_step");
    check(compares, false, "brg_ddp_compare");
    check(sends_buffers, false, "brg_ddp_sync_buffers");
    check(confirms, false, "brg_ddp_confirm");
    check(refreshes, false, "brg_ddp_refresh");
}

/* The plan's update knows what became of its backward. */
static void test_whole_ddp__a_bad_update_is_left_out(void **state)
{
    (void)state;
    double weights[2][6];
    for (int k = 0; k < 2; k++) {
        world v = {.asks = nothing, .may_skip = true};
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_compiled *c = NULL;
        options.whole = options.fullgraph = true;
        make(&v, false);
        if (k)
            assert_brg_ok(brg_compiled_create(&c, steps, &v, &options));
        train(&v, c, weights[k]);
        assert_int_equal(brg_optim_n_skipped(v.optim), 1);
        brg_compiled_destroy(c);
        unmake(&v);
    }
    assert_true(isfinite(weights[0][0]));
    assert_memory_equal(weights[0], weights[1], sizeof weights[0]);
}

static void test_whole_ddp__sharded_state(void **state)
{
    (void)state;
    check(nothing, true, "brg_ddp_gather_params");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_whole_ddp__what_a_plan_would_not_repeat),
        scoped_test(test_whole_ddp__a_bad_update_is_left_out),
        scoped_test(test_whole_ddp__sharded_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
