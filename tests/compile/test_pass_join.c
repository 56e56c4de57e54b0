/* SPDX-License-Identifier: Apache-2.0
 * Clipping by norm and the optimizer's step as one, where the gradients are
 * dropped right behind: the pass; and steps of a model whose gradients are known,
 * on the CPU and on a device made for tests, launched and not. */
#include <brigade/brigade.h>

#include "core/base/tracer.h"
#include "tests/compile/ir_build.h"
#include "tests/rows/both.h"
#include "tests/support/device_group.h"
#include "tests/support/recording_device.h"

/* ---- The pass ------------------------------------------------------------------- */

static bool joins_those(const brg__effect *effect, brg__effect *next,
                        const brg__effect *last)
{
    if (next->object != effect->object || last->object != effect->object)
        return false;
    next->name = "both";
    return true;
}

static void put_effect(brg__ir *ir, brg__effect *effect)
{
    ir_node(ir,
            (brg__ir_node){.kind = BRG__IR_EFFECT,
                           .effect = effect,
                           .lifted = NO,
                           .visit = NO},
            0, NULL, 0);
}

/* What stands between them is `between`: nothing, an op or an effect. */
static void check_pass(int between, int object, const char *text)
{
    int objects[2];
    brg__effect other = {.name = "other"};
    brg__effect first = {
        .name = "first", .joins = joins_those, .object = &objects[0]};
    brg__effect next = {.name = "next", .object = &objects[0]};
    brg__effect last = {.name = "last", .object = &objects[object]};
    brg__ir ir = {0};
    const int x = ir_input(&ir);
    put_effect(&ir, &first);
    if (between == 1)
        ir_op(&ir, "sin", IN(x));
    if (between == 2)
        put_effect(&ir, &other);
    put_effect(&ir, &next);
    put_effect(&ir, &last);
    assert_brg_ok(brg__pass_join(&ir));
    expect_plan(&ir, text);
    brg__ir_deinit(&ir);
}

static void test_pass_join__neighbours(void **state)
{
    (void)state;
    check_pass(0, 0, "both()\nlast()\n");
    check_pass(0, 1, "first()\nnext()\nlast()\n");
    check_pass(1, 0, "first()\nv1 f32/2 = sin(in0)\nnext()\nlast()\n");
    check_pass(2, 0, "first()\nother()\nnext()\nlast()\n");
}

/* ---- A model --------------------------------------------------------------------- */

#define N 5       /* elements of each parameter */
#define N_STEPS 8 /* the first three are not launched */

typedef struct model {
    brg_tensor *p[3]; /* loss = sum p[0] x[0] + sum p[1] x[1] */
    brg_tensor *sum;
    brg_params *params, *fewer;
    brg_optim *optim, *other;
    brg_pg *pg;
    brg_ddp *ddp;
    enum how {
        DROPPED,    /* clip, step, drop: done at once */
        KEPT,       /* the gradients become zeros instead */
        DROPS_LATE, /* before the next step */
        ASKS,       /* for finite gradients */
        FEWER,      /* only p[0] is clipped */
        BETWEEN,    /* something else changes in between */
        OF_OTHERS   /* another optimizer drops its own */
    } how;
} model;

static const double max_norms[2] = {1.5, 1000}; /* below and above the norm */

typedef struct variant {
    enum how how;
    bool is_adamw, is_here, has_ddp, is_tied;
    int max; /* which of them */
} variant;

static double max_norm_of_run;

static brg_status end(const model *m, brg_tensor *x)
{
    const brg_params *clipped = m->how == FEWER ? m->fewer : m->params;
    BRG_TRY(brg_clip_grad_norm(NULL, clipped, max_norm_of_run, m->how == ASKS));
    if (m->how == BETWEEN)
        BRG_TRY(brg_add_(m->sum, x, 1));
    BRG_TRY(brg_optim_step(m->optim));
    if (m->how == DROPS_LATE)
        return BRG_OK;
    return brg_optim_zero_grad(m->how == OF_OTHERS ? m->other : m->optim,
                               m->how == KEPT);
}

static brg_status step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    if (m->how == DROPS_LATE || m->how == OF_OTHERS)
        BRG_TRY(brg_optim_zero_grad(m->optim, false));
    out[0] = brg_add(brg_sum_all(brg_mul(m->p[0], in[0])),
                     brg_sum_all(brg_mul(m->p[1], in[1])));
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    return end(m, in[0]);
}

static brg_optim *make_optim(bool is_adamw, const brg_params *params)
{
    brg_optim *optim;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.lr = 0.25;
    adamw.lr = 0.25;
    assert_brg_ok(is_adamw ? brg_optim_create_adamw(&optim, params, &adamw)
                           : brg_optim_create_sgd(&optim, params, &sgd));
    return optim;
}

