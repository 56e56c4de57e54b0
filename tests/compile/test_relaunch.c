/* SPDX-License-Identifier: Apache-2.0
 * Whole steps that a device records once and is then told to do again, on a
 * device made for tests: losses and parameters have the bits of eager steps.
 * Those of a reducer: test_relaunch_reducer.c. */
#include "tests/compile/launched_steps.h"

static void expect_skip(const char *why)
{
    brg_compile_record record;
    assert_true(brg_compile_get_record(0, &record));
    assert_int_equal(record.cause, BRG_COMPILE_REPLAY_SKIP);
    if (!strstr(record.text, why))
        fail_msg("'%s' does not say '%s'", record.text, why);
}

/* ---- What is launched --------------------------------------------------------------- */

static void test_relaunch__a_step_is_recorded_once(void **state)
{
    (void)state;
    for (int is_adamw = 0; is_adamw < 2; is_adamw++) {
        brg_compile_stats s = check(&(variant){.is_adamw = is_adamw});
        assert_int_equal(s.replays, 1);
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_recordings, 1);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* More of it in test_relaunch_numbers.c. */
static void test_relaunch__dropout_draws_at_each_run(void **state)
{
    (void)state;
    for (int has_ddp = 0; has_ddp < 2; has_ddp++) {
        brg_compile_stats s =
            check(&(variant){.dropout = 0.25, .has_ddp = has_ddp});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

static brg_status end_clipped_there(model *m)
{
    BRG_TRY(brg_clip_grad_norm(NULL, m->params, 0.5, false));
    return brg_optim_step(m->optim);
}

static brg_status end_scaled(model *m)
{
    BRG_TRY(brg_scale_grad(m->params, 0.5));
    BRG_TRY(brg_clip_grad_value(m->params, 0.01));
    return brg_optim_step(m->optim);
}

/* The device measures the norm itself. */
static void test_relaunch__clipping_on_the_device(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        brg_compile_stats s =
            check(&(variant){.end = i ? end_scaled : end_clipped_there});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* Each recording drops the gradients of the one before. */
static void test_relaunch__gradients_dropped_first(void **state)
{
    (void)state;
    brg_compile_stats s = check(&(variant){.zeroes_first = true});
    assert_int_equal(s.replay_skips, 0);
    assert_in_range(s.replay_recordings, 1, 4);
    assert_int_equal(s.replay_launches, N_STEPS - 2 - s.replay_recordings);
}

static void test_relaunch__the_host_calls_no_kernel(void **state)
{
    (void)state;
    model m;
    history h;
    model_make(&m, true);
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < 3; k++)
        one_step(&m, compiled, k, 4, &h);
    int64_t n = seen.n_kernels;
    for (int k = 3; k < N_STEPS; k++)
        one_step(&m, compiled, k, 4, &h);
    assert_int_equal(seen.n_kernels, n);
    brg_compiled_destroy(compiled);
    model_free(&m);
}

/* Each size has a graph of its own. */
static void test_relaunch__two_sizes(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        model_make(&m, false);
        brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
        for (int k = 0; k < N_STEPS; k++)
            one_step(&m, compiled, k, 3 + k % 2, &h[is_compiled]);
        read_all(&h[is_compiled], &m);
        brg_compiled_destroy(compiled);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    assert_int_equal(compile_stats().replay_recordings, 2);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 6);
}

/* The step is run as it is while somebody holds a gradient that it would
 * overwrite. */
static void test_relaunch__a_gradient_that_is_kept(void **state)
{
    (void)state;
    model m;
    history h;
    assert_brg_ok(brg_compile_reset());
    model_make(&m, false);
    m.zeroes_first = true;
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < 7; k++)
        one_step(&m, compiled, k, 4, &h);
    uint64_t n = compile_stats().replay_launches;
    assert_true(n > 0);
    brg_tensor *kept = brg_retain(brg_tensor_grad(m.p[0]));
    float before[30], after[30];
    assert_brg_ok(brg_tensor_read(kept, before, sizeof before));
    one_step(&m, compiled, 7, 4, &h);
    assert_brg_ok(brg_tensor_read(kept, after, sizeof after));
    assert_memory_equal(before, after, sizeof before);
    assert_int_equal(compile_stats().replay_launches, n);
    brg_release(kept);
    brg_compiled_destroy(compiled);
    model_free(&m);
}

/* What the caller got is his: the next launch does not change it. */
static void test_relaunch__results_stay(void **state)
{
    (void)state;
    model m;
    history h;
    model_make(&m, false);
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < 4; k++)
        one_step(&m, compiled, k, 4, &h);
    brg_tensor *in[2] = {there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 5))),
                         there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 3)))};
    brg_tensor *first, *second;
    double a, b, again;
    assert_brg_ok(brg_compiled_call(compiled, in, 2, &first, 1));
    assert_brg_ok(brg_tensor_item(first, &a));
    assert_brg_ok(brg_compiled_call(compiled, in, 2, &second, 1));
    assert_brg_ok(brg_tensor_item(first, &again));
    assert_brg_ok(brg_tensor_item(second, &b));
    assert_true(a == again && a != b);
    brg_compiled_destroy(compiled);
    model_free(&m);
}

/* ---- Backwards alone ------------------------------------------------------------------- */

/* Only the ops are launched: gradients arrive at leaves by the host, are added
 * to what is there, and belong to whoever holds them. */
