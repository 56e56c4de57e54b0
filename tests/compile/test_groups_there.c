/* SPDX-License-Identifier: Apache-2.0
 * Plans on a device that compiles: their groups run as its kernels, in functions,
 * backwards, steps and steps that are launched again; where kernels cannot be
 * made, loaded or launched, their ops run one by one, which is said once. */
#include <brigade/brigade.h>

#include "compile/fuse/cuda_group.h"
#include "tests/compile/cuda_chain.h"
#include "tests/compile/kernel_cache.h"
#include "tests/rows/both.h"
#include "tests/support/compiling_device.h"
#include "tests/support/device_group.h"

#define N_STEPS 8
#define N_P 6

static int fresh(void **state)
{
    (void)state;
    fresh_kernel_cache();
    memset(&compiling, 0, sizeof compiling);
    return brg_compile_reset() == BRG_OK && brg_device_set(THERE) == BRG_OK
               ? 0
               : -1;
}

static int clean(void **state)
{
    (void)state;
    return brg_device_set(HOME) == BRG_OK && brg_compile_reset() == BRG_OK
               ? remove_kernel_cache()
               : -1;
}

#define there_test(fn) cmocka_unit_test_setup_teardown(fn, fresh, clean)

/* ---- A small model ------------------------------------------------------------------ */

typedef struct model {
    brg_tensor *p[N_P];
    brg_params *params;
    brg_optim *optim;
    brg_pg *pg; /* or NULL */
    brg_ddp *ddp;
} model;

static void model_init(model *m, bool has_ddp)
{
    static const int64_t shapes[N_P][2] = {{16, 8}, {16, 0}, {8, 16},
                                           {8, 0},  {16, 0}, {16, 0}};
    memset(m, 0, sizeof *m);
    brg_seed(11);
    assert_brg_ok(brg_params_create(&m->params));
    for (int i = 0; i < N_P; i++) {
        char name[8];
        m->p[i] = brg_retain(assert_brg_some(
            brg_randn(BRG_DTYPE_F32, shapes[i][1] ? 2 : 1, shapes[i])));
        assert_brg_ok(brg_set_requires_grad(m->p[i], true));
        snprintf(name, sizeof name, "p%d", i);
        assert_brg_ok(
            brg_params_add(m->params, name, m->p[i], BRG_PARAM_TRAINED));
    }
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    assert_brg_ok(brg_optim_create_adamw(&m->optim, m->params, &adamw));
    if (!has_ddp)
        return;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 100;
    m->pg = group_there();
    assert_brg_ok(brg_ddp_create(&m->ddp, m->pg, m->p, N_P, NULL, 0, &options));
}

/* Bytes of gradients that were copied into their buckets by the last step. */
static uint64_t model_deinit(model *m)
{
    brg_reducer_stats stats = {0};
    if (m->ddp) {
        assert_brg_ok(brg_ddp_confirm(m->ddp));
        brg_ddp_get_stats(m->ddp, &stats);
        assert_int_equal(stats.n_steps, N_STEPS);
        assert_true(stats.n_buckets > 1);
        brg_ddp_destroy(m->ddp);
        brg_pg_destroy(m->pg);
    }
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    for (int i = 0; i < N_P; i++)
        brg_release(m->p[i]);
    return stats.n_packed_bytes;
}

/* Chains before and behind the layers; the bias' gradients are sums over what a
 * group makes. */
static brg_tensor *forward(const model *m, brg_tensor *x)
{
    brg_tensor *h = brg_linear(x, m->p[0], m->p[1]);
    h = brg_relu(brg_add_scalar(brg_mul(h, h), -0.5));
    h = brg_layer_norm(h, m->p[4], m->p[5], 1, 1e-5);
    h = brg_linear(h, m->p[2], m->p[3]);
    h = brg_relu(brg_sub(h, brg_mul_scalar(brg_abs(h), 0.25)));
    return brg_mean(brg_mul(h, h), BRG_ALL_DIMS, false);
}

static brg_status step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    const model *m = user;
    (void)n_in;
    (void)n_out;
    out[0] = forward(m, in[0]);
    BRG_TRY(out[0] ? brg_backward(out[0]) : brg_error_code());
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