static void distribute(model *m)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    m->pg = group_there();
    assert_brg_ok(brg_ddp_create(&m->ddp, m->pg, m->p, 2, NULL, 0, &options));
}

static brg_tensor *placed(brg_tensor *t, const variant *v)
{
    return v->is_here ? t : assert_brg_some(brg_to(t, THERE));
}

static void model_make(model *m, const variant *v)
{
    *m = (model){.how = v->how};
    assert_brg_ok(brg_params_create(&m->params));
    assert_brg_ok(brg_params_create(&m->fewer));
    brg_params *others;
    m->sum = brg_retain(placed(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(N)), v));
    assert_brg_ok(brg_params_create(&others));
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"a", "b", "c"};
        m->p[i] = brg_retain(
            placed(brg_full(BRG_DTYPE_F32, BRG_SHAPE(N), 1.0 + i), v));
        assert_brg_ok(brg_params_add(i < 2 ? m->params : others, names[i],
                                     m->p[i], BRG_PARAM_TRAINED));
    }
    assert_brg_ok(brg_params_add(m->fewer, "a", m->p[0], BRG_PARAM_TRAINED));
    if (v->is_tied)
        assert_brg_ok(
            brg_params_add(m->params, "again", m->p[0], BRG_PARAM_TRAINED));
    m->optim = make_optim(v->is_adamw, m->params);
    m->other = make_optim(false, others);
    brg_params_destroy(others);
    if (v->has_ddp)
        distribute(m);
}

static void model_free(model *m)
{
    brg_optim_destroy(m->optim);
    brg_optim_destroy(m->other);
    brg_ddp_destroy(m->ddp);
    brg_pg_destroy(m->pg);
    brg_params_destroy(m->params);
    brg_params_destroy(m->fewer);
    brg_release(m->sum);
    for (int i = 0; i < 3; i++)
        brg_release(m->p[i]);
}

/* The gradient of p[i][j] in step k, before it is clipped. */
static float gradient(int k, int i, int j)
{
    return (float)((i ? 0.5 : 1.0) + 0.125 * ((k * 5 + i * 3 + j * 7) % 11));
}

typedef struct result {
    float p[2][N];
} result;

static brg_compiled *compile(model *m, const variant *v)
{
    brg_compiled *compiled;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = true;
    options.replay = !v->is_here;
    assert_brg_ok(brg_compiled_create(&compiled, step, m, &options));
    return compiled;
}

static void one_step(model *m, const variant *v, brg_compiled *compiled, int k)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[2], *out;
    for (int i = 0; i < 2; i++) {
        in[i] = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(N));
        for (int j = 0; j < N; j++)
            ((float *)brg_tensor_data(in[i]))[j] = gradient(k, i, j);
        in[i] = placed(in[i], v);
    }
    assert_brg_ok(compiled ? brg_compiled_call(compiled, in, 2, &out, 1)
                           : step(in, 2, &out, 1, m));
    brg_scope_end(scope);
}

static void run(const variant *v, bool is_compiled, result *got)
{
    model m;
    brg_scope *scope = brg_scope_begin();
    max_norm_of_run = max_norms[v->max];
    model_make(&m, v);
    brg_compiled *compiled = is_compiled ? compile(&m, v) : NULL;
    for (int k = 0; k < N_STEPS; k++)
        one_step(&m, v, compiled, k);
    for (int i = 0; i < 2; i++)
        assert_brg_ok(brg_tensor_read(m.p[i], got->p[i], sizeof got->p[i]));
    brg_compiled_destroy(compiled);
    model_free(&m);
    brg_scope_end(scope);
}

/* ---- What comes out ----------------------------------------------------------------- */

/* SGD in f64, from the formulas of optim.h. */
static void check_sgd(const variant *v, const result *got)
{
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < N; j++) {
            double p = 1.0 + i;
            for (int k = 0; k < N_STEPS; k++) {
                double squares = 0;
                for (int a = 0; a < (v->how == FEWER ? 1 : 2); a++)
                    for (int b = 0; b < N; b++)
                        squares += pow((double)gradient(k, a, b), 2);
                double by = max_norms[v->max] / (sqrt(squares) + 1e-6);
                by = by > 1 || (v->how == FEWER && i == 1) ? 1 : by;
                p -= 0.25 * by * (double)gradient(k, i, j);
            }
            if (fabs((double)got->p[i][j] - p) > 1e-5)
                fail_msg("p[%d][%d] is %.9g, expected %.9g", i, j,
                         (double)got->p[i][j], p);
        }
}

