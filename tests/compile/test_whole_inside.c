/* SPDX-License-Identifier: Apache-2.0
 * What runs inside of whole steps beside their ops, against the function itself
 * (worlds.h): hooks, checkpoints, other functions, observers, failures. */
#include <brigade/debug.h>
#include <brigade/recompute.h>

#include "core/base/error.h"
#include "tests/compile/world_functions.h"

/* ---- Hooks added inside ---------------------------------------------------- */

FUNCTION(hook_param_inside)
{
    brg_hook *hook;
    BRG_TRY(brg_tensor_add_hook(&hook, W->w[0], count_hook, W->buffer, NULL));
    out[0] = brg_sum_all(brg_sin(brg_mul(in[0], W->w[0])));
    brg_status s = brg_backward(out[0]);
    brg_hook_remove(hook);
    return s;
}

static brg_status scale_hook(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)user;
    *replacement = brg_mul_scalar(grad, 3);
    DONE(*replacement);
}

FUNCTION(hook_scale_step)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    BRG_TRY(brg_tensor_add_hook(NULL, h, scale_hook, NULL, NULL));
    out[0] = brg_sum_all(brg_sin(h));
    return brg_backward(out[0]);
}

FUNCTION(hook_param_scale_step)
{
    brg_hook *hook;
    BRG_TRY(brg_tensor_add_hook(&hook, W->w[0], scale_hook, NULL, NULL));
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    out[0] = brg_sum_all(brg_sin(h));
    brg_status s = brg_backward(out[0]);
    brg_hook_remove(hook);
    return s;
}

FUNCTION(node_hook_step)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    brg_node *node;
    BRG_TRY(brg_tensor_node(&node, h));
    brg_status s = brg_node_add_pre_hook(NULL, node, pre_hook, NULL, NULL);
    brg_node_release(node);
    BRG_TRY(s);
    out[0] = brg_sum_all(brg_sin(h));
    return brg_backward(out[0]);
}

static brg_status fills_flat(void *user)
{
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_fill_(W->flat, W->call);
    brg_grad_mode_set(mode);
    return s;
}

static brg_status queue_hook(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)grad;
    (void)replacement;
    return brg_queue_final_callback(fills_flat, user);
}

FUNCTION(final_step)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    BRG_TRY(brg_tensor_add_hook(NULL, h, queue_hook, user, NULL));
    out[0] = brg_sum_all(brg_sin(h));
    return brg_backward(out[0]);
}