static void test_relaunch__backwards(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        int scope = 0;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.fullgraph = options.replay = true;
        model_make(&m, true);
        m.end = end_at_every_other;
        if (is_compiled)
            assert_brg_ok(brg_compile_begin(&scope, &options));
        for (int k = 0; k < N_STEPS; k++) {
            m.n_steps = k;
            one_step(&m, NULL, k, 4, &h[is_compiled]);
        }
        if (is_compiled)
            assert_brg_ok(brg_compile_end(scope));
        read_all(&h[is_compiled], &m);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    /* one plan with gradients that are there, and one without */
    assert_int_equal(compile_stats().replays, 2);
    assert_int_equal(compile_stats().replay_skips, 0);
    assert_int_equal(compile_stats().replay_recordings, 2);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 4);
}

static void test_relaunch__a_gradient_of_a_backward_stays(void **state)
{
    (void)state;
    brg_tensor *w = there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3))), *kept[5];
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.replay = true;
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_ok(brg_compile_begin(&scope, &options));
    for (int k = 0; k < 5; k++) {
        brg_tensor *x = there(brg_full(BRG_DTYPE_F32, BRG_SHAPE(3), (double)k));
        brg_tensor *y = brg_sum_all(brg_mul(brg_mul(w, x), w));
        assert_brg_ok(brg_grad(&kept[k], &y, 1, &w, 1, NULL));
    }
    assert_brg_ok(brg_compile_end(scope));
    for (int k = 0; k < 5; k++) {
        float value[3];
        assert_brg_ok(brg_tensor_read(kept[k], value, sizeof value));
        for (int i = 0; i < 3; i++)
            assert_float_equal(value[i], 2.0 * k, 0);
    }
    assert_int_equal(compile_stats().replay_launches, 3);
}

/* ---- What is not ----------------------------------------------------------------------- */

static brg_status end_clipped(model *m)
{
    BRG_TRY(brg_clip_grad_norm(NULL, m->params, 0.5, true));
    return brg_optim_step(m->optim);
}

static void test_relaunch__clipping_needs_the_host(void **state)
{
    (void)state;
    brg_compile_stats s = check(&(variant){.end = end_clipped});
    assert_int_equal(s.replay_launches, 0);
    assert_int_equal(s.replay_skips, 1);
    expect_skip("the host has to act: clip_grad_norm");
}

static brg_status there_and_back(brg_tensor *const *in, size_t n_in,
                                 brg_tensor **out, size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *y =
        brg_linear(brg_linear(in[0], m->p[0], m->p[1]), m->p[2], m->p[3]);
    y = brg_to(brg_to(y, HOME), THERE);
    out[0] = brg_mean_all(brg_square(y));
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

/* Found while half of the step is recorded: the rest runs, nothing is lost. */
static void test_relaunch__a_copy_to_the_host_in_the_middle(void **state)
{
    (void)state;
    double loss[2][6];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        brg_compiled *compiled;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.fullgraph = options.whole = options.replay = true;
        model_make(&m, false);
        assert_brg_ok(
            brg_compiled_create(&compiled, there_and_back, &m, &options));
        brg_tensor *x = there(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 5))), *out;
        for (int k = 0; k < 6; k++) {
            assert_brg_ok(is_compiled
                              ? brg_compiled_call(compiled, &x, 1, &out, 1)
                              : there_and_back(&x, 1, &out, 1, &m));
            assert_brg_ok(brg_tensor_item(out, &loss[is_compiled][k]));
        }
        brg_compiled_destroy(compiled);
        model_free(&m);
    }
    assert_memory_equal(loss[0], loss[1], sizeof loss[0]);
    assert_int_equal(compile_stats().replay_recordings, 1);
    assert_int_equal(compile_stats().replay_launches, 0);
    expect_skip("a copy to or from the host");
}

static brg_status twice(brg_tensor *grad, brg_tensor **replaced, void *user)
{
    (void)user;
    *replaced = brg_mul_scalar(grad, 2);
    return *replaced ? BRG_OK : brg_error_code();
}

/* A hook that comes and goes: the graph serves the calls without it. */
static void test_relaunch__a_hook_at_a_leaf(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        brg_hook *hook = NULL;
        model_make(&m, false);
        brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
        for (int k = 0; k < N_STEPS; k++) {
            if (k == 5)
                assert_brg_ok(
                    brg_tensor_add_hook(&hook, m.p[0], twice, NULL, NULL));
            one_step(&m, compiled, k, 4, &h[is_compiled]);
            if (k == 6)
                brg_hook_remove(hook);
        }
        read_all(&h[is_compiled], &m);
        brg_compiled_destroy(compiled);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    assert_int_equal(compile_stats().replay_recordings, 1);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 3 - 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_relaunch__a_step_is_recorded_once),
        scoped_test(test_relaunch__dropout_draws_at_each_run),
        scoped_test(test_relaunch__clipping_on_the_device),
        scoped_test(test_relaunch__gradients_dropped_first),
        scoped_test(test_relaunch__the_host_calls_no_kernel),
        scoped_test(test_relaunch__two_sizes),
        scoped_test(test_relaunch__a_gradient_that_is_kept),
        scoped_test(test_relaunch__results_stay),
        scoped_test(test_relaunch__backwards),
        scoped_test(test_relaunch__a_gradient_of_a_backward_stays),
        scoped_test(test_relaunch__clipping_needs_the_host),
        scoped_test(test_relaunch__a_copy_to_the_host_in_the_middle),
        scoped_test(test_relaunch__a_hook_at_a_leaf),
    };
    return cmocka_run_group_tests(tests, register_recording_device, NULL);
}