typedef struct outcome {
    double losses[N_STEPS];
    float p[N_P][128];
    brg_compile_stats stats;
    uint64_t n_packed_bytes;
} outcome;

typedef enum way { EAGER, BACKWARD, STEP, LAUNCHED, N_WAYS } way;

static void train(outcome *o, way w, bool has_ddp)
{
    model m;
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = true;
    options.backend = BRG_COMPILE_BACKEND_FUSED;
    options.whole = w >= STEP;
    options.replay = w == LAUNCHED;
    memset(o, 0, sizeof *o);
    brg_scope *all = brg_scope_begin();
    model_init(&m, has_ddp);
    if (w != EAGER)
        assert_brg_ok(brg_compiled_create(&compiled, step, &m, &options));
    for (int i = 0; i < N_STEPS; i++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *out;
        brg_seed(100 + (uint64_t)i);
        brg_tensor *x = assert_brg_some(
            brg_randn(BRG_DTYPE_F32, BRG_SHAPE(i == 5 ? 40 : 24, 8)));
        assert_brg_ok(compiled ? brg_compiled_call(compiled, &x, 1, &out, 1)
                               : step(&x, 1, &out, 1, &m));
        assert_brg_ok(brg_tensor_item(out, &o->losses[i]));
        brg_scope_end(scope);
    }
    for (int i = 0; i < N_P; i++) {
        assert_brg_ok(brg_tensor_read(m.p[i], o->p[i],
                                      (size_t)m.p[i]->numel * sizeof(float)));
    }
    brg_compile_get_stats(&o->stats);
    brg_compiled_destroy(compiled);
    o->n_packed_bytes = model_deinit(&m);
    brg_scope_end(all);
}

static double difference(const outcome *a, const outcome *b)
{
    double worst = 0;
    for (int i = 0; i < N_STEPS; i++)
        worst = fmax(worst, fabs(a->losses[i] - b->losses[i]) /
                                (1 + fabs(b->losses[i])));
    for (int i = 0; i < N_P; i++)
        for (int k = 0; k < 128; k++)
            worst = fmax(worst, fabs((double)a->p[i][k] - b->p[i][k]));
    return worst;
}

/* ---- By kernels ---------------------------------------------------------------------- */

/* Sums of f32 on the CPU are not in f64, as those of kernels are. With a reducer
 * gradients are made in their buckets. */
static void check_training(bool has_ddp)
{
    static outcome want, got;
    train(&want, EAGER, has_ddp);
    assert_int_equal(compiling.n_launched, 0);
    assert_int_equal(want.n_packed_bytes, 0);
    for (way w = BACKWARD; w < N_WAYS; w++) {
        assert_brg_ok(brg_compile_reset());
        compiling.n_launched = 0;
        train(&got, w, has_ddp);
        const double off = difference(&got, &want);
        print_message("way %d: off by %g, %d launches of kernels, %d of "
                      "graphs, %d bytes packed, %d by eager steps\n",
                      (int)w, off, compiling.n_launched,
                      (int)got.stats.replay_launches, (int)got.n_packed_bytes,
                      (int)want.n_packed_bytes);
        assert_true(off <= 1e-6);
        assert_true(compiling.n_launched >= (w == LAUNCHED ? 8 : 16));
        assert_int_equal(got.stats.fallbacks, 0);
        assert_string_equal(logged, "");
        if (w == LAUNCHED)
            assert_true(got.stats.replay_launches >= 3);
        else
            assert_int_equal(got.n_packed_bytes, want.n_packed_bytes);
        compiling.n_launched = 0;
    }
    assert_int_equal(compiling.n_loaded, compiling.n_unloaded);
}

static void test_groups_there__training(void **state)
{
    (void)state;
    check_training(false);
}

static void test_groups_there__training_with_a_reducer(void **state)
{
    (void)state;
    check_training(true);
}