static void test_whole_steps__hooks_added_inside(void **state)
{
    (void)state;
    CHECK(final_step, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(hook_param_inside, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(hook_scale_step, 1, 1, .is_step = true);
    CHECK(hook_param_scale_step, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(node_hook_step, 1, 1, .is_step = true);
}

/* ---- Checkpoints ----------------------------------------------------------- */

FUNCTION(recompute_step)
{
    BRG_TRY(recompute(in, n_in, out, n_out, user));
    out[0] = brg_mean_all(out[0]);
    return brg_backward(out[0]);
}

FUNCTION(selective_step)
{
    BRG_TRY(selective(in, n_in, out, n_out, user));
    out[0] = brg_mean_all(out[0]);
    return brg_backward(out[0]);
}

FUNCTION(reentrant_step)
{
    BRG_TRY(reentrant(in, n_in, out, n_out, user));
    out[0] = brg_mean_all(out[0]);
    return brg_backward(out[0]);
}

FUNCTION(recompute_item_step)
{
    BRG_TRY(brg_recompute(out, item_stretch, user, in, 1, NULL));
    out[0] = brg_mean_all(out[0]);
    return brg_backward(out[0]);
}

static void test_whole_steps__checkpoints(void **state)
{
    (void)state;
    CHECK(recompute_step, 1, 1, .is_step = true);
    CHECK(selective_step, 1, 1, .is_step = true);
    CHECK(reentrant_step, 1, 1, .is_step = true, .in_pieces = true);
    CHECK(recompute_item_step, 1, 1, .is_step = true, .in_pieces = true,
          .is_loose = true);
}

/* ---- Functions inside ------------------------------------------------------ */

FUNCTION(nested_step)
{
    brg_tensor *h = brg_mul(in[0], W->w[0]);
    BRG_TRY(brg_compiled_call(W->inner, &h, 1, out, 1));
    out[0] = brg_mean_all(out[0]);
    return brg_backward(out[0]);
}

FUNCTION(inner_step_in_piece)
{
    double v;
    brg_tensor *h = brg_detach(brg_mul(in[0], W->w[0]));
    BRG_TRY(brg_tensor_item(brg_mean_all(brg_detach(h)), &v));
    BRG_TRY(brg_compiled_call(W->inner, &h, 1, out, 1));
    DONE(out[0]);
}

FUNCTION(cond_step)
{
    BRG_TRY(branches(in, n_in, out, n_out, user));
    out[0] = brg_mean_all(out[0]);
    return brg_backward(out[0]);
}

static void test_whole_steps__functions_inside(void **state)
{
    (void)state;
    CHECK(nested_step, 1, 1, .is_step = true, .inner = sines);
    CHECK(inner_step_in_piece, 1, 1, .is_step = true, .in_pieces = true,
          .inner = step_simple);
    CHECK(cond_step, 1, 1, .is_step = true);
}

/* ---- Observers --------------------------------------------------------------- */

static brg_status counts(const brg_observation *seen, void *user)
{
    (void)seen;
    ++*(int *)user;
    return BRG_OK;
}

static int n_inside;

FUNCTION(observes)
{
    BRG_TRY(brg_observer_push(counts, &n_inside));
    brg_tensor *h = brg_sin(brg_mul(in[0], W->w[0]));
    BRG_TRY(brg_observer_pop());
    out[0] = brg_mean_all(h);
    return brg_backward(out[0]);
}

/* Those of the caller are who they were. */
static void test_whole_steps__observers(void **state)
{
    (void)state;
    int n_outside = 0, n_before = 0;
    assert_brg_ok(brg_observer_push(counts, &n_outside));
    CHECK(observes, 1, 1, .is_step = true, .in_pieces = true);
    assert_true(n_inside > 0 && n_outside > 0);
    n_inside = 0;
    n_before = n_outside;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(2));
    assert_non_null(brg_exp(x));
    assert_int_equal(n_outside, n_before + 1);
    assert_int_equal(n_inside, 0);
    assert_brg_ok(brg_observer_pop());
    assert_brg_fails_with(brg_observer_pop(), BRG_ERR_STATE, "no observer");
}

/* ---- Failures -------------------------------------------------------------- */

static brg_status refuses(brg_tensor *grad, brg_tensor **replacement,
                          void *user)
{
    (void)grad;
    (void)replacement;
    return W->call % 2 ? BRG_FAIL(BRG_ERR_CALLBACK, "as asked") : BRG_OK;
}

static void refuses_now_and_then(world *w, int i)
{
    if (i == 0)
        assert_brg_ok(brg_tensor_add_hook(NULL, w->w[1], refuses, w, NULL));
    for (int k = 0; k < 2; k++)
        assert_brg_ok(brg_tensor_set_grad(w->w[k], NULL));
}

FUNCTION(step_fails)
{
    out[0] = brg_mean_all(brg_mul(brg_mul(in[0], W->w[0]), W->w[1]));
    BRG_TRY(brg_backward(out[0]));
    return brg_optim_step(W->sgd);
}

FUNCTION(passes_over)
{
    (void)!step_fails(in, n_in, out, n_out, user);
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(W->buffer, 0.5);
    brg_grad_mode_set(mode);
    return s;
}

static void test_whole_steps__a_failure_is_not_passed_over(void **state)
{
    (void)state;
    world w;
    brg_tensor *out[1];
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    CHECK(step_fails, 1, 1, .is_step = true, .may_fail = true,
          .between = refuses_now_and_then);
    options.whole = options.fullgraph = true;
    make_world(&w);
    assert_brg_ok(brg_compiled_create(&c, passes_over, &w, &options));
    for (w.call = 0; w.call < 3; w.call++) {
        refuses_now_and_then(&w, w.call);
        if (w.call == 1)
            assert_brg_fails_with(brg_compiled_call(c, w.x, 1, out, 1),
                                  BRG_ERR_CALLBACK, "as asked");
        else
            assert_brg_ok(brg_compiled_call(c, w.x, 1, out, 1));
    }
    assert_float_equal(element(w.buffer, 0), 0.25, 0);
    brg_compiled_destroy(c);
    free_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_whole_steps__hooks_added_inside),
        scoped_test(test_whole_steps__checkpoints),
        scoped_test(test_whole_steps__functions_inside),
        scoped_test(test_whole_steps__observers),
        scoped_test(test_whole_steps__a_failure_is_not_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