/* Compiled steps have the bits of eager ones; whether they were joined. */
static void check(const variant *v, bool is_joined)
{
    result eager, compiled;
    const int64_t before = seen.n_blocks;
    assert_brg_ok(brg_compile_reset());
    run(v, false, &eager);
    n_clips = n_factors = 0;
    run(v, true, &compiled);
    assert_memory_equal(&eager, &compiled, sizeof eager);
    if (!v->is_adamw && !v->is_tied)
        check_sgd(v, &compiled);
    assert_int_equal(seen.n_blocks, before);
    assert_int_equal(n_factors > 0, is_joined);
    assert_int_equal(n_clips > 0, !v->is_here && !is_joined);
    assert_int_equal(compile_stats().function_fallbacks, 0);
    if (is_joined)
        assert_int_equal(compile_stats().replay_launches, N_STEPS - 3);
}

static void test_join__gradients_that_are_dropped(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++)
        check(
            &(variant){.is_adamw = i & 1, .max = i >> 1 & 1, .has_ddp = i >> 2},
            true);
}

static void test_join__on_the_cpu(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        check(&(variant){.is_here = true, .is_adamw = i & 1, .max = i >> 1},
              false);
}

/* Somebody may look at the gradients, or they are not all clipped. */
static void test_join__not_where_it_could_be_seen(void **state)
{
    (void)state;
    for (int how = KEPT; how <= OF_OTHERS; how++)
        for (int i = 0; i < 2; i++)
            check(&(variant){.how = (enum how)how, .has_ddp = i}, false);
}

/* One parameter under two names is scaled twice. */
static void test_join__not_of_tied_parameters(void **state)
{
    (void)state;
    check(&(variant){.is_tied = true}, false);
}

/* ---- Who holds a gradient ------------------------------------------------------------ */

/* What is held shows clipped gradients of step k, as behind an eager one. */
static void check_held(brg_tensor *const held[2], int k)
{
    double squares = 0;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < N; j++)
            squares += pow((double)gradient(k, i, j), 2);
    const double by = max_norms[0] / (sqrt(squares) + 1e-6);
    assert_true(by < 0.9);
    for (int i = 0; i < 2; i++) {
        float g[N];
        assert_brg_ok(brg_tensor_read(held[i], g, sizeof g));
        for (int j = 0; j < N; j++)
            assert_true(fabs((double)g[j] - by * (double)gradient(k, i, j)) <
                        1e-6);
    }
}

/* Memory of a bucket that is handed out, then dropped, or an alias of it; or a
 * gradient that is there before the step, which is added to it. */
static void test_join__not_what_is_held(void **state)
{
    (void)state;
    for (int c = 0; c < 3; c++) {
        const bool has_ddp = c > 0, is_alias = c > 1;
        const variant v = {.has_ddp = has_ddp};
        model m;
        brg_tensor *held[2];
        brg_scope *scope = brg_scope_begin();
        max_norm_of_run = max_norms[0];
        model_make(&m, &v);
        brg_compiled *compiled = compile(&m, &v);
        for (int k = 0; k < 5; k++)
            one_step(&m, &v, compiled, k);
        brg_tensor *some = brg_add(m.p[0], m.p[1]);
        assert_brg_ok(brg_backward(brg_sum_all(some)));
        if (!has_ddp)
            assert_brg_ok(brg_optim_zero_grad(m.optim, true));
        for (int i = 0; i < 2; i++)
            held[i] = brg_retain(is_alias ? brg_detach(brg_tensor_grad(m.p[i]))
                                          : brg_tensor_grad(m.p[i]));
        if (has_ddp)
            assert_brg_ok(brg_optim_zero_grad(m.optim, false));
        n_clips = n_factors = 0;
        for (int k = 0; k < (has_ddp ? 4 : 1); k++) {
            one_step(&m, &v, compiled, k);
            check_held(held, k);
        }
        assert_int_equal(n_clips > 0, true);
        assert_int_equal(n_factors, 0);
        for (int i = 0; i < 2; i++)
            brg_release(held[i]);
        brg_compiled_destroy(compiled);
        model_free(&m);
        brg_scope_end(scope);
    }
}

static int group_setup(void **state)
{
    (void)state;
    return brg_device_register(BRG_DEVICE_CUDA, &recording_device) == BRG_OK
               ? 0
               : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_pass_join__neighbours),
        scoped_test(test_join__gradients_that_are_dropped),
        scoped_test(test_join__on_the_cpu),
        scoped_test(test_join__not_where_it_could_be_seen),
        scoped_test(test_join__not_of_tied_parameters),
        scoped_test(test_join__not_what_is_held),
    };
    return cmocka_run_group_tests_name("join", tests, group_setup, NULL);
}
