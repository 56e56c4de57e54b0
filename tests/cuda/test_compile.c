/* SPDX-License-Identifier: Apache-2.0
 * Compiled training on one GPU has the bits of eager training there: backwards
 * and whole steps, op by op, and steps recorded as CUDA graphs; and such a step
 * makes the host wait for nothing and takes nothing from the driver. */
#include "tests/cuda/steps.h"

static void check_shape(kind k, brg_dtype dtype, const model_options *shape)
{
    static outcome want, got;
    for (way w = EAGER; w < N_WAYS; w++) {
        outcome *o = w == EAGER ? &want : &got;
        run_way(k, w, dtype, shape, o);
        check_bits(k, w, o, &want);
        check_counts(k, w, o);
    }
}

static void check(kind k, brg_dtype dtype)
{
    check_shape(k, dtype, &plain);
}

static void test_compile__mlp(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_F32);
    check(MLP, BRG_DTYPE_BF16);
}

static void test_compile__cnn(void **state)
{
    (void)state;
    check(CNN, BRG_DTYPE_F32);
}

static void test_compile__gpt(void **state)
{
    (void)state;
    check(GPT, BRG_DTYPE_F32);
    check(GPT, BRG_DTYPE_BF16);
}

static void test_compile__attention_of_long_rows(void **state)
{
    (void)state;
    check_shape(GPT, BRG_DTYPE_BF16, &longer);
    check_shape(GPT, BRG_DTYPE_F32, &longer);
}

/* Each launch draws anew. */
static void test_compile__dropout(void **state)
{
    (void)state;
    check_shape(MLP, BRG_DTYPE_F32, &dropping);
    check_shape(GPT, BRG_DTYPE_F32, &dropping);
    check_shape(GPT, BRG_DTYPE_BF16, &dropping);
}

/* In plans the update scales gradients as it reads them. */
static void test_compile__clipping(void **state)
{
    (void)state;
    clips = true;
    check(MLP, BRG_DTYPE_F32);
    check(MLP, BRG_DTYPE_BF16);
    check(GPT, BRG_DTYPE_F32);
    check(GPT, BRG_DTYPE_BF16);
    clips = false;
}

/* The losses of some steps; as BRG_COMPILE_BACKEND_FUSED, or eager. */
static void run_fused(brg_dtype dtype, bool is_fused, double losses[N_STEPS])
{
    model m;
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    options.backend = BRG_COMPILE_BACKEND_FUSED;
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_device_set(GPU));
    model_init(&m, GPT, dtype, &plain);
    assert_brg_ok(brg_compile_reset());
    if (is_fused)
        assert_brg_ok(brg_compiled_create(&compiled, run_step, &m, &options));
    for (int step = 0; step < N_STEPS; step++) {
        brg_tensor *in[2], *out = NULL;
        make_data(&m, step, dtype, 0, 1, in);
        assert_brg_ok(compiled ? brg_compiled_call(compiled, in, 2, &out, 1)
                               : run_step(in, 2, &out, 1, &m));
        assert_brg_ok(brg_tensor_item(out, &losses[step]));
    }
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    assert_true(!is_fused || stats.replay_launches > 0);
    brg_compiled_destroy(compiled);
    model_free(&m);
    assert_brg_ok(brg_device_set(CPU));
    brg_scope_end(scope);
}

/* Merged ops round less often: near, not equal. */
static void test_compile__fused_steps_are_near_eager_ones(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16};
    static const double tolerance[] = {1e-5, 3e-2};
    for (int d = 0; d < 2; d++) {
        double want[N_STEPS], got[N_STEPS], worst = 0;
        run_fused(dtypes[d], false, want);
        run_fused(dtypes[d], true, got);
        for (int i = 0; i < N_STEPS; i++)
            worst = fmax(worst, fabs(got[i] / want[i] - 1.0));
        printf("%s: off by %.2g\n", brg_dtype_name(dtypes[d]), worst);
        assert_true(want[N_STEPS - 1] < want[0]);
        assert_true(worst <= tolerance[d]);
    }
}

static void test_compile__a_launched_step_does_not_wait(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        model m;
        const brg_dtype dtype = i % 2 ? BRG_DTYPE_BF16 : BRG_DTYPE_F32;
        brg_scope *scope = brg_scope_begin();
        assert_brg_ok(brg_device_set(GPU));
        model_init(&m, GPT, dtype, &plain);
        clips = i >= 2;
        launch_without_waits(&m, dtype, 0, 1);
        clips = false;
        model_free(&m);
        assert_brg_ok(brg_device_set(CPU));
        brg_scope_end(scope);
    }
}

static brg_status step_with_a_copy(brg_tensor *const *in, size_t n_in,
                                   brg_tensor **out, size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *y = brg_to(brg_to(forward(m, in[0]), CPU), GPU);
    out[0] = brg_cross_entropy(y, in[1]);
    BRG_TRY(out[0] ? brg_backward(out[0]) : brg_error_code());
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

/* Met while the step is recorded: it ends as it would have without. */
static void test_compile__what_cannot_be_recorded(void **state)
{
    (void)state;
    double losses[2][6];
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        brg_compiled *compiled;
        brg_tensor *in[2], *out;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.fullgraph = options.whole = options.replay = true;
        brg_scope *scope = brg_scope_begin();
        assert_brg_ok(brg_device_set(GPU));
        model_init(&m, MLP, BRG_DTYPE_F32, &plain);
        make_data(&m, 0, BRG_DTYPE_F32, 0, 1, in);
        assert_brg_ok(brg_compile_reset());
        assert_brg_ok(
            brg_compiled_create(&compiled, step_with_a_copy, &m, &options));
        for (int step = 0; step < 6; step++) {
            assert_brg_ok(is_compiled
                              ? brg_compiled_call(compiled, in, 2, &out, 1)
                              : step_with_a_copy(in, 2, &out, 1, &m));
            assert_brg_ok(brg_tensor_item(out, &losses[is_compiled][step]));
        }
        brg_compile_stats stats;
        brg_compile_get_stats(&stats);
        assert_int_equal(stats.replay_recordings, is_compiled);
        assert_int_equal(stats.replay_skips, is_compiled);
        assert_int_equal(stats.replay_launches, 0);
        brg_compiled_destroy(compiled);
        model_free(&m);
        assert_brg_ok(brg_device_set(CPU));
        brg_scope_end(scope);
    }
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compile__mlp),
        cmocka_unit_test(test_compile__cnn),
        cmocka_unit_test(test_compile__gpt),
        cmocka_unit_test(test_compile__attention_of_long_rows),
        cmocka_unit_test(test_compile__dropout),
        cmocka_unit_test(test_compile__clipping),
        cmocka_unit_test(test_compile__fused_steps_are_near_eager_ones),
        cmocka_unit_test(test_compile__a_launched_step_does_not_wait),
        cmocka_unit_test(test_compile__what_cannot_be_recorded),
    };
    return cmocka_run_group_tests_name("compile", tests, NULL, NULL);
}
