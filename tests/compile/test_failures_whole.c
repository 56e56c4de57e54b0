/* SPDX-License-Identifier: Apache-2.0
 * The capture of a function that fails at any step: nothing has run, nothing is
 * left behind, and the function can be called eagerly and captured afterwards. */
#include <brigade/control.h>
#include <brigade/optim.h>
#include <brigade/random.h>

#include "tests/compile/failing_step.h"
#include "tests/compile/functions.h"

enum { N_W = 6 };

/* What a call reads and changes beside its input. */
typedef struct world {
    brg_tensor *w, *buffer;
    brg_params *params;
    brg_optim *optim;
    brg_function *square;
    bool is_step;
} world;

static brg_status stretches(brg_tensor *const *in, size_t n_in,
                            brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    out[0] = brg_mul_scalar(brg_sin(in[0]), *(double *)user);
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status changes_buffer(world *in, brg_tensor *h)
{
    bool mode = brg_grad_mode_set(false);
    brg_status status = brg_mul_scalar_(in->buffer, 0.5);
    if (status == BRG_OK)
        status =
            brg_add_(in->buffer, brg_mean(h, 1, (const int[]){0}, false), 0.5);
    brg_grad_mode_set(mode);
    return status;
}

/* A product, random numbers, a buffer that changes, a function with a backward
 * of its own, a branch, a view; as a step also the backward and the optimizer. */
static brg_status works(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                        size_t n_out, void *user)
{
    static double twice = 2, thrice = 3;
    world *v = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *h = brg_tanh(brg_linear(in[0], v->w, NULL));
    BRG_TRY(changes_buffer(v, h));
    h = brg_dropout(brg_mul(h, v->buffer), 0.25, true);
    brg_value args[] = {brg_value_tensor(h)};
    h = brg_function_call(v->square, args, 1);
    if (!h)
        return brg_error_code();
    BRG_TRY(brg_cond(&h, 1, brg_sum_all(brg_detach(h)),
                     (brg_region){stretches, &twice},
                     (brg_region){stretches, &thrice}, &h, 1));
    out[0] = brg_sum_all(brg_transpose(h, 0, 1));
    if (!v->is_step)
        return out[0] ? BRG_OK : brg_error_code();
    BRG_TRY(brg_optim_zero_grad(v->optim, false));
    BRG_TRY(brg_backward(out[0]));
    return brg_optim_step(v->optim);
}

static void make(world *v, bool is_step)
{
    brg_sgd_options options = BRG_SGD_OPTIONS_INIT;
    options.lr = 0.125;
    options.momentum = 0.5;
    *v = (world){.w = leaf_from(0.01, BRG_SHAPE(2, 3)),
                 .buffer = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2)),
                 .is_step = is_step};
    v->square = make_function("Square", 1, square_forward, square_backward,
                              BRG_FUNCTION_TRACEABLE);
    assert_brg_ok(brg_params_create(&v->params));
    assert_brg_ok(brg_params_add(v->params, "w", v->w, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_optim_create_sgd(&v->optim, v->params, &options));
}

static void unmake(world *v)
{
    brg_optim_destroy(v->optim);
    brg_params_destroy(v->params);
    brg_function_release(v->square);
}

/* All that a call changes: weights, gradient, buffer, result. */
typedef struct state_of {
    double w[N_W], grad[N_W], buffer[2], y;
} state_of;

static void look(const world *v, const brg_tensor *y, state_of *s)
{
    for (int i = 0; i < N_W; i++) {
        s->w[i] = element(v->w, i);
        s->grad[i] =
            brg_tensor_grad(v->w) ? element(brg_tensor_grad(v->w), i) : -1;
    }
    for (int i = 0; i < 2; i++)
        s->buffer[i] = element(v->buffer, i);
    s->y = y ? element(y, 0) : -1;
}

/* Two calls, the backward after each; how: NULL is the function itself. */
static void call_twice(world *v, brg_compiled *how, state_of *s)
{
    brg_tensor *x = leaf_from(-0.1, BRG_SHAPE(4, 3)), *y = NULL;
    brg_seed(11);
    for (int i = 0; i < 2; i++) {
        assert_brg_ok(how ? brg_compiled_call(how, &x, 1, &y, 1)
                          : works(&x, 1, &y, 1, v));
        if (!v->is_step)
            assert_brg_ok(brg_backward(y));
    }
    look(v, y, s);
}

/* A call whose capture fails at step n, if there are as many. */
static bool call_fails_at(world *v, brg_compiled *c, int n)
{
    brg_tensor *x = leaf_from(-0.1, BRG_SHAPE(4, 3)), *y = NULL;
    brg_random_state random[2];
    state_of before, after;
    look(v, NULL, &before);
    brg_random_get_state(&random[0]);
    fail_step(n);
    brg_status status = brg_compiled_call(c, &x, 1, &y, 1);
    bool has_failed = has_step_failed();
    brg_random_get_state(&random[1]);
    if (!has_failed) {
        assert_brg_ok(status);
        return false;
    }
    assert_int_equal(status, BRG_ERR_CALLBACK);
    assert_non_null(strstr(brg_error_message(), "this step fails"));
    assert_null(y);
    assert_int_equal(compile_stats().functions, 0);
    look(v, NULL, &after); /* nothing ran */
    assert_memory_equal(&before, &after, sizeof before);
    assert_memory_equal(&random[0], &random[1], sizeof random[0]);
    assert_true(brg_grad_mode());
    assert_null(brg_tensor_grad(x));
    return true;
}

/* Then eagerly as ever (is_eager), or captured. */
static bool fails_at(int n, bool is_step, bool is_eager, const state_of *want)
{
    brg_scope *scope = brg_scope_begin();
    state_of got;
    world v;
    make(&v, is_step);
    brg_compiled *c = compile_whole(works, &v);
    bool has_failed = call_fails_at(&v, c, n);
    if (has_failed) {
        call_twice(&v, is_eager ? NULL : c, &got);
        assert_memory_equal(&got, want, sizeof got);
        assert_int_equal(compile_stats().functions, !is_eager);
    }
    brg_compiled_destroy(c);
    unmake(&v);
    brg_scope_end(scope);
    return has_failed;
}

static void sweep(bool is_step)
{
    brg_scope *scope = brg_scope_begin();
    state_of want;
    world v;
    make(&v, is_step);
    call_twice(&v, NULL, &want);
    unmake(&v);
    brg_scope_end(scope);
    assert_true(fails_at(0, is_step, false, &want)); /* what stays for good */
    int n = 0;
    bool has_failed;
    do {
        uint64_t before = bytes_in_use();
        has_failed = fails_at(n, is_step, n % 2, &want);
        assert_int_equal(bytes_in_use(), before);
    } while (has_failed && n++ < 1000);
    print_message("%d steps\n", n);
    assert_in_range(n, 30, 999); /* it did fail at many steps */
}

static void test_failures_whole__at_each_step_of_a_segment(void **state)
{
    (void)state;
    sweep(false);
}

static void test_failures_whole__at_each_step_of_a_training_step(void **state)
{
    (void)state;
    sweep(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_failures_whole__at_each_step_of_a_segment),
        scoped_test(test_failures_whole__at_each_step_of_a_training_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