static void call_chain(brg_dtype dtype, int64_t rows, int64_t cols,
                       bool is_strided)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *got[2], *want;
    chain_call c;
    chain_begin(&c, dtype, rows, cols, is_strided, &want);
    for (int i = 0; i < 2; i++) {
        compiling.n_launched = 0;
        got[i] = chain_again(&c);
        assert_int_equal(compiling.n_launched, 1);
        assert_memory_equal(brg__tensor_ptr(got[i]), brg__tensor_ptr(want),
                            brg_tensor_nbytes(want));
    }
    chain_end(&c);
    brg_scope_end(scope);
}

static void test_groups_there__a_chain_is_one_launch(void **state)
{
    (void)state;
    for_each_chain(call_chain);
    assert_string_equal(logged, "");
}

/* ---- Devices that fail --------------------------------------------------------------- */

static void expect_one_by_one(bool *fault, const char *why)
{
    static outcome want, got;
    train(&want, EAGER, false);
    for (way w = BACKWARD; w < N_WAYS; w++) {
        assert_brg_ok(brg_compile_reset());
        logged[0] = '\0';
        *fault = true;
        compiling.n_launched = 0;
        train(&got, w, false);
        *fault = false;
        assert_int_equal(compiling.n_launched, 0);
        assert_true(difference(&got, &want) <= 1e-6);
        assert_int_equal(got.stats.fallbacks, 0);
        if (brg_test_count(logged, "run one by one on cuda:0") != 1)
            print_error("%s\n", logged);
        assert_int_equal(brg_test_count(logged, "run one by one on cuda:0"), 1);
        assert_non_null(strstr(logged, why));
        if (w == LAUNCHED)
            assert_true(got.stats.replay_launches >= 3);
    }
    /* it is not tried again before a reset, but then it is */
    assert_brg_ok(brg_compile_reset());
    train(&got, STEP, false);
    assert_true(compiling.n_launched > 0);
}

static void test_groups_there__no_compiler(void **state)
{
    (void)state;
    expect_one_by_one(&compiling.is_missing, "there is no compiler");
}

static void test_groups_there__a_source_is_refused(void **state)
{
    (void)state;
    expect_one_by_one(&compiling.refuses, "error: the test says so");
}

static void test_groups_there__a_compiler_is_too_slow(void **state)
{
    (void)state;
    assert_int_equal(setenv("BRG_COMPILE_TIMEOUT_S", "0.25", 1), 0);
    expect_one_by_one(&compiling.is_slow, "it took longer than 0.25 s");
    assert_true(compiling.seconds == 0.25);
    assert_int_equal(unsetenv("BRG_COMPILE_TIMEOUT_S"), 0);
}

static void test_groups_there__a_binary_cannot_be_loaded(void **state)
{
    (void)state;
    expect_one_by_one(&compiling.cannot_load, "that is no good");
}

static void test_groups_there__a_kernel_cannot_be_launched(void **state)
{
    (void)state;
    expect_one_by_one(&compiling.cannot_launch, "too many resources");
}

/* The default backend makes no kernels. */
static void test_groups_there__other_backends(void **state)
{
    brg_tensor *want;
    chain_call c;
    (void)state;
    brg_scope *scope = brg_scope_begin();
    chain_begin_with(&c, BRG_COMPILE_BACKEND_DEFAULT, BRG_DTYPE_F32, 4, 4,
                     false, &want);
    (void)chain_again(&c);
    assert_int_equal(compiling.n_launched + compiling.n_compiled, 0);
    chain_end(&c);
    brg_scope_end(scope);
}

int main(void)
{
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, compiling_device()));
    const struct CMUnitTest tests[] = {
        there_test(test_groups_there__training),
        there_test(test_groups_there__training_with_a_reducer),
        there_test(test_groups_there__a_chain_is_one_launch),
        there_test(test_groups_there__no_compiler),
        there_test(test_groups_there__a_source_is_refused),
        there_test(test_groups_there__a_compiler_is_too_slow),
        there_test(test_groups_there__a_binary_cannot_be_loaded),
        there_test(test_groups_there__a_kernel_cannot_be_launched),
        there_test(test_groups_there__other_backends),
    };
    return cmocka_run_group_tests_name("groups_there", tests, NULL, NULL);
}
